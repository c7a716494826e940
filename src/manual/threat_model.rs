//! Who is kept out, who isn't, and where the edge runs.
//!
//! # What is defended
//! Workload credentials on a node: they leave the agent only for a process that the kernel says matches a
//! registration, while the node's measurements are the ones its lease was granted on.
//!
//! | adversary | what stops it |
//! |---|---|
//! | an unprivileged local process | callers are held by pidfd from the moment they connect; selectors come from the kernel; no match, no credential |
//! | a process that becomes another one (exec, another user, group, cgroup or run of its unit) | what it was when it connected is looked at every 500 ms and before each release and push |
//! | a container with the host's user ids, paths or files | a path counts in the agent's own root directory, PID and user namespace; units and containers by names that only root made |
//! | a person who uses a workload's identity | the kernel's login id and logind's cgroups; refused unless registered for people |
//! | a program that nobody measured | where the lease has rules, a caller's digest must stand in the attested list |
//! | root who copies the state directory to another machine | nothing in it is secret; the node key and the AK are in the TPM |
//! | a node that asks for another node's workload | the issuer itself checks (node, workload) |
//! | a software "TPM" beside a real EK | credential activation binds the AK's recomputed name to the EK; attributes and template are checked |
//! | a genuine TPM that nobody admitted | grade and admission are two things; it waits |
//! | a TPM reset under a running system, all extends replayed | the standing session dies, the reset count differs: the lease ends |
//! | somebody on the network | TLS 1.3; the control plane is pinned; the node proves a TPM key; evidence under another client certificate is refused |
//! | a replayed submission | nonces are single-use and consumed in the transaction that they authorise, across restarts |
//! | a log that was relabelled, cut, extended or taken from another boot | strict replay in one bank; types by PCR; data only if its digest was recomputed |
//! | firmware that leaves a bank unextended, for others to fill | a PCR that firmware extends is never zero; the bank is pinned |
//! | an unknown program, started by whoever may start programs | IMA's rules are in the lease: the agent itself closes the gate, control plane or none |
//! | a control plane that widens what may run | sets are signed by the policy key, which needn't be on it; the agent checks, and takes no older version |
//! | a process that keeps a task's credentials going, or ends another's | the task is of the process that began it, held by pidfd; it ends with it, with its stream, or when it becomes another user, program or cgroup |
//! | an admitted node that floods the control plane | what its calls have recorded is counted; beyond an hourly measure it waits, and nobody else; its credentials that aren't over are bounded, and so its part of the CRL |
//! | a node that says its tasks' credentials have expired | relying parties' lists go by time, not by a node's words |
//! | a passive tap of the TPM bus | sessions that carry secrets are salted to the pinned EK and encrypt their parameters |
//!
//! # What is not
//! - **What a process already holds.** A credential that was released can't be recalled from its memory. Short
//!   lifetimes cover that: no SVID outlives its lease. A revocation reaches it where the relying party asks
//!   ([`super::revocation`]).
//! - **A node that says it stopped.** An acknowledgement is a claim; proof is its next affirmed evidence, and
//!   worth what is measured there. A node that was cut off goes on until the bound that `revoke --explain` prints.
//! - **Root inside an approved boot** can read what that boot may read, the agent's memory included.
//! - **Relay.** A good machine whose root cooperates can answer for a bad one: a TPM proves no proximity.
//! - **An active interposer on a discrete TPM's bus** can drop extends before they reach the chip; what can be
//!   detected (changed answers) is.
//! - **A revoked TPM that hid its other EK.** Many TPMs have certificates for an RSA and an EC EK, and a node's id
//!   comes from the EK it enrols with; which others it has is its own word. The AK and the node key are the same
//!   under each, so an honest agent's return is noticed by them. A rogue with root can make an AK of the accepted
//!   template with another `unique` (it is free in the template and shows only in the resulting key) and come
//!   back under a second certified EK that it never presented, if a `certified` join rule admits any EK. Close
//!   it with `ek = "rsa-2048"` (or `p-256`, `p-384`) in the rule, so that each TPM has one way in, or name EKs
//!   with `ek add`. An EK that the revoked node did name joins by no rule: an operator decides.
//! - **A node that claims another's EK** keeps nobody out: who activates a credential for an EK owns it, and the
//!   record says `node.ek_conflict` with both nodes.
//! - **What nobody measures.** Logs prove what was measured. Data that IMA's policy leaves out (scripts that a
//!   program reads by itself, memory, configuration) isn't seen. Paths in IMA's list aren't authentic across mount
//!   namespaces: a rule by digest or signer says more than one by path, and an exclusion by path trusts whoever can
//!   mount there.
//! - **A bank that is pinned and a firmware that lies.** A root of trust that measures something else than it runs
//!   can't be found out by a TPM. Unproven profiles say of which platforms nobody here has seen a log.
//! - **What the control plane's rules allow.** Without `control_plane.policy_keys` an agent takes the rules for new
//!   entries from the control plane's word; with them their holders must have signed, and no version goes back. The
//!   agent doesn't pin which set it is: any set that they signed, under a name that it hasn't had, may be assigned to
//!   it. And what may boot the control plane alone decides, by sets that `policy.keys` must have signed.
//! - **Processes of one user can become each other**, by `ptrace`, `LD_PRELOAD` or a changed environment: a
//!   program's path, digest or unit says what runs, not who steers it. So `unix:path` or `unix:sha256`
//!   without `unix:uid` gives the identity to every user who may run that program; name the user too.
//! - **An agent that isn't root** can't see the executables of other users' processes: `unix:path` and
//!   `unix:sha256` match none of them.
//! - **The moment before a task's change is seen.** What a task's process has become is looked at every 250 ms, and
//!   before each release. How it ended is the kernel's word where it can be had, and the node's word to the control
//!   plane in any case: a node may end its own tasks, with any reason, and can't keep one alive beyond its last grant.
//! - **The moment before a drift is read.** An entry that no rule allows is judged when the PCR it extended is read:
//!   it has run by then. An open stream learns of a drift with the watcher's next reading
//!   (250 ms by default); a new request always waits for a reading that began after it arrived.
//!   What a client has asked for and doesn't take waits a second, then its connection is cut.
//! - **The fallback for callers on kernels before 6.5.** Without `SO_PEERPIDFD` the peer's process is found by
//!   its number and its start time; a process that hands its connected socket to a child, dies, and has its
//!   number reused before the agent accepts is told apart only if the new process started after the accept.
