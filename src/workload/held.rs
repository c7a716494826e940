//! A process that is held, and what it was when it connected.

use super::Verity;
use super::cgroup::Place;
use super::observed::{Asked, Observed};
use super::peer::Peers;
use super::process::{Credentials, FileId, Login, Process, no_descriptors, unknown};
use crate::codes::{self, Refusal};
use crate::measurements::LogHash;

/// A process as it connected. It stays that, or it is nobody.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) process: Process,
    pub(super) peers: Peers,
    state: State,
}

/// All that must stay.
#[derive(Clone, PartialEq, Eq, Debug)]
struct State {
    credentials: Credentials,
    place: Place,
    login: Option<Login>,
    /// The program's file. To execute the same file again is no change: whoever does could as well
    /// connect anew and would be the same workload.
    executable: Option<FileId>,
}

impl Held {
    /// Looks at a process that connected with this user and group.
    pub(super) fn new(process: Process, peers: Peers, uid: u32, gid: u32) -> Result<Self, Refusal> {
        let state = State::of(&process, &peers, None)?;
        let held = Self { process, peers, state };
        let credentials = &held.state.credentials;
        if (credentials.uid, credentials.gid) != (uid, gid) {
            return Err(held
                .changed(format!("uid {}, gid {}", credentials.uid, credentials.gid))
                .expected(format!("uid {uid}, gid {gid}, with which it connected")));
        }
        held.check()?;
        Ok(held)
    }

    /// Whether it still is what it was.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let now = State::of(&self.process, &self.peers, Some(&self.state.place))?;
        let was = &self.state;
        let ids = |credentials: &Credentials| format!("uid {}, gid {}", credentials.uid, credentials.gid);
        if (now.credentials.uid, now.credentials.gid) != (was.credentials.uid, was.credentials.gid) {
            let expected = format!("{}, with which it connected", ids(&was.credentials));
            return Err(self.changed(ids(&now.credentials)).expected(expected));
        }
        if now.executable != was.executable {
            return Err(self.changed("it runs another program".to_owned()).expected("the program that connected"));
        }
        if now.credentials.groups != was.credentials.groups {
            return Err(self
                .changed("its supplementary groups are others".to_owned())
                .expected("those with which it connected"));
        }
        if now.place != was.place {
            let shown = |place: &Place| {
                let path = place.path.as_deref().unwrap_or("no cgroup");
                let run = place.invocation.map(|run| format!(" in its run {}", hex::encode(run))).unwrap_or_default();
                format!("{path}{run}")
            };
            let (now, was) = (shown(&now.place), shown(&was.place));
            // The same name again is another cgroup all the same.
            let again = if now == was { ", made anew" } else { "" };
            return Err(self.changed(format!("in {now}{again}")).expected(format!("in {was}, where it connected")));
        }
        if now.login != was.login {
            let shown =
                |login: &Option<Login>| login.as_ref().map_or("of no login session".to_owned(), Login::to_string);
            return Err(self.changed(shown(&now.login)).expected(format!("{}, as it connected", shown(&was.login))));
        }
        Ok(())
    }

    /// What is true of it now, but for the digests of its program.
    pub(super) fn facts(&self) -> Result<Observed, Refusal> {
        self.check()?;
        let path = match (self.state.executable, self.peers.own()) {
            (Some(executable), Some(own)) => self.process.path(executable, own),
            (None, _) => Err("the agent may not see its program".to_owned()),
            (_, None) => Err("the agent doesn't know its own namespaces".to_owned()),
        };
        // Again: what was read between two equal answers is the same program's.
        self.check()?;
        let State { credentials, place, login, .. } = self.state.clone();
        let (sha256, verity) = (Err("not asked for".to_owned()), Err("not asked for".to_owned()));
        Ok(Observed { credentials, place, login, path, sha256, verity })
    }

    /// The same with the digests that are asked for. No digest, no match: other entries may still hold.
    pub(super) fn with_digests(&self, mut observed: Observed, asked: Asked) -> Result<Observed, Refusal> {
        if asked.verity {
            let verity = self.opened().and_then(|(file, executable)| match FileId::of(&file)? == executable {
                true => Verity::of(&file),
                false => Err(std::io::Error::other("the process runs another program now")),
            });
            observed.verity = self.or_why(verity)?;
        }
        if asked.sha256 {
            observed.sha256 = self.digest(LogHash::Sha256)?.and_then(|digest| {
                digest.try_into().map_err(|digest: Vec<u8>| format!("a digest of {} bytes", digest.len()))
            });
        }
        Ok(observed)
    }

    /// The digest of its program, or why there is none. Reads the file.
    pub(super) fn digest(&self, hash: LogHash) -> Result<Result<Vec<u8>, String>, Refusal> {
        let digest = self.opened().and_then(|(file, executable)| self.peers.digests().of(file, executable, hash));
        self.or_why(digest)
    }

    /// Its program, to be read, and which file that must be.
    fn opened(&self) -> std::io::Result<(std::fs::File, FileId)> {
        let executable =
            self.state.executable.ok_or_else(|| std::io::Error::other("the agent may not see its program"))?;
        Ok((self.process.open_executable()?, executable))
    }

    /// What was read of its program, or why nothing was.
    fn or_why<T>(&self, read: std::io::Result<T>) -> Result<Result<T, String>, Refusal> {
        self.check()?;
        match read {
            Ok(read) => Ok(Ok(read)),
            Err(error) if no_descriptors(&error) => Err(unknown(self.process.pid(), "exe", error)),
            Err(error) => {
                tracing::debug!(pid = self.process.pid(), %error, "the caller's program has no digest");
                Ok(Err(error.to_string()))
            }
        }
    }

    fn changed(&self, what: String) -> Refusal {
        Refusal::new(codes::WORKLOAD_PEER_CHANGED, what).at(format!("process {}", self.process.pid()))
    }
}

impl State {
    fn of(process: &Process, peers: &Peers, before: Option<&Place>) -> Result<Self, Refusal> {
        process.alive()?;
        let credentials = process.credentials()?;
        let executable = process.executable()?;
        let (trees, text) = (peers.trees(), process.cgroups()?);
        let place = before.map_or_else(|| trees.place(&text), |before| trees.again(before, &text));
        let place = place.map_err(|e| unknown(process.pid(), "cgroup", e))?;
        let login = process.login(place.path.as_deref())?;
        // Only now: an ended process has no program any more, and that is no change of program.
        process.alive()?;
        Ok(Self { credentials, place, login, executable })
    }
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
