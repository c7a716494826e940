//! Setting up, what the states mean, and what to do when something is refused.
//!
//! # A node in five commands
//! ```text
//! leasehold-server ca show                                   # the hash for the agent's configuration
//! leasehold-agent run --config /etc/leasehold/agent.toml     # on the node: it enrols and waits
//! leasehold-server node approve NODE
//! leasehold-server reference learn --node NODE               # its present PCRs become its reference; or, to
//!                                                            # survive updates, a set: see `measurements`
//! leasehold-server workload add --id spiffe://… --owner … --purpose … --node NODE --selector unix:uid:1000
//!                                                            # --interactive to try it from a terminal: see `callers`
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
//!
//! # The control plane's keys at rest
//! Every private key in the store lies under one wrapping key: `wrapping.key` in the state directory, or where
//! `keys.wrapping_key` says. It is a file of 32 bytes, 0600; keep it out of the backups of the state directory.
//! On a machine with a TPM, seal it:
//! ```toml
//! [keys]
//! tpm = "device:/dev/tpmrm0"
//! ```
//! At the next start the key is sealed and the file replaced; it then opens only on this TPM, until somebody
//! clears it (`TPM2_Clear`, often a switch in the firmware). Who may use the TPM and read the file gets the key:
//! it protects what is stolen, not a running machine. Before sealing, copy the 32 bytes to somewhere offline.
//! That copy, put in the file's place, is how a control plane moves to another machine; without it the loss of
//! the TPM is the loss of the CA. A key made under `keys.tpm` has no such copy.
//!
//! | at the start | means | do |
//! |---|---|---|
//! | exit code 5, `tpm.unavailable` | the TPM doesn't answer within 30 s | let it be started again |
//! | `tpm.sealed_elsewhere` | another TPM, or this one was cleared; both names are shown | the TPM of before, or the offline copy |
//! | exit code 2, "sealed to a TPM, and the configuration names none" | `keys.tpm` is missing | put it back |
//!
//! # Rotating the CA
//! It happens by itself: at half of `terms.ca_days` the next CA is published in every bundle, at three quarters it
//! takes over. By hand: `ca prepare`, and `ca rotate` once every node has had a lease's term to learn of it
//! (`--early` doesn't wait: nodes get the new bundle within seconds, but those that are off don't). The old CA stays
//! in the bundle until the last certificate it signed has expired, node certificates included; for as long,
//! agents that know or pin it (`ca_hash`) are led to the new one, and come back by themselves even if they were off
//! all the time. After that such an agent says `protocol.untrusted`: set its `control_plane.ca_hash` to what
//! `ca show` prints. It enrols again without another approval.
//!
//! # As units of systemd
//! The agent runs as root: it opens `/dev/tpmrm0` and the kernel's logs, and looks at processes of every user. The
//! control plane needs a user of its own and a state directory, nothing more. The units in `tests/boot/guest` are
//! complete:
//! ```text
//! [Service]                                     [Service]
//! RuntimeDirectory=leasehold                    User=leasehold-server
//! RuntimeDirectoryMode=0755                     RuntimeDirectory=leasehold-server
//! ExecStart=/usr/bin/leasehold-agent run        ExecStart=/usr/bin/leasehold-server --config … run
//! ```
//! A workload that is a unit is registered as one, `systemd:unit:app.service`, with its slice or user beside it. Its
//! program then gets an identity in that unit and nowhere else: not from a shell of the same user, not in
//! another unit. `systemd:invocation:…` is one run of it; after a restart it matches nothing.
//!
//! # The machine that `tests/run boot` boots
//! What needs systemd as init, cgroup v2, a kernel's TPM driver or IMA is shown in a machine of its own: Debian 12 with
//! its own kernel 6.1, started by OVMF in an emulated PC with a software TPM, without a network, in 1 GiB. Control plane and
//! agent are units in it, over `/dev/tpmrm0`. It needs packages of Debian, which `tests/packages boot` names, and
//! fetches its own once; as root it installs the former. Its image stays in `target/boot` until `tests/boot/image`
//! changes.
//!
//! | rows | show |
//! |---|---|
//! | machine | enrolment by a certified EK through the kernel's resource manager, a lease; our readers make of the boot log and of IMA's list the PCRs that the kernel reads itself |
//! | callers | a unit, its slice and one run of it are served; the same program and user outside it, in another unit, in the next run, in a login that PAM made, are refused, each with its code |
//! | verity | on ext4: a program that has fs-verity is served by the kernel's digest of it; without fs-verity, on another file system, and another program are refused, and the refusal says what was missing |
//! | tasks | ends by exit code 0 and 3, SIGKILL, `MemoryMax`, another uid, another unit's cgroup, the unit's next run, its restart: the code in the record each time, and after how long |
//! | measured | under rules for IMA's list: a program that the kernel measured is served, one from memory that the policy passes over is refused (`workload.unmeasured`), one that no rule allows closes the gate |
//!
//! Its times are those of an emulated machine. What is promised is a second; as in all tests, ten bound it, so that a loaded
//! machine fails nothing. It proves nothing of a TPM in hardware. `LEASEHOLD_BOOT_ROWS` and `LEASEHOLD_BOOT_REPEATS` make it shorter, `tests/boot/run --keep`
//! keeps its console. Where the rows of the control plane's own tests say "not here, for the machine that boots", this
//! is the machine.
