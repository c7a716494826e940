//! The node's log files, opened once and read on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::codes::{self, Refusal};
use crate::config::AgentLogs;
use crate::evidence::LogKind;

/// The files, kept open; one that isn't there is none.
#[derive(Debug)]
pub struct Sources {
    boot: Option<File>,
    userspace: Option<File>,
    ima: Option<File>,
}

impl Sources {
    /// Opens what there is.
    ///
    /// # Errors
    /// [`codes::MEASUREMENTS_UNREADABLE`] for a file that is there and can't be opened.
    pub fn open(config: &AgentLogs) -> Result<Self, Refusal> {
        Ok(Self { boot: open(&config.boot)?, userspace: open(&config.userspace)?, ima: open(&config.ima)? })
    }

    /// Whether there is no log at all.
    pub const fn are_none(&self) -> bool {
        self.boot.is_none() && self.userspace.is_none() && self.ima.is_none()
    }

    /// At most `limit` bytes from `offset` on; `None` if there is no such log.
    ///
    /// # Errors
    /// [`codes::MEASUREMENTS_UNREADABLE`].
    pub fn read(&self, kind: LogKind, offset: u64, limit: usize) -> Result<Option<Vec<u8>>, Refusal> {
        let Some(file) = self.file(kind) else { return Ok(None) };
        let mut bytes = vec![0; limit.min(1 << 16)];
        let mut read = 0;
        // To the end, however long it says it is: securityfs says 0.
        loop {
            if read == bytes.len() {
                if read >= limit {
                    break;
                }
                bytes.resize(limit.min(read.saturating_mul(2)), 0);
            }
            let at = offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
            let more =
                bytes.get_mut(read..).map_or(Ok(0), |free| file.read_at(free, at)).map_err(|e| unreadable(kind, &e))?;
            if more == 0 {
                break;
            }
            read = read.saturating_add(more);
        }
        bytes.truncate(read);
        Ok(Some(bytes))
    }

    /// Whether the log has fewer bytes than `offset`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn ends_before(&self, kind: LogKind, offset: u64) -> Result<bool, Refusal> {
        let last = offset.saturating_sub(1);
        Ok(self.read(kind, last, 1)?.is_none_or(|byte| byte.is_empty()))
    }

    const fn file(&self, kind: LogKind) -> Option<&File> {
        match kind {
            LogKind::Boot => self.boot.as_ref(),
            LogKind::Userspace => self.userspace.as_ref(),
            LogKind::Ima => self.ima.as_ref(),
        }
    }
}

fn open(path: &Path) -> Result<Option<File>, Refusal> {
    let Some(path) = AgentLogs::given(path) else { return Ok(None) };
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Refusal::new(codes::MEASUREMENTS_UNREADABLE, error.to_string())
            .at(path.display().to_string())
            .expected("a readable log, or an empty path under `[logs]`")),
    }
}

fn unreadable(kind: LogKind, error: &std::io::Error) -> Refusal {
    Refusal::new(codes::MEASUREMENTS_UNREADABLE, error.to_string()).at(format!("the {kind} log"))
}
