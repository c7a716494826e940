//! The frameworks: their controls in our own words, and what is shown here for each.

use super::queries::Query;

/// Whether a control's number and name were compared with what its publisher says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Citation {
    /// With the publisher's own page, on 2026-11-22.
    Publisher,
    /// With others that quote it, on 2026-11-22: the publisher's text wasn't at hand.
    Secondary,
    /// With nothing.
    Unverified,
}

impl Citation {
    /// As in the report.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Publisher => "compared with the publisher's page, 2026-11-22",
            Self::Secondary => "compared with others that quote it, 2026-11-22",
            Self::Unverified => "unverified",
        }
    }
}

/// A control.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// Its number, as published.
    pub id: &'static str,
    /// What it is about: its name, or its matter in our words.
    pub asks: &'static str,
    /// Whether that was compared.
    pub citation: Citation,
    /// What Leasehold does about it.
    pub here: &'static str,
    /// What shows that now; none where it is out of scope.
    pub queries: &'static [Query],
}

/// A framework.
#[derive(Clone, Copy, Debug)]
pub struct Framework {
    /// As in `--framework`.
    pub name: &'static str,
    /// Its title.
    pub title: &'static str,
    /// Who publishes it.
    pub source: &'static str,
    /// Its controls.
    pub controls: &'static [Control],
}

use Citation::{Publisher, Secondary, Unverified};

const fn control(
    id: &'static str,
    asks: &'static str,
    citation: Citation,
    here: &'static str,
    queries: &'static [Query],
) -> Control {
    Control { id, asks, citation, here, queries }
}

/// All of them.
pub const FRAMEWORKS: &[Framework] = &[
    Framework { name: "nhi10", title: "OWASP Non-Human Identities Top 10, 2025", source: "OWASP", controls: NHI10 },
    Framework {
        name: "agentic",
        title: "OWASP Top 10 for Agentic Applications, 2026",
        source: "OWASP GenAI Security Project",
        controls: AGENTIC,
    },
    Framework {
        name: "maestro",
        title: "MAESTRO, seven layers of agentic systems",
        source: "Cloud Security Alliance",
        controls: MAESTRO,
    },
    Framework {
        name: "ai-rmf",
        title: "AI Risk Management Framework 1.0, GOVERN",
        source: "NIST AI 100-1",
        controls: AI_RMF,
    },
    Framework { name: "csf2", title: "Cybersecurity Framework 2.0", source: "NIST CSWP 29", controls: CSF2 },
];

const NHI10: &[Control] = &[
    control(
        "NHI1:2025",
        "Improper Offboarding",
        Publisher,
        "An owner who leaves takes all workloads along: re-assigned or suspended in one step; what nobody uses comes up for review.",
        &[Query::Ownerless, Query::Reviews],
    ),
    control(
        "NHI2:2025",
        "Secret Leakage",
        Publisher,
        "Workloads hold keys that live minutes and are made in memory; the control plane holds none of theirs.",
        &[Query::Longest],
    ),
    control(
        "NHI3:2025",
        "Vulnerable Third-Party NHI",
        Publisher,
        "Programs of others are marked, and need a pinned digest, a short lifetime and a stated audience or destination.",
        &[Query::ThirdParty],
    ),
    control(
        "NHI4:2025",
        "Insecure Authentication",
        Publisher,
        "Nodes and operators by TLS 1.3 client certificates, nodes with a key in the TPM; workloads by what the kernel says of them.",
        &[Query::Nodes, Query::Operators],
    ),
    control(
        "NHI5:2025",
        "Overprivileged NHI",
        Publisher,
        "Every credential is a decision under guardrails that no policy lifts; what was granted and never used comes up for review.",
        &[Query::Undecided, Query::Reviews],
    ),
    control("NHI6:2025", "Insecure cloud deployment configuration", Secondary, "Not looked at by this version.", &[]),
    control(
        "NHI7:2025",
        "Long-Lived Secrets",
        Secondary,
        "Credentials end with the lease at the latest; exceptions end by themselves.",
        &[Query::Longest, Query::Debt],
    ),
    control(
        "NHI8:2025",
        "Environment Isolation",
        Secondary,
        "The environment stands in the identity; another environment's node gets nothing, by a guardrail.",
        &[Query::Environments],
    ),
    control(
        "NHI9:2025",
        "NHI Reuse",
        Secondary,
        "Two workloads can't be registered for the same process.",
        &[Query::Shared],
    ),
    control(
        "NHI10:2025",
        "Human Use of NHI",
        Secondary,
        "Processes of login sessions get nothing, but for workloads that are registered for people.",
        &[Query::People],
    ),
];

const AGENTIC: &[Control] = &[
    control("ASI01", "Agent Goal Hijack", Secondary, "Out of scope: what an agent is made to want.", &[]),
    control(
        "ASI02",
        "Tool Misuse and Exploitation",
        Secondary,
        "In part: a task's credential holds what it was granted for, and no other audience takes it.",
        &[Query::Tasks],
    ),
    control(
        "ASI03",
        "Identity and Privilege Abuse",
        Secondary,
        "Each agent and each task has an identity of its own, an owner, a purpose and an end.",
        &[Query::Undecided, Query::Shared, Query::Tasks],
    ),
    control(
        "ASI04",
        "Agentic supply chain",
        Secondary,
        "In part: what runs is measured, and its digest can be what an identity is bound to.",
        &[Query::Nodes, Query::ThirdParty],
    ),
    control(
        "ASI05",
        "Unexpected code execution",
        Secondary,
        "In part: a process that becomes another program loses its credentials within a second.",
        &[Query::Tasks],
    ),
    control("ASI06", "Memory and context poisoning", Secondary, "Out of scope.", &[]),
    control(
        "ASI07",
        "Insecure inter-agent communication",
        Secondary,
        "Mutual TLS with X.509-SVIDs, or tokens for one audience.",
        &[Query::Inventory],
    ),
    control(
        "ASI08",
        "Cascading failures",
        Secondary,
        "In part: what is revoked is withdrawn everywhere, and what came back from where is counted.",
        &[Query::Revocations],
    ),
    control("ASI09", "Human-agent trust exploitation", Secondary, "Out of scope.", &[]),
    control(
        "ASI10",
        "Rogue agents",
        Secondary,
        "A workload, an owner's workloads or a node are stopped by one command.",
        &[Query::Revocations],
    ),
];

const MAESTRO: &[Control] = &[
    control("L1", "Foundation models", Secondary, "Out of scope.", &[]),
    control("L2", "Data operations", Secondary, "Out of scope.", &[]),
    control("L3", "Agent frameworks", Secondary, "Out of scope.", &[]),
    control(
        "L4",
        "Deployment and infrastructure",
        Secondary,
        "The machine proves what it booted and runs before anything is issued to it.",
        &[Query::Nodes],
    ),
    control(
        "L5",
        "Evaluation and observability",
        Secondary,
        "Every decision, issue, release and end is a record in a chain.",
        &[Query::Records],
    ),
    control(
        "L6",
        "Security and compliance",
        Secondary,
        "Policy as code, exceptions with an end, reviews.",
        &[Query::Debt, Query::Reviews],
    ),
    control(
        "L7",
        "Agent ecosystem",
        Secondary,
        "Each agent has an identity of its own and somebody who answers for it.",
        &[Query::Inventory, Query::Ownerless],
    ),
];

const AI_RMF: &[Control] = &[
    control(
        "GOVERN 1.2",
        "Trustworthy characteristics are part of policies and practices",
        Unverified,
        "In part: policy is code, tested before it counts, and every decision names the policies that made it.",
        &[Query::Undecided],
    ),
    control(
        "GOVERN 1.5",
        "Ongoing monitoring and periodic review are planned, with roles",
        Unverified,
        "Reviews come due by themselves, and who looked is recorded.",
        &[Query::Reviews],
    ),
    control(
        "GOVERN 1.6",
        "Mechanisms to inventory AI systems",
        Secondary,
        "Every agent that holds an identity is registered; the inventory is what is in force, not a list beside it.",
        &[Query::Inventory],
    ),
    control(
        "GOVERN 1.7",
        "Decommissioning",
        Unverified,
        "Owners retire, workloads are suspended or removed, and what they held ends.",
        &[Query::Ownerless, Query::Revocations],
    ),
    control(
        "GOVERN 2.1",
        "Roles and responsibilities are documented and clear",
        Unverified,
        "Each workload has an owner and a purpose, each operator a role.",
        &[Query::Ownerless, Query::Purposeless, Query::Operators],
    ),
    control(
        "GOVERN 6.1",
        "Risks of third parties",
        Unverified,
        "Programs of others are marked and bound more narrowly.",
        &[Query::ThirdParty],
    ),
];

const CSF2: &[Control] = &[
    control(
        "GV.RR-02",
        "Roles, responsibilities and authorities",
        Unverified,
        "Owners of workloads, roles of operators.",
        &[Query::Ownerless, Query::Operators],
    ),
    control(
        "ID.AM-01",
        "Inventories of hardware",
        Unverified,
        "Nodes by the identity of their TPM.",
        &[Query::Nodes, Query::Inventory],
    ),
    control(
        "ID.AM-02",
        "Inventories of software, services and systems",
        Unverified,
        "Workloads with owner and purpose.",
        &[Query::Inventory, Query::Purposeless],
    ),
    control(
        "ID.AM-08",
        "Systems and software are managed through their life cycles",
        Unverified,
        "Admission, review, revocation.",
        &[Query::Reviews, Query::Revocations],
    ),
    control(
        "ID.RA-09",
        "Authenticity and integrity of hardware before use",
        Unverified,
        "The TPM's endorsement key and its certificate.",
        &[Query::Nodes],
    ),
    control(
        "PR.AA-01",
        "Identities and credentials of users, services and hardware are managed",
        Secondary,
        "Everything issued stands in one ledger, with its issue and its end.",
        &[Query::Inventory, Query::Longest],
    ),
    control(
        "PR.AA-02",
        "Identities are proofed and bound to credentials by context",
        Secondary,
        "A TPM proves its keys, a node its state, a process by the kernel's word.",
        &[Query::Nodes],
    ),
    control(
        "PR.AA-03",
        "Users, services and hardware are authenticated",
        Secondary,
        "One function says who calls, for nodes and operators.",
        &[Query::Nodes, Query::Operators],
    ),
    control(
        "PR.AA-04",
        "Identity assertions are protected, conveyed and verified",
        Secondary,
        "X.509- and JWT-SVIDs that live minutes.",
        &[Query::Longest],
    ),
    control(
        "PR.AA-05",
        "Permissions are in policy, managed, enforced and reviewed, with least privilege and separation of duties",
        Secondary,
        "Decisions at request time, approvals by others, reviews.",
        &[Query::Undecided, Query::Reviews, Query::Debt],
    ),
    control(
        "PR.PS-04",
        "Log records are generated",
        Unverified,
        "In the transaction of the thing itself, chained.",
        &[Query::Records],
    ),
    control(
        "DE.CM-09",
        "Computing hardware and software are monitored",
        Unverified,
        "Measurements are judged at every release.",
        &[Query::Nodes, Query::Records],
    ),
    control(
        "RS.MI-01",
        "Incidents are contained",
        Unverified,
        "One command withdraws; what came back is counted.",
        &[Query::Revocations],
    ),
];
