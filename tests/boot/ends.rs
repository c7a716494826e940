//! In the machine of `tests/boot/run`: tasks that end in the ways that need systemd as init and cgroup v2, and how
//! soon the control plane's store has it.
//!
//! `ends drive STORE COUNT` starts units, instances of `task@.service` and `outlived@.service`, whose processes have a
//! task each, brings their ends about and prints a row for each way.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use leasehold::delivery::workload_api::tasks::messages::{BeginRequest, TaskUpdate};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, Timespec, clock_gettime};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;

/// Where a task and who drives it leave each other word.
const WORD: &str = "/run/ends";

/// The Workload API.
const SOCKET: &str = "/run/leasehold/workload.sock";

/// Where the units' cgroups are; the slice is the registered workload's.
const SLICE: &str = "/sys/fs/cgroup/tasks.slice";

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is promised: a second. Emulated on a machine under load it takes longer, and a bound must not fail then.
const BOUND: Duration = Duration::from_secs(10);

/// A way in which a task ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Done,
    Failed,
    Killed,
    OutOfMemory,
    OtherUser,
    Moved,
    Outlived,
    Restarted,
}

const WAYS: [Way; 8] =
    [Way::Done, Way::Failed, Way::Killed, Way::OutOfMemory, Way::OtherUser, Way::Moved, Way::Outlived, Way::Restarted];

impl Way {
    const fn says(self) -> &'static str {
        match self {
            Self::Done => "ends with exit code 0",
            Self::Failed => "fails with exit code 3",
            Self::Killed => "is killed (SIGKILL)",
            Self::OutOfMemory => "is killed for want of memory (MemoryMax)",
            Self::OtherUser => "changes uid",
            Self::Moved => "is moved to another unit's cgroup",
            Self::Outlived => "lives on into its unit's next run (another InvocationID)",
            Self::Restarted => "ends with its unit's restart",
        }
    }

    /// The code in the record, and what the words beside it hold.
    const fn recorded(self) -> (&'static str, &'static str) {
        match self {
            Self::Done => ("task.ended", "ended with code 0"),
            Self::Failed => ("task.failed", "ended with code 3"),
            Self::Killed => ("task.failed", "killed by signal 9"),
            Self::OutOfMemory => ("task.out_of_memory", "out of memory"),
            Self::OtherUser => ("task.scope", "uid"),
            Self::Moved | Self::Outlived => ("task.scope", ""),
            Self::Restarted => ("task.failed", "killed by signal 15"),
        }
    }

    const fn template(self) -> &'static str {
        match self {
            Self::Outlived => "outlived",
            _ => "task",
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // Its unit's second run has nothing to do.
        ["task" | "outlived", name] if word(name, "begun").exists() => std::thread::sleep(PATIENCE),
        ["task", name] => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(task(name));
        }
        ["outlived", name] => drop(Command::new("/usr/bin/ends").args(["task", name]).status().unwrap()),
        ["drive", store, count] => drive(Path::new(store), count.parse().unwrap()),
        _ => panic!("ends task NAME | ends outlived NAME | ends drive STORE COUNT"),
    }
}

/// Now, on the clock that driver and tasks share.
fn now() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    Duration::new(tv_sec.cast_unsigned(), u32::try_from(tv_nsec).unwrap())
}

fn word(task: &str, what: &str) -> PathBuf {
    Path::new(WORD).join(format!("{task}.{what}"))
}

/// Leaves word with the present time.
fn leave(task: &str, what: &str) {
    let (path, new) = (word(task, what), word(task, "new"));
    std::fs::write(&new, now().as_nanos().to_string()).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn left(task: &str, what: &str) -> Option<Duration> {
    let text = std::fs::read_to_string(word(task, what)).ok()?;
    Some(Duration::from_nanos(text.parse().unwrap()))
}

/// Waits for something.
fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> Result<T, String> {
    let since = now();
    loop {
        if let Some(found) = found() {
            return Ok(found);
        }
        if now() - since > PATIENCE {
            return Err(format!("{what}: not within {PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process with a task, which does as it is told.
async fn task(name: &str) {
    let channel =
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(|_| async move {
            tokio::net::UnixStream::connect(SOCKET).await.map(TokioIo::new)
        }));
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let begin = BeginRequest {
        task_id: name.to_owned(),
        intent: "a row of the booted machine".to_owned(),
        x509: true,
        ..BeginRequest::default()
    };
    let mut request = tonic::Request::new(begin);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    let codec = tonic_prost::ProstCodec::<BeginRequest, TaskUpdate>::default();
    let path = PathAndQuery::from_static("/leasehold.task.v1.Tasks/Begin");
    let mut updates = match client.server_streaming(request, path, codec).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return std::fs::write(word(name, "refused"), format!("{status:?}")).unwrap(),
    };
    updates.message().await.unwrap().unwrap();
    leave(name, "begun");
    while !word(name, "go").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    leave(name, "cause");
    match WAYS.into_iter().find(|way| name.starts_with(&format!("{way:?}-"))) {
        Some(Way::Done) => std::process::exit(0),
        Some(Way::Failed) => std::process::exit(3),
        Some(Way::OutOfMemory) => eat(),
        Some(Way::OtherUser) => {
            let uid = nix::unistd::Uid::from_raw(1500);
            nix::unistd::setresuid(uid, uid, uid).unwrap();
        }
        _ => {}
    }
    // The stream stays open until the agent ends it.
    while let Ok(Some(_)) = updates.message().await {}
    std::future::pending::<()>().await;
}

/// Takes memory until the kernel ends this.
fn eat() {
    let mut eaten = Vec::new();
    loop {
        // Written, or the kernel gives none.
        eaten.push(vec![1_u8; 1 << 20]);
        std::hint::black_box(&eaten);
    }
}

fn drive(store: &Path, count: usize) {
    std::fs::create_dir_all(WORD).unwrap();
    let store = rusqlite::Connection::open(store).unwrap();
    store.busy_timeout(PATIENCE).unwrap();
    systemctl(&["start", "elsewhere.service"]).unwrap();
    for way in WAYS {
        let (mut took, mut wrong) = (Vec::new(), None);
        for round in 0..count {
            let name = format!("{way:?}-{round}");
            let unit = format!("{}@{name}.service", way.template());
            let ended = one(&store, way, &name, &unit);
            let _ = systemctl(&["kill", "--signal=KILL", &unit]);
            match ended {
                Ok(time) => took.push(time),
                Err(why) => {
                    wrong = Some(format!("round {round}: {why}"));
                    break;
                }
            }
        }
        took.sort_unstable();
        let middle = took.get(took.len() / 2).copied().unwrap_or_default();
        let most = took.last().copied().unwrap_or_default();
        let what = format!("a task {}", way.says());
        match wrong {
            Some(why) => println!("ROW FAIL {what}: {why}"),
            None if most > BOUND => println!("ROW FAIL {what}: recorded only after {most:?}"),
            None => println!(
                "ROW PASS {what}: {count} times {}, recorded by the control plane after {} ms (median), {} ms (maximum)",
                way.recorded().0,
                middle.as_millis(),
                most.as_millis()
            ),
        }
    }
    totals(&store);
}

/// Each task has one beginning and one end in the log, and no credential of one is left.
fn totals(store: &rusqlite::Connection) {
    let count = |query: &str| store.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap();
    let tasks = count("SELECT count(*) FROM tasks");
    let joined = |what: &str| {
        count(&format!(
            "SELECT count(*) FROM tasks WHERE (SELECT count(*) FROM log WHERE what = '{what}' AND log.task = tasks.id
             AND log.decision = tasks.decision AND log.workload = tasks.workload) = 1"
        ))
    };
    let (began, ended) = (joined("task.began"), joined("task.ended"));
    let left = count("SELECT count(*) FROM credentials WHERE task IS NOT NULL AND ended_at IS NULL");
    let word = if (began, ended, left) == (tasks, tasks, 0) { "PASS" } else { "FAIL" };
    println!(
        "ROW {word} the record: of {tasks} tasks {began} have one beginning and {ended} one end; {left} credentials are left"
    );
}

/// One task that ends so; gives back how long that took, from its cause to the control plane's record.
fn one(store: &rusqlite::Connection, way: Way, name: &str, unit: &str) -> Result<Duration, String> {
    systemctl(&["start", unit])?;
    until("the task's begin", || left(name, "begun")).map_err(|why| {
        let said = std::fs::read_to_string(word(name, "refused")).unwrap_or_default();
        format!("{why} {said}")
    })?;
    let (pid, process) = ours(name, unit)?;
    std::fs::write(word(name, "go"), "").map_err(|e| e.to_string())?;
    let own = until("the task's own word", || left(name, "cause"))?;
    let cause = match way {
        Way::Done | Way::Failed | Way::OtherUser => own,
        Way::Killed => {
            let at = now();
            pidfd_send_signal(&process, Signal::KILL).map_err(|e| e.to_string())?;
            at
        }
        // When it began to eat says nothing: what counts is when it was gone.
        Way::OutOfMemory => gone(&process)?,
        Way::Moved => {
            let elsewhere = "/sys/fs/cgroup/system.slice/elsewhere.service/cgroup.procs";
            let at = now();
            std::fs::write(elsewhere, pid.to_string()).map_err(|e| format!("{elsewhere}: {e}"))?;
            at
        }
        Way::Outlived | Way::Restarted => {
            let mut restart = Command::new("/usr/bin/systemctl").args(["restart", unit]).spawn();
            let gone = (way == Way::Restarted).then(|| gone(&process)).transpose()?;
            restart.as_mut().map_err(|e| e.to_string())?.wait().map_err(|e| e.to_string())?;
            gone.map_or_else(|| began(unit), Ok)?
        }
    };
    let (code, reason) = until("the end in the store", || recorded(store, name))?;
    let took = now().saturating_sub(cause);
    // What outlives its unit is ended here.
    let _ = pidfd_send_signal(&process, Signal::KILL);
    let (wanted, words) = way.recorded();
    if code != wanted || !reason.contains(words) {
        return Err(format!("recorded as {code} ({reason}); expected {wanted} ({words})"));
    }
    Ok(took)
}

/// When the present run of a unit began, by systemd's own record. The clock that it uses and ours differ by the time
/// this machine was suspended: never.
fn began(unit: &str) -> Result<Duration, String> {
    let shown =
        Command::new("/usr/bin/systemctl").args(["show", unit, "-P", "InactiveExitTimestampMonotonic"]).output();
    let text = String::from_utf8(shown.map_err(|e| e.to_string())?.stdout).map_err(|e| e.to_string())?;
    text.trim().parse().map(Duration::from_micros).map_err(|e| format!("{unit} began at `{text}`: {e}"))
}

fn systemctl(arguments: &[&str]) -> Result<(), String> {
    let done = Command::new("/usr/bin/systemctl").args(arguments).output().map_err(|e| e.to_string())?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!("systemctl {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr))),
    }
}

/// The process that has the task: the one in its unit's cgroup that was started as such.
fn ours(name: &str, unit: &str) -> Result<(i32, OwnedFd), String> {
    let path = format!("{SLICE}/{unit}/cgroup.procs");
    let all = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let wanted = format!("/usr/bin/ends\0task\0{name}\0");
    let runs = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted);
    let pid = all.lines().filter_map(|line| line.parse().ok()).find(runs);
    let pid = pid.and_then(Pid::from_raw).ok_or_else(|| format!("no process of {name} in {path}"))?;
    Ok((pid.as_raw_nonzero().get(), pidfd_open(pid, PidfdFlags::empty()).map_err(|e| format!("{name}: {e}"))?))
}

/// Waits for the end of a process, and says when that was seen.
fn gone(process: &OwnedFd) -> Result<Duration, String> {
    let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
    match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&patience)) {
        Ok(1) => Ok(now()),
        other => Err(format!("the process doesn't end: {other:?}")),
    }
}

/// How the store says that a task ended.
fn recorded(store: &rusqlite::Connection, name: &str) -> Option<(String, String)> {
    let query = "SELECT ended_code, coalesce(ended_reason, '') FROM tasks WHERE id = ?1 AND ended_code IS NOT NULL";
    store.query_row(query, [name], |row| Ok((row.get(0)?, row.get(1)?))).ok()
}
