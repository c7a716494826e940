//! Reads a spool from its first byte to its last and says what is wrong with it, record by record.
//!
//! A spool is a directory: `marks.cbor`, and segments named by the number of their first record. A segment
//! begins with `leasehold-journal-1 WRITER NUMBER CHAIN` (the chain's value before the first record) and goes on
//! with lines of `CHAIN RECORD` (its value after that record). What a power cut leaves is told from a
//! change: it is the beginning of a line, at the very end.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::codes::{self, Code, Refusal};
use crate::protocol::records::LINE_LIMIT;
use crate::protocol::{Chain, Head, Record, SignedHead, Writer};

/// What begins a segment.
pub const MAGIC: &str = "leasehold-journal-1";
/// The file of the marks.
pub const MARKS: &str = "marks.cbor";
/// How a segment's name ends.
const SUFFIX: &str = ".log";
/// Disks write such blocks whole: a file that grew before its content arrived has zeros from a multiple on.
const BLOCK: u64 = 512;
/// So many faults are told; the first is the one that counts.
const MOST_FAULTS: usize = 100;

/// How far the spool was signed and acknowledged. No secret is in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marks {
    version: u32,
    /// Whose spool it is, and how far the control plane has it.
    pub acknowledged: Head,
    /// The last head that the TPM signed.
    pub signed: Option<SignedHead>,
    /// The last head of the control plane's own log: a witness of it.
    pub control_plane: Option<SignedHead>,
    /// A record that was cut off (its number, and how many bytes of it there were), until the journal says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torn: Option<(u64, u64)>,
}

impl Marks {
    /// Of a new spool.
    pub fn new(writer: Writer) -> Self {
        Self { version: 1, acknowledged: Head::begin(writer), signed: None, control_plane: None, torn: None }
    }

    fn read(directory: &Path) -> Result<Self, String> {
        let bytes = fs::read(directory.join(MARKS)).map_err(|e| e.to_string())?;
        match serde_cbor::from_slice::<Self>(&bytes) {
            Ok(marks) if marks.version != 1 => Err(format!("it is of version {}", marks.version)),
            // The same marks in other bytes aren't what was written.
            Ok(marks) if serde_cbor::to_vec(&marks).is_ok_and(|written| written == bytes) => Ok(marks),
            Ok(_) => Err("it isn't as it was written".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A segment that was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its file.
    pub path: PathBuf,
    /// The number of its first record.
    pub first: u64,
    /// The number of its last; one less than `first` while there is none.
    pub last: u64,
    /// Its length in bytes, as far as it is whole.
    pub bytes: u64,
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The record; the first of several.
    pub number: u64,
    /// What, and where.
    pub refusal: Refusal,
}

/// The beginning of a line, at the end of the last segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Torn {
    /// The segment.
    pub path: PathBuf,
    /// The record it would have been.
    pub number: u64,
    /// How many bytes of it there are.
    pub bytes: u64,
}

/// What a spool holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The marks, where they can be read.
    pub marks: Option<Marks>,
    /// The segments in order.
    pub segments: Vec<Segment>,
    /// The number of its first record.
    pub first: u64,
    /// How far its chain comes; none of an empty spool without marks.
    pub head: Option<Head>,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// What a power cut left.
    pub torn: Option<Torn>,
}

/// Reads the spool in `directory`; `each` is given every record that can be read, in order. `None` if there
/// is no spool.
///
/// # Errors
/// [`codes::AUDIT_UNWRITABLE`] when it can't be read at all: nothing is concluded from that.
pub fn read(directory: &Path, each: &mut dyn FnMut(&Record)) -> Result<Option<Found>, Refusal> {
    let unreadable = |path: &Path, e: &std::io::Error| {
        Refusal::new(codes::AUDIT_UNWRITABLE, e.to_string()).at(path.display().to_string())
    };
    let mut names = Vec::new();
    match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(directory, &error)),
        Ok(entries) => {
            for entry in entries {
                names.push(entry.map_err(|e| unreadable(directory, &e))?.file_name());
            }
        }
    }
    let mut paths: Vec<_> = names.iter().filter_map(|name| Some((number_of(name.to_str()?)?, name))).collect();
    paths.sort_unstable();
    let marks = Marks::read(directory);
    if paths.is_empty() && !directory.join(MARKS).exists() {
        return Ok(None);
    }
    let mut reader = Reader { marks: marks.as_ref().ok(), faults: Vec::new(), head: None, lost: false, each };
    if let Err(why) = &marks {
        let at = directory.join(MARKS);
        reader.fault(0, codes::AUDIT_TAMPERED, format!("the marks can't be read: {why}"), &at, "as they were written");
    }
    let mut segments = Vec::new();
    let mut torn = None;
    let last = paths.len().saturating_sub(1);
    for (place, (number, name)) in paths.into_iter().enumerate() {
        let path = directory.join(name);
        let bytes = fs::read(&path).map_err(|e| unreadable(&path, &e))?;
        let (segment, left) = reader.segment(&path, number, &bytes, place == last);
        segments.push(segment);
        torn = left;
    }
    let first = segments.first().map_or(1, |segment| segment.first);
    reader.hold_against(directory, first);
    let (head, faults) = (reader.head.map(|reached| reached.head), reader.faults);
    let marks = marks.ok();
    let head = head.or(marks.as_ref().map(|marks| marks.acknowledged));
    Ok(Some(Found { marks, segments, first, head, faults, torn }))
}

/// The first record's number in a segment's name.
fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(SUFFIX)?.parse().ok()?;
    (name_of(number) == name).then_some(number)
}

/// The name of the segment that begins with this record.
pub fn name_of(first: u64) -> String {
    format!("{first:020}{SUFFIX}")
}

/// How far the reading has come.
#[derive(Clone, Copy)]
struct Reached {
    head: Head,
    /// The value by what stands in the record, where that is another than what stands beside it.
    computed: Chain,
}

struct Reader<'a> {
    marks: Option<&'a Marks>,
    faults: Vec<Fault>,
    head: Option<Reached>,
    /// The line before can't be read, not even what stands beside its record.
    lost: bool,
    each: &'a mut dyn FnMut(&Record),
}

impl Reader<'_> {
    fn fault(&mut self, number: u64, code: Code, found: impl Into<String>, path: &Path, expected: &str) {
        if self.faults.len() >= MOST_FAULTS {
            return;
        }
        let place = match number {
            0 => path.display().to_string(),
            _ => format!("record {number}, {}", path.display()),
        };
        self.faults.push(Fault { number, refusal: Refusal::new(code, found).at(place).expected(expected) });
    }

    /// Reads one segment.
    fn segment(&mut self, path: &Path, number: u64, bytes: &[u8], is_last: bool) -> (Segment, Option<Torn>) {
        let mut segment = Segment { path: path.to_path_buf(), first: number, last: number.saturating_sub(1), bytes: 0 };
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        let header = lines.next().unwrap_or_default();
        let Some(begin) = header_of(header) else {
            // Made, and cut before its first line was whole.
            if is_last && header.len() == bytes.len() && is_torn_header(header, number) {
                let torn = Torn { path: path.to_path_buf(), number, bytes: bytes.len() as u64 };
                return (segment, Some(torn));
            }
            self.fault(
                number,
                codes::AUDIT_TAMPERED,
                "the segment's first line was changed",
                path,
                "as it was written",
            );
            return (segment, None);
        };
        segment.bytes = header.len() as u64;
        self.begin(path, number, begin);
        let mut offset = segment.bytes;
        for line in lines {
            let Some(whole) = line.strip_suffix(b"\n") else {
                let expected = self.next_number(number);
                if is_last && self.is_torn(line, expected, offset) {
                    let torn = Torn { path: path.to_path_buf(), number: expected, bytes: line.len() as u64 };
                    return (segment, Some(torn));
                }
                self.fault(
                    expected,
                    codes::AUDIT_TAMPERED,
                    "the line has no end",
                    path,
                    "records as they were written",
                );
                break;
            };
            self.line(path, whole, number);
            offset += line.len() as u64;
            segment.bytes = offset;
            segment.last = self.next_number(number).saturating_sub(1);
        }
        (segment, None)
    }

    fn next_number(&self, first: u64) -> u64 {
        self.head.map_or(first, |reached| reached.head.number.saturating_add(1))
    }

    /// Goes over to a segment: it begins where the one before ended.
    fn begin(&mut self, path: &Path, number: u64, begin: (Writer, u64, Chain)) {
        let (writer, first, chain) = begin;
        if first != number {
            self.fault(
                number,
                codes::AUDIT_TAMPERED,
                "the segment says another first record",
                path,
                "that of its name",
            );
        }
        let marks = self.marks;
        if marks.is_some_and(|marks| marks.acknowledged.writer != writer) {
            self.fault(number, codes::AUDIT_TAMPERED, format!("writer {writer}"), path, "the writer of the marks");
        }
        let before = number.saturating_sub(1);
        match self.head {
            Some(Reached { head, .. }) if head.number < before => {
                self.fault(
                    head.number.saturating_add(1),
                    codes::AUDIT_GAP,
                    "a segment is missing",
                    path,
                    "every record",
                );
            }
            Some(Reached { head, .. }) if head.number > before => {
                self.fault(number, codes::AUDIT_TAMPERED, "the segments overlap", path, "every record once");
            }
            Some(Reached { head, computed }) if chain != head.chain && chain != computed => {
                self.fault(number, codes::AUDIT_TAMPERED, "the segment begins elsewhere", path, "where the last ended");
            }
            // The first one: its chain begins with its writer, or is held against the marks.
            None if before == 0 && chain != Chain::begin(&writer) => {
                self.fault(number, codes::AUDIT_TAMPERED, "the chain begins otherwise", path, "with its writer");
            }
            _ => {}
        }
        if let Some(marks) = marks
            && marks.acknowledged.number == before
            && marks.acknowledged.chain != chain
        {
            self.fault(
                number,
                codes::AUDIT_TAMPERED,
                "the segment begins elsewhere",
                path,
                "where it was acknowledged",
            );
        }
        self.head = Some(Reached { head: Head { writer, number: before, chain }, computed: chain });
    }

    /// Reads one line and holds it against the chain.
    fn line(&mut self, path: &Path, line: &[u8], first: u64) {
        let expected = self.next_number(first);
        let Some(Reached { head, computed }) = self.head else { return };
        let Some((stored, record, text)) = parsed(line) else {
            self.fault(expected, codes::AUDIT_TAMPERED, "the record was changed", path, "records as they were written");
            // Where the next one stands tells where this one stood, if what stands beside it doesn't.
            match chain_of(line) {
                Some((chain, _)) => {
                    self.head = Some(Reached { head: Head { number: expected, chain, ..head }, computed: chain });
                }
                None => self.lost = true,
            }
            return;
        };
        let lost = std::mem::take(&mut self.lost);
        let follows = [head.chain, computed].iter().any(|chain| chain.then(text) == stored);
        if record.number > expected && !(lost && record.number - 1 == expected) {
            let found = format!("records are missing: then comes {}", record.number);
            self.fault(expected, codes::AUDIT_GAP, found, path, "every record once");
        } else if record.number < expected {
            let found = format!("record {} stands once more", record.number);
            self.fault(expected, codes::AUDIT_TAMPERED, found, path, "every record once");
        } else if !follows && !lost {
            self.fault(expected, codes::AUDIT_TAMPERED, "the record was changed", path, "what its chain stands for");
        }
        (self.each)(&record);
        self.head = Some(Reached {
            head: Head { number: record.number, chain: stored, ..head },
            computed: computed.then(text),
        });
        self.hold_mark(path, record.number, stored);
    }

    /// Holds a record against the marks at its number: whoever computed the chain anew after a change
    /// can't have signed it.
    fn hold_mark(&mut self, path: &Path, number: u64, chain: Chain) {
        let Some(marks) = self.marks else { return };
        let signed = marks.signed.as_ref().map(|signed| &signed.head);
        let differs = signed.into_iter().chain([&marks.acknowledged]).any(|m| m.number == number && m.chain != chain);
        if differs && self.faults.is_empty() {
            let found = "this record or one before it was changed, and the chain computed anew";
            self.fault(number, codes::AUDIT_TAMPERED, found, path, "the chain that was signed");
        }
    }

    /// Whether this is how a line begins that comes next.
    fn is_torn(&self, tail: &[u8], number: u64, offset: u64) -> bool {
        let tail = without_zeros(tail, offset);
        if tail.len() > LINE_LIMIT + 65 {
            return false;
        }
        let Some((stored, text)) = tail.split_at_checked(64) else {
            return tail.iter().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte));
        };
        let Some(stored) = std::str::from_utf8(stored).ok().and_then(Chain::from_text) else { return false };
        let Some((space, text)) = text.split_first() else { return true };
        let Ok(text) = std::str::from_utf8(text) else { return false };
        let begins = format!("{{\"number\":{number},\"time\":");
        if *space != b' ' || !(text.starts_with(&begins) || begins.starts_with(text)) {
            return false;
        }
        match serde_json::from_str::<Record>(text) {
            // Whole but for its end.
            Ok(_) => self.head.is_some_and(|reached| reached.head.chain.then(text) == stored),
            Err(error) => error.is_eof() && text.bytes().all(|byte| (0x20..0x7f).contains(&byte)),
        }
    }

    /// Holds what was read against how far it was signed and acknowledged.
    fn hold_against(&mut self, directory: &Path, first: u64) {
        let Some(marks) = self.marks else { return };
        let reached = self.head.map_or(0, |reached| reached.head.number);
        let path = directory.join(MARKS);
        let signed = marks.signed.as_ref().map(|signed| signed.head);
        if signed.is_some_and(|signed| signed.writer != marks.acknowledged.writer) {
            self.fault(0, codes::AUDIT_TAMPERED, "the marks are of two writers", &path, "one");
        }
        let furthest = signed.map_or(0, |signed| signed.number).max(marks.acknowledged.number);
        if reached < furthest {
            let missing = reached.saturating_add(1).max(first);
            let found = format!("the journal ends with record {reached}");
            self.fault(missing, codes::AUDIT_GAP, found, &path, &format!("{furthest} records, as was signed"));
        }
        if first > marks.acknowledged.number.saturating_add(1) {
            let missing = marks.acknowledged.number.saturating_add(1);
            let found = format!("the journal begins with record {first}");
            self.fault(missing, codes::AUDIT_GAP, found, &path, "every record that wasn't acknowledged");
        }
    }
}

/// A segment's first line.
fn header_of(line: &[u8]) -> Option<(Writer, u64, Chain)> {
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let mut parts = text.strip_prefix(MAGIC)?.strip_prefix(' ')?.split(' ');
    let (writer, first, chain) = (parts.next()?, parts.next()?, parts.next()?);
    let number: u64 = first.parse().ok()?;
    if parts.next().is_some() || number.to_string() != first {
        return None;
    }
    Some((Writer::from_text(writer)?, number, Chain::from_text(chain)?))
}

/// A segment's first line for this beginning.
pub fn header(writer: &Writer, first: u64, chain: &Chain) -> String {
    format!("{MAGIC} {writer} {first} {chain}\n")
}

fn is_torn_header(line: &[u8], number: u64) -> bool {
    let line = without_zeros(line, 0);
    // What it would be but for writer and chain.
    let pattern = header(&Writer::from_bytes([0; 16]), number, &Chain::from_bytes([0; 32]));
    line.len() < pattern.len()
        && line.iter().zip(pattern.bytes()).all(|(found, pattern)| match pattern {
            b'0' => found.is_ascii_digit() || (b'a'..=b'f').contains(found),
            pattern => *found == pattern,
        })
}

/// A whole line: the chain beside it, the record, and its text.
fn parsed(line: &[u8]) -> Option<(Chain, Record, &str)> {
    let (chain, rest) = chain_of(line)?;
    let text = std::str::from_utf8(rest.strip_prefix(b" ")?).ok()?;
    Some((chain, Record::parse(text).ok()?, text))
}

/// What stands beside a record, and the rest of the line.
fn chain_of(line: &[u8]) -> Option<(Chain, &[u8])> {
    let (chain, rest) = line.split_at_checked(64)?;
    Some((Chain::from_text(std::str::from_utf8(chain).ok()?)?, rest))
}

/// `tail`, which begins at `offset` of its file, without the zeros of blocks that were never written.
fn without_zeros(tail: &[u8], offset: u64) -> &[u8] {
    let end = tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let at_block = (offset + end as u64).is_multiple_of(BLOCK);
    match tail.split_at_checked(end) {
        Some((written, zeros)) if at_block && !zeros.is_empty() => written,
        _ => tail,
    }
}
