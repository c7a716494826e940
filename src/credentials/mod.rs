//! Credentials as they are held: keys made here, SVIDs, the trust bundle, and when each ends.

mod store;
mod svid;
pub mod token;
mod tokens;

pub use store::Store;
pub use svid::{PendingSvid, X509Svid};
pub use tokens::{JwtSvid, TokenFor, Tokens};

use std::fmt;

use crate::clock::BootInstant;

/// A credential with the moment it ends. Only `gate` gets at the value.
pub struct Held<T> {
    value: T,
    issued: BootInstant,
    until: BootInstant,
}

impl<T> Held<T> {
    /// Holds `value` from `issued` (when it was asked for) to `until`.
    pub const fn new(value: T, issued: BootInstant, until: BootInstant) -> Self {
        Self { value, issued, until }
    }

    /// From when on: when it was asked for.
    pub const fn issued(&self) -> BootInstant {
        self.issued
    }

    /// When it ends.
    pub const fn until(&self) -> BootInstant {
        self.until
    }

    /// When half of its life is over: the time to renew it.
    pub fn half_life(&self) -> BootInstant {
        self.issued.after(self.until.since(self.issued) / 2)
    }

    /// The value, for the gate and for the store's own bookkeeping.
    pub(crate) const fn value(&self) -> &T {
        &self.value
    }
}

impl<T> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("until", &self.until).finish_non_exhaustive()
    }
}
