//! From a log to a lease: what is read, what it proves, and how updates are told in advance.
//!
//! A PCR is a number. What it stands for is in logs that nobody signs; they are believed as far as their
//! digests lead to the quoted number, and no further.
//!
//! # What is read
//! | log | written by | where | explains |
//! |---|---|---|---|
//! | boot event log | firmware, boot loader, the kernel's EFI stub | `/sys/kernel/security/tpm0/binary_bios_measurements` | PCRs 0 to 9, 11 to 14 |
//! | userspace log | systemd | `/run/log/systemd/tpm2-measure.log` | what is added to 0 to 7, 9, 11 to 15 |
//! | IMA's list | the kernel | `/sys/kernel/security/ima/binary_runtime_measurements` | PCR 10 |
//!
//! `[logs]` in the agent's file names other places; `""` is none, and a file that isn't there is none either. What a
//! log says is printed by `leasehold-agent log boot|userspace|ima FILE`, with what its digests vouch for.
//!
//! # How logs travel
//! The agent sends what is new: the whole boot log once, then increments. Both sides keep a chain of hashes over
//! the parts ([`crate::evidence::LogChain`]); the quote's qualifying data names the chains as they were just before
//! it. What IMA's list gained between that and the quote comes along unbound: the quoted PCR 10 vouches for it. A
//! first list of more than 4 MiB goes ahead in parts that can be resumed (`POST /v1/logs`).
//! The control plane keeps the parts of a node's present boot, and a checkpoint of the list: entries taken in,
//! PCR 10 behind them, what no rule allowed. So an increment costs what is new in it.
//! systemd marks its log (sticky bit) while a record is missing. The agent waits for it, and after 10 s sends what there
//! is: a record that a PCR needs is then missed by the replay, one that none needs is not missed at all.
//!
//! # What is believed
//! 1. **Replay.** Each PCR that a profile says logs explain must be reached exactly, in the one pinned bank.
//! 2. **Types.** An event may stand only where the firmware profile allows its type. One valid separator ends the
//!    firmware's part of PCRs 0 to 7.
//! 3. **Data** reaches policy only if its digest was recomputed from it. For the rest the digest alone is compared.
//! 4. **Secure Boot** by the strict order of PCR 7: SecureBoot, PK, KEK, db, dbx, once each, before the separator;
//!    authorities after it.
//! 5. **IMA**: the list begins with this boot's `boot_aggregate` and leads to the quoted PCR 10. A list beside a
//!    PCR 10 of zeros means that the kernel measured past the TPM.
//!
//! Then each layer gets a word: *affirmed*, *warned*, *contraindicated*, or *not proven*. A lease needs that none is
//! contraindicated, and that the boot layer is affirmed or warned; only where the firmware profile says that the
//! platform can't prove its boot is any other layer enough. Profiles (`firmware-profiles/`) say what a platform can't
//! prove; `leasehold-agent probe` finds the one of a node, and says why.
//!
//! # Reference values
//! A set names the states a node may have booted into, of which one must be met as a whole, and the rules for what may
//! run. `leasehold-server reference --help` shows the way from artefacts to a lease; in short:
//! ```text
//! reference from-artifacts …   computes a set from a unified kernel image, packages or a tree; needs no server
//! reference learn --profile …  or drafts one from the logs of a node that is known to be good
//! reference sign --key …       approves it with the policy key, offline
//! reference import …           puts it in force; a version never goes back
//! reference assign …           to a node or a group
//! reference plan-update …      predicts the next state, accepts both until a moment, says what changes
//! ```
//! A node without a set is held against the PCR values learnt from it, whole (`reference learn` without
//! `--profile`). Until it has a set a node quotes the PCRs of `pcrs` in server.toml, so a first draft lacks what only
//! the profile asks for, such as PCR 10: assign it, and draft again.
//!
//! Where `policy.keys` is configured only what enough different keys signed counts, whenever it was imported; values
//! learnt whole are signed by nobody and count no more. So sign and import first, then configure the keys. Where
//! `control_plane.policy_keys` is configured on the node, the agent takes no rules without those signatures, and none
//! older than the last: a control plane alone can't widen what may run. It then follows no rules at all: the lease
//! holds on its exact values, and `status` names the trouble.
//!
//! An import leaves leases as they are until the nodes' next attestation, for which it asks at once; assigning,
//! unassigning and retiring end them. The files of before a `plan-update` stay allowed when the state of before has
//! ended: a later version of the set takes them out.
//!
//! # The gate listens
//! The lease names the set; the agent fetches it once and keeps it. When PCR 10 moves, the agent reads what the list
//! gained, folds it, and judges each entry. If all of it is allowed and leads to the value read, nothing closes, and
//! the increment is on its way. If not, the gate closes at once, control plane or none, and says which entry.
//!
//! # When something is refused
//! `leasehold-agent status` on the node and `leasehold-server node explain ID` say the same: the layer, the event or
//! entry by number, what was found, the nearest accepted value, and the one command that would accept it, if that is
//! right. `leasehold-server appraise` does it without a control plane, on files of other tools or on what
//! `leasehold-agent evidence` wrote, which says the command to run.
