//! Response codes in words, and what each means for the connection.

use tss_esapi::constants::response_code::Tss2ResponseCode;

use super::TpmError;

/// A request to the TPM that failed.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// What the caller is told.
    pub error: TpmError,
    /// Whether keys and session are gone or in doubt, so that the TPM must be opened again.
    pub lost: bool,
    /// TSS2_RC, where there was one.
    pub code: Option<u32>,
}

impl Fault {
    /// The TPM isn't usable now and must be opened again.
    pub fn lost(words: impl Into<String>) -> Self {
        Self { error: TpmError::Unavailable(words.into()), lost: true, code: None }
    }

    /// The TPM understood and refused, or would have to.
    pub fn refused(command: &str, reason: impl Into<String>) -> Self {
        let error = TpmError::Refused { command: command.to_owned(), reason: reason.into() };
        Self { error, lost: false, code: None }
    }

    /// Whether the code blames an authorisation session (Part 2, 6.6.3: format one, session number).
    pub fn blames_session(&self) -> bool {
        self.code.and_then(tpm_code).is_some_and(|code| code & 0x8C0 == 0x880)
    }

    /// Whether the command was about something that isn't in the TPM: TPM_RC_HANDLE at whatever place, or a
    /// reference to a session or key that is gone (Part 2, 6.6.3).
    pub fn names_nothing(&self) -> bool {
        self.code
            .and_then(tpm_code)
            .is_some_and(|code| code & 0xBF == 0x8B || matches!(code, 0x910..=0x916 | 0x918..=0x91E))
    }

    /// Whether the first handle of the command names nothing that exists.
    pub fn no_such_handle(&self) -> bool {
        self.code.and_then(tpm_code) == Some(0x18B)
    }
}

impl From<TpmError> for Fault {
    fn from(error: TpmError) -> Self {
        Self { error, lost: false, code: None }
    }
}

/// Codes of TPM 2.0 Part 2, 6.6.3 that are told apart here.
pub(super) const INITIALIZE: u32 = 0x100;
const FAILURE: u32 = 0x101;
pub(super) const LOCKOUT: u32 = 0x921;
const RETRY: u32 = 0x922;
const YIELDED: u32 = 0x908;
const TESTING: u32 = 0x90A;
const TPM_LAYER: u32 = 0;
/// Resource managers in the kernel and in user space answer for the TPM in these layers.
const RESOURCE_MANAGER_LAYERS: [u32; 2] = [11, 12];

/// The TSS2_RC of an error; none if the Rust layer made it.
pub(super) fn code(error: &tss_esapi::Error) -> Option<u32> {
    let tss_esapi::Error::Tss2Error(response) = error else { return None };
    // The number itself is private there; its text form is not.
    let text = match response {
        Tss2ResponseCode::Success => return None,
        Tss2ResponseCode::FormatZero(code) => code.to_string(),
        Tss2ResponseCode::FormatOne(code) => code.to_string(),
    };
    u32::from_str_radix(text.rsplit_once("0x")?.1, 16).ok()
}

/// Whether the same command may succeed in a moment.
pub(super) fn is_busy(code: u32) -> bool {
    tpm_code(code).is_some_and(|code| matches!(code, RETRY | YIELDED | TESTING))
}

/// What a failed call means. Lockout is answered by the caller, who can ask the TPM for how long.
pub(super) fn fault(command: &str, error: &tss_esapi::Error) -> Fault {
    let Some(full) = code(error) else {
        // The Rust layer could not read what libtss2 returned: nothing can be concluded from it.
        return Fault::lost(format!("the answer to {command} can't be read: {error}"));
    };
    let refused = |reason: String| TpmError::Refused { command: command.to_owned(), reason };
    let Some(tpm) = tpm_code(full) else {
        let words = format!("{command} failed in {}: {} ({full:#010x})", layer_name(full), base_words(full & 0xFFFF));
        return Fault { error: TpmError::Unavailable(words), lost: true, code: Some(full) };
    };
    let unavailable = |words: &str| TpmError::Unavailable(format!("{command}: {words} ({tpm:#05x})"));
    let (error, lost) = match tpm {
        INITIALIZE => (TpmError::Reset, true),
        FAILURE => (unavailable("the TPM is in failure mode and wants a power cycle"), true),
        0x910..=0x916 | 0x918..=0x91E => (TpmError::Reset, true),
        LOCKOUT => (TpmError::Lockout { seconds: 0 }, false),
        0x12E | 0x130 => (unavailable("the TPM wants a restart"), true),
        0x901 => (unavailable("the gap between saved contexts is too large"), true),
        0x902 | 0x904 | 0x906 => (
            unavailable(
                "the TPM has no room for another key; does another process hold keys without a resource manager?",
            ),
            false,
        ),
        0x903 | 0x905 => {
            (unavailable("the TPM has no room for another session; does another process leak sessions?"), false)
        }
        0x909 => (unavailable("the command was cancelled"), false),
        0x920 => (unavailable("the TPM limits the rate of NV access to prevent wear"), false),
        0x923 => (unavailable("the TPM's NV memory can't be reached now"), false),
        RETRY | YIELDED | TESTING => (unavailable("the TPM is busy"), false),
        _ if tpm & 0x80 != 0 => {
            // A vanished handle is no refusal: whatever took it away, opening again shows it.
            let handle = tpm & 0x3F == 0x0B && tpm & 0x40 == 0;
            match handle {
                true => (unavailable("a key or session is no longer in the TPM"), true),
                false => (refused(format_one_words(tpm)), false),
            }
        }
        _ => (refused(format!("{} ({tpm:#05x})", format_zero_words(tpm))), false),
    };
    Fault { error, lost, code: Some(full) }
}

fn layer(code: u32) -> u32 {
    (code >> 16) & 0xFF
}

/// The TPM's own code, if the TPM or a resource manager in its place made it.
fn tpm_code(code: u32) -> Option<u32> {
    (layer(code) == TPM_LAYER || RESOURCE_MANAGER_LAYERS.contains(&layer(code))).then_some(code & 0xFFF)
}

fn layer_name(code: u32) -> &'static str {
    match layer(code) {
        7 => "libtss2-esys",
        8 => "libtss2-sys",
        9 => "libtss2-mu",
        10 => "the connection to the TPM",
        _ => "libtss2",
    }
}

/// TSS2_BASE_RC_* (TCG TSS 2.0 Overview and Common Structures, 2.3).
fn base_words(code: u32) -> String {
    match code {
        1 => "general failure",
        3 => "bad context",
        6 => "buffer too small",
        7 => "called out of order",
        8 => "no connection",
        9 => "try again",
        10 => "input/output error",
        17 | 19 => "malformed answer",
        20..=22 => "unusable module",
        23 => "out of memory",
        27 => "the answer's HMAC is wrong: it was altered on its way, or another TPM answered",
        _ => return format!("code {code}"),
    }
    .to_owned()
}

fn format_zero_words(code: u32) -> &'static str {
    match code {
        0x120 => "the command is disabled",
        0x128 => "PCRs changed since they were checked",
        0x12F => "the authorisation isn't available",
        0x143 => "the TPM doesn't know the command",
        0x146 => "outside the NV index",
        0x148 => "the NV index is locked",
        0x149 => "the NV index may not be accessed this way",
        0x14A => "the NV index was never written",
        0x14B => "no space left in NV",
        0x14C => "already defined",
        _ if code & 0x400 != 0 => "a code of the manufacturer's own",
        _ => "see TPM 2.0 Part 2, 6.6.3",
    }
}

fn format_one_words(code: u32) -> String {
    let number = (code >> 8) & 0xF;
    let place = match (code & 0x40 != 0, number) {
        (true, number) => format!("parameter {number}"),
        (false, number @ 1..=7) => format!("handle {number}"),
        (false, number @ 9..) => format!("session {}", number - 8),
        (false, _) => "no particular place".to_owned(),
    };
    let words = match code & 0x3F {
        0x01 => "the asymmetric algorithm is not supported",
        0x02 => "inconsistent attributes",
        0x03 => "the hash algorithm is not supported",
        0x04 => "the value is out of range",
        0x05 => "the hierarchy is disabled or the wrong one",
        0x07 => "the key size is not supported",
        0x0A => "the wrong type",
        0x0E | 0x22 => "the authorisation is wrong (is an authorisation value set on the hierarchy?)",
        0x0F => "the nonce is wrong",
        0x12 => "the scheme is not supported",
        0x15 => "the size is wrong",
        0x16 => "the symmetric algorithm is not supported",
        0x1C => "the key is not suitable",
        0x1D => "the policy doesn't hold",
        0x1F => "the integrity check failed",
        0x20 => "the ticket is invalid",
        0x26 => "the curve is not supported",
        0x27 => "the point is not on the curve",
        _ => "see TPM 2.0 Part 2, 6.6.3",
    };
    format!("{words}, at {place} ({code:#05x})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gone_sessions_and_keys_mean_a_reset_and_lost_connections_mean_nothing() {
        // There is no public way to make a tss_esapi error of a chosen code: the tests with a
        // real TPM hold `fault`; here its parts.
        assert!(is_busy(RETRY) && is_busy(YIELDED) && is_busy(TESTING));
        assert!(is_busy(0x000B_0000 | RETRY));
        assert!(!is_busy(0x000A_000A));
        assert_eq!(tpm_code(0x0007_001B), None);
        assert_eq!(tpm_code(0x000C_0902), Some(0x902));
    }

    #[test]
    fn session_blame_is_told_from_parameter_and_handle_blame() {
        let with = |code| Fault { code: Some(code), ..Fault::lost("") };
        assert!(with(0x98E).blames_session());
        assert!(!with(0x18E).blames_session());
        assert!(!with(0x1C4).blames_session());
        assert!(!with(0x921).blames_session());
        assert!(!with(0x0007_098E).blames_session());
    }

    #[test]
    fn what_is_gone_is_told_from_what_is_refused() {
        let with = |code| Fault { code: Some(code), ..Fault::lost("") };
        // TPM2_FlushContext names its handle as a parameter, TPM2_ReadPublic as a handle.
        assert!(with(0x1CB).names_nothing() && with(0x18B).names_nothing() && with(0x910).names_nothing());
        assert!(!with(0x1CA).names_nothing() && !with(0x98E).names_nothing() && !with(0x101).names_nothing());
    }

    #[test]
    fn places_are_named() {
        assert!(format_one_words(0x1DF).contains("parameter 1"));
        assert!(format_one_words(0x9A2).contains("session 1"));
        assert!(format_one_words(0x18B).contains("handle 1"));
    }
}
