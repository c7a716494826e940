//! The table of refusals: every code a user, a log or a script can meet, in one place; and the exit codes.
//!
//! A code is `room.what` and stays; the words beside it may improve.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A stable refusal code from [`TABLE`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(&'static str);

impl Code {
    /// The code as text, `room.what`.
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// What the code means, in one sentence.
    pub fn meaning(self) -> &'static str {
        TABLE.iter().find(|(code, _)| *code == self).map_or("", |(_, meaning)| meaning)
    }

    /// The code of this text. Text outside the table becomes [`PROTOCOL_UNKNOWN_CODE`]: a newer
    /// peer may refuse for a reason this version has no word for, and a refusal stays a refusal.
    pub fn from_text(text: &str) -> Self {
        TABLE.iter().map(|(code, _)| *code).find(|code| code.0 == text).unwrap_or(PROTOCOL_UNKNOWN_CODE)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_text(&String::deserialize(deserializer)?))
    }
}

/// A refusal: what was wrong, where, and what was expected.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// What was found, in words.
    pub found: String,
    /// Where: a file, key, field, offset, PCR or event number. Empty if the code says it all.
    pub at: String,
    /// What would have been accepted. Empty if the code says it all.
    pub expected: String,
}

impl Refusal {
    /// A refusal with what was found.
    pub fn new(code: Code, found: impl Into<String>) -> Self {
        Self { code, found: found.into(), at: String::new(), expected: String::new() }
    }

    /// Adds where it was found.
    pub fn at(mut self, at: impl Into<String>) -> Self {
        self.at = at.into();
        self
    }

    /// Adds what was expected.
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = expected.into();
        self
    }

    /// The same with each of its texts cut to `bytes`, at a character's boundary: paths and names that a
    /// process chose may be in it, and there is a place with bounds to write it to.
    pub fn clipped(mut self, bytes: usize) -> Self {
        for text in [&mut self.found, &mut self.at, &mut self.expected] {
            text.truncate(text.floor_char_boundary(bytes));
        }
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.code)?;
        if !self.at.is_empty() {
            write!(f, "{}: ", self.at)?;
        }
        f.write_str(&self.found)?;
        if !self.expected.is_empty() {
            write!(f, " (expected {})", self.expected)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// The exit codes of both binaries.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// Failed.
    pub const FAILED: u8 = 1;
    /// Wrong usage or configuration.
    pub const USAGE: u8 = 2;
    /// The verdict is a warning.
    pub const WARNING: u8 = 3;
    /// The verdict is contraindicated.
    pub const CONTRAINDICATED: u8 = 4;
    /// Unavailable: try later.
    pub const UNAVAILABLE: u8 = 5;
}

macro_rules! table {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        $(#[doc = $meaning] pub const $name: Code = Code($code);)*
        /// Every code with its meaning.
        pub const TABLE: &[(Code, &str)] = &[$(($name, $meaning)),*];
    };
}

table! {
    CONFIG_INVALID = "config.invalid", "The configuration file can't be used as it stands.";
    CONFIG_MODE = "config.mode", "A file that holds a secret is open to others.";

    TPM_UNAVAILABLE = "tpm.unavailable", "The TPM doesn't answer now; nothing is concluded from that.";
    TPM_LOCKOUT = "tpm.lockout", "The TPM is in dictionary-attack lockout and says for how long.";
    TPM_RESET = "tpm.reset", "The TPM was reset: the session that vouched for its readings is gone.";
    TPM_REFUSED = "tpm.refused", "The TPM refused a command.";
    TPM_SWAPPED = "tpm.swapped", "Another TPM answers than the one this agent started with.";
    TPM_SEALED_ELSEWHERE = "tpm.sealed_elsewhere", "A secret is sealed to another TPM, or to this one before it was cleared.";
    TPM_STRUCTURE = "tpm.structure", "A TPM structure is malformed.";

    MEASUREMENTS_BOOT_LOG = "measurements.boot_log", "The boot event log can't be read.";
    MEASUREMENTS_USERSPACE_LOG = "measurements.userspace_log", "The userspace measurement log can't be read.";
    MEASUREMENTS_IMA_LIST = "measurements.ima_list", "IMA's measurement list can't be read.";
    MEASUREMENTS_INCOMPLETE = "measurements.incomplete", "The log says that a record of it is missing.";
    MEASUREMENTS_TOO_LARGE = "measurements.too_large", "A log is larger than allowed.";
    MEASUREMENTS_UNREADABLE = "measurements.unreadable", "A log's file can't be opened or read.";

    EVIDENCE_TOO_LARGE = "evidence.too_large", "The evidence is larger than 4 MiB.";
    EVIDENCE_MALFORMED = "evidence.malformed", "The evidence is not the COSE and CBOR its CDDL describes.";
    EVIDENCE_NOT_DETERMINISTIC = "evidence.not_deterministic", "The evidence's CBOR is not in the one deterministic encoding.";
    EVIDENCE_DUPLICATE_KEY = "evidence.duplicate_key", "A CBOR map in the evidence has a key twice.";
    EVIDENCE_PROFILE = "evidence.profile", "The evidence follows another EAT profile.";

    VERIFY_EVIDENCE_SIGNATURE = "verify.evidence_signature", "The evidence is not signed by the enrolled node key.";
    VERIFY_QUOTE_SIGNATURE = "verify.quote_signature", "The quote is not signed by the attestation key.";
    VERIFY_QUOTE_HASH = "verify.quote_hash", "The quote is signed with another hash algorithm than SHA-256.";
    VERIFY_QUOTE_MAGIC = "verify.quote_magic", "The attestation does not start with TPM_GENERATED: no TPM made it.";
    VERIFY_QUOTE_TYPE = "verify.quote_type", "The attestation is of another type than a quote.";
    VERIFY_QUOTE_TRAILING = "verify.quote_trailing", "Bytes follow the attestation structure.";
    VERIFY_QUOTE_MALFORMED = "verify.quote_malformed", "The attestation structure can't be read.";
    VERIFY_QUOTE_BINDING = "verify.quote_binding", "The quote is not bound to this nonce, node key and boot.";
    VERIFY_QUOTE_SIGNER = "verify.quote_signer", "The quote's qualified signer is another key.";
    VERIFY_QUOTE_STALE = "verify.quote_stale", "The TPM's clock says that the quote was made earlier than its submission allows.";
    VERIFY_SELECTION = "verify.selection", "The quote covers other PCRs than policy asks for.";
    VERIFY_SELECTION_EMPTY = "verify.selection_empty", "The quote covers no PCR at all.";
    VERIFY_SELECTION_DUPLICATE = "verify.selection_duplicate", "The quote's selection names a bank twice.";
    VERIFY_PCR_DIGEST = "verify.pcr_digest", "The PCR values don't hash to the digest in the quote.";
    VERIFY_NONCE = "verify.nonce", "The evidence is not over the nonce it was asked for.";
    VERIFY_NONCE_SPENT = "verify.nonce_spent", "The nonce was used before: a replay.";
    VERIFY_NONCE_OTHER_NODE = "verify.nonce_other_node", "The nonce was given to another node.";
    VERIFY_NONCE_EXPIRED = "verify.nonce_expired", "The nonce is too old.";
    VERIFY_CHANNEL = "verify.channel", "The evidence came over a connection of another client certificate.";
    VERIFY_NODE = "verify.node", "The evidence names another node.";
    VERIFY_AK_UNRESTRICTED = "verify.ak_unrestricted", "The attestation key is not restricted: it would sign anything.";
    VERIFY_AK_DECRYPT = "verify.ak_decrypt", "The attestation key may also decrypt.";
    VERIFY_AK_NOT_FIXED = "verify.ak_not_fixed", "The attestation key could leave its TPM.";
    VERIFY_AK_IMPORTED = "verify.ak_imported", "The attestation key's secret was not made by the TPM.";
    VERIFY_AK_TEMPLATE = "verify.ak_template", "The attestation key is not of the one accepted template.";
    VERIFY_AK_NAME = "verify.ak_name", "The attestation key is not the one that was activated.";
    VERIFY_NODE_KEY = "verify.node_key", "The node key is not a TPM key certified by the attestation key.";
    VERIFY_EK_TEMPLATE = "verify.ek_template", "The endorsement key is not of a TCG template.";
    VERIFY_EK_CERTIFICATE = "verify.ek_certificate", "The endorsement certificate can't be read.";
    VERIFY_EK_EXPIRED = "verify.ek_expired", "The endorsement certificate is not valid now.";
    VERIFY_EK_UNKNOWN_CA = "verify.ek_unknown_ca", "The endorsement certificate has no path to a configured manufacturer root.";
    VERIFY_EK_USAGE = "verify.ek_usage", "The certificate is not for an endorsement key.";
    VERIFY_EK_KEY = "verify.ek_key", "The endorsement certificate is for another key.";
    VERIFY_RESET_COUNT = "verify.reset_count", "The TPM's reset count went back or changed within one boot.";
    VERIFY_CLOCK = "verify.clock", "The TPM's clock went back.";
    VERIFY_NO_REFERENCE = "verify.no_reference", "The node has no reference values yet.";
    VERIFY_PCR_MISMATCH = "verify.pcr_mismatch", "A PCR differs from its reference value.";
    VERIFY_PROFILE = "verify.profile", "The firmware profile is unknown or doesn't fit this node.";
    VERIFY_LOGS = "verify.logs", "The evidence is bound to other logs than those that were received.";
    VERIFY_LOG_MISSING = "verify.log_missing", "A log that the firmware profile asks for was not sent.";
    VERIFY_LOG_REPLAY = "verify.log_replay", "A log doesn't lead to the quoted PCR: it was cut short or altered.";
    VERIFY_LOG_EXTENDED = "verify.log_extended", "A log goes on beyond the quoted PCR: events were added to it.";
    VERIFY_SHA1_ONLY = "verify.sha1_only", "The log vouches with SHA-1 alone.";
    VERIFY_BANK = "verify.bank", "The measurements are of another bank than the node's pinned one.";
    VERIFY_PCR_UNEXTENDED = "verify.pcr_unextended", "A PCR that the firmware extends was never extended.";
    VERIFY_EVENT_TYPE = "verify.event_type", "An event of this type may not stand in this PCR.";
    VERIFY_EVENT_DATA = "verify.event_data", "An event's data doesn't hash to its digest.";
    VERIFY_EVENT_MISSING = "verify.event_missing", "An event that the firmware profile asks for is missing.";
    VERIFY_SEPARATOR = "verify.separator", "A PCR hasn't exactly one valid separator between firmware and boot loader.";
    VERIFY_SECURE_BOOT = "verify.secure_boot", "Secure Boot was not as it must be.";
    VERIFY_EVENT_UNEXPECTED = "verify.event_unexpected", "An event differs from every accepted state.";
    VERIFY_STATE_EXPIRED = "verify.state_expired", "The state the node booted into is no longer accepted.";
    VERIFY_IMA_BYPASS = "verify.ima_bypass", "The kernel has a measurement list but didn't extend the TPM with it.";
    VERIFY_IMA_VIOLATION = "verify.ima_violation", "The kernel measured a file that was open for writing.";
    VERIFY_IMA_UNLISTED = "verify.ima_unlisted", "Something ran that no rule allows.";
    VERIFY_IMA_PCR = "verify.ima_pcr", "An entry of the measurement list is for another PCR than 10, whose replay is not judged.";
    VERIFY_RUNTIME_UNPROVEN = "verify.runtime_unproven", "The reference values have rules for what runs, and the node doesn't prove what runs.";
    VERIFY_BOOT_AGGREGATE = "verify.boot_aggregate", "The measurement list begins with another boot's PCRs.";
    VERIFY_TPM_FIRMWARE = "verify.tpm_firmware", "The TPM's firmware is older than the floor for its manufacturer.";
    VERIFY_REFERENCE_MALFORMED = "verify.reference_malformed", "The reference values can't be read.";
    VERIFY_REFERENCE_SIGNATURE = "verify.reference_signature", "The reference values are not signed by the policy keys that must sign them.";
    VERIFY_REFERENCE_ORDER = "verify.reference_order", "Older reference values than the present ones were offered.";
    VERIFY_LEASE = "verify.lease", "The lease is not one the control plane signed for this node, boot and request.";

    PROTOCOL_MALFORMED = "protocol.malformed", "The message is not one this version understands.";
    PROTOCOL_TOO_LARGE = "protocol.too_large", "The message is larger than allowed.";
    PROTOCOL_UNKNOWN_CODE = "protocol.unknown_code", "The peer refused with a code this version doesn't know.";
    PROTOCOL_UNREACHABLE = "protocol.unreachable", "The control plane can't be reached.";
    PROTOCOL_UNTRUSTED = "protocol.untrusted", "The server's certificate doesn't lead to the pinned trust bundle.";
    PROTOCOL_REPLAYED = "protocol.replayed", "The request was answered before and its answer is no longer kept.";
    PROTOCOL_CLIENT_CERTIFICATE = "protocol.client_certificate", "The call needs the client certificate of an admitted node.";
    PROTOCOL_BUSY = "protocol.busy", "The control plane has too much to do at the moment: try again later.";
    PROTOCOL_LOGS = "protocol.logs", "A part of a log doesn't begin where the part before it ended.";
    PROTOCOL_EPOCH = "protocol.epoch", "The control plane's state was restored: attest afresh.";

    ENROL_WAITING = "enrol.waiting", "The node is known and waits for an operator's approval.";
    ENROL_ACTIVATION = "enrol.activation", "The credential was not activated: the keys are not in the TPM of that endorsement key.";
    ENROL_SESSION = "enrol.session", "The enrolment is unknown, finished or too old.";
    ENROL_ID_TAKEN = "enrol.id_taken", "The node id belongs to another TPM.";
    ENROL_KEYS_CHANGED = "enrol.keys_changed", "The node was admitted with other keys.";
    ENROL_REVOKED = "enrol.revoked", "The node was revoked.";

    ISSUER_NO_LEASE = "issuer.no_lease", "The node has no live lease.";
    ISSUER_NOT_THIS_NODE = "issuer.not_this_node", "The workload is not registered for this node.";
    ISSUER_UNKNOWN_WORKLOAD = "issuer.unknown_workload", "No such workload is registered.";
    ISSUER_BUNDLE = "issuer.bundle", "An SVID doesn't lead to the bundle held: an attestation brings the newer one.";
    ISSUER_EXPIRED = "issuer.expired", "The credential's time is over.";
    ISSUER_REQUEST = "issuer.request", "The certificate request can't be used.";

    POLICY_DENIED = "policy.denied", "No policy permits it, or one forbids it.";
    POLICY_FAILED = "policy.failed", "The decision can't be made: no valid bundle, or an error in it; that denies.";
    POLICY_GUARDRAIL = "policy.guardrail", "A built-in guardrail forbids it, which no bundle can lift.";
    POLICY_SCOPE = "policy.scope", "The workload's registration changed: what was issued under the one before is void.";
    POLICY_SUSPENDED = "policy.suspended", "The workload is suspended, or nobody answers for it.";
    POLICY_BUNDLE = "policy.bundle", "The policy bundle can't be read, is not valid, or fails its own tests.";
    POLICY_BUNDLE_SIGNATURE = "policy.bundle_signature", "The policy bundle is not signed by the keys that must sign it.";
    POLICY_BUNDLE_ORDER = "policy.bundle_order", "An older policy bundle than the present one was offered.";
    POLICY_NARROWING = "policy.narrowing", "The caller asks for more than the workload is registered for.";

    GATE_STARTING = "gate.starting", "The agent has no lease yet.";
    GATE_UNREACHABLE = "gate.unreachable", "The lease's term is over and the control plane can't be reached.";
    GATE_STALE = "gate.stale", "The lease's term is over or its measurements can't be read now.";
    GATE_DRIFT = "gate.drift", "A PCR changed since the lease was granted.";
    GATE_TPM_RESET = "gate.tpm_reset", "The TPM was reset since the lease was granted.";
    GATE_READING_OLD = "gate.reading_old", "The PCR reading began before the request arrived.";
    GATE_CONTRAINDICATED = "gate.contraindicated", "The control plane refused the node's measurements.";
    GATE_REVOKED = "gate.revoked", "The node or the workload was revoked.";
    GATE_LEASE_ORDER = "gate.lease_order", "An older lease than the present one was offered.";

    WORKLOAD_SELECTOR = "workload.selector", "The text is no selector.";
    WORKLOAD_PEER_UNKNOWN = "workload.peer_unknown", "The kernel doesn't say who is calling.";
    WORKLOAD_PEER_CHANGED = "workload.peer_changed", "The calling process is no longer what it was when it connected.";
    WORKLOAD_PEER_GONE = "workload.peer_gone", "The calling process ended before it could be identified.";
    WORKLOAD_UNSEEN = "workload.unseen", "The agent can't look at the calling process now; nothing is concluded from that.";
    WORKLOAD_LOGIN_SESSION = "workload.login_session", "The calling process belongs to a login session: a person, not a workload.";
    WORKLOAD_UNMEASURED = "workload.unmeasured", "The calling program isn't in the kernel's attested list of what it measured.";
    WORKLOAD_NO_MATCH = "workload.no_match", "No registered workload matches the calling process.";

    DELIVERY_HEADER = "delivery.header", "The Workload API's security header is missing.";
    DELIVERY_SOCKET = "delivery.socket", "A socket can't be made at the configured place.";
    DELIVERY_BUSY = "delivery.busy", "The caller has as many connections or streams as one user may have.";
    DELIVERY_INCOMPLETE = "delivery.incomplete", "What was released lacks a part that a workload must get.";
    DELIVERY_STUCK = "delivery.stuck", "The caller didn't take an answer in time.";
    DELIVERY_STOPPING = "delivery.stopping", "The agent is stopping.";

    TASK_ENDED = "task.ended", "The task's process ended.";
    TASK_FAILED = "task.failed", "The task's process failed, or was killed.";
    TASK_OUT_OF_MEMORY = "task.out_of_memory", "The kernel killed the task's process for want of memory.";
    TASK_HEARTBEAT = "task.heartbeat", "The task wasn't heard of in time.";
    TASK_SCOPE = "task.scope", "The task's process is no longer what it was: another program, user, cgroup or unit.";
    TASK_ABANDONED = "task.abandoned", "The agent that held the task is gone, and what it held with it.";
    TASK_UNKNOWN = "task.unknown", "There is no such live task, or it is another process's.";
    TASK_INVALID = "task.invalid", "The task can't be begun as stated.";

    TOKEN_MALFORMED = "token.malformed", "The text is no JWT-SVID.";
    TOKEN_SIGNATURE = "token.signature", "No key of the bundle signed the token.";
    TOKEN_EXPIRED = "token.expired", "The token's time is over, or it says none.";
    TOKEN_AUDIENCE = "token.audience", "The token is for another audience.";
    TOKEN_DENIED = "token.denied", "The token was revoked.";
    TOKEN_REUSED = "token.reused", "The token was used outside its job.";

    APPROVAL_OWN = "approval.own", "Whoever approves must be somebody else than who asked, and not of the workload's owner.";
    APPROVAL_IDENTITY = "approval.identity", "An approval needs the certificate of whoever gives it.";

    AUDIT_UNWRITABLE = "audit.unwritable", "The audit log can't be written: nothing is released.";
    AUDIT_TAMPERED = "audit.tampered", "The audit log was changed: a record was edited, removed or inserted.";
    AUDIT_TORN = "audit.torn", "The audit log ends within a record, as after a power cut.";
    AUDIT_GAP = "audit.gap", "Records are missing from the audit log.";

    ADMIN_PEER = "admin.peer", "The admin socket serves its owner and root only.";
    ADMIN_INVALID = "admin.invalid", "The command can't be carried out as given.";
    ADMIN_UNKNOWN = "admin.unknown", "No such node, workload or reference.";
    ADMIN_ROLE = "admin.role", "The caller's role doesn't allow this command.";
    ADMIN_CONFLICT = "admin.conflict", "It exists already, differently.";

    STORE_FAILED = "store.failed", "The store can't be read or written.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_named_room_dot_what() {
        let mut seen = std::collections::BTreeSet::new();
        for (code, meaning) in TABLE {
            assert!(seen.insert(code.as_str()), "{code} stands twice");
            assert!(code.as_str().split_once('.').is_some_and(|(room, what)| !room.is_empty() && !what.is_empty()));
            assert!(meaning.ends_with('.'), "{code} has no sentence");
            assert_eq!(Code::from_text(code.as_str()), *code);
        }
        assert_eq!(Code::from_text("from.the.future"), PROTOCOL_UNKNOWN_CODE);
    }

    #[test]
    fn a_refusal_says_what_where_and_what_was_expected() {
        let refusal = Refusal::new(VERIFY_PCR_MISMATCH, "aa").at("PCR 7").expected("bb");
        assert_eq!(refusal.to_string(), "verify.pcr_mismatch: PCR 7: aa (expected bb)");
    }
}
