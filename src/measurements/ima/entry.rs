//! Reads entries of the binary list (Linux `security/integrity/ima/ima_fs.c`, `ima_template_lib.c`).
//!
//! ```text
//! pcr u32 │ SHA-1 template digest [20] │ length u32, template name │ length u32, template data
//! ```
//!
//! Numbers are little endian, as on every platform this runs on and under `ima_canonical_fmt`. The
//! template data is a row of fields, each `length u32, bytes`; only the template `ima` has no length
//! before its data, and none before its 20-byte digest.

use super::{ENTRY_LIMIT, ImaEntry, ImaFields};
use crate::codes::{self, Refusal};
use crate::measurements::cursor::Cursor;
use crate::tpm::PCR_COUNT;

/// The longest template name; the kernel has 15 (IMA_TEMPLATE_NAME_LEN_MAX), formats are longer.
const NAME_LIMIT: usize = 64;
/// The longest path of the template `ima`: it is hashed padded to 256 bytes with a NUL.
const LEGACY_PATH_LIMIT: usize = 255;
/// The longest name of a hash algorithm.
const ALGORITHM_LIMIT: usize = 32;
/// The longest digest: SHA-512's.
const DIGEST_LIMIT: usize = 64;

/// The entries of a list, one after the other, with where each stands.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    number: u64,
    offset: u64,
}

impl<'a> Entries<'a> {
    /// The entries of `rest`, which is the list from entry `number` at byte `offset` on.
    pub const fn new(rest: &'a [u8], number: u64, offset: u64) -> Self {
        Self { rest, number, offset }
    }

    /// What was not read: an entry that is there in part, or nothing.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The number of the next entry.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Where the next entry begins, in bytes from the start of the list.
    pub const fn offset(&self) -> u64 {
        self.offset
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<ImaEntry<'a>, Refusal>;

    /// The next whole entry. After a refusal the same one follows again.
    fn next(&mut self) -> Option<Self::Item> {
        match entry(self.rest, self.number) {
            Ok(None) => None,
            Ok(Some((entry, length))) => {
                self.rest = self.rest.get(length..).unwrap_or_default();
                self.number = self.number.saturating_add(1);
                self.offset = self.offset.saturating_add(length as u64);
                Some(Ok(entry))
            }
            Err(refusal) => {
                let at = format!("{} (byte {} of the list)", refusal.at, self.offset);
                Some(Err(refusal.at(at)))
            }
        }
    }
}

/// Reads the entry at the start of `bytes`, which is the list from entry `number` on. Returns it
/// with its length; `None` when `bytes` ends within the entry (the rest isn't there yet).
///
/// # Errors
/// [`codes::MEASUREMENTS_IMA_LIST`] naming the entry: no further bytes would mend it.
pub fn entry(bytes: &[u8], number: u64) -> Result<Option<(ImaEntry<'_>, usize)>, Refusal> {
    let malformed = |what: String| Refusal::new(codes::MEASUREMENTS_IMA_LIST, what).at(format!("IMA entry {number}"));
    let mut cursor = Cursor::new(bytes);
    let Some(pcr) = cursor.u32() else { return Ok(None) };
    let Some(pcr) = u8::try_from(pcr).ok().filter(|pcr| *pcr < PCR_COUNT) else {
        return Err(no_pcr(bytes, pcr, number));
    };
    let Some(printed) = cursor.array() else { return Ok(None) };
    let Some(name_length) = length(&mut cursor) else { return Ok(None) };
    if name_length == 0 || name_length > NAME_LIMIT {
        return Err(malformed(format!("a template name of {name_length} bytes at byte 24")).expected(format!(
            "1 to {NAME_LIMIT}; the list with SHA-1 template digests, binary_runtime_measurements, is read"
        )));
    }
    let Some(name) = cursor.take(name_length) else { return Ok(None) };
    let template = std::str::from_utf8(name)
        .ok()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| malformed(format!("template name 0x{}", hex::encode(name))).expected("printable ASCII"))?;

    let (data, fields) = if template == "ima" {
        let Some(digest) = cursor.take(20) else { return Ok(None) };
        let Some(length) = length(&mut cursor) else { return Ok(None) };
        if length > LEGACY_PATH_LIMIT {
            return Err(malformed(format!("a path of {length} bytes in template `ima`"))
                .expected(format!("at most {LEGACY_PATH_LIMIT}")));
        }
        let Some(path) = cursor.take(length) else { return Ok(None) };
        if path.contains(&0) {
            return Err(malformed("a NUL within the path".to_owned()).expected("none"));
        }
        let begin = name_length.saturating_add(28);
        let data = bytes.get(begin..cursor.offset()).unwrap_or_default();
        (data, ImaFields { algorithm: "sha1", digest, path, ..ImaFields::default() })
    } else {
        let Some(length) = length(&mut cursor) else { return Ok(None) };
        if length > ENTRY_LIMIT {
            return Err(
                malformed(format!("{length} bytes of template data")).expected(format!("at most {ENTRY_LIMIT}"))
            );
        }
        let Some(data) = cursor.take(length) else { return Ok(None) };
        let fields = fields(template, data)
            .map_err(|(what, expected)| malformed(format!("template `{template}`: {what}")).expected(expected))?;
        (data, fields)
    };
    let violation = printed == [0; 20];
    Ok(Some((ImaEntry { number, pcr, printed, template, data, fields, violation }, cursor.offset())))
}

/// Why the first number of an entry is no PCR, where that can be told.
fn no_pcr(bytes: &[u8], pcr: u32, number: u64) -> Refusal {
    let refusal = |what: String| Refusal::new(codes::MEASUREMENTS_IMA_LIST, what).at(format!("IMA entry {number}"));
    // The list as text begins with the PCR in decimal and a blank: `10 91de…`.
    let text = bytes.get(..4).is_some_and(|start| start.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' '));
    if text {
        refusal("text".to_owned()).expected("the binary list, binary_runtime_measurements")
    } else if pcr.swap_bytes() < u32::from(PCR_COUNT) {
        refusal(format!("PCR {} in big-endian order", pcr.swap_bytes()))
            .expected("a list in little-endian order; such a kernel writes one with `ima_canonical_fmt`")
    } else {
        refusal(format!("PCR {pcr} at byte 0")).expected(format!("0 to {}", PCR_COUNT.saturating_sub(1)))
    }
}

/// What is wrong with template data, and what was expected.
type Wrong = (String, &'static str);

/// The fields of the template data. Every length must fit, and nothing may be left over.
fn fields<'a>(template: &str, data: &'a [u8]) -> Result<ImaFields<'a>, Wrong> {
    let last = match template {
        "ima-ng" | "ima-ngv2" => Last::Nothing,
        "ima-sig" | "ima-sigv2" => Last::Signature,
        "ima-buf" => Last::Buffer,
        // Its hash is replayed all the same; what it says stays unknown, so no rule allows it.
        _ => return Ok(ImaFields::default()),
    };
    let mut cursor = Cursor::new(data);
    let mut field = |name: &str| {
        let at = cursor.offset();
        let length = length(&mut cursor);
        length.and_then(|length| cursor.take(length)).ok_or_else(|| {
            let found = length.map_or("no length".to_owned(), |length| format!("{length} bytes"));
            (format!("field {name} at byte {at} of {}: {found}", data.len()), "a length within the template data")
        })
    };
    let (algorithm, digest) = digest(field("digest")?, template.ends_with("v2"))?;
    let path = terminated(field("name")?)?;
    let mut fields = ImaFields { algorithm, digest, path, ..ImaFields::default() };
    match last {
        Last::Nothing => {}
        Last::Signature => fields.signature = field("signature")?,
        Last::Buffer => fields.buffer = field("buffer")?,
    }
    match data.len().saturating_sub(cursor.offset()) {
        0 => Ok(fields),
        left => Err((format!("{left} bytes after the last field"), "fields that fill the template data")),
    }
}

/// What follows digest and name.
enum Last {
    Nothing,
    Signature,
    Buffer,
}

/// `algorithm:\0digest`, or in the templates of version 2 `ima:algorithm:\0digest` and
/// `verity:algorithm:\0digest`.
fn digest(field: &[u8], version_2: bool) -> Result<(&str, &[u8]), Wrong> {
    let expected =
        if version_2 { "`ima:ALGORITHM:` or `verity:ALGORITHM:`, NUL, digest" } else { "`ALGORITHM:`, NUL, digest" };
    let wrong = |what: &str| (format!("field digest: {what}"), expected);
    let end = field.iter().take(ALGORITHM_LIMIT).position(|byte| *byte == 0).ok_or_else(|| wrong("no NUL"))?;
    let (prefix, digest) = field.split_at_checked(end).ok_or_else(|| wrong("no NUL"))?;
    let digest = digest.get(1..).unwrap_or_default();
    let name = prefix.strip_suffix(b":").and_then(|name| std::str::from_utf8(name).ok());
    let name = match (name, version_2) {
        (Some(name), true) => name.strip_prefix("ima:").or_else(|| name.starts_with("verity:").then_some(name)),
        (name, _) => name.filter(|name| !name.contains(':')),
    };
    let graphic = |name: &&str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    let name = name.filter(graphic).ok_or_else(|| wrong(&format!("begins 0x{}", hex::encode(prefix))))?;
    if digest.len() > DIGEST_LIMIT {
        return Err(wrong(&format!("a digest of {} bytes", digest.len())));
    }
    Ok((name, digest))
}

/// A name and its NUL.
fn terminated(field: &[u8]) -> Result<&[u8], Wrong> {
    match field.split_last() {
        Some((0, name)) if !name.contains(&0) => Ok(name),
        _ => Err(("field name: not a text that ends with the first NUL".to_owned(), "a name and one NUL")),
    }
}

/// The next number, as a length. On a platform of smaller addresses it is too long in any case.
fn length(cursor: &mut Cursor<'_>) -> Option<usize> {
    cursor.u32().map(|length| usize::try_from(length).unwrap_or(usize::MAX))
}
