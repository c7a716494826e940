//! Walks HPACK header blocks byte by byte: where a field begins, how long its strings are.
//! No table is kept: what a field refers to doesn't matter unless it is `:authority` written out.

/// Longer strings and higher indices than any header list that is accepted: hands off.
const HIGHEST: usize = 1 << 24;

const NAME: &[u8] = b":authority";

/// Static table, index 1 (RFC 7541, appendix A).
const AUTHORITY_INDEX: usize = 1;

/// Where in a header block the walk stands.
#[derive(Debug, Default)]
pub(super) struct Walker {
    place: Place,
}

#[derive(Clone, Copy, Debug, Default)]
enum Place {
    /// Before a field (RFC 7541, 6).
    #[default]
    Field,
    /// Inside an integer (5.1).
    Integer {
        value: usize,
        shift: u32,
        then: Then,
    },
    /// Before a string's first length byte (5.2).
    Length {
        part: Part,
    },
    Text {
        left: usize,
        part: Part,
    },
}

/// What an integer stands for.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// An indexed field or a new table size: a field in itself.
    Nothing,
    /// The index of a literal's name, zero if it is written out.
    NameIndex,
    Text {
        part: Part,
    },
}

/// Which string of a literal.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// The name; so far, so many bytes of it are those of `:authority`, or it is another one.
    Name {
        same: Option<usize>,
    },
    Value {
        overwrite: bool,
    },
}

impl Walker {
    /// Takes the next byte and overwrites it if it must be; false if it makes no sense.
    pub(super) fn step(&mut self, byte: &mut u8) -> bool {
        let next = match self.place {
            Place::Field => match *byte {
                // Indexed (6.1); literal with indexing (6.2.1); table size (6.3); other literals (6.2.2, 6.2.3).
                b if b & 0x80 != 0 => integer(b, 7, Then::Nothing),
                b if b & 0x40 != 0 => integer(b, 6, Then::NameIndex),
                b if b & 0x20 != 0 => integer(b, 5, Then::Nothing),
                b => integer(b, 4, Then::NameIndex),
            },
            Place::Integer { value, shift, then } => {
                let value = value + (usize::from(*byte & 0x7f) << shift);
                match (value > HIGHEST, *byte & 0x80 != 0) {
                    (true, _) => None,
                    (false, true) if shift >= 21 => None,
                    (false, true) => Some(Place::Integer { value, shift: shift + 7, then }),
                    (false, false) => Some(known(value, then)),
                }
            }
            Place::Length { part } => {
                let huffman = *byte & 0x80 != 0;
                integer(*byte, 7, Then::Text { part: if huffman { part.coded() } else { part } })
            }
            Place::Text { left, part } => {
                let part = part.step(byte);
                Some(if left > 1 { Place::Text { left: left - 1, part } } else { part.end() })
            }
        };
        match next {
            Some(place) => self.place = place,
            None => return false,
        }
        true
    }

    pub(super) const fn between_fields(&self) -> bool {
        matches!(self.place, Place::Field)
    }
}

impl Part {
    /// The same string, Huffman-coded: its bytes are no characters.
    const fn coded(self) -> Self {
        match self {
            Self::Name { .. } => Self::Name { same: None },
            Self::Value { .. } => Self::Value { overwrite: false },
        }
    }

    fn step(self, byte: &mut u8) -> Self {
        match self {
            Self::Name { same } => {
                Self::Name { same: same.filter(|same| NAME.get(*same) == Some(byte)).map(|same| same + 1) }
            }
            Self::Value { overwrite } => {
                // All of what may stand in a host name; a port's colon isn't missed.
                if overwrite && !byte.is_ascii_alphanumeric() && !b"-._~".contains(byte) {
                    *byte = b'-';
                }
                self
            }
        }
    }

    /// What follows the string.
    fn end(self) -> Place {
        match self {
            Self::Name { same } => Place::Length { part: Part::Value { overwrite: same == Some(NAME.len()) } },
            Self::Value { .. } => Place::Field,
        }
    }
}

/// An integer's first byte, of which the low `bits` belong to it.
fn integer(byte: u8, bits: u32, then: Then) -> Option<Place> {
    let mask = (1u8 << bits) - 1;
    let value = usize::from(byte & mask);
    Some(if byte & mask == mask { Place::Integer { value, shift: 0, then } } else { known(value, then) })
}

fn known(value: usize, then: Then) -> Place {
    match then {
        Then::Nothing => Place::Field,
        Then::NameIndex if value == 0 => Place::Length { part: Part::Name { same: Some(0) } },
        Then::NameIndex => Place::Length { part: Part::Value { overwrite: value == AUTHORITY_INDEX } },
        Then::Text { part } if value == 0 => part.end(),
        Then::Text { part } => Place::Text { left: value, part },
    }
}
