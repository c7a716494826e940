//! Who is calling: a process held by pidfd from the moment its connection is accepted, and what
//! the kernel says of it.
//!
//! ```text
//! accept ─▶ Peers::catch ─▶ Caught::identify ─▶ Peer ─▶ observe(entries) ─▶ Observed ─▶ matches(selectors)
//!           pidfd           /proc/PID                 alive, same user, same program: before and after
//! ```
//!
//! Nothing a caller says about itself is used. A [`Peer`] is one user running one program: if the
//! process ends, changes its user or executes another program, it has to connect again. That
//! closes the way in which somebody connects, keeps the socket in a child and then turns into a
//! program with more rights.
//!
//! What this can't tell apart: processes of one user can trace, preload and so become each other,
//! so `unix:path`, `unix:sha256` and `unix:fsverity` narrow what a user gets but don't divide that user.

mod cgroup;

mod digest;

mod ending;

mod held;

mod observed;

mod peer;

mod process;

mod selector;

mod turns;

mod verity;

pub use ending::{Ending, Endings, Watch};
pub use observed::Observed;
pub use peer::{Caught, Peer, PeerMethod, Peers};
pub use selector::{KINDS, Selector};
pub use turns::{Turn, Turns};
pub use verity::Verity;
