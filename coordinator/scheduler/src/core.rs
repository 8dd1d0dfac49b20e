//! The one entry: decide, then apply.

use buildyard_types::Timestamp;

use crate::input::{Input, Reply};
use crate::record::Record;
use crate::state::State;

/// What follows from one input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// To be committed, in this order, before anything of this leaves the process. Already applied to the core.
    pub records: Vec<Record>,
    /// The answer to the input.
    pub reply: Reply,
}

/// The scheduler.
#[derive(Debug, Clone)]
pub struct Core {
    state: State,
}

impl Core {
    /// The state as it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes up a state that was read from the store.
    pub fn new(state: State) -> Self {
        Self { state }
    }

    /// Decides one input and applies the records.
    pub fn decide(&mut self, _input: Input, _now: Timestamp) -> Decision {
        Decision { records: Vec::new(), reply: Reply::Done }
    }
}
