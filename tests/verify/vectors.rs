//! The vectors: made here with fixed keys, checked in as files, played from the files.
//!
//! Each differs from the accepted one in one thing; whatever else would give it away is made right
//! again, as an attacker would. `LEASEHOLD_BLESS=1` writes the files anew.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::codes::{self, Code};

use crate::listed::make;
use crate::vector::{directory, files, read_all};

#[test]
fn each_vector_meets_its_refusal() {
    for (listed, vector) in read_all() {
        let found = vector.play().map_err(|refusal| refusal.code);
        // What only a control plane can know is no fault in the submission itself.
        let expected = if listed.expected.is_empty() || !listed.server.is_empty() {
            Ok(())
        } else {
            Err(Code::from_text(&listed.expected))
        };
        assert_eq!(found, expected, "{}: {}", listed.name, listed.description);
    }
}

#[test]
fn each_refusal_has_its_own_code() {
    let mut of_code: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (listed, _) in read_all() {
        assert!(listed.expected.is_empty() || Code::from_text(&listed.expected) != codes::PROTOCOL_UNKNOWN_CODE);
        // `V04a-…` and `V04b-…` are two ways to one refusal.
        let number = listed.name.split('-').next().unwrap().trim_end_matches(char::is_alphabetic).to_owned();
        of_code.entry(listed.expected).or_default().insert(number);
    }
    for (code, numbers) in of_code {
        assert_eq!(numbers.len(), 1, "{numbers:?} share {code}");
    }
}

#[test]
fn the_files_are_what_is_made_here() {
    let made = files(&make());
    if std::env::var_os("LEASEHOLD_BLESS").is_some() {
        std::fs::create_dir_all(directory()).unwrap();
        for (name, text) in &made {
            std::fs::write(directory().join(name), text).unwrap();
        }
    }
    for (name, text) in &made {
        let found = std::fs::read_to_string(directory().join(name)).unwrap_or_default();
        assert!(found == *text, "{name} differs from what is made; LEASEHOLD_BLESS=1 writes it anew");
    }
    let found: BTreeSet<String> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, made.into_keys().collect());
}
