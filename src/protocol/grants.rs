//! Credentials just in time: for a process that asks now, for a task that has a name, towards a
//! destination; and what is taken back.
//!
//! | route | client certificate | request → answer |
//! |---|---|---|
//! | `POST /v1/grants` | node | [`GrantRequest`] → [`GrantAnswer`] |
//! | `GET /v1/bundle` | none | → the SPIFFE bundle: a JWK Set of CAs and of keys for tokens, as JSON |
//! | `POST /v1/tasks/end` | node | [`TasksEnded`] → [`Noted`] |
//! | `POST /v1/withdrawals` | node | [`WithdrawalsApplied`] → [`Noted`] |

use serde::{Deserialize, Serialize};

use crate::codes::{self, Refusal};

/// Asks for credentials for a process that waits for them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// As in [`super::AttestRequest`].
    #[serde(with = "serde_bytes")]
    pub request_id: [u8; 16],
    /// The sequence number of the lease these are asked for under.
    pub lease_sequence: u64,
    /// The workload's SPIFFE ID.
    pub workload: String,
    /// The process, as the agent saw it.
    pub caller: CallerClaims,
    /// The task it is for; none for a token without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskStatement>,
    /// PKCS#10 request, DER, where an X.509-SVID is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csr: Option<serde_bytes::ByteBuf>,
    /// The audience of a JWT-SVID, where one is wanted; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audience: Vec<String>,
    /// Towards what, by a registered name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// What the caller means to do; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<AuthorizationDetail>,
}

/// What the kernel says of a calling process, as its agent passes it on: a node's claim, which may
/// narrow what is granted and never widens it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallerClaims {
    /// Effective user id.
    pub uid: u32,
    /// Whether it belongs to somebody's login session.
    pub login_session: bool,
    /// What was found true of it, as selectors, e.g. `unix:uid:1000`.
    pub selectors: Vec<String>,
}

/// What a caller says its task is. Its own words: they narrow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskStatement {
    /// The task's id, chosen by the caller: 1 to 128 of `A–Z a–z 0–9 . _ : -`. One of a workload on a node lives
    /// at a time.
    pub id: String,
    /// Drawn by the agent when it starts: which run of it holds the task. What an earlier run held has ended.
    #[serde(with = "serde_bytes")]
    pub run: [u8; 16],
    /// Which task of that run; asked for again with the same number, a task is renewed.
    pub number: u64,
    /// What it means to do, at most 256 bytes; may be empty.
    pub intent: String,
    /// A purpose narrower than the registered one; may be empty.
    pub purpose: String,
    /// Seconds within which it must be heard of again; 0 where its process alone is watched.
    pub heartbeat_seconds: u64,
    /// The longest lifetime it asks for, in seconds; 0 for what policy allows. Each renewal has it anew.
    pub term_seconds: u64,
}

impl TaskStatement {
    /// The longest id, in bytes.
    const LONGEST_ID: usize = 128;
    /// The longest intent and purpose, in bytes.
    const LONGEST_TEXT: usize = 256;
    /// The longest time between two signs of life, in seconds: an hour.
    const LONGEST_HEARTBEAT: u64 = 3600;

    /// Whether it keeps to the bounds that its fields name.
    ///
    /// # Errors
    /// [`codes::TASK_INVALID`], at the field.
    pub fn check(&self) -> Result<(), Refusal> {
        let refuse = |field: &str, found: String, expected: String| {
            Err(Refusal::new(codes::TASK_INVALID, found).at(field).expected(expected))
        };
        let named = |c: char| c.is_ascii_alphanumeric() || ".:_-".contains(c);
        if self.id.is_empty() || self.id.len() > Self::LONGEST_ID || !self.id.chars().all(named) {
            let found = format!("{} bytes", self.id.len());
            return refuse("task_id", found, format!("1 to {} of A–Z a–z 0–9 . _ : -", Self::LONGEST_ID));
        }
        for (field, text) in [("intent", &self.intent), ("purpose", &self.purpose)] {
            if text.len() > Self::LONGEST_TEXT || text.chars().any(char::is_control) {
                let found = format!("{} bytes", text.len());
                return refuse(field, found, format!("at most {}, no control characters", Self::LONGEST_TEXT));
            }
        }
        if self.heartbeat_seconds > Self::LONGEST_HEARTBEAT {
            let found = self.heartbeat_seconds.to_string();
            return refuse("heartbeat_seconds", found, format!("at most {}", Self::LONGEST_HEARTBEAT));
        }
        Ok(())
    }
}

/// One thing that a caller means to do (RFC 9396, 2 and 2.2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorizationDetail {
    /// Which kind of thing, e.g. `ledger`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it does there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<String>,
    /// Where.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locations: Vec<String>,
}

/// What was decided, and what was issued by it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantAnswer {
    /// The decision's id.
    pub decision: String,
    /// The X.509-SVID's chain, DER, leaf first; empty where none was asked for, or when refused.
    pub chain: Vec<serde_bytes::ByteBuf>,
    /// The JWT-SVID in compact form; empty where none was asked for, or when refused.
    pub token: String,
    /// Its `jti`.
    pub jti: String,
    /// Seconds both hold, from issue.
    pub term_seconds: u64,
    /// Of what the caller means to do, what it may.
    pub details: Vec<AuthorizationDetail>,
    /// Set when refused.
    pub refusal: Option<Refusal>,
}

/// Tasks that ended on a node; the same again is harmless.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TasksEnded {
    /// The agent's present run; whatever an earlier one began on the node has ended with it.
    #[serde(with = "serde_bytes")]
    pub run: [u8; 16],
    /// At most 256; none at all is how a starting agent says that it holds nothing.
    pub tasks: Vec<TaskEnd>,
}

/// How a task ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskEnd {
    /// Its number in the run.
    pub number: u64,
    /// Why, as a refusal of what comes after: its code is the reason's.
    pub refusal: Refusal,
}

/// What a node must stop releasing. A number is never given twice.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withdrawal {
    /// The revocation's number.
    pub number: u64,
    /// What.
    pub of: Withdrawn,
    /// Why, for whoever asks for it afterwards.
    pub refusal: Refusal,
}

/// What is withdrawn.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Withdrawn {
    /// Everything the node holds.
    Node,
    /// All of these workloads.
    Workloads(Vec<String>),
    /// The credential of this serial number or `jti`.
    Credential(String),
    /// All tasks of this id, of whichever workload.
    Task(String),
}

/// The node applied these: nothing of them is released any more. A claim, until evidence repeats it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithdrawalsApplied {
    /// Numbers; at most 1024.
    pub numbers: Vec<u64>,
}

/// It was written down.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noted {}
