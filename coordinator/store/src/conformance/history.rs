//! Whatever happened: what is read back is what applying the same records gives.

use std::collections::BTreeMap;

use buildyard_scheduler::Record;
use buildyard_scheduler::lifecycle::attempt::{Attempt, AttemptState};
use buildyard_scheduler::lifecycle::job::{Job, JobState};
use buildyard_scheduler::lifecycle::run::{Run, RunState};
use buildyard_scheduler::lifecycle::worker::Worker;
use buildyard_types::{AttemptId, JobId, RunId, Timestamp, WorkerId};

use super::Maker;
use super::sample::*;
use crate::{Snapshot, Store};

/// A small generator (splitmix64), so that a seed is a history.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % sides as u64) as usize
    }

    pub(super) fn pick<T, const N: usize>(&mut self, choices: [T; N]) -> T {
        choices.into_iter().nth(self.roll(N)).unwrap()
    }
}

/// What was acknowledged, kept as plainly as can be.
#[derive(Default)]
struct Model {
    fences: u64,
    clock: u64,
    runs: BTreeMap<RunId, Run>,
    jobs: BTreeMap<JobId, Job>,
    attempts: BTreeMap<AttemptId, Attempt>,
    workers: BTreeMap<WorkerId, Worker>,
}

impl Model {
    fn apply(&mut self, record: &Record) {
        match record {
            Record::RunCreated { run } => {
                self.runs.insert(run.id, run.clone());
            }
            Record::RunCompiled { run, pipeline, jobs } => {
                self.runs.get_mut(run).unwrap().pipeline = Some(pipeline.clone());
                self.jobs.extend(jobs.iter().map(|job| (job.id, job.clone())));
            }
            Record::RunChanged { run, state } => self.runs.get_mut(run).unwrap().state = state.clone(),
            Record::JobChanged { job, state } => self.jobs.get_mut(job).unwrap().state = state.clone(),
            Record::AttemptCreated { attempt } => {
                self.jobs.get_mut(&attempt.id.job).unwrap().attempts = attempt.id.number.0;
                self.attempts.insert(attempt.id, attempt.clone());
            }
            Record::AttemptStarted { attempt, at } => {
                self.attempts.get_mut(attempt).unwrap().started_at = Some(*at);
            }
            Record::AttemptChanged { attempt, state } => {
                self.attempts.get_mut(attempt).unwrap().state = state.clone();
            }
            Record::WorkerChanged { worker } => {
                self.workers.insert(worker.id, worker.clone());
            }
            Record::WorkerRemoved { worker } => {
                self.workers.remove(worker);
            }
        }
    }

    /// One thing that may happen now.
    fn step(&mut self, dice: &mut Dice) -> Record {
        self.clock += 1;
        let at = Timestamp(self.clock);
        let pick_run = self.runs.keys().nth(dice.roll(self.runs.len().max(1))).copied();
        let pick_job = self.jobs.keys().nth(dice.roll(self.jobs.len().max(1))).copied();
        let pick_attempt = self.attempts.keys().nth(dice.roll(self.attempts.len().max(1))).copied();
        match (dice.roll(9), pick_run, pick_job, pick_attempt) {
            (1, Some(run), _, _) if self.runs[&run].pipeline.is_none() => {
                let jobs = (0..=dice.roll(4) as u32).map(|index| job(run.job(index))).collect();
                Record::RunCompiled { run, pipeline: format!("pipeline {run}"), jobs }
            }
            (2, Some(run), _, _) => {
                let active = RunState::Active;
                let state = dice.pick([active, run_passed(at.0), refused(at.0)]);
                Record::RunChanged { run, state }
            }
            (3, _, Some(job), _) => {
                let waiting = JobState::Waiting;
                let state = dice.pick([waiting, queued(at.0), job_passed(at.0)]);
                Record::JobChanged { job, state }
            }
            (4 | 5, _, Some(job), _) => {
                self.fences += 1;
                let number = self.jobs[&job].attempts + 1;
                Record::AttemptCreated { attempt: attempt(job.attempt(number), self.fences) }
            }
            (6, _, _, Some(attempt)) => Record::AttemptStarted { attempt, at },
            (7, _, _, Some(attempt)) => {
                let state = dice.pick([ended(at.0), removed(at.0), removed(at.0)]);
                Record::AttemptChanged { attempt, state }
            }
            (8, ..) => {
                let id = WorkerId(dice.roll(3) as u64);
                if dice.roll(2) == 0 {
                    return Record::WorkerRemoved { worker: id };
                }
                Record::WorkerChanged { worker: Worker { cordoned: dice.roll(2) == 0, ..worker(id) } }
            }
            _ => Record::RunCreated { run: run(self.runs.len() as u64 + 1) },
        }
    }

    fn is_over(&self, run: &Run) -> bool {
        let left = self.attempts.values().any(|attempt| match attempt.state {
            AttemptState::Live | AttemptState::Ended { .. } => attempt.id.run() == run.id,
            AttemptState::Removed { .. } => false,
        });
        run.state.is_final() && !left
    }

    fn assert_loaded(&self, loaded: &Snapshot, seed: u64) {
        let open: BTreeMap<RunId, &Run> =
            self.runs.values().filter(|run| !self.is_over(run)).map(|run| (run.id, run)).collect();
        let is_open = |run: RunId| open.contains_key(&run);
        assert_eq!(loaded.last_run, self.runs.len() as u64, "seed {seed}");
        assert_eq!(loaded.last_fence, self.fences, "seed {seed}");
        assert!(loaded.runs.iter().eq(open.values().copied()), "seed {seed}");
        assert!(loaded.jobs.iter().eq(self.jobs.values().filter(|job| is_open(job.id.run))), "seed {seed}");
        let attempts = self.attempts.values().filter(|attempt| is_open(attempt.id.run()));
        assert!(loaded.attempts.iter().eq(attempts), "seed {seed}");
        assert!(loaded.workers.iter().eq(self.workers.values()), "seed {seed}");
    }

    async fn assert_answers(&self, store: &dyn Store, seed: u64) {
        for run in self.runs.values() {
            assert_eq!(store.run(run.id).await.unwrap().as_ref(), Some(run), "seed {seed}");
            let jobs = store.jobs(run.id).await.unwrap();
            assert!(jobs.iter().eq(self.jobs.values().filter(|job| job.id.run == run.id)), "seed {seed}");
            let attempts = store.attempts(run.id).await.unwrap();
            let expected = self.attempts.values().filter(|attempt| attempt.id.run() == run.id);
            assert!(attempts.iter().map(|(attempt, _)| attempt).eq(expected), "seed {seed}");
        }
    }
}

pub(super) async fn any_history_is_the_same_after_reopening(maker: &dyn Maker) {
    for seed in 0..12 {
        let mut dice = Dice(seed);
        let mut model = Model::default();
        let mut store = maker.fresh().await;
        let mut epoch = store.begin_epoch().await.unwrap();
        for _ in 0..20 {
            let records = (0..dice.roll(12)).map(|_| {
                let record = model.step(&mut dice);
                model.apply(&record);
                record
            });
            let batch = batch(records.collect());
            store.commit(epoch, &batch).await.unwrap();
            if dice.roll(6) == 0 {
                store = maker.reopen(store).await;
                epoch = store.begin_epoch().await.unwrap();
            }
        }
        model.assert_loaded(&store.load().await.unwrap(), seed);
        model.assert_answers(&*store, seed).await;
    }
}
