//! The whole state of the farm that decisions look at, and the one way to change it.

use std::collections::BTreeMap;

use buildyard_types::worker::Capacity;
use buildyard_types::{AttemptId, ByteSize, Epoch, Fence, JobId, Millis, RunId, Timestamp, WorkerId};

use crate::core::SettledRun;
use crate::index::Index;
use crate::index::timers::Due;
use crate::lifecycle::attempt::Attempt;
use crate::lifecycle::job::Job;
use crate::lifecycle::run::Run;
use crate::lifecycle::worker::{Heard, Liveness, Worker};
use crate::record::Record;
use crate::retry;

/// Most keys of requesters that are remembered; the oldest runs' keys go first.
pub const MAX_KEYS: usize = 10_000;

/// The farm's own numbers. They come from the coordinator's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A worker's right to its attempts, counted from its last call.
    pub lease_ms: Millis,
    /// What is added to the lease before an attempt is given to another worker.
    pub grace_ms: Millis,
    /// Attempts at one job while the farm keeps failing it.
    pub max_attempts: u32,
    /// Wait before the second attempt; doubled before each later one.
    pub retry_backoff_ms: Millis,
    /// Time between TERM and KILL.
    pub stop_grace_ms: Millis,
    /// What a worker may take on top of that to report the end. After it the attempt counts as ended, and the worker
    /// gets no others until it says that nothing of it is left.
    pub stop_slack_ms: Millis,
    /// Most bytes that one attempt's log may hold.
    pub log_cap: ByteSize,
    /// How long a worker may prepare an attempt before it is stopped as the farm's fault.
    pub prepare_limit_ms: Millis,
    /// What is added to a job's own time limit before the coordinator stops it. The worker keeps the limit
    /// itself; this is for a worker that does not.
    pub limit_slack_ms: Millis,
    /// How long an attempt may send its log and artifacts after its steps have ended, before that is given up as
    /// the farm's fault.
    pub send_limit_ms: Millis,
    /// Most runs that are not over. More are not accepted.
    pub max_runs: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // DESIGN: lease 15 s, grace 10 s; a lost worker's jobs run elsewhere within 25 s.
            lease_ms: Millis::from_secs(15),
            grace_ms: Millis::from_secs(10),
            max_attempts: 3,
            retry_backoff_ms: Millis::from_secs(1),
            stop_grace_ms: Millis::from_secs(10),
            stop_slack_ms: Millis::from_secs(20),
            log_cap: ByteSize::from_mib(512),
            // A first pull of a large image over a slow line is the longest honest preparation.
            prepare_limit_ms: Millis::from_mins(60),
            // Stopping a step may take minutes after the limit, on a host that is short of everything.
            limit_slack_ms: Millis::from_mins(10),
            // A coordinator whose disk is full takes no artifacts until somebody has made room.
            send_limit_ms: Millis::from_mins(6 * 60),
            // A farm of 120 builds an hour reaches this after a month without any worker.
            max_runs: 100_000,
        }
    }
}

/// Everything that decisions look at.
///
/// Runs that are final, with every attempt removed, are not kept here: the store has them.
#[derive(Debug, Clone)]
pub struct State {
    /// This scheduler's epoch.
    pub epoch: Epoch,
    /// The farm's numbers.
    pub settings: Settings,
    /// The number of the next run.
    pub next_run: RunId,
    /// The next fence.
    pub next_fence: Fence,
    /// Runs that are not final, or have attempts that are not removed.
    pub runs: BTreeMap<RunId, Run>,
    /// Their jobs.
    pub jobs: BTreeMap<JobId, Job>,
    /// Their attempts.
    pub attempts: BTreeMap<AttemptId, Attempt>,
    /// Every worker that joined and was not removed.
    pub workers: BTreeMap<WorkerId, Worker>,
    /// Runs by the key of their requester, at most [`MAX_KEYS`].
    pub keys: BTreeMap<String, RunId>,
    /// When this process began to listen. Leases of workers not heard of count from here, and so do limits that
    /// passed before.
    pub listening_since: Timestamp,
    /// Calls of workers to this process. Volatile: not committed, not part of "the same state".
    pub heard: BTreeMap<WorkerId, Heard>,
    /// The keys again, by run, so that the oldest can go.
    pub(crate) key_of_run: BTreeMap<RunId, String>,
    /// What follows from all this.
    pub(crate) index: Index,
}

/// What the scheduler needs after a restart: what the store has of it.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Greatest run number ever given; 0 if none.
    pub last_run: u64,
    /// Greatest fence ever given; 0 if none.
    pub last_fence: u64,
    /// Runs that are not final, or have attempts that are not removed.
    pub runs: Vec<Run>,
    /// All jobs of those runs.
    pub jobs: Vec<Job>,
    /// All attempts of those runs.
    pub attempts: Vec<Attempt>,
    /// Every worker.
    pub workers: Vec<Worker>,
    /// Keys of requesters, newest 10,000, with their runs.
    pub keys: Vec<(String, RunId)>,
}

impl State {
    /// The state of a scheduler that begins (or begins again) at `now` from what the store has.
    pub fn from_snapshot(epoch: Epoch, settings: Settings, loaded: Snapshot, now: Timestamp) -> Self {
        let runs = loaded.runs.into_iter().map(|run| (run.id, run)).collect();
        let jobs = loaded.jobs.into_iter().map(|job| (job.id, job)).collect();
        let attempts = loaded.attempts.into_iter().map(|attempt| (attempt.id, attempt)).collect();
        let workers = loaded.workers.into_iter().map(|worker| (worker.id, worker)).collect();
        let index = Index::build(&runs, &jobs, &attempts, &workers, &settings, now);
        let mut state = Self {
            epoch,
            settings,
            next_run: RunId(loaded.last_run + 1),
            next_fence: Fence(loaded.last_fence + 1),
            runs,
            jobs,
            attempts,
            workers,
            keys: BTreeMap::new(),
            listening_since: now,
            heard: BTreeMap::new(),
            key_of_run: BTreeMap::new(),
            index,
        };
        for (key, run) in loaded.keys {
            state.remember_key(key, run);
        }
        let known: Vec<WorkerId> = state.workers.keys().copied().collect();
        for worker in known {
            state.set_worker_timer(worker, now);
        }
        state
    }

    /// Takes a record over into the state. This alone changes what is committed.
    ///
    /// Gives the run that the record completed, if it did: that run, its jobs and its attempts are not in the
    /// state any more. A record about something that is not here changes nothing.
    pub fn apply(&mut self, record: &Record) -> Option<SettledRun> {
        match record {
            Record::RunCreated { run } => {
                self.next_run = self.next_run.max(RunId(run.id.0 + 1));
                if let Some(key) = &run.key {
                    self.remember_key(key.clone(), run.id);
                }
                self.index.open.entry(run.id).or_default();
                self.runs.insert(run.id, run.clone());
                None
            }
            Record::RunCompiled { run, pipeline, jobs } => {
                self.compiled(*run, pipeline, jobs);
                None
            }
            Record::RunChanged { run, state } => {
                self.runs.get_mut(run)?.state = state.clone();
                self.settle(*run)
            }
            Record::JobChanged { job, state } => {
                let job = self.jobs.get_mut(job)?;
                self.index.job_leaves(job);
                job.state = state.clone();
                self.index.job_entered(job, &self.attempts, &self.settings);
                None
            }
            Record::AttemptCreated { attempt } => {
                self.attempt_created(attempt);
                None
            }
            Record::AttemptStarted { attempt, at } => {
                self.attempts.get_mut(attempt)?.started_at = Some(*at);
                None
            }
            Record::AttemptChanged { attempt, state } => {
                let attempt = self.attempts.get_mut(attempt)?;
                let before = std::mem::replace(&mut attempt.state, state.clone());
                let job = self.jobs.get(&attempt.id.job)?;
                let worker = self.workers.get(&attempt.worker);
                self.index.attempt_changed(worker, job, attempt, Some(&before));
                let run = attempt.id.run();
                self.settle(run)
            }
            Record::WorkerChanged { worker } => {
                let before = self.workers.insert(worker.id, worker.clone());
                self.index.pool.worker_changed(before.as_ref(), Some(worker), worker.id);
                None
            }
            Record::WorkerRemoved { worker } => {
                let before = self.workers.remove(worker);
                self.index.pool.worker_changed(before.as_ref(), None, *worker);
                self.index.timers.set(Due::Worker(*worker), None);
                self.heard.remove(worker);
                None
            }
        }
    }

    fn compiled(&mut self, run: RunId, pipeline: &str, jobs: &[Job]) {
        let Some(run) = self.runs.get_mut(&run) else {
            return;
        };
        run.pipeline = Some(pipeline.to_owned());
        for job in jobs {
            if self.jobs.insert(job.id, job.clone()).is_none() {
                self.index.job_added(job, &self.attempts, &self.settings);
            }
        }
    }

    fn attempt_created(&mut self, attempt: &Attempt) {
        self.next_fence = self.next_fence.max(Fence(attempt.fence.0 + 1));
        let Some(job) = self.jobs.get_mut(&attempt.id.job) else {
            return;
        };
        job.attempts = job.attempts.max(attempt.id.number.0);
        let before = self.attempts.insert(attempt.id, attempt.clone());
        let worker = self.workers.get(&attempt.worker);
        let before = before.as_ref().map(|before| &before.state);
        self.index.attempt_changed(worker, job, attempt, before);
    }

    /// Drops a run that is final and has nothing left on any worker.
    fn settle(&mut self, run: RunId) -> Option<SettledRun> {
        let is_final = self.runs.get(&run)?.state.is_final();
        let open = self.index.open.get(&run).copied().unwrap_or_default();
        if !is_final || open.jobs > 0 || open.attempts > 0 {
            return None;
        }
        let jobs: Vec<JobId> = self.jobs_of(run).map(|job| job.id).collect();
        let attempts: Vec<AttemptId> = self.attempts_of(run).map(|attempt| attempt.id).collect();
        let settled = SettledRun {
            run: self.runs.remove(&run)?,
            jobs: jobs.iter().filter_map(|job| self.jobs.remove(job)).collect(),
            attempts: attempts.iter().filter_map(|attempt| self.attempts.remove(attempt)).collect(),
        };
        self.index.run_dropped(run, &settled.jobs);
        Some(settled)
    }

    fn remember_key(&mut self, key: String, run: RunId) {
        self.key_of_run.insert(run, key.clone());
        self.keys.insert(key, run);
        while self.key_of_run.len() > MAX_KEYS {
            let Some((_, oldest)) = self.key_of_run.pop_first() else {
                return;
            };
            self.keys.remove(&oldest);
        }
    }

    /// The jobs of a run in file order.
    pub fn jobs_of(&self, run: RunId) -> impl Iterator<Item = &Job> {
        self.jobs.range(run.job(0)..=run.job(u32::MAX)).map(|(_, job)| job)
    }

    /// The attempts of a run, by job and number.
    pub fn attempts_of(&self, run: RunId) -> impl Iterator<Item = &Attempt> {
        let (first, last) = (run.job(0).attempt(0), run.job(u32::MAX).attempt(u32::MAX));
        self.attempts.range(first..=last).map(|(_, attempt)| attempt)
    }

    /// The attempts at a job, oldest first.
    pub fn attempts_at(&self, job: JobId) -> impl Iterator<Item = &Attempt> {
        self.attempts.range(job.attempt(0)..=job.attempt(u32::MAX)).map(|(_, attempt)| attempt)
    }

    /// Whether a worker answers; `None` when there is no such worker.
    pub fn liveness(&self, worker: WorkerId, now: Timestamp) -> Option<Liveness> {
        let lease = self.settings.lease_ms;
        let heard = self.heard.get(&worker);
        self.workers.get(&worker).map(|_| Liveness::of(heard, self.listening_since, lease, now))
    }

    /// What the attempts of a worker use together, those included of which something is left.
    pub fn used(&self, worker: WorkerId) -> Capacity {
        self.index.pool.holding(worker).map(|holding| holding.used).unwrap_or_default()
    }

    /// The attempts of a worker of which something is left, live or not.
    pub fn held(&self, worker: WorkerId) -> impl Iterator<Item = &Attempt> {
        let holding = self.index.pool.holding(worker);
        holding.into_iter().flat_map(|holding| holding.attempts.keys()).filter_map(|id| self.attempts.get(id))
    }

    /// The part of what is committed in which two states differ; `None` when they are the same. What was heard,
    /// the epoch and the settings are not part of it.
    pub fn differs_from(&self, other: &State) -> Option<&'static str> {
        let parts = [
            ("next_run", self.next_run == other.next_run),
            ("next_fence", self.next_fence == other.next_fence),
            ("runs", self.runs == other.runs),
            ("jobs", self.jobs == other.jobs),
            ("attempts", self.attempts == other.attempts),
            ("workers", self.workers == other.workers),
            ("keys", self.keys == other.keys),
        ];
        parts.iter().find(|(_, same)| !same).map(|(part, _)| *part)
    }

    /// A worker called. Not committed, since a lease is a promise of this process only.
    pub(crate) fn hear(&mut self, worker: WorkerId, heard: Heard) {
        let now = heard.at;
        self.heard.insert(worker, heard);
        self.index.pool.set_fresh(self.workers.get(&worker), worker, true);
        self.set_worker_timer(worker, now);
    }

    /// When a worker's attempts are given up.
    pub(crate) fn lost_at(&self, worker: WorkerId) -> Timestamp {
        let from = self.heard.get(&worker).map_or(self.listening_since, |heard| heard.at);
        from + retry::silence_ms(&self.settings)
    }

    /// Sets the next moment at which something is due for a worker: it becomes quiet, or it is lost.
    pub(crate) fn set_worker_timer(&mut self, worker: WorkerId, now: Timestamp) {
        let quiet_at = self.heard.get(&worker).map(|heard| heard.at + self.settings.lease_ms);
        let holds_live =
            self.index.pool.holding(worker).is_some_and(|holding| holding.live().next().is_some());
        let next = match quiet_at {
            Some(quiet_at) if now < quiet_at => Some(quiet_at),
            Some(_) | None if holds_live => Some(self.lost_at(worker)),
            Some(_) | None => None,
        };
        self.index.timers.set(Due::Worker(worker), next);
    }
}
