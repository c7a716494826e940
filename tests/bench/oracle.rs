//! What really happened and what clients saw, on one clock (CLOCK_BOOTTIME), append-only.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use leasehold::clock::BootInstant;
use serde::Serialize;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When; for an extend, when the TPM had answered it.
    pub at: BootInstant,
    #[serde(flatten)]
    pub what: What,
}

/// What happened. A request is named by client and number; a stream by the request that opened it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// Ground truth: a lease was granted, on measurements taken at `measured_at`.
    LeaseGranted { measured_at: BootInstant, expires_at: BootInstant },
    /// Ground truth: a PCR of the lease's selection was extended.
    Extended { pcr: u8 },
    /// Ground truth: the TPM was reset.
    Reset,
    /// Ground truth: the node or workload was revoked; the control plane had said so.
    Revoked,
    /// Ground truth: the task ended or its scope changed.
    Ended,
    /// Client: about to send. Stamped before sending, so a request is never older than it looks.
    RequestSent { client: u32, request: u64 },
    /// Client: a credential was received, first or pushed. Stamped after receipt.
    Released { client: u32, request: u64 },
    /// Client: refused without a credential.
    Refused { client: u32, request: u64, status: Status },
    /// Client: the stream ended after at least one credential.
    StreamEnded { client: u32, request: u64, status: Status },
    /// The test stopped watching; what came later is unknown.
    Closed,
}

/// How a request or stream ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// `PermissionDenied`: no identity issued.
    Denied,
    /// `Unavailable`: try later.
    Unavailable,
    /// The client itself hung up.
    Cancelled,
    /// Anything else.
    Other(String),
}

/// The log. Clones write to the same one.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    events: Arc<Mutex<Vec<Event>>>,
}

impl Oracle {
    /// Records what happens now. The moment is taken under the lock: the log is in its order.
    pub fn record(&self, what: What) -> BootInstant {
        let mut events = self.events.lock().unwrap();
        let at = BootInstant::now();
        events.push(Event { at, what });
        at
    }

    /// Records what happened at a known moment, e.g. an extend's answer at the relay.
    pub fn record_at(&self, at: BootInstant, what: What) {
        self.events.lock().unwrap().push(Event { at, what });
    }

    /// Everything so far, by time.
    pub fn events(&self) -> Vec<Event> {
        let mut events = self.events.lock().unwrap().clone();
        events.sort_by_key(|event| event.at);
        events
    }

    /// Writes the log as JSON lines.
    pub fn dump(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for event in self.events() {
            serde_json::to_writer(&mut file, &event)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }
}
