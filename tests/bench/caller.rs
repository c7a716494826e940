//! Processes that call an agent: this test's program again, in a role, or another one.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use leasehold::clock::BootInstant;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::world::Node;

/// A user that no machine has.
pub const STRANGER: u32 = 424_242;

/// This test's program under another name, where every user can execute it.
pub fn copy(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
    path.canonicalize().unwrap()
}

/// A command that plays a role of this test (its ignored test `role`) with `program`.
pub fn role(node: &Node, program: &Path, role: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["--exact", "role", "--ignored", "--nocapture"]);
    command.env("LEASEHOLD_TEST_ROLE", role).env("SPIFFE_ENDPOINT_SOCKET", node.endpoint());
    command
}

/// The same command behind `prefix`, e.g. `unshare --mount --`.
pub fn behind(prefix: &[&str], inner: &Command) -> Command {
    let mut command = Command::new(prefix[0]);
    command.args(&prefix[1..]).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(key, value)| value.map(|value| (key, value))));
    command
}

/// Lets everybody reach the node's Workload API.
pub fn open(node: &Node) {
    std::fs::set_permissions(node.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A process that made a connection which this test speaks over: what the agent releases to that process
/// is seen here, whatever becomes of it.
pub struct Held {
    child: Child,
    control: BufReader<UnixStream>,
    endpoint: PathBuf,
    _directory: tempfile::TempDir,
    pump: tokio::task::JoinHandle<()>,
}

impl Held {
    /// Starts one as root or whoever the test is.
    pub async fn start(node: &Node) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let control = UnixListener::bind(directory.path().join("control")).unwrap();
        let shared = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let mut command = role(node, &std::env::current_exe().unwrap(), "hold");
        command.env("LEASEHOLD_TEST_CONTROL", directory.path().join("control"));
        command.env("LEASEHOLD_TEST_SOCKET", node.path("workload.sock"));
        command.stdin(Stdio::from(shared.try_clone().unwrap())).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let mut control = BufReader::new(control.accept().unwrap().0);
        assert_eq!(line(&mut control), "connected");
        let endpoint = directory.path().join("endpoint");
        let pump = pump(UnixListener::bind(&endpoint).unwrap(), shared);
        Self { child, control, endpoint, _directory: directory, pump }
    }

    /// A stock client over that process's connection. There is one connection, so one client.
    pub async fn client(&self) -> spiffe::WorkloadApiClient {
        spiffe::WorkloadApiClient::connect_to(format!("unix://{}", self.endpoint.display())).await.unwrap()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Has it become something else; when it had.
    pub fn becomes(&mut self, what: &str) -> BootInstant {
        writeln!(self.control.get_mut(), "{what}").unwrap();
        assert_eq!(line(&mut self.control), "done", "{what}");
        BootInstant::now()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pump.abort();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Carries bytes between the one client of `listener` and the shared connection.
fn pump(listener: UnixListener, shared: OwnedFd) -> tokio::task::JoinHandle<()> {
    let shared = UnixStream::from(shared);
    listener.set_nonblocking(true).unwrap();
    shared.set_nonblocking(true).unwrap();
    tokio::spawn(async move {
        let mut shared = tokio::net::UnixStream::from_std(shared).unwrap();
        let (mut client, _) = tokio::net::UnixListener::from_std(listener).unwrap().accept().await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut shared).await;
    })
}

/// The role `hold`: connects with the socket that is its standard input, and becomes what it is told to.
pub fn hold() {
    let address = UnixAddr::new(Path::new(&std::env::var("LEASEHOLD_TEST_SOCKET").unwrap())).unwrap();
    connect(std::io::stdin().as_raw_fd(), &address).unwrap();
    let control = UnixStream::connect(std::env::var("LEASEHOLD_TEST_CONTROL").unwrap()).unwrap();
    let mut control = BufReader::new(control);
    writeln!(control.get_mut(), "connected").unwrap();
    loop {
        match line(&mut control).as_str() {
            "another program" => {
                // Told by the other program itself: from then on this one is gone.
                let control = OwnedFd::from(control.into_inner());
                rustix::io::fcntl_setfd(&control, rustix::io::FdFlags::empty()).unwrap();
                let script = format!("echo done >&{}; exec sleep 60", control.as_raw_fd());
                panic!("{}", std::os::unix::process::CommandExt::exec(Command::new("sh").args(["-c", &script])));
            }
            "another user" => nix::unistd::setresuid(STRANGER.into(), STRANGER.into(), STRANGER.into()).unwrap(),
            "another group" => nix::unistd::setresgid(STRANGER.into(), STRANGER.into(), STRANGER.into()).unwrap(),
            "other groups" => nix::unistd::setgroups(&[STRANGER.into()]).unwrap(),
            "" => return,
            what => panic!("nobody becomes {what}"),
        }
        writeln!(control.get_mut(), "done").unwrap();
    }
}

/// The role `fetch N`: asks so often, and says how often it was given something and how often denied.
pub async fn fetch(times: u32) {
    let client = spiffe::WorkloadApiClient::connect_env().await.unwrap();
    let (mut given, mut denied) = (0, 0);
    for _ in 0..times {
        match client.fetch_x509_svid().await {
            Ok(_) => given += 1,
            Err(spiffe::WorkloadApiError::NoIdentityIssued | spiffe::WorkloadApiError::PermissionDenied(_)) => {
                denied += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    println!("says {given} given, {denied} denied");
}

/// What a command in the role `fetch` says.
pub async fn says(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = text.lines().find_map(|line| line.split_once("says ")).map(|(_, said)| said.to_owned());
    said.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}
