//! Tasks: credentials for one piece of work, which end when it does.
//!
//! A service holds its X.509-SVID as long as it runs. A job, an agent's tool call or a deployment needs less: its
//! own credentials, for its own time, named after it in every record. That is a task.
//!
//! # From a program
//! The service `leasehold.task.v1.Tasks` (`src/delivery/workload_api/tasks/tasks.proto`; reflection shows it too)
//! answers on the Workload API's socket, to the same callers under the same rules. Every call carries the
//! metadata `workload.spiffe.io: true`.
//!
//! ```text
//! Begin { task_id: "close-2026-11", intent: "close the books", x509: true, audience: ["https://ledger"],
//!         authorization_details: "[{\"type\":\"ledger\",\"actions\":[\"post\"]}]", heartbeat_seconds: 30 }
//!   ◀─ TaskUpdate { spiffe_id, decision_id, term_seconds, x509 { svid, key, bundle }, jwt { token }, … }
//!   ◀─ TaskUpdate …                          renewed at half of their life, while the task lives
//! Heartbeat { task_id } ─▶ { within_seconds }   only where one was asked for
//! End { task_id, outcome, note }                then the stream ends with OK
//! ```
//!
//! The stream is the task: closing it ends the task. It belongs to the process that began it; nobody else may
//! speak for it, a child or a process of the same user included. All that a caller states of itself (intent,
//! purpose, details) narrows what policy grants, and never widens it; what was granted stands in each update.
//!
//! # What ends a task
//! | what happens | code | noticed by |
//! |---|---|---|
//! | the process ends with code 0, closes its stream, or says that it is done | `task.ended` | pidfd, stream |
//! | it ends with another code, by a signal, or says that it failed | `task.failed` | pidfd; the status as below |
//! | the kernel kills it for want of memory | `task.out_of_memory` | signal 9, and a count of such kills that went up |
//! | no heartbeat in the time it named | `task.heartbeat` | a look every 250 ms |
//! | it executes another program, changes uid, gid or groups, cgroup, unit or its run | `task.scope` | a look every 250 ms |
//! | a PCR drifts, the TPM is reset, the control plane refuses the node | `gate.…`, `verify.…` | the gate |
//! | its registration, owner, purpose or policy changes, somebody revokes | `workload.no_match`, `policy.…`, `gate.revoked` | pushed |
//! | nothing could be renewed in time | `issuer.expired` | its own term; the stream ends with `Unavailable` |
//! | the agent that held it was started again | `task.abandoned` | the agent's first word |
//!
//! Then, within a second of the cause: what the agent holds of it is dropped and wiped, the stream ends
//! (`PermissionDenied`, and the code in `leasehold-code`), the node's journal has a note, and the control plane
//! ends the task and each of its credentials with that code. While the control plane is away the agent keeps the
//! end and tells it within seconds of its return (each text of the reason cut to 512 bytes); what isn't told runs out with the task's last credential, at
//! `until` in `leasehold-server task show ID`. `leasehold-server task list` shows what lives.
//!
//! What a process already holds can't be called back: it ends by its own short term, or where a relying party
//! asks for revoked serial numbers and `jti`s; this node's own `ValidateJWTSVID` refuses it (`token.denied`).
//!
//! A caller that gives up during `Begin` leaves a request under way. The agent waits for what becomes of it and
//! ends what was begun for nobody; the same id begun again meanwhile waits for that, at most 5 s, and is then
//! told to try again (`Unavailable`).
//!
//! # How a process ended
//! Only its parent is told, by design of Unix. The agent asks `/proc/PID/stat`, which shows the status until the
//! parent has waited, and the kernel's process connector, which tells it to root, and from Linux 6.6 on to others, in
//! the machine's first PID and user namespace. Where neither speaks (an agent in a container and a quick parent) an
//! end is `task.ended`, "how isn't told here". Two processes of one cgroup of which one is killed
//! for want of memory and the other, within seconds, by signal 9 of somebody else, look the same.
//!
//! # Bounds
//! | of | at most |
//! |---|---|
//! | live tasks on a node, of a user, of a workload | 1024, 256, 512 |
//! | an id: `A–Z a–z 0–9 . _ : -` | 128 bytes; one of a workload lives on a node at a time, and one of a process |
//! | requests for credentials under way, of a user | 8, 4; who waits 5 s for a turn is told to try again |
//! | intent, purpose, a note | 256 bytes each |
//! | authorization details | 16 KiB of JSON, 32 of them |
//! | audiences | 16 |
//! | heartbeat | an hour |
