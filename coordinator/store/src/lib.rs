//! What the coordinator keeps, as a trait, and the suite of behaviours that every store must show.
//!
//! The store knows no rules: it commits the scheduler's records, keeps where log and artifact objects are, and
//! answers questions. It checks two things, because only a transaction can: that the scheduler's epoch is the
//! newest, and that a worker's write carries the fence of a live attempt.

pub mod conformance;

use std::collections::BTreeSet;

use async_trait::async_trait;
use buildyard_scheduler::Record;
pub use buildyard_scheduler::Snapshot;
use buildyard_scheduler::lifecycle::attempt::Attempt;
use buildyard_scheduler::lifecycle::job::Job;
use buildyard_scheduler::lifecycle::run::Run;
use buildyard_types::api::EventView;
use buildyard_types::worker::ArtifactFile;
use buildyard_types::{AttemptId, Epoch, Fence, RunId, Timestamp, WorkerId};

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another scheduler was started on this database: this one must end.
    #[error("epoch {ours:?} is over: epoch {newest:?} has begun on this database")]
    EpochOver {
        /// The caller's.
        ours: Epoch,
        /// The one that is good.
        newest: Epoch,
    },
    /// The write carries a stale fence, or speaks of an attempt that is not the worker's. Nothing changed.
    #[error("{attempt} is not held under this fence")]
    Stale {
        /// The attempt that was spoken of.
        attempt: AttemptId,
    },
    /// Log bytes or an artifact contradict what is kept: another length, another content, after the finish.
    #[error("{0}")]
    Conflict(String),
    /// A row is not what was written. Whoever needs that row cannot be answered; everybody else can.
    #[error("{during}")]
    Damaged {
        /// What was attempted, on which path.
        during: String,
        /// Which row it is.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database is locked, full, damaged or away. `retry` says whether waiting can help.
    #[error("{during}")]
    Unavailable {
        /// What was attempted, on which path.
        during: String,
        /// Whether the same call may succeed later.
        retry: bool,
        /// What the database said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Result of a call to the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// One transaction of the driver.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// When it was decided.
    pub at: Timestamp,
    /// In the order in which they were decided.
    pub records: Vec<Record>,
    /// What to tell people about them. Their sequence numbers are given by the store.
    pub events: Vec<EventView>,
    /// Credentials that begin to be good with this transaction.
    pub tokens: Vec<Token>,
    /// Who did what, one line for each act of a person or an administrator's token.
    pub audit: Vec<AuditLine>,
}

/// One act on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditLine {
    /// When.
    pub at: Timestamp,
    /// Who: the token's name.
    pub actor: String,
    /// What: `run.cancel`.
    pub act: String,
    /// On what: an id.
    pub subject: String,
}

/// A bearer token. Only its hash is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the token, in hexadecimal.
    pub hash: String,
    /// The name in the audit.
    pub name: String,
    /// What it is for.
    pub kind: TokenKind,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops being good.
    pub expires_at: Option<Timestamp>,
}

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenKind {
    /// Everything in `/api/v1`.
    Admin,
    /// The calls of one worker.
    Worker(WorkerId),
    /// One enrolment.
    Invite {
        /// Granted to the worker that enrols.
        pools: BTreeSet<String>,
    },
}

/// What became of an invitation that somebody tried to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InviteUse {
    /// Good, and used up by this call.
    Accepted {
        /// Granted to the worker.
        pools: BTreeSet<String>,
    },
    /// It was used before.
    UsedBefore,
    /// It is too old.
    Expired,
    /// There is no such invitation.
    Unknown,
}

/// Whose write it is. Checked in the same transaction as the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fenced {
    /// The caller, by its credential.
    pub worker: WorkerId,
    /// What it writes about.
    pub attempt: AttemptId,
    /// The fence that it carries.
    pub fence: Fence,
}

/// One object of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// Where it begins in the log.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
    /// Its name in the object store. It belongs to this log alone, so it goes with it.
    pub object: String,
}

/// What is kept of an attempt's log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogState {
    /// Bytes that are kept.
    pub length: u64,
    /// Hash of the whole log, once it is complete.
    pub sha256: Option<String>,
    /// Whether the retention dropped it, and so nothing is kept of it.
    pub dropped: bool,
}

/// An artifact that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Who made it.
    pub attempt: AttemptId,
    /// Its name, unique in its attempt.
    pub name: String,
    /// Sorted by path. Contents are objects named by their hash.
    pub files: Vec<ArtifactFile>,
    /// When it was kept.
    pub created_at: Timestamp,
    /// When it is dropped.
    pub expires_at: Timestamp,
}

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct RunQuery {
    /// Only runs before this one.
    pub before: Option<RunId>,
    /// Only runs of this repository.
    pub repository: Option<String>,
    /// Only runs of commits that begin so.
    pub commit: Option<String>,
    /// At most so many; the store gives no more than 200.
    pub limit: u32,
}

/// How long things are kept.
#[derive(Debug, Clone, Copy)]
pub struct RetentionPolicy {
    /// Runs that were final before this are dropped with their jobs, attempts, logs and artifacts, unless one of
    /// their artifacts is still to be kept.
    pub runs_before: Timestamp,
    /// Logs of runs that were final before this are dropped.
    pub logs_before: Timestamp,
    /// Artifacts that expire before this are dropped. Usually now.
    pub artifacts_before: Timestamp,
    /// Most runs to handle in one transaction.
    pub batch: u32,
}

/// Objects that nothing refers to any more, after a sweep. Deleting them twice is safe, and what an epoch did not
/// come to delete is named again in the next. A content may be kept again by an artifact that comes just now:
/// whoever deletes has to leave alone what was uploaded a short while ago.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Runs that were dropped.
    pub runs: u64,
    /// Names of log objects.
    pub log_objects: Vec<String>,
    /// Hashes of artifact contents.
    pub blobs: Vec<String>,
    /// Whether a limit was reached, so that more may be due.
    pub more: bool,
}

/// The coordinator's memory. Every change is durable when its call returns.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Begins a new epoch. Schedulers of older ones can commit nothing from here on.
    async fn begin_epoch(&self) -> Result<Epoch>;
    /// What a scheduler needs to go on.
    async fn load(&self) -> Result<Snapshot>;
    /// Commits a batch, whole or not at all. Gives the events with their sequence numbers.
    async fn commit(&self, epoch: Epoch, batch: &Batch) -> Result<Vec<EventView>>;

    /// A run.
    async fn run(&self, run: RunId) -> Result<Option<Run>>;
    /// Runs, newest first.
    async fn runs(&self, query: &RunQuery) -> Result<Vec<Run>>;
    /// The jobs of a run in file order.
    async fn jobs(&self, run: RunId) -> Result<Vec<Job>>;
    /// The attempts of a run, with what is kept of their logs.
    async fn attempts(&self, run: RunId) -> Result<Vec<(Attempt, LogState)>>;
    /// One attempt.
    async fn attempt(&self, attempt: AttemptId) -> Result<Option<(Attempt, LogState)>>;
    /// Events after a sequence number, oldest first, at most `limit`; of one run, or of all.
    async fn events(&self, after: u64, run: Option<RunId>, limit: u32) -> Result<Vec<EventView>>;
    /// The newest event's sequence number; 0 if there is none.
    async fn last_event(&self) -> Result<u64>;
    /// Acts on record, newest first.
    async fn audit(&self, limit: u32) -> Result<Vec<AuditLine>>;

    /// Adds a chunk to a log. Its offset must be the log's length; the answer is the new length.
    /// A chunk that is there already, with the same hash, is accepted again.
    async fn append_log(&self, by: Fenced, chunk: &LogChunk) -> Result<u64>;
    /// Closes a log. Its length must be what is kept. Closing it again with the same hash is accepted.
    async fn finish_log(&self, by: Fenced, length: u64, sha256: &str) -> Result<()>;
    /// Where the bytes of a log are, from the chunk that holds `from` on, in order, at most `limit` chunks.
    async fn log_chunks(&self, attempt: AttemptId, from: u64, limit: u32) -> Result<Vec<LogChunk>>;
    /// Finished logs of which at least two chunks are shorter than `below`, in the order of their ids, beginning
    /// behind `after`, at most `limit`.
    async fn small_logs(&self, after: Option<AttemptId>, below: u64, limit: u32) -> Result<Vec<AttemptId>>;
    /// Puts one object in the place of all chunks that it covers. Gives the names of the objects replaced.
    async fn compact_log(&self, attempt: AttemptId, whole: &LogChunk) -> Result<Vec<String>>;

    /// Keeps an artifact. Keeping the same files under the same name again is accepted.
    async fn put_artifact(&self, by: Fenced, artifact: &Artifact) -> Result<()>;
    /// The artifacts of a run.
    async fn artifacts(&self, run: RunId) -> Result<Vec<Artifact>>;

    /// Makes a token good.
    async fn add_token(&self, token: &Token) -> Result<()>;
    /// Makes an administrator's token good, and others of its name no more.
    async fn replace_admin_token(&self, token: &Token) -> Result<()>;
    /// A token by its hash, invitations excluded.
    async fn token(&self, hash: &str) -> Result<Option<Token>>;
    /// Uses up an invitation: of two calls at once, one is accepted.
    async fn use_invite(&self, hash: &str, now: Timestamp) -> Result<InviteUse>;

    /// Which of these artifact contents no artifact names. A store that cannot tell names none, so that nothing
    /// that is needed is ever dropped.
    async fn unused_blobs(&self, _sha256: &[String]) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Drops what is too old.
    async fn sweep(&self, policy: &RetentionPolicy) -> Result<Swept>;
    /// Whether the database answers: a read of one row.
    async fn ping(&self) -> Result<()>;
}
