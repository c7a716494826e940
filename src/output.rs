//! Standard output, whose reader may leave before the end: `… node list | head -1` asks for one
//! line and gets it, which is neither a reason to panic (as `println!` does) nor a failure.

use std::fmt;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::codes::exit;

/// How standard output stands.
static STATE: AtomicU8 = AtomicU8::new(OPEN);
const OPEN: u8 = 0;
/// Nobody reads any more.
const LEFT: u8 = 1;
/// It can't be written, on a full disk say.
const BROKEN: u8 = 2;

/// Prints a line as `println!` does, for as long as somebody reads.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// Prints `text` and a line end.
pub fn line(text: fmt::Arguments<'_>) {
    part(format_args!("{text}\n"));
}

/// Prints `text` as it is.
pub fn part(text: fmt::Arguments<'_>) {
    if is_open() {
        note(to(&mut std::io::stdout().lock(), text));
    }
}

/// Whether printing still reaches anybody.
pub fn is_open() -> bool {
    STATE.load(Ordering::Relaxed) == OPEN
}

/// The exit code of a command that ended with `code`, if what it printed could be written.
pub fn outcome(code: u8) -> u8 {
    match STATE.load(Ordering::Relaxed) == BROKEN && code == exit::DONE {
        true => exit::FAILED,
        false => code,
    }
}

/// The state after writing, if it is another one, with what to complain of.
fn to(out: &mut impl Write, text: fmt::Arguments<'_>) -> Result<(), (u8, std::io::Error)> {
    out.write_fmt(text).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => (LEFT, error),
        _ => (BROKEN, error),
    })
}

fn note(written: Result<(), (u8, std::io::Error)>) {
    let Err((state, error)) = written else { return };
    STATE.store(state, Ordering::Relaxed);
    if state == BROKEN {
        // Standard error may be gone too; then there is nobody left to tell.
        let _ = writeln!(std::io::stderr(), "standard output: {error}");
    }
}
