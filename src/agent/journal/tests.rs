//! The journal against changed bytes, torn ends, full disks, hostile words and many at a time.

use std::fs;
use std::path::{Path, PathBuf};

use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::pkcs8::EncodePublicKey;

use super::check::{self, Found, MARKS, name_of};
use super::*;
use crate::protocol::{Chain, SignedHead};

fn key() -> SigningKey {
    SigningKey::from_slice(&[7; 32]).unwrap()
}

fn signed(head: Head) -> SignedHead {
    SignedHead::new(head, &key().sign_prehash(&head.digest()).unwrap())
}

fn note(what: What, process: &str) -> Note {
    Note {
        what,
        workload: Some("spiffe://example.org/web".to_owned()),
        credential: Some("0a1b".to_owned()),
        decision: Some("d".repeat(32)),
        task: None,
        lease: Some(7),
        process: process.to_owned(),
        code: None,
        reason: String::new(),
    }
}

fn records(count: usize) -> Vec<Record> {
    (0..count).map(|n| note(What::Release { uid: 7 }, &format!("process {n}")).record(1)).collect()
}

/// A spool of `count` records in `directory`, each written by itself.
fn sample(directory: &Path, count: usize) -> Spool {
    let mut spool = Spool::new(directory.to_path_buf(), 1 << 30);
    for record in records(count) {
        spool.append(&[record]).unwrap();
    }
    spool
}

fn found(directory: &Path) -> Found {
    check::read(directory, &mut |_| {}).unwrap().unwrap()
}

fn first_fault(directory: &Path) -> (u64, Code) {
    let found = found(directory);
    let fault = found.faults.first().unwrap_or_else(|| panic!("nothing was found: {found:?}"));
    (fault.number, fault.refusal.code)
}

fn segment(directory: &Path) -> PathBuf {
    directory.join(name_of(1))
}

#[test]
fn what_was_written_is_there_after_a_restart_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("journal");
    let before = sample(&at, 3).head().unwrap();
    let mut again = Spool::new(at.clone(), 1 << 20);
    again.append(&records(2)).unwrap();
    let head = again.head().unwrap();
    assert_eq!((head.writer, head.number), (before.writer, 5));
    let mut numbers = Vec::new();
    let found = check::read(&at, &mut |record| numbers.push(record.number)).unwrap().unwrap();
    assert_eq!((found.faults, found.torn, found.head), (Vec::new(), None, Some(head)));
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(segment(&at)).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(check::read(&dir.path().join("none"), &mut |_| {}).unwrap().is_none());
}

/// Every byte of a spool, changed in several ways: found, and the record named.
#[test]
fn a_changed_byte_anywhere_is_found_and_named() {
    // In memory, where there is such a place: thousands of files are written here.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let at = dir.path().join("journal");
    sample(&at, 6);
    let path = segment(&at);
    let whole = fs::read(&path).unwrap();
    let mut tried = 0;
    for position in 0..whole.len() {
        // Line 0 is the segment's own, by which its first record is named.
        let line = whole[..position].iter().filter(|byte| **byte == b'\n').count() as u64;
        for mask in [0x01, 0x02, 0x20, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[position] ^= mask;
            fs::write(&path, &changed).unwrap();
            let (number, code) = first_fault(&at);
            assert_eq!(number, line.max(1), "byte {position} ^ {mask:#04x}: {code}");
            tried += 1;
        }
    }
    println!("{tried} changes of {} bytes, all found and named", whole.len());
    // The marks, too: what they vouch for, or their signature, then doesn't hold.
    fs::write(&path, &whole).unwrap();
    let mut spool = Spool::new(at.clone(), 1 << 20);
    spool.open().unwrap();
    let head = spool.head().unwrap();
    spool.signed(signed(head)).unwrap();
    spool.acknowledged(Head { number: 2, chain: spool.chain_at(2).unwrap(), ..head }, None).unwrap();
    drop(spool);
    let spki = key().verifying_key().to_public_key_der().unwrap().to_vec();
    let marks = fs::read(at.join(MARKS)).unwrap();
    let holds = || {
        let found = found(&at);
        let signed = found.marks.as_ref().and_then(|marks| marks.signed.as_ref());
        found.faults.is_empty() && signed.is_some_and(|signed| signed.signed_by(&spki))
    };
    assert!(holds());
    for position in 0..marks.len() {
        for mask in [0x01, 0x20, 0x80, 0xff] {
            let mut changed = marks.clone();
            changed[position] ^= mask;
            fs::write(at.join(MARKS), &changed).unwrap();
            assert!(!holds(), "byte {position} of the marks ^ {mask:#04x}");
        }
    }
}

#[test]
fn records_that_are_missing_twice_or_elsewhere_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("journal");
    sample(&at, 6);
    let text = fs::read_to_string(segment(&at)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let with = |lines: &[&str]| {
        fs::write(segment(&at), lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        first_fault(&at)
    };
    // Line n is record n.
    assert_eq!(with(&[&lines[..3], &lines[4..]].concat()), (3, codes::AUDIT_GAP));
    assert_eq!(with(&[&lines[..4], &lines[3..]].concat()), (4, codes::AUDIT_TAMPERED));
    assert_eq!(with(&[&lines[..3], &[lines[4], lines[3]], &lines[5..]].concat()), (3, codes::AUDIT_GAP));
    assert_eq!(with(&lines[1..]), (1, codes::AUDIT_TAMPERED));
    // A record made anew, chain and all: the ones after it don't follow.
    let forged = Record { number: 3, what: "forged".to_owned(), count: 1, ..Record::default() }.line();
    let chain = Chain::from_text(&lines[2][..64]).unwrap().then(&forged);
    let forged = format!("{chain} {forged}");
    assert_eq!(with(&[&lines[..3], &[&forged], &lines[4..]].concat()), (4, codes::AUDIT_TAMPERED));
    fs::write(segment(&at), &text).unwrap();
    fs::remove_file(at.join(MARKS)).unwrap();
    assert_eq!(first_fault(&at), (0, codes::AUDIT_TAMPERED));
}

/// Whoever changes a record and computes the chain anew is found by the head that was signed.
#[test]
fn a_chain_computed_anew_and_a_cut_before_the_signed_head_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("journal");
    let mut spool = sample(&at, 5);
    spool.signed(signed(spool.head().unwrap())).unwrap();
    drop(spool);
    let text = fs::read_to_string(segment(&at)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut chain = Chain::from_text(lines[0].rsplit(' ').next().unwrap()).unwrap();
    let mut anew = format!("{}\n", lines[0]);
    for line in &lines[1..] {
        let record = line[65..].replace("process 1", "process 9");
        chain = chain.then(&record);
        anew.push_str(&format!("{chain} {record}\n"));
    }
    fs::write(segment(&at), anew).unwrap();
    assert_eq!(first_fault(&at), (5, codes::AUDIT_TAMPERED));
    // Cut at every byte: never taken for a torn end, always named.
    for length in 0..text.len() {
        fs::write(segment(&at), &text[..length]).unwrap();
        let line = text[..length].lines().count().saturating_sub(usize::from(!text[..length].ends_with('\n')));
        let (number, _) = first_fault(&at);
        assert_eq!(number, line.max(1) as u64, "cut to {length} bytes");
    }
    fs::remove_file(segment(&at)).unwrap();
    assert_eq!(first_fault(&at), (1, codes::AUDIT_GAP));
}

/// Cut at every byte of the last record: torn, and nothing else; the next start cuts it off and says so.
#[test]
fn a_torn_end_is_told_from_tampering_and_healed() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("journal");
    let mut spool = sample(&at, 3);
    spool.signed(signed(spool.head().unwrap())).unwrap();
    let whole = fs::read(segment(&at)).unwrap();
    spool.append(&records(1)).unwrap();
    drop(spool);
    let longer = fs::read(segment(&at)).unwrap();
    for length in whole.len()..longer.len() {
        fs::write(segment(&at), &longer[..length]).unwrap();
        let present = found(&at);
        assert_eq!(present.faults, [], "cut to {length} bytes");
        let torn = present.torn.map(|torn| (torn.number, torn.bytes));
        let bytes = (length - whole.len()) as u64;
        assert_eq!(torn, (bytes > 0).then_some((4, bytes)));
    }
    // Zeros where the file grew before its content arrived.
    let written = longer.len() - longer.len() % 512;
    assert!(written > whole.len() || longer.len() < whole.len() + 512, "the sample has its block's end in record 4");
    for kept in [written, written + 7] {
        let mut zeros = longer[..kept.min(longer.len() - 1)].to_vec();
        zeros.resize(longer.len() + 512, 0);
        let present = found_with(&at, &zeros);
        let torn = present.torn.map(|torn| torn.number);
        // Disks write whole blocks: zeros that begin elsewhere are nobody's power cut.
        assert_eq!((torn == Some(4)), kept.is_multiple_of(512) && kept >= whole.len(), "{kept}");
    }
    // What isn't how a record begins is no torn end.
    for tail in [&b"x"[..], b"0123 {", &[0; 7], b"\n"] {
        let changed = [&whole[..], tail].concat();
        let present = found_with(&at, &changed);
        assert!(!present.faults.is_empty(), "{tail:?}: {present:?}");
    }
    fs::write(segment(&at), &longer[..longer.len() - 9]).unwrap();
    let mut spool = Spool::new(at.clone(), 1 << 20);
    spool.append(&records(1)).unwrap();
    let mut what = Vec::new();
    let present = check::read(&at, &mut |record| what.push(record.what.clone())).unwrap().unwrap();
    assert_eq!((present.faults, present.torn), (Vec::new(), None));
    assert_eq!(what[3..], ["audit.torn", "credential.released"]);
}

fn found_with(at: &Path, bytes: &[u8]) -> Found {
    fs::write(segment(at), bytes).unwrap();
    found(at)
}

#[test]
fn what_was_changed_is_put_aside_and_a_new_journal_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("journal");
    let before = sample(&at, 4).head().unwrap();
    let text = fs::read_to_string(segment(&at)).unwrap();
    fs::write(segment(&at), text.replace("process 2", "process 5")).unwrap();
    let mut spool = Spool::new(at.clone(), 1 << 20);
    spool.append(&records(1)).unwrap();
    assert_ne!(spool.head().unwrap().writer, before.writer);
    let mut said = Vec::new();
    check::read(&at, &mut |record| said.push(record.clone())).unwrap();
    assert_eq!(said[0].what, "audit.tampered");
    assert_eq!(said[0].detail["record"], 3);
    assert_eq!(said[0].detail["writer"], before.writer.to_string());
    assert!(dir.path().join(said[0].detail["kept"].as_str().unwrap()).join(name_of(1)).exists());
}

fn said(at: &Path) -> Vec<String> {
    let mut what = Vec::new();
    check::read(at, &mut |record| what.push(record.what.clone())).unwrap();
    what
}

/// Killed anywhere while the old journal makes way: the new one says what happened.
#[test]
fn a_kill_doesnt_hide_why_a_journal_began() {
    let dir = tempfile::tempdir().unwrap();
    let (at, next) = (dir.path().join("journal"), dir.path().join("journal.next"));
    drop(sample(&at, 2));
    let reason = Refusal::new(codes::AUDIT_TAMPERED, "record 1 differs");
    // Before the old one made way: something of the new one is there, and the old one is used on.
    fs::create_dir(&next).unwrap();
    fs::write(next.join(MARKS), "half").unwrap();
    let mut spool = Spool::new(at.clone(), 1 << 20);
    spool.open().unwrap();
    assert_eq!(said(&at), ["credential.released"; 2]);
    spool.begin_anew(&reason).unwrap();
    drop(spool);
    assert_eq!(said(&at), ["audit.tampered"], "nothing had to be written after it");
    // After that, and before the new one took its place.
    fs::rename(&at, &next).unwrap();
    let mut spool = Spool::new(at.clone(), 1 << 20);
    spool.append(&records(1)).unwrap();
    assert_eq!(said(&at), ["audit.tampered", "credential.released"]);
    assert!(!next.exists());
}

/// A record that was cut off is said once, however often the agent is killed before and after it says so.
#[test]
fn a_kill_doesnt_hide_a_torn_end() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("journal");
    drop(sample(&at, 2));
    let whole = fs::read(segment(&at)).unwrap();
    fs::write(segment(&at), &whole[..whole.len() - 9]).unwrap();
    for _ in 0..3 {
        Spool::new(at.clone(), 1 << 20).open().unwrap();
        assert_eq!(said(&at), ["credential.released"], "cut off, and not said yet");
    }
    let cut = fs::read(at.join(MARKS)).unwrap();
    Spool::new(at.clone(), 1 << 20).append(&[]).unwrap();
    assert_eq!(said(&at), ["credential.released", "audit.torn"]);
    // Killed before it could be noted that it was said.
    fs::write(at.join(MARKS), cut).unwrap();
    let mut spool = Spool::new(at.clone(), 1 << 20);
    spool.append(&records(1)).unwrap();
    assert_eq!(said(&at), ["credential.released", "audit.torn", "credential.released"]);
    assert!(!spool.was_torn());
}

#[test]
fn journals_that_were_put_aside_are_few() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("journal");
    let mut spool = sample(&at, 2);
    let asides = || {
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("journal-aside-")).collect::<std::collections::BTreeSet<_>>()
    };
    let reason = Refusal::new(codes::AUDIT_TAMPERED, "so it says");
    spool.begin_anew(&reason).unwrap();
    let first = asides();
    for _ in 0..20 {
        spool.begin_anew(&reason).unwrap();
    }
    assert_eq!(asides().len(), 8);
    assert!(first.is_subset(&asides()), "the first is the one that somebody changed");
}

#[test]
fn segments_are_kept_until_acknowledged_and_a_full_spool_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("journal");
    let limit = 12 << 20;
    let mut spool = Spool::new(at.clone(), limit);
    let group = records(2000);
    let refused = loop {
        if let Err(refusal) = spool.append(&group) {
            break refusal;
        }
    };
    assert_eq!(refused.code, codes::AUDIT_UNWRITABLE);
    assert!(refused.found.contains("full"), "{refused}");
    let head = spool.head().unwrap();
    // In order, in batches, each where the one before ended.
    let (mut next, mut chain) = (1, Chain::begin(&head.writer));
    while next <= head.number {
        let batch = spool.batch(next, head.number).unwrap();
        assert_eq!((batch.first, batch.before), (next, chain));
        for line in &batch.lines {
            chain = chain.then(line);
        }
        assert_eq!(batch.head.chain, chain);
        next = batch.head.number + 1;
    }
    let segments = || fs::read_dir(&at).unwrap().count() - 1;
    let before = segments();
    spool.acknowledged(head, None).unwrap();
    assert!(segments() < before, "the control plane has them");
    assert_eq!(spool.batch(1, head.number).unwrap_err().code, codes::AUDIT_GAP);
    spool.append(&group).unwrap();
    drop(spool);
    assert_eq!(found(&at).faults, []);
    // A segment that is missing in the middle, and one at the beginning that wasn't acknowledged.
    let mut paths: Vec<_> = fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    fs::remove_file(&paths[1]).unwrap();
    assert_eq!(first_fault(&at).1, codes::AUDIT_GAP);
}

/// 100,000 hostile strings through every field: as many records as notes, each as it was given.
#[test]
fn hostile_words_are_words() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("journal");
    let mut spool = Spool::new(at.clone(), 1 << 30);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let pieces =
        ["\n", "\r\n", "\0", "\u{1b}[2J", "\u{202e}", "\u{2028}", "\"}", "\\u0041", "{\"number\":1}", "é", "😀"];
    let mut hostile = || -> String {
        (0..next() % 12)
            .map(|_| match next() % 3 {
                0 => pieces[(next() % pieces.len() as u64) as usize].to_owned(),
                1 => char::from_u32((next() % 0x11_0000) as u32).unwrap_or('\u{fffd}').to_string(),
                _ => char::from((next() % 256) as u8).to_string(),
            })
            .collect()
    };
    let mut given = Vec::new();
    const TEXTS: usize = 100_000;
    // Five fields of a note are text of others.
    while given.len() < TEXTS / 5 {
        let mut group = Vec::new();
        for _ in 0..1000 {
            let note = Note {
                what: What::Deny,
                workload: Some(hostile()),
                credential: Some(hostile()),
                decision: Some(hostile()),
                task: Some(hostile()),
                lease: None,
                process: format!("p{}", hostile()),
                code: None,
                reason: format!("r{}", hostile()),
            };
            group.push(note.record(1));
            given.push(note);
        }
        spool.append(&group).unwrap();
    }
    let mut read = Vec::new();
    let present = check::read(&at, &mut |record| read.push(record.clone())).unwrap().unwrap();
    assert_eq!((present.faults, present.torn), (Vec::new(), None));
    assert_eq!(read.len(), given.len());
    for (number, (record, note)) in read.iter().zip(&given).enumerate() {
        assert_eq!(*record, Record { number: number as u64 + 1, time: record.time, ..note.record(1) });
        assert_eq!(record.process.as_deref(), Some(note.process.as_str()));
    }
    println!("{} texts in {} records, all as given", given.len() * 6, read.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_a_time_share_writes_and_repeats_share_records() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, thread) = Journal::start(dir.path(), 1 << 30).unwrap();
    let writers: Vec<_> = (0..500)
        .map(|n| {
            let journal = journal.clone();
            tokio::spawn(async move { journal.write(note(What::Release { uid: 7 }, &format!("process {n}"))).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    let standing = journal.standing().borrow().clone();
    assert_eq!(standing.number, 500);
    assert!(standing.writes < 400, "{} writes to the disk for 500 at a time", standing.writes);
    // One process that asks and asks: written at once the first time, then counted.
    let since = BootInstant::now();
    for _ in 0..20_000 {
        journal.write(note(What::Release { uid: 7 }, "busy")).await.unwrap();
    }
    let took = BootInstant::now().since(since);
    for n in 0..100 {
        journal.denied(Note { reason: format!("words {n}"), ..note(What::Deny, "uid 7") });
    }
    assert!(thread.stop(std::time::Duration::from_secs(60)).await);
    let (mut busy, mut denied) = (Vec::new(), Vec::new());
    let at = dir.path().join(DIRECTORY);
    let present = check::read(&at, &mut |record| match record.process.as_deref() {
        Some("busy") => busy.push(record.count),
        Some("uid 7") => denied.push(record.count),
        _ => {}
    });
    assert_eq!(present.unwrap().unwrap().faults, []);
    assert_eq!((busy[0], busy.iter().sum::<u64>()), (1, 20_000));
    assert_eq!(denied.iter().sum::<u64>(), 100);
    assert!(busy.len() as u64 <= 3 + took.as_secs() / WINDOW.as_secs() && denied.len() <= 3, "{busy:?} {denied:?}");
    println!("20,000 by one process took {took:?}, in {} records", busy.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cant_be_written_lets_nothing_pass_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    // Where its directory should be is a file.
    fs::write(&state, "in the way").unwrap();
    let (journal, _thread) = Journal::start(&state, 1 << 20).unwrap();
    for _ in 0..2 {
        let refusal = journal.write(note(What::Release { uid: 7 }, "p")).await.unwrap_err();
        assert_eq!(refusal.code, codes::AUDIT_UNWRITABLE);
    }
    journal.denied(note(What::Deny, "uid 1"));
    assert!(journal.standing().borrow().trouble.is_some());
    fs::remove_file(&state).unwrap();
    journal.write(note(What::Release { uid: 7 }, "p")).await.unwrap();
    assert_eq!(journal.standing().borrow().trouble, None);
}

/// Whoever starts many processes, or says something else each time, doesn't fill the disk with denials.
#[tokio::test(flavor = "multi_thread")]
async fn denials_are_bounded_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, thread) = Journal::start(dir.path(), 1 << 30).unwrap();
    for n in 0..50_000 {
        let code = Some(codes::WORKLOAD_NO_MATCH);
        journal.denied(Note { code, reason: format!("running /tmp/{n}"), ..note(What::Deny, &format!("uid {n}")) });
    }
    assert!(thread.stop(std::time::Duration::from_secs(60)).await);
    let (mut written, mut denied) = (0, 0);
    check::read(&dir.path().join(DIRECTORY), &mut |record| {
        written += 1;
        denied += record.count;
    })
    .unwrap();
    assert_eq!(denied, 50_000);
    println!("50,000 denials of as many users in {written} records");
    assert!(written < 5_000, "{written} records");
}

/// One user's denials are one record a window, whatever words each has, also when the first was written meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_says_something_else_each_time_is_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, thread) = Journal::start(dir.path(), 1 << 30).unwrap();
    let since = BootInstant::now();
    for n in 0..100 {
        journal.denied(Note { reason: format!("running /tmp/{n}"), ..note(What::Deny, "uid 7") });
        // Once this is on the disk, what was said before is, too.
        journal.write(note(What::Release { uid: 7 }, &format!("process {n}"))).await.unwrap();
    }
    assert!(thread.stop(std::time::Duration::from_secs(60)).await);
    let took = BootInstant::now().since(since);
    let mut denied = Vec::new();
    check::read(&dir.path().join(DIRECTORY), &mut |record| {
        denied.extend((record.what == "credential.denied").then_some(record.count));
    })
    .unwrap();
    assert_eq!(denied.iter().sum::<u64>(), 100);
    assert!(denied.len() as u64 <= 2 + took.as_secs() / WINDOW.as_secs(), "{denied:?} in {took:?}");
}

/// Whoever has ever new processes, while the control plane is away, fills no journal that others need.
#[tokio::test(flavor = "multi_thread")]
async fn one_user_alone_doesnt_fill_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _thread) = Journal::start(dir.path(), 1 << 20).unwrap();
    let release = |uid, n| note(What::Release { uid }, &format!("process {n} of uid {uid}"));
    let mut next = 0;
    let refused = loop {
        let writes = (next..next + 200).map(|n| journal.write(release(7, n)));
        next += 200;
        assert!(next < 100_000, "it goes on and on");
        if let Err(refusal) = futures_util::future::try_join_all(writes).await {
            break refusal;
        }
    };
    assert_eq!(refused.code, codes::AUDIT_UNWRITABLE);
    assert!(refused.found.contains("uid 7"), "{refused}");
    let standing = journal.standing().borrow().clone();
    assert!(standing.waiting_bytes < standing.limit_bytes * 3 / 4, "{standing:?}");
    assert_eq!(standing.trouble, None, "the journal itself is well");
    assert_eq!(journal.write(release(7, 0)).await.unwrap_err().code, codes::AUDIT_UNWRITABLE, "repeats, too");
    for n in 0..50 {
        journal.write(release(8, n)).await.unwrap();
    }
    // The control plane is back.
    let head = journal.head().await.unwrap();
    journal.ask(|reply| Ask::Acknowledged(head, None, reply)).await.unwrap().unwrap();
    journal.write(release(7, next)).await.unwrap();
}
