//! The wires between the agent and its TPM: they record, they can alter an answer, and a test can
//! send commands of its own between the agent's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::swtpm::{Swtpm, free_ports};

/// A command and its answer as they went over the wires.
#[derive(Clone)]
pub struct Exchange {
    pub command: Vec<u8>,
    pub answer: Vec<u8>,
}

impl Exchange {
    /// TPM_CC.
    pub fn code(&self) -> u32 {
        u32::from_be_bytes(self.command[6..10].try_into().unwrap())
    }
}

type Alter = Box<dyn FnMut(&[u8], &mut Vec<u8>) + Send>;

#[derive(Clone)]
pub struct Bus {
    port: u16,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    tpm: TcpStream,
    record: Vec<Exchange>,
    alter: Option<Alter>,
}

impl Bus {
    /// Lies between a TPM and whoever uses [`Self::address`].
    pub fn to(swtpm: &Swtpm) -> Self {
        let tpm = TcpStream::connect((Ipv4Addr::LOCALHOST, swtpm.port)).unwrap();
        tpm.set_nodelay(true).unwrap();
        let inner = Arc::new(Mutex::new(Inner { tpm, record: Vec::new(), alter: None }));
        let (port, commands, control) = loop {
            let port = free_ports();
            if let (Ok(commands), Ok(control)) =
                (TcpListener::bind((Ipv4Addr::LOCALHOST, port)), TcpListener::bind((Ipv4Addr::LOCALHOST, port + 1)))
            {
                break (port, commands, control);
            }
        };
        let control_port = swtpm.port + 1;
        std::thread::spawn(move || {
            for client in control.incoming().flatten() {
                std::thread::spawn(move || relay(client, control_port));
            }
        });
        let bus = Self { port, inner };
        std::thread::spawn({
            let bus = bus.clone();
            move || {
                for client in commands.incoming().flatten() {
                    let bus = bus.clone();
                    std::thread::spawn(move || bus.serve(client));
                }
            }
        });
        bus
    }

    /// The address for the agent.
    pub fn address(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// Sends a command of the test's own.
    pub fn send(&self, command: &[u8]) -> Vec<u8> {
        exchange(&mut self.inner.lock().unwrap().tpm, command).unwrap()
    }

    /// TPM2_ContextSave: TPMS_CONTEXT.
    pub fn save(&self, handle: u32) -> Vec<u8> {
        let answer = self.send(&[&[0x80, 0x01, 0, 0, 0, 14, 0, 0, 0x01, 0x62][..], &handle.to_be_bytes()].concat());
        assert_eq!(code(&answer), 0);
        answer[10..].to_vec()
    }

    /// TPM2_ContextLoad: the handle.
    pub fn load(&self, context: &[u8]) -> u32 {
        let size = u32::try_from(10 + context.len()).unwrap().to_be_bytes();
        let answer = self.send(&[&[0x80, 0x01][..], &size, &[0, 0, 0x01, 0x61], context].concat());
        assert_eq!(code(&answer), 0);
        u32::from_be_bytes(answer[10..14].try_into().unwrap())
    }

    /// What went over the wires since the last call.
    pub fn take(&self) -> Vec<Exchange> {
        std::mem::take(&mut self.inner.lock().unwrap().record)
    }

    /// The codes of the commands since the last call.
    pub fn codes(&self) -> Vec<u32> {
        self.take().iter().map(Exchange::code).collect()
    }

    /// Alters answers from now on: it is given each command and may change the answer.
    pub fn alter(&self, alter: impl FnMut(&[u8], &mut Vec<u8>) + Send + 'static) {
        self.inner.lock().unwrap().alter = Some(Box::new(alter));
    }

    /// Leaves answers alone again.
    pub fn straight(&self) {
        self.inner.lock().unwrap().alter = None;
    }

    fn serve(&self, mut client: TcpStream) {
        client.set_nodelay(true).unwrap();
        while let Ok(command) = frame(&mut client) {
            let mut inner = self.inner.lock().unwrap();
            let Ok(mut answer) = exchange(&mut inner.tpm, &command) else { return };
            inner.record.push(Exchange { command: command.clone(), answer: answer.clone() });
            if let Some(alter) = &mut inner.alter {
                alter(&command, &mut answer);
            }
            drop(inner);
            if client.write_all(&answer).is_err() {
                return;
            }
        }
    }
}

/// TPM2_Startup(TPM_SU_CLEAR).
pub const STARTUP: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, 0];

/// TPM2_Shutdown(TPM_SU_STATE).
pub const SHUTDOWN_STATE: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x45, 0, 1];

/// TPM2_PCR_Extend of the SHA-256 bank with 32 equal bytes.
pub fn extend(pcr: u8, byte: u8) -> Vec<u8> {
    let mut command = vec![0x80, 0x02, 0, 0, 0, 65, 0, 0, 0x01, 0x82, 0, 0, 0, pcr];
    // An empty password for the PCR.
    command.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
    command.extend([0, 0, 0, 1, 0x00, 0x0B]);
    command.extend([byte; 32]);
    command
}

/// The response code of an answer.
pub fn code(answer: &[u8]) -> u32 {
    u32::from_be_bytes(answer[6..10].try_into().unwrap())
}

fn exchange(tpm: &mut TcpStream, command: &[u8]) -> std::io::Result<Vec<u8>> {
    tpm.write_all(command)?;
    frame(tpm)
}

/// A command or answer: its size stands in bytes 2 to 5.
fn frame(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; 10];
    stream.read_exact(&mut frame)?;
    let size = u32::from_be_bytes(frame[2..6].try_into().unwrap()) as usize;
    frame.resize(size, 0);
    stream.read_exact(&mut frame[10..])?;
    Ok(frame)
}

fn relay(mut client: TcpStream, port: u16) {
    let Ok(mut tpm) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return };
    let mut back = (tpm.try_clone().unwrap(), client.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back.0, &mut back.1);
        let _ = back.1.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut client, &mut tpm);
    // The control port serves one client at a time.
    let _ = tpm.shutdown(Shutdown::Both);
}
