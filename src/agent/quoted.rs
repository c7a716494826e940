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
        while let Some(entry) = entries.next() {
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
