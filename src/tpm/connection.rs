//! One ESAPI context: where it leads, how long a call has been inside it, and the one place every
//! command passes through.

use std::fmt;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tss_esapi::constants::{CapabilityType, PropertyTag, StartupType};
use tss_esapi::handles::{ObjectHandle, TpmHandle};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::CapabilityData;
use tss_esapi::{Context, TctiNameConf};

use super::TpmError;
use super::words::{self, Fault, INITIALIZE, LOCKOUT};
use crate::codes::{self, Refusal};
use crate::secret;

/// How long a busy TPM (`TPM_RC_RETRY`, `_YIELDED`, `_TESTING`) is asked again, beyond the few
/// times libtss2 does by itself.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// Where the TPM is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TpmAddress {
    /// A character device: the kernel's resource manager, e.g. `/dev/tpmrm0`.
    Device(PathBuf),
    /// A software TPM's command port; its control port is the next one.
    Swtpm(SocketAddr),
}

impl TpmAddress {
    /// Reads `device:/dev/tpmrm0` or `swtpm:host=127.0.0.1,port=2321`.
    ///
    /// # Errors
    /// [`codes::CONFIG_INVALID`]. A host must be an IP address: no name is looked up to find a TPM.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let refuse = |why: &str| {
            Refusal::new(codes::CONFIG_INVALID, format!("`{text}` is no TPM address: {why}"))
                .at("tpm.address")
                .expected("e.g. device:/dev/tpmrm0 or swtpm:host=127.0.0.1,port=2321")
        };
        match text.split_once(':') {
            Some(("device", path)) if path.starts_with('/') => Ok(Self::Device(PathBuf::from(path))),
            Some(("device", _)) => Err(refuse("the device's path is not absolute")),
            Some(("swtpm", pairs)) => {
                let (mut host, mut port) = (None, None);
                for pair in pairs.split(',') {
                    match pair.split_once('=') {
                        Some(("host", value)) if host.is_none() => {
                            host = Some(value.parse::<IpAddr>().map_err(|_| refuse("the host is no IP address"))?);
                        }
                        Some(("port", value)) if port.is_none() => {
                            port = Some(value.parse::<u16>().map_err(|_| refuse("the port is no port number"))?);
                        }
                        _ => return Err(refuse("after `swtpm:` come host=… and port=…, once each")),
                    }
                }
                let (host, port) = host.zip(port).ok_or_else(|| refuse("the host or the port is missing"))?;
                Ok(Self::Swtpm(SocketAddr::new(host, port)))
            }
            _ => Err(refuse("it begins with neither `device:` nor `swtpm:`")),
        }
    }

    /// How long a single command may take before its thread is given up.
    pub(super) const fn patience(&self) -> Duration {
        match self {
            // An RSA key on a discrete part can take a minute.
            Self::Device(_) => Duration::from_secs(180),
            Self::Swtpm(_) => Duration::from_secs(20),
        }
    }

    /// Says in words what keeps a device from being opened; libtss2 has only numbers for it.
    fn check(&self) -> Result<(), String> {
        let Self::Device(path) = self else { return Ok(()) };
        let shown = path.display();
        let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                format!(
                    "the TPM device {shown} does not exist: is there a TPM, enabled in the firmware, with a driver?"
                )
            }
            _ => format!("the TPM device {shown}: {e}"),
        })?;
        if !metadata.file_type().is_char_device() {
            return Err(format!("{shown} is no TPM device: expected a character device such as /dev/tpmrm0"));
        }
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => Err(format!(
                "the TPM device {shown} may not be opened by this user: the agent's user must be in its group (often `tss`)"
            )),
            Err(e) if e.kind() == ErrorKind::ResourceBusy => {
                Err(format!("the TPM device {shown} is held by another process: use the resource manager, /dev/tpmrm0"))
            }
            Err(e) => Err(format!("the TPM device {shown} can't be opened: {e}")),
        }
    }

    /// Why a context could not be made.
    fn explain(&self, error: &tss_esapi::Error) -> String {
        let code = words::code(error).map_or_else(|| error.to_string(), |code| format!("{code:#010x}"));
        match self {
            Self::Device(path) => {
                format!("{} can't be used: is libtss2-tcti-device installed? ({code})", path.display())
            }
            Self::Swtpm(address) => match TcpStream::connect_timeout(address, Duration::from_millis(200)) {
                Ok(_) => format!("swtpm on {address} can't be used: is libtss2-tcti-swtpm installed? ({code})"),
                Err(e) => format!("no swtpm answers on {address}: {e}"),
            },
        }
    }

    fn configuration(&self) -> tss_esapi::Result<TctiNameConf> {
        TctiNameConf::from_str(&self.to_string())
    }
}

impl fmt::Display for TpmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => write!(f, "device:{}", path.display()),
            Self::Swtpm(address) => write!(f, "swtpm:host={},port={}", address.ip(), address.port()),
        }
    }
}

/// Which command is inside libtss2, and since when. Written by the TPM's thread, read by handles.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    inside: Mutex<Option<(&'static str, Instant)>>,
    /// Another thread has taken over.
    given_up: AtomicBool,
}

impl Pulse {
    /// The command inside libtss2 and how long it has been there.
    pub fn inside(&self) -> Option<(&'static str, Duration)> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner).map(|(command, since)| (command, since.elapsed()))
    }

    /// Tells the thread that another one has taken over.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    /// Runs `work` as `command`.
    pub fn during<T>(&self, command: &'static str, work: impl FnOnce() -> T) -> T {
        let set = |value| *self.inside.lock().unwrap_or_else(PoisonError::into_inner) = value;
        set(Some((command, Instant::now())));
        let result = work();
        set(None);
        result
    }
}

/// The sessions of a command, in order.
pub(super) type Sessions = (Option<AuthSession>, Option<AuthSession>, Option<AuthSession>);

/// No session.
pub(super) const NONE: Sessions = (None, None, None);
/// The empty authorisation value, for one handle.
pub(super) const PASSWORD: Sessions = (Some(AuthSession::Password), None, None);
/// The empty authorisation value, for two handles.
pub(super) const PASSWORDS: Sessions = (Some(AuthSession::Password), Some(AuthSession::Password), None);

/// An open ESAPI context.
#[derive(Debug)]
pub(super) struct Connection {
    context: Context,
    pulse: Arc<Pulse>,
}

impl Connection {
    /// Connects. On a bare software TPM, which has no resource manager, it also starts the TPM if
    /// nobody has and flushes what a killed process left behind.
    pub fn open(address: &TpmAddress, pulse: Arc<Pulse>) -> Result<Self, Fault> {
        address.check().map_err(Fault::lost)?;
        let configuration = address.configuration().map_err(|e| Fault::lost(address.explain(&e)))?;
        let context =
            pulse.during("connect", || Context::new(configuration)).map_err(|e| Fault::lost(address.explain(&e)))?;
        let mut connection = Self { context, pulse };
        match address {
            TpmAddress::Device(_) => connection.property(PropertyTag::Manufacturer).map(|_| ()).map_err(not_started)?,
            TpmAddress::Swtpm(_) => {
                if let Err(fault) = connection.flush_leftovers() {
                    if fault.code != Some(INITIALIZE) {
                        return Err(fault);
                    }
                    connection.call("TPM2_Startup", NONE, |context| context.startup(StartupType::Clear))?;
                    connection.flush_leftovers()?;
                }
            }
        }
        Ok(connection)
    }

    /// Flushes everything of ours, of which `ours` is known by name, and disconnects.
    ///
    /// A thread that was given up flushes nothing: on a bare TPM the one that took over has flushed it all, and
    /// what bears the same handles by now is the other's.
    pub fn close(mut self, ours: impl IntoIterator<Item = ObjectHandle>) {
        if self.pulse.given_up.load(Ordering::Acquire) {
            ours.into_iter().for_each(|handle| self.release(handle));
        }
        self.pulse.during("close", || drop(self.context));
    }

    /// Runs one command under `sessions`. A busy TPM is asked again for up to a second.
    ///
    /// # Errors
    /// A [`Fault`] in words; see [`words::fault`] for what each response code means.
    pub fn call<T>(
        &mut self,
        command: &'static str,
        sessions: Sessions,
        mut run: impl FnMut(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, Fault> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(10);
        loop {
            let context = &mut self.context;
            let error = match self.pulse.during(command, || context.execute_with_sessions(sessions, &mut run)) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if words::code(&error).is_some_and(words::is_busy) && started.elapsed() < BUSY_FOR {
                std::thread::sleep(jittered(pause));
                pause = (pause * 2).min(BUSY_FOR / 4);
                continue;
            }
            let mut fault = words::fault(command, &error);
            if fault.code == Some(LOCKOUT) {
                // Best effort: without an answer the time is unknown, not zero harm done.
                let seconds = self.property(PropertyTag::LockoutInterval).ok().flatten().unwrap_or(0);
                fault.error = TpmError::Lockout { seconds };
            }
            return Err(fault);
        }
    }

    /// A TPM property; none if the TPM doesn't have it. Never cached: some of them change.
    pub fn property(&mut self, tag: PropertyTag) -> Result<Option<u32>, Fault> {
        // One at a time: libtss2's Rust layer refuses a whole list for one tag that it doesn't know.
        let (data, _) = self.call("TPM2_GetCapability", NONE, |context| {
            context.get_capability(CapabilityType::TpmProperties, tag.into(), 1)
        })?;
        let CapabilityData::TpmProperties(list) = data else {
            return Err(Fault::lost("TPM2_GetCapability answered another question"));
        };
        Ok(list.find(tag).map(|found| found.value()))
    }

    /// The handles in use, from `first` to the end of its range (Part 2, 7.2).
    pub fn handles(&mut self, first: u32) -> Result<Vec<u32>, Fault> {
        let mut found = Vec::new();
        let mut next = first;
        loop {
            let (data, more) = self.call("TPM2_GetCapability", NONE, |context| {
                context.get_capability(CapabilityType::Handles, next, 128)
            })?;
            let CapabilityData::Handles(list) = data else {
                return Err(Fault::lost("TPM2_GetCapability answered another question"));
            };
            let before = found.len();
            found.extend(list.into_inner().into_iter().map(u32::from));
            match found.last().and_then(|last| last.checked_add(1)) {
                // An answer without progress would go on for ever.
                Some(after) if more && found.len() > before && after > next => next = after,
                _ => return Ok(found),
            }
        }
    }

    /// libtss2's handle for something that is in the TPM already.
    pub fn resource(&mut self, handle: u32) -> Result<ObjectHandle, Fault> {
        let handle = TpmHandle::try_from(handle).map_err(|e| Fault::lost(format!("handle {handle:#010x}: {e}")))?;
        self.call("TPM2_ReadPublic", NONE, |context| context.tr_from_tpm_public(handle))
    }

    /// Flushes a key or session of ours.
    pub fn flush(&mut self, handle: ObjectHandle) -> Result<(), Fault> {
        self.call("TPM2_FlushContext", NONE, |context| context.flush_context(handle))
    }

    /// Forgets libtss2's handle; what it stood for stays in the TPM.
    pub fn release(&mut self, mut handle: ObjectHandle) {
        // Only memory of libtss2 is at stake, and the context's end frees that too.
        let _ = self.context.tr_close(&mut handle);
    }

    /// Flushes every transient key and loaded session, whosever they are: for a bare TPM only.
    fn flush_leftovers(&mut self) -> Result<(), Fault> {
        const TRANSIENT: u32 = 0x8000_0000;
        const LOADED_SESSIONS: u32 = 0x0200_0000;
        for first in [TRANSIENT, LOADED_SESSIONS] {
            for handle in self.handles(first)? {
                let flushed = self.resource(handle).and_then(|resource| self.flush(resource));
                if let Err(fault) = flushed {
                    // The Rust layer takes policy sessions for something not to be flushed and
                    // complains after it has flushed them. And who left it may come to and flush it, too.
                    if fault.code.is_some() && !fault.names_nothing() {
                        return Err(fault);
                    }
                }
            }
        }
        Ok(())
    }
}

/// A pause of between half and all of `longest`, so that many waiters don't come back together.
pub(super) fn jittered(longest: Duration) -> Duration {
    let random = secret::random::<1>().map_or(0, |[byte]| u32::from(byte));
    longest / 2 + longest / 2 * random / 255
}

/// Behind a resource manager, starting the TPM is the firmware's and the kernel's.
fn not_started(fault: Fault) -> Fault {
    match fault.code {
        Some(INITIALIZE) => Fault::lost("the TPM waits for TPM2_Startup, which firmware or kernel must send"),
        _ => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_print_the_same() {
        for text in ["device:/dev/tpmrm0", "swtpm:host=127.0.0.1,port=2321", "swtpm:host=::1,port=1"] {
            assert_eq!(TpmAddress::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "device",
            "device:",
            "device:tpm0",
            "swtpm",
            "swtpm:",
            "swtpm:host=localhost,port=1",
            "swtpm:host=127.0.0.1",
            "swtpm:port=1",
            "swtpm:host=127.0.0.1,port=65536",
            "swtpm:host=127.0.0.1,port=1,port=2",
            "swtpm:host=127.0.0.1,port=1,path=/x",
            "tabrmd:",
        ] {
            assert_eq!(TpmAddress::parse(text).unwrap_err().code, codes::CONFIG_INVALID, "{text}");
        }
    }

    #[test]
    fn what_keeps_a_device_from_opening_is_said_in_words() {
        let check = |path: &str| TpmAddress::Device(path.into()).check().unwrap_err();
        assert!(check("/dev/no-such-tpm").contains("/dev/no-such-tpm does not exist"));
        assert!(check("/proc/version").contains("is no TPM device"));
        assert!(TpmAddress::Device("/dev/zero".into()).check().is_ok());
    }

    #[test]
    fn the_pulse_names_the_command_inside() {
        let pulse = Pulse::default();
        assert_eq!(pulse.inside(), None);
        pulse.during("TPM2_Quote", || assert_eq!(pulse.inside().unwrap().0, "TPM2_Quote"));
        assert_eq!(pulse.inside(), None);
    }
}
