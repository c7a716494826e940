//! Administration: who may give which command, and what deviates from the rules for a time.
//!
//! # Who gives commands
//! Every command goes through one function that says who calls, for nodes and for operators alike.
//!
//! At the server's admin socket (mode 0600) its owner and root may do everything: whoever owns the server's
//! files could change them anyway. From elsewhere an operator shows a certificate, and that is an ordinary
//! X.509-SVID of a registered workload, so operators' credentials live minutes and hang on a measured machine
//! like all others:
//!
//! ```text
//! leasehold-server workload add --id spiffe://example.org/ops/alice --owner alice --purpose administration \
//!     --node 3f9a02 --selector unix:uid:1000 --interactive
//! leasehold-server operator add spiffe://example.org/ops/alice --role operator --owner alice
//! # on alice's machine
//! leasehold-agent svid x509 --out ~/.leasehold
//! leasehold-server --server control.example.org:8443 --svid ~/.leasehold node list
//! ```
//!
//! The certificate must be one that the ledger holds as issued to this very workload and not ended: a
//! revocation, a suspension or `operator remove` counts at the next command, over open connections too.
//!
//! | role | looks | daily work | approves | operators, CAs, policy |
//! |---|---|---|---|---|
//! | viewer | yes | | | |
//! | approver | yes | | yes | |
//! | operator | yes | yes | | |
//! | admin | yes | yes | yes | yes |
//!
//! Who may do daily work may change workloads, and an operator's identity is a workload's. So whatever would let
//! other processes have the identity of an operator (other selectors, another node, a node or EK put into its group, a
//! suspension lifted) is for admins. Otherwise an operator could become an admin, or the approver of its
//! own request. A role ends with the registration that it was given to, and counts for nothing once its
//! owner has left.
//!
//! The table is Cedar (`src/control_plane/admin/roles.cedar`); an error in it denies. A command that has no place in it
//! doesn't compile, and a route without a row in the matrix of callers fails a test. Each record that a command
//! writes says `by` whom.
//!
//! # Approvals
//! A policy says what needs one: `when { context has approved_until && context.approved_until > context.now }`.
//! Somebody asks (`approval request --workload … --for 1h --reason …`), somebody else approves over the network,
//! by certificate: not who asked, not the workload, and not of the workload's owner, so an approver needs an owner
//! (`operator add --owner`). The local socket shows nobody in particular; there only
//! `approval grant ID --break-glass --reason …` works, and is recorded as `approval.break_glass`. An approval ends by
//! itself, and credentials issued on it end with it; it also ends when the workload's owner, purpose, selectors or
//! place change, for that isn't what somebody looked at. A request that nobody decides for as long as an approval
//! could hold lapses. One made at the local socket has nobody as who asked: make requests by certificate.
//!
//! # Exceptions
//! `exception add` needs a workload, an owner, a reason, a ticket and an end, at most `governance.exception_days`
//! away. Nothing has to be done for it to end. Until somebody closes it (`exception close`), the workload is known to
//! stand on it: once it has ended, a guardrail denies the workload everything. So forgotten debt stops working
//! instead of becoming the rule. `debt` shows count, age and the count at the end of each of the last eight weeks.
//!
//! # Reviews
//! `review due` lists workloads that somebody should look at: owner missing or gone, not looked at for
//! `governance.review_days`, nothing released for `governance.unused_days`, what was issued but never released, a
//! lifetime above the server's, no tier stated. `review sign` notes who looked. With
//! `governance.suspend_overdue_days` what nobody looks at is suspended so many days after it was due.
//!
//! # Reports
//! `report --framework nhi10|agentic|maestro|ai-rmf|csf2` lists for each control what Leasehold does about it, the
//! command that shows it, and the answer now. It proves what this server knows, no more. Each citation says whether it
//! was compared with the publisher's page, with others that quote it, or with nothing.
