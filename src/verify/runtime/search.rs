//! Looks in IMA's list for a program: whether this kernel measured it, as far as a quote vouches for the list.

use super::Checkpoint;
use super::judge::relabelled;
use crate::codes::{self, Refusal};
use crate::measurements::LogHash;
use crate::measurements::ima::{Entries, Fold, ImaEntry};
use crate::tpm::{Bank, IMA_PCR};

/// A replay of the list from its start that notes whether a digest comes by. It takes a few hundred bytes
/// however long the list is, and goes on where it stood.
///
/// It says nothing until it stands where something authentic stands: [`Search::found`] needs the checkpoint.
#[derive(Clone, Debug)]
pub struct Search {
    hash: LogHash,
    wanted: Vec<u8>,
    bank: Bank,
    padded: bool,
    entries: u64,
    offset: u64,
    fold: Fold,
    entry: Option<u64>,
    /// The algorithms that the list's digests are of.
    seen: Vec<LogHash>,
}

impl Search {
    /// A search for this digest, of SHA-256 or longer, in the list that the checkpoint is of.
    ///
    /// # Errors
    /// [`codes::VERIFY_BANK`].
    pub fn start(hash: LogHash, wanted: &[u8], list: &Checkpoint) -> Result<Self, Refusal> {
        let bank: Bank =
            list.bank.parse().map_err(|what: String| Refusal::new(codes::VERIFY_BANK, what).at("IMA checkpoint"))?;
        let fold = Fold::start(bank.into(), list.padded);
        let (padded, wanted) = (list.padded, wanted.to_vec());
        Ok(Self { hash, wanted, bank, padded, entries: 0, offset: 0, fold, entry: None, seen: Vec::new() })
    }

    /// Whether it can go on to this checkpoint: one of the same bank, not behind it.
    pub fn leads_to(&self, to: &Checkpoint) -> bool {
        (self.bank.as_str(), self.padded) == (to.bank.as_str(), to.padded) && self.offset <= to.offset
    }

    /// Where it stands, in bytes from the list's start.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes in `bytes`, the list from [`Self::offset`] on, but nothing beyond the checkpoint. Says whether it
    /// went on at all: the bytes may end within an entry.
    ///
    /// # Errors
    /// Those of [`Entries`], and [`codes::VERIFY_IMA_PCR`].
    pub fn take(&mut self, bytes: &[u8], to: &Checkpoint) -> Result<bool, Refusal> {
        let mut entries = Entries::new(bytes, self.entries, self.offset);
        let before = self.offset;
        while self.offset < to.offset {
            let Some(entry) = entries.next() else { break };
            let entry = entry?;
            if entry.pcr != IMA_PCR {
                return Err(Refusal::new(codes::VERIFY_IMA_PCR, format!("PCR {}", entry.pcr))
                    .at(format!("IMA entry {}", entry.number))
                    .expected(format!("PCR {IMA_PCR}")));
            }
            self.fold.take(&entry);
            self.look(&entry);
            (self.entries, self.offset) = (entries.number(), entries.offset());
        }
        Ok(self.offset > before)
    }

    /// The number of the entry that measured the digest, if any did; the outer `None` if this replay isn't
    /// the list that the checkpoint vouches for.
    pub fn found(&self, at: &Checkpoint) -> Option<Option<u64>> {
        let same = self.leads_to(at)
            && (self.offset, self.entries) == (at.offset, at.entries)
            && self.fold.value() == at.value.as_slice();
        same.then_some(self.entry)
    }

    /// The algorithms of the digests met so far.
    pub fn algorithms(&self) -> &[LogHash] {
        &self.seen
    }

    fn look(&mut self, entry: &ImaEntry<'_>) {
        let fields = &entry.fields;
        // Of a violation the PCR vouches for nothing, and of the template's name never.
        let file = ["ima-ng", "ima-sig", "ima-ngv2", "ima-sigv2"].contains(&entry.template)
            && fields.path.starts_with(b"/")
            && !entry.violation
            && relabelled(entry).is_none();
        let Some(hash) = LogHash::from_name(fields.algorithm).filter(|_| file) else { return };
        if !self.seen.contains(&hash) {
            self.seen.push(hash);
        }
        if self.entry.is_none() && hash == self.hash && fields.digest == self.wanted {
            self.entry = Some(entry.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(template: &str, algorithm: &str, digest: &[u8], path: &str, violation: bool) -> Vec<u8> {
        let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
        let digest = [algorithm.as_bytes(), b":\0", digest].concat();
        let data = [field(&digest), field(&[path.as_bytes(), b"\0"].concat())].concat();
        let more = if template == "ima-sig" { field(&[]) } else { Vec::new() };
        let data = [data, more].concat();
        [&10u32.to_le_bytes()[..], &[u8::from(!violation); 20], &field(template.as_bytes()), &field(&data)].concat()
    }

    /// The checkpoint behind a whole list.
    fn behind(list: &[u8]) -> Checkpoint {
        let mut fold = Fold::start(LogHash::Sha256, false);
        let mut entries = Entries::new(list, 0, 0);
        for entry in entries.by_ref() {
            fold.take(&entry.unwrap());
        }
        let start = Checkpoint::start(Bank::Sha256);
        Checkpoint { entries: entries.number(), offset: list.len() as u64, value: fold.value().to_vec(), ..start }
    }

    fn search(list: &[u8], at: &Checkpoint, chunk: usize) -> Option<Option<u64>> {
        let mut search = Search::start(LogHash::Sha256, &[7; 32], at).unwrap();
        let mut size = chunk;
        while search.offset() < at.offset {
            let rest = &list[usize::try_from(search.offset()).unwrap()..];
            if search.take(&rest[..size.min(rest.len())], at).unwrap() {
                size = chunk;
            } else if size > list.len() {
                break;
            } else {
                size *= 2;
            }
        }
        search.found(at)
    }

    #[test]
    fn only_a_measured_file_within_the_attested_part_is_found() {
        let list = [
            entry("ima-ng", "sha256", &[1; 32], "boot_aggregate", false),
            entry("ima-ng", "sha256", &[7; 32], "no_file", false),
            entry("ima-ng", "sha256", &[7; 32], "/violated", true),
            entry("ima-ng", "sha512", &[7; 64], "/other", false),
            entry("ima-sig", "sha256", &[7; 32], "/usr/bin/app", false),
        ];
        let whole = list.concat();
        let (before, after) = (behind(&list[..4].concat()), behind(&whole));
        for chunk in [1, 40, 1000] {
            assert_eq!(search(&whole, &before, chunk), Some(None), "not vouched for yet");
            assert_eq!(search(&whole, &after, chunk), Some(Some(4)));
        }
        // A list that isn't the one that was attested shows nothing, whatever stands in it.
        let forged =
            [&list[..3], &[entry("ima-ng", "sha512", &[8; 64], "/other", false)], &list[4..]].concat().concat();
        assert_eq!(forged.len(), whole.len());
        assert_eq!(search(&forged, &after, 1000), None);
        assert_eq!(search(&whole, &Checkpoint { padded: true, ..after.clone() }, 1000), None);
        assert_eq!(search(&whole, &Checkpoint { entries: 4, ..after.clone() }, 1000), None);
        // An offset within an entry is nobody's.
        assert_eq!(search(&whole, &Checkpoint { offset: after.offset - 1, ..after }, 1000), None);
    }

    #[test]
    fn the_algorithms_of_a_list_are_told() {
        let list = [entry("ima-ng", "sha512", &[7; 64], "/a", false), entry("ima-ng", "sha1", &[7; 20], "/b", false)];
        let list = list.concat();
        let at = behind(&list);
        let mut search = Search::start(LogHash::Sha512, &[7; 64], &at).unwrap();
        assert!(search.take(&list, &at).unwrap());
        assert_eq!(search.found(&at), Some(Some(0)));
        assert_eq!(search.algorithms(), [LogHash::Sha512, LogHash::Sha1]);
    }
}
