//! Unix sockets at a path: made only where nobody else could have put anything.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::codes::{self, Refusal};

/// `sun_path` has 108 bytes, the last of them zero (unix(7)).
const LONGEST_PATH: usize = 107;

/// A listening socket at a path, removed from there when dropped.
#[derive(Debug)]
pub struct BoundSocket {
    listener: Option<UnixListener>,
    path: PathBuf,
    file: (u64, u64),
}

impl BoundSocket {
    /// Listens at `path`, an absolute path, for those who may write to a file of this `mode`.
    ///
    /// Makes the last directory (0755) if it is missing. A socket that nobody listens on any more
    /// is replaced. The listener doesn't block.
    ///
    /// # Errors
    /// [`codes::DELIVERY_SOCKET`] if a part of the path is a symbolic link or could be changed by
    /// others, if something that is no socket, or another's socket, is in the place, or if
    /// somebody listens there.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, Refusal> {
        let refuse = |found: String| Refusal::new(codes::DELIVERY_SOCKET, found).at(path.display().to_string());
        let (Some(parent), Some(_)) = (path.parent(), path.file_name()) else {
            return Err(refuse("no absolute path of a file".to_owned()));
        };
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(refuse(format!("{} bytes", path.as_os_str().len())).expected("at most 107"));
        }
        own_directory(parent)?;
        clear(path)?;
        // No one but us and root can act on this directory, so a plain path is safe from here on.
        let listener = UnixListener::bind(path).map_err(|e| refuse(e.to_string()))?;
        let finish = || {
            rustix::fs::chmod(path, Mode::from_raw_mode(mode))?;
            listener.set_nonblocking(true)?;
            std::fs::symlink_metadata(path)
        };
        let placed = finish().map_err(|e| refuse(e.to_string()))?;
        Ok(Self { listener: Some(listener), path: path.to_owned(), file: (placed.dev(), placed.ino()) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, once; the file stays until this value is dropped.
    pub fn take(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // Only our own: a successor may have put its socket in the place.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.file) {
            // Best effort: the next start replaces a socket that nobody listens on.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Walks to `directory` without following a symbolic link, and refuses a part that others could
/// change: whoever can rename a directory on the way decides what the path means.
fn own_directory(directory: &Path) -> Result<(), Refusal> {
    let us = rustix::process::geteuid().as_raw();
    let mut so_far = PathBuf::new();
    let mut at: Option<OwnedFd> = None;
    let mut parts = directory.components().peekable();
    while let Some(part) = parts.next() {
        so_far.push(part);
        let refuse = |found: String| Refusal::new(codes::DELIVERY_SOCKET, found).at(so_far.display().to_string());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let last = parts.peek().is_none();
        let opened = match (part, &at) {
            (Component::RootDir, None) => rustix::fs::open("/", flags, Mode::empty()),
            (Component::Normal(name), Some(parent)) => {
                let opened = openat(parent, name, flags, Mode::empty());
                if opened.as_ref().is_err_and(|e| *e == Errno::NOENT) && last {
                    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
                        // The umask may have taken from it what callers need to pass.
                        .and_then(|()| rustix::fs::chmod(&so_far, Mode::from_raw_mode(0o755)))
                        .map_err(|e| refuse(format!("can't be made: {e}")))?;
                    openat(parent, name, flags, Mode::empty())
                } else {
                    opened
                }
            }
            _ => return Err(refuse("no plain absolute path".to_owned())),
        };
        let opened = opened.map_err(|e| match e {
            Errno::NOTDIR | Errno::LOOP => refuse("a symbolic link or no directory".to_owned()).expected("a directory"),
            e => refuse(e.to_string()),
        })?;
        let stat = rustix::fs::fstat(&opened).map_err(|e| refuse(e.to_string()))?;
        if stat.st_uid != 0 && stat.st_uid != us {
            return Err(refuse(format!("belongs to uid {}", stat.st_uid)).expected(format!("root or uid {us}")));
        }
        let sticky = stat.st_mode & 0o1000 != 0;
        // In a sticky directory others can't rename what is ours; but they can be there first.
        if stat.st_mode & 0o022 != 0 && (last || !sticky) {
            return Err(refuse(format!("mode {:04o}", stat.st_mode & 0o7777))
                .expected("a directory that only its owner can write to"));
        }
        at = Some(opened);
    }
    Ok(())
}

/// Makes room at `path`: a socket of ours or root's on which nobody listens may go, nothing else.
fn clear(path: &Path) -> Result<(), Refusal> {
    let refuse = |found: String| Refusal::new(codes::DELIVERY_SOCKET, found).at(path.display().to_string());
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(refuse(e.to_string())),
    };
    if !there.file_type().is_socket() {
        let kind = FileType::from_raw_mode(there.mode());
        return Err(
            refuse(format!("a {kind:?} is in the place")).expected("nothing, or a socket left by a dead process")
        );
    }
    if there.uid() != 0 && there.uid() != rustix::process::geteuid().as_raw() {
        return Err(refuse(format!("a socket of uid {} is in the place", there.uid())));
    }
    match try_connect(path) {
        // A listener whose queue is full is one, too.
        Ok(()) | Err(Errno::AGAIN) => {
            Err(refuse("somebody listens there".to_owned()).expected("no other agent on this socket"))
        }
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(|e| refuse(e.to_string())),
        Err(e) => Err(refuse(format!("a socket is in the place: {e}"))),
    }
}

fn try_connect(path: &Path) -> Result<(), Errno> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn refused(path: &Path) -> String {
        let refusal = BoundSocket::bind(path, 0o666).unwrap_err();
        assert_eq!(refusal.code, codes::DELIVERY_SOCKET);
        refusal.to_string()
    }

    #[test]
    fn a_socket_has_its_mode_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/workload.sock");
        let mut bound = BoundSocket::bind(&path, 0o666).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
        assert!(refused(&path).contains("somebody listens"));
        UnixStream::connect(&path).unwrap();
        assert!(bound.take().is_some());
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_successor_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("workload.sock");
        // Dropping a listener leaves its file, as a killed process does.
        drop(UnixListener::bind(&path).unwrap());
        let first = BoundSocket::bind(&path, 0o600).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = BoundSocket::bind(&path, 0o600).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn what_others_could_have_planted_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(refused(&file).contains("RegularFile"));
        let link = dir.path().join("link");
        symlink(dir.path().join("elsewhere"), &link).unwrap();
        assert!(refused(&link).contains("Symlink"));
        symlink(dir.path(), dir.path().join("here")).unwrap();
        assert!(refused(&dir.path().join("here/s.sock")).contains("symbolic link"));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");

        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        for mode in [0o777, 0o1777, 0o775] {
            std::fs::set_permissions(&open, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(refused(&open.join("s.sock")).contains("mode"), "{mode:o}");
        }
        assert!(refused(Path::new("relative/s.sock")).contains("absolute"));
        assert!(refused(&dir.path().join("../s.sock")).contains("plain"));
        assert!(refused(&dir.path().join("none/none/s.sock")).contains("No such file"));
        assert!(refused(&dir.path().join("x".repeat(120))).contains("bytes"));
    }

    #[test]
    fn a_socket_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        if std::os::unix::fs::lchown(&path, Some(4242), None).is_err() {
            eprintln!("SKIPPED a_socket_of_another_user_is_refused: only root can give a file away");
            return;
        }
        assert!(refused(&path).contains("uid 4242"));
        assert!(path.exists());
    }
}
