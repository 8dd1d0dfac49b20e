//! Everything that can wake the scheduler: a closed list.

use std::collections::BTreeSet;

use buildyard_types::worker::{AttemptReport, Offer, SessionId, SourceRef, SyncResponse};
use buildyard_types::{JobId, RunId, WorkerId};

use crate::record::Compiled;

/// Something that happened outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Nothing but the passing of time. Leases, limits and back-offs are looked at on this input alone, so that
    /// calls which waited for a slow commit are heard before anybody is called lost: the driver decides the
    /// inputs that it has, then this one if [`crate::Core::next_wakeup`] has come.
    Tick,
    /// Somebody wants a pipeline to run.
    Submit {
        /// What to build.
        source: SourceRef,
        /// Which file.
        file: String,
        /// Who, as a clause.
        requested_by: String,
        /// The requester's own key.
        key: Option<String>,
    },
    /// The file of a received run was read.
    Compiled {
        /// Which run.
        run: RunId,
        /// What was found.
        result: Compiled,
    },
    /// Somebody wants a run to end.
    CancelRun {
        /// Which.
        run: RunId,
        /// Who, as a clause: "by admin".
        by: String,
    },
    /// Somebody wants a job to end.
    CancelJob {
        /// Which.
        job: JobId,
        /// Who, as a clause.
        by: String,
    },
    /// A worker joined. Its id was made by the shell.
    Enrol {
        /// Who.
        worker: WorkerId,
        /// The name that people see.
        name: String,
        /// Granted at its invitation.
        pools: BTreeSet<String>,
        /// What it offers.
        offer: Offer,
    },
    /// A worker said what it holds.
    Sync {
        /// Who, by its credential.
        worker: WorkerId,
        /// Its session.
        session: SessionId,
        /// Number of the call in that session.
        sequence: u64,
        /// What it offers.
        offer: Offer,
        /// What it holds.
        attempts: Vec<AttemptReport>,
    },
    /// Give a worker no new attempts, or give it some again.
    Cordon {
        /// Who.
        worker: WorkerId,
        /// Whether it gets none.
        cordoned: bool,
    },
    /// A worker will not come back.
    RemoveWorker {
        /// Who.
        worker: WorkerId,
    },
}

/// The answer to an input. It may leave the process only after the decision's records are committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Taken note of.
    Done,
    /// The run that the submission made, or made before under the same key.
    Run(RunId),
    /// What the worker should do. `idle` says that this is no news to it, so the call may be held.
    Sync {
        /// The answer.
        response: SyncResponse,
        /// Whether it asks nothing of the worker.
        idle: bool,
    },
    /// The premises of the input do not hold; nothing changed.
    Rejected(Rejection),
}

/// Why an input changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// No such run.
    #[error("there is no {0}")]
    NoRun(RunId),
    /// No such job.
    #[error("there is no {0}")]
    NoJob(JobId),
    /// No such worker.
    #[error("there is no {0}")]
    NoWorker(WorkerId),
    /// The farm holds as many unfinished runs as it may.
    #[error("the farm holds {limit} unfinished runs already; try again when some are finished")]
    TooManyRuns {
        /// How many that is.
        limit: usize,
    },
    /// It is final.
    #[error("{0} is finished already")]
    AlreadyFinished(String),
    /// Another session of the same worker took over.
    #[error("session {session} of {worker} was taken over by session {by}")]
    SessionTakenOver {
        /// Who.
        worker: WorkerId,
        /// The number of the session that called.
        session: u64,
        /// The number of the session that is good: the same, when two count on from one copied data folder.
        by: u64,
    },
    /// The worker still holds attempts.
    #[error("{worker} still holds {attempts} attempts; drain it first")]
    WorkerBusy {
        /// Who.
        worker: WorkerId,
        /// How many.
        attempts: usize,
    },
}
