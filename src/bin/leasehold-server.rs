//! The control plane's binary; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    leasehold::control_plane::cli::main()
}
