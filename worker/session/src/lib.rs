//! What a worker does about desired state, exits and silence, as functions over values.
//!
//! A [`Session`] holds every attempt of one worker and what is known of it. It is told what happened
//! ([`Event`]) and says what to do ([`Action`]); the worker's shell does it and reports back. It knows no
//! Docker, no HTTP and no clock, so that the simulation runs the very same code beside the scheduler.
//!
//! | race | what keeps it harmless |
//! |---|---|
//! | an answer arrives twice, late, or out of order | an attempt is begun once; an order at or below the greatest fence that was ever forgotten is old news |
//! | an answer arrives after its own lease | nothing of it is begun |
//! | a stop overtakes its order | the attempt is noted as ended, so that the order finds it over |
//! | the coordinator is silent | [`Action::Fence`] at the end of the lease less a margin; init does the same by itself |
//! | the worker dies | its journal is adopted; init stops the steps when nobody renews them |
//! | the lease ends while an attempt's log and artifacts are being sent | nothing of it runs, so nothing is fenced and its end counts |
//! | the worker comes back after its lease | [`Session::may_start`] is false until the coordinator answered |
//!
//! The margin is a fifth of the lease: 3 s of 15 s. It has to cover killing the steps; the coordinator adds its
//! own grace of 10 s behind the lease. Whenever a coordinator goes away, two fifths of the lease (6 s) are
//! left to reach it again before an attempt is killed: [`Session::call_terms`]. What the shell waits between two tries
//! comes off that, and half of it goes by where a call is lost without a sign.

mod event;
mod session;
#[cfg(test)]
mod tests;

pub use event::{Action, Event, Held, JournalEntry};
pub use session::{CallTerms, Session};
