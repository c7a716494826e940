//! The wiring: what is opened in which order, what runs, and how it stops.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::audit::{self, heads, heads::Heads};
use super::basis::Cache;
use super::ca::{self, Authority};
use super::credentials::ledger;
use super::effects::Effects;
use super::events::{Audience, Hub};
use super::keys::{self, WrappingKey};
use super::limiter::Limiter;
use super::policy::{self, Bundles, Floor, standing};
use super::published::Published;
use super::quota::Quota;
use super::replay::{self, Sealing};
use super::revocation::words::{self, Words};
use super::settings::Settings;
use super::steady::Steady;
use super::store::{Epoch, Generation, Store, Transaction, meta, signed};
use super::tls::{self, Tls};
use super::{admin, governance, nonces, routes, tasks, tokens};
use crate::clock::WallTime;
use crate::codes::{self, Refusal};
use crate::config::ServerConfig;
use crate::identity;
use crate::protocol::Event;
use crate::secret;
use crate::shutdown::Shutdown;
use crate::telemetry::ServerMetrics;

/// How often the server looks for what is due: rotation, renewal, forgetting.
const ROUND: Duration = Duration::from_secs(30);
/// How often what is live is held to policies that look at the time.
const TICK: Duration = Duration::from_secs(5);
/// How long requests under way and open streams may take when the server stops.
const DRAIN: Duration = Duration::from_secs(8);

/// The wall clock, or a test's.
pub type Now = Arc<dyn Fn() -> WallTime + Send + Sync>;

/// What every part of the server shares.
pub struct Shared {
    /// The checked configuration.
    pub settings: Settings,
    /// The store.
    pub store: Store,
    /// The CAs.
    pub authority: Authority,
    /// Wraps secrets in the store.
    pub wrapping: Arc<WrappingKey>,
    /// Seals answers that hold secrets, while they are kept for a retry.
    pub sealing: Sealing,
    /// Notices a restored store.
    pub generation: Generation,
    /// Named in leases; a new one after a restore.
    pub epoch: Epoch,
    /// Pushes events to nodes.
    pub hub: Hub,
    /// What nodes are told and say of withdrawals.
    pub words: Words,
    /// What relying parties are given.
    pub published: Published,
    /// Bounds what strangers can make the server write.
    pub strangers: Limiter,
    /// Bounds what a node can make it keep.
    pub quota: Quota,
    /// Reference documents that were read lately.
    pub documents: Cache,
    /// Policy bundles that were read lately, and the floor for their version.
    pub bundles: Bundles,
    /// Counts what is done.
    pub metrics: ServerMetrics,
    /// The time; it never goes back.
    pub clock: Arc<Steady>,
    /// Signs the log's heads.
    pub heads: Heads,
    tls: Arc<Tls>,
    server_key: p256::ecdsa::SigningKey,
}

/// A running server.
pub struct Bound {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its admin socket.
    pub admin_socket: PathBuf,
    /// SHA-256 of the active CA's certificate, hexadecimal.
    pub ca_hash: String,
    shutdown: Shutdown,
    // Held for as long as the server runs: no second one may use the same state.
    _lock: OwnedFd,
}

impl Bound {
    /// Ends streams, waits for requests under way and stops. Returns whether all of it ended in time.
    pub async fn stop(self) -> bool {
        self.shutdown.drain(DRAIN).await
    }
}

/// Starts a server: state directory, store, keys, CA, certificate, then the sockets.
///
/// # Errors
/// [`codes::CONFIG_INVALID`] and [`codes::CONFIG_MODE`] for what an operator can mend,
/// [`codes::STORE_FAILED`].
pub async fn start(config: ServerConfig) -> Result<Bound, Refusal> {
    start_at(config, Arc::new(WallTime::now)).await
}

/// As [`start`], with another clock.
///
/// # Errors
/// As [`start`].
pub async fn start_at(config: ServerConfig, now: Now) -> Result<Bound, Refusal> {
    let settings = Settings::check(&config)?;
    let state = secret::private_directory(&config.state_dir).map_err(|e| invalid(&config.state_dir, &e))?;
    let lock = lock(&state)?;
    let store = Store::open(&state.join("store.db"))?;
    let shared = Arc::new(open(&config, settings, store, now)?);
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|e| Refusal::new(codes::CONFIG_INVALID, e.to_string()).at(format!("listen {}", config.listen)))?;
    let addr = listener.local_addr().map_err(|e| Refusal::new(codes::CONFIG_INVALID, e.to_string()))?;
    let admin_listener = admin::socket::bind(&config.admin_socket)?;

    let shutdown = Shutdown::default();
    let router = routes::router(shared.clone(), shutdown.token.clone());
    shutdown.tasks.spawn(tls::serve(listener, shared.tls.clone(), router, shutdown.clone()));
    shutdown.tasks.spawn(admin::serve(admin_listener, shared.clone(), shutdown.token.clone()));
    shutdown.tasks.spawn(keep(shared.clone(), shutdown.clone()));
    shutdown.tasks.spawn(heads::keep(shared.clone(), shutdown.clone()));
    shutdown.tasks.spawn(words::write(shared.clone(), shutdown.token.clone()));
    let ca_hash = ca::hash(shared.authority.current().ca.certificate());
    tracing::info!(%addr, admin = %config.admin_socket.display(), ca_hash, "serving");
    Ok(Bound { addr, admin_socket: config.admin_socket, ca_hash, shutdown, _lock: lock })
}

impl Shared {
    /// The present time.
    pub fn now(&self) -> WallTime {
        self.clock.now()
    }

    /// To be called after a change to the CAs was committed: takes it over, gives the listener a
    /// certificate of the active CA, tells the nodes.
    ///
    /// # Errors
    /// [`codes::STORE_FAILED`].
    pub async fn ca_changed(self: &Arc<Self>) -> Result<(), Refusal> {
        let before = self.authority.current();
        let shared = self.clone();
        self.store.transaction(move |tx| shared.authority.reload(tx)).await?;
        let after = self.authority.current();
        // A CA left the bundle: nobody stays connected on its word.
        let left = before.bundle.certificates.iter().any(|ca| !after.bundle.certificates.contains(ca));
        let shared = self.clone();
        let configuration = self
            .store
            .transaction(move |tx| certify(tx, &shared.settings, &shared.authority, &shared.server_key, &shared.clock))
            .await?;
        self.hub.push(Audience::All, Event::Attest);
        self.tls.replace(configuration, left);
        Ok(())
    }
}

/// Opens everything that is in the store.
fn open(config: &ServerConfig, settings: Settings, store: Store, now: Now) -> Result<Shared, Refusal> {
    let wrapping_path = WrappingKey::path(config);
    let empty = store.transaction_blocking(|tx| {
        Ok(tx.query_row("SELECT NOT EXISTS (SELECT 1 FROM ca_keys)", [], |row| row.get(0))?)
    })?;
    let wrapping = Arc::new(WrappingKey::of(config, empty)?);
    let generation = Generation::new(wrapping_path.with_added_extension("generation"));
    let bundles = Bundles::new(Floor::open(wrapping_path.with_added_extension("policy"))?, &settings)?;
    let server_key = keys::generate()?;
    let witness = heads::witness_path(&wrapping_path);
    // One transaction: that the log was cut, and the new epoch that follows from it, stand together or not at all.
    let (heads, clock, authority, epoch, configuration) = store.transaction_blocking(|tx| {
        of_this_domain(tx, &settings)?;
        // Before anything is written to the log: whether it is all there.
        let restored = generation.is_behind(tx)?;
        let (heads, cut) = Heads::open(tx, &wrapping, witness, restored, now())?;
        let clock = Steady::open(tx, now, config.accept_clock)?;
        let time = clock.now();
        if config.accept_clock {
            audit::done(tx, time, "clock.accepted", None, serde_json::json!({}))?;
        }
        clock.keep(tx)?;
        let (epoch, restored) = generation.enter(tx, cut, time)?;
        if restored {
            audit::done(
                tx,
                time,
                codes::PROTOCOL_EPOCH.as_str(),
                None,
                serde_json::json!({"epoch": hex::encode(epoch)}),
            )?;
        }
        let authority = Authority::open(
            tx,
            wrapping.clone(),
            settings.trust_domain.clone(),
            settings.ca,
            settings.published.clone(),
            time,
        )?;
        let configuration = certify(tx, &settings, &authority, &server_key, &clock)?;
        Ok((heads, clock, authority, epoch, configuration))
    })?;
    // A start is also where what a kill left undone after a commit is done.
    store.transaction_blocking(|tx| generation.witness(tx))?;
    store.transaction_blocking(|tx| bundles.raise(tx))?;
    let tls = Arc::new(Tls::new(configuration));
    let quota = Quota::new(settings.node_records);
    Ok(Shared {
        settings,
        store,
        authority,
        wrapping,
        sealing: Sealing::new()?,
        generation,
        epoch,
        hub: Hub::default(),
        words: Words::default(),
        published: Published::default(),
        strangers: Limiter::default(),
        quota,
        documents: Cache::default(),
        bundles,
        metrics: ServerMetrics::default(),
        clock,
        heads,
        tls,
        server_key,
    })
}

/// Everything in a store is named in one trust domain: it can't be moved to another.
fn of_this_domain(tx: &Transaction<'_>, settings: &Settings) -> Result<(), Refusal> {
    const NAME: &str = "trust_domain";
    let configured = settings.trust_domain.as_str();
    match meta::get(tx, NAME)? {
        None => meta::set(tx, NAME, configured.as_bytes()),
        Some(stored) if stored == configured.as_bytes() => Ok(()),
        Some(stored) => Err(Refusal::new(codes::CONFIG_INVALID, format!("`{configured}`"))
            .at(NAME)
            .expected(format!("`{}`, the one that the store was made for", String::from_utf8_lossy(&stored)))),
    }
}

/// A certificate for the listener, of the active CA.
fn certify(
    tx: &Transaction<'_>,
    settings: &Settings,
    authority: &Authority,
    key: &p256::ecdsa::SigningKey,
    clock: &Arc<Steady>,
) -> Result<tls::Configuration, Refusal> {
    let issuing = authority.current();
    let spki = super::issuer::spki_of_key(key)?;
    let id = identity::server_id(&settings.trust_domain);
    let leaf = issuing.issue(tx, &id, &spki, clock.now(), settings.own_certificates)?;
    tls::configuration(&issuing.server_chain(&leaf), key, &issuing.bundle, &clock.as_now())
}

/// Does what is due, again and again.
async fn keep(shared: Arc<Shared>, shutdown: Shutdown) {
    let mut renew_at = shared.now().after(shared.settings.own_certificates / 2);
    let mut rested = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = shutdown.token.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        if let Err(refusal) = standing::reconsider_timed(&shared).await {
            tracing::error!(%refusal, "live credentials couldn't be held to policy; it will be tried again");
        }
        if rested.elapsed() < ROUND {
            continue;
        }
        rested = tokio::time::Instant::now();
        if let Err(refusal) = round(&shared, &mut renew_at).await {
            tracing::error!(%refusal, "the regular work failed; it will be tried again");
        }
    }
}

async fn round(shared: &Arc<Shared>, renew_at: &mut WallTime) -> Result<(), Refusal> {
    let now = shared.now();
    let of_work = shared.clone();
    let effects = shared
        .store
        .transaction(move |tx| {
            of_work.clock.keep(tx)?;
            nonces::tidy(tx, now)?;
            tasks::expire(tx, now)?;
            ledger::expire(tx, now)?;
            tokens::uses::tidy(tx)?;
            let mut effects = governance::round(tx, &of_work.settings.governance, now)?;
            tx.execute("DELETE FROM enrolments WHERE expires_at < ?1", [signed(now.0)])?;
            effects.ca = of_work.authority.turn(tx, now)?;
            if effects.ca {
                // Kept answers hold the bundle from before.
                replay::forget(tx, None)?;
                audit::done(tx, now, "ca.turned", None, serde_json::json!({}))?;
            }
            // A change whose taking over failed: until it succeeds nothing can be issued under what was removed.
            effects.ca |= of_work.authority.is_behind(tx)?;
            effects.seal(tx, &of_work)
        })
        .await?;
    let effects = Effects { ca: effects.ca || now >= *renew_at, ..effects };
    let renewed = effects.ca;
    effects.carry_out(shared).await?;
    if renewed {
        *renew_at = now.after(shared.settings.own_certificates / 2);
    }
    forget(shared, now).await?;
    // Whatever changed without a word.
    standing::reconsider_all(shared).await
}

/// Forgets old decisions and what ended long ago, a piece in each transaction: others have their turns in between.
async fn forget(shared: &Arc<Shared>, now: WallTime) -> Result<(), Refusal> {
    let until = WallTime(now.0.saturating_sub(shared.settings.keep_decisions.as_secs()));
    let piece = move |tx: &Transaction<'_>| Ok(policy::forget(tx, until)? | tasks::forget(tx, until)?);
    while shared.store.transaction(piece).await? {}
    Ok(())
}

/// One server for one state directory.
fn lock(state: &Path) -> Result<OwnedFd, Refusal> {
    use rustix::fs::{FlockOperation, Mode, OFlags};
    let path = state.join("lock");
    let file = rustix::fs::open(&path, OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
        .map_err(|e| invalid(&path, &e.into()))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Refusal::new(codes::CONFIG_INVALID, "another server uses this state directory").at(state.display().to_string())
    })?;
    Ok(file)
}

fn invalid(path: &Path, error: &std::io::Error) -> Refusal {
    Refusal::new(codes::CONFIG_INVALID, error.to_string()).at(path.display().to_string())
}
