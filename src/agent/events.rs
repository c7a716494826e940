//! Listens to the control plane's pushes, and notices its silence.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::keeper::Keeper;
use super::withdrawals::Withdrawals;
use crate::codes::{self, Refusal};
use crate::gate::{Reason, Standing};
use crate::protocol::{Enrolled, Event, Failure};
use crate::shutdown::CancellationToken;

/// The server says `Alive` every 5 s; three of them missing is silence.
const SILENCE: Duration = Duration::from_secs(15);

/// Between two tries to open the stream.
const PAUSE: Duration = Duration::from_secs(1);

/// Follows the event stream of whichever client the tenancy has, until `token` is cancelled.
pub async fn follow(
    keeper: Arc<Keeper>,
    withdrawals: Arc<Withdrawals>,
    attest_now: Arc<Notify>,
    mut client: watch::Receiver<Option<Enrolled>>,
    token: CancellationToken,
) {
    // Whether a stream was open before: what was pushed while none was is made up for.
    let mut opened = false;
    loop {
        let present = client.borrow_and_update().clone();
        tokio::select! {
            () = token.cancelled() => return,
            // Another client (a new certificate, a new bundle): start over with it.
            changed = client.changed() => if changed.is_err() { return },
            () = listen(&keeper, &withdrawals, &attest_now, present, &mut opened) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn listen(
    keeper: &Keeper,
    withdrawals: &Withdrawals,
    attest_now: &Notify,
    client: Option<Enrolled>,
    opened: &mut bool,
) {
    let Some(client) = client else { return std::future::pending().await };
    let mut events = match client.events().await {
        Ok(events) => events,
        Err(failure) => {
            tracing::debug!("no event stream: {failure}");
            match failure.refusal().code {
                // Said here instead of on the stream.
                codes::ENROL_REVOKED | codes::GATE_REVOKED => {
                    keeper.close(Reason::new(Standing::Contraindicated, failure.refusal().clone()));
                    attest_now.notify_one();
                }
                codes::PROTOCOL_CLIENT_CERTIFICATE => attest_now.notify_one(),
                _ => {}
            }
            return;
        }
    };
    if std::mem::replace(opened, true) {
        attest_now.notify_one();
    }
    loop {
        let event = match tokio::time::timeout(SILENCE, events.next()).await {
            Ok(Ok(event)) => event,
            Ok(Err(Failure::Refused(_) | Failure::Unreachable(_))) | Err(_) => {
                // The tenancy finds out whether the control plane is really away.
                attest_now.notify_one();
                return;
            }
        };
        match event {
            Event::Alive => {}
            Event::Attest => attest_now.notify_one(),
            // Proven by the next evidence, which the tenancy brings forward.
            Event::Withdraw(withdrawal) => withdrawals.take(&withdrawal),
            Event::Revoked(refusal) => {
                let refusal = Refusal { code: codes::GATE_REVOKED, ..refusal };
                keeper.close(Reason::new(Standing::Contraindicated, refusal));
                attest_now.notify_one();
            }
        }
    }
}
