//! Logs and metrics of both binaries; every metric's name stands here.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

/// How log lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line: every value escaped, so no input can forge a record.
    Json,
}

/// Starts logging to standard error. `LEASEHOLD_LOG` filters as in `leasehold=debug`.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("LEASEHOLD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start (two agents in one test process) keeps the first subscriber.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// The label of a refusal: its stable code.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct ByCode {
    /// `room.what`.
    pub code: &'static str,
}

/// The label of a request: its route.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct ByRoute {
    /// The route's pattern, e.g. `/v1/attest`.
    pub route: String,
}

/// The agent's metrics. Core: these names stay.
#[derive(Debug, Default)]
pub struct AgentMetrics {
    /// `leasehold_agent_releases_total`: answers of the Workload API that carried credentials.
    pub releases: Counter,
    /// `leasehold_agent_refusals_total{code}`: answers that carried none.
    pub refusals: Family<ByCode, Counter>,
    /// `leasehold_agent_affirming`: 1 under a live lease whose measurements hold, else 0.
    pub affirming: Gauge<u64, AtomicU64>,
}

impl AgentMetrics {
    /// The Prometheus text format.
    pub fn render(&self) -> String {
        let mut registry = Registry::with_prefix("leasehold_agent");
        registry.register("releases", "Answers that carried credentials", self.releases.clone());
        registry.register("refusals", "Answers that carried none", self.refusals.clone());
        registry.register("affirming", "1 under a live lease whose measurements hold", self.affirming.clone());
        rendered(&registry)
    }
}

/// The control plane's metrics. Core: these names stay.
#[derive(Debug, Default)]
pub struct ServerMetrics {
    /// `leasehold_server_requests_total{route}`: requests answered.
    pub requests: Family<ByRoute, Counter>,
}

impl ServerMetrics {
    /// The Prometheus text format.
    pub fn render(&self) -> String {
        let mut registry = Registry::with_prefix("leasehold_server");
        registry.register("requests", "Requests answered", self.requests.clone());
        rendered(&registry)
    }
}

fn rendered(registry: &Registry) -> String {
    let mut out = String::new();
    match text::encode(&mut out, registry) {
        Ok(()) => out,
        // Writing into a String can't fail; if it ever does, a scrape sees the gap.
        Err(error) => format!("# {error}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_their_promised_names() {
        let metrics = AgentMetrics::default();
        metrics.releases.inc();
        metrics.refusals.get_or_create(&ByCode { code: "gate.drift" }).inc();
        let text = metrics.render();
        assert!(text.contains("leasehold_agent_releases_total 1"), "{text}");
        assert!(text.contains("leasehold_agent_refusals_total{code=\"gate.drift\"} 1"), "{text}");
        assert!(text.contains("leasehold_agent_affirming 0"), "{text}");
        let metrics = ServerMetrics::default();
        metrics.requests.get_or_create(&ByRoute { route: "/v1/attest".to_owned() }).inc();
        assert!(metrics.render().contains("leasehold_server_requests_total{route=\"/v1/attest\"} 1"));
    }
}
