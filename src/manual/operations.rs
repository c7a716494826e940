//! Setting up, what the states mean, and what to do when something is refused.
//!
//! # A node in five commands
//! ```text
//! leasehold-server ca show                                   # the hash for the agent's configuration
//! leasehold-agent run --config /etc/leasehold/agent.toml     # on the node: it enrols and waits
//! leasehold-server node approve NODE
//! leasehold-server reference learn --node NODE               # its present PCRs become its reference
//! leasehold-server workload add --id spiffe://… --owner … --purpose … --node NODE --selector unix:uid:1000
//! ```
//!
//! # The four states
//! | state | means | callers get |
//! |---|---|---|
//! | affirming | a live lease, and the PCRs are the ones it was granted on | SVIDs |
//! | stale | no live lease or no reading; nothing is known against the node | `Unavailable` |
//! | unreachable | as stale, because the control plane doesn't answer | `Unavailable` |
//! | contraindicated | a PCR, the TPM or the control plane speaks against the node | `PermissionDenied` "no identity issued" |
//!
//! `leasehold-agent status` says which, and why; `doctor` walks from the configuration to the credential and
//! names the first broken link. Both have `--json`.
//!
//! # Nothing needs a command to heal
//! The TPM or the control plane may be away: release stops with the TPM and goes on to the lease's end without
//! the control plane; the agent tries again after 0.1 to 4 s, for ever. A node whose certificate ran out enrols
//! again by itself, since its keys are in the TPM and its admission is remembered.
