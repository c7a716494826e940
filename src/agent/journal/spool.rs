//! The spool: the journal's files, written by one thread. What is in it is durable before anybody hears of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::check::{self, MARKS, Marks, Segment, header, name_of};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::protocol::records::{LINES_LIMIT, RECORDS_LIMIT};
use crate::protocol::{Chain, Head, Record, SignedHead, Writer};
use crate::secret::{private_directory, write_atomically};

/// A segment that has become so long is followed by another, in bytes.
const SEGMENT: u64 = 1 << 20;
/// What was acknowledged is kept for a control plane that is restored from a backup, in bytes.
const RETAINED: u64 = 8 << 20;
/// How the name of a journal that was put aside begins.
const ASIDE: &str = "journal-aside-";
/// So many of them are kept: a control plane that goes on refusing fills no disk.
const ASIDES: usize = 8;

/// What is written to the disk and read from there.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    limit: u64,
    open: Option<Open>,
    writes: u64,
}

#[derive(Debug)]
struct Open {
    marks: Marks,
    head: Head,
    /// At least one; the last is the one that is written.
    segments: Vec<Segment>,
    file: File,
    /// A write failed: what lies after the last whole line is to be cut off first.
    in_doubt: bool,
}

/// Records on their way to the control plane.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The number of the first.
    pub first: u64,
    /// The chain before it.
    pub before: Chain,
    /// Their lines.
    pub lines: Vec<String>,
    /// The chain after the last.
    pub head: Head,
}

impl Spool {
    /// The spool in `directory`, of which at most `limit` bytes may wait for the control plane.
    pub const fn new(directory: PathBuf, limit: u64) -> Self {
        Self { directory, limit, open: None, writes: 0 }
    }

    /// Opens what is there, or begins a new one. What a power cut left is cut off; what was changed is
    /// put aside, and a new spool begins by saying so.
    ///
    /// # Errors
    /// [`codes::AUDIT_UNWRITABLE`]; it may be tried again.
    pub fn open(&mut self) -> Result<(), Refusal> {
        if self.open.is_some() {
            return Ok(());
        }
        self.finish_putting_aside().map_err(|error| self.unwritable(&error))?;
        let opened = match check::read(&self.directory, &mut |_| {})? {
            None => begin(&self.directory),
            Some(found) if found.faults.is_empty() => self.resume(found),
            Some(found) => {
                let faults = found.faults.first().map(|fault| (fault.number, fault.refusal.clone()));
                let (number, refusal) = faults.unwrap_or_else(|| (0, Refusal::new(codes::AUDIT_TAMPERED, "")));
                let writer = found.marks.map(|marks| marks.acknowledged.writer.to_string());
                return self.put_aside(&refusal, number, writer.as_deref());
            }
        };
        self.open = Some(opened.map_err(|error| self.unwritable(&error))?);
        Ok(())
    }

    /// Puts this spool aside and begins a new one that says why.
    ///
    /// # Errors
    /// [`codes::AUDIT_UNWRITABLE`]: then it goes on with this one.
    pub fn begin_anew(&mut self, refusal: &Refusal) -> Result<(), Refusal> {
        let number = self.open.as_ref().map_or(0, |open| open.head.number);
        let writer = self.open.take().map(|open| open.head.writer.to_string());
        self.put_aside(refusal, number, writer.as_deref())
    }

    /// The new one is whole, with its first record in it, before the old one makes way: whenever the agent is killed, there
    /// is one that says what happened, or still the old one to find it in.
    fn put_aside(&mut self, refusal: &Refusal, number: u64, writer: Option<&str>) -> Result<(), Refusal> {
        let moved = || -> io::Result<()> {
            let last = self.asides()?.last().map_or(0, |(number, _)| *number);
            let name = format!("{ASIDE}{}", last.saturating_add(1));
            let next = self.next();
            let record = Record {
                what: refusal.code.as_str().to_owned(),
                count: 1,
                code: Some(refusal.code.as_str().to_owned()),
                reason: Some(super::clipped(&refusal.to_string()).to_owned()),
                detail: serde_json::json!({ "writer": writer, "record": number, "kept": name }),
                ..Record::default()
            };
            remove(&next)?;
            begin(&next)?.append(&next, u64::MAX, &[&record])?;
            fs::rename(&self.directory, self.directory.with_file_name(&name))?;
            tracing::error!(code = %refusal.code, %refusal, name, "the journal was put aside; a new one begins");
            self.finish_putting_aside()
        };
        moved().map_err(|error| self.unwritable(&error))?;
        if let Err(error) = self.forget_asides() {
            tracing::warn!(%error, "old journals that were put aside can't be removed");
        }
        self.writes += 1;
        self.open()
    }

    /// Where the next spool is made.
    fn next(&self) -> PathBuf {
        self.directory.with_extension("next")
    }

    /// Where this was killed after the old spool made way, the new one takes its place.
    fn finish_putting_aside(&self) -> io::Result<()> {
        let next = self.next();
        if !self.directory.exists() && next.exists() {
            fs::rename(&next, &self.directory)?;
            File::open(self.directory.parent().unwrap_or(&self.directory))?.sync_all()?;
        }
        Ok(())
    }

    /// Those that were put aside, oldest first, by the numbers in their names.
    fn asides(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut asides = Vec::new();
        for entry in fs::read_dir(self.directory.parent().unwrap_or(&self.directory))? {
            let entry = entry?;
            if let Some(number) = entry.file_name().to_str().and_then(|name| name.strip_prefix(ASIDE)) {
                asides.push((number.parse().unwrap_or(0), entry.path()));
            }
        }
        asides.sort();
        Ok(asides)
    }

    /// Keeps the first and the newest of those that were put aside: what began it, and what is now.
    fn forget_asides(&self) -> io::Result<()> {
        let mut asides = self.asides()?;
        while asides.len() > ASIDES {
            remove(&asides.remove(ASIDES / 2).1)?;
        }
        Ok(())
    }

    fn resume(&self, found: check::Found) -> io::Result<Open> {
        let missing = || io::Error::new(io::ErrorKind::InvalidData, "BUG: a spool without marks");
        let mut marks = found.marks.ok_or_else(missing)?;
        let head = found.head.unwrap_or(marks.acknowledged);
        let mut segments = found.segments;
        if let Some(torn) = &found.torn {
            tracing::warn!(
                record = torn.number,
                bytes = torn.bytes,
                "the journal ends within a record, which is cut off"
            );
            // Noted before it is cut, so that it is said whenever the agent is killed.
            marks.torn = Some((torn.number, torn.bytes));
            write_atomically(&self.directory.join(MARKS), &encoded(&marks)?)?;
            // A segment of which not even the first line is whole is none yet.
            if segments.last().is_some_and(|segment| segment.bytes == 0) {
                fs::remove_file(&torn.path)?;
                segments.pop();
            }
        }
        let Some(segment) = segments.last() else {
            let (segment, file) = new_segment(&self.directory, head)?;
            return Ok(Open { marks, head, segments: vec![segment], file, in_doubt: false });
        };
        let file = OpenOptions::new().append(true).open(&segment.path)?;
        file.set_len(segment.bytes)?;
        file.sync_all()?;
        Ok(Open { marks, head, segments, file, in_doubt: false })
    }

    /// Writes records, in one go, and returns when they are on the disk. They get their numbers here.
    ///
    /// # Errors
    /// [`codes::AUDIT_UNWRITABLE`]: then none of them is.
    pub fn append(&mut self, records: &[Record]) -> Result<(), Refusal> {
        self.open()?;
        let (directory, limit) = (self.directory.clone(), self.limit);
        let Some(open) = &mut self.open else { return Ok(()) };
        let torn = open.torn();
        let all: Vec<&Record> = torn.iter().chain(records).collect();
        let written = open.append(&directory, limit, &all);
        written.map_err(|error| self.unwritable(&error))?;
        self.writes += 1;
        if self.was_torn() {
            // What was written stands; if this can't be noted now, the next write notes it.
            let _ = self.mark(|marks| marks.torn = None);
        }
        Ok(())
    }

    /// Where the chain ends; none before it was opened.
    pub fn head(&self) -> Option<Head> {
        self.open.as_ref().map(|open| open.head)
    }

    /// The marks; none before it was opened.
    pub fn marks(&self) -> Option<&Marks> {
        self.open.as_ref().map(|open| &open.marks)
    }

    /// How often it was written.
    pub const fn writes(&self) -> u64 {
        self.writes
    }

    /// Bytes that wait for the control plane, and the most that may.
    pub fn waiting(&self) -> (u64, u64) {
        (self.open.as_ref().map_or(0, Open::waiting), self.limit)
    }

    /// Whether it is still to be said that a record was cut off.
    pub fn was_torn(&self) -> bool {
        self.marks().is_some_and(|marks| marks.torn.is_some())
    }

    /// Keeps a signed head.
    ///
    /// # Errors
    /// [`codes::AUDIT_UNWRITABLE`].
    pub fn signed(&mut self, signed: SignedHead) -> Result<(), Refusal> {
        self.mark(|marks| marks.signed = Some(signed))
    }

    /// Notes how far the control plane has the records, and drops what is no longer needed.
    ///
    /// # Errors
    /// [`codes::AUDIT_UNWRITABLE`].
    pub fn acknowledged(&mut self, head: Head, control_plane: Option<SignedHead>) -> Result<(), Refusal> {
        self.mark(|marks| {
            marks.acknowledged = head;
            if control_plane.is_some() {
                marks.control_plane = control_plane;
            }
        })?;
        if let Some(open) = &mut self.open {
            open.drop_acknowledged();
        }
        Ok(())
    }

    fn mark(&mut self, change: impl FnOnce(&mut Marks)) -> Result<(), Refusal> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let mut marks = open.marks.clone();
        change(&mut marks);
        if marks == open.marks {
            return Ok(());
        }
        let written = encoded(&marks).and_then(|bytes| write_atomically(&self.directory.join(MARKS), &bytes));
        match written {
            Ok(()) => {
                open.marks = marks;
                Ok(())
            }
            Err(error) => Err(self.unwritable(&error)),
        }
    }

    /// The records from number `from` on, no further than `to`, as many as go into one request.
    ///
    /// # Errors
    /// [`codes::AUDIT_UNWRITABLE`] when the file can't be read; [`codes::AUDIT_GAP`] for records that are no
    /// longer here.
    pub fn batch(&self, from: u64, to: u64) -> Result<Batch, Refusal> {
        let gone = || Refusal::new(codes::AUDIT_GAP, format!("record {from} is no longer in the journal"));
        let open = self.open.as_ref().ok_or_else(gone)?;
        let within = open.segments.iter().rev().find(|segment| segment.first <= from).ok_or_else(gone)?;
        let text = fs::read_to_string(&within.path).map_err(|error| self.unwritable(&error))?;
        let mut lines = text.split_terminator('\n');
        let begin = lines.next().and_then(|header| Chain::from_text(header.rsplit(' ').next()?));
        let mut before = begin.ok_or_else(gone)?;
        let mut chain = before;
        let (mut taken, mut bytes, mut number) = (Vec::new(), 0, within.first);
        for line in lines {
            let Some((stored, record)) = line.split_at_checked(64) else { break };
            let (Some(stored), Some(record)) = (Chain::from_text(stored), record.strip_prefix(' ')) else { break };
            if number < from {
                before = stored;
            } else {
                bytes += record.len();
                if number > to || number > open.head.number || taken.len() >= RECORDS_LIMIT || bytes > LINES_LIMIT {
                    break;
                }
                taken.push(record.to_owned());
            }
            chain = stored;
            number += 1;
        }
        let last = from + taken.len() as u64 - u64::from(!taken.is_empty());
        if taken.is_empty() {
            return Err(gone());
        }
        Ok(Batch { first: from, before, lines: taken, head: Head { number: last, chain, ..open.head } })
    }

    /// The chain's value after record `number`, while that is known.
    pub fn chain_at(&self, number: u64) -> Option<Chain> {
        let open = self.open.as_ref()?;
        match number {
            _ if number == open.head.number => Some(open.head.chain),
            _ if number == open.marks.acknowledged.number => Some(open.marks.acknowledged.chain),
            0 => Some(Chain::begin(&open.head.writer)),
            _ => self.batch(number.checked_add(1)?, number.checked_add(1)?).ok().map(|batch| batch.before),
        }
    }

    fn unwritable(&self, error: &io::Error) -> Refusal {
        Refusal::new(codes::AUDIT_UNWRITABLE, error.to_string())
            .at(self.directory.display().to_string())
            .expected("room on the disk that holds the agent's state directory")
    }
}

/// A new spool.
fn begin(directory: &Path) -> io::Result<Open> {
    let marks = Marks::new(Writer::random()?);
    private_directory(directory)?;
    // The marks first: a segment without them would look like one whose marks were removed.
    write_atomically(&directory.join(MARKS), &encoded(&marks)?)?;
    let head = marks.acknowledged;
    let (segment, file) = new_segment(directory, head)?;
    Ok(Open { marks, head, segments: vec![segment], file, in_doubt: false })
}

/// Removes a directory, if it is there.
fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Open {
    /// What is to be said of a record that was cut off. If the journal has another in its place, that was said.
    fn torn(&self) -> Option<Record> {
        let (number, bytes) = self.marks.torn.filter(|(number, _)| *number > self.head.number)?;
        Some(Record {
            what: codes::AUDIT_TORN.as_str().to_owned(),
            count: 1,
            detail: serde_json::json!({ "record": number, "bytes": bytes }),
            ..Record::default()
        })
    }

    fn append(&mut self, directory: &Path, limit: u64, records: &[&Record]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.mend()?;
        if self.segments.last().is_some_and(|segment| segment.bytes > SEGMENT) {
            let (segment, file) = new_segment(directory, self.head)?;
            self.segments.push(segment);
            self.file = file;
        }
        let now = WallTime::now().0;
        let (mut head, mut text) = (self.head, String::new());
        for record in records {
            let number = head.number.saturating_add(1);
            let line = Record { number, time: now, ..(*record).clone() }.line();
            head = Head { number, chain: head.chain.then(&line), ..head };
            text.extend([head.chain.to_string().as_str(), " ", &line, "\n"]);
        }
        if self.waiting() + text.len() as u64 > limit {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                format!(
                    "the journal is full: {} bytes wait for the control plane, at most {limit} may",
                    self.waiting()
                ),
            ));
        }
        let Some(segment) = self.segments.last_mut() else { return Ok(()) };
        if let Err(error) = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data()) {
            self.in_doubt = true;
            // At once, as far as that goes, so that what failed isn't found there by the next start.
            let _ = self.mend();
            return Err(error);
        }
        segment.bytes += text.len() as u64;
        segment.last = head.number;
        self.head = head;
        Ok(())
    }

    /// Cuts off what a failed write may have left.
    fn mend(&mut self) -> io::Result<()> {
        if self.in_doubt
            && let Some(segment) = self.segments.last()
        {
            self.file.set_len(segment.bytes)?;
            self.file.sync_all()?;
            self.in_doubt = false;
        }
        Ok(())
    }

    fn waiting(&self) -> u64 {
        let acknowledged = self.marks.acknowledged.number;
        self.segments.iter().filter(|segment| segment.last > acknowledged).map(|segment| segment.bytes).sum()
    }

    /// Removes the oldest segments that the control plane has, but for those that are retained.
    fn drop_acknowledged(&mut self) {
        let mut kept: u64 = self.segments.iter().map(|segment| segment.bytes).sum();
        while let [first, _, ..] = self.segments.as_slice()
            && first.last <= self.marks.acknowledged.number
            && kept > RETAINED
        {
            kept -= first.bytes;
            if let Err(error) = fs::remove_file(&first.path) {
                tracing::warn!(%error, path = %first.path.display(), "an old part of the journal can't be removed");
                return;
            }
            self.segments.remove(0);
        }
    }
}

fn new_segment(directory: &Path, head: Head) -> io::Result<(Segment, File)> {
    let first = head.number.saturating_add(1);
    let path = directory.join(name_of(first));
    let text = header(&head.writer, first, &head.chain);
    let made = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        File::open(directory)?.sync_all()?;
        Ok(file)
    })();
    match made {
        Ok(file) => Ok((Segment { path, first, last: head.number, bytes: text.len() as u64 }, file)),
        Err(error) => {
            // Best effort: the error that matters is the one of the write.
            let _ = fs::remove_file(&path);
            Err(error)
        }
    }
}

fn encoded(marks: &Marks) -> io::Result<Vec<u8>> {
    serde_cbor::to_vec(marks).map_err(io::Error::other)
}
