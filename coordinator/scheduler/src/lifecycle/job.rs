//! The life of a job: Waiting, Queued, Assigned, Running, Stopping, Finished.

use buildyard_types::{AttemptId, JobId, JobSpec, Outcome, Timestamp, WorkerId};
use serde::{Deserialize, Serialize};

/// A node of a run's graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its place in its run.
    pub id: JobId,
    /// What it is. Never changes.
    pub spec: JobSpec,
    /// Jobs of the same run that must pass first. Names of `spec.needs`, resolved.
    pub needs: Vec<JobId>,
    /// Where it is in its life.
    pub state: JobState,
    /// Attempts made so far.
    pub attempts: u32,
}

/// Where a job is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum JobState {
    /// Its gates are not all open: jobs that it needs are not finished.
    Waiting,
    /// Waiting for a worker.
    Queued {
        /// Since when; a retry keeps the moment of the first queueing.
        since: Timestamp,
        /// Not to be placed before this (back-off after a farm fault).
        not_before: Timestamp,
    },
    /// Placed; the worker has not said that its first step began.
    Assigned {
        /// By which attempt.
        attempt: AttemptId,
        /// Where.
        worker: WorkerId,
    },
    /// Its steps run.
    Running {
        /// By which attempt.
        attempt: AttemptId,
        /// Where.
        worker: WorkerId,
        /// Since when.
        started: Timestamp,
    },
    /// Its worker was told to stop it.
    Stopping {
        /// Which attempt.
        attempt: AttemptId,
        /// Where.
        worker: WorkerId,
        /// How the job will end when the worker says that the attempt is gone.
        outcome: Outcome,
        /// When the worker is evicted if it has not.
        deadline: Timestamp,
    },
    /// Final.
    Finished {
        /// How it ended.
        outcome: Outcome,
        /// When its first attempt began its first step, if one did.
        started: Option<Timestamp>,
        /// When.
        ended: Timestamp,
    },
}

impl JobState {
    /// The attempt that holds the job now, and its worker.
    pub fn live(&self) -> Option<(AttemptId, WorkerId)> {
        match self {
            JobState::Assigned { attempt, worker }
            | JobState::Running { attempt, worker, .. }
            | JobState::Stopping { attempt, worker, .. } => Some((*attempt, *worker)),
            JobState::Waiting | JobState::Queued { .. } | JobState::Finished { .. } => None,
        }
    }

    /// The outcome, once final.
    pub fn outcome(&self) -> Option<&Outcome> {
        match self {
            JobState::Finished { outcome, .. } => Some(outcome),
            JobState::Waiting
            | JobState::Queued { .. }
            | JobState::Assigned { .. }
            | JobState::Running { .. }
            | JobState::Stopping { .. } => None,
        }
    }

    /// The name in the API and the store.
    pub fn name(&self) -> &'static str {
        match self {
            JobState::Waiting => "waiting",
            JobState::Queued { .. } => "queued",
            JobState::Assigned { .. } => "assigned",
            JobState::Running { .. } => "running",
            JobState::Stopping { .. } => "stopping",
            JobState::Finished { .. } => "finished",
        }
    }
}
