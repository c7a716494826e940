//! Tokens: JWT-SVIDs, credentials just in time, and what a service does with a token that it is shown.
//!
//! # What one says
//! A JWT-SVID of Leasehold is a JWS in compact form, signed with ES256 under a key of its own, apart from the CA's.
//! Header: `alg`, `kid`, `typ` (`JWT`), nothing else. Claims ([`crate::credentials::token::Claims`]), nothing else:
//!
//! | claim | meaning |
//! |---|---|
//! | `sub` | the workload's SPIFFE ID |
//! | `aud` | whom it is for: always a list, 1 to 16; ask for one |
//! | `exp`, `iat` | seconds since 1970 |
//! | `jti` | its id: in the ledger, in every record about it, in the list of denied ids |
//! | `decision` | the decision that it was issued by: `leasehold-server decision show` explains it |
//! | `purpose` | what the workload is registered for, or the narrower purpose that its task stated |
//! | `task_id`, `intent` | of a task's token: the task, and what it said it means to do |
//! | `authorization_details` | RFC 9396: exactly what was granted of what was asked for |
//!
//! A token is at most 8 KiB, so that it fits one HTTP header; a grant that would be larger is refused as a whole.
//! It holds for the least of: policy, the server's `terms.svid_seconds`, what is left of the node's lease, the term
//! that a task asked for, and 15 minutes.
//!
//! # How a process gets one
//! - `FetchJWTSVID` of the Workload API, with any SPIFFE library; `leasehold-agent svid jwt --audience A` on a
//!   command line. Without a `spiffe_id` it gets one for each of its identities.
//! - A task gets its own, with `task_id`, and each renewal another `jti`.
//!
//! Each token is asked for when a process asks, and decided then: over the workload, the process as the kernel
//! shows it, the audience and the node's state. The agent holds it until half of its life is over, for callers of
//! which the same is true; each hand-out waits for a fresh PCR reading and is on the disk of the journal before it
//! leaves. Drift, a withdrawal or a changed registration drops it. Without the control plane there are no new
//! tokens: `Unavailable`; what is held goes on being handed out.
//!
//! What left the agent can't be called back. It ends by `exp`; until then its `jti` is what a service can refuse.
//!
//! # How a service judges one
//! By the bundle, without asking anybody: `FetchJWTBundles` on a node, `GET /v1/bundle` of the control plane
//! elsewhere (no client certificate; a SPIFFE bundle with the CAs and the keys for tokens, `spiffe_sequence` and a
//! refresh hint of 300 s). Or by its agent: `ValidateJWTSVID`, which also knows what was taken back of its own
//! node (what an operator revoked, and what a task was given that is over: `token.denied`; of each workload the last
//! 1024 tokens, until the agent is started again), and leaves a record that the token was used, or refused; `leasehold-agent svid validate --audience A FILE`.
//!
//! In Rust, [`crate::credentials::token::Verified::read`] is the reference:
//! one algorithm, a known `kid`, no header beyond the three, raw 64-byte signatures with the lower s, canonical
//! base64url, no JSON name twice, `exp` and an `aud` that names you; its error says which of them failed and never
//! holds the token. Then ask [`crate::credentials::token::Verified::permits`]`(type, action, location)`: true only
//! within one detail that was granted; a token without details grants its subject's name and nothing else. And
//! [`crate::credentials::token::ReuseWatch`] notices a task's token that is shown by two.
//!
//! ```text
//! let keys = TokenKeys::from_jwks(&bundle)?;               // kept, and fetched again every five minutes
//! let token = Verified::read(text, "ledger", &keys, &trust_domain, now)?;
//! watch.seen(&token, &presenter, now)?;
//! if !token.permits("ledger", "append", "eu") { refuse }
//! ```
//!
//! # Tokens outside their job
//! A task is one process on one node. Where agents validate (`ValidateJWTSVID`), each use is a record with the node
//! and the user of the process that showed the token; when a second (node, user) shows a token of a task, the
//! control plane records `token.reused`, ends the credential, puts its `jti` on the list of denied ids and tells
//! the node that it was issued to. So a service that several users or nodes run should verify a task's tokens by
//! the bundle, and leave `ValidateJWTSVID` to the process that the task talks to. Tokens without a task belong to
//! all processes of their workload; of those, nothing follows from two users.
//!
//! # Keys
//! Each CA has a key for tokens beside it: made and published when the CA is prepared (`ca prepare`, or by age),
//! signing when it becomes active, in the bundle until the last token it signed is over. The `kid` is the key's
//! thumbprint (RFC 7638). In the store the keys lie under the wrapping key. Tokens don't lie in the store at all:
//! an answer that is kept a minute for a retry is sealed under a key that only the running server has.
