//! Selectors: what must be true of a process for it to be a registered workload.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Verity;
use super::cgroup::{container_id, is_slice_name, is_unit_name};
use crate::codes::{self, Refusal};

/// Every kind of selector with its form, for whoever wrote another.
pub const KINDS: &str = "unix:uid:N, unix:gid:N, unix:supplementary-gid:N, unix:path:/FILE, unix:sha256:HEX, \
     unix:fsverity:ALGORITHM:HEX, systemd:unit:NAME, systemd:slice:NAME, systemd:invocation:HEX, cgroup:path:/PATH or container:id:HEX";

/// One condition on a process, all of them checked with the kernel. Its text form is
/// `TYPE:KEY:VALUE`, and each selector has exactly one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Selector {
    /// `unix:uid:1000`: the effective user id, as this agent's user namespace counts.
    Uid(u32),
    /// `unix:gid:1000`: the effective group id. Supplementary groups don't count.
    Gid(u32),
    /// `unix:supplementary-gid:1000`: one of the supplementary groups.
    SupplementaryGid(u32),
    /// `unix:path:/usr/bin/app`: the program's file, symbolic links resolved, and that very file
    /// also where the agent looks for it: the same path in a container is another file. Holds only in
    /// the agent's PID and user namespace and under its root directory.
    Path(String),
    /// `unix:sha256:HEX`: SHA-256 of the program's file.
    Sha256([u8; 32]),
    /// `unix:fsverity:sha256:HEX` or `unix:fsverity:sha512:HEX`: what the kernel itself measures of the program's file, as
    /// `fsverity measure` prints it.
    FsVerity(Verity),
    /// `systemd:unit:app.service`: the unit of the system's service manager whose cgroup it is in.
    SystemdUnit(String),
    /// `systemd:slice:system.slice`: the innermost slice above that unit.
    SystemdSlice(String),
    /// `systemd:invocation:HEX`: this one run of the unit, by its 128-bit invocation id.
    SystemdInvocation([u8; 16]),
    /// `cgroup:path:/system.slice/app.service`: the cgroup itself, not one below it. A user to whom a
    /// part of the tree was delegated names what lies in it.
    CgroupPath(String),
    /// `container:id:HEX`: the container's full id (256 bits), by the cgroup its runtime made.
    ContainerId([u8; 32]),
}

impl Selector {
    /// Reads the text form; only the one that [`fmt::Display`] prints.
    ///
    /// # Errors
    /// [`codes::WORKLOAD_SELECTOR`], saying what was expected.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let refuse = |expected: &str| Refusal::new(codes::WORKLOAD_SELECTOR, format!("`{text}`")).expected(expected);
        let mut parts = text.splitn(3, ':');
        let (Some(kind), Some(key), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(refuse(KINDS));
        };
        let (selector, expected) = match (kind, key) {
            ("unix", "uid") => (id(value).map(Self::Uid), "a user id from 0 to 4294967294, e.g. unix:uid:1000"),
            ("unix", "gid") => (id(value).map(Self::Gid), "a group id from 0 to 4294967294, e.g. unix:gid:1000"),
            ("unix", "supplementary-gid") => (
                id(value).map(Self::SupplementaryGid),
                "a group id from 0 to 4294967294, e.g. unix:supplementary-gid:1000",
            ),
            ("unix", "path") => {
                (plain_path(value).map(Self::Path), "an absolute path without `.`, `..`, `//` and control characters")
            }
            ("unix", "sha256") => (hexadecimal(value).map(Self::Sha256), "64 lower-case hexadecimal digits"),
            ("unix", "fsverity") => (
                Verity::parse(value).map(Self::FsVerity),
                "sha256: and 64 or sha512: and 128 lower-case hexadecimal digits, as `fsverity measure` prints",
            ),
            ("systemd", "unit") => (
                is_unit_name(value).then(|| Self::SystemdUnit(value.to_owned())),
                "a unit with processes of its own, e.g. systemd:unit:app.service",
            ),
            ("systemd", "slice") => (
                is_slice_name(value).then(|| Self::SystemdSlice(value.to_owned())),
                "a slice, e.g. systemd:slice:system.slice",
            ),
            ("systemd", "invocation") => {
                (hexadecimal(value).map(Self::SystemdInvocation), "32 lower-case hexadecimal digits")
            }
            ("cgroup", "path") => (
                plain_path(value).map(Self::CgroupPath),
                "an absolute path below the root cgroup without `.`, `..`, `//` and control characters",
            ),
            ("container", "id") => (
                container_id(value).map(Self::ContainerId),
                "the full id, 64 lower-case hexadecimal digits (`docker ps --no-trunc`)",
            ),
            _ => (None, KINDS),
        };
        selector.ok_or_else(|| refuse(expected))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "unix:uid:{uid}"),
            Self::Gid(gid) => write!(f, "unix:gid:{gid}"),
            Self::SupplementaryGid(gid) => write!(f, "unix:supplementary-gid:{gid}"),
            Self::Path(path) => write!(f, "unix:path:{path}"),
            Self::Sha256(digest) => write!(f, "unix:sha256:{}", hex::encode(digest)),
            Self::FsVerity(digest) => write!(f, "unix:fsverity:{digest}"),
            Self::SystemdUnit(unit) => write!(f, "systemd:unit:{unit}"),
            Self::SystemdSlice(slice) => write!(f, "systemd:slice:{slice}"),
            Self::SystemdInvocation(id) => write!(f, "systemd:invocation:{}", hex::encode(id)),
            Self::CgroupPath(path) => write!(f, "cgroup:path:{path}"),
            Self::ContainerId(id) => write!(f, "container:id:{}", hex::encode(id)),
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

/// Bytes in their only spelling, lower case.
pub(super) fn hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    (hex::encode(bytes) == text).then_some(bytes)
}

fn plain_path(text: &str) -> Option<String> {
    let plain = text.len() < 4096
        && !text.chars().any(char::is_control)
        && text
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
    plain.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn selectors_have_one_spelling() {
        let digest = "ab".repeat(32);
        for text in [
            "unix:uid:0",
            "unix:uid:4294967294",
            "unix:gid:100",
            "unix:supplementary-gid:27",
            "unix:path:/usr/bin/a b:c",
            "systemd:unit:app@a\\x2db:c.service",
            "systemd:unit:docker-0.scope",
            "systemd:slice:-.slice",
            "systemd:slice:system-getty.slice",
            "systemd:invocation:000102030405060708090a0b0c0d0e0f",
            "cgroup:path:/system.slice/app.service",
        ] {
            assert_eq!(Selector::parse(text).unwrap().to_string(), text);
        }
        for text in [format!("unix:fsverity:sha256:{digest}"), format!("unix:fsverity:sha512:{digest}{digest}")] {
            assert_eq!(Selector::parse(&text).unwrap().to_string(), text);
            assert!(Selector::parse(&format!("{text}ab")).is_err());
        }
        assert!(Selector::parse(&format!("unix:fsverity:sha512:{digest}")).is_err());
        assert!(Selector::parse(&format!("unix:fsverity:sha256:{}", digest.to_uppercase())).is_err());
        assert_eq!(Selector::parse(&format!("unix:sha256:{digest}")).unwrap(), Selector::Sha256([0xab; 32]));
        assert_eq!(Selector::parse(&format!("container:id:{digest}")).unwrap(), Selector::ContainerId([0xab; 32]));
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
            "unix:supplementary-gid:",
            "unix:supplementary-gid:4294967295",
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
            "unix:fsverity:",
            "unix:fsverity:sha1:ab",
            "unix:fsverity:sha256",
            "unix:fsverity:sha256:",
            "systemd:unit:",
            "systemd:unit:app",
            "systemd:unit:.service",
            "systemd:unit:app.slice",
            "systemd:unit:app.timer",
            "systemd:unit:a/b.service",
            "systemd:unit:a b.service",
            "systemd:slice:app.service",
            "systemd:slice:.slice",
            "systemd:invocation:00",
            "systemd:invocation:000102030405060708090A0B0C0D0E0F",
            "cgroup:path:/",
            "cgroup:path:/../a",
            "cgroup:path:a",
            "container:id:ab",
            "container:name:web",
            "k8s:ns:x",
        ] {
            assert_eq!(Selector::parse(text).unwrap_err().code, codes::WORKLOAD_SELECTOR, "{text}");
        }
        assert!(Selector::parse(&format!("unix:sha256:{}", digest.to_uppercase())).is_err());
        assert!(Selector::parse(&format!("container:id:{}", digest.to_uppercase())).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_prints_as_it_was_given(
            text in "(unix|systemd|cgroup|container):(uid|gid|supplementary-gid|path|sha256|fsverity|unit|slice|invocation|id|[a-z]{1,4}):([ -~]{0,70}|[0-9a-f]{32}|sha256:[0-9a-f]{64}|[a-z@.\\\\-]{1,9}\\.(service|slice|scope))"
        ) {
            if let Ok(selector) = Selector::parse(&text) {
                prop_assert_eq!(selector.to_string(), text);
            }
        }
    }
}
