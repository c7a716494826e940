//! Secrets in memory and files that survive a power cut.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use secrecy::{ExposeSecret, SecretSlice, SecretString};
pub use zeroize::{Zeroize, Zeroizing};

use crate::codes::{self, Refusal};

/// `N` bytes from the operating system's generator.
///
/// # Errors
/// When the kernel has no randomness to give; nothing may go on without it.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(format!("the kernel gives no random bytes: {e}")))?;
    Ok(bytes)
}

/// Replaces `path` with `contents`, mode 0600, so that after a crash at any moment the file is
/// either the old one or the new one: write beside it, fsync, rename, fsync the directory.
///
/// # Errors
/// Any error of the file system, naming the path; the old file then stands.
pub fn write_atomically(path: &Path, contents: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A random name: a leftover of a killed writer is never reused, and two writers don't meet.
    let beside = directory.join(format!(".{name}.{}.new", hex::encode(random::<6>()?)));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(contents)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        // Best effort: the error that matters is the one of the write.
        let _ = std::fs::remove_file(&beside);
    }
    written.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// Removes what killed writers left beside `path`.
pub fn sweep_leftovers(path: &Path) {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return };
    let prefix = format!(".{}.", name.to_string_lossy());
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let file = file.to_string_lossy();
        if file.starts_with(&prefix) && file.ends_with(".new") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Reads a secret file of at most 1 MiB; refuses one that its group or others can read.
///
/// # Errors
/// [`codes::CONFIG_MODE`] for an open mode, [`codes::CONFIG_INVALID`] for anything else.
pub fn read_private(path: &Path) -> Result<SecretSlice<u8>, Refusal> {
    const LIMIT: u64 = 1 << 20;
    let invalid = |e: io::Error| Refusal::new(codes::CONFIG_INVALID, e.to_string()).at(path.display().to_string());
    // One descriptor for the check and the read, so the file can't be swapped in between.
    let file = File::open(path).map_err(invalid)?;
    let mode = file.metadata().map_err(invalid)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Refusal::new(codes::CONFIG_MODE, format!("mode {mode:04o}"))
            .at(path.display().to_string())
            .expected("0600: `chmod 600` it, and replace the secret if others may have read it"));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(invalid)?;
    if bytes.len() as u64 > LIMIT {
        return Err(Refusal::new(codes::CONFIG_INVALID, "more than 1 MiB").at(path.display().to_string()));
    }
    Ok(SecretSlice::from(bytes.to_vec()))
}

/// Creates `directory` with mode 0700 if it is missing.
///
/// # Errors
/// Any error of the file system, naming the path.
pub fn private_directory(directory: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", directory.display())))?;
    Ok(directory.to_path_buf())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_private_and_swapped_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::write(dir.path().join(".state.aabbcc.new"), b"torn").unwrap();
        sweep_leftovers(&path);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_atomically(&dir.path().join("none/state"), b"x").is_err());
    }

    #[test]
    fn an_open_secret_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_atomically(&path, b"key").unwrap();
        assert_eq!(read_private(&path).unwrap().expose_secret(), b"key");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read_private(&path).unwrap_err().code, codes::CONFIG_MODE);
    }
}
