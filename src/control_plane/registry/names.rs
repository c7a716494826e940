//! Names and texts as operators may state them: kept plain, since they stand in commands, files,
//! policies and records.

use crate::codes::{self, Refusal};

/// The longest free text, in bytes; also the longest hint (SPIFFE Workload API, 8).
pub const TEXT_LIMIT: usize = 1024;
/// The longest name, in bytes.
const NAME_LIMIT: usize = 64;

/// A short text that must say something.
///
/// # Errors
/// [`codes::ADMIN_INVALID`] at `option`.
pub fn text(option: &str, text: &str) -> Result<(), Refusal> {
    if text.trim().is_empty() {
        return Err(Refusal::new(codes::ADMIN_INVALID, "it is empty").at(option));
    }
    if text.len() > TEXT_LIMIT || text.chars().any(hides) {
        return Err(Refusal::new(codes::ADMIN_INVALID, "it is too long or has control characters")
            .at(option)
            .expected(format!("at most {TEXT_LIMIT} bytes of plain text")));
    }
    Ok(())
}

/// A text that may be empty.
///
/// # Errors
/// As [`text`].
pub fn optional_text(option: &str, value: &str) -> Result<(), Refusal> {
    if value.is_empty() { Ok(()) } else { text(option, value) }
}

/// A text of ours, made of others, cut to what a text may have.
pub fn clipped(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_LIMIT));
    text
}

/// A plain name: of a group, a role.
///
/// # Errors
/// [`codes::ADMIN_INVALID`] at `option`.
pub fn plain(option: &str, name: &str) -> Result<(), Refusal> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match !name.is_empty() && name.len() <= NAME_LIMIT && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(Refusal::new(codes::ADMIN_INVALID, format!("`{}`", name.escape_debug()))
            .at(option)
            .expected(format!("1 to {NAME_LIMIT} letters, digits, `-`, `_` or `.`"))),
    }
}

/// A plain name that can be a segment of a SPIFFE ID's path (SPIFFE-ID, 2.2).
///
/// # Errors
/// As [`plain`].
pub fn segment(option: &str, name: &str) -> Result<(), Refusal> {
    match matches!(name, "." | "..") {
        true => Err(Refusal::new(codes::ADMIN_INVALID, format!("`{name}`")).at(option).expected("a name")),
        false => plain(option, name),
    }
}

/// What a terminal doesn't show as itself: control characters, and those that turn the direction of
/// the text around them.
fn hides(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}')
}
