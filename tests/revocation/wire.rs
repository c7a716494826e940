//! The line between an agent and its control plane, which can be cut or held up in either direction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the line does now.
#[derive(Debug, Default)]
struct State {
    /// Bytes towards the server wait.
    up: AtomicBool,
    /// Bytes towards the agent wait.
    down: AtomicBool,
    /// New connections are refused.
    cut: AtomicBool,
}

/// A line; its connections end with it.
#[derive(Debug)]
pub struct Wire {
    pub port: u16,
    state: Arc<State>,
    /// Grows when all connections are to end.
    broken: watch::Sender<u64>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Wire {
    /// A line to this port.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (state, broken) = (Arc::new(State::default()), watch::Sender::new(0));
        let accepting = tokio::spawn({
            let (state, broken) = (state.clone(), broken.clone());
            async move {
                while let Ok((near, _)) = listener.accept().await {
                    if state.cut.load(Ordering::SeqCst) {
                        continue;
                    }
                    let (state, mut broken) = (state.clone(), broken.subscribe());
                    broken.mark_unchanged();
                    tokio::spawn(async move {
                        let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                        let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                        tokio::select! {
                            () = carry(near_read, far_write, &state.up) => {}
                            () = carry(far_read, near_write, &state.down) => {}
                            _ = broken.changed() => {}
                        }
                    });
                }
            }
        });
        Self { port: own, state, broken, accepting }
    }

    /// Ends every connection and lets no new one through.
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::SeqCst);
        self.broken.send_modify(|count| *count += 1);
    }

    /// Lets everything through again; what was held up is lost with its connection.
    pub fn mend(&self) {
        self.broken.send_modify(|count| *count += 1);
        for held in [&self.state.up, &self.state.down, &self.state.cut] {
            held.store(false, Ordering::SeqCst);
        }
    }

    /// What the agent says waits on the way; what it hears comes through.
    pub fn hold_up(&self) {
        self.state.up.store(true, Ordering::SeqCst);
    }

    /// What the agent would hear waits on the way.
    pub fn hold_down(&self) {
        self.state.down.store(true, Ordering::SeqCst);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
        self.broken.send_modify(|count| *count += 1);
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, held: &AtomicBool) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        while held.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
