//! What an event says, in a line. It tells what the data claims: [`super::Vouched`] says how much
//! of that a digest covers.

use super::text::{printable, utf8, utf16};
use super::{Gpt, Guid, ImageLoad, SignatureKind, SignatureList, Tagged, VariableData};
use crate::measurements::EventType;
use crate::measurements::boot::BootEvent;
use crate::measurements::cursor::Cursor;

/// The longest summary, in characters.
const LIMIT: usize = 200;
/// The variables that hold signature lists.
const LISTS: [&str; 6] = ["PK", "KEK", "db", "dbx", "dbt", "dbr"];

/// The event's data in words, at most 200 printable characters.
pub fn summary(event: &BootEvent) -> String {
    let data = event.data.as_slice();
    let words = match event.kind {
        EventType::NO_ACTION => no_action(data),
        EventType::SEPARATOR => separator(data),
        EventType::EFI_VARIABLE_DRIVER_CONFIG
        | EventType::EFI_VARIABLE_BOOT
        | EventType::EFI_VARIABLE_BOOT2
        | EventType::EFI_VARIABLE_AUTHORITY => variable(event.kind, data),
        EventType::EFI_BOOT_SERVICES_APPLICATION
        | EventType::EFI_BOOT_SERVICES_DRIVER
        | EventType::EFI_RUNTIME_SERVICES_DRIVER => image(data),
        EventType::EFI_GPT_EVENT | EventType::EFI_GPT_EVENT2 => gpt(data),
        EventType::EVENT_TAG => tagged(data),
        EventType::EFI_PLATFORM_FIRMWARE_BLOB => blob(data),
        EventType::EFI_PLATFORM_FIRMWARE_BLOB2 => blob2(data),
        EventType::POST_CODE => utf8(data).map(str::to_owned).or_else(|| blob(data)),
        EventType::POST_CODE2 => blob2(data).or_else(|| utf8(data).map(str::to_owned)),
        EventType::IPL => ipl(event.pcr, data),
        EventType::S_CRTM_VERSION => version(data),
        _ => None,
    };
    printable(&words.unwrap_or_else(|| plain(data)), LIMIT)
}

/// Data of no known form: as text if it is text, or begins with some, else its beginning.
fn plain(data: &[u8]) -> String {
    const SHOWN: usize = 16;
    if data.is_empty() {
        return "no data".to_owned();
    }
    if let Some(text) = utf8(data) {
        return text.trim_end().to_owned();
    }
    if let Some(text) = utf16(data).filter(|text| text.chars().all(|c| c.is_ascii_graphic() || c == ' ')) {
        return if text.is_empty() { "empty".to_owned() } else { text };
    }
    if let Some(end) = data.iter().position(|byte| *byte == 0).filter(|end| *end >= 4)
        && let Some(text) = data.get(..end).and_then(utf8)
    {
        return format!("{text} (and {} bytes more)", data.len().saturating_sub(end));
    }
    let more = if data.len() > SHOWN { "…" } else { "" };
    format!("{} bytes: {}{more}", data.len(), hex::encode(data.get(..SHOWN).unwrap_or(data)))
}

/// A firmware version: a GUID, or text.
fn version(data: &[u8]) -> Option<String> {
    let guid: [u8; 16] = data.try_into().ok()?;
    Some(Guid(guid).to_string())
}

fn no_action(data: &[u8]) -> Option<String> {
    if let Some([locality]) = data.strip_prefix(b"StartupLocality\0") {
        return Some(format!("TPM2_Startup came from locality {locality}"));
    }
    data.starts_with(b"Spec ID Event0").then(|| "the log's header".to_owned())
}

fn separator(data: &[u8]) -> Option<String> {
    let words = match data {
        [0, 0, 0, 0] | [0xFF, 0xFF, 0xFF, 0xFF] => "the firmware's part ends",
        b"WBCL" => "Windows' boot manager's part ends",
        _ => return Some(format!("an error, if its digest is one's: {}", plain(data))),
    };
    Some(words.to_owned())
}

fn variable(kind: EventType, data: &[u8]) -> Option<String> {
    let (variable, length) = VariableData::prefix(data)?;
    let VariableData { guid, name, data: contents } = &variable;
    let owner = match *guid {
        Guid::GLOBAL | Guid::SECURITY_DATABASE => String::new(),
        Guid::SHIM => " of shim".to_owned(),
        guid => format!(" of {guid}"),
    };
    let value = match contents {
        _ if kind == EventType::EFI_VARIABLE_AUTHORITY => authority(contents),
        [] => "not there".to_owned(),
        [0] if name == "SecureBoot" => "off".to_owned(),
        [1] if name == "SecureBoot" => "on".to_owned(),
        _ if LISTS.contains(&name.as_str()) => lists(contents),
        _ if name == "BootOrder" => boot_order(contents),
        _ if name.len() == 8 && name.starts_with("Boot") => load_option(contents),
        _ => plain(contents),
    };
    let extra = match data.len().saturating_sub(length) {
        0 => String::new(),
        more => format!(" (and {more} bytes more)"),
    };
    Some(format!("{name}{owner}: {value}{extra}"))
}

/// What vouched for an image that was started: an entry of db or MokList, or a level of SBAT.
fn authority(contents: &[u8]) -> String {
    let certificate = |bytes: &[u8]| bytes.starts_with(&[0x30, 0x82]);
    match SignatureList::entry(contents) {
        _ if certificate(contents) => format!("a certificate of {} bytes", contents.len()),
        Some(entry) if certificate(entry.data) => {
            format!("a certificate of {} bytes, put there by {}", entry.data.len(), entry.owner)
        }
        Some(entry) if entry.data.len() == 32 => format!("hash {}", hex::encode(entry.data)),
        _ => plain(contents),
    }
}

fn lists(contents: &[u8]) -> String {
    let Some(lists) = SignatureList::parse_all(contents) else {
        return format!("{} bytes that are no signature lists", contents.len());
    };
    let count = |wanted: fn(SignatureKind) -> bool| -> usize {
        lists.iter().filter(|list| wanted(list.kind)).map(|list| list.signatures.len()).sum()
    };
    let certificates = count(|kind| kind == SignatureKind::X509);
    let hashes = count(|kind| kind == SignatureKind::Sha256);
    let others = count(|kind| matches!(kind, SignatureKind::Other(_)));
    let words: Vec<String> = [
        (certificates, "certificate", "certificates"),
        (hashes, "hash", "hashes"),
        (others, "other entry", "other entries"),
    ]
    .into_iter()
    .filter(|(count, ..)| *count > 0)
    .map(|(count, one, more)| counted(count, one, more))
    .collect();
    if words.is_empty() { "empty".to_owned() } else { words.join(", ") }
}

fn counted(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

fn boot_order(contents: &[u8]) -> String {
    let (entries, odd) = contents.as_chunks::<2>();
    if !odd.is_empty() {
        return plain(contents);
    }
    let names: Vec<String> = entries.iter().map(|entry| format!("{:04x}", u16::from_le_bytes(*entry))).collect();
    names.join(", ")
}

/// An EFI_LOAD_OPTION (UEFI 2.10, 3.1.3): what it is called and where it leads.
fn load_option(contents: &[u8]) -> String {
    let read = || {
        let mut cursor = Cursor::new(contents);
        cursor.u32()?;
        let path_length = usize::from(cursor.u16()?);
        let (units, _) = cursor.rest().as_chunks::<2>();
        let end = units.iter().position(|unit| *unit == [0, 0])?.checked_add(1)?.checked_mul(2)?;
        let name = utf16(cursor.take(end)?)?;
        let path = super::device_path::device_path(cursor.take(path_length)?)?;
        Some(if path.is_empty() { name } else { format!("{name}, {path}") })
    };
    read().unwrap_or_else(|| plain(contents))
}

fn image(data: &[u8]) -> Option<String> {
    let ImageLoad { length, path } = ImageLoad::parse(data)?;
    let path = if path.is_empty() { "from memory".to_owned() } else { path };
    Some(format!("{path} ({length} bytes)"))
}

fn gpt(data: &[u8]) -> Option<String> {
    let Gpt { disk, partitions } = Gpt::parse(data)?;
    let names: Vec<&str> = partitions.iter().map(|(_, name)| name.as_str()).filter(|name| !name.is_empty()).collect();
    let names = if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
    Some(format!("disk {disk}, {}{names}", counted(partitions.len(), "partition", "partitions")))
}

fn tagged(data: &[u8]) -> Option<String> {
    let tagged = Tagged::parse(data)?;
    Some(match tagged.meaning() {
        Some(meaning) => format!("{meaning} ({})", plain(tagged.data)),
        None => format!("tag {:#010x}: {}", tagged.id, plain(tagged.data)),
    })
}

/// UEFI_PLATFORM_FIRMWARE_BLOB: an address and a length.
fn blob(data: &[u8]) -> Option<String> {
    let mut cursor = Cursor::new(data);
    let (base, length) = (cursor.u64()?, cursor.u64()?);
    cursor.is_at_end().then(|| format!("{length} bytes at {base:#x}"))
}

/// UEFI_PLATFORM_FIRMWARE_BLOB2: a description, an address and a length.
fn blob2(data: &[u8]) -> Option<String> {
    let mut cursor = Cursor::new(data);
    let size = usize::from(cursor.u8()?);
    let description = utf8(cursor.take(size)?).unwrap_or("no description");
    Some(format!("{description}: {}", blob(cursor.rest())?))
}

/// Boot loaders: GRUB and shim write ASCII, systemd UTF-16.
fn ipl(pcr: u8, data: &[u8]) -> Option<String> {
    if let Some(text) = utf8(data) {
        return Some(text.trim_end().to_owned());
    }
    let text = utf16(data).filter(|text| !text.is_empty())?;
    Some(match pcr {
        11 if text.starts_with('.') => format!("section {text}, its name or its contents"),
        _ => text,
    })
}
