//! TPMS_ATTEST: what a restricted key signs (Part 2, 10.12).

use super::reader::Reader;
use crate::codes::{self, Refusal};
use crate::tpm::pcr::{Bank, PcrSelection, ResetCounts};

/// TPM_GENERATED_VALUE (Part 2, 6.2): a restricted key signs no caller's bytes that begin so.
const GENERATED: u32 = 0xFF54_4347;
/// TPM_ST_ATTEST_CERTIFY and TPM_ST_ATTEST_QUOTE (Part 2, 6.9).
const CERTIFY: u16 = 0x8017;
const QUOTE: u16 = 0x8018;
/// The largest TPM2B_NAME: an algorithm and a SHA-512 digest.
const NAME_LIMIT: usize = 2 + 64;
/// The largest TPM2B_DATA: sizeof(TPMT_HA).
const DATA_LIMIT: usize = 2 + 64;

/// A TPMS_ATTEST, parsed. It is authentic only once its signature was verified over the same bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attest {
    /// The qualified name of the key that signed.
    pub qualified_signer: Vec<u8>,
    /// The caller's qualifying data.
    pub extra_data: Vec<u8>,
    /// The TPM's clock when it signed.
    pub clock_info: ClockInfo,
    /// The TPM's firmware version; clear for keys of the endorsement hierarchy.
    pub firmware_version: u64,
    /// What is attested.
    pub body: AttestBody,
}

/// TPMS_CLOCK_INFO (Part 2, 10.11.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockInfo {
    /// Milliseconds for which the TPM was powered; it persists, and may fall back after a power cut.
    pub clock_ms: u64,
    /// Resets and restarts.
    pub counts: ResetCounts,
    /// Whether the clock is surely past every value reported before.
    pub safe: bool,
}

/// The attested part (TPMU_ATTEST, Part 2, 10.12.7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AttestBody {
    /// TPMS_QUOTE_INFO (10.12.4).
    Quote {
        /// Exactly one bank, at least one PCR.
        selection: PcrSelection,
        /// Hash, by the signature scheme's algorithm, of the selected values in ascending order.
        pcr_digest: Vec<u8>,
    },
    /// TPMS_CERTIFY_INFO (10.12.3).
    Certify {
        /// The certified object's name.
        name: Vec<u8>,
        /// Its qualified name.
        qualified_name: Vec<u8>,
    },
}

impl Attest {
    /// Parses a TPMS_ATTEST of the types quote and certify.
    ///
    /// # Errors
    /// [`codes::VERIFY_QUOTE_MAGIC`], [`codes::VERIFY_QUOTE_TYPE`] for any other type,
    /// [`codes::VERIFY_QUOTE_TRAILING`], [`codes::VERIFY_SELECTION_EMPTY`],
    /// [`codes::VERIFY_SELECTION_DUPLICATE`], [`codes::VERIFY_SELECTION`] for more than one bank or
    /// one that isn't accepted, [`codes::VERIFY_QUOTE_MALFORMED`] for anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut reader = Reader::new(bytes, codes::VERIFY_QUOTE_MALFORMED);
        let kind = generated(&mut reader)?;
        if kind != QUOTE && kind != CERTIFY {
            return Err(Self::wrong_type(kind));
        }
        let qualified_signer = reader.sized(NAME_LIMIT, "qualifiedSigner")?.to_vec();
        let extra_data = reader.sized(DATA_LIMIT, "extraData")?.to_vec();
        let clock_info = clock_info(&mut reader)?;
        let firmware_version = reader.u64("firmwareVersion")?;
        let body = if kind == QUOTE {
            let selection = selection(&mut reader)?;
            let pcr_digest = reader.sized(64, "pcrDigest")?.to_vec();
            AttestBody::Quote { selection, pcr_digest }
        } else {
            let name = reader.sized(NAME_LIMIT, "name")?.to_vec();
            let qualified_name = reader.sized(NAME_LIMIT, "qualifiedName")?.to_vec();
            AttestBody::Certify { name, qualified_name }
        };
        at_end(&reader)?;
        Ok(Self { qualified_signer, extra_data, clock_info, firmware_version, body })
    }

    /// The quoted selection and digest.
    ///
    /// # Errors
    /// [`codes::VERIFY_QUOTE_TYPE`] if this isn't a quote.
    pub fn quoted(&self) -> Result<(PcrSelection, &[u8]), Refusal> {
        match &self.body {
            AttestBody::Quote { selection, pcr_digest } => Ok((*selection, pcr_digest)),
            AttestBody::Certify { .. } => Err(Self::wrong_type(CERTIFY)),
        }
    }

    fn wrong_type(kind: u16) -> Refusal {
        Refusal::new(codes::VERIFY_QUOTE_TYPE, format!("{kind:#06x}")).at("byte 4").expected(format!("{QUOTE:#06x}"))
    }
}

/// A quote as other tools make them: over several banks, SHA-1 among them. What it covers is believed
/// only together: see `verify::quoted`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quote {
    /// The qualified name of the key that signed.
    pub qualified_signer: Vec<u8>,
    /// The caller's qualifying data.
    pub extra_data: Vec<u8>,
    /// The TPM's clock when it signed.
    pub clock_info: ClockInfo,
    /// The TPM's firmware version; clear for keys of the endorsement hierarchy.
    pub firmware_version: u64,
    /// The banks in their order, each with its TPM_ALG_ID and the three bytes of pcrSelect.
    pub banks: Vec<(u16, [u8; 3])>,
    /// Hash, by the signature scheme's algorithm, of the selected values: bank by bank, each ascending.
    pub pcr_digest: Vec<u8>,
}

impl Quote {
    /// Parses a TPMS_ATTEST of the type quote.
    ///
    /// # Errors
    /// As [`Attest::parse`], but several banks of any kind are read.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut reader = Reader::new(bytes, codes::VERIFY_QUOTE_MALFORMED);
        let kind = generated(&mut reader)?;
        if kind != QUOTE {
            return Err(Attest::wrong_type(kind));
        }
        let quote = Self {
            qualified_signer: reader.sized(NAME_LIMIT, "qualifiedSigner")?.to_vec(),
            extra_data: reader.sized(DATA_LIMIT, "extraData")?.to_vec(),
            clock_info: clock_info(&mut reader)?,
            firmware_version: reader.u64("firmwareVersion")?,
            banks: banks(&mut reader)?,
            pcr_digest: reader.sized(64, "pcrDigest")?.to_vec(),
        };
        at_end(&reader)?;
        Ok(quote)
    }
}

/// The type of what a TPM generated.
fn generated(reader: &mut Reader<'_>) -> Result<u16, Refusal> {
    let magic = reader.u32("magic")?;
    if magic != GENERATED {
        return Err(Refusal::new(codes::VERIFY_QUOTE_MAGIC, format!("{magic:#010x}"))
            .at("byte 0")
            .expected(format!("{GENERATED:#010x}")));
    }
    reader.u16("type")
}

fn at_end(reader: &Reader<'_>) -> Result<(), Refusal> {
    match reader.left() {
        0 => Ok(()),
        left => Err(Refusal::new(codes::VERIFY_QUOTE_TRAILING, format!("{left} more bytes"))
            .at(format!("byte {}", reader.offset()))),
    }
}

fn clock_info(reader: &mut Reader<'_>) -> Result<ClockInfo, Refusal> {
    let clock_ms = reader.u64("clock")?;
    let counts = ResetCounts { reset: reader.u32("resetCount")?, restart: reader.u32("restartCount")? };
    let at = reader.clone();
    let safe = match reader.u8("safe")? {
        0 => false,
        1 => true,
        other => return Err(at.refuse(format!("safe is {other}")).expected("0 or 1")),
    };
    Ok(ClockInfo { clock_ms, counts, safe })
}

/// TPML_PCR_SELECTION of one bank that is accepted.
fn selection(reader: &mut Reader<'_>) -> Result<PcrSelection, Refusal> {
    let start = reader.clone();
    let refuse = |code, found: String| Refusal::new(code, found).at(format!("byte {}", start.offset()));
    let banks = banks(reader)?;
    let [(algorithm, bitmap)] = banks.as_slice() else {
        return Err(refuse(codes::VERIFY_SELECTION, format!("{} banks", banks.len())).expected("exactly one"));
    };
    let bank = Bank::from_algorithm(*algorithm).ok_or_else(|| {
        refuse(codes::VERIFY_SELECTION, format!("bank {algorithm:#06x}")).expected("sha256, sha384 or sha512")
    })?;
    let [a, b, c] = *bitmap;
    let mask = u32::from_le_bytes([a, b, c, 0]);
    PcrSelection::new(bank, (0..24).filter(|pcr| mask & (1 << pcr) != 0))
        .map_err(|what| refuse(codes::VERIFY_SELECTION_EMPTY, what))
}

/// TPML_PCR_SELECTION (Part 2, 10.9.7), each bank with the three bytes of a PC client.
fn banks(reader: &mut Reader<'_>) -> Result<Vec<(u16, [u8; 3])>, Refusal> {
    /// TPM_NUM_PCR_BANKS of the reference implementation's largest build.
    const BANKS: u32 = 16;
    let start = reader.clone();
    let refuse = |code, found: String| Refusal::new(code, found).at(format!("byte {}", start.offset()));
    let count = reader.u32("number of banks")?;
    if count > BANKS {
        return Err(start.refuse(format!("{count} banks")).expected(format!("at most {BANKS}")));
    }
    let mut banks: Vec<(u16, [u8; 3])> = Vec::new();
    for _ in 0..count {
        let algorithm = reader.u16("bank")?;
        let at = reader.clone();
        let size = usize::from(reader.u8("sizeofSelect")?);
        let Ok(bitmap) = <[u8; 3]>::try_from(reader.take(size, "pcrSelect")?) else {
            return Err(at.refuse(format!("{size} bytes of pcrSelect")).expected("3"));
        };
        if banks.iter().any(|(seen, _)| *seen == algorithm) {
            return Err(refuse(codes::VERIFY_SELECTION_DUPLICATE, format!("bank {algorithm:#06x} twice")));
        }
        banks.push((algorithm, bitmap));
    }
    if banks.iter().all(|(_, bitmap)| bitmap.iter().all(|byte| *byte == 0)) {
        return Err(refuse(codes::VERIFY_SELECTION_EMPTY, format!("{count} banks, no PCR")));
    }
    Ok(banks)
}
