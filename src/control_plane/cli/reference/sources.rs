//! Files that sets and artefacts are read from.

use std::path::Path;

use super::super::client::{Client, read_certificate_der};
use super::Sources;
use crate::codes::{self, Refusal};
use crate::control_plane::admin::Command;
use crate::control_plane::reference::artifacts::Inputs;
use crate::control_plane::reference::stub::Contents;
use crate::control_plane::reference::{corim, deb, files, pe, variables};
use crate::measurements::LogHash;
use crate::verify::references::{self, Document, ReferenceSet};

/// A progress line for so many files.
const TOLD_EACH: usize = 10_000;

/// The set that `text` names: a file that exists, or a stored set.
///
/// # Errors
/// [`codes::ADMIN_UNKNOWN`] when it is neither; those of [`read_document`].
pub fn find(client: &Client, text: &str, version: Option<u64>) -> Result<Document, Refusal> {
    if version.is_none() && Path::new(text).is_file() {
        return read_document(Path::new(text));
    }
    let facts = client.call(&Command::ReferenceShow { name: text.to_owned(), version })?;
    let document = facts.get("document").and_then(serde_json::Value::as_str).unwrap_or_default();
    let bytes = hex::decode(document)
        .map_err(|_| Refusal::new(codes::PROTOCOL_MALFORMED, "the server's answer has no document"))?;
    Document::read(&bytes, &[], 0)
}

/// A set from a file: a document, signed or not; a CoRIM; or TOML.
///
/// # Errors
/// [`codes::ADMIN_INVALID`], [`codes::CONFIG_INVALID`], [`codes::VERIFY_REFERENCE_MALFORMED`].
pub fn read_document(path: &Path) -> Result<Document, Refusal> {
    let bytes = files::read(path, 4 * references::LIMIT as u64)?;
    if corim::is_corim(&bytes) {
        return Document::unsigned(corim::import(&bytes)?);
    }
    // A document's first byte is a CBOR map's or tag's, and no text of ours begins with one.
    if bytes.first().is_some_and(|first| *first >= 0x80) {
        return Document::read(&bytes, &[], 0);
    }
    let at = path.display().to_string();
    let text = String::from_utf8(bytes)
        .map_err(|_| Refusal::new(codes::ADMIN_INVALID, "neither text nor a document").at(&at))?;
    Document::unsigned(ReferenceSet::from_toml(&text, &at)?)
}

/// Reads the artefacts.
///
/// # Errors
/// [`codes::ADMIN_INVALID`] naming the file.
pub fn inputs(sources: &Sources, profile: &str) -> Result<Inputs, Refusal> {
    let mut inputs = Inputs {
        secure_boot: sources.secure_boot || sources.secure_boot_vars.is_some() || sources.trust_measured_db,
        trust_measured_db: sources.trust_measured_db,
        variables: sources.secure_boot_vars.as_deref().map(variables::read).transpose()?,
        signer: sources.signer.as_deref().map(read_certificate_der).transpose()?,
        ..Inputs::default()
    };
    if let Some(path) = &sources.uki {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        inputs.uki = Some((name, files::read(path, pe::LIMIT)?));
    }
    if let Some(path) = &sources.digests {
        digests(path, &mut inputs)?;
    }
    for (section, path) in [(".linux", &sources.kernel), (".initrd", &sources.initrd)] {
        if let Some(path) = path {
            part(&mut inputs, section, Contents::Bytes(files::read(path, pe::LIMIT)?))?;
        }
    }
    if let Some(text) = &sources.cmdline {
        cmdline(&mut inputs, text)?;
    }
    match sources.osrel.as_deref() {
        Some("none") => {}
        Some(path) => part(&mut inputs, ".osrel", Contents::Bytes(files::read(Path::new(path), 1 << 20)?))?,
        None if inputs.sections.contains_key(".linux") => {
            inputs.sections.entry(".osrel".to_owned()).or_insert(Contents::Unknown);
        }
        None => {}
    }
    // A profile of Secure Boot without any word of keys: what the firmware verified is all there is.
    let nothing_said = inputs.uki.is_none() && inputs.variables.is_none() && inputs.signer.is_none();
    if nothing_said && profile == "uefi-secureboot" {
        (inputs.trust_measured_db, inputs.secure_boot) = (true, true);
    }
    runtime(sources, &mut inputs)?;
    Ok(inputs)
}

/// Lines of `SHA256 SIZE ROLE NAME`.
fn digests(path: &Path, inputs: &mut Inputs) -> Result<(), Refusal> {
    let bytes = files::read(path, 1 << 20)?;
    for (number, line) in String::from_utf8_lossy(&bytes).lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let wrong = |what: String| {
            Refusal::new(codes::ADMIN_INVALID, what).at(format!("{} line {}", path.display(), number + 1))
        };
        let mut words = line.split_ascii_whitespace();
        let (digest, size, role) = (words.next(), words.next(), words.next());
        let digest = digest.and_then(|digest| <[u8; 32]>::try_from(hex::decode(digest).ok()?).ok());
        let (Some(digest), Some(_), Some(role)) = (digest, size.and_then(|size| size.parse::<u64>().ok()), role) else {
            return Err(wrong("no digest, size and role".to_owned()).expected("SHA256 SIZE ROLE NAME"));
        };
        let section = match role {
            "kernel" => ".linux",
            "initrd" => ".initrd",
            "cmdline" => ".cmdline",
            "osrel" => ".osrel",
            // The file's digest says nothing of its Authenticode hash; that it is signed, somebody says.
            "uki" => continue,
            "uki_signed" => {
                let named = inputs.variables.is_some();
                (inputs.secure_boot, inputs.trust_measured_db) = (true, !named);
                continue;
            }
            other => {
                return Err(
                    wrong(format!("role `{other}`")).expected("kernel, initrd, cmdline, osrel, uki or uki_signed")
                );
            }
        };
        part(inputs, section, Contents::Sha256(digest)).map_err(|refusal| wrong(refusal.found))?;
    }
    Ok(())
}

/// The command line as text; with its digest known, that text or that text without a line's end.
fn cmdline(inputs: &mut Inputs, text: &str) -> Result<(), Refusal> {
    let path = Path::new(text);
    let text = if path.is_file() {
        String::from_utf8(files::read(path, 1 << 20)?)
            .map_err(|_| Refusal::new(codes::ADMIN_INVALID, "it isn't text").at(path.display().to_string()))?
    } else {
        text.to_owned()
    };
    let line = text.trim_end_matches('\n').to_owned();
    let contents = match inputs.sections.get(".cmdline") {
        Some(Contents::Sha256(known)) => [text.clone(), line]
            .into_iter()
            .find(|text| LogHash::Sha256.digest(&[text.as_bytes()]) == known)
            .ok_or_else(|| {
                Refusal::new(codes::ADMIN_INVALID, format!("`{text}`"))
                    .at("--cmdline")
                    .expected(format!("a command line whose SHA-256 is {}", hex::encode(known)))
            })?,
        _ => line,
    };
    inputs.sections.insert(".cmdline".to_owned(), Contents::Bytes(contents.clone().into_bytes()));
    inputs.cmdline = Some(contents);
    Ok(())
}

fn runtime(sources: &Sources, inputs: &mut Inputs) -> Result<(), Refusal> {
    let mut sets = Vec::new();
    if let Some(root) = &sources.tree {
        sets.push(files::tree(root, |count| {
            if count.is_multiple_of(TOLD_EACH) {
                eprintln!("{count} files read below {}", root.display());
            }
        })?);
    }
    if let Some(list) = &sources.ima_digests {
        sets.push(files::list(list)?);
    }
    for set in sets {
        for (path, digests) in set {
            let known = inputs.files.entry(path).or_default();
            known.extend(digests);
            known.sort();
            known.dedup();
        }
    }
    sources.debs.iter().try_for_each(|package| deb::read(package, &mut inputs.files))
}

/// A part, once; what two sources say of it must agree.
fn part(inputs: &mut Inputs, section: &str, contents: Contents) -> Result<(), Refusal> {
    let digest = |contents: &Contents| contents.digest(LogHash::Sha256);
    match inputs.sections.get(section) {
        Some(known) if digest(known) != digest(&contents) => {
            let text = |contents: &Contents| digest(contents).map(hex::encode).unwrap_or_default();
            Err(Refusal::new(codes::ADMIN_INVALID, text(&contents))
                .at(format!("section {section}"))
                .expected(text(known)))
        }
        _ => {
            inputs.sections.insert(section.to_owned(), contents);
            Ok(())
        }
    }
}
