use std::process::{Child, Command, Stdio};

use super::super::{PeerMethod, Peers};
use super::*;

/// A process of ours that is held as a caller is: it has the other end of a socket as its input.
async fn held(script: &str) -> (Peer, Child) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let child = Command::new("python3")
        .args(["-c", &format!("import socket,sys,os,signal\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nsys.stdin.read(1)\n{script}")])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let peer = Peers::new(PeerMethod::Auto).identify(&stream.into_std().unwrap()).await.unwrap();
    (peer, child)
}

/// As a parent that waits at once, and so leaves nothing in `/proc`.
async fn ended(endings: &Endings, script: &str) -> Ending {
    let (peer, mut child) = held(script).await;
    let watch = endings.watch(&peer);
    drop(child.stdin.take());
    let waiting = std::thread::spawn(move || child.wait());
    let ending = watch.ended().await;
    waiting.join().unwrap().unwrap();
    ending
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_and_signals_are_told_apart_though_somebody_else_waits() {
    let endings = Endings::default();
    for round in 0..20 {
        let code = round % 3;
        assert_eq!(ended(&endings, &format!("sys.exit({code})")).await, Ending::Exited(code));
    }
    assert_eq!(ended(&endings, "os.kill(os.getpid(), signal.SIGTERM)").await, Ending::Killed(15));
    assert_eq!(ended(&endings, "os.kill(os.getpid(), signal.SIGKILL)").await, Ending::Killed(9));
    // The first thread gone before: the process's status is the last one's.
    let threads = "import threading,ctypes\n\
        threading.Thread(target=lambda: (__import__('time').sleep(0.1), os._exit(7))).start()\n\
        ctypes.CDLL(None).pthread_exit(None)";
    assert_eq!(ended(&endings, threads).await, Ending::Exited(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_nobody_waits_for_tells_by_itself() {
    let (peer, mut child) = held("sys.exit(3)").await;
    drop(child.stdin.take());
    peer.exited().await;
    assert_eq!(left_status(peer.process()), Some(3 << 8));
    child.wait().unwrap();
    assert_eq!(left_status(peer.process()), None, "what was waited for is gone, and says nothing");
}
