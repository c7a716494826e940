//! Peers are real processes: this test program, started again in a role, and what it turns into.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::*;

const BOTH: [PeerMethod; 2] = [PeerMethod::PeerPidfd, PeerMethod::Fallback];

/// A user that no machine has.
pub(in crate::workload) const STRANGER: u32 = 424_242;

pub(in crate::workload) struct Bench {
    pub(in crate::workload) directory: tempfile::TempDir,
    pub(in crate::workload) listener: UnixListener,
}

impl Bench {
    pub(in crate::workload) fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        std::fs::set_permissions(directory.path().join("s"), std::fs::Permissions::from_mode(0o666)).unwrap();
        Self { directory, listener }
    }

    /// This program under another name and inode, where every user can execute it.
    fn program(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        path
    }

    pub(in crate::workload) fn command(&self, program: &Path, role: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["--exact", "workload::peer::tests::helper", "--ignored", "--nocapture"]);
        command.env("LEASEHOLD_TEST_ROLE", role).env("LEASEHOLD_TEST_SOCKET", self.directory.path().join("s"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// Starts a helper and accepts its connection.
    pub(in crate::workload) fn connected(&self, mut command: Command) -> (Helper, UnixStream) {
        let helper = Helper(command.spawn().unwrap());
        (helper, self.listener.accept().unwrap().0)
    }

    pub(in crate::workload) fn own(&self, role: &str) -> (Helper, UnixStream) {
        self.connected(self.command(&std::env::current_exe().unwrap(), role))
    }
}

pub(in crate::workload) struct Helper(pub(in crate::workload) Child);

impl Helper {
    /// Lets a helper go on, and waits until it says that it has.
    pub(in crate::workload) fn go(&mut self) {
        writeln!(self.0.stdin.as_mut().unwrap(), "go").unwrap();
        let mut lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("done")));
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the other process does. Not a test of its own.
#[test]
#[ignore = "a role of other tests"]
fn helper() {
    let Ok(role) = std::env::var("LEASEHOLD_TEST_ROLE") else { return };
    let stream = UnixStream::connect(std::env::var("LEASEHOLD_TEST_SOCKET").unwrap()).unwrap();
    let wait = || std::io::stdin().read_line(&mut String::new()).unwrap();
    wait();
    match role.as_str() {
        "stay" => {}
        "exec" => panic!("{}", Command::new("sh").args(["-c", "echo done; exec sleep 60"]).exec()),
        "groups" => nix::unistd::setgroups(&[STRANGER.into()]).unwrap(),
        "setuid" => nix::unistd::setuid(STRANGER.into()).unwrap(),
        // The connection outlives the one who made it: `cat` reads on until we close it.
        "hand over" => drop(Command::new("cat").stdin(OwnedFd::from(stream)).spawn().unwrap()),
        "no descriptors" => look_without_descriptors(&stream),
        role => panic!("no role `{role}`"),
    }
    println!("done");
    if role != "hand over" {
        wait();
    }
}

/// At a process of which everything is known but what it does now.
fn look_without_descriptors(stream: &UnixStream) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let peer = Peers::new(PeerMethod::Auto).identify(stream).await.unwrap();
        let sha256 = [vec![Selector::Sha256([0; 32])]];
        peer.check().await.unwrap();
        // One, and that is taken; none at all would forbid asking about a descriptor, too.
        let had = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, rustix::process::Rlimit { current: Some(1), ..had }).unwrap();
        assert_eq!(peer.check().await.unwrap_err().code, codes::WORKLOAD_UNSEEN);
        assert_eq!(peer.observe(&sha256).await.unwrap_err().code, codes::WORKLOAD_UNSEEN);
        assert_eq!(peer.held.process.executable().unwrap_err().code, codes::WORKLOAD_UNSEEN);
        for method in BOTH {
            let refusal = Peers::new(method).catch(stream).unwrap_err();
            assert_eq!(refusal.code, codes::WORKLOAD_UNSEEN, "{method:?}");
        }
        setrlimit(Resource::Nofile, had).unwrap();
        peer.check().await.unwrap();
    });
}

#[test]
fn a_peer_that_can_not_be_looked_at_for_want_of_threads_is_not_a_lost_one() {
    let (_mine, theirs) = UnixStream::pair().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let peer = Peers::new(PeerMethod::Auto).identify(&theirs).await.unwrap();
        let (release, stalled) = std::sync::mpsc::channel::<()>();
        let stall = tokio::task::spawn_blocking(move || stalled.recv());
        let looked = peer.blocking(Duration::from_millis(20), Held::check).await;
        assert_eq!(looked.unwrap_err().code, codes::WORKLOAD_UNSEEN);
        drop(release);
        stall.await.unwrap().unwrap_err();
        peer.check().await.unwrap();
    });
}

#[test]
fn a_peer_that_can_not_be_looked_at_for_want_of_descriptors_is_not_a_lost_one() {
    // In a process of its own, whose limit concerns nobody else; it looks at this one.
    let bench = Bench::new();
    let (mut helper, _stream) = bench.own("no descriptors");
    helper.go();
}

pub(in crate::workload) fn parse(selectors: &[String]) -> Vec<Selector> {
    selectors.iter().map(|text| Selector::parse(text).unwrap()).collect()
}

pub(in crate::workload) fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: it needs root");
    }
    root
}

#[tokio::test]
async fn selectors_hold_for_what_the_kernel_says() {
    use sha2::Digest;
    let bench = Bench::new();
    let program = bench.program("app");
    let digest = sha2::Sha256::digest(std::fs::read(&program).unwrap());
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let right = parse(&[
        format!("unix:uid:{uid}"),
        format!("unix:gid:{gid}"),
        format!("unix:path:{}", program.canonicalize().unwrap().display()),
        format!("unix:sha256:{}", hex::encode(digest)),
    ]);
    let wrong = parse(&[
        format!("unix:uid:{}", uid + 1),
        format!("unix:gid:{}", gid + 1),
        "unix:path:/bin/sleep".to_owned(),
        format!("unix:sha256:{}", "00".repeat(32)),
    ]);
    for method in BOTH {
        let (helper, stream) = bench.connected(bench.command(&program, "stay"));
        let peer = Peers::new(method).identify(&stream).await.unwrap();
        assert_eq!((peer.pid(), peer.uid(), peer.gid()), (helper.0.id().cast_signed(), uid, gid));
        let observed = peer.observe(&[right.as_slice()]).await.unwrap();
        assert!(observed.matches(&right));
        assert!(!observed.matches(&[]), "no selector, no match");
        for (index, bad) in wrong.iter().enumerate() {
            let mut selectors = right.clone();
            selectors[index] = bad.clone();
            assert!(!observed.matches(&selectors));
            assert!(!observed.matches(std::slice::from_ref(bad)));
        }
    }
}

#[tokio::test]
async fn a_program_is_hashed_only_for_an_entry_that_matches_otherwise() {
    let bench = Bench::new();
    let (_helper, stream) = bench.own("stay");
    let peers = Peers::new(PeerMethod::Auto);
    let peer = peers.identify(&stream).await.unwrap();
    let digest = format!("unix:sha256:{}", "00".repeat(32));
    let others = parse(&[format!("unix:uid:{}", peer.uid() + 1), digest.clone()]);
    assert!(peer.observe(&[others]).await.unwrap().sha256.is_err());
    assert!(peer.observe::<Vec<Selector>>(&[]).await.unwrap().sha256.is_err());
    assert!(peer.observe(&[parse(&[digest])]).await.unwrap().sha256.is_ok());
}

/// Nothing here has fs-verity. A program that has it is measured in the machine of `tests/run boot`.
#[tokio::test]
async fn a_program_without_fs_verity_fails_that_selector_and_the_refusal_says_so() {
    let bench = Bench::new();
    let (_helper, stream) = bench.own("stay");
    let peer = Peers::new(PeerMethod::Auto).identify(&stream).await.unwrap();
    let digest = format!("unix:fsverity:sha256:{}", "00".repeat(32));
    let uid = format!("unix:uid:{}", peer.uid());
    let entry = parse(&[uid, digest.clone()]);
    let (failing, found) = peer.observe(&[&entry]).await.unwrap().failing(&entry).unwrap();
    assert_eq!(failing.to_string(), digest);
    assert!(found.contains("fs-verity"), "{found}");
    // Not asked for where it couldn't change anything.
    let others = parse(&[format!("unix:uid:{}", peer.uid() + 1), digest]);
    assert_eq!(peer.observe(&[others]).await.unwrap().verity, Err("not asked for".to_owned()));
}

#[tokio::test]
async fn an_ended_process_is_gone_though_its_connection_lives() {
    for method in BOTH {
        let bench = Bench::new();
        let (mut helper, stream) = bench.own("hand over");
        let peer = Peers::new(method).identify(&stream).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), peer.exited()).await.is_err());
        helper.go();
        helper.0.wait().unwrap();
        tokio::time::timeout(Duration::from_secs(10), peer.exited()).await.unwrap();
        assert_eq!(peer.check().await.unwrap_err().code, codes::WORKLOAD_PEER_GONE);
        assert_eq!(peer.observe::<Vec<Selector>>(&[]).await.unwrap_err().code, codes::WORKLOAD_PEER_GONE);
        let again = Peers::new(method).identify(&stream).await.unwrap_err();
        assert_eq!(again.code, codes::WORKLOAD_PEER_GONE, "{again}");
    }
}

#[tokio::test]
async fn a_process_that_executes_another_program_has_to_connect_again() {
    for method in BOTH {
        let bench = Bench::new();
        let (mut helper, stream) = bench.own("exec");
        let peer = Peers::new(method).identify(&stream).await.unwrap();
        peer.check().await.unwrap();
        helper.go();
        // `sh` first, `sleep` next: neither is what connected.
        let refusal = peer.observe::<Vec<Selector>>(&[]).await.unwrap_err();
        assert_eq!(refusal.code, codes::WORKLOAD_PEER_CHANGED, "{refusal}");
        assert_eq!(peer.check().await.unwrap_err().code, codes::WORKLOAD_PEER_CHANGED);
    }
}

#[tokio::test]
async fn a_process_that_changes_its_user_has_to_connect_again() {
    if !is_root("a_process_that_changes_its_user_has_to_connect_again") {
        return;
    }
    for method in BOTH {
        let bench = Bench::new();
        let (mut helper, stream) = bench.own("setuid");
        let peer = Peers::new(method).identify(&stream).await.unwrap();
        helper.go();
        let refusal = peer.check().await.unwrap_err();
        assert_eq!(refusal.code, codes::WORKLOAD_PEER_CHANGED, "{refusal}");
        // Nor is it known any more to a look that comes only now.
        assert_eq!(Peers::new(method).identify(&stream).await.unwrap_err().code, codes::WORKLOAD_PEER_CHANGED);
    }
}

#[tokio::test]
async fn another_user_is_another_user() {
    if !is_root("another_user_is_another_user") {
        return;
    }
    let bench = Bench::new();
    let program = bench.program("app");
    for method in BOTH {
        let mut command = bench.command(&program, "stay");
        command.uid(STRANGER).gid(STRANGER + 1);
        let (_helper, stream) = bench.connected(command);
        let peer = Peers::new(method).identify(&stream).await.unwrap();
        let observed = peer.observe::<Vec<Selector>>(&[]).await.unwrap();
        assert_eq!((observed.uid(), observed.gid()), (STRANGER, STRANGER + 1));
        assert!(!observed.matches(&parse(&["unix:uid:0".to_owned()])));
    }
}

#[tokio::test]
async fn the_same_path_in_another_mount_namespace_is_another_program() {
    if !is_root("the_same_path_in_another_mount_namespace_is_another_program") {
        return;
    }
    let bench = Bench::new();
    let (app, other) = (bench.program("app"), bench.program("other"));
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--",
        "sh",
        "-c",
        "mount --bind \"$1\" \"$0\" && exec \"$0\" \"$2\" \"$3\" \"$4\" \"$5\"",
    ]);
    let inner = bench.command(&app, "stay");
    command.arg(&app).arg(&other).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(key, value)| value.map(|value| (key, value))));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let (helper, stream) = bench.connected(command);
    let peer = Peers::new(PeerMethod::Auto).identify(&stream).await.unwrap();
    let seen = std::fs::read_link(format!("/proc/{}/exe", helper.0.id())).unwrap();
    assert_eq!(seen, app, "the kernel shows the path of the program that was replaced there");
    let observed = peer.observe::<Vec<Selector>>(&[]).await.unwrap();
    assert_eq!(observed.path(), None);
    // Denied, and the selector is named with what was found instead.
    let selectors = parse(&["unix:uid:0".to_owned(), format!("unix:path:{}", app.display())]);
    let (failing, found) = observed.failing(&selectors).unwrap();
    assert_eq!(failing, &selectors[1]);
    assert!(found.contains("another file in the agent's mount namespace"), "{found}");
    println!("{failing}: {found}");
}

#[tokio::test]
async fn what_the_kernel_has_no_name_for_is_refused() {
    let bench = Bench::new();
    let (_helper, stream) = bench.own("stay");
    let credentials = getsockopt(&stream, sockopt::PeerCredentials).unwrap();
    let (pid, uid, gid) = (credentials.pid(), credentials.uid(), credentials.gid());
    let peers = Peers { unmapped: Some((65534, 65534)), ..Peers::new(PeerMethod::Auto) };
    for connected in [
        Connected { pid: 0, uid, gid },
        Connected { pid: -1, uid, gid },
        Connected { pid, uid: u32::MAX, gid },
        Connected { pid, uid, gid: u32::MAX },
        Connected { pid, uid: 65534, gid },
        Connected { pid, uid, gid: 65534 },
    ] {
        assert_eq!(peers.known(connected).unwrap_err().code, codes::WORKLOAD_PEER_UNKNOWN, "{connected:?}");
    }
    peers.known(Connected { pid, uid, gid }).unwrap();
}

#[tokio::test]
async fn the_fallback_refuses_a_process_that_started_after_the_accept() {
    let bench = Bench::new();
    let before = BootInstant::now();
    std::thread::sleep(Duration::from_millis(30));
    let (_helper, stream) = bench.own("stay");
    let credentials = getsockopt(&stream, sockopt::PeerCredentials).unwrap();
    let connected = Connected { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid() };
    let peers = Peers::new(PeerMethod::Fallback);
    let refusal = peers.hold(connected, None, before).unwrap().identify().await.unwrap_err();
    assert_eq!(refusal.code, codes::WORKLOAD_PEER_GONE, "{refusal}");
    peers.hold(connected, None, BootInstant::now()).unwrap().identify().await.unwrap();
}

#[test]
fn a_reused_process_number_is_never_the_peer() {
    if !is_root("a_reused_process_number_is_never_the_peer") {
        return;
    }
    let status = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "workload::peer::tests::in_its_own_pid_namespace", "--ignored", "--nocapture"])
        .env("LEASEHOLD_TEST_ROLE", "namespace")
        .status()
        .unwrap();
    assert!(status.success());
}

/// Nobody else makes processes here, so the next number can be chosen.
#[tokio::test]
#[ignore = "a role of a_reused_process_number_is_never_the_peer"]
async fn in_its_own_pid_namespace() {
    if std::env::var("LEASEHOLD_TEST_ROLE").as_deref() != Ok("namespace") {
        return;
    }
    let bench = Bench::new();
    let program = bench.program("app");
    for round in 0..20 {
        let stranger = round % 2 == 1;
        let mut command = bench.command(&program, "hand over");
        if stranger {
            command.uid(STRANGER).gid(STRANGER);
        }
        let (mut helper, stream) = bench.connected(command);
        let accepted = BootInstant::now();
        let credentials = getsockopt(&stream, sockopt::PeerCredentials).unwrap();
        let (pid, uid, gid) = (credentials.pid(), credentials.uid(), credentials.gid());
        let held = Peers::new(PeerMethod::Auto).identify(&stream).await.unwrap();
        helper.go();
        helper.0.wait().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let victim = Helper(Command::new("sleep").arg("60").spawn().unwrap());
        assert_eq!(victim.0.id().cast_signed(), pid, "the number is used again");

        // Who was held before stays who it was.
        assert_eq!(held.check().await.unwrap_err().code, codes::WORKLOAD_PEER_GONE);
        assert_eq!(held.observe::<Vec<Selector>>(&[]).await.unwrap_err().code, codes::WORKLOAD_PEER_GONE);
        // The socket knows whose it is.
        let late = Peers::new(PeerMethod::PeerPidfd).identify(&stream).await.unwrap_err();
        assert_eq!(late.code, codes::WORKLOAD_PEER_GONE, "{late}");
        // By number, the start tells; and where even the accept came too late, the user.
        let peers = Peers::new(PeerMethod::Fallback);
        let found = peers.hold(Connected { pid, uid, gid }, None, accepted).unwrap().identify().await.unwrap_err();
        assert_eq!(found.code, codes::WORKLOAD_PEER_GONE, "{found}");
        if stranger {
            let found = peers.identify(&stream).await.unwrap_err();
            assert_eq!(found.code, codes::WORKLOAD_PEER_CHANGED, "{found}");
        }
    }
}
