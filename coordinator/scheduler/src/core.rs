//! The one entry: decide, then apply.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_types::worker::{AttemptReport, Capacity, SyncResponse, longest_hold};
use buildyard_types::{AttemptId, JobId, Millis, Timestamp, WorkerId};

use crate::input::{Input, Reply};
use crate::lifecycle::attempt::Attempt;
use crate::lifecycle::job::Job;
use crate::lifecycle::run::Run;
use crate::lifecycle::worker::Liveness;
use crate::record::Record;
use crate::state::State;
use crate::why::{self, WhyWaiting};
use crate::{answer, decide};

/// What follows from one input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// To be committed, in this order, before anything of this leaves the process. Already applied to the core.
    pub records: Vec<Record>,
    /// The answer to the input.
    pub reply: Reply,
    /// Workers whose desired state this decision changed: their held calls are to be looked at again
    /// ([`Core::answer`]) once the records are committed.
    pub news: BTreeSet<WorkerId>,
    /// Runs that left the state with this decision, as they were at the end. What is said about them to
    /// people has to be taken from here.
    pub settled: Vec<SettledRun>,
}

/// A run that is final, with every attempt removed. From here on only the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettledRun {
    /// The run.
    pub run: Run,
    /// Its jobs in file order.
    pub jobs: Vec<Job>,
    /// Its attempts, by job and number.
    pub attempts: Vec<Attempt>,
}

/// What a worker should do, measured against what it said that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The answer.
    pub response: SyncResponse,
    /// Whether it asks nothing of the worker, so that the call may be held.
    pub idle: bool,
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
    ///
    /// If their commit fails, this core knows more than the store: it has to be thrown away and made anew from
    /// what the store has.
    pub fn decide(&mut self, input: Input, now: Timestamp) -> Decision {
        decide::decide(&mut self.state, input, now)
    }

    /// The next moment at which something is due though no input arrives. The driver hands in
    /// [`Input::Tick`] then, after the other inputs that it has.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        self.state.index.timers.next()
    }

    /// What a worker with a held call should be told now, against what that call reported. To be asked only
    /// while everything that was decided is committed.
    pub fn answer(&self, worker: WorkerId, reported: &[AttemptReport]) -> Answer {
        answer::answer(&self.state, worker, reported)
    }

    /// Why a job does not run yet; `None` when it is not waiting or not known here.
    pub fn why(&self, job: JobId, now: Timestamp) -> Option<WhyWaiting> {
        self.why_each(&[job], now).remove(&job)
    }

    /// The same for many jobs, at the price of one look at the farm for each demand among them.
    pub fn why_each(&self, jobs: &[JobId], now: Timestamp) -> BTreeMap<JobId, WhyWaiting> {
        why::why_each(&self.state, jobs, now)
    }

    /// Whether a worker answers; `None` when there is no such worker.
    pub fn liveness(&self, worker: WorkerId, now: Timestamp) -> Option<Liveness> {
        self.state.liveness(worker, now)
    }

    /// What the attempts of a worker use together, those included of which something is left.
    pub fn used(&self, worker: WorkerId) -> Capacity {
        self.state.used(worker)
    }

    /// The attempts of a worker of which something is left, live or not.
    pub fn held(&self, worker: WorkerId) -> Vec<AttemptId> {
        self.state.held(worker).map(|attempt| attempt.id).collect()
    }

    /// How long a call that asks nothing of its worker is held at most.
    pub fn hold_ms(&self) -> Millis {
        longest_hold(self.state.settings.lease_ms)
    }
}
