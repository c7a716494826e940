//! What the two binaries say, in order. Messages: [`crate::protocol::messages`].
//!
//! ```text
//!  agent                                                    control plane
//!    │ POST /v1/enrol          EK, aliases, AK, node key          │ template, grade, one row per enrolment
//!    │ ◀───────────────────────────  nonce, credential challenge  │ MakeCredential(EK, recomputed AK name)
//!    │ ActivateCredential, Certify(node key), Quote                │
//!    │ POST /v1/enrol/answer   HMAC(secret, evidence), evidence   │ same row: proof, evidence, admission
//!    │ ◀───────────  node certificate, bundle, nonce | "waiting"  │
//!    │                                                            │
//!    │ POST /v1/logs           a part of a log, ≤ 4 MiB           │ the next part? then kept and taken in
//!    │ ◀──────────────────────────────────  what is held of each  │ (only where more is new than fits below)
//!    │ POST /v1/attest         evidence, what is new in the logs  │ client certificate, nonce, verify, replay
//!    │ ◀─────────  lease, verdict of each layer, bundle, nonce    │ one transaction
//!    │ GET  /v1/references     ◀ the document the lease names     │
//!    │ POST /v1/credentials    CSRs                               │ lease live? (node, workload)?
//!    │ ◀─────────────────────────────────────────────────  SVIDs  │
//!    │ POST /v1/tasks/end      this run's name; which tasks ended, │ they and their credentials end; what an
//!    │                         how (again until heard)            │ earlier run began has ended with it
//!    │ GET  /v1/events         ◀ alive · attest · withdraw · revoked │
//!    │ POST /v1/withdrawals    numbers that were applied          │ a claim, until evidence names them
//! ```
//!
//! - TLS 1.3 only, no resumption, no early data. The agent checks the chain against its pinned bundle or CA
//!   hash and the name against `spiffe://TRUST-DOMAIN/leasehold/server`; host names play no part.
//! - The node's TLS key is the TPM's node key. Evidence is signed by the same key, so evidence that arrives
//!   under another client certificate is refused.
//! - A quote's extraData is SHA-256 over a label, the nonce, the node key's name, the boot id and a digest of each
//!   log as far as it was sent ([`crate::evidence::quote_binding`], [`crate::evidence::logs`]).
//! - Logs travel as increments. Both sides keep a chain over the parts (length and head); a part that isn't the next
//!   one changes nothing and is answered with what is held, so an upload goes on after a lost answer or a restart
//!   of either side. What the agent reads after its quote, which may cover it, goes along unbound: replay vouches
//!   for it, and the next quote is bound to it.
//! - A lease may name the reference document by whose rules the agent judges new entries of IMA's list. The
//!   answer says where in the list the quote stands; were it wrong, the agent's own reading wouldn't be reached.
//! - Every answer to an attestation carries the next nonce: one round trip in steady state. A lost answer is
//!   asked for again with the same request, which gets the stored answer.
//! - Durations, never dates, cross the wire; a lease counts from the moment its request was sent.
