//! Sealing: small secrets that open on one TPM only.
//!
//! A sealed secret is a keyed hash object under the storage root key (SRK), a primary key of the
//! owner hierarchy from the TCG's template. Its authorisation value is empty: one that this
//! machine could supply would have to lie beside the file and protect nothing. What protects the
//! secret is that opening it takes the file and the running TPM together.
//!
//! On its way between here and the TPM the secret is encrypted in sessions salted to the SRK. When
//! a secret is opened, the SRK's name is the one in its file, so nobody between here and the TPM
//! can offer a key of his own; when it is sealed for the first time, no name is known yet.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tss_esapi::handles::{KeyHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Private, Public, SensitiveData};
use tss_esapi::traits::{Marshall, UnMarshall};

use super::connection::{Connection, PASSWORD, Pulse, TpmAddress};
use super::device::primary_in;
use super::endorsement::{cleaned, encode, name_of};
use super::session::{self, Purpose};
use super::words::Fault;
use super::{Sealed, TpmError, templates};
use crate::secret::Zeroizing;

/// A TPM that seals. Each request connects, works and disconnects, on a thread named `tpm`.
#[derive(Clone, Debug)]
pub struct Vault {
    address: TpmAddress,
    deadline: Duration,
}

impl Vault {
    /// A TPM at `address`; each request waits at most `deadline`.
    pub const fn new(address: TpmAddress, deadline: Duration) -> Self {
        Self { address, deadline }
    }

    /// Seals `secret`, of 1 to 128 bytes (Part 2, 11.1.14), and opens it again to see that it can
    /// be: TPM2_Create and TPM2_Unseal (Part 3, 12.1 and 12.7).
    ///
    /// # Errors
    /// See [`TpmError`].
    pub fn seal(&self, secret: &[u8]) -> Result<Sealed, TpmError> {
        let secret = Zeroizing::new(secret.to_vec());
        self.work(move |connection| {
            with_srk(connection, None, |connection, srk, srk_name| {
                let (public, private) = create(connection, srk, &secret)?;
                let opened = open(connection, srk, &public, &private)?;
                if *opened != *secret {
                    return Err(Fault::refused("TPM2_Unseal", "it gave other bytes than were sealed"));
                }
                Ok(Sealed { srk_name: srk_name.to_vec(), public: encode(&public)?, private: private.value().to_vec() })
            })
        })
    }

    /// The secret.
    ///
    /// # Errors
    /// [`TpmError::SealedElsewhere`] if this TPM's SRK is another; nothing of the file is sent to
    /// the TPM then. See [`TpmError`] for the rest.
    pub fn unseal(&self, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let (public, private) = parse(sealed)?;
        let name = sealed.srk_name.clone();
        self.work(move |connection| {
            with_srk(connection, Some(&name), |connection, srk, _| open(connection, srk, &public, &private))
        })
    }

    /// Runs `work` on a connection, within the deadline. A thread stuck in libtss2 is left behind;
    /// it ends by itself when its call returns.
    fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, TpmError> {
        let (reply, answer) = sync_channel(1);
        let pulse = Arc::new(Pulse::default());
        std::thread::Builder::new()
            .name("tpm".to_owned())
            .spawn({
                let (address, pulse) = (self.address.clone(), Arc::clone(&pulse));
                move || {
                    let result = Connection::open(&address, pulse).and_then(|mut connection| {
                        let result = work(&mut connection);
                        connection.close([]);
                        result
                    });
                    // The caller may have stopped waiting.
                    let _ = reply.send(result);
                }
            })
            .map_err(|e| TpmError::Unavailable(format!("its thread can't be started: {e}")))?;
        match answer.recv_timeout(self.deadline) {
            Ok(result) => result.map_err(|fault| match fault.error {
                // No session stands between two requests: there is nothing that the reset ended.
                TpmError::Reset => TpmError::Unavailable("it was reset meanwhile".to_owned()),
                error => error,
            }),
            Err(RecvTimeoutError::Disconnected) => Err(TpmError::Unavailable("its thread panicked".to_owned())),
            Err(RecvTimeoutError::Timeout) => {
                let seconds = self.deadline.as_secs_f32();
                let inside = pulse.inside().map_or("", |(command, _)| command);
                Err(TpmError::Unavailable(format!("no answer within {seconds:.1} s {inside}").trim_end().to_owned()))
            }
        }
    }
}

/// Runs `work` with the SRK loaded and gone again afterwards; `work` is given the SRK's name.
fn with_srk<T>(
    connection: &mut Connection,
    expected: Option<&[u8]>,
    work: impl FnOnce(&mut Connection, KeyHandle, &[u8]) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let (srk, public) = primary_in(connection, Hierarchy::Owner, templates::storage_root_key())?;
    let result = checked_name(connection, srk, &public, expected).and_then(|name| work(connection, srk, &name));
    let flushed = connection.flush(srk.into());
    cleaned(result, flushed)
}

/// The SRK's name, computed here from a public area that is of the template.
fn checked_name(
    connection: &mut Connection,
    srk: KeyHandle,
    public: &Public,
    expected: Option<&[u8]>,
) -> Result<Vec<u8>, Fault> {
    const COMMAND: &str = "TPM2_CreatePrimary";
    let template = templates::storage_root_key().map_err(|e| Fault::refused(COMMAND, e.to_string()))?;
    if !templates::same_template(&template, public) {
        return Err(Fault::refused(COMMAND, "it made another key than the template's"));
    }
    // TPM_ALG_SHA256 ‖ hash (Part 1, 16).
    let name = [&[0x00, 0x0B][..], &Sha256::digest(encode(public)?)].concat();
    if name != name_of(connection, srk)? {
        return Err(Fault::refused(COMMAND, "the storage root key's name is not that of its public area"));
    }
    match expected {
        Some(expected) if expected != name => {
            Err(TpmError::SealedElsewhere { found: hex::encode(name), expected: hex::encode(expected) }.into())
        }
        _ => Ok(name),
    }
}

fn create(connection: &mut Connection, srk: KeyHandle, secret: &[u8]) -> Result<(Public, Private), Fault> {
    const COMMAND: &str = "TPM2_Create";
    let refuse = |e: tss_esapi::Error| Fault::refused(COMMAND, e.to_string());
    let template = templates::sealed_data().map_err(refuse)?;
    let data = SensitiveData::try_from(secret).map_err(refuse)?;
    let created = in_session(connection, srk, Purpose::SecretIn, |connection, session| {
        connection.call(COMMAND, (Some(session), None, None), |context| {
            context.create(srk, template.clone(), None, Some(data.clone()), None, None)
        })
    })?;
    if !templates::same_template(&template, &created.out_public) {
        return Err(Fault::refused(COMMAND, "it made another object than the template's"));
    }
    Ok((created.out_public, created.out_private))
}

fn open(
    connection: &mut Connection,
    srk: KeyHandle,
    public: &Public,
    private: &Private,
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let object =
        connection.call("TPM2_Load", PASSWORD, |context| context.load(srk, private.clone(), public.clone()))?;
    let opened = in_session(connection, srk, Purpose::SecretOut, |connection, session| {
        connection.call("TPM2_Unseal", (Some(session), None, None), |context| context.unseal(object.into()))
    });
    let flushed = connection.flush(object.into());
    Ok(Zeroizing::new(cleaned(opened, flushed)?.value().to_vec()))
}

/// Runs `work` in a session salted to the SRK.
fn in_session<T>(
    connection: &mut Connection,
    srk: KeyHandle,
    purpose: Purpose,
    work: impl FnOnce(&mut Connection, AuthSession) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let session = session::start(connection, srk, purpose, HashingAlgorithm::Sha256)?;
    let result = work(connection, session);
    let flushed = connection.flush(SessionHandle::from(session).into());
    cleaned(result, flushed)
}

/// Both halves of the object; anything but what [`create`] makes is refused before the TPM sees it.
fn parse(sealed: &Sealed) -> Result<(Public, Private), TpmError> {
    let refuse = |reason: &str| TpmError::Refused { command: "TPM2_Load".to_owned(), reason: reason.to_owned() };
    let public = Public::unmarshall(&sealed.public).map_err(|_| refuse("the public area can't be read"))?;
    let exact = templates::sealed_data().is_ok_and(|template| templates::same_template(&template, &public))
        && public.marshall().is_ok_and(|bytes| bytes == sealed.public);
    if !exact {
        return Err(refuse("the object is no sealed secret of ours"));
    }
    let private = Private::try_from(sealed.private.as_slice()).map_err(|_| refuse("the private area is too large"))?;
    Ok((public, private))
}
