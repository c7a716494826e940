//! Paths as text. Linux names are bytes; rules and findings are text, and must name each file.

/// The path as text: UTF-8 as it is; each byte of anything that isn't, or that a terminal would
/// not show as it is, as `\xNN` (two lower-case digits). A backslash stays one, as `systemd` has them in names
/// of units, unless it would read as such an escape: then it is `\x5c`. [`unescaped`] undoes it.
pub fn escaped(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for (at, character) in chunk.valid().char_indices() {
            let rest = chunk.valid().get(at..).unwrap_or_default();
            if unshown(character) || (character == '\\' && escape(rest.as_bytes()).is_some()) {
                let mut bytes = [0; 4];
                escape_into(&mut text, character.encode_utf8(&mut bytes).as_bytes());
            } else {
                text.push(character);
            }
        }
        escape_into(&mut text, chunk.invalid());
    }
    text
}

/// The path that [`escaped`] shows as `text`. A text without escapes is itself.
pub fn unescaped(text: &str) -> Vec<u8> {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        if let Some(byte) = escape(rest) {
            path.push(byte);
            rest = rest.get(4..).unwrap_or_default();
        } else {
            path.push(*first);
            rest = behind;
        }
    }
    path
}

/// The byte of the escape that `text` begins with. Only bytes that [`escaped`] escapes have one.
fn escape(text: &[u8]) -> Option<u8> {
    let &[b'\\', b'x', high, low, ..] = text else { return None };
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(digit.wrapping_sub(b'a').wrapping_add(10)),
        _ => None,
    };
    let byte = digit(high)?.wrapping_shl(4) | digit(low)?;
    (!(0x20..0x7F).contains(&byte) || byte == b'\\').then_some(byte)
}

fn escape_into(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.push_str("\\x");
        text.push_str(&hex::encode([*byte]));
    }
}

/// Control characters, and those that turn the direction of the text around them.
fn unshown(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_shown_as_they_are_where_that_can_be() {
        for (path, text) in [
            (&b"/usr/bin/sh"[..], "/usr/bin/sh"),
            ("/srv/ein Umlaut ü".as_bytes(), "/srv/ein Umlaut ü"),
            (b"/etc/systemd/dev-disk-by\\x2duuid.swap", "/etc/systemd/dev-disk-by\\x2duuid.swap"),
            (b"/tmp/\xff\n\x1b[0m", "/tmp/\\xff\\x0a\\x1b[0m"),
            (b"/tmp/\\xff", "/tmp/\\x5cxff"),
            (b"/tmp/\\x5c", "/tmp/\\x5cx5c"),
            ("/tmp/\u{202E}gnp.sh".as_bytes(), "/tmp/\\xe2\\x80\\xaegnp.sh"),
        ] {
            assert_eq!(escaped(path), text);
            assert_eq!(unescaped(text), path);
        }
    }

    proptest! {
        #[test]
        fn escaping_loses_nothing(path in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"\\x5cf\xc3\xbc".to_vec())], 0..40)) {
            let text = escaped(&path);
            prop_assert!(!text.chars().any(unshown));
            prop_assert_eq!(unescaped(&text), path);
        }
    }
}
