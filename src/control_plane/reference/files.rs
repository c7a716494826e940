//! Digests of files, for the rules of the runtime: a directory tree, or a list that another tool made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::unusable;
use crate::codes::Refusal;
use crate::measurements::ima::escaped;

/// The most files of one tree or list.
const FILES_LIMIT: usize = 1_000_000;
/// The largest list, in bytes.
const LIST_LIMIT: u64 = 256 << 20;

/// Digests by path, as the rules have them: `sha256:…`.
pub type Files = BTreeMap<String, Vec<String>>;

/// Adds a file's digest, once.
pub fn add(files: &mut Files, path: String, digest: &str) {
    let digests = files.entry(path).or_default();
    let text = format!("sha256:{digest}");
    if !digests.contains(&text) {
        digests.push(text);
    }
}

/// The regular files below `root`, by the paths they have when `root` is `/`. Symbolic links are
/// neither followed nor listed: the kernel measures what they lead to. `told` hears of each file.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] naming a file that can't be read.
pub fn tree(root: &Path, mut told: impl FnMut(usize)) -> Result<Files, Refusal> {
    let mut files = Files::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        let failed = |e: std::io::Error| unusable(directory.display().to_string(), e.to_string());
        for entry in std::fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (kind, path) = (entry.file_type().map_err(failed)?, entry.path());
            if kind.is_dir() {
                waiting.push(path);
            } else if kind.is_file() {
                add(&mut files, path_below(root, &path), &digest(&path)?);
                told(files.len());
            }
            if files.len() > FILES_LIMIT {
                return Err(unusable(root.display().to_string(), "more than a million files"));
            }
        }
    }
    Ok(files)
}

/// A list as sha256sum writes it: digest, two characters, path.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] naming the line.
pub fn list(path: &Path) -> Result<Files, Refusal> {
    let bytes = read(path, LIST_LIMIT)?;
    let mut files = Files::new();
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let wrong = || {
            unusable(format!("{} line {}", path.display(), number + 1), "no digest and path")
                .expected("64 hexadecimal digits, a blank, a blank or `*`, a path, as sha256sum writes them")
        };
        // sha256sum escapes a name with a line feed in it, and says so with a `\` in front.
        let (digest, rest) = line.split_at_checked(64).ok_or_else(wrong)?;
        let digest = std::str::from_utf8(digest).ok().filter(|digest| hex::decode(digest).is_ok()).ok_or_else(wrong)?;
        let name = rest.strip_prefix(b"  ").or_else(|| rest.strip_prefix(b" *")).ok_or_else(wrong)?;
        let name = name.strip_prefix(b".").filter(|name| name.starts_with(b"/")).unwrap_or(name);
        if !name.starts_with(b"/") {
            return Err(wrong().expected("absolute paths, or ones that begin with `./`"));
        }
        add(&mut files, escaped(name), &digest.to_ascii_lowercase());
    }
    Ok(files)
}

/// A whole file of at most `limit` bytes.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`].
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Refusal> {
    let failed = |what: String| unusable(path.display().to_string(), what);
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large from one that is just so large.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
    match u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
        true => Ok(bytes),
        false => Err(failed("it is too large".to_owned()).expected(format!("at most {limit} bytes"))),
    }
}

/// SHA-256 of what a reader gives, in hexadecimal.
///
/// # Errors
/// Those of the reader.
pub fn digest_of(reader: &mut impl Read) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            count => hash.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

fn digest(path: &PathBuf) -> Result<String, Refusal> {
    File::open(path)
        .and_then(|mut file| digest_of(&mut file))
        .map_err(|e| unusable(path.display().to_string(), e.to_string()))
}

fn path_below(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    format!("/{}", escaped(below.as_os_str().as_bytes()))
}
