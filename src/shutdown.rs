//! Shutdown and drain as values: cancel the token, then wait for the tracker with a deadline.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
pub use tokio_util::sync::CancellationToken;
pub use tokio_util::task::TaskTracker;

/// The token every task watches and the tracker that counts them.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled once, when the process should end.
    pub token: CancellationToken,
    /// Tasks that must end before the process does.
    pub tasks: TaskTracker,
}

impl Shutdown {
    /// Cancels the token and waits until every tracked task has ended or `deadline` is over.
    /// Returns whether all ended.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.token.cancel();
        self.tasks.close();
        tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok()
    }
}

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// When the signal handlers can't be installed.
pub async fn requested() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
