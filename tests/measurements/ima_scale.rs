//! Long lists: an increment reads its own bytes, however many came before.

use leasehold::measurements::LogHash;
use leasehold::tpm::Bank;
use leasehold::verify::runtime::{Checkpoint, Judge};

use crate::ima_made::long;

#[test]
fn an_increment_takes_in_its_own_bytes_only() {
    const COUNT: usize = 50_000;
    let (mut list, rules) = long(COUNT);
    let rules = rules.compile().unwrap();
    for before in [1_000, COUNT] {
        let begin = list.ends[before - 1];
        let mut judge = Judge::new(Some(&rules), Checkpoint::start(Bank::Sha256));
        judge.take(&list.bytes[..begin], None).unwrap();
        assert_eq!(judge.at.unlisted_count, (before as u64 - 1) / 10);
        assert_eq!(judge.at.unlisted.len(), 64.min((before - 1) / 10));

        // What the checkpoint weighs doesn't grow with the list, and neither does what is handed over.
        let stored = serde_cbor::to_vec(&judge.at).unwrap();
        println!("{before} entries, {begin} bytes: a checkpoint of {} bytes", stored.len());
        assert!(stored.len() < 32 * 1024, "{}", stored.len());
        let mut judge = Judge::new(Some(&rules), serde_cbor::from_slice(&stored).unwrap());
        if before == COUNT {
            for number in 0..10 {
                list.measure(format!("/opt/new-{number}").as_bytes(), &[number + 1; 32]);
            }
        }
        let increment = &list.bytes[begin..list.ends[before + 9]];
        let target = list.pcr(LogHash::Sha256, false, before + 10);
        // Without the bytes before them: they are not there to be read.
        assert_eq!(judge.take(increment, Some(&target)), Ok(true));
        assert_eq!(judge.at.entries, before as u64 + 10);
        assert_eq!(judge.at.offset, (begin + increment.len()) as u64);
        println!("  10 entries more: {} bytes read", increment.len());
        assert!(increment.len() < 10 * 256);
    }
}
