//! `log ima`: what IMA's list says, and what it leads to. It is read piece by piece: lists have
//! millions of entries.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::print_json;
use crate::codes::{self, Refusal, exit};
use crate::measurements::LogHash;
use crate::measurements::ima::{Entries, Fold, ImaEntry, escaped};
use crate::measurements::sources::{self, Sources};
use crate::output::{self, say};
use crate::tpm::IMA_PCR;

/// How much is read at once, in bytes: more than any entry has.
const PIECE: usize = 4 << 20;

/// `leasehold-agent log ima`.
pub fn show(file: Option<&Path>, bank: Option<LogHash>, entries: bool, json: bool) -> anyhow::Result<u8> {
    let bank = bank.unwrap_or(LogHash::Sha256);
    let mut shown = ShownList::new(bank);
    let each = |entry: &ImaEntry<'_>| {
        if entries && !json {
            say!("{}", ShownEntry::new(entry));
        }
        entries && json
    };
    read(file.unwrap_or_else(|| Path::new(sources::IMA_LIST)), &mut shown, each)?;
    shown.finish();
    match json {
        true => print_json(&shown)?,
        false => shown.print(),
    }
    Ok(exit::DONE)
}

/// Reads the list into `shown`; `each` says of an entry whether it is to be kept.
fn read(path: &Path, shown: &mut ShownList, each: impl Fn(&ImaEntry<'_>) -> bool) -> Result<(), Refusal> {
    let at = path.display().to_string();
    let mut sources = Sources::open(None, None, Some(path))?;
    let (mut position, mut number, mut offset) = (0u64, 0, 0);
    let mut held = Vec::new();
    loop {
        let Some(piece) = sources.read_ima(position, PIECE)? else {
            return Err(Refusal::new(codes::MEASUREMENTS_UNREADABLE, "no such file")
                .at(at)
                .expected("IMA's binary list"));
        };
        if piece.is_empty() || !output::is_open() {
            break;
        }
        position = position.saturating_add(piece.len() as u64);
        held.extend_from_slice(&piece);
        let mut entries = Entries::new(&held, number, offset);
        for entry in entries.by_ref() {
            let entry = entry.map_err(|refusal| Refusal { at: format!("{at}: {}", refusal.at), ..refusal })?;
            shown.take(&entry, each(&entry));
        }
        (number, offset) = (entries.number(), entries.offset());
        held = entries.rest().to_vec();
    }
    let left = format!("{} bytes from byte {offset} on are entry {number} in part", held.len());
    match (number, held.is_empty()) {
        (0, true) => {
            shown.notes.push("the list is empty; from a kernel that measures it has at least one entry".to_owned())
        }
        (0, false) => {
            return Err(Refusal::new(codes::MEASUREMENTS_IMA_LIST, left).at(at).expected("at least one whole entry"));
        }
        (_, true) => {}
        (_, false) => shown.notes.push(format!("{left}: the list was cut there")),
    }
    Ok(())
}

/// IMA's list. Schema version 1.
#[derive(Serialize)]
struct ShownList {
    schema: u32,
    entries: u64,
    violations: Vec<ShownViolation>,
    /// What the list leads to, by bank and PCR.
    banks: BTreeMap<&'static str, BTreeMap<u8, String>>,
    /// The same for a kernel that couldn't hash for the bank, and extended SHA-1 digests with zeros
    /// behind them.
    padded: BTreeMap<&'static str, BTreeMap<u8, String>>,
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    list: Vec<ShownEntry>,
    #[serde(skip)]
    bank: LogHash,
    #[serde(skip)]
    folds: BTreeMap<u8, [Fold; 2]>,
}

#[derive(Serialize)]
struct ShownViolation {
    entry: u64,
    path: String,
}

#[derive(Serialize)]
struct ShownEntry {
    entry: u64,
    pcr: u8,
    template: String,
    digest: String,
    path: String,
    signed: bool,
    violation: bool,
}

impl ShownList {
    fn new(bank: LogHash) -> Self {
        let mut shown = Self {
            schema: 1,
            entries: 0,
            violations: Vec::new(),
            banks: BTreeMap::new(),
            padded: BTreeMap::new(),
            notes: Vec::new(),
            list: Vec::new(),
            bank,
            folds: BTreeMap::new(),
        };
        // An empty list leads to the value that PCR 10 starts with.
        shown.folds(IMA_PCR);
        shown
    }

    /// The replay of a PCR: hashed, and padded.
    fn folds(&mut self, pcr: u8) -> &mut [Fold; 2] {
        let bank = self.bank;
        self.folds.entry(pcr).or_insert_with(|| [false, true].map(|padded| Fold::start(bank, padded)))
    }

    fn take(&mut self, entry: &ImaEntry<'_>, keep: bool) {
        self.entries = self.entries.saturating_add(1);
        for fold in self.folds(entry.pcr) {
            fold.take(entry);
        }
        if entry.violation {
            self.violations.push(ShownViolation { entry: entry.number, path: escaped(entry.fields.path) });
        }
        if keep {
            self.list.push(ShownEntry::new(entry));
        }
    }

    /// Says what the list leads to.
    fn finish(&mut self) {
        let name = self.bank.as_str();
        for (pcr, [hashed, padded]) in &self.folds {
            self.banks.entry(name).or_default().insert(*pcr, hex::encode(hashed.value()));
            // SHA-1 itself is never padded.
            if self.bank != LogHash::Sha1 {
                self.padded.entry(name).or_default().insert(*pcr, hex::encode(padded.value()));
            }
        }
    }

    fn print(&self) {
        say!("{} entries, {} violations", self.entries, self.violations.len());
        for (bank, pcrs) in &self.banks {
            for (pcr, value) in pcrs {
                say!("\nPCR {pcr} in {bank}\n  {value}");
                if let Some(padded) = self.padded.get(bank).and_then(|pcrs| pcrs.get(pcr)) {
                    say!("or, from a kernel that can't hash {bank} (padded SHA-1)\n  {padded}");
                }
            }
        }
        if !self.violations.is_empty() {
            say!("\nviolations: files that changed while they were measured; the TPM vouches for their number only");
        }
        for ShownViolation { entry, path } in &self.violations {
            say!("{entry:>8} {path}");
        }
        for note in &self.notes {
            say!("\nnote: {note}");
        }
    }
}

impl ShownEntry {
    fn new(entry: &ImaEntry<'_>) -> Self {
        let fields = &entry.fields;
        Self {
            entry: entry.number,
            pcr: entry.pcr,
            template: entry.template.to_owned(),
            digest: format!("{}:{}", fields.algorithm, hex::encode(fields.digest)),
            path: escaped(fields.path),
            signed: !fields.signature.is_empty(),
            violation: entry.violation,
        }
    }
}

impl std::fmt::Display for ShownEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { entry, pcr, template, digest, path, .. } = self;
        let mark = match (self.violation, self.signed) {
            (true, _) => "violation",
            (false, true) => "signed",
            (false, false) => "",
        };
        write!(f, "{entry:>8} {pcr:>3} {template:<8} {mark:<9} {digest} {path}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An `ima-ng` entry as the kernel lists it; zeros printed: a violation.
    fn listed(pcr: u32, printed: u8, path: &[u8]) -> Vec<u8> {
        let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes(), bytes].concat();
        let digest = [&b"sha256:\0"[..], &[7; 32]].concat();
        let data = [field(&digest), field(&[path, b"\0"].concat())].concat();
        [&pcr.to_le_bytes(), &[printed; 20][..], &field(b"ima-ng"), &field(&data)].concat()
    }

    fn shown(bytes: &[u8], keep: bool) -> Result<ShownList, Refusal> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        std::fs::write(&path, bytes).unwrap();
        let mut shown = ShownList::new(LogHash::Sha256);
        read(&path, &mut shown, |_| keep)?;
        shown.finish();
        Ok(shown)
    }

    #[test]
    fn the_json_has_the_promised_keys() {
        let list = [listed(10, 1, b"boot_aggregate"), listed(10, 0, b"/tmp/\xff"), listed(11, 1, b"/x")].concat();
        let json = serde_json::to_value(shown(&list, false).unwrap()).unwrap();
        let of_10 = |digest: &[u8]| LogHash::Sha256.digest(&[digest]);
        let first = LogHash::Sha256.extend(&[0; 32], &of_10(&listed(10, 1, b"boot_aggregate")[38..]));
        let ten = hex::encode(LogHash::Sha256.extend(&first, &[0xFF; 32]));
        let eleven = hex::encode(LogHash::Sha256.extend(&[0; 32], &of_10(&listed(11, 1, b"/x")[38..])));
        assert_eq!(json["schema"], 1);
        assert_eq!(json["entries"], 3);
        assert_eq!(json["violations"], serde_json::json!([{ "entry": 1, "path": "/tmp/\\xff" }]));
        assert_eq!(json["banks"], serde_json::json!({ "sha256": { "10": ten, "11": eleven } }));
        assert!(json.get("list").is_none());
        let json = serde_json::to_value(shown(&list, true).unwrap()).unwrap();
        assert_eq!(json["list"][2]["path"], "/x");
    }

    /// Longer than a piece, so entries lie across the seams.
    #[test]
    fn a_list_is_read_piece_by_piece() {
        let entry = listed(10, 1, &[b'/'; 3000]);
        let count = PIECE / entry.len() * 2 + 5;
        let found = shown(&entry.repeat(count), false).unwrap();
        assert_eq!((found.entries, found.notes.len()), (count as u64, 0));
    }

    #[test]
    fn what_is_cut_is_said_and_what_is_no_list_is_refused() {
        let list = listed(10, 1, b"boot_aggregate").repeat(2);
        let found = shown(&list[..list.len() - 1], false).unwrap();
        assert!(found.entries == 1 && found.notes[0].contains("entry 1 in part"), "{:?}", found.notes);
        assert!(shown(&[], false).unwrap().notes[0].contains("empty"));
        for (bytes, words) in [(&list[..40], "entry 0 in part"), (b"10 9f8a ima-ng sha256:00 /x\n", "text")] {
            let refusal = shown(bytes, false).err().unwrap();
            assert!(refusal.code == codes::MEASUREMENTS_IMA_LIST && refusal.found.contains(words), "{refusal}");
            assert!(refusal.at.contains("list"), "{refusal}");
        }
        let absent = read(Path::new("/nowhere/list"), &mut ShownList::new(LogHash::Sha256), |_| false).unwrap_err();
        assert_eq!(absent.code, codes::MEASUREMENTS_UNREADABLE);
    }
}
