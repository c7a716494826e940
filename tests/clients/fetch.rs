//! A stock SPIFFE client: nothing of Leasehold in it, only the crate `spiffe`.
//!
//! Fetches its X.509-SVID from SPIFFE_ENDPOINT_SOCKET and prints its SPIFFE ID. With `--watch` it
//! keeps the stream and prints each rotation until the stream ends.
//! Exit codes: 0 fetched, 1 another failure, 4 refused, 5 unavailable.

use std::process::ExitCode;

use futures_util::StreamExt;
use spiffe::WorkloadApiClient;
use spiffe::workload_api::error::WorkloadApiError;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let watch = std::env::args().nth(1).is_some_and(|argument| argument == "--watch");
    let Err(error) = fetch(watch).await else { return ExitCode::SUCCESS };
    let (word, code) = match &error {
        WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_) => ("refused", 4),
        WorkloadApiError::Transport(_) => ("unavailable", 5),
        _ => ("failed", 1),
    };
    eprintln!("{word}: {error}");
    ExitCode::from(code)
}

async fn fetch(watch: bool) -> Result<(), WorkloadApiError> {
    let client = WorkloadApiClient::connect_env().await?;
    if !watch {
        println!("{}", client.fetch_x509_svid().await?.spiffe_id());
        return Ok(());
    }
    let mut updates = client.stream_x509_contexts().await?;
    while let Some(update) = updates.next().await {
        for svid in update?.svids() {
            println!("{}", svid.spiffe_id());
        }
    }
    Ok(())
}
