//! Taking back: what happens, how soon, and what each answer to "is it over?" is worth.
//!
//! # What can be revoked
//! | command | what it does | how it is undone |
//! |---|---|---|
//! | `revoke workload ID` | everything of it is withdrawn, wherever it is; the workload is suspended, so that nothing is issued for it | `workload resume ID` |
//! | `revoke owner NAME` | the same for all workloads of an owner | `workload resume` for each |
//! | `revoke svid SERIAL\|JTI` | that one credential; the agent asks for another, which is a decision anew | nothing to undo |
//! | `revoke task ID` | every task of this id on the node ends, of whichever workload, with its credentials | a task begun anew |
//! | `revoke node NODE` | the node's lease ends, everything on it is withdrawn, and it can't enrol again under any of its EKs | not at all |
//! | `ca remove KEY --break-glass` | a CA leaves the bundle: everything that it signed is worth nothing | not at all |
//!
//! The registration stays with its owner and its purpose, for the record; `workload remove` withdraws too and takes
//! the registration away. Suspending, changing the scope of a workload and retiring its owner withdraw in the same
//! manner. Each has a number; `revocation list` and `revocation show NUMBER` say how far it has come. To revoke
//! what is revoked changes nothing and gives the number back.
//!
//! # The bounds
//! | node | nothing of it is released any more |
//! |---|---|
//! | listens (its event stream is open) | within 2 s of the command; on the node itself within 1 s of its word |
//! | can't be reached | when what it holds runs out: the earlier of its lease's end and of the last credential's `notAfter` or `exp` |
//! | has no lease | at once |
//!
//! `revoke … --explain` changes nothing and prints for each node whether it listens, when it was last seen, how many
//! credentials it holds and until when it could go on if it heard nothing, with the latest of all. The bound counts
//! what was issued, also credentials that ended here before: a node that heard nothing may still hold them. Terms
//! in the configuration (`terms.svid_seconds`, `terms.lease_seconds`) and a workload's `--ttl` are what make it short.
//! A connection that broke without a word counts as listening for up to 30 s; the bound beside it holds all the same.
//!
//! What a process already has can't be called back. It ends by its own time, or where the relying party asks.
//!
//! # Told, acknowledged, proven
//! Three counts, never mixed:
//! - *told*: it was written to the node's stream, or stands in an answer to it. It need not have arrived.
//! - *acknowledged*: the node says that it is applied: what it held is wiped, its open streams have ended or moved
//!   on, and only then does it say so. That is the agent's claim. An agent that somebody replaced may say it and go on.
//! - *proven*: the node's next evidence names the number, and was affirmed. The claim is signed by the node key, which
//!   is in the TPM, and the quote beside it shows the measured state of what runs there. It is worth as much as
//!   the reference values are: where they fix the agent's binary (IMA rules, a measured image), the code that says
//!   "applied" is the code you know; where only firmware and boot are measured, it is the word of whatever was
//!   started then. It proves nothing of a node whose root is hostile within an approved boot.
//!
//! A node that isn't told is told again with every stream it opens and every attestation, until it acknowledges:
//! a server that dies between commit and push, an agent that dies between applying and saying so, and a node that
//! was off for a month all come to the same end. The agent keeps nothing withdrawn on its disk, so a restart
//! starts without it; it keeps the numbers it has yet to prove (`withdrawals.cbor`). A credential that crosses its
//! withdrawal on the wire isn't held. A revoked node may still acknowledge; it can't prove any more, since its
//! evidence is refused: `proven` stays 0, and its bound says when it is over.
//!
//! `revoke … --wait SECONDS` returns when every node that listens has acknowledged, with exit code 3 if some didn't.
//! To tell an agent's owner that a key is safe again, wait for *proven*, or for the bound.
//!
//! # What relying parties can check
//! Without a client certificate, over HTTP/2 and TLS 1.3 on the control plane's listener:
//! - `GET /v1/crl`, `GET /v1/crl/KEY-ID`: the CRL (RFC 5280) of the active CA, or of the CA of that key
//!   (`key_id` in `ca show`, all 64 digits), retired ones too. On it stand X.509-SVIDs that ended before their time,
//!   revoked or with their task, until that time is over. Its number grows; it holds for an hour and is renewed at
//!   half of that, or as soon as something is added. `ca crl --out FILE` writes the same to a file, for relying parties
//!   that can't ask. With `published.url` in server.toml certificates name the CRL that they would stand on (RFC 5280,
//!   4.2.1.13).
//! - `GET /v1/denied`: `{"schema":1,"trust_domain":…,"refresh_hint":5,"denied":[{"jti":…,"revoked":…,"exp":…}]}`: the
//!   tokens that are revoked and not over; times are seconds since 1970. It isn't signed: it is worth what the TLS
//!   connection is worth, so verify the server by the trust bundle (`spiffe://TRUST-DOMAIN/leasehold/server`).
//! - `GET /v1/bundle`: the SPIFFE bundle as a JWK Set.
//!
//! Each may be used for 5 s without asking again (`Cache-Control`), and has an `ETag`. So a relying party that asks
//! refuses a revoked credential some 6 s after the command; one that doesn't ask, when the credential runs out:
//! SPIFFE's own answer is short life, and 10 minutes is the default. Without `published.url`
//! certificates name no distribution point: the control plane doesn't know under which name relying parties reach it. Lists stop at 100 000 entries
//! with an error rather than leave some out; a node can have at most 8192 credentials that aren't over (beyond
//! that it hears `protocol.busy`), so it takes twelve hostile nodes together to make them that long.
//!
//! # Breaking glass
//! `ca remove KEY --break-glass --reason …` is for a CA key that somebody else has. The CA leaves the bundle; the active
//! one is replaced by a new one at once, and so are the keys for tokens; every credential under it ends in the ledger;
//! every connection to the control plane is ended. Agents come back within seconds: their certificate is refused,
//! they enrol again (their admission is remembered), take the new bundle, drop what doesn't lead to it and fetch anew.
//! Workloads with an open stream get the new SVID on it.
//!
//! An agent that knew no other CA is led to the new one by the removed CA's own signature on it. That gives the thief
//! nothing he hadn't: whoever has that key can pose as the control plane to a node that pins it, until the node
//! has the new bundle, from which the old CA is gone; where a configuration pins it (`ca_hash`), until you
//! change that too. Relying parties refuse everything of the old CA, and of the new one, until they have the
//! new bundle: tell them first if you can. Where a theft isn't certain, rotate instead (`ca prepare`, `ca rotate`):
//! nobody is cut off.
