//! What PCR 10 was when a quote was made, found by IMA's list.
//!
//! A quote names a digest over all its PCRs and takes a slow TPM a good part of a second; on a busy machine PCR
//! 10 is extended many times meanwhile, and no reading beside it would ever have the same value. But the list
//! says which values it went through since the reading, and the digest says which of them was quoted.

use super::sources::Sources;
use crate::codes::Refusal;
use crate::evidence::LogKind;
use crate::measurements::LogHash;
use crate::measurements::ima::{Entries, Fold};
use crate::tpm::{IMA_PCR, PcrValues};
use crate::verify::runtime::Checkpoint;

/// How much of the list is read at a time, in bytes.
const PIECE: usize = 4 << 20;

/// The values that the digest `quoted` is over: those of `read`, but for a PCR 10 that entries of the list after
/// `from` lead to from there. `None` if no entry does.
///
/// # Errors
/// When the list can't be read.
pub fn values(
    sources: &Sources,
    from: &Checkpoint,
    read: &PcrValues,
    quoted: &[u8],
) -> Result<Option<PcrValues>, Refusal> {
    let Some(beside) = read.get(IMA_PCR) else { return Ok(None) };
    let bank = LogHash::from(read.selection().bank());
    let Some(mut fold) = Fold::from(bank, from.padded, &from.value) else { return Ok(None) };
    // Before the value that was read, nothing is to be tried: a cheap comparison finds it.
    let mut reached = fold.value() == beside;
    let (mut number, mut offset) = (from.entries, from.offset);
    loop {
        let Some(piece) = sources.read(LogKind::Ima, offset, PIECE)? else { return Ok(None) };
        let mut entries = Entries::new(&piece, number, offset);
        for entry in entries.by_ref() {
            fold.take(&entry?);
            if reached && let Some(values) = read.with(IMA_PCR, fold.value()).filter(|it| it.digest() == *quoted) {
                return Ok(Some(values));
            }
            reached = reached || fold.value() == beside;
        }
        if entries.offset() == offset {
            return Ok(None);
        }
        (number, offset) = (entries.number(), entries.offset());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::config::AgentLogs;
    use crate::tpm::{Bank, PcrSelection};

    /// An `ima-ng` entry.
    fn entry(path: &str) -> Vec<u8> {
        let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
        let data = [field(&[&b"sha256:\0"[..], &[7; 32]].concat()), field(format!("{path}\0").as_bytes())].concat();
        [&10u32.to_le_bytes()[..], &[1; 20], &field(b"ima-ng"), &field(&data)].concat()
    }

    #[test]
    fn the_quoted_value_is_found_between_the_reading_and_the_end_of_the_list() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        let mut list = std::fs::File::create(&path).unwrap();
        let mut fold = Fold::start(LogHash::Sha256, false);
        let (mut values_of, mut offsets) = (vec![fold.value().to_vec()], vec![0]);
        for number in 0..20 {
            let bytes = entry(&format!("/{number}"));
            list.write_all(&bytes).unwrap();
            Entries::new(&bytes, number, 0).for_each(|entry| fold.take(&entry.unwrap()));
            values_of.push(fold.value().to_vec());
            offsets.push(offsets.last().unwrap() + bytes.len() as u64);
        }
        let none = std::path::PathBuf::new();
        let sources = Sources::open(&AgentLogs { boot: none.clone(), userspace: none, ima: path }).unwrap();
        let selection = PcrSelection::new(Bank::Sha256, [4, 10]).unwrap();
        let at = |number: usize| {
            PcrValues::new(selection, [(4, vec![4; 32]), (10, values_of[number].clone())].into()).unwrap()
        };
        let from = |number: usize| Checkpoint {
            entries: number as u64,
            offset: offsets[number],
            value: values_of[number].clone(),
            ..Checkpoint::start(Bank::Sha256)
        };
        let find = |place: usize, read: &PcrValues, quoted: &PcrValues| {
            values(&sources, &from(place), read, &quoted.digest()).unwrap()
        };
        for (place, read, quoted) in [(0, 5, 9), (5, 5, 6), (3, 4, 20), (19, 19, 20)] {
            assert_eq!(find(place, &at(read), &at(quoted)), Some(at(quoted)), "{place} {read} {quoted}");
        }
        // Not before the reading, not with another PCR, not from a reading that the list doesn't know.
        assert_eq!(find(0, &at(9), &at(5)), None);
        let other = at(5).with(4, &[9; 32]).unwrap();
        assert_eq!(find(0, &other, &at(9)), None);
        assert_eq!(find(0, &at(5).with(10, &[9; 32]).unwrap(), &at(9)), None);
    }
}
