//! The public test data, where it is.

use std::path::{Path, PathBuf};

/// The folder of logs and certificates; `None`, loudly, when it isn't there.
pub fn testdata() -> Option<PathBuf> {
    let directory = match std::env::var_os("LEASEHOLD_TESTDATA") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/testdata"),
    };
    if directory.is_dir() {
        return Some(directory);
    }
    eprintln!("SKIPPED: no test data at {}; LEASEHOLD_TESTDATA says where it is", directory.display());
    None
}

/// All files below `root`, as paths relative to it, sorted.
pub fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

/// A file's bytes; those of a `.b64` file are decoded.
pub fn read(root: &Path, file: &str) -> Vec<u8> {
    let bytes = std::fs::read(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    match file.ends_with(".b64") {
        true => base64(&bytes),
        false => bytes,
    }
}

/// Decodes base64 (RFC 4648, 4) with line ends.
fn base64(text: &[u8]) -> Vec<u8> {
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for symbol in text.iter().filter(|symbol| !symbol.is_ascii_whitespace() && **symbol != b'=') {
        let value = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => panic!("{symbol} is not base64"),
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    bytes
}
