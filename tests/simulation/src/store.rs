//! The coordinator's memory as a plain model: it takes records over one by one, as a database would, and knows no
//! rule. It is written apart from the scheduler's `apply`, so that the two check each other.

use std::collections::BTreeMap;

use buildyard_scheduler::lifecycle::attempt::Attempt;
use buildyard_scheduler::lifecycle::job::Job;
use buildyard_scheduler::lifecycle::run::Run;
use buildyard_scheduler::lifecycle::worker::Worker;
use buildyard_scheduler::{Record, Snapshot};
use buildyard_types::{AttemptId, JobId, RunId, WorkerId};

/// Everything that was committed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    /// All runs ever.
    pub(crate) runs: BTreeMap<RunId, Run>,
    /// All jobs ever.
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// All attempts ever.
    pub(crate) attempts: BTreeMap<AttemptId, Attempt>,
    /// Workers that were not removed.
    pub(crate) workers: BTreeMap<WorkerId, Worker>,
}

impl Store {
    /// Commits a record.
    pub(crate) fn commit(&mut self, record: &Record) {
        match record {
            Record::RunCreated { run } => {
                self.runs.insert(run.id, run.clone());
            }
            Record::RunCompiled { run, pipeline, jobs } => {
                if let Some(run) = self.runs.get_mut(run) {
                    run.pipeline = Some(pipeline.clone());
                }
                self.jobs.extend(jobs.iter().map(|job| (job.id, job.clone())));
            }
            Record::RunChanged { run, state } => {
                if let Some(run) = self.runs.get_mut(run) {
                    run.state = state.clone();
                }
            }
            Record::JobChanged { job, state } => {
                if let Some(job) = self.jobs.get_mut(job) {
                    job.state = state.clone();
                }
            }
            Record::AttemptCreated { attempt } => {
                self.attempts.insert(attempt.id, attempt.clone());
                if let Some(job) = self.jobs.get_mut(&attempt.id.job) {
                    job.attempts += 1;
                }
            }
            Record::AttemptStarted { attempt, at } => {
                if let Some(attempt) = self.attempts.get_mut(attempt) {
                    attempt.started_at = Some(*at);
                }
            }
            Record::AttemptChanged { attempt, state } => {
                if let Some(attempt) = self.attempts.get_mut(attempt) {
                    attempt.state = state.clone();
                }
            }
            Record::WorkerChanged { worker } => {
                self.workers.insert(worker.id, worker.clone());
            }
            Record::WorkerRemoved { worker } => {
                self.workers.remove(worker);
            }
        }
    }

    /// What a scheduler that starts now is given.
    pub(crate) fn load(&self) -> Snapshot {
        let left = |run: RunId| {
            let attempts = self.attempts.range(run.job(0).attempt(0)..=run.job(u32::MAX).attempt(u32::MAX));
            attempts.into_iter().any(|(_, attempt)| !attempt.state.is_removed())
        };
        let runs: BTreeMap<RunId, Run> = self
            .runs
            .iter()
            .filter(|(id, run)| !run.state.is_final() || left(**id))
            .map(|(id, run)| (*id, run.clone()))
            .collect();
        let keys = self.runs.values().filter_map(|run| Some((run.key.clone()?, run.id)));
        Snapshot {
            last_run: self.runs.keys().next_back().map_or(0, |run| run.0),
            last_fence: self.attempts.values().map(|attempt| attempt.fence.0).max().unwrap_or(0),
            jobs: self.jobs.values().filter(|job| runs.contains_key(&job.id.run)).cloned().collect(),
            attempts: self
                .attempts
                .values()
                .filter(|one| runs.contains_key(&one.id.run()))
                .cloned()
                .collect(),
            workers: self.workers.values().cloned().collect(),
            keys: keys.collect(),
            runs: runs.into_values().collect(),
        }
    }
}
