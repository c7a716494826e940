//! A whole Leasehold in one directory: a software TPM that has booted, the control plane and the
//! agent as the processes users run, one node approved and one workload registered.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::process::Process;
use super::wire;
use super::{EkCert, Relay, Swtpm};
use crate::clock::BootInstant;
use crate::secret;
use crate::tpm::Bank;

/// The trust domain of every development household; `.test` never resolves (RFC 2606).
pub(super) const TRUST_DOMAIN: &str = "dev.test";

/// How long each step may take; a loaded machine needs a few seconds for the slowest.
const STEP: Duration = Duration::from_secs(60);

/// The exit code for "try later".
const UNAVAILABLE: i32 = 5;

/// How long a process may take to end by itself.
const DRAIN: Duration = Duration::from_secs(10);

/// The PCRs that a simulated boot extends, all in the control plane's default selection.
const BOOT_PCRS: [u8; 11] = [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 14];

/// What was set up and where: printed, and kept as `dev.json` for `dev drift`. Schema version 1.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Facts {
    pub(super) schema: u32,
    pub(super) directory: PathBuf,
    pub(super) trust_domain: String,
    pub(super) node: String,
    pub(super) spiffe_id: String,
    /// For SPIFFE_ENDPOINT_SOCKET.
    pub(super) workload_socket: String,
    pub(super) agent_config: PathBuf,
    pub(super) server_config: PathBuf,
    /// Where further users of the TPM connect.
    pub(super) tpm: String,
    pub(super) tpm_port: u16,
    pub(super) agent_pid: u32,
    pub(super) server_pid: u32,
}

/// A running household. Ends when dropped; [`Household::end`] is the orderly way.
///
/// Fields drop in this order: the agent loses its TPM last.
#[derive(Debug)]
pub(super) struct Household {
    agent: Process,
    server: Process,
    _relay: Relay,
    _swtpm: Swtpm,
    pub(super) facts: Facts,
}

impl Household {
    /// Sets one up in `directory`, telling `step` what is being done.
    pub(super) async fn set_up(directory: &Path, step: &mut dyn FnMut(&str)) -> anyhow::Result<Self> {
        let directory = secret::private_directory(directory)?.canonicalize()?;
        let files = Files::in_directory(&directory);
        anyhow::ensure!(!files.facts.exists(), "{} holds a development set-up already", directory.display());

        step("manufacturing a software TPM with EK certificates");
        let tpm_directory = secret::private_directory(&directory.join("tpm"))?;
        let (swtpm, ca) = tokio::task::spawn_blocking(move || Swtpm::manufacture(&tpm_directory, EkCert::Both))
            .await?
            .context("the software TPM")?;
        let relay = Relay::start(swtpm.sockets()).context("the TPM's relay")?;
        for command in boot() {
            relay.execute(&command).await.context("the simulated boot")?;
        }

        step("starting the control plane");
        let listen = free_port()?;
        let roots = [ca.root(), ca.intermediate()];
        std::fs::write(&files.server_config, server_config(&files, listen, &roots))?;
        let admin = Admin { program: program("leasehold-server")?, config: files.server_config.clone() };
        let server = files.start(&admin.program, &files.server_config, &files.server_log)?;
        let authority = until("the control plane's CA", &server, &files.server_log, async || {
            text(&admin.json(&["ca", "show"]).await?, "/cas/0/hash")
        })
        .await?;

        step("introducing the node");
        std::fs::write(&files.agent_config, agent_config(&files, listen, &authority, &relay.address()))?;
        let agent_admin = Admin { program: program("leasehold-agent")?, config: files.agent_config.clone() };
        // It waits for approval, which its exit code says.
        let joined = agent_admin.output(&["join", "--json"], &[0, UNAVAILABLE]).await?;
        let node = text(&serde_json::from_slice(&joined.stdout)?, "/node")?;
        step("approving it");
        admin.run(&["node", "approve", &node]).await?;

        step("starting the agent");
        let agent = files.start(&agent_admin.program, &files.agent_config, &files.agent_log)?;
        step("learning its measurements as reference values");
        until("the node's first verified quote", &agent, &files.agent_log, async || {
            admin.run(&["reference", "learn", "--node", &node, "--yes"]).await
        })
        .await?;

        let spiffe_id = format!("spiffe://{TRUST_DOMAIN}/hello");
        let uid = rustix::process::getuid().as_raw();
        step(&format!("registering {spiffe_id} for uid {uid}"));
        admin.run(&["owner", "add", "dev"]).await?;
        let selector = format!("unix:uid:{uid}");
        let purpose = ["--owner", "dev", "--purpose", "trying Leasehold"];
        // Whoever tries this does so from a terminal: a login session.
        let place = ["--node", &node, "--selector", &selector, "--interactive"];
        admin.run(&[&["workload", "add", "--id", &spiffe_id], &purpose[..], &place[..]].concat()).await?;

        step("waiting for the lease");
        until("the lease", &agent, &files.agent_log, async || {
            // `status` exits 0 only when affirming.
            let status = agent_admin.json(&["status"]).await?;
            let registered = status.get("workloads").and_then(|w| w.as_array()).is_some_and(|w| !w.is_empty());
            if registered { Ok(()) } else { bail!("the agent has not heard of the workload yet") }
        })
        .await?;

        let facts = Facts {
            schema: 1,
            node,
            spiffe_id,
            trust_domain: TRUST_DOMAIN.to_owned(),
            workload_socket: format!("unix://{}", files.workload_socket.display()),
            agent_config: files.agent_config.clone(),
            server_config: files.server_config.clone(),
            tpm: relay.address(),
            tpm_port: relay.port(),
            agent_pid: agent.pid(),
            server_pid: server.pid(),
            directory,
        };
        std::fs::write(&files.facts, serde_json::to_vec_pretty(&facts)?)?;
        Ok(Self { agent, server, _relay: relay, _swtpm: swtpm, facts })
    }

    /// Which of the processes has ended by itself, if any: that is a failure.
    pub(super) fn loss(&self) -> Option<String> {
        let ended = |process: &Process, name: &str| process.ended().map(|status| format!("{name} ended: {status}"));
        ended(&self.agent, "the agent").or_else(|| ended(&self.server, "the control plane"))
    }

    /// Ends the agent, then the control plane, then the TPM.
    pub(super) async fn end(self) {
        for (process, name) in [(&self.agent, "the agent"), (&self.server, "the control plane")] {
            if !process.terminate(DRAIN).await {
                tracing::warn!("{name} didn't end within {DRAIN:?} and is killed");
            }
        }
        // A directory that is kept can be looked at, not driven any more.
        let _ = std::fs::remove_file(Files::in_directory(&self.facts.directory).facts);
    }
}

/// The facts of the household that runs in `directory`.
pub(super) fn facts(directory: &Path) -> anyhow::Result<Facts> {
    let path = Files::in_directory(directory).facts;
    let bytes = std::fs::read(&path)
        .with_context(|| format!("{}: no `leasehold-server dev` runs in this directory", path.display()))?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// The files of a household.
struct Files {
    directory: PathBuf,
    facts: PathBuf,
    server_config: PathBuf,
    server_log: PathBuf,
    agent_config: PathBuf,
    agent_log: PathBuf,
    workload_socket: PathBuf,
}

impl Files {
    fn in_directory(directory: &Path) -> Self {
        let file = |name: &str| directory.join(name);
        Self {
            directory: directory.to_path_buf(),
            facts: file("dev.json"),
            server_config: file("server.toml"),
            server_log: file("server.log"),
            agent_config: file("agent.toml"),
            agent_log: file("agent.log"),
            workload_socket: file("workload.sock"),
        }
    }

    fn start(&self, program: &Path, config: &Path, log: &Path) -> io::Result<Process> {
        let log = File::create(log)?;
        let mut command = Process::command(program);
        command.arg("--config").arg(config).arg("run");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Process::spawn(command)
    }
}

/// One of our own command lines, asked as a user would.
struct Admin {
    program: PathBuf,
    config: PathBuf,
}

impl Admin {
    async fn run(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.output(arguments, &[0]).await.map(|_| ())
    }

    async fn json(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = self.output(&[arguments, &["--json"]].concat(), &[0]).await?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    async fn output(&self, arguments: &[&str], accepted: &[i32]) -> anyhow::Result<Output> {
        let mut command = tokio::process::Command::new(&self.program);
        command.arg("--config").arg(&self.config).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.with_context(|| self.program.display().to_string())?;
        if !output.status.code().is_some_and(|code| accepted.contains(&code)) {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`{}` failed with {}: {}", arguments.join(" "), output.status, said.trim());
        }
        Ok(output)
    }
}

/// Tries until it succeeds, the process ends or the step takes too long; then the error has the
/// last reason and the end of the process's log.
async fn until<T>(
    what: &str,
    process: &Process,
    log: &Path,
    attempt: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = BootInstant::now().after(STEP);
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let ended = process.ended();
        if ended.is_some() || BootInstant::now() > deadline {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let mut tail: Vec<&str> = text.lines().rev().take(15).collect();
            tail.reverse();
            let ended = ended.map(|status| format!(", the process ended: {status}")).unwrap_or_default();
            bail!("{what} didn't come{ended}: {error:#}\nThe end of {}:\n{}", log.display(), tail.join("\n"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The text at this JSON pointer.
fn text(value: &serde_json::Value, pointer: &str) -> anyhow::Result<String> {
    let found = value.pointer(pointer).and_then(serde_json::Value::as_str);
    found.map(str::to_owned).with_context(|| format!("no {pointer} in {value}"))
}

/// What firmware and boot loader of a machine would have extended: an event and a separator each.
fn boot() -> impl Iterator<Item = Vec<u8>> {
    BOOT_PCRS.into_iter().flat_map(|pcr| {
        let event = Sha256::digest(format!("leasehold dev: what booted into PCR {pcr}"));
        let separator = Sha256::digest([0; 4]);
        [event, separator].map(|digest| wire::pcr_extend(pcr, Bank::Sha256, &digest))
    })
}

/// The binary beside the running one: they are built and shipped together.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("the path of this program")?;
    let path = own.with_file_name(name);
    anyhow::ensure!(path.is_file(), "{} is missing: `dev` runs both binaries from one directory", path.display());
    Ok(path)
}

/// A port that is free now. Somebody may take it before the control plane does, which then says so.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// TOML's literal string: paths have no single quotes here, or the parser refuses.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

fn server_config(files: &Files, port: u16, roots: &[PathBuf; 2]) -> String {
    let [root, intermediate] = roots;
    format!(
        "# Written by `leasehold-server dev`.\n\
         trust_domain = \"{TRUST_DOMAIN}\"\n\
         state_dir = {}\n\
         listen = \"127.0.0.1:{port}\"\n\
         admin_socket = {}\n\
         \n\
         [admission]\n\
         ek_roots = [{}, {}]\n",
        quoted(&files.directory.join("server")),
        quoted(&files.directory.join("server.sock")),
        quoted(root),
        quoted(intermediate),
    )
}

fn agent_config(files: &Files, port: u16, ca_hash: &str, tpm: &str) -> String {
    format!(
        "# Written by `leasehold-server dev`.\n\
         trust_domain = \"{TRUST_DOMAIN}\"\n\
         state_dir = {}\n\
         \n\
         [control_plane]\n\
         address = \"127.0.0.1:{port}\"\n\
         ca_hash = \"{ca_hash}\"\n\
         \n\
         [tpm]\n\
         address = \"{tpm}\"\n\
         \n\
         [sockets]\n\
         workload = {}\n\
         admin = {}\n\
         \n\
         # This machine's logs tell nothing of the software TPM.\n\
         [logs]\n\
         boot = \"\"\n\
         userspace = \"\"\n\
         ima = \"\"\n",
        quoted(&files.directory.join("agent")),
        quoted(&files.workload_socket),
        quoted(&files.directory.join("agent.sock")),
    )
}
