//! `doctor`: walks the chain from the configuration to the released credential and names the
//! link that is broken, with what would mend it.

use std::path::Path;

use serde::Serialize;

use super::{ask, print_json};
use crate::codes::exit;
use crate::config::{self, AgentConfig};
use crate::gate::Standing;
use crate::output::say;
use crate::tpm::TpmAddress;
use crate::verify::appraisal::LayerStanding;

/// One link. Schema version 1.
#[derive(Debug, Serialize)]
struct Link {
    name: &'static str,
    holds: bool,
    detail: String,
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    schema: u32,
    links: Vec<Link>,
}

/// `leasehold-agent doctor`.
pub async fn doctor(config_file: &Path, json: bool) -> anyhow::Result<u8> {
    let (links, code) = examine(config_file).await;
    let diagnosis = Diagnosis { schema: 1, links };
    if json {
        print_json(&diagnosis)?;
    } else {
        for link in &diagnosis.links {
            say!("{} {:15} {}", if link.holds { "ok    " } else { "BROKEN" }, link.name, link.detail);
        }
    }
    Ok(code)
}

/// The name of a layer's link.
fn layer_link(layer: &str) -> &'static str {
    match layer {
        "firmware" => "firmware",
        "boot" => "boot",
        "userspace" => "userspace",
        _ => "runtime",
    }
}

/// The links up to and including the first broken one: what hangs on it says nothing.
async fn examine(config_file: &Path) -> (Vec<Link>, u8) {
    let mut links = Vec::new();
    let mut link = |name, holds, detail: String| {
        links.push(Link { name, holds, detail });
        holds
    };
    let config = match config::load::<AgentConfig>(config_file) {
        Ok(config) => config,
        Err(refusal) => {
            link("configuration", false, refusal.to_string());
            return (links, exit::USAGE);
        }
    };
    link("configuration", true, config_file.display().to_string());
    if let Err(error) = TpmAddress::parse(&config.tpm.address) {
        link("TPM address", false, error.to_string());
        return (links, exit::USAGE);
    }
    let status = match ask(&config.sockets.admin).await {
        Ok(status) => status,
        Err(error) => {
            link("agent", false, format!("{error:#}"));
            return (links, exit::UNAVAILABLE);
        }
    };
    link("agent", true, format!("version {}, answering at {}", status.version, config.sockets.admin.display()));
    let trouble = status.trouble.as_ref().or(status.reason.as_ref());
    let tpm_trouble =
        [&status.reason, &status.trouble].into_iter().flatten().find(|r| r.code.as_str().starts_with("tpm."));
    if let Some(refusal) = tpm_trouble {
        link("TPM", false, refusal.to_string());
        return (links, exit::UNAVAILABLE);
    }
    link("TPM", true, config.tpm.address.clone());
    if let Some(refusal) = trouble.filter(|r| r.code.as_str().starts_with("protocol.")) {
        link("control plane", false, refusal.to_string());
        return (links, exit::UNAVAILABLE);
    }
    link("control plane", true, config.control_plane.address.clone());
    if let Some(refusal) = trouble.filter(|r| r.code.as_str().starts_with("enrol.")) {
        link("admission", false, refusal.to_string());
        return (links, exit::UNAVAILABLE);
    }
    link("admission", true, status.node.clone().unwrap_or_default());
    let why = trouble.map_or_else(String::new, ToString::to_string);
    // Each layer by itself, so that the one that stands badly is seen among those that stand well.
    for layer in &status.layers {
        let holds = layer.standing != LayerStanding::Contraindicated;
        let found = status.findings.iter().filter(|finding| finding.layer == layer.layer);
        let words: Vec<String> = std::iter::once(layer.why.clone())
            .chain(found.flat_map(|finding| [finding.refusal.to_string(), finding.accept.clone()]))
            .filter(|words| !words.is_empty())
            .collect();
        link(layer_link(&layer.layer), holds, words.join("; "));
    }
    if status.standing != Standing::Affirming {
        link("lease", false, format!("{}: {why}", status.standing));
        return (links, status.exit_code());
    }
    let left = status.lease.as_ref().map_or(0, |lease| lease.seconds_left);
    link("lease", true, format!("another {left} s"));
    // The lease holds, but for how long: without its rules or its logs the next new entry ends it.
    let amiss = trouble.filter(|r| ["verify.", "measurements."].iter().any(|room| r.code.as_str().starts_with(room)));
    if let Some(refusal) = amiss {
        let name = if refusal.code.as_str().starts_with("verify.") { "rules" } else { "logs" };
        link(name, false, refusal.to_string());
        return (links, exit::FAILED);
    }
    if status.workloads.is_empty() {
        link(
            "registrations",
            false,
            "no workload is registered for this node: `leasehold-server workload add`".to_owned(),
        );
        return (links, exit::FAILED);
    }
    let count = status.workloads.len();
    link("registrations", true, format!("{count} workload{}", if count == 1 { "" } else { "s" }));
    match status.workloads.iter().find(|workload| workload.svid_seconds_left.is_none()) {
        Some(workload) => {
            link("credentials", false, format!("no SVID is held for {}: {why}", workload.id));
            (links, exit::FAILED)
        }
        None => {
            link("credentials", true, "an SVID is held for each".to_owned());
            (links, exit::DONE)
        }
    }
}
