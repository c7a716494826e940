//! `run`: the server in the foreground.

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit};

use super::args::{Cli, RunOptions};
use super::{DONE, FAILED, complain};
use crate::codes::{self, Refusal};
use crate::config::{self, ServerConfig};
use crate::control_plane::dev::command::{self, DevArguments};
use crate::control_plane::server;
use crate::{shutdown, telemetry};

/// Runs the server until a signal asks it to end.
pub fn run(cli: &Cli, options: &RunOptions) -> ExitCode {
    telemetry::start(options.log);
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&Refusal::new(codes::STORE_FAILED, format!("no runtime: {error}"))),
    };
    match runtime.block_on(serve(cli)) {
        Ok(true) => ExitCode::from(DONE),
        Ok(false) => ExitCode::from(FAILED),
        Err(refusal) => complain(&refusal),
    }
}

/// Runs the development mode until a signal asks it to end.
pub fn dev(cli: &Cli, arguments: DevArguments) -> ExitCode {
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(command::run(arguments, cli.json)));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("leasehold-server dev: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

async fn serve(cli: &Cli) -> Result<bool, Refusal> {
    let file = cli.config.as_deref().ok_or_else(|| {
        Refusal::new(codes::CONFIG_INVALID, "no configuration").expected("--config FILE; the least is trust_domain")
    })?;
    let mut config: ServerConfig = config::load(file)?;
    if let Some(socket) = &cli.admin_socket {
        config.admin_socket = socket.clone();
    }
    let bound = server::start(config).await?;
    let signal = shutdown::requested()
        .await
        .map_err(|e| Refusal::new(codes::STORE_FAILED, format!("signals can't be awaited: {e}")))?;
    tracing::info!(signal, "stopping");
    let ended = bound.stop().await;
    if !ended {
        tracing::warn!("not everything under way ended in time");
    }
    Ok(ended)
}

/// Each connection takes a descriptor, and the usual soft limit of 1024 is below our own bounds.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if let Err(error) =
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
