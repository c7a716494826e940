//! The messages of `tasks.proto`, for clients in Rust too.
#![allow(missing_docs, reason = "the words are in tasks.proto")]

#[rustfmt::skip]
#[allow(clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason, missing_docs, reason = "generated")]
#[path = "generated.rs"]
mod generated;

pub use generated::*;

use crate::secret::Zeroize;

/// tonic drops a message once it is encoded. The copies in its and the kernel's send buffers are
/// not ours to wipe.
impl Drop for X509 {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Drop for Jwt {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}
