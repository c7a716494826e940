//! The part of `probe` that looks at logs: which firmware profile fits this node, why, and what the
//! node can't prove.

use std::path::Path;

use serde::Serialize;

use crate::codes::Refusal;
use crate::measurements::boot::BootLog;
use crate::measurements::sources::{BOOT_LOG, IMA_LIST, Sources, USERSPACE_LOG};
use crate::output::say;
use crate::verify::profile::{Layer, Profile, Signs, Status};

/// The device tree's name for the board; a PC has none.
const MODEL: &str = "/proc/device-tree/model";

/// What was found.
#[derive(Debug, Serialize)]
pub struct ProbedProfile {
    name: String,
    /// `proven` or `unproven`.
    status: &'static str,
    summary: String,
    why: Vec<String>,
    /// What this node can't prove, in words.
    not_proven: Vec<String>,
}

/// Looks at this node's logs. One that can't be read is said so: it needs root.
pub fn detect(manufacturer: &str) -> ProbedProfile {
    let mut not_proven = Vec::new();
    let mut kept = |result: Result<Sources, Refusal>| {
        result.inspect_err(|refusal| not_proven.push(refusal.to_string())).unwrap_or_default()
    };
    let mut boot = kept(Sources::open(Some(Path::new(BOOT_LOG)), None, None));
    let mut userspace = kept(Sources::open(None, Some(Path::new(USERSPACE_LOG)), None));
    let ima = kept(Sources::open(None, None, Some(Path::new(IMA_LIST)))).has_ima();
    let mut read = |result: Result<Option<Vec<u8>>, Refusal>| {
        result.inspect_err(|refusal| not_proven.push(refusal.to_string())).ok().flatten()
    };
    let boot = read(boot.read_boot());
    let userspace = read(userspace.read_userspace()).is_some();
    let log = boot.as_deref().map(BootLog::parse);
    if let Some(Err(refusal)) = &log {
        not_proven.push(refusal.to_string());
    }
    let model = std::fs::read_to_string(MODEL).ok();
    let signs = Signs {
        boot: log.as_ref().and_then(|log| log.as_ref().ok()),
        userspace,
        ima,
        manufacturer: Some(manufacturer.trim_matches(['\0', ' '])),
        model: model.as_deref().map(|model| model.trim_end_matches('\0')),
    };
    let (profile, why) = Profile::detect(&signs);
    not_proven.extend(limits(&profile, &signs));
    let status = match profile.status {
        Status::Proven => "proven",
        Status::Unproven => "unproven",
    };
    ProbedProfile { name: profile.name, status, summary: profile.summary, why, not_proven }
}

/// What a node of this profile with these logs can't prove.
fn limits(profile: &Profile, signs: &Signs<'_>) -> Vec<String> {
    let mut limits: Vec<String> =
        profile.not_proven.iter().map(|(layer, why)| format!("layer {layer}: {why}")).collect();
    for layer in Layer::ALL {
        if !profile.not_proven.contains_key(&layer) && !profile.pcrs.values().any(|rules| rules.layer == layer) {
            limits.push(format!("layer {layer}: the profile has no PCR of it"));
        }
    }
    if profile.ima_pcr().is_some() && !signs.ima {
        limits.push("layer runtime: there is no IMA list (boot with ima_policy=tcb)".to_owned());
    }
    if profile.status == Status::Unproven {
        limits.push(format!(
            "the profile `{}` is unproven: no log of such a platform was appraised by its makers",
            profile.name
        ));
    }
    limits
}

impl ProbedProfile {
    /// As lines of `probe`.
    pub fn print(&self) {
        say!("profile          {} ({}): {}", self.name, self.status, self.summary);
        for why in &self.why {
            say!("                 since {why}");
        }
        for what in &self.not_proven {
            say!("can't prove      {what}");
        }
    }
}
