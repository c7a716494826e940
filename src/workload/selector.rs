//! Selectors: what must be true of a process for it to be a registered workload.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::codes::{self, Refusal};

/// One condition on a process, all of them checked with the kernel. Its text form is
/// `unix:KEY:VALUE`, and each selector has exactly one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Selector {
    /// `unix:uid:1000`: the effective user id, as this agent's user namespace counts.
    Uid(u32),
    /// `unix:gid:1000`: the effective group id. Supplementary groups don't count.
    Gid(u32),
    /// `unix:path:/usr/bin/app`: the program's file, symbolic links resolved, and that very file
    /// also where the agent looks for it: the same path in a container is another file.
    Path(String),
    /// `unix:sha256:HEX`: SHA-256 of the program's file.
    Sha256([u8; 32]),
}

impl Selector {
    /// Reads the text form; only the one that [`fmt::Display`] prints.
    ///
    /// # Errors
    /// [`codes::WORKLOAD_SELECTOR`], saying what was expected.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let refuse =
            |expected: &str| Refusal::new(codes::WORKLOAD_SELECTOR, format!("`{text}`")).expected(expected.to_owned());
        let (key, value) = text
            .strip_prefix("unix:")
            .and_then(|rest| rest.split_once(':'))
            .ok_or_else(|| refuse("unix:uid:N, unix:gid:N, unix:path:FILE or unix:sha256:HEX"))?;
        match key {
            "uid" => {
                id(value).map(Self::Uid).ok_or_else(|| refuse("a user id from 0 to 4294967294, e.g. unix:uid:1000"))
            }
            "gid" => {
                id(value).map(Self::Gid).ok_or_else(|| refuse("a group id from 0 to 4294967294, e.g. unix:gid:1000"))
            }
            "path" if is_plain_path(value) => Ok(Self::Path(value.to_owned())),
            "path" => Err(refuse("an absolute path without `.`, `..`, `//` and control characters")),
            "sha256" => digest(value).map(Self::Sha256).ok_or_else(|| refuse("64 lower-case hexadecimal digits")),
            _ => Err(refuse("unix:uid:N, unix:gid:N, unix:path:FILE or unix:sha256:HEX")),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "unix:uid:{uid}"),
            Self::Gid(gid) => write!(f, "unix:gid:{gid}"),
            Self::Path(path) => write!(f, "unix:path:{path}"),
            Self::Sha256(digest) => write!(f, "unix:sha256:{}", hex::encode(digest)),
        }
    }
}

impl FromStr for Selector {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        Self::parse(text)
    }
}

impl Serialize for Selector {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A decimal id in its only spelling; the highest value means "none" to the kernel.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id: &u32| *id != u32::MAX && id.to_string() == text)
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    hex::decode_to_slice(text, &mut digest).ok()?;
    (hex::encode(digest) == text).then_some(digest)
}

fn is_plain_path(text: &str) -> bool {
    text.len() < 4096
        && !text.chars().any(char::is_control)
        && text
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(|part| !part.is_empty() && part != "." && part != ".."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn selectors_have_one_spelling() {
        let digest = "ab".repeat(32);
        for text in ["unix:uid:0", "unix:uid:4294967294", "unix:gid:100", "unix:path:/usr/bin/a b:c"] {
            assert_eq!(Selector::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Selector::parse(&format!("unix:sha256:{digest}")).unwrap(), Selector::Sha256([0xab; 32]));
        for text in [
            "",
            "unix",
            "unix:uid",
            "unix:uid:",
            "uid:1000",
            "Unix:uid:1",
            "unix:user:root",
            "unix:uid:+1",
            "unix:uid:01",
            "unix:uid:-1",
            "unix:uid: 1",
            "unix:uid:4294967295",
            "unix:uid:4294967296",
            "unix:uid:1:2",
            "unix:gid:0x1",
            "unix:path:",
            "unix:path:app",
            "unix:path:/",
            "unix:path:/a/../b",
            "unix:path:/a/./b",
            "unix:path:/a//b",
            "unix:path:/a/",
            "unix:path:/a\0",
            "unix:path:/a\n",
            "unix:sha256:ab",
            "unix:sha256:",
        ] {
            assert_eq!(Selector::parse(text).unwrap_err().code, codes::WORKLOAD_SELECTOR, "{text}");
        }
        assert!(Selector::parse(&format!("unix:sha256:{}", digest.to_uppercase())).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_prints_as_it_was_given(text in "(unix:)?(uid|gid|path|sha256|[a-z]{1,4}):[ -~]{0,70}") {
            if let Ok(selector) = Selector::parse(&text) {
                prop_assert_eq!(selector.to_string(), text);
            }
        }
    }
}
