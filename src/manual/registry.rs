//! The registry: who is who, who answers for it, and what may run where.
//!
//! # What is registered
//! | | commands | says |
//! |---|---|---|
//! | owner | `owner add\|set\|retire\|show\|list` | a person or a team, and how to reach it |
//! | workload | `workload add\|set\|suspend\|resume\|show\|list\|remove` | an identity: owner, purpose, tier, place, selectors, audiences, destinations, roles |
//! | destination | `destination add\|list\|remove` | a name that registrations, callers and policies use for what a credential is for |
//! | EK | `ek add\|list\|remove` | a TPM that may join, and where its node is put |
//! | node | `node approve\|set` | a node's group and environment; nodes prove themselves, nobody makes one |
//!
//! Nothing is registered without an owner who is there and a purpose. Two workloads with the same selectors on the
//! same node are refused, since nobody could say which of them a process was; so is a key that was presented for
//! another workload, until the last certificate over it has run out.
//!
//! # What else may be asked of registrations
//! ```toml
//! [registry]
//! environments = ["prod", "staging", "dev"]
//! purposes = ["serving", "settlement", "scanning"]
//! third_party_ttl_seconds = 900
//! ```
//! With `environments` the path of each id begins with one of them. Nodes get theirs from `node approve`, `node set`,
//! `ek add` or a join rule (`environment = "prod"`), destinations when they are added. What could never be permitted is
//! refused at once: a workload on a single node of another environment, or towards a destination of another one.
//! Whatever is left is refused at each decision, by a guardrail that no policy can lift. With `purposes` a
//! workload's purpose is one of them; `--description` has room for words.
//!
//! A *tier* says how much depends on a workload: 1 is what is internet-facing, builds software or may write, 4 matters
//! least. One that nobody classified counts as 1, and `inventory` says so (`tier_stated`).
//!
//! A workload that is somebody else's program (`--third-party`) needs the digest of its executable among its selectors,
//! an audience or destination, and a lifetime of at most `third_party_ttl_seconds`: an update of it has to be looked at,
//! and what it is given is of use in one place and for minutes.
//!
//! # When somebody leaves
//! ```text
//! leasehold-server owner retire alice --to team-payments --reason 'left the company'
//! leasehold-server owner retire alice --reason 'left the company'
//! ```
//! In one transaction each of her workloads goes to the other owner, or is suspended. What was issued before ends in the
//! ledger, the nodes are told to withdraw it, and attest; that takes well under a second where a node is connected, and
//! until the lease's end where it isn't. Under the new owner credentials are issued anew at once. Repeating the command
//! does nothing; with `--to` afterwards the suspended ones get an owner, and stay suspended until `workload resume`.
//! A retired owner stays on record, can be given nothing, and comes back only by `owner add --again`, without what it
//! answered for before.
//!
//! `workload suspend` and `workload set` work the same way for one workload: another owner, purpose, place or
//! selectors, or fewer audiences, destinations or roles, end what was issued before. Records have before and after.
//!
//! # The inventory
//! `leasehold-server inventory` has a row for each workload on each node it may run on, for each node without workloads
//! and for each workload without nodes; and for what a node still holds of something it is no longer registered for. Each
//! says node, EK, environment, last verified evidence and its verdict, owner and contact, purpose, tier, live credentials,
//! exceptions, and why it is suspended. It is made from the store when it is asked for. Its `totals` are counted apart from
//! its rows; a test holds the two together.
//!
//! # The registry as files
//! ```text
//! leasehold-server export registry/            # what there is
//! leasehold-server apply registry/ --plan      # what the files would change, each step with its reason
//! leasehold-server apply registry/             # shows it, asks, does exactly that
//! ```
//! Any number of `*.toml`, in which `[[owner]]`, `[[destination]]`, `[[ek]]`, `[[node]]` and `[[workload]]` say what
//! there should be; `apply --help` shows all keys. A plan is made by doing it and undoing it, and what is then done must
//! have the same fingerprint; if the registry has changed in between, nothing is done. A mistake names file, line and
//! key and changes nothing. What isn't declared stays, unless `--prune` says that it goes; nodes always stay.
//!
//! Three things stay as they are when a file doesn't speak of them, for somebody may have had a reason: a suspension, an
//! owner's leave, and where a node is. `suspended = false` resumes, `retired = false` says that an owner is back.
//!
//! An export says all of it in one form: the same registry gives the same bytes, and `apply` on an empty server gives a
//! registry whose export is the same again. Times and who did it are in the audit log, not in the files.
