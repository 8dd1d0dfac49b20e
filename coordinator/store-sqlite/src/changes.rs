//! A batch of records, folded into the rows that it changes.
//!
//! A record says what *is*, so of several records about one thing the last counts, and the order between things
//! matters only as far as one row refers to another: runs, then jobs, then attempts. Hence a batch of any size
//! becomes one statement for each kind of change, its rows handed over as one JSON array. That, and not the
//! commit, is what makes a large batch fast: a statement costs a change of threads.

use std::collections::BTreeMap;

use buildyard_scheduler::Record;
use buildyard_scheduler::lifecycle::attempt::{Attempt, AttemptState};
use buildyard_scheduler::lifecycle::job::{Job, JobState};
use buildyard_scheduler::lifecycle::run::{Run, RunState};
use buildyard_scheduler::lifecycle::worker::Worker;
use buildyard_store::{AuditLine, Batch, Token};
use buildyard_types::api::EventView;
use buildyard_types::{AttemptId, JobId, RunId, Timestamp, WorkerId};
use serde::Serialize;

use crate::seal::{seal, word};

/// Rows as a JSON array, and how many they are.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) json: String,
    pub(crate) count: u64,
}

impl Rows {
    fn of<T: Serialize>(rows: &[T]) -> Self {
        if rows.is_empty() {
            return Self::default();
        }
        let json = serde_json::to_string(rows).expect("rows are tuples of text and numbers");
        Self { json, count: rows.len() as u64 }
    }
}

/// What a batch changes, ready for the statements.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) records: usize,
    /// Greatest run number in it.
    pub(crate) last_run: i64,
    /// Greatest fence in it.
    pub(crate) last_fence: i64,
    pub(crate) runs_created: Rows,
    pub(crate) request_keys: Rows,
    pub(crate) runs_changed: Rows,
    pub(crate) job_specs: Rows,
    pub(crate) jobs_created: Rows,
    pub(crate) jobs_changed: Rows,
    pub(crate) attempts_created: Rows,
    pub(crate) attempts_changed: Rows,
    pub(crate) workers_changed: Rows,
    pub(crate) workers_removed: Rows,
    pub(crate) events: Rows,
    pub(crate) audit: Vec<AuditLine>,
    pub(crate) tokens: Vec<Token>,
}

/// A number as SQLite keeps it. Ids and times do not reach 2^63; a time that says "never" by its greatest value
/// stays the greatest.
pub(crate) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[derive(Default)]
struct RunChange<'b> {
    created: Option<&'b Run>,
    pipeline: Option<&'b str>,
    state: Option<&'b RunState>,
}

#[derive(Default)]
struct JobChange<'b> {
    created: Option<&'b Job>,
    state: Option<&'b JobState>,
}

#[derive(Default)]
struct AttemptChange<'b> {
    created: Option<&'b Attempt>,
    started: Option<Timestamp>,
    state: Option<&'b AttemptState>,
}

#[derive(Default)]
struct Folded<'b> {
    runs: BTreeMap<RunId, RunChange<'b>>,
    jobs: BTreeMap<JobId, JobChange<'b>>,
    attempts: BTreeMap<AttemptId, AttemptChange<'b>>,
    workers: BTreeMap<WorkerId, Option<&'b Worker>>,
}

impl<'b> Folded<'b> {
    fn take(&mut self, record: &'b Record) {
        match record {
            Record::RunCreated { run } => {
                self.runs.insert(run.id, RunChange { created: Some(run), ..RunChange::default() });
            }
            Record::RunCompiled { run, pipeline, jobs } => {
                self.runs.entry(*run).or_default().pipeline = Some(pipeline);
                let created = |job| JobChange { created: Some(job), state: None };
                self.jobs.extend(jobs.iter().map(|job| (job.id, created(job))));
            }
            Record::RunChanged { run, state } => self.runs.entry(*run).or_default().state = Some(state),
            Record::JobChanged { job, state } => self.jobs.entry(*job).or_default().state = Some(state),
            Record::AttemptCreated { attempt } => {
                let change = AttemptChange { created: Some(attempt), ..AttemptChange::default() };
                self.attempts.insert(attempt.id, change);
            }
            Record::AttemptStarted { attempt, at } => {
                self.attempts.entry(*attempt).or_default().started = Some(*at);
            }
            Record::AttemptChanged { attempt, state } => {
                self.attempts.entry(*attempt).or_default().state = Some(state);
            }
            Record::WorkerChanged { worker } => {
                self.workers.insert(worker.id, Some(worker));
            }
            Record::WorkerRemoved { worker } => {
                self.workers.insert(*worker, None);
            }
        }
    }
}

impl Changes {
    /// Folds a batch.
    pub(crate) fn of(batch: &Batch) -> Self {
        let mut folded = Folded::default();
        batch.records.iter().for_each(|record| folded.take(record));
        let mut changes = Self {
            records: batch.records.len(),
            audit: batch.audit.clone(),
            tokens: batch.tokens.clone(),
            ..Self::default()
        };
        changes.put_runs(&folded.runs);
        changes.put_jobs(&folded.jobs);
        changes.put_attempts(&folded.attempts);
        changes.put_workers(&folded.workers);
        changes.put_events(&batch.events);
        changes
    }

    fn put_runs(&mut self, runs: &BTreeMap<RunId, RunChange<'_>>) {
        let (mut created, mut changed, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for (id, change) in runs {
            let text = id.to_string();
            let number = int(id.0);
            let pipeline = |name: &str| seal("pipeline", &text, &name);
            let Some(run) = change.created else {
                let state = change.state.map(|state| seal("run state", &text, state));
                let name = change.state.map(RunState::name);
                let pipeline = change.pipeline.map(pipeline);
                changed.push((number, pipeline, state, name, change.state.and_then(final_ms)));
                continue;
            };
            let state = change.state.unwrap_or(&run.state);
            created.push((
                number,
                &run.source.repository,
                &run.source.commit,
                int(run.created_at.0),
                seal("run", &text, run),
                change.pipeline.or(run.pipeline.as_deref()).map(pipeline),
                seal("run state", &text, state),
                state.name(),
                final_ms(state),
            ));
            keys.extend(run.key.as_ref().map(|key| (key, number, word("key", key, &number))));
            self.last_run = self.last_run.max(number);
        }
        self.runs_created = Rows::of(&created);
        self.runs_changed = Rows::of(&changed);
        self.request_keys = Rows::of(&keys);
    }

    fn put_jobs(&mut self, jobs: &BTreeMap<JobId, JobChange<'_>>) {
        let (mut specs, mut created, mut changed) = (Vec::new(), Vec::new(), Vec::new());
        for (id, change) in jobs {
            let text = id.to_string();
            let (run, index) = (int(id.run.0), id.index.0);
            let row = |state: &JobState| (run, index, seal("job state", &text, state), state.name());
            match (change.created, change.state) {
                (Some(job), state) => {
                    specs.push((run, index, seal("job", &text, job)));
                    created.push(row(state.unwrap_or(&job.state)));
                }
                (None, Some(state)) => changed.push(row(state)),
                (None, None) => {}
            }
        }
        self.job_specs = Rows::of(&specs);
        self.jobs_created = Rows::of(&created);
        self.jobs_changed = Rows::of(&changed);
    }

    fn put_attempts(&mut self, attempts: &BTreeMap<AttemptId, AttemptChange<'_>>) {
        let (mut created, mut changed) = (Vec::new(), Vec::new());
        for (id, change) in attempts {
            let text = id.to_string();
            let key = (int(id.job.run.0), id.job.index.0, id.number.0);
            let started = |at: Timestamp| seal("start", &text, &at);
            let sealed = |state: &AttemptState| seal("attempt state", &text, state);
            let Some(attempt) = change.created else {
                let name = change.state.map(AttemptState::name);
                changed.push((
                    key.0,
                    key.1,
                    key.2,
                    change.started.map(started),
                    change.state.map(sealed),
                    name,
                ));
                continue;
            };
            let state = change.state.unwrap_or(&attempt.state);
            let fence = int(attempt.fence.0);
            created.push((
                key.0,
                key.1,
                key.2,
                fence,
                attempt.worker.to_string(),
                seal("attempt", &text, attempt),
                change.started.or(attempt.started_at).map(started),
                sealed(state),
                state.name(),
            ));
            self.last_fence = self.last_fence.max(fence);
        }
        self.attempts_created = Rows::of(&created);
        self.attempts_changed = Rows::of(&changed);
    }

    fn put_workers(&mut self, workers: &BTreeMap<WorkerId, Option<&Worker>>) {
        let (mut changed, mut removed) = (Vec::new(), Vec::new());
        for (id, worker) in workers {
            let text = id.to_string();
            match worker {
                Some(worker) => changed.push((seal("worker", &text, worker), text)),
                None => removed.push(text),
            }
        }
        self.workers_changed = Rows::of(&changed);
        self.workers_removed = Rows::of(&removed);
    }

    fn put_events(&mut self, events: &[EventView]) {
        let row = |event: &EventView| (int(event.at.0), event.run.map(|run| int(run.0)), seal_event(event));
        self.events = Rows::of(&events.iter().map(row).collect::<Vec<_>>());
    }
}

/// Its number is not known before the transaction, so it is not under the seal.
fn seal_event(event: &EventView) -> String {
    seal("event", "", &EventView { sequence: 0, ..event.clone() })
}

fn final_ms(state: &RunState) -> Option<i64> {
    match state {
        RunState::Refused { at, .. } | RunState::Finished { at, .. } => Some(int(at.0)),
        RunState::Received | RunState::AwaitingApproval { .. } | RunState::Active => None,
    }
}
