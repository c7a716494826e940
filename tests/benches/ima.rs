//! IMA lists of a million entries: what the first appraisal costs beside hashing the same bytes, and
//! what an increment costs after few and after many. `LEASEHOLD_BENCH_ENTRIES` sets another length.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a bench fails by panicking"
)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use leasehold::measurements::LogHash;
use leasehold::measurements::ima::{Entries, Fold};
use leasehold::tpm::Bank;
use leasehold::verify::runtime::{Checkpoint, CompiledRules, Judge};

#[path = "../measurements/ima_made.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod ima_made;

fn main() {
    // `cargo test` runs benches too, each once, to see that they work.
    let usual = if std::env::args().any(|argument| argument == "--bench") { 1_000_000 } else { 10_000 };
    let entries = std::env::var("LEASEHOLD_BENCH_ENTRIES").map_or(usual, |text| text.parse().unwrap());
    let (list, rules) = ima_made::long(entries + 10);
    let rules = rules.compile().unwrap();
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(10))
        .configure_from_args();

    let bytes = &list.bytes[..list.ends[entries - 1]];
    println!("{entries} entries, {} bytes: {} a piece", bytes.len(), bytes.len() / entries);
    println!("memory with list and rules: {}", peak());
    first(&mut criterion, bytes, &rules);
    println!("memory at most: {}", peak());
    for before in [1_000, entries] {
        increment(&mut criterion, &list, before, &rules);
    }
    criterion.final_summary();
}

/// The whole list at once.
fn first(criterion: &mut Criterion, bytes: &[u8], rules: &CompiledRules) {
    let mut group = criterion.benchmark_group("first appraisal");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("SHA-256 of the same bytes", |bencher| {
        bencher.iter(|| LogHash::Sha256.digest(&[black_box(bytes)]));
    });
    group.bench_function("each template data hashed, nothing else", |bencher| {
        bencher.iter(|| {
            let hash = |entry: leasehold::measurements::ima::ImaEntry<'_>| LogHash::Sha256.digest(&[entry.data])[0];
            Entries::new(black_box(bytes), 0, 0).map(|entry| u64::from(hash(entry.unwrap()))).sum::<u64>()
        });
    });
    group.bench_function("replay", |bencher| {
        bencher.iter(|| {
            let mut fold = Fold::start(LogHash::Sha256, false);
            for entry in Entries::new(black_box(bytes), 0, 0) {
                fold.take(&entry.unwrap());
            }
            fold.value().to_vec()
        });
    });
    group.bench_function("replay and judgement", |bencher| {
        bencher.iter(|| judged(black_box(bytes), rules).entries);
    });
    group.finish();
}

/// Ten entries more.
fn increment(criterion: &mut Criterion, list: &ima_made::List, before: usize, rules: &CompiledRules) {
    let (from, to) = (list.ends[before - 1], list.ends[before + 9]);
    let at = judged(&list.bytes[..from], rules);
    let stored = serde_cbor::to_vec(&at).unwrap();
    let target = {
        let mut judge = Judge::new(Some(rules), at);
        judge.take(&list.bytes[from..to], None).unwrap();
        judge.at.value
    };
    println!("a checkpoint after {before} entries: {} bytes", stored.len());
    criterion.bench_function(&format!("10 entries after {before}, checkpoint read and written"), |bencher| {
        bencher.iter(|| {
            let mut judge = Judge::new(Some(rules), serde_cbor::from_slice(black_box(&stored)).unwrap());
            assert!(judge.take(&list.bytes[from..to], Some(&target)).unwrap());
            serde_cbor::to_vec(&judge.at).unwrap()
        });
    });
}

fn judged(bytes: &[u8], rules: &CompiledRules) -> Checkpoint {
    let mut judge = Judge::new(Some(rules), Checkpoint::start(Bank::Sha256));
    judge.take(bytes, None).unwrap();
    judge.at
}

/// The most memory this process had so far.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim().to_owned()
}
