//! A control plane in this process, whose clock is the test's: for what only shows after days.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use leasehold::clock::WallTime;
use leasehold::control_plane::server::{self, Bound};

use crate::bench::world::{Server, TRUST_DOMAIN};

/// The server and its clock. The commands of the binary reach it as they reach a process.
pub struct Clocked {
    pub server: Server,
    ahead: Arc<AtomicI64>,
    _bound: Bound,
}

impl Clocked {
    pub async fn start(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = dir.path().display();
        let config = format!(
            "trust_domain = \"{TRUST_DOMAIN}\"\nstate_dir = \"{at}/state\"\nlisten = \"127.0.0.1:{port}\"\nadmin_socket = \"{at}/admin.sock\"\n{more}\n"
        );
        let config = leasehold::config::parse(&config, "server.toml").unwrap();
        let ahead = Arc::new(AtomicI64::new(0));
        let clock = ahead.clone();
        let now = move || WallTime(WallTime::now().0.saturating_add_signed(clock.load(Ordering::SeqCst)));
        let bound = server::start_at(config, Arc::new(now)).await.unwrap();
        let server = Server { dir, port, process: None };
        server.admin(&["owner", "add", "team-a"]);
        Self { server, ahead, _bound: bound }
    }

    /// Sets its clock so many seconds ahead of the real one, or behind it.
    pub fn ahead(&self, seconds: i64) {
        self.ahead.store(seconds, Ordering::SeqCst);
    }
}
