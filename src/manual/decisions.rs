//! Decisions, dated: context, choice, and what would change our mind. Those on who is asking, policy, ends and the
//! record are in [`governed`].
//!
//! # 2026-11-22 The reset counts of a reading come from a quote at the start of its session
//! *Context.* A PCR read says nothing about resets. The standing HMAC session dies with a TPM reset,
//! so it proves "no reset since it began", but a session that had to be opened anew (the device was
//! away, libtss2 lost its context) proves nothing about the time between the two sessions.
//! *Choice.* After opening a session the device thread has the AK quote over a random nonce and takes
//! `resetCount` and `restartCount` from it; every reading of the session carries them, and the gate
//! compares them with the lease's. A reset before the quote shows in the counts, one after it kills the
//! session. So a device that comes back after 30 s without a reset goes on under its lease.
//! *Would change our mind.* A TPM whose AK quote costs so much that reopening takes over a few seconds.
//!
//! # 2026-11-22 The node key is a primary of the endorsement hierarchy, like the AK
//! *Context.* The key table asks for a TPM-resident P-256 key that survives restarts. A child key needs a
//! blob on disk, which can be lost, swapped or rolled back.
//! *Choice.* A primary from a fixed template whose `unique` is a hash of the trust domain: nothing on disk,
//! the same key after every reset, another key in another trust domain. TPM2_Clear keeps it.
//! *Would change our mind.* The need to rotate the node key without a new EK: then a generation goes into
//! `unique` and the enrolment records it.
//!
//! # 2026-11-22 A lease carries the PCR values it stands on
//! *Context.* The gate judges without the control plane. It could compare with the reading of its own last
//! evidence, or with what the control plane says it accepted.
//! *Choice.* The values are in the signed lease. The gate has one input it can trust and no state to confuse.
//! *Would change our mind.* Nothing. PCR 10 alone may have gone on from its value, by rules the lease names.
//!
//! # 2026-11-22 A lease that ran out is `Unavailable`, a drift is `PermissionDenied`
//! *Context.* SPIFFE clients drop what they cache on `PermissionDenied` and keep it on `Unavailable`.
//! *Choice.* Only what speaks against the node (drift, TPM reset, a refused appraisal, a revocation) withdraws
//! with `PermissionDenied` "no identity issued". When the term is over because nobody answers, streams end
//! with `Unavailable`: unavailable is not untrusted, and the SVID that the client still has ends with the
//! lease anyway, since no SVID is issued past the end of its lease.
//! *Would change our mind.* A client that goes on using an SVID past its `notAfter`.
//!
//! # 2026-11-22 The next nonce lives as long as the lease; the TPM's clock bounds its misuse
//! *Context.* One round trip in steady state means that the nonce for the next attestation is handed out with
//! the present answer. Whoever controls the node could quote at once, keep the quote, change the node, and
//! submit minutes later.
//! *Choice.* The quote's TPM clock is signed: the control plane compares how far it moved since the node's last
//! quote with how much time passed on its own clock, and refuses a quote that was made much earlier than it
//! was submitted (`verify.quote_stale`), with a fresh nonce in the refusal, so that an honest node whose TPM
//! clock runs slow loses one round trip and nothing else.
//! *Would change our mind.* TPM clocks in the field that stray by more than a quarter.
//!
//! # 2026-11-22 SPIFFE IDs are the `spiffe` crate's types
//! *Context.* Strict parsing of SPIFFE IDs is easy to get slightly wrong.
//! *Choice.* The agent and the control plane use `SpiffeId` and `TrustDomain` of the crate that clients use,
//! without its features; it brings one small dependency.
//! *Would change our mind.* A rule of the SPIFFE ID specification that the crate doesn't hold.
//!
//! # 2026-11-22 libtss2 is silenced by starting the agent's own executable again
//! *Context.* libtss2 prints every TPM refusal on standard error unless `TSS2_LOG` was set before it started.
//! Setting a variable of one's own environment is `unsafe` in Rust, for good reasons.
//! *Choice.* When `TSS2_LOG` is unset the agent replaces itself once, before any thread exists, with the
//! variable set. It keeps its process id. Operators who set the variable are left alone.
//! *Would change our mind.* A libtss2 with an API for it.
//!
//! # 2026-11-22 A moved update counter asks the AK again
//! *Context.* Behind a resource manager, which saves sessions, the standing session survives a TPM Restart
//! (measured: after Shutdown(STATE) and Startup(CLEAR) a saved HMAC session loads and reads again). So "a reset
//! kills the session" holds for a Reset alone.
//! *Choice.* Whenever `pcrUpdateCounter` moved since the anchor, or the machine was suspended, the device has
//! the AK quote again and compares the counts. To restore PCRs after a Restart takes extends, which move the
//! counter. It costs one quote for each reading after an extend, and nothing in steady state.
//! *Would change our mind.* Hosts that extend all the time (IMA) on TPMs that quote slowly: then TPM2_ReadClock
//! in the audit session, which the Rust layer lacks today.
//!
//! # 2026-11-22 What to quote comes with the nonce
//! *Context.* The selection came with the answer to an attestation, so an agent that was just started quoted the
//! PCRs of its first reading and was refused for ever. Killing it 100 times showed that.
//! *Choice.* A nonce carries the selection to quote over it, wherever it comes from: enrolment, an answer, a
//! refusal, `GET /v1/nonce`. A changed policy needs no restart and no extra round trip.
//! *Would change our mind.* Nothing.
//!
//! # 2026-11-22 A client certificate is judged right after the handshake
//! *Context.* rustls ends the handshake when a client certificate has expired or leads to an unknown CA. The
//! server recorded nothing, and an agent that had been off for a week took it for a server that is away.
//! *Choice.* The handshake proves the possession of the key; the path, by the same webpki verifier, is judged
//! before the first request, and the result is a type that routes must look into. Such a client is a stranger
//! with a reason: it is told `protocol.client_certificate`, that is recorded, and an agent enrols again, which
//! an admitted TPM may at once. It keeps the CA certificates it knows, since the pinned one may be gone.
//! *Would change our mind.* A way to tell the client the reason within the handshake that it surely receives.
//!
//! # 2026-11-22 What a TPM says of its other EKs counts from its admission
//! *Context.* That two EKs are in one TPM can't be proven without activating both. Nodes state their other EKs,
//! so that a revoked TPM doesn't return under one of them; a stranger could state anybody's.
//! *Choice.* A statement binds once somebody admits the node; revoking one that was never admitted binds its
//! proven EK alone. An admitted node can still hinder the enrolment of EKs it names falsely (the refusal names
//! it), and one that was silent about an EK and has changed its keys' templates could return under it.
//! *Would change our mind.* Either happening: then each stated EK is challenged, at the cost of making an RSA key.
//!
//! # 2026-11-22 One crypto provider, and no `ring` feature yet
//! *Context.* The design allows a `ring` feature for the smallest builds: 0.8 MB less, no post-quantum key
//! exchange, and no release in over a year.
//! *Choice.* aws-lc-rs everywhere: rustls, the issuer, RSA-OAEP and AES-CFB of credential activation.
//! *Would change our mind.* An edge device for which the 0.8 MB decide.
//!
//! # 2026-11-22 The EK of the enrolment is remembered
//! *Context.* The first EK that answers after a start would be believed for the salt of every session; whoever
//! sits on the bus could answer with his own and pass everything else on.
//! *Choice.* The membership on disk names the EK that activated the enrolment's credential. Another one makes the
//! agent enrol again, where the control plane decides; no reading in its session opens the gate before.
//! *Would change our mind.* Nothing.
//!
//! # 2026-11-22 The wrapping key is sealed with an empty authorisation, and without PCRs
//! *Context.* The control plane must start unattended. An authorisation value would have to lie where the sealed
//! file lies. A policy over PCRs would stop the control plane at its machine's next kernel update.
//! *Choice.* A `fixedTPM` object under the SRK with an empty authorisation: file and TPM together open it. The SRK
//! is made from the TCG's template each time; its name is in the file, so an interposer can't pose as the TPM
//! when it is opened. When it is sealed the first time no name is known: the first start trusts the bus.
//! It has its own short path to the TPM (`tpm::Vault`), not the agent's thread: that one holds two of a bare TPM's
//! three slots. A control plane built without the feature `tpm-device` doesn't link libtss2 and refuses `keys.tpm`.
//! *Would change our mind.* An operator who signs the control plane's boot states: then PolicyAuthorize.
//!
//! # 2026-11-22 The listener's chain leads to retired CAs too
//! *Context.* A node that is off while a CA is prepared and activated knows only the old one, and so does a new
//! node with the old `ca_hash`. Both would refuse the listener's certificate although the old CA is still good.
//! *Choice.* Each retired CA in the bundle certifies the active key (as "new with old" in RFC 4210, 4.4), and the
//! listener sends that and the retired CA after its own. Bundles for workloads hold self-signed CAs only.
//! *Would change our mind.* Chains so long that they cost a constrained node's handshake.
//!
//! # 2026-11-22 What a client doesn't take within a second is dropped with its connection
//! *Context.* A client that grants no HTTP/2 window keeps an answer waiting in the agent's buffers. A review
//! opened such a stream, let a PCR drift, opened the window 3 s later, and received the key.
//! *Choice.* Every piece of an answer is followed until it is written; one that waits longer than the bound of
//! promise 3 ends the connection, and the check runs before each write too. Nothing older than a second leaves.
//! *Would change our mind.* A kernel interface that tells what the peer has read.
//!
//! # 2026-11-22 The gate believes a moved PCR 10 only with a proof that begins where it last stood
//! *Context.* PCR 10 changes with everything the kernel measures. A lease on its exact value closes a busy node
//! with each new program.
//! *Choice.* The judge makes a proof (`Advanced`) by folding allowed entries from the value last judged to the one
//! that was read; the gate takes the proof, does no I/O, and compares everything else exactly. The list is read
//! after the reading, since the kernel adds to it before it extends; a list that lags is read again for 100 ms, and
//! then the gate closes. A reading that is older than another one already judged is judged by the newer: it may
//! have been followed beyond the older one, which would look as if the PCR had gone back.
//! *Would change our mind.* A kernel that extends before it lists.
//!
//! # 2026-11-22 The quoted PCR 10 is found by the list, not by reading it at the right moment
//! *Context.* A quote says a digest. On a machine that measures 100 files a second no reading beside a quote of a
//! slow TPM has the same PCR 10, however often both are repeated.
//! *Choice.* All but PCR 10 must be equal before and in the quote. PCR 10 is tried with each value that the list leads
//! to from the reading on; the digest, signed, says which it was. In a reading PCR 10 stands in the last command,
//! which need not be repeated when the update counter moves.
//! *Would change our mind.* Nothing.
//!
//! # 2026-11-22 Rules are trusted by signature and order; a lease without its rules is held exactly
//! *Context.* An agent that can't get, or doesn't accept, the document that its lease names must do something.
//! *Choice.* It opens the gate all the same, on the lease's exact values, says what is amiss in `status`, and asks
//! again with every renewal. Refusing the lease would turn a policy mistake into an outage; following unsigned
//! rules would let a control plane alone widen what may run.
//! *Would change our mind.* A need to hold leases to be refused when the policy key's holders disagree.
//!
//! # 2026-11-22 Logs are stored as they came, and taken in under the reference document of the moment
//! *Context.* A million entries take a second to fold and 100 MiB to keep. Rules change.
//! *Choice.* Segments are kept, with two checkpoints per node: at the last quote that was reached, and where parts
//! sent ahead were folded to. An increment reads from the segment it begins in. Another document starts from the
//! first segment again, 4 MiB to a transaction, ahead of the attestation's own: others have their turns in between.
//! The last 256 KiB are left for the attestation, since a list may be ahead of its quote.
//! *Would change our mind.* Fleets so large that the bytes don't fit: then entries allowed under every document are
//! dropped behind the checkpoint.
//!
//! # 2026-11-22 Odd boot logs are read by rule
//! *Context.* Real logs lack a bank in single events, repeat headers, and have events that extend nothing.
//! *Choice.* A bank that one event lacks is no bank, rather than the log refused (three public logs are so).
//! EV_NO_ACTION beside PCR 0xFFFFFFFF is left out with a note; any other PCR above 23 is refused. StartupLocality is
//! 0, 3 or 4, once, before PCR 0's first extension; an H-CRTM event means locality 4. Lists of hashes with a
//! signature header are refused, so that its bytes never become entries.
//! *Would change our mind.* A good machine's log that is refused.
//!
//! # 2026-11-22 What of IMA's list nobody vouches for
//! *Context.* The TPM vouches for the digest of an entry, and of a violation only for its number.
//! *Choice.* An entry for another PCR than 10 is refused. Violations are waived by path, counted and shown.
//! `boot_aggregate` is held against PCRs, not against rules; those that the profile doesn't quote are taken from the
//! boot log, since PCR 10 vouches that the list is this boot's. A PCR of zeros is led to by no list. Lists padded
//! from SHA-1 are contraindicated. Dates of signers' certificates aren't checked: nor does the kernel.
//! *Would change our mind.* A template that binds the path of a violation.
//!
//! # 2026-11-22 Not proven is no error, and nothing is believed for its type
//! *Context.* Platforms differ in what they measure, and types in a log are unsigned.
//! *Choice.* A PCR that isn't quoted makes its layer "not proven". Separators and known actions are told by digest.
//! PCR 9 under `uefi-uki` is judged by types: the stub measured both parts into 11 already. A missing SecureBoot
//! variable means off. With it on, each `db` authority must be in the measured db; without authorities listed a machine
//! owner's key refuses. PCR 7 may stay unlisted where the state lists PCR 4's images. Records that trail in the
//! userspace log are pending; events that trail in the boot log are refused.
//! *Would change our mind.* A platform on which an honest boot log goes beyond the PCRs.
//!
//! # 2026-11-22 A lease needs the boot
//! *Context.* What a kernel says of the files it runs is worth what is known of the kernel.
//! *Choice.* The boot layer must be affirmed, or warned; only a profile that says its platform can't prove the boot
//! lets another affirmed layer do.
//! *Would change our mind.* Nodes whose only proof is IMA's list, and operators who accept that.
//!
//! # 2026-11-22 A TPM's firmware has floors
//! *Context.* Some TPM firmware makes weak keys or leaks them.
//! *Choice.* Known faults have a floor below which no lease is granted; `admission.tpm_firmware` raises it, and `"0.0"`
//! lifts it. Only an EK certificate says who made a TPM; without one nothing is said.
//! *Would change our mind.* Vendors that publish what they fixed in a form that can be read.
//!
//! # 2026-11-22 A set is a COSE_Sign, and predictions say what they don't know
//! *Context.* Two people approve one set; a predicted value that is wrong stops every node at its next boot.
//! *Choice.* One payload with several signatures; its header names the author, whose own approval counts once. Digests
//! travel packed. Predicted lists hold every event; systemd's phases and os-separator stand last, as a node may have
//! come part of the way. Not predicted: PCR 9 from systemd-stub 256 on, PCR 4 without Secure Boot from 257 on, 253
//! with `.sbat` or `.uname`, images with `.profile`; these versions weren't tried here. dbx isn't learnt: it grows.
//! A CoRIM leaves out only what makes it stricter, and is refused where that would leave no rules or no states.
//! *Would change our mind.* A stub of those versions measured on a machine.
//!
//! # 2026-11-22 With policy keys nothing unsigned counts
//! *Context.* `reference learn` put a node's own values in force without any signature, keys or none, and what had
//! been imported before keys were configured stayed. A review got a lease that way.
//! *Choice.* Signatures are checked when a set is used, under the keys of the present configuration; whole values don't
//! count where there are keys. `learn --profile` drafts a set to be signed: the server itself can't sign.
//! An import leaves leases until the next attestation, which it asks for; assigning and retiring end them.
//! *Would change our mind.* Fleets that change keys so often that signing anew is a burden.
//!
//! # 2026-11-22 The agent sends logs again rather than explain them
//! *Context.* A log file may be replaced under its name, and what was sent then leads nowhere.
//! *Choice.* Logs that lead nowhere are sent once more from their start. Boot and userspace logs are sent anew with
//! each start of the agent; IMA's list goes on where it was.
//! *Would change our mind.* Boot logs so large that this costs.
//!
//! # 2026-11-22 Rules for what may run ask for a list
//! *Context.* A node whose boot is affirmed got a lease although its set had rules for what may run and it showed no
//! list: whoever may change the command line could leave IMA off, or hide the file from the agent.
//! *Choice.* Where a set enforces rules, a runtime layer that isn't proven means no lease
//! (`verify.runtime_unproven`). In mode `warn`, and without rules, nothing changes.
//! *Would change our mind.* Fleets in which only some nodes have IMA: then a key in the set says which layers it asks
//! for.
//!
//! # 2026-11-22 A TPM clock that isn't safe refuses nobody
//! *Context.* After a power cut a TPM says `safe = no` until its clock has passed what it last reported. One of the
//! negative vectors (V20) would have such a quote refused until the node enrols again.
//! *Choice.* No term here is counted on the TPM's clock. What betrays a reset is the reset count: it ends the lease, and
//! within one boot it is noted for the operator. A quote with `safe = no` is accepted like any other, so that a power
//! cut needs nobody's hand; there is no vector V20.
//! *Would change our mind.* A term that is counted on the TPM's clock, as a sealed reserve will have.
//!
//! # 2026-11-22 A program's path counts in the agent's root, PID and user namespace, not in its mount namespace alone
//! *Context.* The same path in another mount namespace may be another file, and a container that shares a user id with
//! the host may be given the host's very file beside libraries of its own. Asking for the agent's own mount namespace
//! would close both, and also refuse every service that systemd shields with `PrivateTmp=` or `ProtectSystem=`; an
//! agent that is shielded so itself would match nobody.
//! *Choice.* `unix:path` holds where the agent finds the same file (device and inode) under that path, and the process
//! has the agent's PID namespace, user namespace and root directory. Only root can arrange other mounts within those.
//! *Would change our mind.* A way for somebody other than root to mount within the agent's user namespace.
//!
//! # 2026-11-22 To execute the same file again is no change of a caller
//! *Context.* A held process that executes another program loses its connection. One that executes the same file again
//! has other arguments and another environment, and nothing that the kernel shows tells that reliably.
//! *Choice.* The same device and inode is the same program: whoever executes it could as well connect anew, would
//! match the same registrations, and gains nothing by the old connection.
//! *Would change our mind.* A selector over arguments.
//!
//! # 2026-11-22 Names in the tree of cgroups are believed as far as root made them
//! *Context.* Units, slices and containers are told by names of cgroups. systemd and rootless runtimes hand parts of the
//! tree to users, who name what they like there; `user.invocation_id` is the owner's to write.
//! *Choice.* A name counts only while every directory above it belongs to root and is writable by nobody else; of units
//! the outermost, as systemd itself reads a path. The run of a unit is read from `trusted.invocation_id` or systemd's
//! own directory; two that differ are none. v2's path counts, or `name=systemd`'s where everything is in v2's root;
//! two that disagree, or `..`, are no answer.
//! *Would change our mind.* A kernel interface that says which unit a pidfd is of.
//!
//! # 2026-11-22 A person is whom the kernel says logged in
//! *Context.* A human who uses a workload's identity looks like the workload: same user (`sudo -u`), same program.
//! *Choice.* The audit login id (it can't be changed without CAP_AUDIT_CONTROL and survives sudo and su), or a place in
//! the tree that logind gives to sessions and to users' own managers, makes a login session; a terminal only where
//! the kernel has no audit. Such callers are refused unless the registration says `--interactive`. Jobs of cron and at
//! count as logins, because PAM says so. `leasehold-server dev` registers its workload interactively.
//! *Would change our mind.* Distributions whose services carry a login id.
//!
//! # 2026-11-22 A caller's digest is looked for by replaying the list, not by keeping its digests
//! *Context.* "This program, measured by this kernel" asks whether a digest stands in the attested part of IMA's list. A
//! set of all digests answers at once and takes memory with the list; a filter of short hashes can be aimed at.
//! *Choice.* For each program that asks first, the list is replayed from its start in pieces of 256 KiB, and a digest
//! counts only if the replay ends at the value that the lease, or the gate since, vouches for. What was found stays
//! found for the boot; what wasn't is looked for in what came since. The list is read over a descriptor of its own, so
//! the gate's place in it isn't moved.
//! *Would change our mind.* Nodes with lists of a million entries and hundreds of registered programs.
//!
//! # 2026-11-22 fs-verity's digest is a selector, a container's image is none
//! *Context.* FS_IOC_MEASURE_VERITY is an ioctl, which rustix and nix offer only with `unsafe`. FUSE (Linux 6.10)
//! hands that question on to whoever serves the files. Which image a container is of, only its runtime knows.
//! *Choice.* `unix:fsverity:sha256|sha512:HEX`, asked of the held executable by the crate composefs-ioctls, which is
//! little more than that call and keeps our own code without `unsafe`; on ext4, f2fs and btrfs only, where the answer
//! is the kernel's. A container is named by its id: a runtime's word is a process's claim about another one.
//! *Would change our mind.* A runtime that measures what it starts where the TPM vouches for it.

pub mod governed;
