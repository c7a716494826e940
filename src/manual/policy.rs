//! Policy: who gets which credential, decided when it is asked for, and explained afterwards.
//!
//! # What is decided, and from what
//! Each credential is the answer to one question, asked in the transaction that issues it. A question has a
//! principal (the workload), an action (`x509`, `jwt`), a resource (the destination) and a context: the node,
//! what its last verified evidence says and how old that is, the time, the audience, the process that waits,
//! its task, approvals and exceptions. Policies are Cedar; `leasehold-server policy schema` prints every
//! attribute with its meaning. The words people write most:
//!
//! | attribute | is |
//! |---|---|
//! | `principal in Role::"payments"` | the registered roles |
//! | `principal.owner`, `.purpose`, `.tier`, `.environment` | as registered; a tier nobody stated is 1, the one that matters most |
//! | `resource == Destination::"ledger"`, `resource.named` | the registered destination; one that nobody named is `Destination::""` |
//! | `context.node.grade`, `.group`, `.environment`, `.firmware` | the node; firmware is 16 hexadecimal digits |
//! | `context.evidence.age_seconds`, `.profile`, `.references` | the last verified evidence |
//! | `context.evidence.vector.executables` and seven more | AR4SI: 0 says nothing, 2 to 31 affirms, 32 to 95 warns, 96 and above contraindicates |
//! | `context.now`, `.hour`, `.weekday` | UTC; 1 is Monday |
//! | `context.ttl_seconds` | the lifetime asked for: what server, registration and task allow |
//! | `context.audience` | whom a token is for |
//! | `context has task && context.task.intent` | the caller's own words |
//! | `context has caller && context.caller.uid` | the waiting process, in its node's words |
//! | `context has approved_until` | an approval; see [`super::administration`] |
//!
//! What a caller means to do (`authorization_details`, RFC 9396) is asked one thing at a time: an action
//! `authorize` for each type, action and location, with `context.detail`. What isn't permitted is left out of
//! the token; if nothing is left, there is no token. A detail without actions or locations has an empty text
//! in their place, and a policy that doesn't look at them grants all of them.
//!
//! A decision is a pure function of its inputs and the bundle. Cedar's default is to deny, a forbid wins over
//! any permit, and an error in any policy denies the whole (`policy.failed`): Cedar alone would skip a forbid
//! that fails, and so open what it should close.
//!
//! # What no bundle lifts
//! The guardrails (`policy schema --guardrails`) are asked first. They deny a workload that isn't registered for
//! this node, is suspended or whose owner left; workload and node, or workload and destination, of different
//! environments; a verdict that isn't affirming, or evidence older than a lease lasts; an exception that ended; a
//! login session that asks for an identity that isn't for people; somebody else's program that isn't pinned
//! by its digest, or has no registered audience. A bundle's policy can't have an id that begins with `guardrail.`.
//!
//! A caller narrows only. Audiences must be among the registered ones where there are any, a destination among
//! the registered ones always (`policy.narrowing`). A permit that reads `context.task`, `.caller`, `.detail` or
//! `.ttl_seconds`, or names a `Task`, must say in its scope for which principals it is: a caller's words choose among
//! what an operator gave to that workload, they open nothing to others. A forbid may read them: whoever says
//! the words that lift it still gets no more than what the permits give.
//!
//! # How long
//! `@ttl("300s")` and `@evidence_max_age("120s")` stand on permits. They count where the permit is among those the
//! decision follows from, and the least wins: of these, the server's `terms.svid_seconds`, the registration's TTL,
//! the task's term, the lease, the exception and the approval. With a greatest age, a credential ends when the evidence
//! under it would be older than that. So a permit that also matches can shorten what another one gives; it never
//! lengthens it.
//!
//! # Writing and testing a bundle
//! A bundle is a directory: `*.cedar`, and `tests/*.toml`. `tests/policy/example` in the sources is one.
//! ```text
//! @id("settlement") @ttl("300s") @evidence_max_age("120s")
//! permit (principal in Role::"payments", action == Action::"x509", resource == Destination::"ledger")
//! when { context.node.grade == "certified" };
//! ```
//! `@id` is required; `@says("…")` on a forbid stands in refusals. Tests set inputs by their path, from a plain
//! question (an x509 for a workload of nothing in particular, on a good node, Monday noon) and `[base]`:
//! ```text
//! [[test]]
//! name = "not on old evidence"
//! expect = "deny"                      # also: by = ["id"], code = "…", ttl_seconds = 300
//! set = { "evidence.age_seconds" = 121 }
//!
//! [[never]]                            # over the product of all these values, at most 20 000 decisions a bundle
//! name = "production is out of reach of development's nodes"
//! guardrails = false                   # by the bundle alone; true if left out
//! [never.each]
//! "workload.environment" = ["prod"]
//! "node.environment" = ["dev", "prod"]
//! [never.when]
//! "node.environment" = "dev"
//! ```
//! The paths are those that `decision show --json` has under `inputs`. `policy check DIR` validates and tests without a
//! server: strictly against the schema; templates, unknown annotations and durations it can't read are refused.
//! The same happens before a bundle comes into force.
//!
//! # Signing and rolling out
//! ```text
//! leasehold-server reference keygen --out policy.key --public policy.pem   # once; the key need not be on the server
//! leasehold-server policy build DIR --version 7 --out v7.bundle
//! leasehold-server policy sign v7.bundle --key policy.key                  # others: policy sign v7.cose --key …
//! leasehold-server policy apply v7.cose
//! ```
//! The keys and the threshold are those of `[policy]` in server.toml, as for reference sets; a signature over one
//! kind of document is none over the other. Without keys `policy apply DIR` takes a directory as the next version.
//! Versions only grow; the same bundle again changes nothing; an older one, or another one of the same version, is
//! refused (`policy.bundle_order`). To go back, apply the old directory under a new version.
//!
//! It is in force at the next request. What is live is asked for again at once, and what it wouldn't get any
//! more is taken back (a revocation like any other; see [`super::protocol`]). The same happens when a registration changes,
//! when a node's evidence says something else, and every 5 s where a policy looks at the time. A credential
//! keeps its own end: a shorter `@ttl` counts from the next one.
//!
//! Until a bundle was applied, the built-in one (version 0) permits what is registered, within the guardrails;
//! `default = "deny"` under `[policy]` permits nothing instead. State that where policy keys are configured.
//! Once one was applied, nothing is permitted without it: a bundle that is gone, damaged, not signed by the present
//! keys or older than one that was in force before is `policy.failed`, until one of at least that version is applied.
//! The version that must not be gone below also stands in a file beside the wrapping key, ending in `.policy`: keep
//! it out of the store's backup. Store and file rolled back together can't be noticed. While the bundle fails nothing
//! new is issued; what is out runs to its end.
//!
//! # Explaining
//! Each answer, refusal and record has its decision's id.
//! - `decision show ID` prints inputs, the policies it follows from, the bundle and the digest of the evidence, and makes it
//!   again: the same, or in which way not (exit code 1).
//! - `decision list --denied --workload …`; `decision replay --all` makes all of them again.
//! - `policy why-not --workload … --node …` explains before anybody asks: what stands in the way, and for
//!   each the single changes that would lift it. It issues and keeps nothing.
//!
//! # What it doesn't do
//! The agent doesn't check a bundle's signature: decisions are made in the control plane, and whoever can change its
//! program or its memory isn't held by a bundle. Cedar's symbolic analysis isn't used; `never` properties are
//! checked over the values they name. Decisions are kept for 90 days
//! (`policy.keep_days`), about 1.5 kB each, those of live credentials longer; `audit check` asks for none from before.
