//! Where tests meddle: every command and answer passes a tap.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::clock::BootInstant;

/// A user's command on its way to the TPM.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Which connection it came over, from 1.
    pub user: u64,
    /// When it had arrived whole.
    pub at: BootInstant,
    /// The command code.
    pub code: u32,
    /// The command.
    pub bytes: Vec<u8>,
}

/// What becomes of a command.
pub enum Verdict {
    /// It goes to the TPM.
    Forward,
    /// This is the answer; the TPM never sees the command.
    Answer(Vec<u8>),
    /// It goes to the TPM this much later. Other users' commands pass.
    Delay(Duration),
    /// It goes to the TPM when this is done. Other users' commands pass.
    Wait(BoxFuture<'static, ()>),
    /// It is lost: no answer ever comes.
    Drop,
    /// This goes to the TPM instead.
    Replace(Vec<u8>),
    /// The connection is closed; the TPM never sees the command.
    CloseConnection,
}

/// What becomes of an answer.
pub enum OnResponse {
    /// It goes to the user.
    Deliver,
    /// It goes to the user this much later. Other users' commands pass.
    Delay(Duration),
    /// It goes to the user when this is done. Other users' commands pass.
    Wait(BoxFuture<'static, ()>),
    /// It is lost.
    Drop,
    /// These bytes go to the user instead.
    Replace(Vec<u8>),
    /// These bytes go to the user, then the connection is closed: a torn answer.
    ReplaceAndClose(Vec<u8>),
    /// The connection is closed; the TPM has run the command.
    CloseConnection,
}

/// Sees every command and answer of users, and may meddle. Called on the relay's thread: quick,
/// never blocking; to wait, return a future.
pub trait Tap: Send + Sync {
    /// A command came.
    fn on_command(&self, command: &Frame) -> Verdict {
        let _ = command;
        Verdict::Forward
    }

    /// The TPM answered `command` with `response`.
    fn on_response(&self, command: &Frame, response: &[u8]) -> OnResponse {
        let _ = (command, response);
        OnResponse::Deliver
    }
}
