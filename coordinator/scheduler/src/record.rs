//! What is committed. A record says what *is* from now on, so applying it twice changes nothing more.

use buildyard_types::job::{Diagnostic, Pipeline};
use buildyard_types::{AttemptId, JobId, RunId, Timestamp, WorkerId};
use serde::{Deserialize, Serialize};

use crate::lifecycle::attempt::{Attempt, AttemptState};
use crate::lifecycle::job::{Job, JobState};
use crate::lifecycle::run::{Run, RunState};
use crate::lifecycle::worker::Worker;

/// One change of the farm's state. The driver commits a batch of them in one transaction and only then answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// A run was accepted.
    RunCreated {
        /// The run, in its first state.
        run: Run,
    },
    /// A run's file was read: its name and its jobs are known.
    RunCompiled {
        /// Which.
        run: RunId,
        /// The pipeline's name.
        pipeline: String,
        /// Every job, in its first state.
        jobs: Vec<Job>,
    },
    /// A run moved on.
    RunChanged {
        /// Which.
        run: RunId,
        /// Where it is now.
        state: RunState,
    },
    /// A job moved on.
    JobChanged {
        /// Which.
        job: JobId,
        /// Where it is now.
        state: JobState,
    },
    /// A job was placed. The job's own change is a record beside this one.
    AttemptCreated {
        /// The attempt, live.
        attempt: Attempt,
    },
    /// An attempt's first step began.
    AttemptStarted {
        /// Which.
        attempt: AttemptId,
        /// When.
        at: Timestamp,
    },
    /// An attempt moved on.
    AttemptChanged {
        /// Which.
        attempt: AttemptId,
        /// Where it is now.
        state: AttemptState,
    },
    /// A worker joined, or something of it changed.
    WorkerChanged {
        /// The worker as it is now.
        worker: Worker,
    },
    /// A worker is gone for good; its credential is worthless.
    WorkerRemoved {
        /// Which.
        worker: WorkerId,
    },
}

/// What the source module found at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiled {
    /// The file is good.
    Pipeline(Pipeline),
    /// The file is wrong.
    Refused(Vec<Diagnostic>),
    /// The commit or the file could not be read, and that is the farm's fault.
    SourceFailed(String),
}
