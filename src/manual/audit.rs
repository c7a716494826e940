//! What is recorded, how it is kept from being changed, and what that doesn't cover.
//!
//! # What is recorded
//! | by | what | when |
//! |---|---|---|
//! | control plane | every decision's credential (`credential.issued`), its one end (`credential.revoked`, `credential.expired`), every denial (the refusal's code), every lease, admission, revocation and command, with who gave it | in the transaction of the thing itself |
//! | node | `credential.released` (to which process, by which decision, under which lease), `credential.used` (a token that was examined), `credential.denied`, `release.ended` (a stream, with the code) | before the credential leaves; the disk has it by then |
//! | both | `audit.…`: what was found of the record itself | when it was found |
//!
//! A record names node, workload, lease, decision, credential (a certificate's serial number, a token's `jti`) and
//! task as far as it has them, and never the value of a secret. It is one line of JSON in printable ASCII: every other
//! character, whoever chose it, stands as an escape.
//!
//! ```text
//! leasehold-server audit tail --nodes --credential SERIAL    # one credential's life, issue to end
//! leasehold-server audit export --since 2026-11-01T00:00:00Z > november.jsonl
//! leasehold-server audit check                               # every credential: one issue, its releases, one end
//! leasehold-server audit verify [--store FILE --head FILE]   # with or without a server
//! leasehold-agent audit verify                               # on the node; needs neither TPM nor agent
//! ```
//!
//! # The chain
//! Each writer (the control plane's log; each node's journal) numbers its records from 1 without gaps:
//! ```text
//! chain 0 = SHA-256("leasehold-audit-begin-v1\0" ‖ writer, 16 bytes)
//! chain n = SHA-256("leasehold-audit-record-v1\0" ‖ chain n-1 ‖ the record's line)
//! head    = ECDSA P-256 over SHA-256("leasehold-audit-head-v1\0" ‖ writer ‖ n, u64 big-endian ‖ chain n)
//! ```
//! A record that was edited doesn't follow from the one before; a record that is missing leaves its number; whoever
//! changes one and computes the chain anew meets the next signed head.
//!
//! - **Control plane.** Its head is signed every 5 s while there is something new, by a key of its own (under the
//!   wrapping key in the store; a CA key signs certificates alone). The last head lies outside the store too, beside
//!   the wrapping key as `wrapping.key.audit`, and every node is given it with each delivery and shows it with the next.
//!   At the start, and whenever a node shows one, the log is held against it: what is missing or changed is
//!   recorded (`audit.gap`, `audit.tampered`). A store from a backup says `audit.restored` with the numbers it
//!   lost, takes other numbers from then on, and begins a new epoch; the head that showed it is put aside beside
//!   the wrapping key (`wrapping.key.audit.missing-…`), so that nobody with the store alone can write that there
//!   was a restore.
//! - **Node.** Its head is signed by the node key in the TPM, at most every 5 s while there is something new: one
//!   `TPM2_Sign`, and none for a release. Records wait in `journal/` of the state directory and are delivered
//!   to the control plane, which follows the chain, checks the signature against the enrolled key, and refuses a journal
//!   that differs from what it has. Each delivery is a record of the control plane's own chain (`audit.delivered`),
//!   and so is whose journal it is and which key signs it (`audit.journal_began`, `audit.journal_key`). Records that
//!   a node says are gone for good, as after a restore, are recorded (`audit.gap`) with the chain that goes on after
//!   them: noted from then on, while what follows is verified like everything else.
//!
//! # Written before anything leaves
//! Notes that wait are written together, with one fsync for all. A process that fetches again and again has its first
//! release of each credential on the disk before it gets it; its repeats are counted and written as a number every 5 s.
//! If the journal can't be written (the disk is full, or more than `journal.max_mib` waits for the control plane) nothing is
//! released: callers get `Unavailable`, `leasehold-agent status` says `audit.unwritable`, and it heals by itself with
//! the disk. Denials are counted by user and code, so that nobody fills the disk by asking. Once more than half of
//! `journal.max_mib` waits, the releases of each user may take another sixteenth of it; who has taken that is refused, and
//! the others go on.
//!
//! # How much one node may say
//! Records are kept for good, so the control plane counts what each call of a node adds to its log, its decisions and
//! the node's journal. Within an hour a node may add `audit.node_mib_an_hour` (64 MiB) with
//! what it delivers, as much with SVIDs, as much with attestations, and four times that with grants, which are about
//! 4 KiB each: 18 a second for an hour. It may do so at once. Beyond that its calls of that kind are answered `protocol.busy`, recorded once an hour:
//! its journal waits in its spool, and when that is full, that node alone releases nothing. A restart of the
//! server forgets what was counted.
//!
//! What is thrown away, after `policy.keep_days`: decisions whose credentials are over, and the rows of tasks that
//! ended; the log still has their records. `audit check` says from when on decisions are there and asks for none from
//! before. Log, journals and the ledger of credentials stay: leave room for them.
//!
//! # What is found, and what isn't
//! | | found | named |
//! |---|---|---|
//! | a byte of a record, of its chain, of its number | always | writer and number |
//! | a missing, repeated or moved record | always | writer and number |
//! | a cut before the last signed head | always | the first missing number |
//! | a chain computed anew before the last signed head | by the head | the head's number: this record or one before it |
//! | the end of a record that a power cut left | told from a change: it is the beginning of the next record, at the very end; the next start cuts it off and says `audit.torn` | its number |
//!
//! Not protected, as `audit verify` prints:
//! - on the control plane, records of the last 5 s, until their head is signed, against whoever writes the store;
//! - of a process's repeats on a node, the counts of the last 5 s before a kill -9 (never its first release);
//! - a release that was recorded and then didn't leave, because the agent was killed in between: one record too many;
//! - against root on a node: what wasn't delivered. Root can have the TPM sign another end, or remove the journal; then
//!   a new one begins, which the control plane records (`audit.journal_began`, with how far it had the last). What was
//!   delivered root can't take back: a fork is refused and recorded. Root who steers the agent can also keep it from
//!   writing what it does;
//! - against whoever has the control plane's store, its wrapping key and the file beside it, until a node shows the head it
//!   was given, or somebody compares an export.
//!
//! A node whose journal was changed puts it aside (`journal-aside-N`, for people to look at; the first four and the last four
//! are kept), begins a new one that says so, and goes on: the change is reported, and workloads aren't stopped by it.
//!
//! `audit verify` ends with 0 if all holds, 3 if something was found and recorded earlier (such records stay; what a
//! node can repeat at will is one line with a count), 4 if something doesn't hold now; `audit check` with 4 if anything stands alone.
