//! Every rule about runs, jobs, attempts, leases and workers, as functions over values.
//!
//! Two halves. *Decide* ([`Core::decide`]) takes the state, an input and the time, and returns the records to
//! commit, the answer to the input and the next moment at which something is due. *Apply* ([`State::apply`])
//! takes a record and changes the state. Nothing else changes it, so a restart that applies what was committed
//! arrives where the crash left off.
//!
//! What is not here: clocks, randomness, HTTP, SQL, TOML. Time and worker ids come in as data; run numbers and
//! fences are counted in the state.

mod answer;
pub mod core;
mod decide;
pub mod demand;
mod index;
pub mod input;
pub mod invariants;
pub mod lifecycle;
pub mod placement;
pub mod record;
mod refusal;
pub mod retry;
pub mod state;
pub mod why;

pub use crate::core::{Answer, Core, Decision, SettledRun};
pub use input::{Input, Rejection, Reply};
pub use record::{Compiled, Record};
pub use state::{Settings, Snapshot, State};
pub use why::{Names, WhyWaiting};
