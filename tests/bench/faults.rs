//! Faults between a user and the TPM, by script.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use leasehold::clock::BootInstant;
use leasehold::control_plane::dev::{Frame, OnResponse, RelayHandle, Tap, Verdict, wire};
use leasehold::tpm::Bank;
use tokio::sync::oneshot;

/// What happens to one command.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The TPM doesn't see it; the answer is this response code (see [`wire::rc`]).
    Code(u32),
    /// The command reaches the TPM later.
    Delay(Duration),
    /// The TPM runs it; the answer comes later.
    DelayAnswer(Duration),
    /// The command is lost, no answer comes.
    Drop,
    /// The TPM runs it; the answer is lost.
    DropAnswer,
    /// The TPM runs it; the connection closes after this many bytes of the answer.
    Truncate(usize),
    /// The TPM runs it; this bit of the answer, modulo its length, is another.
    FlipAnswerBit(usize),
    /// This bit of the command, modulo its length, is another when the TPM sees it.
    FlipCommandBit(usize),
    /// The connection closes; the TPM doesn't see it.
    Close,
    /// The connection closes; the TPM has run it.
    CloseAfter,
}

/// Which commands a fault meets.
#[derive(Clone, Debug)]
struct Rule {
    /// A command code, or any.
    code: Option<u32>,
    /// How many matching commands pass first.
    skip: usize,
    /// How many are met after those.
    times: usize,
    fault: Fault,
}

/// Faults by script: the first rule that is due meets the command.
#[derive(Clone, Debug, Default)]
pub struct Script {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    /// Faults of the answer to the command that each user has at the TPM.
    pending: Vec<(u64, Fault)>,
    hits: usize,
}

impl Script {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `times` commands of this code meet `fault`; `None` means any command.
    pub fn fault(&self, code: Option<u32>, times: usize, fault: Fault) {
        self.fault_after(code, 0, times, fault);
    }

    /// As [`fault`](Self::fault), after `skip` of them have passed.
    pub fn fault_after(&self, code: Option<u32>, skip: usize, times: usize, fault: Fault) {
        self.state.lock().unwrap().rules.push(Rule { code, skip, times, fault });
    }

    /// No more faults.
    pub fn clear(&self) {
        self.state.lock().unwrap().rules.clear();
    }

    /// How many commands met a fault.
    pub fn hits(&self) -> usize {
        self.state.lock().unwrap().hits
    }
}

impl State {
    fn due(&mut self, code: u32) -> Option<Fault> {
        for rule in &mut self.rules {
            if rule.times == 0 || rule.code.is_some_and(|wanted| wanted != code) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times -= 1;
            self.hits += 1;
            return Some(rule.fault.clone());
        }
        None
    }
}

impl Tap for Script {
    fn on_command(&self, command: &Frame) -> Verdict {
        let mut state = self.state.lock().unwrap();
        state.pending.retain(|(user, _)| *user != command.user);
        match state.due(command.code) {
            None => Verdict::Forward,
            Some(Fault::Code(code)) => Verdict::Answer(wire::answer(code)),
            Some(Fault::Delay(duration)) => Verdict::Delay(duration),
            Some(Fault::Drop) => Verdict::Drop,
            Some(Fault::Close) => Verdict::CloseConnection,
            Some(Fault::FlipCommandBit(bit)) => Verdict::Replace(flip_body(&command.bytes, bit)),
            Some(later) => {
                state.pending.push((command.user, later));
                Verdict::Forward
            }
        }
    }

    fn on_response(&self, command: &Frame, response: &[u8]) -> OnResponse {
        let mut state = self.state.lock().unwrap();
        let Some(position) = state.pending.iter().position(|(user, _)| *user == command.user) else {
            return OnResponse::Deliver;
        };
        match state.pending.remove(position).1 {
            Fault::DelayAnswer(duration) => OnResponse::Delay(duration),
            Fault::DropAnswer => OnResponse::Drop,
            Fault::Truncate(length) => OnResponse::ReplaceAndClose(response[..length.min(response.len())].to_vec()),
            Fault::FlipAnswerBit(bit) => OnResponse::Replace(flip(response, bit)),
            Fault::CloseAfter => OnResponse::CloseConnection,
            other => unreachable!("{other:?} is a fault of the command"),
        }
    }
}

fn flip(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let bit = bit % (bytes.len() * 8);
    bytes[bit / 8] ^= 0x80 >> (bit % 8);
    bytes
}

/// Spares the header: swtpm closes the connection over a wrong size, which is another fault.
fn flip_body(bytes: &[u8], bit: usize) -> Vec<u8> {
    let (header, body) = bytes.split_at(wire::HEADER.min(bytes.len()));
    if body.is_empty() { bytes.to_vec() } else { [header, &flip(body, bit)].concat() }
}

/// When, around a PCR read, the extend happens. Either way it lies between the moment the reader
/// sent its command and the moment it gets the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The TPM extends, then reads: the answer shows it.
    ExtendThenRead,
    /// The TPM reads, then extends: the answer is already old when it arrives.
    ReadThenExtend,
}

/// Extends a PCR between somebody's PCR_Read and its answer, once for each time it is armed.
#[derive(Clone)]
pub struct ExtendDuringRead {
    relay: RelayHandle,
    armed: Arc<Mutex<Option<Armed>>>,
}

struct Armed {
    order: Order,
    pcr: u8,
    digest: [u8; 32],
    /// Called on the relay's thread as soon as the extend was answered, before the read goes on.
    extended: Box<dyn FnOnce(BootInstant) + Send>,
    done: oneshot::Sender<BootInstant>,
}

impl ExtendDuringRead {
    pub fn new(relay: RelayHandle) -> Self {
        Self { relay, armed: Arc::default() }
    }

    /// At the next PCR_Read, extends `pcr` of the SHA-256 bank. `extended` learns when it was
    /// answered before the reader can; the receiver gets the same moment.
    pub fn arm(
        &self,
        order: Order,
        pcr: u8,
        digest: [u8; 32],
        extended: impl FnOnce(BootInstant) + Send + 'static,
    ) -> oneshot::Receiver<BootInstant> {
        let (done, receiver) = oneshot::channel();
        *self.armed.lock().unwrap() = Some(Armed { order, pcr, digest, extended: Box::new(extended), done });
        receiver
    }

    fn take(&self, order: Order, code: u32) -> Option<futures_util::future::BoxFuture<'static, ()>> {
        let mut armed = self.armed.lock().unwrap();
        if code != wire::code::PCR_READ || armed.as_ref().is_none_or(|armed| armed.order != order) {
            return None;
        }
        let Armed { pcr, digest, extended, done, .. } = armed.take()?;
        let relay = self.relay.clone();
        Some(Box::pin(async move {
            let answered = relay.execute(&wire::pcr_extend(pcr, Bank::Sha256, &digest)).await.unwrap();
            extended(answered.answered_at);
            let _ = done.send(answered.answered_at);
        }))
    }
}

impl Tap for ExtendDuringRead {
    fn on_command(&self, command: &Frame) -> Verdict {
        self.take(Order::ExtendThenRead, command.code).map_or(Verdict::Forward, Verdict::Wait)
    }

    fn on_response(&self, command: &Frame, _: &[u8]) -> OnResponse {
        self.take(Order::ReadThenExtend, command.code).map_or(OnResponse::Deliver, OnResponse::Wait)
    }
}
