//! Logs and metrics of both binaries; every metric's name stands here.

use std::io::{self, Write};
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
    /// A line for people, whatever is in it.
    #[default]
    Text,
    /// A JSON object a line: every value escaped, so no input can forge a record.
    Json,
}

/// Writes a log line as one line of text. Paths of programs and of cgroups stand in it, whose names others chose: what
/// would end the line, steer a terminal or turn its text around is written as an escape.
///
/// A subscriber writes each event in one call.
#[derive(Debug)]
pub struct OneLine<W>(pub W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let mut shown = String::with_capacity(text.len());
        for character in line.chars() {
            let turns = matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            match character.is_control() || turns {
                true => shown.extend(character.escape_default()),
                false => shown.push(character),
            }
        }
        shown.push('\n');
        self.0.write_all(shown.as_bytes()).map(|()| event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Starts logging to standard error. `LEASEHOLD_LOG` filters as in `leasehold=debug`.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("LEASEHOLD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    // A second start (two agents in one test process) keeps the first subscriber.
    let _ = match format {
        LogFormat::Text => builder.with_writer(|| OneLine(io::stderr())).with_ansi(false).try_init(),
        LogFormat::Json => builder.with_writer(io::stderr).json().try_init(),
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
    fn no_name_forges_a_line() {
        let lines = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        struct Kept(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
        impl Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let kept = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || OneLine(Kept(kept.clone()))).finish();
        tracing::subscriber::with_default(subscriber, || {
            let path = "/tmp/a\n2026-01-01T00:00:00Z INFO all is well\r\u{1b}[2J\u{202e}é";
            let refusal = crate::codes::Refusal::new(crate::codes::WORKLOAD_NO_MATCH, path);
            tracing::info!(%refusal, "nothing released: {refusal}");
            tracing::info!("the next");
        });
        let text = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.trim_end_matches('\n').replace('\n', "").chars().any(char::is_control), "{text:?}");
        assert!(text.contains("a\\n2026") && text.contains("\\u{202e}é"), "{text}");
    }

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
