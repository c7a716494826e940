//! Two clocks that are never mixed: CLOCK_BOOTTIME for terms, the wall clock for certificates.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A moment on CLOCK_BOOTTIME, in nanoseconds since boot.
///
/// It runs through suspend and ignores every change of the wall clock, so a lease counted on it
/// ends when it should on a node without a real-time clock too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootInstant(u64);

impl BootInstant {
    /// The present moment.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // CLOCK_BOOTTIME starts at zero and cannot be set, so neither field is ever negative.
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    /// A moment from nanoseconds since boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This moment and `term` later; saturates at the end of the clock.
    pub fn after(self, term: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(term.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for BootInstant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot+{}.{:03}s", self.0 / 1_000_000_000, (self.0 / 1_000_000) % 1000)
    }
}

/// The kernel's random id of this boot: 16 bytes, from `/proc/sys/kernel/random/boot_id`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BootId([u8; 16]);

impl BootId {
    /// The id of the running boot.
    ///
    /// # Errors
    /// When `/proc/sys/kernel/random/boot_id` cannot be read or is no UUID.
    pub fn read() -> std::io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let mut id = [0; 16];
        hex::decode_to_slice(text.trim().replace('-', ""), &mut id).map_err(|e| {
            std::io::Error::new(std::io::ErrorKind::InvalidData, format!("/proc/sys/kernel/random/boot_id: {e}"))
        })?;
        Ok(Self(id))
    }

    /// An id from its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The wall clock, in whole seconds since 1970-01-01 UTC. Never used to count a term.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(pub u64);

impl WallTime {
    /// The present moment; zero on a clock set before 1970.
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
    }

    /// A moment from RFC 3339, in whole seconds since 1970.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let moment = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
            .map_err(|e| format!("`{text}`: {e}"))?;
        match u64::try_from(moment.unix_timestamp()) {
            Ok(seconds) if moment.nanosecond() == 0 => Ok(Self(seconds)),
            _ => Err(format!("`{text}`: not in whole seconds since 1970")),
        }
    }

    /// `term` later, in whole seconds.
    pub fn after(self, term: Duration) -> Self {
        Self(self.0.saturating_add(term.as_secs()))
    }
}

impl fmt::Display for WallTime {
    /// RFC 3339, in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0).unwrap_or(i64::MAX);
        let text = time::OffsetDateTime::from_unix_timestamp(seconds)
            .ok()
            .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok());
        match text {
            Some(text) => f.write_str(&text),
            None => write!(f, "@{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_goes_forward_and_saturates() {
        let earlier = BootInstant::now();
        let later = earlier.after(Duration::from_secs(1));
        assert!(later > earlier);
        assert_eq!(later.since(earlier), Duration::from_secs(1));
        assert_eq!(earlier.since(later), Duration::ZERO);
        assert_eq!(BootInstant::from_nanos(u64::MAX).after(Duration::MAX), BootInstant::from_nanos(u64::MAX));
    }

    #[test]
    fn boot_id_is_stable_within_a_boot() {
        assert_eq!(BootId::read().unwrap(), BootId::read().unwrap());
    }

    #[test]
    fn wall_time_prints_as_rfc_3339() {
        assert_eq!(WallTime(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(WallTime::parse("1970-01-01T01:00:01+01:00"), Ok(WallTime(1)));
        for wrong in ["1970-01-01", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00.5Z", ""] {
            assert!(WallTime::parse(wrong).is_err(), "{wrong}");
        }
    }
}
