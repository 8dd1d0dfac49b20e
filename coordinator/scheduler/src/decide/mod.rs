//! What follows from an input. Each file handles one kind of inputs.

mod due;
mod jobs;
mod runs;
mod workers;

use std::collections::BTreeSet;

use buildyard_types::{AttemptId, Timestamp, WorkerId};

use crate::core::{Decision, SettledRun};
use crate::input::{Input, Reply};
use crate::invariants::broken_by;
use crate::lifecycle::attempt::{Attempt, AttemptState};
use crate::lifecycle::job::{JobEvent, JobState};
use crate::placement;
use crate::record::Record;
use crate::state::State;

/// A decision in the making. Each record is applied as soon as it is made, so that what is decided next within
/// the same input already sees it.
pub(crate) struct Deciding<'s> {
    state: &'s mut State,
    now: Timestamp,
    records: Vec<Record>,
    news: BTreeSet<WorkerId>,
    settled: Vec<SettledRun>,
}

/// Decides one input.
pub(crate) fn decide(state: &mut State, input: Input, now: Timestamp) -> Decision {
    let mut deciding =
        Deciding { state, now, records: Vec::new(), news: BTreeSet::new(), settled: Vec::new() };
    let reply = deciding.input(input);
    deciding.place_all();
    let reply = deciding.answered(reply);
    let Deciding { records, news, settled, .. } = deciding;
    Decision { records, reply, news, settled }
}

/// What is answered once everything that follows from the input is decided.
enum Pending {
    /// This.
    Reply(Reply),
    /// The desired state of a worker, which placement may still change.
    Sync { worker: WorkerId, attempts: Vec<buildyard_types::worker::AttemptReport>, at_once: bool },
}

impl Deciding<'_> {
    fn input(&mut self, input: Input) -> Pending {
        let reply = match input {
            Input::Tick => {
                self.everything_due();
                Reply::Done
            }
            Input::Submit { source, file, requested_by, key } => self.submit(source, file, requested_by, key),
            Input::Compiled { run, result } => self.compiled(run, result),
            Input::CancelRun { run, by } => self.cancel_run(run, by),
            Input::CancelJob { job, by } => self.cancel_job(job, by),
            Input::Enrol { worker, name, pools, offer } => self.enrol(worker, name, pools, offer),
            Input::Sync { worker, session, sequence, offer, attempts } => {
                return self.sync(worker, session, sequence, offer, attempts);
            }
            Input::Cordon { worker, cordoned } => self.cordon(worker, cordoned),
            Input::RemoveWorker { worker } => self.remove_worker(worker),
        };
        Pending::Reply(reply)
    }

    fn answered(&self, pending: Pending) -> Reply {
        match pending {
            Pending::Reply(reply) => reply,
            Pending::Sync { worker, attempts, at_once } => {
                let answer = crate::answer::answer(self.state, worker, &attempts);
                Reply::Sync { response: answer.response, idle: answer.idle && !at_once }
            }
        }
    }

    /// Applies a record and keeps it for the commit.
    fn push(&mut self, record: Record) {
        debug_assert_eq!(broken_by(self.state, &record), [], "a decision broke an invariant");
        self.news.extend(concerned_worker(self.state, &record));
        self.settled.extend(self.state.apply(&record));
        self.records.push(record);
    }

    fn place_all(&mut self) {
        let mut cursor = None;
        while let Some((job, worker)) = placement::next(self.state, &mut cursor) {
            let Some(known) = self.state.jobs.get(&job) else {
                return;
            };
            let attempt = job.attempt(known.attempts + 1);
            let Some(state) = known.state.on(JobEvent::Place { attempt, worker }, self.now) else {
                return;
            };
            let attempt = self.new_attempt(attempt, worker);
            self.push(Record::AttemptCreated { attempt });
            self.push(Record::JobChanged { job, state });
        }
    }

    fn new_attempt(&self, id: AttemptId, worker: WorkerId) -> Attempt {
        Attempt {
            id,
            worker,
            fence: self.state.next_fence,
            placed_at: self.now,
            started_at: None,
            state: AttemptState::Live,
        }
    }

    fn worker_name(&self, worker: WorkerId) -> String {
        self.state.workers.get(&worker).map_or_else(|| worker.to_string(), |known| known.name.clone())
    }
}

/// The worker whose desired state a record changes.
fn concerned_worker(state: &State, record: &Record) -> Option<WorkerId> {
    match record {
        Record::AttemptCreated { attempt } => Some(attempt.worker),
        Record::AttemptChanged { attempt, .. } => state.attempts.get(attempt).map(|attempt| attempt.worker),
        Record::JobChanged { state: JobState::Stopping { worker, .. }, .. } => Some(*worker),
        Record::WorkerRemoved { worker } => Some(*worker),
        Record::JobChanged { .. }
        | Record::RunCreated { .. }
        | Record::RunCompiled { .. }
        | Record::RunChanged { .. }
        | Record::AttemptStarted { .. }
        | Record::WorkerChanged { .. } => None,
    }
}
