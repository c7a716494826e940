//! Calls by other processes: this test program started again, as another user or in a role.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::*;

/// A user that no machine has.
const STRANGER: u32 = 424_242;

fn caller(bench: &Bench, role: &str) -> Command {
    let program = bench.directory.path().join("caller");
    if !program.exists() {
        // Where every user can execute it.
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    }
    let mut command = Command::new(program);
    command.args(["--exact", "delivery::workload_api::tests::callers::other_process", "--ignored", "--nocapture"]);
    command.env("LEASEHOLD_TEST_ROLE", role).env("LEASEHOLD_TEST_SOCKET", &bench.path);
    command
}

/// What the other process says at the end.
async fn says(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.stderr(Stdio::inherit()).output()).await.unwrap().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    output.lines().find_map(|line| line.split_once("says ")).map(|(_, text)| text.to_owned()).expect(&output)
}

/// Not a test of its own.
#[tokio::test]
#[ignore = "a role of other tests"]
async fn other_process() {
    let Ok(role) = std::env::var("LEASEHOLD_TEST_ROLE") else { return };
    let path = std::path::PathBuf::from(std::env::var("LEASEHOLD_TEST_SOCKET").unwrap());
    match role.as_str() {
        "thousand" => {
            let mut client = Client::connect(&path).await;
            let (mut given, mut denied) = (0, 0);
            for _ in 0..1000 {
                match client.x509().await {
                    Ok(_) => given += 1,
                    Err(status) if status.code() == Code::PermissionDenied && status.message() == NO_IDENTITY => {
                        denied += 1;
                    }
                    Err(status) => panic!("{status:?}"),
                }
            }
            println!("says {given} given, {denied} denied");
        }
        "one" => {
            let mut client = Client::connect(&path).await;
            println!("says {}", id(&next(&mut client.x509().await.unwrap()).await.unwrap()));
        }
        "leave it behind" | "become another" => {
            // A connection that stays open when this program ends, in a child or in what follows it.
            let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
            std::io::Write::write_all(&mut &stream, &super::stock_clients::fetch_as_c_core()).unwrap();
            std::io::stdin().read_line(&mut String::new()).unwrap();
            let mut cat = Command::new("cat");
            cat.stdin(OwnedFd::from(stream));
            if role == "become another" {
                panic!("{}", cat.exec());
            }
            #[expect(clippy::zombie_processes, reason = "it outlives this process")]
            cat.spawn().unwrap();
        }
        role => panic!("no role `{role}`"),
    }
}

fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: it needs root");
    }
    root
}

#[tokio::test]
async fn a_thousand_requests_of_another_user_get_nothing() {
    if !is_root("a_thousand_requests_of_another_user_get_nothing") {
        return;
    }
    for method in [PeerMethod::PeerPidfd, PeerMethod::Fallback] {
        let answer = Answer::GiveIf(vec![Selector::Uid(0)], Ca::new().context("/app"));
        let bench = Bench::serving(answer, Limits::default(), method);
        let mut command = caller(&bench, "thousand");
        command.uid(STRANGER).gid(STRANGER);
        assert_eq!(says(command).await, "0 given, 1000 denied");
        assert_eq!(says(caller(&bench, "one")).await, "spiffe://example.org/app");
    }
}

#[tokio::test]
async fn another_program_of_the_same_user_gets_nothing() {
    let own = std::env::current_exe().unwrap().canonicalize().unwrap();
    let ours = vec![Selector::parse(&format!("unix:path:{}", own.display())).unwrap()];
    let bench = Bench::new(Answer::GiveIf(ours, Ca::new().context("/app")));
    let mut client = bench.client().await;
    next(&mut client.x509().await.unwrap()).await.unwrap();
    assert_eq!(says(caller(&bench, "thousand")).await, "0 given, 1000 denied");
}

#[tokio::test]
async fn one_user_with_all_its_connections_does_not_hinder_another() {
    if !is_root("one_user_with_all_its_connections_does_not_hinder_another") {
        return;
    }
    let limits = Limits { connections_per_user: 8, streams_per_user: 4, ..Limits::default() };
    let bench = Bench::with(Answer::Give(Ca::new().context("/app")), limits);
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(tokio::net::UnixStream::connect(&bench.path).await.unwrap());
    }
    let mut command = caller(&bench, "one");
    command.uid(STRANGER).gid(STRANGER);
    assert_eq!(says(command).await, "spiffe://example.org/app");
    held.clear();

    // The same for calls: the fifth waits for nobody, it is told to come back.
    let mut client = loop {
        // The server notices the closed connections one after the other.
        if let Ok(channel) = channel(&bench.path).await {
            drop(channel);
            break bench.client().await;
        }
    };
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(client.x509().await.unwrap());
    }
    let status = client.x509().await.map(|_| ()).unwrap_err();
    assert_eq!((status.code(), code(&status)), (Code::Unavailable, "delivery.busy"));
    streams.pop();
    let again = async {
        while client.x509().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, again).await.expect("a place is given back");
}

#[tokio::test]
async fn a_caller_that_ends_or_changes_loses_its_stream_though_the_connection_lives() {
    for role in ["leave it behind", "become another"] {
        let bench = Bench::new(Answer::Give(Ca::new().context("/app")));
        let mut child = caller(&bench, role).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        while bench.stub.times_asked() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(child.stdin.take());
        // The server hangs up; `cat` would read on for ever.
        let deadline = Instant::now() + SOON;
        bench.shutdown.tasks.close();
        while !bench.shutdown.tasks.is_empty() {
            assert!(Instant::now() < deadline, "{role}: the connection lives on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child.wait().unwrap();
        bench.stub.touch();
        tokio::time::sleep(WHILE).await;
        assert_eq!(bench.stub.times_asked(), 1, "{role}");
    }
}
