//! Commands about stored sets: each is one command of the admin socket.

use std::path::Path;

use super::super::args::Shared;
use super::super::client::Client;
use super::super::print;
use super::ReferenceCommand;
use super::sources::read_document;
use crate::codes::exit::DONE;
use crate::codes::{self, Refusal};
use crate::control_plane::admin::Command;

/// Runs a command on the server.
///
/// # Errors
/// The server's refusal.
pub fn run(cli: &Shared, client: &Client, command: ReferenceCommand) -> Result<u8, Refusal> {
    print::facts(&client.call(&request(command)?)?, cli.json);
    Ok(DONE)
}

fn request(command: ReferenceCommand) -> Result<Command, Refusal> {
    Ok(match command {
        ReferenceCommand::List => Command::ReferenceList,
        ReferenceCommand::Import { set } => Command::ReferenceImport { document: document(&set)? },
        ReferenceCommand::Assign { name, target } => {
            Command::ReferenceAssign { name, node: target.node, node_group: target.node_group }
        }
        ReferenceCommand::Unassign { target } => {
            Command::ReferenceUnassign { node: target.node, node_group: target.node_group }
        }
        ReferenceCommand::Retire { node: Some(node), .. } => Command::ReferenceRetire { node },
        ReferenceCommand::Retire { name: Some(name), .. } => Command::ReferenceRetireSet { name },
        _ => return Err(Refusal::new(codes::ADMIN_INVALID, "BUG: this command is carried out elsewhere")),
    })
}

/// The document in hexadecimal. What is no document yet becomes an unsigned one.
fn document(path: &Path) -> Result<String, Refusal> {
    Ok(hex::encode(read_document(path)?.bytes))
}
