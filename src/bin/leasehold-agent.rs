//! The node agent's binary; see [`leasehold::agent::cli`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    leasehold::agent::cli::main()
}
