//! What the kernel says of a process, and which selectors that fulfils.

use std::fmt;
use std::path::{Path, PathBuf};

use super::cgroup::Place;
use super::process::{Credentials, Login};
use super::{Selector, Verity};
use crate::protocol::CallerClaims;

/// So many supplementary groups are told to the control plane.
const TOLD_GROUPS: usize = 64;

/// What the kernel says of a process; as old as the call of [`super::Peer::observe`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observed {
    pub(super) credentials: Credentials,
    pub(super) place: Place,
    pub(super) login: Option<Login>,
    /// The program's path, or why none counts.
    pub(super) path: Result<PathBuf, String>,
    /// The program's digest, or why there is none.
    pub(super) sha256: Result<[u8; 32], String>,
    /// What the kernel measures of the program, or why it doesn't.
    pub(super) verity: Result<Verity, String>,
}

/// The digests that entries ask for which match in everything else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Asked {
    pub(super) sha256: bool,
    pub(super) verity: bool,
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a process of uid {}, gid {}", self.uid(), self.gid())?;
        if let Ok(path) = &self.path {
            write!(f, ", running {}", path.display())?;
        }
        match &self.place.path {
            Some(path) if path != "/" => write!(f, ", in {path}"),
            _ => Ok(()),
        }
    }
}

impl Observed {
    /// Whether every selector holds. None at all match nobody.
    pub fn matches(&self, selectors: &[Selector]) -> bool {
        !selectors.is_empty() && selectors.iter().all(|selector| self.holds(selector))
    }

    /// The first selector that doesn't hold, and what was found in its place.
    pub fn failing<'a>(&self, selectors: &'a [Selector]) -> Option<(&'a Selector, String)> {
        let failing = selectors.iter().find(|selector| !self.holds(selector))?;
        Some((failing, self.found_for(failing)))
    }

    /// How many of the selectors don't hold.
    pub fn failures(&self, selectors: &[Selector]) -> usize {
        selectors.iter().filter(|selector| !self.holds(selector)).count()
    }

    /// Effective user id.
    pub const fn uid(&self) -> u32 {
        self.credentials.uid
    }

    /// Effective group id.
    pub const fn gid(&self) -> u32 {
        self.credentials.gid
    }

    /// The program's path, where the agent finds the same file there.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref().ok()
    }

    /// Whose login session it is of, in words; `None` for a process that the system started.
    pub fn login_session(&self) -> Option<String> {
        self.login.as_ref().map(ToString::to_string)
    }

    /// What the control plane is told of it.
    pub fn claims(&self) -> CallerClaims {
        let place = &self.place;
        let groups = self.credentials.groups.iter().take(TOLD_GROUPS).copied().map(Selector::SupplementaryGid);
        let path = |path: &Path| path.to_str().map(|path| Selector::Path(path.to_owned()));
        let selectors = [Selector::Uid(self.uid()), Selector::Gid(self.gid())].into_iter().chain(groups).chain(
            [
                self.path().and_then(path),
                self.sha256.as_ref().ok().copied().map(Selector::Sha256),
                self.verity.as_ref().ok().copied().map(Selector::FsVerity),
                place.unit.clone().map(Selector::SystemdUnit),
                place.slice.clone().map(Selector::SystemdSlice),
                place.invocation.map(Selector::SystemdInvocation),
                place.path.clone().map(Selector::CgroupPath),
                place.container.map(Selector::ContainerId),
            ]
            .into_iter()
            .flatten(),
        );
        // Names of files and cgroups may be what no selector can be.
        let selectors = selectors.map(|selector| selector.to_string()).filter(|text| Selector::parse(text).is_ok());
        CallerClaims { uid: self.uid(), login_session: self.login.is_some(), selectors: selectors.collect() }
    }

    /// Which digests are to be had: those of entries that lack nothing else.
    pub(super) fn asked<E: AsRef<[Selector]>>(&self, entries: &[E]) -> Asked {
        let is_digest = |selector: &&Selector| matches!(selector, Selector::Sha256(_) | Selector::FsVerity(_));
        let mut asked = Asked::default();
        for entry in entries.iter().map(AsRef::as_ref) {
            if entry.iter().filter(|selector| !is_digest(selector)).all(|selector| self.holds(selector)) {
                asked.sha256 |= entry.iter().any(|selector| matches!(selector, Selector::Sha256(_)));
                asked.verity |= entry.iter().any(|selector| matches!(selector, Selector::FsVerity(_)));
            }
        }
        asked
    }

    fn holds(&self, selector: &Selector) -> bool {
        let place = &self.place;
        match selector {
            Selector::Uid(uid) => self.uid() == *uid,
            Selector::Gid(gid) => self.gid() == *gid,
            Selector::SupplementaryGid(gid) => self.credentials.groups.contains(gid),
            Selector::Path(path) => self.path() == Some(Path::new(path)),
            Selector::Sha256(digest) => self.sha256.as_ref() == Ok(digest),
            Selector::FsVerity(digest) => self.verity.as_ref() == Ok(digest),
            Selector::SystemdUnit(unit) => place.unit.as_ref() == Some(unit),
            Selector::SystemdSlice(slice) => place.slice.as_ref() == Some(slice),
            Selector::SystemdInvocation(id) => place.invocation.as_ref() == Some(id),
            Selector::CgroupPath(path) => place.path.as_ref() == Some(path),
            Selector::ContainerId(id) => place.container.as_ref() == Some(id),
        }
    }

    /// What is there instead of what `selector` asks for.
    fn found_for(&self, selector: &Selector) -> String {
        let place = &self.place;
        let or_doubt =
            |found: Option<String>| found.unwrap_or_else(|| place.doubt.clone().unwrap_or_else(|| "none".to_owned()));
        match selector {
            Selector::Uid(_) => format!("uid {}", self.uid()),
            Selector::Gid(_) => format!("gid {}", self.gid()),
            Selector::SupplementaryGid(_) => {
                let mut shown: Vec<_> = self.credentials.groups.iter().take(8).map(u32::to_string).collect();
                if self.credentials.groups.len() > shown.len() {
                    shown.push("…".to_owned());
                }
                format!("supplementary groups [{}]", shown.join(" "))
            }
            Selector::Path(_) => match &self.path {
                Ok(path) => path.display().to_string(),
                Err(why) => why.clone(),
            },
            Selector::Sha256(_) => self.sha256.as_ref().map_or_else(Clone::clone, hex::encode),
            Selector::FsVerity(_) => self.verity.as_ref().map_or_else(Clone::clone, Verity::to_string),
            Selector::SystemdUnit(_) => or_doubt(place.unit.clone()),
            Selector::SystemdSlice(_) => or_doubt(place.slice.clone()),
            Selector::SystemdInvocation(_) => or_doubt(place.invocation.map(hex::encode)),
            Selector::CgroupPath(_) => or_doubt(place.path.clone()),
            Selector::ContainerId(_) => or_doubt(place.container.map(hex::encode)),
        }
    }
}
