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
//!    │ POST /v1/logs           a first log of several parts       │ kept, taken in
//!    │ POST /v1/attest         evidence over the nonce, log parts │ client certificate, nonce, verify
//!    │ ◀──────────────────  lease, entries, bundle, next nonce    │ one transaction
//!    │ POST /v1/credentials    CSRs                               │ lease live? (node, workload)?
//!    │ ◀─────────────────────────────────────────────────  SVIDs  │
//!    │ GET  /v1/events         ◀ alive · attest · revoked         │
//! ```
//!
//! - TLS 1.3 only, no resumption, no early data. The agent checks the chain against its pinned bundle or CA
//!   hash and the name against `spiffe://TRUST-DOMAIN/leasehold/server`; host names play no part.
//! - The node's TLS key is the TPM's node key. Evidence is signed by the same key, so evidence that arrives
//!   under another client certificate is refused.
//! - A quote's extraData is SHA-256 over a label, the nonce, the node key's name, the boot id and the digests of
//!   log segments ([`crate::evidence::quote_binding`]).
//! - Every answer to an attestation carries the next nonce: one round trip in steady state. A lost answer is
//!   asked for again with the same request, which gets the stored answer.
//! - Durations, never dates, cross the wire; a lease counts from the moment its request was sent.
