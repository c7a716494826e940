//! `log ima`: what IMA's list says.

use std::path::Path;

use crate::measurements::LogHash;

/// `leasehold-agent log ima`.
pub fn show(_file: Option<&Path>, _bank: Option<LogHash>, _entries: bool, _json: bool) -> anyhow::Result<u8> {
    todo!("B")
}
