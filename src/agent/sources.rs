//! The node's log files as the reporter and the follower read them: from a place on, at any time.

use std::sync::{Mutex, PoisonError};

use crate::codes::Refusal;
use crate::config::AgentLogs;
use crate::evidence::LogKind;
use crate::measurements::sources;

/// The files, shared. The kernel makes its list anew at every seek, so all who read it share one place in it.
#[derive(Debug)]
pub struct Sources {
    files: Mutex<sources::Sources>,
    /// By itself: the gate waits for it, and doesn't wait for systemd.
    ima: Mutex<sources::Sources>,
    /// The same list, for whoever looks for something in it from its start on.
    searched: Mutex<sources::Sources>,
    /// Whether a path is configured at all: the userspace log may come into being later.
    any: bool,
}

impl Sources {
    /// Opens what there is.
    ///
    /// # Errors
    /// [`crate::codes::MEASUREMENTS_UNREADABLE`] for a file that is there and can't be opened.
    pub fn open(config: &AgentLogs) -> Result<Self, Refusal> {
        let [boot, userspace, list] = [&config.boot, &config.userspace, &config.ima].map(|path| AgentLogs::given(path));
        let files = sources::Sources::open(boot, userspace, None)?;
        let ima = sources::Sources::open(None, None, list)?;
        let searched = sources::Sources::open(None, None, list)?;
        let any = files.has_boot() || ima.has_ima() || userspace.is_some();
        Ok(Self { files: Mutex::new(files), ima: Mutex::new(ima), searched: Mutex::new(searched), any })
    }

    /// At most `limit` bytes of IMA's list from `offset` on, without moving the place where
    /// [`Self::read`] goes on. It blocks.
    ///
    /// # Errors
    /// Those of [`sources::Sources::read_ima`].
    pub fn look(&self, offset: u64, limit: usize) -> Result<Option<Vec<u8>>, Refusal> {
        self.searched.lock().unwrap_or_else(PoisonError::into_inner).read_ima(offset, limit)
    }

    /// Whether there can be no log at all.
    pub const fn are_none(&self) -> bool {
        !self.any
    }

    /// At most `limit` bytes from `offset` on; `None` if there is no such log. It blocks, the userspace log for
    /// 200 ms at the most while systemd writes a record.
    ///
    /// # Errors
    /// Those of [`sources::Sources`].
    pub fn read(&self, kind: LogKind, offset: u64, limit: usize) -> Result<Option<Vec<u8>>, Refusal> {
        let files = if kind == LogKind::Ima { &self.ima } else { &self.files };
        let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = match kind {
            LogKind::Boot => files.read_boot()?,
            LogKind::Userspace => files.read_userspace()?,
            LogKind::Ima => return files.read_ima(offset, limit),
        };
        Ok(whole.map(|bytes| {
            let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
            rest.get(..limit).unwrap_or(rest).to_vec()
        }))
    }

    /// Whether the log has fewer bytes than `offset`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn ends_before(&self, kind: LogKind, offset: u64) -> Result<bool, Refusal> {
        let last = offset.saturating_sub(1);
        Ok(self.read(kind, last, 1)?.is_none_or(|byte| byte.is_empty()))
    }
}
