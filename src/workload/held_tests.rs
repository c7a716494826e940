//! What must stay: cgroups that are really made, logins that are really written, numbers that really pass.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::super::peer::tests::{Bench, Helper, STRANGER, is_root, parse};
use super::*;
use crate::workload::{Peer, PeerMethod, Peers, Selector};

/// A directory in a tree of cgroups, removed with all below it at the end; nobody may be in it then.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn takes(&self, helper: &Helper) {
        fs::write(self.0.join("cgroup.procs"), helper.0.id().to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A killed member takes a moment to leave.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The trees of cgroups that can be written here: v2's, and v1's named one.
fn trees(test: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let found: Vec<PathBuf> = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"]
        .into_iter()
        .filter(|path| mounts.lines().any(|line| line.contains(&format!(" {path} ")) && line.contains(" - cgroup")))
        .map(PathBuf::from)
        .filter(|path| {
            let probe = path.join(format!("leasehold-probe-{}", std::process::id()));
            fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).is_ok()
        })
        .collect();
    if found.is_empty() {
        eprintln!("SKIPPED {test}: no tree of cgroups can be written here");
    }
    found
}

/// A name that no other test has.
fn name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("leasehold{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn peer(stream: &std::os::unix::net::UnixStream) -> Peer {
    Peers::new(PeerMethod::Auto).identify(stream).await.unwrap()
}

async fn observed(peer: &Peer) -> Observed {
    peer.observe::<Vec<Selector>>(&[]).await.unwrap()
}

#[tokio::test]
async fn unit_slice_run_and_cgroup_are_read_from_the_tree() {
    let test = "unit_slice_run_and_cgroup_are_read_from_the_tree";
    for tree in trees(test) {
        let name = name();
        let _slice = Cgroup::make(tree.join(format!("{name}.slice")));
        let unit = Cgroup::make(tree.join(format!("{name}.slice/{name}.service")));
        let run = "000102030405060708090a0b0c0d0e0f";
        let marked =
            rustix::fs::setxattr(&unit.0, "trusted.invocation_id", run.as_bytes(), rustix::fs::XattrFlags::empty());
        let bench = Bench::new();
        let (helper, stream) = bench.own("stay");
        unit.takes(&helper);
        let peer = peer(&stream).await;
        let observed = observed(&peer).await;
        let right = [
            format!("systemd:unit:{name}.service"),
            format!("systemd:slice:{name}.slice"),
            format!("cgroup:path:/{name}.slice/{name}.service"),
        ];
        assert!(observed.matches(&parse(&right)), "{observed:?}");
        match marked {
            Ok(()) => assert!(observed.matches(&parse(&[format!("systemd:invocation:{run}")])), "{observed:?}"),
            Err(error) => eprintln!("SKIPPED the run of a unit in {}: {error}", tree.display()),
        }
        let claims = observed.claims();
        assert!(right.iter().all(|selector| claims.selectors.contains(selector)), "{claims:?}");
        for wrong in [
            "systemd:unit:other.service".to_owned(),
            "systemd:slice:system.slice".to_owned(),
            format!("cgroup:path:/{name}.slice"),
            format!("systemd:invocation:{}", "00".repeat(16)),
            format!("container:id:{}", "00".repeat(32)),
        ] {
            assert!(!observed.matches(&parse(&[right[0].clone(), wrong.clone()])), "{wrong}");
        }
        // Another run of the unit is another workload, though the process is the same.
        if marked.is_ok() {
            let next = "ff".repeat(16);
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&unit.0, "trusted.invocation_id", next.as_bytes(), flags).unwrap();
            let refusal = peer.check().await.unwrap_err();
            assert_eq!(refusal.code, codes::WORKLOAD_PEER_CHANGED);
            assert!(refusal.to_string().contains(&next), "{refusal}");
        }
    }
}

#[tokio::test]
async fn another_cgroup_is_another_workload_even_of_the_same_name() {
    let test = "another_cgroup_is_another_workload_even_of_the_same_name";
    for tree in trees(test) {
        let name = name();
        let (a, b) = (Cgroup::make(tree.join(format!("{name}a"))), Cgroup::make(tree.join(format!("{name}b"))));
        let bench = Bench::new();
        let (helper, stream) = bench.own("stay");
        a.takes(&helper);
        let peer = peer(&stream).await;
        peer.check().await.unwrap();
        b.takes(&helper);
        let refusal = peer.check().await.unwrap_err();
        assert_eq!(refusal.code, codes::WORKLOAD_PEER_CHANGED);
        assert!(refusal.to_string().contains(&format!("/{name}b")), "{refusal}");
        // The same name, made anew while nobody was in it.
        let path = a.0.clone();
        drop(a);
        let a = Cgroup::make(path);
        a.takes(&helper);
        let refusal = peer.check().await.unwrap_err();
        assert_eq!(refusal.code, codes::WORKLOAD_PEER_CHANGED);
        assert!(refusal.to_string().contains("made anew"), "{refusal}");
        // A cgroup of v1 that only limits something is no place.
        let (other, stream) = bench.own("stay");
        let held = super::tests::peer(&stream).await;
        let limits = Path::new("/sys/fs/cgroup/pids").join(&name);
        if fs::create_dir(&limits).is_ok() && limits.join("cgroup.procs").exists() {
            let limits = Cgroup(limits);
            limits.takes(&other);
            held.check().await.unwrap();
            drop(other);
        }
        drop(helper);
    }
}

/// Below a directory that a user owns, the user names what it likes: nothing of that is believed.
#[tokio::test]
async fn names_that_a_user_made_say_nothing() {
    let test = "names_that_a_user_made_say_nothing";
    for tree in trees(test) {
        let (name, id) = (name(), "ab".repeat(32));
        let delegated = Cgroup::make(tree.join(&name));
        let bench = Bench::new();
        let mine = Cgroup::make(delegated.0.join(format!("docker-{id}.scope")));
        let (helper, stream) = bench.own("stay");
        mine.takes(&helper);
        // Made by root: a container; made by a user: not.
        let container = parse(&[format!("container:id:{id}")]);
        assert!(observed(&peer(&stream).await).await.matches(&container));
        std::os::unix::fs::chown(&delegated.0, Some(STRANGER), Some(STRANGER)).unwrap();
        let (helper, stream) = bench.own("stay");
        mine.takes(&helper);
        let observed = observed(&peer(&stream).await).await;
        let (failing, found) = observed.failing(&container).unwrap();
        assert_eq!(failing, &container[0]);
        assert!(found.contains("is not root"), "{found}");
        // Where it is remains true, whoever made the place.
        assert!(observed.matches(&parse(&[format!("cgroup:path:/{name}/docker-{id}.scope")])));
    }
}

#[tokio::test]
async fn a_process_whose_groups_change_has_to_connect_again() {
    if !is_root("a_process_whose_groups_change_has_to_connect_again") {
        return;
    }
    let bench = Bench::new();
    let (mut helper, stream) = bench.own("groups");
    let held = peer(&stream).await;
    let group = parse(&[format!("unix:supplementary-gid:{STRANGER}")]);
    assert!(!observed(&held).await.matches(&group));
    helper.go();
    let refusal = held.check().await.unwrap_err();
    assert_eq!(refusal.code, codes::WORKLOAD_PEER_CHANGED, "{refusal}");
    // What the kernel says now holds for a connection that is looked at now.
    assert!(observed(&peer(&stream).await).await.matches(&group));
}

#[tokio::test]
async fn a_process_that_a_person_logs_in_as_is_a_persons() {
    let test = "a_process_that_a_person_logs_in_as_is_a_persons";
    if !is_root(test) {
        return;
    }
    if fs::read_to_string("/proc/self/loginuid").is_ok_and(|uid| uid.trim() != u32::MAX.to_string()) {
        eprintln!("SKIPPED {test}: this is a login session already");
        return;
    }
    let bench = Bench::new();
    let (_helper, stream) = bench.own("stay");
    assert_eq!(observed(&peer(&stream).await).await.login_session(), None);
    // As PAM does it before a session's first program.
    let inner = bench.command(&std::env::current_exe().unwrap(), "stay");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("echo {STRANGER} > /proc/self/loginuid && exec \"$0\" \"$@\"")]);
    command.arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(key, value)| value.map(|value| (key, value))));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let (_helper, stream) = bench.connected(command);
    let observed = observed(&peer(&stream).await).await;
    assert_eq!(observed.login_session(), Some(format!("of the login of uid {STRANGER}")));
    assert!(observed.claims().login_session);
}

#[tokio::test]
async fn a_process_in_a_sessions_scope_is_a_persons() {
    for tree in trees("a_process_in_a_sessions_scope_is_a_persons") {
        let name = name();
        let _outer = Cgroup::make(tree.join(&name));
        let session = Cgroup::make(tree.join(format!("{name}/session-7.scope")));
        let bench = Bench::new();
        let (helper, stream) = bench.own("stay");
        session.takes(&helper);
        let found = observed(&peer(&stream).await).await;
        assert!(found.login_session().unwrap().contains("session-7.scope"), "{found:?}");
    }
}

/// A container that shares user id, group id and even the very file with the host isn't the host's process.
#[tokio::test]
async fn a_path_counts_only_in_the_agents_own_surroundings() {
    if !is_root("a_path_counts_only_in_the_agents_own_surroundings") {
        return;
    }
    let bench = Bench::new();
    let own = std::env::current_exe().unwrap().canonicalize().unwrap();
    let path = parse(&[format!("unix:path:{}", own.display())]);
    let root = bench.directory.path().join("root");
    fs::create_dir(&root).unwrap();
    let chroot = format!("mount --rbind / {0} && exec chroot {0} \"$@\"", root.display());
    // What a container has that was given all of the host's directories: the same paths, the same files.
    let pivot = format!(
        "mount -t tmpfs none {} && cd {} && for each in /*; do \
         if [ -L $each ]; then cp -a $each .; elif [ -d $each ]; then mkdir .$each && mount --rbind $each .$each; fi; \
         done && mkdir -p old && pivot_root . old && exec \"$@\"",
        root.display(),
        root.display()
    );
    for (prefix, why) in [
        (vec!["unshare", "--mount", "--"], None),
        (vec!["unshare", "--pid", "--fork", "--kill-child", "--"], Some("it is in another PID namespace")),
        (vec!["unshare", "--user", "--map-root-user", "--"], Some("it is in another user namespace")),
        (vec!["unshare", "--mount", "--", "sh", "-c", &chroot, "sh"], Some("its path is")),
        (vec!["unshare", "--mount", "--", "sh", "-c", &pivot, "sh"], Some("its root directory is another one")),
    ] {
        let inner = bench.command(&own, "stay");
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).arg(inner.get_program()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(key, value)| value.map(|value| (key, value))));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let (_helper, stream) = bench.connected(command);
        let observed = observed(&peer(&stream).await).await;
        match (observed.failing(&path), why) {
            (None, None) => {}
            (Some((failing, found)), Some(why)) => {
                assert_eq!(failing, &path[0]);
                assert!(found.starts_with(why), "{prefix:?}: {found}");
            }
            (found, why) => panic!("{prefix:?}: {found:?} for {why:?}"),
        }
    }
}

/// A kernel that stands in for another (gVisor and its like) may say of a process what isn't so of the one
/// that connected: two answers that differ are no answer.
#[tokio::test]
async fn a_process_that_is_not_of_the_user_who_connected_is_refused() {
    let bench = Bench::new();
    let (helper, _stream) = bench.own("stay");
    let pid = helper.0.id().cast_signed();
    let pidfd =
        rustix::process::pidfd_open(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::PidfdFlags::empty());
    let process = Process::hold(pid, pidfd.unwrap()).unwrap();
    let refusal = Held::new(process, Peers::new(PeerMethod::Auto), STRANGER, STRANGER).unwrap_err();
    assert_eq!(refusal.code, codes::WORKLOAD_PEER_CHANGED);
    assert!(refusal.expected.contains("with which it connected"), "{refusal}");
}

/// The racer, compiled; whoever has Rust's linker has a C compiler.
fn racer(directory: &Path) -> Option<PathBuf> {
    let program = directory.join("racer");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/callers/racer.c");
    let compiled = Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(source).status();
    compiled.is_ok_and(|status| status.success()).then_some(program)
}

/// How a race is run.
#[derive(Clone, Copy)]
struct Race {
    method: PeerMethod,
    /// The user who connects and ends.
    uid: u32,
    /// Whether it is caught before it ends; if not, its number may have passed on before anybody looks.
    caught_first: bool,
}

/// What came of it.
#[derive(Default, Debug)]
struct Outcome {
    rounds: u32,
    /// Someone was identified as the program that got the number.
    wrong: u32,
    /// A look by number alone would have found that program.
    by_number: u32,
    refused: u32,
}

async fn race(rounds: u32, race: Race) -> Result<Outcome, String> {
    let bench = Bench::new();
    let program = racer(bench.directory.path()).ok_or("there is no C compiler")?;
    let victim = fs::canonicalize("/bin/sleep").unwrap();
    let mut racing = Command::new(program);
    racing.arg(bench.directory.path().join("s")).arg(race.uid.to_string()).arg(&victim);
    let mut racing = Helper(racing.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut says = BufReader::new(racing.0.stdout.take().unwrap()).lines();
    let mut tell = racing.0.stdin.take().unwrap();
    let peers = Peers::new(race.method);
    let own = rustix::process::geteuid().as_raw();
    let victims = parse(&[format!("unix:uid:{own}"), format!("unix:path:{}", victim.display())]);
    let mut outcome = Outcome::default();
    let mut pause = 0;
    while outcome.rounds < rounds {
        tell.write_all(if race.caught_first { b"w\n" } else { b"g\n" }).unwrap();
        let (mut stream, _) = bench.listener.accept().unwrap();
        let caught = race.caught_first.then(|| {
            let caught = peers.catch(&stream);
            stream.write_all(b"!").unwrap();
            caught
        });
        // In every other round the look comes when the number has passed on for certain; else at any time.
        let late = outcome.rounds.is_multiple_of(2);
        let mut number = late.then(|| says.next());
        if !late {
            pause = (pause + 37) % 1500;
            let until = Instant::now() + Duration::from_micros(pause);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        }
        let found = match caught.unwrap_or_else(|| peers.catch(&stream)) {
            Ok(caught) => match caught.identify().await {
                Ok(peer) => peer.observe(&[&victims]).await,
                Err(refusal) => Err(refusal),
            },
            Err(refusal) => Err(refusal),
        };
        match found {
            Ok(observed) => outcome.wrong += u32::from(observed.matches(&victims)),
            Err(_) => outcome.refused += 1,
        }
        let number = number.take().unwrap_or_else(|| says.next()).ok_or("the racer ended")?.unwrap();
        match number.parse::<i32>() {
            Ok(number) if number > 0 => {
                outcome.rounds += 1;
                let by_number = fs::read_link(format!("/proc/{number}/exe"));
                outcome.by_number += u32::from(by_number.is_ok_and(|path| path == victim));
            }
            // Somebody else got the number first.
            Ok(_) => {}
            Err(_) => return Err(number),
        }
        // The connection itself lived all the time.
        stream.set_nonblocking(true).unwrap();
        assert!(matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock));
        tell.write_all(b"end\n").unwrap();
    }
    Ok(outcome)
}

/// 500 rounds each: a number passes to another program by `clone3(set_tid)` while its first owner's
/// connection is accepted, caught and looked at.
#[tokio::test]
async fn a_number_that_passes_on_takes_no_identity_with_it() {
    let test = "a_number_that_passes_on_takes_no_identity_with_it";
    if !is_root(test) {
        return;
    }
    let own = rustix::process::geteuid().as_raw();
    for (what, how) in [
        ("SO_PEERPIDFD, same user", Race { method: PeerMethod::PeerPidfd, uid: own, caught_first: false }),
        ("fallback, another user", Race { method: PeerMethod::Fallback, uid: STRANGER, caught_first: false }),
        ("fallback, same user, caught before", Race { method: PeerMethod::Fallback, uid: own, caught_first: true }),
    ] {
        let since = Instant::now();
        let outcome = match race(500, how).await {
            Ok(outcome) => outcome,
            Err(why) => {
                eprintln!("SKIPPED {test}, {what}: {why}");
                continue;
            }
        };
        println!("{what}: {outcome:?} in {:?}", since.elapsed());
        assert_eq!(outcome.wrong, 0, "{what}: {outcome:?}");
        // The race is one: whoever goes by the number is wrong every time.
        assert_eq!(outcome.by_number, 500, "{what}: {outcome:?}");
        assert!(outcome.refused >= 250, "{what}: {outcome:?}");
    }
}
