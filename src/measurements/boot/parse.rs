//! Reading a log: a header and TCG_PCR_EVENT2 records (PFP 1.06, 10.2.2), or TCG_PCR_EVENT records
//! of SHA-1 only (10.2.1, the format of TPM 1.2).

use super::header::{Header, SIGNATURE};
use super::{BootEvent, BootLog, DATA_LIMIT, EVENTS_LIMIT, LIMIT};
use crate::codes::{self, Refusal};
use crate::measurements::cursor::Cursor;
use crate::measurements::{EventType, LogHash};
use crate::tpm::PCR_COUNT;

/// What the data of the event begins with that states TPM2_Startup's locality (PFP 1.06, 10.4.5.3).
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";
/// What stands for a PCR where there is none: Windows puts records for itself into the log so.
const NO_PCR: u32 = u32::MAX;

/// Reads a log.
///
/// # Errors
/// Those of [`BootLog::parse`].
pub fn parse(bytes: &[u8]) -> Result<BootLog, Refusal> {
    if bytes.len() > LIMIT {
        return Err(Refusal::new(codes::MEASUREMENTS_TOO_LARGE, format!("{} bytes", bytes.len()))
            .at("boot log")
            .expected(format!("at most {LIMIT}")));
    }
    let mut reader = Reader { cursor: Cursor::new(bytes), log: BootLog::default(), number: 0, extended_pcr_0: false };
    if bytes.is_empty() {
        return Err(reader.refusal("an empty file", "a log"));
    }
    match reader.header()? {
        Some(header) => reader.crypto_agile(&header)?,
        None => reader.sha1_only()?,
    }
    Ok(reader.log)
}

/// The log so far, and where reading stands.
struct Reader<'a> {
    cursor: Cursor<'a>,
    log: BootLog,
    /// The number of the event that is read.
    number: u32,
    /// Whether an event extended PCR 0 already.
    extended_pcr_0: bool,
}

impl Reader<'_> {
    /// The header, if the log begins with one.
    fn header(&mut self) -> Result<Option<Header>, Refusal> {
        let mut ahead = self.cursor;
        let Some((pcr, kind, digest, data)) = legacy(&mut ahead) else { return Ok(None) };
        if kind != EventType::NO_ACTION || !data.starts_with(SIGNATURE) {
            return Ok(None);
        }
        let (header, outside) = Header::parse(data, ahead.rest())
            .map_err(|found| self.refusal(&found, "a TCG_EfiSpecIDEvent as PFP 10.4.5.1 has it"))?;
        if pcr != 0 || digest != [0; 20] {
            self.log.notes.push("the header's PCR and digest are not zero".to_owned());
        }
        ahead.take(outside);
        if outside > 0 {
            self.log.notes.push("the header's size leaves out the vendor's information".to_owned());
        }
        self.log.banks = header.algorithms.iter().filter_map(|(id, _)| LogHash::from_algorithm(*id)).collect();
        for (id, size) in &header.algorithms {
            if LogHash::from_algorithm(*id).is_none() {
                self.log.notes.push(format!("the bank of algorithm {id:#06x} ({size} bytes) is not read"));
            }
        }
        self.push(Some(0), kind, Vec::new(), data.to_vec())?;
        self.cursor = ahead;
        Ok(Some(header))
    }

    fn crypto_agile(&mut self, header: &Header) -> Result<(), Refusal> {
        while !self.at_end()? {
            let mut ahead = self.cursor;
            let (pcr, kind) = self.pcr_and_type(&mut ahead)?;
            let digests = self.digests(&mut ahead, header, kind)?;
            let data = self.data(&mut ahead)?;
            self.push(pcr, kind, digests, data)?;
            self.cursor = ahead;
        }
        self.keep_whole_banks();
        Ok(())
    }

    fn sha1_only(&mut self) -> Result<(), Refusal> {
        self.log.sha1_only = true;
        self.log.banks = vec![LogHash::Sha1];
        self.log.notes.push("SHA-1 only: the log has the format of TPM 1.2".to_owned());
        while !self.at_end()? {
            let mut ahead = self.cursor;
            let (pcr, kind) = self.pcr_and_type(&mut ahead)?;
            let digest = ahead.take(LogHash::Sha1.size()).ok_or_else(|| self.cut_off("digest"))?;
            let data = self.data(&mut ahead)?;
            let digests = match kind {
                EventType::NO_ACTION => Vec::new(),
                _ => vec![(LogHash::Sha1, digest.to_vec())],
            };
            self.push(pcr, kind, digests, data)?;
            self.cursor = ahead;
        }
        match self.log.events.is_empty() {
            true => Err(self.refusal("nothing but padding", "a log")),
            false => Ok(()),
        }
    }

    /// Whether the log ends here. Padding of ones (CCEL tables) or zeros up to the end is cut.
    fn at_end(&mut self) -> Result<bool, Refusal> {
        let rest = self.cursor.rest();
        let Some(first) = rest.first() else { return Ok(true) };
        if matches!(first, 0 | 0xFF) && rest.iter().all(|byte| byte == first) {
            let words =
                format!("{} bytes of padding ({first:#04x}) were cut at byte {}", rest.len(), self.cursor.offset());
            self.log.notes.push(words);
            return Ok(true);
        }
        match usize::try_from(self.number).map_or(true, |number| number >= EVENTS_LIMIT) {
            true => Err(Refusal::new(codes::MEASUREMENTS_TOO_LARGE, format!("more than {EVENTS_LIMIT} events"))
                .at(self.place())
                .expected(format!("at most {EVENTS_LIMIT}"))),
            false => Ok(false),
        }
    }

    /// A PCR from 0 to 23 and a type; no PCR where the record is for somebody else.
    fn pcr_and_type(&self, ahead: &mut Cursor<'_>) -> Result<(Option<u8>, EventType), Refusal> {
        let pcr = ahead.u32().ok_or_else(|| self.cut_off("PCR"))?;
        let kind = EventType(ahead.u32().ok_or_else(|| self.cut_off("type"))?);
        match u8::try_from(pcr) {
            Ok(small) if pcr < u32::from(PCR_COUNT) => Ok((Some(small), kind)),
            _ if pcr == NO_PCR && kind == EventType::NO_ACTION => Ok((None, kind)),
            _ => Err(self.refusal(&format!("PCR {pcr}"), "a PCR from 0 to 23")),
        }
    }

    /// The digests of a TCG_PCR_EVENT2: each of an algorithm the header names, none twice.
    fn digests(
        &self,
        ahead: &mut Cursor<'_>,
        header: &Header,
        kind: EventType,
    ) -> Result<Vec<(LogHash, Vec<u8>)>, Refusal> {
        let count = ahead.u32().ok_or_else(|| self.cut_off("number of digests"))?;
        let named = header.algorithms.len();
        if usize::try_from(count).map_or(true, |count| count > named) || (count == 0 && kind != EventType::NO_ACTION) {
            return Err(self.refusal(&format!("{count} digests"), &format!("1 to {named}, as the header says")));
        }
        let mut seen = Vec::new();
        let mut digests = Vec::new();
        for _ in 0..count {
            let algorithm = ahead.u16().ok_or_else(|| self.cut_off("digest's algorithm"))?;
            let size = header.size(algorithm).ok_or_else(|| {
                self.refusal(&format!("a digest of algorithm {algorithm:#06x}"), "an algorithm the header names")
            })?;
            if seen.contains(&algorithm) {
                return Err(self.refusal(&format!("two digests of algorithm {algorithm:#06x}"), "one for each bank"));
            }
            seen.push(algorithm);
            let digest = ahead.take(size).ok_or_else(|| self.cut_off("digest"))?;
            if let (Some(hash), true) = (LogHash::from_algorithm(algorithm), kind != EventType::NO_ACTION) {
                digests.push((hash, digest.to_vec()));
            }
        }
        digests.sort_by_key(|(hash, _)| self.log.banks.iter().position(|bank| bank == hash));
        Ok(digests)
    }

    fn data(&self, ahead: &mut Cursor<'_>) -> Result<Vec<u8>, Refusal> {
        let size = ahead.u32().ok_or_else(|| self.cut_off("size of the data"))?;
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > DATA_LIMIT {
            return Err(self.refusal(&format!("{size} bytes of data"), &format!("at most {DATA_LIMIT}")));
        }
        let left = ahead.rest().len();
        ahead.take(size).map(<[u8]>::to_vec).ok_or_else(|| {
            self.refusal(&format!("{size} bytes of data, of which {left} are there"), "a log that ends with an event")
        })
    }

    fn push(
        &mut self,
        pcr: Option<u8>,
        kind: EventType,
        digests: Vec<(LogHash, Vec<u8>)>,
        data: Vec<u8>,
    ) -> Result<(), Refusal> {
        let (number, offset) = (self.number, self.cursor.offset());
        match pcr {
            // It extended nothing, and no PCR's events have it among them.
            None => self.log.notes.push(format!("event {number} (EV_NO_ACTION beside no PCR) was left out")),
            Some(pcr) => {
                match (pcr, kind) {
                    (_, EventType::NO_ACTION) if data.starts_with(STARTUP_LOCALITY) => {
                        self.startup_locality(pcr, &data)?;
                    }
                    (0, EventType::EFI_HCRTM_EVENT) => self.hcrtm()?,
                    _ => {}
                }
                self.extended_pcr_0 |= pcr == 0 && kind != EventType::NO_ACTION;
                self.log.events.push(BootEvent { number, offset, pcr, kind, digests, data });
            }
        }
        // At most EVENTS_LIMIT.
        self.number = number.saturating_add(1);
        Ok(())
    }

    /// TPM2_Startup came from this locality: PCR 0 began with it. It can only have come first.
    fn startup_locality(&mut self, pcr: u8, data: &[u8]) -> Result<(), Refusal> {
        let locality = match data.get(STARTUP_LOCALITY.len()..) {
            Some([locality @ (0 | 3 | 4)]) => *locality,
            Some([other]) => {
                return Err(self.refusal(&format!("StartupLocality {other}"), "0, 3, or 4 after an H-CRTM"));
            }
            _ => {
                let found = format!("a StartupLocality event of {} bytes", data.len());
                return Err(self.refusal(&found, "17"));
            }
        };
        if pcr != 0 {
            return Err(self.refusal(&format!("StartupLocality beside PCR {pcr}"), "PCR 0"));
        }
        if self.extended_pcr_0 {
            return Err(self.refusal("StartupLocality after PCR 0 was extended", "it before that"));
        }
        match self.log.startup_locality.replace(locality) {
            None => Ok(()),
            Some(first) => Err(self.refusal("a second StartupLocality", &format!("the first, {first}, alone"))),
        }
    }

    /// An H-CRTM measures through locality 4 before TPM2_Startup (TPM 2.0 Part 1, 34.3): PCR 0
    /// begins with 4, and this is what it was extended with first.
    fn hcrtm(&self) -> Result<(), Refusal> {
        if self.extended_pcr_0 {
            return Err(self.refusal("an H-CRTM event after PCR 0 was extended", "it before that"));
        }
        match self.log.startup_locality {
            None | Some(4) => Ok(()),
            Some(locality) => {
                Err(self.refusal(&format!("an H-CRTM event after StartupLocality {locality}"), "StartupLocality 4"))
            }
        }
    }

    /// Leaves the banks that every event has a digest for.
    fn keep_whole_banks(&mut self) {
        let BootLog { banks, events, notes, .. } = &mut self.log;
        banks.retain(|bank| {
            let lacking = events.iter().find(|event| event.extends() && event.digest(*bank).is_none());
            if let Some(event) = lacking {
                notes.push(format!("the bank {bank} is not whole: event {} has no digest for it", event.number));
            }
            lacking.is_none()
        });
        let place = |hash: &LogHash| banks.iter().position(|bank| bank == hash).unwrap_or(usize::MAX);
        for event in events {
            event.digests.sort_by_key(|(hash, _)| place(hash));
        }
    }

    fn place(&self) -> String {
        format!("boot log, event {}, byte {}", self.number, self.cursor.offset())
    }

    fn refusal(&self, found: &str, expected: &str) -> Refusal {
        Refusal::new(codes::MEASUREMENTS_BOOT_LOG, found).at(self.place()).expected(expected)
    }

    fn cut_off(&self, field: &str) -> Refusal {
        self.refusal(&format!("the log ends within the event's {field}"), "a log that ends with an event")
    }
}

/// A TCG_PCR_EVENT: PCR, type, SHA-1 digest, data.
fn legacy<'a>(cursor: &mut Cursor<'a>) -> Option<(u32, EventType, [u8; 20], &'a [u8])> {
    let (pcr, kind, digest) = (cursor.u32()?, EventType(cursor.u32()?), cursor.array()?);
    let size = usize::try_from(cursor.u32()?).ok()?;
    Some((pcr, kind, digest, cursor.take(size)?))
}
