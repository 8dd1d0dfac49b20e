//! The whole state of the farm that decisions look at, and the one way to change it.

use std::collections::BTreeMap;

use buildyard_types::{AttemptId, ByteSize, Epoch, Fence, JobId, Millis, RunId, Timestamp, WorkerId};

use crate::lifecycle::attempt::Attempt;
use crate::lifecycle::job::Job;
use crate::lifecycle::run::Run;
use crate::lifecycle::worker::{Heard, Worker};

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
    /// What a worker may take on top of that to report the end before it is evicted.
    pub stop_slack_ms: Millis,
    /// Most bytes that one attempt's log may hold.
    pub log_cap: ByteSize,
    /// How long a worker may prepare an attempt before it is stopped as the farm's fault.
    pub prepare_limit_ms: Millis,
    /// What is added to a job's own time limit before the coordinator stops it. The worker keeps the limit
    /// itself; this is for a worker that does not.
    pub limit_slack_ms: Millis,
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
            // Stopping a step and sending its log and artifacts may take minutes after the limit.
            limit_slack_ms: Millis::from_mins(10),
        }
    }
}

/// Everything that decisions look at.
///
/// Runs that are final, with every attempt removed, are not kept here: the store has them.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Runs by the key of their requester.
    pub keys: BTreeMap<String, RunId>,
    /// When this process began to listen. Leases of workers not heard of count from here.
    pub listening_since: Timestamp,
    /// Calls of workers to this process. Volatile: not committed, not part of "the same state".
    pub heard: BTreeMap<WorkerId, Heard>,
}

/// What was read from the store.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
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
    pub fn from_snapshot(epoch: Epoch, settings: Settings, loaded: Loaded, now: Timestamp) -> Self {
        Self {
            epoch,
            settings,
            next_run: RunId(loaded.last_run + 1),
            next_fence: Fence(loaded.last_fence + 1),
            runs: loaded.runs.into_iter().map(|run| (run.id, run)).collect(),
            jobs: loaded.jobs.into_iter().map(|job| (job.id, job)).collect(),
            attempts: loaded.attempts.into_iter().map(|attempt| (attempt.id, attempt)).collect(),
            workers: loaded.workers.into_iter().map(|worker| (worker.id, worker)).collect(),
            keys: loaded.keys.into_iter().collect(),
            listening_since: now,
            heard: BTreeMap::new(),
        }
    }
}
