//! The admin socket: mode 0600 from its first moment, and the kernel's word on who connects.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};

use crate::codes::{self, Refusal};

/// Binds the socket; takes the place of one that a killed server left behind.
///
/// # Errors
/// [`codes::CONFIG_INVALID`] when the path can't be used or another server answers there.
pub fn bind(path: &Path) -> Result<UnixListener, Refusal> {
    let refuse = |what: String| Refusal::new(codes::CONFIG_INVALID, what).at(path.display().to_string());
    if let Some(directory) = path.parent() {
        crate::secret::private_directory(directory).map_err(|e| refuse(e.to_string()))?;
    }
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(refuse("something that is no socket is in its place".to_owned()));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(refuse("another server answers there".to_owned()));
        }
        std::fs::remove_file(path).map_err(|e| refuse(e.to_string()))?;
    }
    let listen = || -> rustix::io::Result<_> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        // On Linux the file that bind creates takes the socket's own mode: there is no moment in
        // which others could connect.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, 16)?;
        Ok(socket)
    };
    let socket = listen().map_err(|e| refuse(e.to_string()))?;
    UnixListener::from_std(socket.into()).map_err(|e| refuse(e.to_string()))
}

/// The user id of whoever is at the other end, by the kernel's word.
#[derive(Clone, Copy, Debug)]
pub struct LocalUser(pub u32);

impl Connected<IncomingStream<'_, Guarded>> for LocalUser {
    fn connect_info(stream: IncomingStream<'_, Guarded>) -> Self {
        *stream.remote_addr()
    }
}

/// An axum listener that lets in this process's own user and root only.
pub struct Guarded(pub UnixListener);

impl axum::serve::Listener for Guarded {
    type Io = UnixStream;
    type Addr = LocalUser;

    async fn accept(&mut self) -> (UnixStream, LocalUser) {
        loop {
            match self.0.accept().await {
                Ok((stream, _)) => match ours(&stream) {
                    Some(user) => return (stream, user),
                    None => turn_away(stream).await,
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection to the admin socket can't be accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<LocalUser> {
        Ok(LocalUser(rustix::process::geteuid().as_raw()))
    }
}

/// The mode keeps others out already; this holds if somebody widens it or passes a descriptor on.
fn ours(stream: &UnixStream) -> Option<LocalUser> {
    let own = rustix::process::geteuid().as_raw();
    let uid = stream.peer_cred().ok()?.uid();
    (uid == 0 || uid == own).then_some(LocalUser(uid))
}

async fn turn_away(mut stream: UnixStream) {
    tracing::warn!(code = codes::ADMIN_PEER.as_str(), "a caller at the admin socket was turned away");
    let refusal = Refusal::new(codes::ADMIN_PEER, "another user");
    let body = serde_json::to_string(&refusal).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    // Whoever doesn't read its refusal is not waited for.
    let written = async {
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), written).await;
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn it_is_private_and_replaces_only_a_dead_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/admin.sock");
        let listener = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(bind(&path).unwrap_err().found.contains("another server"));
        drop(listener);
        bind(&path).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        assert!(bind(&file).unwrap_err().found.contains("no socket"));
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    }
}
