//! Text in events: UTF-16LE, ASCII, and what is fit to print.

/// UTF-16LE text up to its end or its trailing NULs; `None` if it isn't text throughout.
pub fn utf16(bytes: &[u8]) -> Option<String> {
    let (pairs, odd) = bytes.as_chunks::<2>();
    if !odd.is_empty() {
        return None;
    }
    let units: Vec<u16> = pairs.iter().copied().map(u16::from_le_bytes).collect();
    let text = String::from_utf16(&units).ok()?;
    let text = text.trim_end_matches('\0');
    (!text.contains('\0')).then(|| text.to_owned())
}

/// UTF-8 text up to its end or its trailing NULs, if it is printable throughout.
pub fn utf8(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    (!text.is_empty() && text.chars().all(|c| !c.is_control() || c.is_ascii_whitespace())).then_some(text)
}

/// `text` with everything unprintable escaped, of at most `limit` characters.
pub fn printable(text: &str, limit: usize) -> String {
    let mut shown = String::new();
    let mut count = 0_usize;
    for c in text.chars() {
        // Directions and joiners that make a terminal show another text than there is go too.
        let piece: String = match c.is_control() || is_format(c) {
            true => c.escape_unicode().collect(),
            false => c.to_string(),
        };
        let length = piece.chars().count();
        if count.saturating_add(length) >= limit {
            shown.push('…');
            break;
        }
        count = count.saturating_add(length);
        shown.push_str(&piece);
    }
    shown
}

/// Zero-width characters, marks of direction, line and paragraph separators, and tags.
const fn is_format(c: char) -> bool {
    matches!(c, '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
        | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text_throughout_or_none() {
        assert_eq!(utf16(b"a\0b\0\0\0"), Some("ab".to_owned()));
        assert_eq!(utf16(b"a\0b"), None);
        assert_eq!(utf16(b"a\0\0\0b\0"), None);
        assert_eq!(utf16(&[0, 0xD8]), None);
        assert_eq!(utf8(b"grub\0"), Some("grub"));
        assert_eq!(utf8(b"gr\x01ub"), None);
        assert_eq!(utf8(b"\0"), None);
    }

    #[test]
    fn what_would_mislead_a_terminal_is_escaped() {
        assert_eq!(printable("a\u{1b}[2J\u{202e}b", 40), "a\\u{1b}[2J\\u{202e}b");
        assert_eq!(printable(&"é".repeat(300), 200).chars().count(), 200);
    }
}
