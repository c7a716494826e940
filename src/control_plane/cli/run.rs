//! `run`: the server in the foreground.

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit};

use super::args::Shared;
use super::{DONE, FAILED, complain};
use crate::codes::{self, Refusal};
use crate::config::{self, ServerConfig};
use crate::control_plane::dev::{self, command::DevArguments};
use crate::control_plane::server;
use crate::output;
use crate::shutdown;

/// Runs the server until a signal asks it to end.
pub fn run(options: &Shared, accept_clock: bool) -> ExitCode {
    raise_descriptor_limit();
    match runtime().and_then(|runtime| runtime.block_on(serve(options, accept_clock))) {
        Ok(true) => ExitCode::from(DONE),
        Ok(false) => ExitCode::from(FAILED),
        Err(refusal) => complain(&refusal),
    }
}

/// Runs `dev`.
pub fn dev(arguments: DevArguments, json: bool) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(refusal) => return complain(&refusal),
    };
    match runtime.block_on(dev::command::run(arguments, json)) {
        Ok(code) => ExitCode::from(output::outcome(code)),
        Err(error) => {
            eprintln!("leasehold-server: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Refusal> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Refusal::new(codes::STORE_FAILED, format!("no runtime: {e}")))
}

async fn serve(options: &Shared, accept_clock: bool) -> Result<bool, Refusal> {
    let file = options.config.as_deref().ok_or_else(|| {
        Refusal::new(codes::CONFIG_INVALID, "no configuration")
            .expected("--config FILE; `leasehold-server run --help` shows a first one")
    })?;
    let mut config: ServerConfig = config::load(file)?;
    config.accept_clock = accept_clock;
    if let Some(socket) = &options.admin_socket {
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
