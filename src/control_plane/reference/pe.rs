//! PE images as the firmware measures them: the Authenticode hash (Microsoft, Windows Authenticode
//! Portable Executable Signature Format, 1.0) and the sections.
//!
//! Strict on purpose: where two readers could see different images in the same bytes (sections that
//! overlap, a signature in the middle), there is no hash to predict.

use super::unusable;
use crate::codes::Refusal;
use crate::measurements::LogHash;

/// The largest image, in bytes: 1 GiB.
pub const LIMIT: u64 = 1 << 30;
/// The most sections: what loaders of PE take.
const SECTIONS_LIMIT: u16 = 96;
/// IMAGE_DIRECTORY_ENTRY_SECURITY: the signatures, which the hash leaves out.
const CERTIFICATES: usize = 4;

/// A PE image, read whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image<'a> {
    bytes: &'a [u8],
    /// Where the checksum is, which the hash leaves out: 4 bytes.
    checksum: usize,
    /// Where the certificate table's directory entry is: 8 bytes.
    directory: usize,
    headers: usize,
    /// The size of the signatures at the file's end.
    certificates: usize,
    /// In the order of the file's header.
    sections: Vec<Section<'a>>,
}

/// One section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Section<'a> {
    /// Its name, without the zeros behind it.
    pub name: &'a str,
    /// Its size in memory: what systemd-stub measures of it.
    pub memory: usize,
    offset: usize,
    raw: &'a [u8],
}

impl<'a> Image<'a> {
    /// Reads an image; `name` is the file's.
    ///
    /// # Errors
    /// [`crate::codes::ADMIN_INVALID`] naming the byte.
    pub fn parse(bytes: &'a [u8], name: &str) -> Result<Self, Refusal> {
        Reader { bytes, name }.image()
    }

    /// The Authenticode hash: what PCR 4 is extended with when the firmware starts the image.
    pub fn authenticode(&self, hash: LogHash) -> Vec<u8> {
        hash.digest(&self.hashed())
    }

    /// The section of this name.
    pub fn section(&self, name: &str) -> Option<&Section<'a>> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// All sections, in the order of the file's header.
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// The parts of the file that are hashed, in order. All ranges were checked at its reading.
    fn hashed(&self) -> Vec<&'a [u8]> {
        let part = |from: usize, to: usize| self.bytes.get(from..to).unwrap_or_default();
        let mut parts = vec![
            part(0, self.checksum),
            part(self.checksum + 4, self.directory),
            part(self.directory + 8, self.headers),
        ];
        let mut sections: Vec<&Section<'_>> = self.sections.iter().filter(|section| !section.raw.is_empty()).collect();
        sections.sort_by_key(|section| section.offset);
        let mut end = self.headers;
        for section in sections {
            parts.push(part(section.offset, section.offset + section.raw.len()));
            // The rule sums sizes: what lies between sections is hashed at the end, if at all.
            end += section.raw.len();
        }
        parts.push(part(end, self.bytes.len() - self.certificates));
        parts
    }
}

impl Section<'_> {
    /// Its contents in memory: the file's, cut or filled with zeros to its size there.
    pub fn in_memory(&self) -> Vec<u8> {
        let mut contents = self.raw.to_vec();
        contents.resize(self.memory, 0);
        contents
    }
}

struct Reader<'a, 'n> {
    bytes: &'a [u8],
    name: &'n str,
}

impl<'a> Reader<'a, '_> {
    fn image(&self) -> Result<Image<'a>, Refusal> {
        self.expect(0, b"MZ", "an image of DOS's format")?;
        let pe = self.size(0x3C)?;
        if pe >= self.bytes.len() {
            return Err(self.short(pe));
        }
        self.expect(pe, b"PE\0\0", "a PE signature")?;
        let count = self.u16(pe + 6)?;
        if !(1..=SECTIONS_LIMIT).contains(&count) {
            return Err(self.refuse(pe + 6, format!("{count} sections")).expected(format!("1 to {SECTIONS_LIMIT}")));
        }
        let (optional, optional_size) = (pe + 24, usize::from(self.u16(pe + 20)?));
        // Where the data directories begin: PE32 and PE32+.
        let directories = match self.u16(optional)? {
            0x10B => optional + 96,
            0x20B => optional + 112,
            magic => return Err(self.refuse(optional, format!("magic {magic:#06x}")).expected("0x010b or 0x020b")),
        };
        let table = optional + optional_size;
        let entries = self.size(directories - 4)?;
        if entries <= CERTIFICATES || entries > 16 || directories + 8 * entries > table {
            return Err(self.refuse(directories - 4, format!("{entries} data directories")).expected("5 to 16"));
        }
        let directory = directories + 8 * CERTIFICATES;
        let headers = self.size(optional + 60)?;
        if headers < table + 40 * usize::from(count) || headers > self.bytes.len() {
            return Err(self.refuse(optional + 60, format!("headers of {headers} bytes")));
        }
        let sections =
            (0..usize::from(count)).map(|number| self.section(table + 40 * number)).collect::<Result<Vec<_>, _>>()?;
        let certificates = self.certificates(directory)?;
        self.check_order(&sections, headers, self.bytes.len() - certificates)?;
        Ok(Image { bytes: self.bytes, checksum: optional + 64, directory, headers, certificates, sections })
    }

    fn section(&self, at: usize) -> Result<Section<'a>, Refusal> {
        let name = self.bytes.get(at..at + 8).ok_or_else(|| self.short(at))?;
        let length = name.iter().position(|byte| *byte == 0).unwrap_or(8);
        let (name, zeros) = name.split_at_checked(length).unwrap_or_default();
        let name = std::str::from_utf8(name).ok().filter(|name| name.bytes().all(|byte| byte.is_ascii_graphic()));
        let name = name.filter(|_| zeros.iter().all(|byte| *byte == 0));
        let name = name.ok_or_else(|| self.refuse(at, "a section's name that isn't ASCII text".to_owned()))?;
        let (memory, size, offset) = (self.size(at + 8)?, self.size(at + 16)?, self.size(at + 20)?);
        if u64::try_from(memory).unwrap_or(u64::MAX) > LIMIT {
            return Err(self.refuse(at + 8, format!("section {name} takes {memory} bytes of memory")));
        }
        let raw = self.bytes.get(offset..offset.saturating_add(size));
        let raw = raw.filter(|raw| raw.len() == size).ok_or_else(|| {
            self.refuse(at + 20, format!("section {name} ends at {}", offset.saturating_add(size)))
                .expected(format!("within {} bytes", self.bytes.len()))
        })?;
        // Uninitialised data (.bss) has a size in the header only.
        Ok(Section { name, memory, offset, raw })
    }

    /// The size of the signatures, which must end the file.
    fn certificates(&self, directory: usize) -> Result<usize, Refusal> {
        let (offset, size) = (self.size(directory)?, self.size(directory + 4)?);
        match size == 0 || offset.checked_add(size) == Some(self.bytes.len()) {
            true => Ok(size),
            false => Err(self
                .refuse(directory, format!("signatures from {offset}, {size} bytes"))
                .expected(format!("at the end of {} bytes", self.bytes.len()))),
        }
    }

    /// Sections stand behind the headers, none in another, none twice by name, all before the signatures.
    fn check_order(&self, sections: &[Section<'_>], headers: usize, end: usize) -> Result<(), Refusal> {
        let mut by_offset: Vec<&Section<'_>> = sections.iter().filter(|section| !section.raw.is_empty()).collect();
        by_offset.sort_by_key(|section| section.offset);
        let mut free = headers;
        for section in by_offset {
            if section.offset < free {
                return Err(self.refuse(section.offset, format!("section {} begins within another part", section.name)));
            }
            free = section.offset + section.raw.len();
        }
        if free > end {
            return Err(self.refuse(free, "a section ends within the signatures".to_owned()));
        }
        let memory = sections.iter().fold(0u64, |sum, section| sum.saturating_add(section.memory as u64));
        if memory > LIMIT {
            return Err(self
                .refuse(headers, format!("sections that take {memory} bytes of memory"))
                .expected(format!("at most {LIMIT}")));
        }
        for (number, section) in sections.iter().enumerate() {
            let twice = sections.iter().take(number).any(|other| other.name == section.name);
            if twice && section.name.starts_with('.') {
                return Err(self
                    .refuse(section.offset, format!("section {} stands twice", section.name))
                    .expected("an image with one of each: which one a loader takes isn't known"));
            }
        }
        Ok(())
    }

    fn expect(&self, at: usize, wanted: &[u8], what: &str) -> Result<(), Refusal> {
        match self.bytes.get(at..).is_some_and(|rest| rest.starts_with(wanted)) {
            true => Ok(()),
            false => Err(self.refuse(at, "something else".to_owned()).expected(what)),
        }
    }

    fn u16(&self, at: usize) -> Result<u16, Refusal> {
        let bytes = self.bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(|| self.short(at))?;
        Ok(u16::from_le_bytes(*bytes))
    }

    /// A size or offset: 32 bits, so that a few of them never overflow a usize of 64.
    fn size(&self, at: usize) -> Result<usize, Refusal> {
        let bytes = self.bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(|| self.short(at))?;
        usize::try_from(u32::from_le_bytes(*bytes)).map_err(|_| self.short(at))
    }

    fn short(&self, at: usize) -> Refusal {
        self.refuse(at, format!("the end, after {} bytes", self.bytes.len()))
    }

    fn refuse(&self, at: usize, what: String) -> Refusal {
        unusable(format!("{} byte {at}", self.name), what)
    }
}
