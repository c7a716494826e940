//! The version that no bundle in force may be below, kept apart from the store.
//!
//! A store that was rolled back brings an older bundle back, or none. So the highest version that
//! ever came into force also stands in a small file beside the one that witnesses the store's
//! generation: a store that is behind it permits nothing until a bundle of that version, or a newer
//! one, is applied. A roll-back of both together can't be noticed.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::codes::{self, Refusal};
use crate::secret;

/// The floor and where it lies.
#[derive(Debug)]
pub struct Floor {
    path: PathBuf,
    version: Mutex<u64>,
}

impl Floor {
    /// Reads the floor in the file at `path`; none yet is 0.
    ///
    /// # Errors
    /// [`codes::CONFIG_INVALID`] for a file that can't be read: without it nobody knows.
    pub fn open(path: PathBuf) -> Result<Self, Refusal> {
        let unreadable = |why: String| {
            Refusal::new(codes::CONFIG_INVALID, why)
                .at(Path::display(&path).to_string())
                .expected("the policy version that this server wrote there")
        };
        let version = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| unreadable("it is no number".to_owned()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(unreadable(error.to_string())),
        };
        Ok(Self { path, version: Mutex::new(version) })
    }

    /// The least version that may be in force.
    pub fn version(&self) -> u64 {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises it, after the commit; where that didn't come about, at the next start.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub fn raise(&self, version: u64) -> Result<(), Refusal> {
        let mut known = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        if version > *known {
            secret::write_atomically(&self.path, format!("{version}\n").as_bytes())
                .map_err(|e| Refusal::new(codes::STORE_FAILED, e.to_string()).at(self.path.display().to_string()))?;
            *known = version;
        }
        Ok(())
    }
}
