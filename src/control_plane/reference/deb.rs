//! The files of a Debian package (deb(5)): `ar` with a `data.tar`, compressed or not.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::files::{self, Files};
use super::unusable;
use crate::codes::Refusal;
use crate::measurements::ima::escaped;

/// The most bytes a package's files may have, unpacked: 16 GiB. Nothing of them is kept.
const UNPACKED_LIMIT: u64 = 16 << 30;
/// The most memory that unpacking xz may take, in KiB: what its highest setting needs.
const XZ_MEMORY_KIB: u32 = 128 << 10;
/// The most files of a package.
const FILES_LIMIT: usize = 1_000_000;

/// Adds the regular files of the package at `path`, by their paths when it is installed.
///
/// # Errors
/// [`crate::codes::ADMIN_INVALID`] for a file that is no package, or that can't be unpacked.
pub fn read(path: &Path, found: &mut Files) -> Result<(), Refusal> {
    let failed = |e: std::io::Error| unusable(path.display().to_string(), e.to_string());
    let file = File::open(path).map_err(failed)?;
    let mut archive = ar::Archive::new(BufReader::new(file));
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(failed)?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        // Some tools end a member's name with a slash.
        let Some(compression) = name.trim_end_matches('/').strip_prefix("data.tar") else { continue };
        let data: Box<dyn Read + '_> = match compression {
            "" => Box::new(member),
            ".gz" => Box::new(flate2::read::GzDecoder::new(member)),
            ".xz" => Box::new(lzma_rust2::XzReader::new_mem_limit(member, true, XZ_MEMORY_KIB)),
            ".zst" => Box::new(
                ruzstd::decoding::StreamingDecoder::new(member)
                    .map_err(|e| unusable(path.display().to_string(), format!("{name}: {e}")))?,
            ),
            other => {
                return Err(unusable(path.display().to_string(), format!("data.tar{other}"))
                    .expected("data.tar, data.tar.gz, data.tar.xz or data.tar.zst"));
            }
        };
        return unpack(data, found).map_err(failed);
    }
    Err(unusable(path.display().to_string(), "it has no data.tar").expected("a Debian package"))
}

fn unpack(data: impl Read, found: &mut Files) -> std::io::Result<()> {
    let mut archive = tar::Archive::new(data.take(UNPACKED_LIMIT));
    // Hard links name a file of the same package; what they lead to is known after all entries.
    let mut links = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = installed(&entry.path_bytes());
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let digest = files::digest_of(&mut entry)?;
                files::add(found, path, &digest);
            }
            tar::EntryType::Link => {
                if let Some(target) = entry.link_name_bytes() {
                    links.push((path, installed(&target)));
                }
            }
            _ => {}
        }
        if found.len() > FILES_LIMIT || links.len() > FILES_LIMIT {
            return Err(std::io::Error::other("more than a million files"));
        }
    }
    for (path, target) in links {
        if let Some(digests) = found.get(&target).cloned() {
            found.insert(path, digests);
        }
    }
    Ok(())
}

/// `./usr/bin/x` is installed as `/usr/bin/x`.
fn installed(path: &[u8]) -> String {
    let path = path.strip_prefix(b"./").or_else(|| path.strip_prefix(b"/")).unwrap_or(path);
    format!("/{}", escaped(path))
}
