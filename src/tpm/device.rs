//! The TPM as this agent uses it: a trait in our words, and its implementation over ESAPI.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use p256::ecdsa::{Signature as EcdsaSignature, VerifyingKey};
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Digest, HashcheckTicket, Public};
use tss_esapi::traits::Marshall;
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;

use super::connection::{Connection, PASSWORD, PASSWORDS, Pulse, Sessions, TpmAddress, jittered};
use super::endorsement::{self, Endorsement};
use super::session::{self, Purpose, SCHEME};
use super::words::Fault;
use super::{
    Bank, EkPublic, PcrReading, PcrSelection, PcrValues, ResetCounts, Signed, TpmError, TpmIdentity, templates,
};
use crate::clock::BootInstant;
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
    ak_key: VerifyingKey,
    node_key_name: Vec<u8>,
    node_key_public: Vec<u8>,
}

/// Shared by a thread and the one that takes over when it is stuck.
pub(super) type Pin = Arc<Mutex<Option<Pinned>>>;

/// How often PCRs are read again because one was extended in between.
const ROUNDS: usize = 16;

/// PCR_Read returns at most this many values (Part 2, 10.9.6: TPML_DIGEST).
const PART: usize = 8;

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
    session: AuthSession,
    anchor: Anchor,
    known: Option<Known>,
}

/// What the attestation key last vouched for within the standing session.
struct Anchor {
    counts: ResetCounts,
    /// The update counter then. Behind a resource manager, which saves sessions, the session also
    /// survives a TPM Restart or Resume. Restart clears PCRs: to restore them takes extensions,
    /// which move the counter, and so a moved counter calls for another anchor.
    update_counter: u32,
    /// How long this machine had been suspended in all by then: Resume leaves the counter alone.
    suspended: Duration,
}

/// Values read in the standing session at one update counter.
struct Known {
    update_counter: u32,
    values: BTreeMap<(Bank, u8), Vec<u8>>,
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
                    tracing::info!(address = %self.address, counts = ?open.anchor.counts, "the TPM is back");
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
                let Loaded { pinned, ak, node_key, session, anchor } = keys;
                *self.pin.lock().unwrap_or_else(PoisonError::into_inner) = Some(pinned.clone());
                Ok(Open { connection, pinned, ak, node_key, session, anchor, known: None })
            }
            Err(fault) => {
                connection.close();
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
            ak_key,
            node_key_name,
            node_key_public: encode(&node_key_public)?,
        };
        let anchor = Anchor::take(connection, session, ak, &pinned.ak_key)?;
        Ok(Loaded { pinned, ak, node_key, session, anchor })
    }
}

struct Loaded {
    pinned: Pinned,
    ak: KeyHandle,
    node_key: KeyHandle,
    session: AuthSession,
    anchor: Anchor,
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
        self.with_open(|open| open.read_pcrs(selection))
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
            open.connection.close();
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

    /// Reads in the standing session. When nothing was extended since the last reading, the first
    /// part is all that is read: an equal counter proves that the rest is as it was.
    fn read_pcrs(&mut self, selection: PcrSelection) -> Result<PcrReading, Fault> {
        let started_at = BootInstant::now();
        let numbers: Vec<u8> = selection.pcrs().collect();
        let parts: Vec<&[u8]> = numbers.chunks(PART).collect();
        for _ in 0..ROUNDS {
            let Some((update_counter, values)) = self.read_parts(selection, &parts)? else { continue };
            self.anchor_again(update_counter)?;
            let values = values.into_iter().map(|((_, pcr), value)| (pcr, value)).collect();
            let values = PcrValues::new(selection, values).map_err(Fault::lost)?;
            let finished_at = BootInstant::now();
            return Ok(PcrReading { started_at, finished_at, values, update_counter, counts: self.anchor.counts });
        }
        Err(TpmError::Unavailable("PCRs are extended faster than they can be read".to_owned()).into())
    }

    /// One value for each PCR, all read at one update counter; none if the counter moved between.
    fn read_parts(&mut self, selection: PcrSelection, parts: &[&[u8]]) -> Result<Option<(u32, Values)>, Fault> {
        let mut at = None;
        let mut values = Values::new();
        let mut known = None;
        for (number, part) in parts.iter().enumerate() {
            let key = |pcr: &u8| (selection.bank(), *pcr);
            if number > 0
                && let Some(known) = &known
            {
                // Only complete parts: a part is one command in any case.
                let of_part: Option<Values> = part
                    .iter()
                    .map(|pcr| Values::get(known, &key(pcr)).map(|value| (key(pcr), value.clone())))
                    .collect();
                if let Some(of_part) = of_part {
                    values.extend(of_part);
                    continue;
                }
            }
            let (update_counter, read) = read_part(&mut self.connection, self.session, selection.bank(), part)?;
            match at {
                None => {
                    at = Some(update_counter);
                    known = self.still_known(selection, update_counter, &read);
                }
                Some(first) if first != update_counter => return Ok(None),
                Some(_) => {}
            }
            values.extend(read);
        }
        let Some(update_counter) = at else { return Err(Fault::lost("nothing was selected")) };
        if selection.counted() {
            let mut all = known.unwrap_or_default();
            all.extend(values.iter().map(|(key, value)| (*key, value.clone())));
            self.known = Some(Known { update_counter, values: all });
        }
        Ok(Some((update_counter, values)))
    }

    /// What was read at this counter before, unless the part just read contradicts it.
    fn still_known(&self, selection: PcrSelection, update_counter: u32, read: &Values) -> Option<Values> {
        let known =
            self.known.as_ref().filter(|known| selection.counted() && known.update_counter == update_counter)?;
        read.iter()
            .all(|(key, value)| known.values.get(key).is_none_or(|old| old == value))
            .then(|| known.values.clone())
    }

    /// Asks for the reset counts again if the session alone doesn't prove that they still hold.
    fn anchor_again(&mut self, update_counter: u32) -> Result<(), Fault> {
        if update_counter == self.anchor.update_counter && !self.anchor.suspended_since() {
            return Ok(());
        }
        let suspended = suspended();
        let counts = session::anchor(&mut self.connection, self.ak, &self.pinned.ak_key)?;
        if counts != self.anchor.counts {
            return Err(Fault { lost: true, ..TpmError::Reset.into() });
        }
        self.anchor = Anchor { counts, update_counter, suspended };
        Ok(())
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

impl Anchor {
    fn take(
        connection: &mut Connection,
        session: AuthSession,
        ak: KeyHandle,
        ak_key: &VerifyingKey,
    ) -> Result<Self, Fault> {
        let suspended = suspended();
        // An empty selection: only the counter is wanted.
        let (update_counter, _) = read_part(connection, session, Bank::Sha256, &[])?;
        Ok(Self { counts: session::anchor(connection, ak, ak_key)?, update_counter, suspended })
    }

    fn suspended_since(&self) -> bool {
        // The two clocks are read one after the other: below this it may be scheduling.
        suspended().saturating_sub(self.suspended) > Duration::from_millis(50)
    }
}

type Values = BTreeMap<(Bank, u8), Vec<u8>>;

/// One PCR_Read in the standing session.
fn read_part(
    connection: &mut Connection,
    session: AuthSession,
    bank: Bank,
    pcrs: &[u8],
) -> Result<(u32, Values), Fault> {
    const COMMAND: &str = "TPM2_PCR_Read";
    let asked = session::selection_list(bank, pcrs.iter().copied())?;
    let sessions: Sessions = (Some(session), None, None);
    let (update_counter, answered, digests) =
        connection.call(COMMAND, sessions, |context| context.pcr_read(asked.clone())).map_err(|mut fault| {
            // The session is out of step: a new one is the only cure, and nobody's fault is proven.
            if fault.blames_session() && !fault.lost {
                fault.lost = true;
                fault.error = TpmError::Unavailable(format!("the standing session is out of step: {}", fault.error));
            }
            fault
        })?;
    let slots = |list: &tss_esapi::structures::PcrSelectionList| {
        list.get_selections().first().map(|of| (of.hashing_algorithm(), of.selected())).unzip()
    };
    if pcrs.is_empty() {
        return Ok((update_counter, Values::new()));
    }
    if slots(&answered) != slots(&asked) || digests.len() != pcrs.len() {
        return Err(Fault::refused(
            COMMAND,
            format!("not all of PCR {pcrs:?} have a value in the {bank} bank: is it active?"),
        ));
    }
    let values =
        pcrs.iter().zip(digests.value()).map(|(pcr, digest)| ((bank, *pcr), digest.value().to_vec())).collect();
    Ok((update_counter, values))
}

/// Creates a primary key of the endorsement hierarchy.
pub(super) fn primary(
    connection: &mut Connection,
    template: tss_esapi::Result<Public>,
) -> Result<(KeyHandle, Public), Fault> {
    const COMMAND: &str = "TPM2_CreatePrimary";
    let template = template.map_err(|e| Fault::refused(COMMAND, e.to_string()))?;
    let created = connection.call(COMMAND, PASSWORD, |context| {
        context.create_primary(Hierarchy::Endorsement, template.clone(), None, None, None, None)
    })?;
    Ok((created.key_handle, created.out_public))
}

/// How long this machine has been suspended since it booted.
fn suspended() -> Duration {
    let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanos = |seconds: i64, nanos: i64| {
        u64::try_from(seconds)
            .unwrap_or(0)
            .saturating_mul(1_000_000_000)
            .saturating_add(u64::try_from(nanos).unwrap_or(0))
    };
    BootInstant::now().since(BootInstant::from_nanos(nanos(monotonic.tv_sec, monotonic.tv_nsec)))
}

/// A property that is four characters of text.
fn text(property: u32) -> String {
    property.to_be_bytes().iter().map(|byte| char::from(*byte)).filter(char::is_ascii_graphic).collect()
}
