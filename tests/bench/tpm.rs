//! A private TPM for one test.

use std::path::Path;

use leasehold::clock::BootInstant;
use leasehold::control_plane::dev::{EkCa, EkCert, Options, Relay, Swtpm, wire};
use leasehold::tpm::{Bank, PcrSelection};
use tempfile::TempDir;

/// A software TPM of its own and the relay its users connect to.
///
/// Fields drop in this order: users lose the relay, then the TPM ends, then its state goes.
pub struct TestTpm {
    pub relay: Relay,
    pub swtpm: Swtpm,
    pub directory: TempDir,
}

impl TestTpm {
    /// A blank TPM without EK certificates.
    pub fn blank() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::start(directory.path(), Options::default()).unwrap();
        Self { relay: Relay::start(swtpm.sockets()).unwrap(), swtpm, directory }
    }

    /// A TPM with EK certificates of a CA of its own.
    pub fn certified(certificates: EkCert) -> (Self, EkCa) {
        let directory = tempfile::tempdir().unwrap();
        let (swtpm, ca) = Swtpm::manufacture(directory.path(), certificates).unwrap();
        (Self { relay: Relay::start(swtpm.sockets()).unwrap(), swtpm, directory }, ca)
    }

    /// A TPM with EK certificates of a CA that other TPMs have too.
    pub fn certified_under(certificates: EkCert, ca: &EkCa) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::manufacture_under(directory.path(), certificates, ca).unwrap();
        Self { relay: Relay::start(swtpm.sockets()).unwrap(), swtpm, directory }
    }

    /// `swtpm:host=…,port=…` of the relay.
    pub fn address(&self) -> String {
        self.relay.address()
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Extends `pcr` of the SHA-256 bank and returns when the TPM had answered.
    pub async fn extend(&self, pcr: u8, digest: [u8; 32]) -> BootInstant {
        self.relay.execute(&wire::pcr_extend(pcr, Bank::Sha256, &digest)).await.unwrap().answered_at
    }

    /// What a PCR_Read of `pcr` says: update counter and value.
    pub async fn read(&self, pcr: u8) -> (u32, Vec<u8>) {
        let selection = PcrSelection::new(Bank::Sha256, [pcr]).unwrap();
        let answer = self.relay.exchange(&wire::pcr_read(selection)).await.unwrap();
        let mut answer = wire::parse_pcr_read(&answer.response).unwrap();
        (answer.update_counter, answer.values.remove(0))
    }

    /// Handles that exist from `first` on, e.g. 0x8000_0000 for transient objects.
    pub async fn handles(&self, first: u32) -> Vec<u32> {
        let answer = self.relay.exchange(&wire::get_handles(first)).await.unwrap();
        wire::parse_handles(&answer.response).unwrap()
    }
}
