//! One file wires everything: read it for the start order and the drain order.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::admin;
use super::events;
use super::journal::{Courier, Journal, JournalThread};
use super::keeper::Keeper;
use super::rules;
use super::sources::Sources;
use super::state::Memory;
use super::status::Status;
use super::tasks::Tasks;
use super::tenancy::Tenancy;
use super::withdrawals::Withdrawals;
use crate::codes::{self, Refusal};
use crate::config::{AgentConfig, ControlPlaneConfig};
use crate::delivery::socket::BoundSocket;
use crate::delivery::workload_api::{Limits, Server};
use crate::identity::NodeId;
use crate::measurements::Watcher;
use crate::protocol::{TrustAnchors, Unenrolled};
use crate::shutdown::Shutdown;
use crate::tpm::{PcrSelection, Tpm, TpmAddress, TpmThread};
use crate::workload::{PeerMethod, Peers};

/// How long draining may take before the process ends all the same.
const DRAIN: Duration = Duration::from_secs(5);

/// What the watcher reads until the control plane has said what it wants.
const FIRST_SELECTION: &str = "sha256:0-7";

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    shutdown: Shutdown,
    tpm_thread: TpmThread,
    journal: Journal,
    journal_thread: JournalThread,
    keeper: Arc<Keeper>,
    trust_domain: String,
    trouble: watch::Receiver<Option<Refusal>>,
    node: watch::Receiver<Option<NodeId>>,
    /// Their files go when the agent does.
    sockets: [BoundSocket; 2],
}

/// Starts an agent on the current runtime, which must have more than one worker thread.
///
/// # Errors
/// When the configuration can't be used or a socket can't be bound. A TPM or a control plane
/// that is away is no error: the agent waits for them.
pub async fn start(config: AgentConfig) -> anyhow::Result<Agent> {
    let shutdown = Shutdown::default();
    let token = shutdown.token.clone();

    // What can be wrong with the configuration is found before anything is bound.
    let anchors = anchors(&config.control_plane)?;
    let address = TpmAddress::parse(&config.tpm.address)?;
    let memory = Memory::in_directory(&config.state_dir)?;
    let policy = rules::policy(&config.control_plane)?;
    // Opened before privileges may be dropped, and read on for as long as the agent runs.
    let sources = Arc::new(Sources::open(&config.logs)?);
    let selection: PcrSelection = FIRST_SELECTION.parse().map_err(anyhow::Error::msg)?;

    // The TPM thread opens the device when it is first needed, and again whenever it was away.
    let (tpm, tpm_thread) =
        Tpm::spawn(address, Duration::from_secs(config.tpm.deadline_seconds.max(1)), &config.trust_domain)?;
    let (watcher, watching) = Watcher::new(tpm.clone(), selection, config.watch.interval(), token.clone());
    // In the directory that `memory` locked. A disk that can't be written is no error: nothing is released then.
    let (journal, journal_thread) = Journal::start(&config.state_dir, config.journal.limit())?;
    let keeper = Arc::new(Keeper::new(config.trust_domain.clone(), watcher.clone(), sources.clone(), journal.clone()));
    shutdown.tasks.spawn(watching);
    shutdown.tasks.spawn({
        let (keeper, token) = (keeper.clone(), token.clone());
        async move { keeper.judge_observations(token).await }
    });

    let (client, client_seen) = watch::channel(None);
    keeper.connect(client_seen.clone());
    let tasks = Arc::new(Tasks::start(keeper.clone(), client_seen.clone(), journal.clone(), shutdown.clone())?);

    // Bound early, so that clients find the socket; they are answered `Unavailable` until there is
    // a lease.
    let mut workload = BoundSocket::bind(&config.sockets.workload, 0o666)?;
    let mut admin_socket = BoundSocket::bind(&config.sockets.admin, 0o600)?;
    if let Some(listener) = workload.take() {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let server = Server::new(keeper.clone(), Peers::new(PeerMethod::Auto), Limits::default().within_this_process())
            .with_tasks(tasks);
        let shutdown = shutdown.clone();
        shutdown.tasks.clone().spawn(async move {
            if let Err(error) = server.serve(listener, shutdown).await {
                tracing::error!(%error, "the Workload API ended");
            }
        });
    }

    let (trouble, trouble_seen) = watch::channel(None);
    let (node, node_seen) = watch::channel(None);
    let attest_now = Arc::new(Notify::new());
    let courier = Courier { journal: journal.clone(), tpm: tpm.clone(), client: client_seen.clone() };
    shutdown.tasks.spawn(courier.run(token.clone()));
    let withdrawals = Arc::new(Withdrawals::new(keeper.clone(), journal.clone(), memory.beside("withdrawals.cbor")));
    let tenancy = Tenancy {
        tpm,
        watcher,
        keeper: keeper.clone(),
        withdrawals: withdrawals.clone(),
        unenrolled: Unenrolled::new(&config.control_plane.address, config.trust_domain.clone(), anchors),
        memory,
        sources,
        policy,
        trust_domain: config.trust_domain.clone(),
        attest_now: attest_now.clone(),
        client,
        trouble,
        node,
    };
    shutdown.tasks.spawn(tenancy.run(token.clone()));
    shutdown.tasks.spawn(withdrawals.clone().acknowledge(client_seen.clone(), token.clone()));
    shutdown.tasks.spawn(events::follow(keeper.clone(), withdrawals, attest_now, client_seen, token.clone()));

    let trust_domain = config.trust_domain.to_string();
    let admin_listener = admin_socket.take();
    let sockets = [workload, admin_socket];
    let (trouble, node) = (trouble_seen, node_seen);
    let agent = Agent { shutdown, tpm_thread, journal, journal_thread, keeper, trust_domain, trouble, node, sockets };
    if let Some(listener) = admin_listener {
        agent.serve_admin(tokio::net::UnixListener::from_std(listener)?);
    }
    Ok(agent)
}

impl Agent {
    /// The present status.
    pub fn status(&self) -> Status {
        self.look()()
    }

    /// Ends everything in order: streams and tasks first, the TPM's handles last.
    pub async fn stop(self) {
        if !self.shutdown.drain(DRAIN).await {
            tracing::warn!("some tasks didn't end within {DRAIN:?}");
        }
        // Nothing is released any more: what is counted is written.
        if !self.journal_thread.stop(DRAIN).await {
            tracing::warn!("the journal's thread didn't end in time");
        }
        if let Err(error) = self.tpm_thread.stop(DRAIN) {
            tracing::warn!(%error, "the TPM thread didn't end in time");
        }
        drop(self.sockets);
    }

    fn look(&self) -> admin::Look {
        let (keeper, trust_domain) = (self.keeper.clone(), self.trust_domain.clone());
        let (trouble, node) = (self.trouble.clone(), self.node.clone());
        let journal = self.journal.standing();
        Arc::new(move || {
            let node = node.borrow().map(|node| node.to_string());
            Status::of(&keeper, trust_domain.clone(), node, trouble.borrow().clone(), journal.borrow().clone())
        })
    }

    fn serve_admin(&self, socket: tokio::net::UnixListener) {
        let token = self.shutdown.token.clone();
        let routes = admin::routes(self.look(), self.keeper.clone());
        self.shutdown.tasks.spawn(async move {
            let served = axum::serve(socket, routes).with_graceful_shutdown(token.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "the admin socket ended");
            }
        });
    }
}

/// The pinned trust of the configuration: one of the two ways, no third.
pub(super) fn anchors(config: &ControlPlaneConfig) -> Result<TrustAnchors, Refusal> {
    let invalid = |found: String| Refusal::new(codes::CONFIG_INVALID, found).at("control_plane");
    let mut anchors = TrustAnchors::default();
    match (&config.ca_hash, &config.ca_bundle) {
        (None, None) => {
            return Err(invalid("nothing says which control plane to trust".to_owned())
                .expected("`ca_hash` (see `leasehold-server ca show`) or `ca_bundle`"));
        }
        (Some(_), Some(_)) => {
            return Err(invalid("both `ca_hash` and `ca_bundle` are set".to_owned()).expected("one of them"));
        }
        (Some(hash), None) => {
            let digits = hash.strip_prefix("sha256:").unwrap_or(hash);
            let mut bytes = [0; 32];
            hex::decode_to_slice(digits, &mut bytes).map_err(|_| {
                invalid(format!("`{hash}` is no CA hash"))
                    .at("control_plane.ca_hash")
                    .expected("sha256: and 64 hexadecimal digits")
            })?;
            anchors.hash = Some(bytes);
        }
        (None, Some(path)) => {
            let unusable = |found: String| invalid(found).at(path.display().to_string());
            let pem = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
            let certificates = x509_cert::Certificate::load_pem_chain(&pem).map_err(|e| unusable(e.to_string()))?;
            for certificate in certificates {
                anchors.certificates.push(der::Encode::to_der(&certificate).map_err(|e| unusable(e.to_string()))?);
            }
            if anchors.certificates.is_empty() {
                return Err(unusable("no certificate in it".to_owned()));
            }
        }
    }
    Ok(anchors)
}
