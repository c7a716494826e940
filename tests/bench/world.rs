//! A control plane and nodes as users run them: the built binaries, configuration files, sockets.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use leasehold::clock::BootInstant;
use leasehold::control_plane::dev::wire;
use leasehold::tpm::Bank;
use serde_json::Value;
use spiffe::{WorkloadApiClient, X509Svid};
use tempfile::TempDir;

use super::TestTpm;

/// How long anything that should come about may take here. Generous: it bounds hanging, not speed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What registers a workload also for this process, if it was started from somebody's login session, as
/// tests at a desk are.
pub fn interactive() -> &'static [&'static str] {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    let logged_in = !matches!(read("/proc/self/loginuid").trim(), "" | "4294967295");
    let in_session = ["user.slice", "session-", "user@"].iter().any(|name| read("/proc/self/cgroup").contains(name));
    // Always, where the kernel says nothing of logins: then a terminal counts.
    if logged_in || in_session || !Path::new("/proc/self/loginuid").exists() { &["--interactive"] } else { &[] }
}

/// What the tokens of registered workloads may be for.
const AUDIENCES: &[&str] = &["--audience", "api", "--audience", "ledger", "--audience", "reports"];

/// The trust domain of every test.
pub const TRUST_DOMAIN: &str = "example.org";

/// A process that is killed, and waited for, when dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Ends it as a power cut would: SIGKILL.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks it to end (SIGTERM) and returns its exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.0.wait().unwrap().code()
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A control plane.
pub struct Server {
    pub dir: TempDir,
    pub port: u16,
    pub process: Option<Process>,
}

impl Server {
    /// Starts one with further configuration at the end of its file, e.g. `[terms]`.
    pub fn start(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The port stays free between the probe and the server's bind, or the start says so.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = dir.path().display();
        let config = format!(
            "trust_domain = \"{TRUST_DOMAIN}\"\nstate_dir = \"{at}/state\"\nlisten = \"127.0.0.1:{port}\"\nadmin_socket = \"{at}/admin.sock\"\n{more}\n"
        );
        std::fs::write(dir.path().join("server.toml"), config).unwrap();
        let mut server = Self { dir, port, process: None };
        server.restart();
        server.admin(&["owner", "add", "team-a"]);
        server
    }

    /// Starts the process (again) and waits until its admin socket answers.
    pub fn restart(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// Starts the process without waiting.
    pub fn launch(&mut self) {
        self.process = None;
        let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold-server"));
        command.arg("run").arg("--config").arg(self.path("server.toml"));
        self.process = Some(Process::spawn(&mut command, &self.path("server.log")));
    }

    pub fn wait_ready(&self) {
        let since = BootInstant::now();
        while !self.try_admin(&["ca", "show", "--json"]).status.success() {
            assert!(BootInstant::now().since(since) < PATIENCE, "the server doesn't start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("server.log")).unwrap_or_default()
    }

    /// Runs an admin command.
    pub fn try_admin(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_leasehold-server"))
            .arg("--admin-socket")
            .arg(self.path("admin.sock"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs an admin command that must succeed; returns its standard output.
    pub fn admin(&self, arguments: &[&str]) -> String {
        let output = self.try_admin(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs an admin command with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        serde_json::from_str(&self.admin(&all)).unwrap()
    }

    /// The record of decisions, oldest first.
    pub fn records(&self) -> Vec<Value> {
        let printed = self.admin(&["--json", "audit", "tail", "--lines", "1000000"]);
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What was decided or refused, oldest first: an action's name or a refusal's code.
    pub fn decided(&self) -> Vec<String> {
        self.records().iter().map(|record| record["what"].as_str().unwrap_or_default().to_owned()).collect()
    }

    pub fn ca_hash(&self) -> String {
        let shown = self.json(&["ca", "show"]);
        let active = shown["cas"].as_array().unwrap().iter().find(|ca| ca["state"] == "active").unwrap();
        active["hash"].as_str().unwrap().to_owned()
    }

    /// The metrics in the Prometheus text format.
    pub fn metrics(&self) -> String {
        let mut socket = std::os::unix::net::UnixStream::connect(self.path("admin.sock")).unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }
}

/// A node: a TPM behind its relay, an agent, and its sockets.
pub struct Node {
    pub agent: Option<Process>,
    pub tpm: TestTpm,
    pub dir: TempDir,
}

/// The PCRs a booted node has extended.
pub const BOOT_PCRS: [u8; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

/// What the simulated boot extends, as commands.
pub fn boot_extends() -> Vec<Vec<u8>> {
    BOOT_PCRS.iter().map(|pcr| wire::pcr_extend(*pcr, Bank::Sha256, &[*pcr + 1; 32])).collect()
}

impl Node {
    /// A node with a blank TPM that has booted; the agent isn't started.
    pub async fn boot(server: &Server) -> Self {
        Self::boot_with(server, TestTpm::blank(), "").await
    }

    /// A node with this TPM and further configuration at the end of the agent's file.
    pub async fn boot_with(server: &Server, tpm: TestTpm, more: &str) -> Self {
        for extend in boot_extends() {
            tpm.relay.execute(&extend).await.unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let node = Self { agent: None, tpm, dir };
        node.configure(server, more);
        node
    }

    pub fn configure(&self, server: &Server, more: &str) {
        let at = self.dir.path().display();
        let (port, hash, address) = (server.port, server.ca_hash(), self.tpm.address());
        // The logs of the machine that the test runs on tell nothing of its software TPM.
        let logs = if more.contains("[logs]") { "" } else { "[logs]\nboot = \"\"\nuserspace = \"\"\nima = \"\"\n" };
        let config = format!(
            "trust_domain = \"{TRUST_DOMAIN}\"\nstate_dir = \"{at}/state\"\n\
             [control_plane]\naddress = \"127.0.0.1:{port}\"\nca_hash = \"{hash}\"\n\
             [tpm]\naddress = \"{address}\"\n\
             [sockets]\nworkload = \"{at}/workload.sock\"\nadmin = \"{at}/admin.sock\"\n{logs}{more}\n"
        );
        std::fs::write(self.path("agent.toml"), config).unwrap();
    }

    /// Starts the agent (again).
    pub fn start(&mut self) {
        self.agent = None;
        let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold-agent"));
        command.arg("run").arg("--config").arg(self.path("agent.toml"));
        self.agent = Some(Process::spawn(&mut command, &self.path("agent.log")));
    }

    /// Starts, admits and teaches the node, registers a workload for this uid, and waits until
    /// its SVID is held.
    pub async fn settle(&mut self, server: &Server) -> String {
        self.settle_as(server, "app").await
    }

    /// The same with another name for the workload, where several nodes share a control plane.
    pub async fn settle_as(&mut self, server: &Server, name: &str) -> String {
        self.start();
        let id = self.admit(server).await;
        server.admin(&["reference", "learn", "--node", &id, "--yes"]);
        self.register(server, &id, name);
        self.until(holds_svid).await;
        id
    }

    /// Waits until the node is known, and approves it.
    pub async fn admit(&self, server: &Server) -> String {
        let id = self.until(|status| status["node"].is_string()).await["node"].as_str().unwrap().to_owned();
        server.admin(&["node", "approve", &id]);
        let since = BootInstant::now();
        while server.json(&["node", "show", &id])["quote"].is_null() {
            assert!(BootInstant::now().since(since) < PATIENCE, "no quote: {}\n{}", self.log(), server.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        id
    }

    /// Registers `/NAME` on this node for the test's own uid, and gid if it is not the first there.
    pub fn register(&self, server: &Server, node: &str, name: &str) {
        let uid = format!("unix:uid:{}", rustix::process::geteuid().as_raw());
        let gid = format!("unix:gid:{}", rustix::process::getegid().as_raw());
        let registered = server.json(&["workload", "list"])["workloads"].as_array().unwrap().clone();
        let first = !registered.iter().any(|workload| workload["node"] == node);
        let id = format!("spiffe://{TRUST_DOMAIN}/{name}");
        let add = ["workload", "add", "--id", &id, "--owner", "team-a", "--purpose", "tests", "--node", node];
        let more: &[&str] = if first { &[] } else { &["--selector", &gid] };
        server.admin(&[&add[..], &["--selector", &uid], AUDIENCES, more, interactive()].concat());
    }

    /// The agent's status, once `wanted` holds of it.
    pub async fn until(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let since = BootInstant::now();
        loop {
            let status = self.status();
            if let Some(status) = status.as_ref().filter(|status| wanted(status)) {
                return status.clone();
            }
            assert!(BootInstant::now().since(since) < PATIENCE, "it never came about: {status:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The agent's status, if it answers.
    pub fn status(&self) -> Option<Value> {
        let output = self.run_agent(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Runs a command of the agent's binary with this node's configuration.
    pub fn run_agent(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_leasehold-agent"))
            .arg("--config")
            .arg(self.path("agent.toml"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// `unix:///…` of the Workload API.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path("workload.sock").display())
    }

    /// A stock client.
    pub async fn client(&self) -> WorkloadApiClient {
        let since = BootInstant::now();
        loop {
            match WorkloadApiClient::connect_to(self.endpoint()).await {
                Ok(client) => return client,
                Err(error) if BootInstant::now().since(since) > PATIENCE => panic!("no client: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// One fetch with a stock client.
    pub async fn fetch(&self) -> Result<X509Svid, spiffe::WorkloadApiError> {
        self.client().await.fetch_x509_svid().await
    }
}

/// Whether the node is affirmed and holds an SVID for each of its workloads.
pub fn holds_svid(status: &Value) -> bool {
    status["standing"] == "affirming"
        && status["workloads"]
            .as_array()
            .is_some_and(|all| !all.is_empty() && all.iter().all(|one| one["svid_seconds_left"].is_u64()))
}
