//! The TPM as this agent uses it: a trait in our words, and its implementation over ESAPI.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use p256::ecdsa::Signature as EcdsaSignature;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::structures::{Digest, HashcheckTicket, Public};
use tss_esapi::traits::Marshall;
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;

use super::connection::{Connection, PASSWORD, PASSWORDS, Pulse, TpmAddress, jittered};
use super::endorsement::{self, Endorsement};
use super::reading::Reader;
use super::session::{self, Purpose, SCHEME};
use super::words::Fault;
use super::{EkPublic, PcrReading, PcrSelection, Signed, TpmError, TpmIdentity, templates};
use crate::secret::Zeroizing;

/// What the agent asks of a TPM. Every method may block for as long as the TPM takes.
pub(super) trait Device {
    /// The keys in use and where they come from.
    fn identity(&mut self) -> Result<TpmIdentity, TpmError>;
    /// An authentic reading of PCRs.
    fn read_pcrs(&mut self, selection: PcrSelection) -> Result<PcrReading, TpmError>;
    /// A quote by the attestation key.
    fn quote(&mut self, selection: PcrSelection, qualifying_data: [u8; 32]) -> Result<Signed, TpmError>;
    /// The attestation key's certification of the node key.
    fn certify_node_key(&mut self, qualifying_data: [u8; 32]) -> Result<Signed, TpmError>;
    /// The secret of a credential made for the EK and the attestation key.
    fn activate(&mut self, credential: &[u8], encrypted_secret: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError>;
    /// A signature by the node key over a SHA-256 digest.
    fn sign(&mut self, digest: [u8; 32]) -> Result<EcdsaSignature, TpmError>;
    /// Opens the TPM again if it was lost and the time for a try has come. None if there is
    /// nothing to do; otherwise the time until there may be.
    fn tend(&mut self) -> Option<Duration>;
    /// Flushes all keys and sessions and disconnects.
    fn close(&mut self);
}

/// What must stay the same for as long as the agent runs: the TPM it began with.
#[derive(Clone, Debug)]
pub(super) struct Pinned {
    ek: Endorsement,
    ak_name: Vec<u8>,
    ak_public: Vec<u8>,
    node_key_name: Vec<u8>,
    node_key_public: Vec<u8>,
}

/// Shared by a thread and the one that takes over when it is stuck.
pub(super) type Pin = Arc<Mutex<Option<Pinned>>>;

/// Pauses between tries to open the TPM: back within a second of its return, one command a second
/// while it is away.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(1)];

/// A TPM over ESAPI. It opens at the first request and again whenever it is lost.
pub(super) struct EsysDevice {
    address: TpmAddress,
    trust_domain: String,
    pulse: Arc<Pulse>,
    pin: Pin,
    identity: Option<TpmIdentity>,
    state: State,
}

enum State {
    /// Nobody has asked yet.
    Unopened,
    Open(Box<Open>),
    /// Lost or never reached; the last error answers requests until the next try.
    Away {
        error: TpmError,
        tries: usize,
        next: Instant,
    },
}

/// Keys and session in the TPM.
struct Open {
    connection: Connection,
    pinned: Pinned,
    ak: KeyHandle,
    node_key: KeyHandle,
    reader: Reader,
}

impl EsysDevice {
    pub fn new(address: TpmAddress, trust_domain: String, pulse: Arc<Pulse>, pin: Pin) -> Self {
        Self { address, trust_domain, pulse, pin, identity: None, state: State::Unopened }
    }

    /// Runs `work` on the open TPM, opening it first if need be.
    fn with_open<T>(&mut self, work: impl FnOnce(&mut Open) -> Result<T, Fault>) -> Result<T, TpmError> {
        self.ensure_open()?;
        let State::Open(open) = &mut self.state else {
            return Err(TpmError::Unavailable("it was not opened".to_owned()));
        };
        work(open).map_err(|fault| {
            if fault.lost {
                self.lose(&fault.error);
            }
            fault.error
        })
    }

    fn ensure_open(&mut self) -> Result<(), TpmError> {
        let tries = match &self.state {
            State::Open(_) => return Ok(()),
            State::Unopened => 0,
            State::Away { error, next, .. } if Instant::now() < *next => return Err(error.clone()),
            State::Away { tries, .. } => *tries,
        };
        match self.open() {
            Ok(open) => {
                if tries > 0 {
                    tracing::info!(address = %self.address, counts = ?open.reader.counts(), "the TPM is back");
                }
                self.state = State::Open(Box::new(open));
                Ok(())
            }
            Err(fault) => {
                let error = match fault.error {
                    // Nothing was vouched for yet, so there is nothing that the reset ended.
                    TpmError::Reset => TpmError::Unavailable("it was reset while it was being opened".to_owned()),
                    error => error,
                };
                if tries == 0 {
                    tracing::warn!(address = %self.address, %error, "the TPM can't be used");
                }
                let pause = PAUSES.get(tries).or(PAUSES.last()).copied().unwrap_or_default();
                self.state =
                    State::Away { error: error.clone(), tries: tries + 1, next: Instant::now() + jittered(pause) };
                Err(error)
            }
        }
    }

    fn lose(&mut self, error: &TpmError) {
        tracing::warn!(address = %self.address, %error, "the TPM is opened again");
        self.close();
        let error = TpmError::Unavailable(format!("it is being opened again: {error}"));
        self.state = State::Away { error, tries: 0, next: Instant::now() };
    }

    fn pinned(&self) -> Option<Pinned> {
        self.pin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Loads the keys, starts the standing session and anchors it.
    fn open(&self) -> Result<Open, Fault> {
        let mut connection = Connection::open(&self.address, Arc::clone(&self.pulse))?;
        match self.load(&mut connection) {
            Ok(keys) => {
                let Loaded { pinned, ak, node_key, reader } = keys;
                *self.pin.lock().unwrap_or_else(PoisonError::into_inner) = Some(pinned.clone());
                Ok(Open { connection, pinned, ak, node_key, reader })
            }
            Err(fault) => {
                connection.close([]);
                Err(fault)
            }
        }
    }

    fn load(&self, connection: &mut Connection) -> Result<Loaded, Fault> {
        let expected = self.pinned();
        let ek = match &expected {
            Some(pinned) => pinned.ek.clone(),
            None => endorsement::choose(connection)?,
        };
        // The EK leaves before the other keys come: a bare TPM has three slots for keys.
        let (session, ek) = endorsement::with_loaded(connection, ek, |connection, key| {
            session::start(connection, key, Purpose::Audit, HashingAlgorithm::Sha256)
        })?;
        let (ak, ak_public) = primary(connection, templates::attestation_key())?;
        let (node_key, node_key_public) = primary(connection, templates::node_key(&self.trust_domain))?;
        let ak_name = endorsement::name_of(connection, ak)?;
        let node_key_name = endorsement::name_of(connection, node_key)?;
        if let Some(pinned) = &expected {
            endorsement::same(&ak_name, &pinned.ak_name)?;
            endorsement::same(&node_key_name, &pinned.node_key_name)?;
        }
        let ak_key = session::verifying_key(&ak_public)
            .ok_or_else(|| Fault::lost("the attestation key's public point is not on P-256"))?;
        let encode = |public: &Public| {
            public.marshall().map_err(|e| Fault::lost(format!("a public area can't be encoded: {e}")))
        };
        let pinned = Pinned {
            ek,
            ak_name,
            ak_public: encode(&ak_public)?,
            node_key_name,
            node_key_public: encode(&node_key_public)?,
        };
        let reader = Reader::new(connection, session, ak, ak_key)?;
        Ok(Loaded { pinned, ak, node_key, reader })
    }
}

struct Loaded {
    pinned: Pinned,
    ak: KeyHandle,
    node_key: KeyHandle,
    reader: Reader,
}

impl Device for EsysDevice {
    fn identity(&mut self) -> Result<TpmIdentity, TpmError> {
        if let (Some(identity), State::Open(_)) = (&self.identity, &self.state) {
            return Ok(identity.clone());
        }
        let identity = self.with_open(Open::identity)?;
        self.identity = Some(identity.clone());
        Ok(identity)
    }

    fn read_pcrs(&mut self, selection: PcrSelection) -> Result<PcrReading, TpmError> {
        self.with_open(|open| open.reader.read(&mut open.connection, selection))
    }

    fn quote(&mut self, selection: PcrSelection, qualifying_data: [u8; 32]) -> Result<Signed, TpmError> {
        self.with_open(|open| {
            let list = session::selected(selection)?;
            Ok(session::quote(&mut open.connection, open.ak, list, qualifying_data)?.signed)
        })
    }

    fn certify_node_key(&mut self, qualifying_data: [u8; 32]) -> Result<Signed, TpmError> {
        self.with_open(|open| open.certify_node_key(qualifying_data))
    }

    fn activate(&mut self, credential: &[u8], encrypted_secret: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.with_open(|open| open.activate(credential, encrypted_secret))
    }

    fn sign(&mut self, digest: [u8; 32]) -> Result<EcdsaSignature, TpmError> {
        self.with_open(|open| open.sign(digest))
    }

    fn tend(&mut self) -> Option<Duration> {
        let wait = |state: &State| match state {
            State::Away { next, .. } => Some(next.saturating_duration_since(Instant::now())),
            State::Unopened | State::Open(_) => None,
        };
        if wait(&self.state)? == Duration::ZERO {
            // The error is kept in the state and answers the next request.
            let _ = self.ensure_open();
        }
        wait(&self.state)
    }

    fn close(&mut self) {
        if let State::Open(open) = std::mem::replace(&mut self.state, State::Unopened) {
            open.connection.close([open.ak.into(), open.node_key.into(), open.reader.handle()]);
        }
    }
}

impl Open {
    fn identity(&mut self) -> Result<TpmIdentity, Fault> {
        use tss_esapi::constants::PropertyTag;
        let connection = &mut self.connection;
        let (aliases, chain) = endorsement::aliases_and_chain(connection, &self.pinned.ek)?;
        let manufacturer = connection.property(PropertyTag::Manufacturer)?.unwrap_or(0);
        let high = connection.property(PropertyTag::FirmwareVersion1)?.unwrap_or(0);
        let low = connection.property(PropertyTag::FirmwareVersion2)?.unwrap_or(0);
        let ek = EkPublic { public: self.pinned.ek.public.clone(), certificate: self.pinned.ek.certificate.clone() };
        Ok(TpmIdentity {
            ek,
            aliases,
            chain,
            ak_public: self.pinned.ak_public.clone(),
            node_key_public: self.pinned.node_key_public.clone(),
            manufacturer: text(manufacturer),
            firmware_version: u64::from(high) << 32 | u64::from(low),
        })
    }

    fn certify_node_key(&mut self, qualifying_data: [u8; 32]) -> Result<Signed, Fault> {
        const COMMAND: &str = "TPM2_Certify";
        let data = tss_esapi::structures::Data::try_from(qualifying_data.as_slice())
            .map_err(|e| Fault::refused(COMMAND, e.to_string()))?;
        let (ak, node_key) = (self.ak, self.node_key);
        let (attest, signature) = self
            .connection
            .call(COMMAND, PASSWORDS, |context| context.certify(node_key.into(), ak, data.clone(), SCHEME))?;
        session::encode(COMMAND, &attest, &signature)
    }

    fn activate(&mut self, credential: &[u8], encrypted_secret: &[u8]) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let ak = self.ak;
        let ek = self.pinned.ek.clone();
        let kind = ek.kind;
        endorsement::with_loaded(&mut self.connection, ek, |connection, key| {
            endorsement::activate(connection, kind, key, ak, credential, encrypted_secret)
        })
        .map(|(secret, _)| secret)
    }

    fn sign(&mut self, digest: [u8; 32]) -> Result<EcdsaSignature, Fault> {
        const COMMAND: &str = "TPM2_Sign";
        let refuse = |e: tss_esapi::Error| Fault::refused(COMMAND, e.to_string());
        let digest = Digest::try_from(digest.as_slice()).map_err(refuse)?;
        // "The digest was not made by the TPM": allowed because the node key is not restricted.
        let ticket = HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
            tag: TPM2_ST_HASHCHECK,
            hierarchy: TPM2_RH_NULL,
            digest: Default::default(),
        })
        .map_err(refuse)?;
        let key = self.node_key;
        let signature = self
            .connection
            .call(COMMAND, PASSWORD, |context| context.sign(key, digest.clone(), SCHEME, ticket.clone()))?;
        session::ecdsa_bytes(&signature).ok_or_else(|| Fault::lost("TPM2_Sign answered with another kind of signature"))
    }
}

/// Creates a primary key of the endorsement hierarchy.
pub(super) fn primary(
    connection: &mut Connection,
    template: tss_esapi::Result<Public>,
) -> Result<(KeyHandle, Public), Fault> {
    primary_in(connection, Hierarchy::Endorsement, template)
}

/// Creates a primary key.
pub(super) fn primary_in(
    connection: &mut Connection,
    hierarchy: Hierarchy,
    template: tss_esapi::Result<Public>,
) -> Result<(KeyHandle, Public), Fault> {
    const COMMAND: &str = "TPM2_CreatePrimary";
    let template = template.map_err(|e| Fault::refused(COMMAND, e.to_string()))?;
    let created = connection.call(COMMAND, PASSWORD, |context| {
        context.create_primary(hierarchy, template.clone(), None, None, None, None)
    })?;
    Ok((created.key_handle, created.out_public))
}

/// A property that is four characters of text.
fn text(property: u32) -> String {
    property.to_be_bytes().iter().map(|byte| char::from(*byte)).filter(char::is_ascii_graphic).collect()
}
