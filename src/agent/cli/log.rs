//! `log boot|userspace|ima`: what a log says, read without a TPM. Nothing is judged here; only
//! replay against a quote vouches for a log, and `data_verified` says which data a digest covers.

use std::path::PathBuf;

use clap::Subcommand;

use crate::measurements::LogHash;

/// A log to show.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// The firmware's boot event log.
    Boot {
        /// The log; without it the kernel's, /sys/kernel/security/tpm0/binary_bios_measurements.
        file: Option<PathBuf>,
        /// Only this bank: sha1, sha256, sha384 or sha512. Without it every bank of the log.
        #[arg(long, value_name = "BANK", value_parser = bank)]
        bank: Option<LogHash>,
        /// Print JSON (schema 1).
        #[arg(long)]
        json: bool,
    },
    /// systemd's log of what userspace measured.
    Userspace {
        /// The log; without it systemd's, /run/log/systemd/tpm2-measure.log.
        file: Option<PathBuf>,
        /// Print JSON (schema 1).
        #[arg(long)]
        json: bool,
    },
    /// IMA's list of what the kernel measured.
    Ima {
        /// The binary list; without it the kernel's, /sys/kernel/security/ima/binary_runtime_measurements.
        file: Option<PathBuf>,
        /// Only this bank: sha1, sha256, sha384 or sha512. Without it sha256.
        #[arg(long, value_name = "BANK", value_parser = bank)]
        bank: Option<LogHash>,
        /// List the entries too.
        #[arg(long)]
        entries: bool,
        /// Print JSON (schema 1).
        #[arg(long)]
        json: bool,
    },
}

/// `leasehold-agent log …`.
pub fn show(command: &LogCommand) -> anyhow::Result<u8> {
    match command {
        LogCommand::Boot { .. } => todo!("A"),
        LogCommand::Userspace { .. } => todo!("A"),
        LogCommand::Ima { file, bank, entries, json } => super::log_ima::show(file.as_deref(), *bank, *entries, *json),
    }
}

fn bank(name: &str) -> Result<LogHash, String> {
    LogHash::from_name(name).ok_or_else(|| "expected sha1, sha256, sha384 or sha512".to_owned())
}
