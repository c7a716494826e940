//! The client of a running server: over its admin socket, one HTTP/1.1 request on one connection, or
//! over the network as an operator.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use super::remote::Remote;
use crate::codes::{self, Refusal};
use crate::control_plane::admin::{Command, PATH};

/// A command is done in milliseconds; a store on a slow disk may take seconds.
const DEADLINE: Duration = Duration::from_secs(30);
/// The largest answer, in bytes.
const LIMIT: u64 = 256 << 20;

/// Gives commands to one server.
#[derive(Debug)]
pub enum Client {
    /// At its admin socket.
    Local(Local),
    /// At its TLS listener.
    Remote(Remote),
}

impl Client {
    /// Carries out a command and returns its facts.
    ///
    /// # Errors
    /// The server's refusal, or [`codes::PROTOCOL_UNREACHABLE`].
    pub fn call(&self, command: &Command) -> Result<Value, Refusal> {
        match self {
            Self::Local(local) => local.call(command),
            Self::Remote(remote) => remote.call(command),
        }
    }
}

/// Talks to one admin socket.
#[derive(Debug)]
pub struct Local {
    socket: PathBuf,
}

impl Local {
    /// A client of this socket.
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    fn call(&self, command: &Command) -> Result<Value, Refusal> {
        let body = serde_json::to_vec(command).map_err(|e| self.unreachable(&e.to_string()))?;
        let answer = self.exchange(&body).map_err(|e| self.unreachable(&e.to_string()))?;
        let (status, body) = parse(&answer).ok_or_else(|| self.unreachable("its answer is no HTTP"))?;
        if status == 200 {
            return serde_json::from_slice(body).map_err(|e| self.unreachable(&e.to_string()));
        }
        Err(serde_json::from_slice(body).unwrap_or_else(|_| self.unreachable(&format!("it answers {status}"))))
    }

    fn exchange(&self, body: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.take(LIMIT).read_to_end(&mut answer)?;
        Ok(answer)
    }

    fn unreachable(&self, why: &str) -> Refusal {
        Refusal::new(codes::PROTOCOL_UNREACHABLE, why)
            .at(self.socket.display().to_string())
            .expected("the admin socket of a running `leasehold-server run`; see --config and --admin-socket, or --server from elsewhere")
    }
}

/// The hexadecimal DER of a certificate file, DER or PEM.
///
/// # Errors
/// [`codes::ADMIN_INVALID`].
pub fn read_certificate(path: &Path) -> Result<String, Refusal> {
    Ok(hex::encode(read_certificate_der(path)?))
}

/// The DER of a certificate file, DER or PEM.
///
/// # Errors
/// [`codes::ADMIN_INVALID`].
pub fn read_certificate_der(path: &Path) -> Result<Vec<u8>, Refusal> {
    let bytes = read(path)?;
    let is_pem = bytes.trim_ascii_start().starts_with(b"-----");
    if !is_pem {
        return Ok(bytes);
    }
    let der = CertificateDer::from_pem_slice(&bytes)
        .map_err(|e| Refusal::new(codes::ADMIN_INVALID, e.to_string()).at(path.display().to_string()))?;
    Ok(der.to_vec())
}

/// A file in hexadecimal.
///
/// # Errors
/// [`codes::ADMIN_INVALID`].
pub fn read_hex(path: &Path) -> Result<String, Refusal> {
    Ok(hex::encode(read(path)?))
}

/// A file's bytes.
///
/// # Errors
/// [`codes::ADMIN_INVALID`].
pub fn read(path: &Path) -> Result<Vec<u8>, Refusal> {
    std::fs::read(path).map_err(|e| Refusal::new(codes::ADMIN_INVALID, e.to_string()).at(path.display().to_string()))
}

/// Status and body of an answer whose connection was closed after it. Our own server states the
/// length of each, so there is no chunked coding to undo.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = answer.split_at_checked(end + 4)?;
    let head = std::str::from_utf8(head).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    // A shorter body was cut off.
    Some((status, body.get(..length)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(answer), Some((404, b"{}".as_slice())));
        assert_eq!(parse(&answer[..answer.len() - 1]), None);
        assert_eq!(parse(b"junk"), None);
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n\r\n{}"), None);
    }
}
