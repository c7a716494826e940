//! Decisions on governed workloads: who is asking, may it now, who answers for it, how fast it ends, the record.
//!
//! # 2026-11-22 One process has one name
//! *Context.* SPIFFE lets several registrations match one process, which then holds several identities.
//! *Choice.* Two workloads with the same set of selectors on the same node, or in a group that the node is in, are
//! refused when they are registered, changed, declared, and when a node is put into a group. Overlapping sets (one more
//! selector) are allowed: they are how a narrower identity is told from a wider one. A key serves one workload until the
//! last certificate over it runs out, revoked ones included.
//! *Would change our mind.* Workloads that need two names for one process and can say which of them acts.
//!
//! # 2026-11-22 A tier that nobody stated is the strictest
//! *Context.* The command line of `workload add` is fixed; capability 6 asks for a tier on every workload.
//! *Choice.* `--tier` stays optional, and a workload without one counts as tier 1; the inventory says that nobody stated
//! it. Forgetting it makes policies stricter, never laxer.
//! *Would change our mind.* Fleets that leave it out to be done with it.
//!
//! # 2026-11-22 A changed registration ends what was issued under the one before
//! *Context.* Owner, purpose and selectors can change in place.
//! *Choice.* Another owner, purpose, place or selectors, or fewer audiences, destinations or roles: what was issued ends
//! in the ledger, is withdrawn on the nodes and is issued anew under the decision of now. Open streams notice; more
//! audiences, a description, a hint or another lifetime end nothing.
//! *Would change our mind.* Hand-overs so frequent that the short gap hurts.
//!
//! # 2026-11-22 Files don't undo what somebody did in an emergency
//! *Context.* `apply` runs from a repository, often unattended; a suspension is typed by a person at night.
//! *Choice.* A file that doesn't mention a suspension, an owner's leave or a node's place leaves them. `suspended =
//! false` and `retired = false` are explicit. Nothing undeclared goes without `--prune`; an undeclared owner leaves
//! rather than vanishes. A plan is made by doing it in the transaction and rolling back, so there is no second
//! implementation of it.
//! *Would change our mind.* Operators who want the file to win always, and say so with an option.
//!
//! # 2026-11-22 Policies are Cedar, and any error in one denies
//! *Context.* A decision must be total, typed and the same when it is made again. Cedar has no loops, no I/O and a
//! validator; but it skips a policy that fails, and a forbid that is skipped opens what it should close.
//! *Choice.* Strict validation before a bundle counts; any evaluation error denies the whole; time comes in through
//! the context only; guardrails are a set of their own, asked before the bundle, so that no bundle can take part in
//! them. A decision is a pure function of its stored inputs, the bundle's digest and the guardrails, whose
//! fingerprint is kept with it.
//! *Would change our mind.* A need for obligations beyond lifetime and age of evidence, which annotations can't
//! carry.
//!
//! # 2026-11-22 A caller's words narrow, by a rule on policies
//! *Context.* "Intent may narrow, never widen" can't mean that a question without an intent must be permitted too:
//! agents' permits ask for one. But a permit for everybody that reads the caller's words is one that anybody can talk
//! themselves into.
//! *Choice.* A permit that reads `context.task`, `.caller` or `.detail` is refused unless its scope names principals.
//! Audiences and destinations are held to the registration before any policy is asked; details are granted one by
//! one, as a subset.
//! *Would change our mind.* A proof per bundle (symbolic analysis) that words only remove permits.
//!
//! # 2026-11-22 Without a bundle what is registered is permitted, even with policy keys
//! *Context.* Registrations alone decided before; a first start, the quickstart and servers with keys for reference
//! sets must work. A control plane that has policy keys would rather permit nothing without a signed bundle.
//! *Choice.* A built-in bundle of version 0 permits what is registered within the guardrails until one was applied;
//! `policy.default = "deny"` turns that off. Once a bundle was applied there is no way back to it: a missing, damaged
//! or older one permits nothing.
//! *Would change our mind.* Nobody leaves the default with keys configured; then keys imply `deny` in the next major
//! version.
//!
//! # 2026-11-22 The floor for policy versions lies outside the store
//! *Context.* A store restored from before a bundle brings the older one back, or none, with valid signatures.
//! *Choice.* The highest version that was in force is also written to a file beside the generation's witness. A store
//! behind it permits nothing until a bundle of at least that version is applied. Both rolled back together can't be
//! noticed.
//! *Would change our mind.* A TPM counter for the control plane's own state (its keys may be sealed already).
//!
//! # 2026-11-22 A bundle that fails takes nothing back
//! *Context.* Live credentials are asked for again on every change. A damaged store would answer `policy.failed` to
//! all of them.
//! *Choice.* Nothing new is issued, and nothing that is out is ended for it: the fault is ours, and what is out ends
//! within minutes.
//! *Would change our mind.* Credentials that live for hours.
//!
//! # 2026-11-22 A task is a stream, and belongs to one process
//! Context: work that is shorter than its process's identity needs credentials that end with it, whatever happens to
//! either. Choice: `Begin` answers with a stream; the task lives while the stream and the process do, and only that
//! process (held by pidfd, not by number) may prolong or end it. There is nothing to clean up: a client that crashes
//! has closed its stream. Each renewal is a decision of its own under the same task. What would change our mind:
//! schedulers that begin work for others; they would need a hand-over that both processes take part in.
//!
//! # 2026-11-22 How a process ended is asked of three places, and none of them needs unsafe code
//!
//! # 2026-11-22 Whatever an earlier run of an agent held is over
//! Context: an agent that is killed can't say what ended. Choice: each run draws a name, numbers its tasks, and its
//! first word to the control plane is that name; tasks of any other run of that node end then (`task.abandoned`).
//! No list of live tasks has to survive on the node, and a list could only be wrong. What would change our mind:
//! tasks that should outlive an agent's update; they would have to be taken over by evidence, not by memory.
//!
//! # 2026-11-22 A JWT-SVID is read by our own verifier, of one algorithm
//! *Context.* JOSE libraries read what the standards allow: a dozen algorithms, keys and certificates in the
//! header, JSON with names that stand twice, signatures in two equivalent forms. Most of what went wrong with
//! tokens elsewhere went wrong there. Of a JWS we need ES256 alone, and p256 and base64url are in the tree.
//! *Choice.* `credentials::token` reads and signs compact JWS itself: three canonical segments, a header of
//! three known members, one key for each `kid`, then the claims as a type. `jsonwebtoken` stays as a
//! development dependency: in the tests it is the relying party that isn't ours and must take what we issue.
//! *Would change our mind.* Tokens of other trust domains (federation) under other algorithms: then a library
//! behind the same header rules.
//!
//! # 2026-11-22 Time for tokens on a node is the lease's
//! *Context.* `exp` is a date, and a node's wall clock may say anything (no RTC, set back).
//! *Choice.* The agent counts the control plane's time on from the lease (`issued_at`, CLOCK_BOOTTIME since the
//! request), rounded up, and judges tokens by that. Without a lease it judges none.
//! *Would change our mind.* Nothing foreseen.
//!
//! # 2026-11-22 Keys for tokens live and rotate with the CAs
//! *Context.* A key that signs tokens must not be one that signs certificates (SPIFFE: other uses, other keys),
//! and it must be known everywhere before it signs.
//! *Choice.* Each CA term has one JWT key: prepared, active, retired in the same transactions, dropped when its
//! last token is over. One bundle, one sequence number, one way in which nodes learn of it. A token signed by a
//! key that a node hasn't heard of yet waits up to 2 s for the attestation that brings it.
//! *Would change our mind.* A need to rotate token keys much more often than CAs.
//!
//! # 2026-11-22 Answers with tokens are kept under a key of the running server
//! *Context.* A lost answer is asked for again with the same request and must be the same (a task begins once),
//! so answers are kept for a minute. A token is a bearer secret: in the store it would be in every backup.
//! *Choice.* Answers to `/v1/grants` are sealed with AES-256-GCM-SIV under a key that is drawn at the start and
//! kept in memory. A retry across a restart is refused as a replay and asked anew with another id.
//! *Would change our mind.* Several replicas behind one store: then the wrapping key, or no kept tokens.
//!
//! # 2026-11-22 A grant is whole or not at all
//! *Context.* One request may ask for a certificate, a token and the beginning of a task; each can fail late (a
//! token that would be too large, a key that another workload has).
//! *Choice.* Everything is decided first, then issued under a savepoint: a late refusal undoes the task and the
//! ledger's rows, and is itself recorded as a denial under the decision's id.
//! *Would change our mind.* Nothing foreseen.
//!
//! # 2026-11-22 Tokens are held until half of their life, for equal callers only
//! *Context.* SPIFFE allows caching; many libraries fetch a token for each call. A decision is about the process as
//! the kernel shows it.
//! *Choice.* A held token is given again only for the same workload, audiences and caller's claims (user,
//! groups, program, unit, session), before its half life, and after a fresh reading. Nothing is cached for a refusal.
//! *Would change our mind.* Policies that must decide each single use: then no holding for workloads that say so.
//!
//! # 2026-11-22 To revoke a workload is to suspend it and to withdraw what was issued
//! *Context.* `revoke workload` removed the registration: owner and purpose were gone when the auditor came, and a
//! script that registers what it finds missing brought the workload back.
//! *Choice.* A revocation suspends with its reason and withdraws; the registration stays, its callers are told why,
//! and `workload resume` is an act of its own. Removing, suspending and changes of scope withdraw in the same way.
//! *Would change our mind.* Nothing.
//!
//! # 2026-11-22 What isn't acknowledged is told again; the push is only the quickest way
//! *Context.* A push can be lost between commit and socket, with the server, with the agent, on the line.
//! *Choice.* A revocation is a row for each node concerned, in the transaction that takes it back. Until a node
//! acknowledges, it is told with every stream that it opens and every attestation. Nothing depends on the push, and
//! every way of dying ends alike. Numbers are never given twice, not even after a restore, since evidence names them.
//! *Would change our mind.* Nothing.
//!
//! # 2026-11-22 An acknowledgement comes after the streams have noticed, and evidence repeats it
//! *Context.* "Done" that is said before open streams ended is no use; and whoever replaced the agent can say it anyway.
//! *Choice.* The agent drops first, then waits (at most 1.5 s) until each open stream has dealt with the change or has
//! ended, writes it down, and only then acknowledges. The numbers stand in its next evidence, signed by the node key
//! beside the quote of what runs there, once, until one that named them was affirmed. Told, acknowledged and proven
//! are three counts; a revoked node is still heard when it acknowledges, and nothing else.
//! *Would change our mind.* Agents measured everywhere: then an acknowledgement could wait for the quote.
//!
//! # 2026-11-22 Each node's events go to its own queue
//! *Context.* One broadcast to all streams costs a thousand nodes a thousand wake-ups each when each is told something.
//! *Choice.* The hub keeps a bounded queue for each stream. A stream that can't keep up isn't told less: what the node
//! must hear is read from the store again.
//! *Would change our mind.* Several control planes on one database: then the rows are the queue, and this a doorbell.
//!
//! # 2026-11-22 The evidence for a withdrawal follows within five seconds, at random
//! *Context.* If every node attested the moment it was told, a revocation in a large fleet would be a herd.
//! *Choice.* Dropping and acknowledging are immediate; the attestation that proves it is drawn from the next 5 s.
//! *Would change our mind.* Somebody who waits for "proven" by hand in a small fleet and minds.
//!
//! # 2026-11-22 A removed CA still leads its nodes to the new one
//! *Context.* Break glass: a CA's key is somebody else's. Nodes that know no other CA would need a hand each.
//! *Choice.* It leaves the bundle, all connections end, and everything under it is refused; but the listener's chain
//! still has its signature on the new key. Whoever has the stolen key could make that link himself, so leaving it out
//! would lock out nobody but our own nodes. Node certificates under it are refused, and nodes enrol again by themselves.
//! *Would change our mind.* A second way for nodes to know their control plane that survives the loss of its CA.
//!
//! # 2026-11-22 CRLs by key id, lists that are whole or not there
//! *Context.* RFC 5280 wants CRLs per issuer; certificates of minutes hardly need them; some relying parties insist.
//! *Choice.* One CRL per CA, made when asked for and something changed, at most once a second, for an hour, renewed at
//! half. Ended tasks stand on it too. Certificates have no distribution point, since the control plane has no name
//! of its own for relying parties. Denied tokens are a plain JSON list, worth its TLS connection. A list beyond
//! 100 000 entries is an error, not a part.
//! *Would change our mind.* A relying party that takes lists from untrusted mirrors: then the list of tokens is signed.
//!
//! # 2026-11-22 Two records, one form, and a chain for each writer
//! *Context.* Who issued is known by the control plane, who got it by the node; a node may be offline for days.
//! *Choice.* One record format and one chain rule for both; each journal and the log are chains of their own. Nodes
//! deliver theirs under heads that the TPM signed; each delivery is anchored in the log's chain. Records are lines of
//! printable ASCII: what is hashed is what is kept, sent and printed.
//! *Would change our mind.* An auditor who must verify one record without the others: then a Merkle tree.
//!
//! # 2026-11-22 The log's heads have a key of their own
//! *Context.* The CA key could sign them too.
//! *Choice.* A P-256 key under the wrapping key, for heads alone: CA keys are rotated and dropped, while a head must be
//! verifiable for as long as its log is kept. The last head lies beside the wrapping key and with every node, which shows
//! it again with its next delivery.
//! *Would change our mind.* A transparency service at hand: then heads go there.
//!
//! # 2026-11-22 A process's repeats are counted for 5 s
//! *Context.* An fsync takes milliseconds; a process may fetch 2,000 times a second.
//! *Choice.* The first release of a credential to a process is on the disk before it leaves; its repeats become one
//! number every 5 s. Denials are counted by user and code and never waited for. A kill -9 loses counts of 5 s at most,
//! which `audit verify` prints.
//! *Would change our mind.* Somebody who bills by release.
//!
//! # 2026-11-22 A changed journal stops no workload
//! *Context.* Fail closed would mean that a flipped bit on the node's disk stops everything on it.
//! *Choice.* What can't be written stops releases (`audit.unwritable`); what was changed is put aside and reported as the
//! first record of a new journal. What was delivered can't be changed by the node at all.
//! *Would change our mind.* Fleets that would rather stop: a key in the configuration.
//!
//! # 2026-11-22 An operator is a workload with a role
//! *Context.* Commands came over the local socket alone. Operators elsewhere need an identity, and another kind of
//! credential beside SVIDs would need its own issue, renewal and revocation, and its own way around them.
//! *Choice.* An operator shows the X.509-SVID of a registered workload; a row gives that id a role, and what a role may
//! is Cedar. The certificate must be live in the ledger, so whatever ends a credential ends the operator's access, and
//! nobody administers from a machine that isn't measured. The local socket stays for its owner and root: they own the
//! files anyway, and it is the way back when every certificate is lost.
//! *Would change our mind.* Operators without any machine of ours: then an OIDC login that issues such an SVID.
//!
//! # 2026-11-22 An exception that ended and wasn't closed denies
//! *Context.* "Ends by itself" can mean that the exception's effect goes and the workload goes on as if nothing had been.
//! Then nobody notices, and the next exception is asked for in a hurry.
//! *Choice.* Until somebody closes it, the workload is known to stand on it, and once it has ended a guardrail denies
//! the workload everything. Closing it is one command, and says that the workload keeps the rule now.
//! *Would change our mind.* Users who close exceptions unread to be rid of the denial.
//!
//! # 2026-11-22 What a node adds is measured after its call, by what the tables gained
//! *Context.* Log, decisions and journals are kept for good on one disk, and nothing bounded what an admitted node
//! writes there. A price for each call, stated beforehand, is wrong as soon as a record somewhere gets another field.
//! *Choice.* Each call's transaction looks at what it added to the three tables and charges the node for it; the next
//! call is refused (`protocol.busy`) while the node is beyond its hourly measure. A call can overdraw by what its body
//! allows, once. Four accounts (membership, identities, grants, what it delivers), so that a process that asks without
//! end can't cost its neighbours their identities or the node its lease. In memory: a restart forgives.
//! *Would change our mind.* Several control planes on one store: then the measure belongs in the store.
//!
//! # 2026-11-22 Relying parties' lists go by time alone
//! *Context.* They left out what had ended with `issuer.expired`; a node chooses the code that its tasks end with.
//! *Choice.* On a list is what ended before its time, whatever the code; what ran out never is. A node may still say
//! what it likes about why its own tasks ended: that is its word in the record, and decides nothing.
//! *Would change our mind.* Nothing.
//!
//! # 2026-11-22 A restore is believed only with the head that was put aside
//! *Context.* `audit.restored` explains missing numbers. Whoever can write the store alone can write that record, with
//! the chain of the head that is missing, which they have.
//! *Choice.* When a start finds the log to end before the head outside, it copies that head beside itself before it
//! commits. Both the next start and `audit verify` accept the gap at that head only with the copy; heads in the store
//! for records within such a gap are a finding, for a backup has none.
//! *Would change our mind.* A log whose heads are kept by a service of others: then that service is asked.
//!
//! # 2026-11-22 The ledger and the log stay, decisions and tasks go
//! *Context.* `policy.keep_days` removes decisions, and `audit check` then missed them for every older credential.
//! *Choice.* The store keeps from when on decisions are there; the check asks for none from before. Rows of ended tasks
//! go with them. Ledger and log stay: the chain is verified from its first record, and a cut of it, however
//! well meant, looks like an attack until there is a signed statement of where it begins anew.
//! *Would change our mind.* A first fleet whose log outgrows its disk: then heads that were exported may become the
//! beginning of a shorter log.
//!
//! # 2026-11-22 Everything that is released leaves in one order
//! *Context.* Certificates, plain tokens and tasks had each their own sequence of permit, record and look at what
//! was taken back; each had another gap when the disk was slow or a withdrawal came in between.
//! *Choice.* One function (`Keeper::release`): permit, who is it, what is held, the record on the disk, and then,
//! under one lock, is it still held and is the permit still young; otherwise again, a few times. And one way of
//! asking (`Keeper::grant`): what was granted is verified as whoever gets it would, and held in the same moment in
//! which it is seen that nothing of it was taken back on its way. A record of a release that then wasn't made may
//! stand in the journal: the other order would leave a release without a record.
//! *Would change our mind.* A surface whose record can't be written before.
//!
//! # 2026-11-22 A begin that is given up goes on
//! *Context.* A caller that leaves during `Begin` cancelled the request; the task's end could reach the control
//! plane before its beginning, which then lived until its credentials ran out.
//! *Choice.* The request is a task of its own and runs to its end; only then the control plane hears that nobody
//! has it, a second later if the answer was lost. Not a tombstone on the control plane: a node could fill it with
//! numbers that never come. The id waits meanwhile, and the same id begun again waits with it.
//! *Would change our mind.* A deadline for requests that is the server's.
//!
//! # 2026-11-22 What was taken back of a node's own tokens is told by their ids
//! *Context.* `ValidateJWTSVID` went on accepting tokens of a revoked workload, since only a withdrawal of one
//! credential named a `jti`. A time (nothing issued before the withdrawal) would also have refused what another
//! node was rightly given of the same workload, where only this node lost it.
//! *Choice.* The agent remembers the `jti`s that it was given, 1024 of each workload, until they end, and marks
//! them when they are taken back or their task is over. Forgotten with the agent's process: what is denied
//! everywhere stands at `/v1/denied`.
//! *Would change our mind.* Tokens that name their node.
//!
//! # 2026-11-22 A task's id is one of its workload's
//! *Context.* Ids of tasks were one namespace on a node, so that any registered process could hold the one another
//! will use.
//! *Choice.* An id is told apart by its workload; a process has it once, for `Heartbeat` and `End` name the id
//! alone. `revoke task ID` and its withdrawal mean all tasks of the id on the node: rather one too many than one
//! too few.
//! *Would change our mind.* Operators who want to name one of them.
//!
//! # 2026-11-22 A journal's successor is whole before it takes its place
//! *Context.* A changed journal is put aside, and the new one's first record says why. A kill in between left a new
//! journal that said nothing.
//! *Choice.* The new one is made under another name with that record in it; then the old one makes way. What is half
//! done at a start is finished or begun again. A torn end is noted in the marks before it is cut off. Eight of those
//! that were put aside are kept, the first four and the last four.
//! *Would change our mind.* File systems without an atomic rename of directories.
//!
//! # 2026-11-22 Text logs are escaped where they are written
//! *Context.* Paths of programs and names of cgroups stand in refusals, and a name may hold a line end.
//! *Choice.* The writer of text logs escapes control and direction characters of whatever it is given, so no place that
//! logs has to think of it. Records and JSON are escaped by their formats.
//! *Would change our mind.* Messages of several lines worth reading: none so far.
//!
//! # 2026-11-22 Beyond half, each user has a share of the journal
//! *Context.* A full journal stops every release of the node, and while the control plane is away one user with ever
//! new processes could fill it. Counting that user's releases together would break "on the disk before it leaves".
//! *Choice.* Once more than half of `journal.max_mib` waits, the releases of each user may take another sixteenth of
//! it; whoever has taken that gets `audit.unwritable`, alone, until less than half waits again.
//! *Would change our mind.* Nodes on which more than eight users would do so together.
//!
//! # 2026-11-22 What leads to an operator's identity is for admins
//! *Context.* An operator is a workload with a role, and whoever does daily work changes workloads: other selectors, or a
//! node put into a group, would have made anybody an admin, or the approver of its own request.
//! *Choice.* Before and after each command of somebody who isn't an admin the ways to operators' identities are
//! compared (which processes, on which nodes, by which EKs still to come); a new one is refused, whatever the
//! command. Not a list of commands that could lay one: the next command would be missing on it.
//! *Would change our mind.* Identities of people that aren't workloads'.
//!
//! # 2026-11-22 Commands that only read have a connection of their own
//! *Context.* `why-not`, reports and lists ran in the one writer's transaction; a viewer could hold up a revocation.
//! *Choice.* What changes nothing runs in a reading transaction, four at a time. A plan of `apply`, which is
//! made by doing it and undoing that, and a CRL, which is numbered, stay with the writer.
//! *Would change our mind.* A store without snapshots.
//!
//! # 2026-11-22 Nodes don't check the signatures of policy bundles
//! *Context.* They check those of the runtime rules that they apply themselves. Policies they never apply.
//! *Choice.* The server checks digest, version and signatures of the bundle at each decision, also of one that was put
//! into its store by hand. A copy sent to nodes would prove nothing: a server that lies about a decision can lie
//! about the bundle it followed, and it holds the CA.
//! *Would change our mind.* Decisions made on nodes, or a CA that signs only what a second party has decided.
//!
//! # 2026-11: systemd, cgroup v2 and IMA are shown in an emulated machine, not skipped
//! *Context.* Machines that build us have often neither systemd as init, cgroup v2, a TPM nor IMA, and no KVM.
//! *Choice.* `tests/run boot` boots Debian 12 with its own kernel under emulation, root on a ramfs so that IMA's
//! `tcb` policy measures it, the control plane and the agent as units, no network. Rows come over a serial line. On
//! request, not in CI's run.
//! *Found by it.* Kernels before 6.6 take another form of the process connector's message; two routes of one path
//! that kept the control plane from starting.
//! *Would change our mind.* KVM where we build: then it belongs into every run.
