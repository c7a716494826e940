//! Endorsement keys: which one is used, how it is loaded, and the activation of credentials.

use tss_esapi::constants::CapabilityType;
use tss_esapi::constants::EccCurveIdentifier;
use tss_esapi::handles::{AuthHandle, KeyHandle, SessionHandle};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{CapabilityData, Digest, DigestList, EncryptedSecret, IdObject, Nonce, Public};
use tss_esapi::traits::Marshall;

use super::connection::{Connection, NONE, PASSWORD};
use super::device::primary;
use super::session::{self, Purpose};
use super::templates::{self, EkKind};
use super::words::Fault;
use super::{EkPublic, TpmError, nv};
use crate::secret::Zeroizing;

/// Persistent handles that firmware and installers use for EKs (TCG registry of reserved handles).
const PERSISTENT_EKS: std::ops::RangeInclusive<u32> = 0x8101_0000..=0x8101_00FF;
const FIRST_PERSISTENT: u32 = 0x8100_0000;

/// The EK in use.
#[derive(Clone, Debug)]
pub(super) struct Endorsement {
    pub kind: EkKind,
    /// TPM name; empty until it was first loaded.
    pub name: Vec<u8>,
    /// TPMT_PUBLIC; empty until it was first loaded.
    pub public: Vec<u8>,
    pub certificate: Option<Vec<u8>>,
    /// Where it lies ready. Without it the key is made from its template each time.
    persistent: Option<u32>,
}

/// Chooses the EK: the most preferred one with a certificate, else the most preferred one.
pub(super) fn choose(connection: &mut Connection) -> Result<Endorsement, Fault> {
    let indices = nv::indices(connection)?;
    for kind in EkKind::PREFERENCE {
        if let Some(found) = with_certificate(connection, kind, &indices)? {
            return Ok(found);
        }
    }
    let kind = if has_p256(connection)? { EkKind::P256Low } else { EkKind::Rsa2048Low };
    Ok(Endorsement { kind, name: Vec::new(), public: Vec::new(), certificate: None, persistent: None })
}

/// A key's TPM name. libtss2 has compared it with the public area that it keeps of the key, which
/// is what it encrypts a salt to.
pub(super) fn name_of(connection: &mut Connection, key: KeyHandle) -> Result<Vec<u8>, Fault> {
    let name = connection.call("Esys_TR_GetName", NONE, |context| context.tr_get_name(key.into()))?;
    Ok(name.value().to_vec())
}

/// The other EKs that have a certificate, and the chain of them all.
pub(super) fn aliases_and_chain(
    connection: &mut Connection,
    used: &Endorsement,
) -> Result<(Vec<EkPublic>, Vec<Vec<u8>>), Fault> {
    let indices = nv::indices(connection)?;
    let mut aliases = Vec::new();
    for kind in EkKind::PREFERENCE.into_iter().filter(|kind| *kind != used.kind) {
        if let Some(Endorsement { public, certificate, .. }) = with_certificate(connection, kind, &indices)? {
            aliases.push(EkPublic { public, certificate });
        }
    }
    Ok((aliases, nv::chain(connection, &indices)?))
}

/// Runs `work` with the EK loaded and gone again afterwards, and returns the EK with its name.
///
/// # Errors
/// [`TpmError::Swapped`] if the key has another name than the given one; then `work` doesn't run.
pub(super) fn with_loaded<T>(
    connection: &mut Connection,
    ek: Endorsement,
    work: impl FnOnce(&mut Connection, KeyHandle) -> Result<T, Fault>,
) -> Result<(T, Endorsement), Fault> {
    let (key, ek, persistent) = load(connection, ek)?;
    let result = work(connection, key);
    let unloaded = unload(connection, key, persistent);
    Ok((cleaned(result, unloaded)?, ek))
}

/// Refuses another name than the pinned one.
pub(super) fn same(found: &[u8], expected: &[u8]) -> Result<(), Fault> {
    if found == expected {
        return Ok(());
    }
    let error = TpmError::Swapped { found: hex::encode(found), expected: hex::encode(expected) };
    Err(Fault { lost: true, ..error.into() })
}

/// TPM2_ActivateCredential (Part 3, 12.5): the AK by its empty authorisation, the EK by its policy
/// in a session salted to the EK itself, so that the secret crosses the bus encrypted.
pub(super) fn activate(
    connection: &mut Connection,
    kind: EkKind,
    ek: KeyHandle,
    ak: KeyHandle,
    credential: &[u8],
    encrypted_secret: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    const COMMAND: &str = "TPM2_ActivateCredential";
    let refuse = |what: &str| Fault::refused(COMMAND, format!("the {what} has a size that no TPM accepts"));
    let credential = IdObject::try_from(credential).map_err(|_| refuse("credential"))?;
    let secret = EncryptedSecret::try_from(encrypted_secret).map_err(|_| refuse("encrypted secret"))?;
    let session = session::start(connection, ek, Purpose::Secret, kind.hash())?;
    let activated = satisfy(connection, kind, session).and_then(|()| {
        connection.call(COMMAND, (Some(AuthSession::Password), Some(session), None), |context| {
            context.activate_credential(ak, ek, credential.clone(), secret.clone())
        })
    });
    let flushed = connection.flush(SessionHandle::from(session).into());
    Ok(Zeroizing::new(cleaned(activated, flushed)?.value().to_vec()))
}

/// Brings the policy session to where the EK's policy wants it.
fn satisfy(connection: &mut Connection, kind: EkKind, session: AuthSession) -> Result<(), Fault> {
    const SECRET: &str = "TPM2_PolicySecret";
    let session = PolicySession::try_from(session).map_err(|e| Fault::lost(e.to_string()))?;
    connection.call(SECRET, PASSWORD, |context| {
        context.policy_secret(
            session,
            AuthHandle::Endorsement,
            Nonce::default(),
            Digest::default(),
            Nonce::default(),
            None,
        )
    })?;
    if let Some(branches) = kind.branches() {
        let mut list = DigestList::new();
        for branch in branches {
            Digest::try_from(branch).and_then(|digest| list.add(digest)).map_err(|e| Fault::lost(e.to_string()))?;
        }
        connection.call("TPM2_PolicyOR", NONE, |context| context.policy_or(session, list.clone()))?;
    }
    Ok(())
}

fn load(connection: &mut Connection, ek: Endorsement) -> Result<(KeyHandle, Endorsement, bool), Fault> {
    if let Some(handle) = ek.persistent
        && let Some((key, public)) = persistent(connection, handle, ek.kind)?
    {
        return finish(connection, key, &public, ek, true);
    }
    let (key, public) = primary(connection, ek.kind.template())?;
    finish(connection, key, &public, ek, false)
}

/// Compares the name with the pinned one, or fills it in the first time. After an error the
/// context is closed, and with it goes the key.
fn finish(
    connection: &mut Connection,
    key: KeyHandle,
    public: &Public,
    mut ek: Endorsement,
    persistent: bool,
) -> Result<(KeyHandle, Endorsement, bool), Fault> {
    let name = name_of(connection, key)?;
    if ek.name.is_empty() {
        ek.public = encode(public)?;
        ek.name = name;
    } else {
        same(&name, &ek.name)?;
    }
    Ok((key, ek, persistent))
}

fn unload(connection: &mut Connection, key: KeyHandle, persistent: bool) -> Result<(), Fault> {
    if persistent {
        connection.release(key.into());
        Ok(())
    } else {
        connection.flush(key.into())
    }
}

/// The EK of this kind if NV has a certificate for it.
fn with_certificate(connection: &mut Connection, kind: EkKind, indices: &[u32]) -> Result<Option<Endorsement>, Fault> {
    if !indices.contains(&kind.certificate_index()) {
        return Ok(None);
    }
    let Some(certificate) = nv::certificate(connection, kind.certificate_index())? else { return Ok(None) };
    let certified = |public: &Public| {
        templates::key_bytes(public).is_some_and(|key| certificate.windows(key.len()).any(|part| part == key))
    };
    // A key that lies ready is taken at the certificate's word: making an RSA key only to compare
    // can take a discrete part a minute.
    for handle in connection.handles(FIRST_PERSISTENT)?.into_iter().filter(|handle| PERSISTENT_EKS.contains(handle)) {
        let Some((key, public)) = persistent(connection, handle, kind)? else { continue };
        let name = name_of(connection, key)?;
        connection.release(key.into());
        if certified(&public) {
            return Ok(Some(Endorsement {
                kind,
                name,
                public: encode(&public)?,
                certificate: Some(certificate),
                persistent: Some(handle),
            }));
        }
    }
    let (key, public) = match primary(connection, kind.template()) {
        Ok(made) => made,
        Err(fault) if fault.lost || fault.error.is_unavailable() => return Err(fault),
        Err(fault) => {
            tracing::warn!(?kind, error = %fault.error, "the TPM has a certificate for an EK that it can't make");
            return Ok(None);
        }
    };
    let name = name_of(connection, key);
    let name = cleaned(name, connection.flush(key.into()))?;
    if !certified(&public) {
        tracing::warn!(?kind, "the EK's certificate in NV is for another key than the standard template's");
        return Ok(None);
    }
    Ok(Some(Endorsement { kind, name, public: encode(&public)?, certificate: Some(certificate), persistent: None }))
}

/// libtss2's handle and the public area of a persistent key, if there is one and it is of this kind.
fn persistent(connection: &mut Connection, handle: u32, kind: EkKind) -> Result<Option<(KeyHandle, Public)>, Fault> {
    let key = match connection.resource(handle) {
        Ok(resource) => KeyHandle::from(resource),
        // Evicted since: the template makes the same key again.
        Err(fault) if fault.no_such_handle() => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let (public, _, _) = connection.call("TPM2_ReadPublic", NONE, |context| context.read_public(key))?;
    if kind.matches(&public) {
        return Ok(Some((key, public)));
    }
    connection.release(key.into());
    Ok(None)
}

/// The result of the work; if cleaning up after it failed, the TPM is opened again, which cleans up.
pub(super) fn cleaned<T>(result: Result<T, Fault>, cleaning: Result<(), Fault>) -> Result<T, Fault> {
    let Err(fault) = cleaning else { return result };
    Err(Fault { lost: true, ..result.err().unwrap_or(fault) })
}

fn has_p256(connection: &mut Connection) -> Result<bool, Fault> {
    // From this curve on and one only: the Rust layer refuses a list with a curve it doesn't know.
    let p256 = EccCurveIdentifier::NistP256;
    let (data, _) = connection.call("TPM2_GetCapability", NONE, |context| {
        context.get_capability(CapabilityType::EccCurves, u16::from(p256).into(), 1)
    })?;
    let CapabilityData::EccCurves(curves) = data else {
        return Err(Fault::lost("TPM2_GetCapability answered another question"));
    };
    Ok(curves.into_inner().contains(&p256))
}

pub(super) fn encode(public: &Public) -> Result<Vec<u8>, Fault> {
    public.marshall().map_err(|e| Fault::lost(format!("a public area can't be encoded: {e}")))
}
