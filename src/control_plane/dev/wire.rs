//! Raw TPM 2.0 commands and answers (Part 3), for the development TPM and for tests.
//!
//! Only password sessions with empty authorization: what is sent here carries no secret.

use std::collections::BTreeMap;

use crate::codes::{self, Refusal};
use crate::tpm::{Bank, PcrSelection};

/// The size of a command or response header: tag, size, code (Part 1, 18.3).
pub const HEADER: usize = 10;

/// The largest frame read from either side, in bytes. A PC client TPM's own limit is 4096.
pub const FRAME_LIMIT: usize = 64 << 10;

const TAG_NO_SESSIONS: u16 = 0x8001;
const TAG_SESSIONS: u16 = 0x8002;

/// TPM_RH_OWNER.
pub const OWNER: u32 = 0x4000_0001;
/// TPM_RH_ENDORSEMENT.
pub const ENDORSEMENT: u32 = 0x4000_000B;
/// TPM_RH_PLATFORM.
pub const PLATFORM: u32 = 0x4000_000C;

/// Command codes (Part 2, 6.5.2).
pub mod code {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const EVICT_CONTROL: u32 = 0x120;
    pub const NV_UNDEFINE_SPACE: u32 = 0x122;
    pub const NV_DEFINE_SPACE: u32 = 0x12A;
    pub const CREATE_PRIMARY: u32 = 0x131;
    pub const NV_WRITE: u32 = 0x137;
    pub const STARTUP: u32 = 0x144;
    pub const SHUTDOWN: u32 = 0x145;
    pub const ACTIVATE_CREDENTIAL: u32 = 0x147;
    pub const CERTIFY: u32 = 0x148;
    pub const QUOTE: u32 = 0x158;
    pub const SIGN: u32 = 0x15D;
    pub const FLUSH_CONTEXT: u32 = 0x165;
    pub const START_AUTH_SESSION: u32 = 0x176;
    pub const GET_CAPABILITY: u32 = 0x17A;
    pub const PCR_READ: u32 = 0x17E;
    pub const PCR_EXTEND: u32 = 0x182;
}

/// Response codes a TPM may answer at any time (Part 2, 6.6.3), for injection.
pub mod rc {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const SUCCESS: u32 = 0;
    pub const INITIALIZE: u32 = 0x100;
    pub const FAILURE: u32 = 0x101;
    pub const OBJECT_MEMORY: u32 = 0x902;
    pub const SESSION_MEMORY: u32 = 0x903;
    pub const YIELDED: u32 = 0x908;
    pub const TESTING: u32 = 0x90A;
    pub const NV_RATE: u32 = 0x920;
    pub const LOCKOUT: u32 = 0x921;
    pub const RETRY: u32 = 0x922;
    pub const NV_UNAVAILABLE: u32 = 0x923;
}

/// Whether state is kept or cleared: TPM_SU (Part 2, 6.10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartupType {
    /// TPM_SU_CLEAR: a TPM Reset or Restart.
    Clear,
    /// TPM_SU_STATE: resume from a Shutdown(STATE).
    State,
}

impl StartupType {
    const fn to_be_bytes(self) -> [u8; 2] {
        match self {
            Self::Clear => [0, 0],
            Self::State => [0, 1],
        }
    }
}

/// TPM2_Startup (Part 3, 9.3).
pub fn startup(kind: StartupType) -> Vec<u8> {
    plain(code::STARTUP, &[&kind.to_be_bytes()])
}

/// TPM2_Shutdown (Part 3, 9.4).
pub fn shutdown(kind: StartupType) -> Vec<u8> {
    plain(code::SHUTDOWN, &[&kind.to_be_bytes()])
}

/// TPM2_PCR_Extend (Part 3, 22.2) of one bank. `digest` must have the bank's size, or the TPM refuses.
pub fn pcr_extend(pcr: u8, bank: Bank, digest: &[u8]) -> Vec<u8> {
    authorized(code::PCR_EXTEND, &[u32::from(pcr)], &[&1u32.to_be_bytes(), &bank.algorithm().to_be_bytes(), digest])
}

/// TPM2_PCR_Read (Part 3, 22.4). A TPM returns at most 8 PCRs an answer.
pub fn pcr_read(selection: PcrSelection) -> Vec<u8> {
    let bank = selection.bank().algorithm().to_be_bytes();
    plain(code::PCR_READ, &[&1u32.to_be_bytes(), &bank, &[3], &selection.bitmap()])
}

/// What a PCR_Read answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PcrReadAnswer {
    /// pcrUpdateCounter.
    pub update_counter: u32,
    /// The values of the PCRs actually read, ascending.
    pub values: Vec<Vec<u8>>,
}

/// Parses the answer to [`pcr_read`].
///
/// # Errors
/// [`codes::TPM_REFUSED`] or [`codes::TPM_STRUCTURE`].
pub fn parse_pcr_read(response: &[u8]) -> Result<PcrReadAnswer, Refusal> {
    let mut reader = Reader::of_answer(response, "TPM2_PCR_Read")?;
    let update_counter = reader.u32()?;
    for _ in 0..reader.u32()? {
        reader.u16()?;
        let size = reader.u8()?;
        reader.take(usize::from(size))?;
    }
    let mut values = Vec::new();
    for _ in 0..reader.u32()? {
        values.push(reader.sized()?.to_vec());
    }
    Ok(PcrReadAnswer { update_counter, values })
}

/// TPM2_GetCapability(TPM_CAP_HANDLES) for the handles from `first` on, e.g. 0x0200_0000 for loaded
/// sessions, 0x8000_0000 for transient objects, 0x8100_0000 for persistent ones.
pub fn get_handles(first: u32) -> Vec<u8> {
    get_capability(1, first, 254)
}

/// Parses the answer to [`get_handles`].
///
/// # Errors
/// [`codes::TPM_REFUSED`] or [`codes::TPM_STRUCTURE`].
pub fn parse_handles(response: &[u8]) -> Result<Vec<u32>, Refusal> {
    let mut reader = capability_answer(response)?;
    (0..reader.u32()?).map(|_| reader.u32()).collect()
}

/// TPM2_GetCapability(TPM_CAP_TPM_PROPERTIES) for `count` properties from `first` on.
pub fn get_properties(first: u32, count: u32) -> Vec<u8> {
    get_capability(6, first, count)
}

/// Parses the answer to [`get_properties`]: property to value.
///
/// # Errors
/// [`codes::TPM_REFUSED`] or [`codes::TPM_STRUCTURE`].
pub fn parse_properties(response: &[u8]) -> Result<BTreeMap<u32, u32>, Refusal> {
    let mut reader = capability_answer(response)?;
    (0..reader.u32()?).map(|_| Ok((reader.u32()?, reader.u32()?))).collect()
}

/// The dictionary-attack state (Part 2, 6.13: TPM_PT_LOCKOUT_COUNTER to TPM_PT_LOCKOUT_RECOVERY).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DictionaryAttack {
    /// Failures counted now.
    pub failures: u32,
    /// Failures at which the TPM locks out.
    pub limit: u32,
    /// Seconds until one failure is forgotten.
    pub interval_seconds: u32,
    /// Seconds until the lockout authorization may be used again after it failed.
    pub recovery_seconds: u32,
}

/// Asks for [`DictionaryAttack`].
pub fn get_dictionary_attack() -> Vec<u8> {
    get_properties(0x20E, 4)
}

/// Parses the answer to [`get_dictionary_attack`].
///
/// # Errors
/// [`codes::TPM_REFUSED`], or [`codes::TPM_STRUCTURE`] if a property is missing.
pub fn parse_dictionary_attack(response: &[u8]) -> Result<DictionaryAttack, Refusal> {
    let properties = parse_properties(response)?;
    let property = |number: u32| {
        properties.get(&number).copied().ok_or_else(|| malformed(format!("property {number:#x} is missing")))
    };
    Ok(DictionaryAttack {
        failures: property(0x20E)?,
        limit: property(0x20F)?,
        interval_seconds: property(0x210)?,
        recovery_seconds: property(0x211)?,
    })
}

/// TPM2_FlushContext (Part 3, 28.4).
pub fn flush_context(handle: u32) -> Vec<u8> {
    plain(code::FLUSH_CONTEXT, &[&handle.to_be_bytes()])
}

/// TPM2_CreatePrimary (Part 3, 24.1) in `hierarchy` from a TPMT_PUBLIC template.
pub fn create_primary(hierarchy: u32, template: &[u8]) -> Vec<u8> {
    let sensitive = [0u8, 4, 0, 0, 0, 0];
    // No outside info, no PCRs at creation.
    authorized(code::CREATE_PRIMARY, &[hierarchy], &[&sensitive, &sized(template), &[0, 0], &[0, 0, 0, 0]])
}

/// Parses the answer to [`create_primary`]: the handle and the TPMT_PUBLIC.
///
/// # Errors
/// [`codes::TPM_REFUSED`] or [`codes::TPM_STRUCTURE`].
pub fn parse_create_primary(response: &[u8]) -> Result<(u32, Vec<u8>), Refusal> {
    let mut reader = Reader::of_answer(response, "TPM2_CreatePrimary")?;
    let handle = reader.u32()?;
    let _parameter_size = reader.u32()?;
    Ok((handle, reader.sized()?.to_vec()))
}

/// TPM2_EvictControl (Part 3, 28.5): removes a persistent object of the owner.
pub fn evict(persistent: u32) -> Vec<u8> {
    authorized(code::EVICT_CONTROL, &[OWNER, persistent], &[&persistent.to_be_bytes()])
}

/// TPM2_NV_DefineSpace (Part 3, 31.3) under the platform.
pub fn nv_define(index: u32, attributes: u32, size: u16) -> Vec<u8> {
    let mut public = Vec::new();
    public.extend(index.to_be_bytes());
    public.extend(Bank::Sha256.algorithm().to_be_bytes());
    public.extend(attributes.to_be_bytes());
    public.extend([0, 0]);
    public.extend(size.to_be_bytes());
    authorized(code::NV_DEFINE_SPACE, &[PLATFORM], &[&[0, 0], &sized(&public)])
}

/// TPM2_NV_Write (Part 3, 31.7) under the platform.
pub fn nv_write(index: u32, offset: u16, data: &[u8]) -> Vec<u8> {
    authorized(code::NV_WRITE, &[PLATFORM, index], &[&sized(data), &offset.to_be_bytes()])
}

/// TPM2_NV_UndefineSpace (Part 3, 31.4) under the platform.
pub fn nv_undefine(index: u32) -> Vec<u8> {
    authorized(code::NV_UNDEFINE_SPACE, &[PLATFORM, index], &[])
}

/// An answer that carries a response code and nothing else.
pub fn answer(code: u32) -> Vec<u8> {
    plain(code, &[])
}

/// The command code of a command or the response code of an answer; zero of a fragment.
pub fn header_code(frame: &[u8]) -> u32 {
    frame.get(6..HEADER).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// The whole frame's size as its header says.
///
/// # Errors
/// [`codes::TPM_STRUCTURE`] for a size below the header's or above [`FRAME_LIMIT`].
pub fn header_size(header: &[u8; HEADER]) -> Result<usize, Refusal> {
    let [_, _, a, b, c, d, ..] = *header;
    let size = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if (HEADER..=FRAME_LIMIT).contains(&size) {
        Ok(size)
    } else {
        Err(malformed(format!("a frame of {size} bytes")).expected(format!("{HEADER} to {FRAME_LIMIT}")))
    }
}

/// Checks that an answer is a success.
///
/// # Errors
/// [`codes::TPM_REFUSED`] with the response code, [`codes::TPM_STRUCTURE`] for a fragment.
pub fn check(response: &[u8], command: &str) -> Result<(), Refusal> {
    Reader::of_answer(response, command).map(|_| ())
}

/// A command's name as the specification writes it, for counts and messages.
pub fn name(code: u32) -> String {
    let name = match code {
        code::EVICT_CONTROL => "EvictControl",
        code::NV_UNDEFINE_SPACE => "NV_UndefineSpace",
        0x126 => "Clear",
        0x129 => "HierarchyChangeAuth",
        code::NV_DEFINE_SPACE => "NV_DefineSpace",
        code::CREATE_PRIMARY => "CreatePrimary",
        0x134 => "NV_Increment",
        0x136 => "NV_Extend",
        code::NV_WRITE => "NV_Write",
        0x139 => "DictionaryAttackLockReset",
        0x13D => "PCR_Reset",
        0x143 => "SelfTest",
        code::STARTUP => "Startup",
        code::SHUTDOWN => "Shutdown",
        code::ACTIVATE_CREDENTIAL => "ActivateCredential",
        code::CERTIFY => "Certify",
        0x149 => "PolicyNV",
        0x14C => "GetTime",
        0x14E => "NV_Read",
        0x151 => "PolicySecret",
        0x153 => "Create",
        0x156 => "Import",
        0x157 => "Load",
        code::QUOTE => "Quote",
        code::SIGN => "Sign",
        0x15E => "Unseal",
        0x161 => "ContextLoad",
        0x162 => "ContextSave",
        code::FLUSH_CONTEXT => "FlushContext",
        0x167 => "LoadExternal",
        0x168 => "MakeCredential",
        0x169 => "NV_ReadPublic",
        0x16A => "PolicyAuthorize",
        0x16C => "PolicyCommandCode",
        0x16D => "PolicyCounterTimer",
        0x171 => "PolicyOR",
        0x173 => "ReadPublic",
        code::START_AUTH_SESSION => "StartAuthSession",
        0x177 => "VerifySignature",
        code::GET_CAPABILITY => "GetCapability",
        0x17B => "GetRandom",
        0x17D => "Hash",
        code::PCR_READ => "PCR_Read",
        0x17F => "PolicyPCR",
        0x180 => "PolicyRestart",
        0x181 => "ReadClock",
        code::PCR_EXTEND => "PCR_Extend",
        0x189 => "PolicyGetDigest",
        0x18A => "TestParms",
        _ => return format!("TPM2 command {code:#x}"),
    };
    format!("TPM2_{name}")
}

fn get_capability(capability: u32, first: u32, count: u32) -> Vec<u8> {
    plain(code::GET_CAPABILITY, &[&capability.to_be_bytes(), &first.to_be_bytes(), &count.to_be_bytes()])
}

fn capability_answer(response: &[u8]) -> Result<Reader<'_>, Refusal> {
    let mut reader = Reader::of_answer(response, "TPM2_GetCapability")?;
    reader.u8()?;
    reader.u32()?;
    Ok(reader)
}

/// A frame without sessions.
fn plain(code: u32, parts: &[&[u8]]) -> Vec<u8> {
    frame(TAG_NO_SESSIONS, code, &parts.concat())
}

/// A command whose one authorization is the empty password (Part 1, 19.4).
fn authorized(code: u32, handles: &[u32], parameters: &[&[u8]]) -> Vec<u8> {
    const EMPTY_PASSWORD: [u8; 9] = [0x40, 0, 0, 9, 0, 0, 0, 0, 0];
    let mut body: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
    body.extend([0, 0, 0, 9]);
    body.extend(EMPTY_PASSWORD);
    body.extend(parameters.concat());
    frame(TAG_SESSIONS, code, &body)
}

fn frame(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    [&tag.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

/// A TPM2B: the size in 16 bits, then the bytes.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&size.to_be_bytes()[..], bytes].concat()
}

fn malformed(found: impl Into<String>) -> Refusal {
    Refusal::new(codes::TPM_STRUCTURE, found)
}

/// Reads big-endian fields; every step checks what is left.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The bytes after a successful answer's header.
    fn of_answer(response: &'a [u8], command: &str) -> Result<Self, Refusal> {
        let body = response
            .get(HEADER..)
            .ok_or_else(|| malformed(format!("{} bytes of an answer to {command}", response.len())))?;
        match header_code(response) {
            rc::SUCCESS => Ok(Self(body)),
            code => Err(Refusal::new(codes::TPM_REFUSED, format!("response code {code:#05x}")).at(command)),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| malformed(format!("{} bytes left, {count} announced", self.0.len())))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        self.take(N)?.try_into().map_err(|_| malformed("a field of another size"))
    }

    fn u8(&mut self) -> Result<u8, Refusal> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Refusal> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        self.array().map(u32::from_be_bytes)
    }

    fn sized(&mut self) -> Result<&'a [u8], Refusal> {
        let size = self.u16()?;
        self.take(usize::from(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_bytes_of_part_3() {
        assert_eq!(hex::encode(startup(StartupType::Clear)), "80010000000c000001440000");
        let selection = PcrSelection::new(Bank::Sha256, [0]).unwrap();
        assert_eq!(hex::encode(pcr_read(selection)), "8001000000140000017e00000001000b03010000");
        let extend = pcr_extend(7, Bank::Sha256, &[0xAA; 32]);
        assert_eq!(extend.len(), 10 + 4 + 4 + 9 + 4 + 2 + 32);
        assert_eq!(hex::encode(&extend[..33]), "80020000004100000182000000070000000940000009000000000000000001000b");
        assert_eq!(answer(rc::RETRY), hex::decode("80010000000a00000922").unwrap());
        assert_eq!(name(header_code(&extend)), "TPM2_PCR_Extend");
    }

    #[test]
    fn fragments_and_refusals_are_errors_and_never_panics() {
        let good = hex::decode(
            "80010000003e000000000000001400000001000b03010000000000010020\
             0000000000000000000000000000000000000000000000000000000000000000",
        )
        .unwrap();
        let answer_read = parse_pcr_read(&good).unwrap();
        assert_eq!((answer_read.update_counter, answer_read.values), (20, vec![vec![0; 32]]));
        for length in 0..good.len() {
            assert_eq!(parse_pcr_read(&good[..length]).unwrap_err().code, codes::TPM_STRUCTURE, "{length}");
        }
        assert_eq!(parse_pcr_read(&answer(rc::LOCKOUT)).unwrap_err().code, codes::TPM_REFUSED);
        let mut huge = answer(rc::SUCCESS);
        huge.extend([0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
        assert!(parse_handles(&huge).is_err());
        assert!(header_size(&[0; HEADER]).is_err());
    }
}
