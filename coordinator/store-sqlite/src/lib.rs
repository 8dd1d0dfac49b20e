//! The store on SQLite.
//!
//! One file, one writer. A task owns the one write connection and commits what is waiting in one synced
//! transaction ([`writer`]); questions go to a pool of connections that can only read. The file is locked
//! against a second coordinator, looked at for damage before anything is written, and brought to the program's
//! schema after a copy was made.
//!
//! It trusts nothing that it reads back: see [`seal`] and [`wal`]. After a failed sync it acknowledges nothing
//! until it is opened anew, since a sync that failed once may succeed the next time without having written
//! anything. The figures and the reasons: `docs/decisions/0002-store.md`.

mod artifacts;
mod changes;
mod commit;
mod error;
mod lock;
mod logs;
mod open;
mod read;
mod seal;
mod sweep;
mod tokens;
mod wal;
mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use buildyard_scheduler::lifecycle::attempt::Attempt;
use buildyard_scheduler::lifecycle::job::Job;
use buildyard_scheduler::lifecycle::run::Run;
use buildyard_store::{
    Artifact, AuditLine, Batch, Fenced, InviteUse, LogChunk, LogState, Result, RetentionPolicy, RunQuery,
    Snapshot, Store, Swept, Token,
};
use buildyard_types::api::EventView;
use buildyard_types::{AttemptId, Epoch, RunId, Timestamp};
use sqlx::sqlite::SqlitePool;

use crate::changes::Changes;
use crate::commit::{BeginEpoch, Commit};
use crate::error::Health;
pub use crate::error::{Fault, OpenError};
use crate::writer::{Write, Writer};

/// Connections that read.
const READERS: u32 = 4;
/// How long a call waits for a lock of another process, or for a free connection, before it gives up.
const WAIT: Duration = Duration::from_secs(5);

/// A coordinator's database.
pub struct SqliteStore {
    path: PathBuf,
    readers: SqlitePool,
    writer: Writer,
    health: Health,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the database at `path`, and makes it if there is none. The folder must be there.
    pub async fn open(path: &Path) -> std::result::Result<Self, OpenError> {
        open::open(path, &open::MIGRATIONS).await
    }

    /// Commits what is waiting, writes everything into the main file and gives the lock back. Later calls fail.
    pub async fn close(&self) -> std::result::Result<(), Fault> {
        self.readers.close().await;
        match self.writer.close().await {
            None => Ok(()),
            Some(error) => Err(error.into()),
        }
    }

    async fn write<W: Write>(&self, write: W) -> Result<W::Output> {
        self.writer.write(write).await
    }

    /// Gives a reader's fault its place, and stops the writer where it must stop.
    fn read<T>(&self, during: &str, answer: std::result::Result<T, Fault>) -> Result<T> {
        answer.map_err(|fault| {
            self.health.note(&fault);
            fault.during(format!("reading {during} from {}", self.path.display()))
        })
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn begin_epoch(&self) -> Result<Epoch> {
        self.write(BeginEpoch).await
    }

    async fn load(&self) -> Result<Snapshot> {
        let snapshot = read::load(&self.readers).await;
        let what = match &snapshot {
            Err(Fault::BadRow { .. }) => {
                "the farm (docs/operations.md says under \"A damaged row\" how to go on)"
            }
            Ok(_) | Err(_) => "the farm",
        };
        self.read(what, snapshot)
    }

    async fn commit(&self, epoch: Epoch, batch: &Batch) -> Result<Vec<EventView>> {
        let before = self.write(Commit { epoch, changes: Changes::of(batch) }).await?;
        let numbered = |(sequence, event): (u64, &EventView)| EventView { sequence, ..event.clone() };
        Ok((before + 1..).zip(&batch.events).map(numbered).collect())
    }

    async fn run(&self, run: RunId) -> Result<Option<Run>> {
        self.read(&run.to_string(), read::run(&self.readers, run).await)
    }

    async fn runs(&self, query: &RunQuery) -> Result<Vec<Run>> {
        self.read("runs", read::runs(&self.readers, query).await)
    }

    async fn jobs(&self, run: RunId) -> Result<Vec<Job>> {
        self.read(&format!("the jobs of {run}"), read::jobs(&self.readers, run).await)
    }

    async fn attempts(&self, run: RunId) -> Result<Vec<(Attempt, LogState)>> {
        self.read(&format!("the attempts of {run}"), read::attempts(&self.readers, run).await)
    }

    async fn attempt(&self, attempt: AttemptId) -> Result<Option<(Attempt, LogState)>> {
        self.read(&attempt.to_string(), read::attempt(&self.readers, attempt).await)
    }

    async fn events(&self, after: u64, run: Option<RunId>, limit: u32) -> Result<Vec<EventView>> {
        self.read("events", read::events(&self.readers, after, run, limit).await)
    }

    async fn last_event(&self) -> Result<u64> {
        self.read("the newest event", read::last_event(&self.readers).await)
    }

    async fn audit(&self, limit: u32) -> Result<Vec<AuditLine>> {
        self.read("the audit", read::audit(&self.readers, limit).await)
    }

    async fn append_log(&self, by: Fenced, chunk: &LogChunk) -> Result<u64> {
        self.write(logs::Append { by, chunk: chunk.clone() }).await
    }

    async fn finish_log(&self, by: Fenced, length: u64, sha256: &str) -> Result<()> {
        self.write(logs::Finish { by, length, sha256: sha256.to_owned() }).await
    }

    async fn log_chunks(&self, attempt: AttemptId, from: u64, limit: u32) -> Result<Vec<LogChunk>> {
        let chunks = logs::chunks(&self.readers, attempt, from, limit).await;
        self.read(&format!("the log of {attempt}"), chunks)
    }

    async fn small_logs(&self, after: Option<AttemptId>, below: u64, limit: u32) -> Result<Vec<AttemptId>> {
        self.read("logs in small objects", logs::small(&self.readers, after, below, limit).await)
    }

    async fn compact_log(&self, attempt: AttemptId, whole: &LogChunk) -> Result<Vec<String>> {
        self.write(logs::Compact { attempt, whole: whole.clone() }).await
    }

    async fn put_artifact(&self, by: Fenced, artifact: &Artifact) -> Result<()> {
        self.write(artifacts::Put { by, artifact: artifact.clone() }).await
    }

    async fn artifacts(&self, run: RunId) -> Result<Vec<Artifact>> {
        self.read(&format!("the artifacts of {run}"), artifacts::of_run(&self.readers, run).await)
    }

    async fn add_token(&self, token: &Token) -> Result<()> {
        self.write(tokens::Add(token.clone())).await
    }

    async fn replace_admin_token(&self, token: &Token) -> Result<()> {
        self.write(tokens::ReplaceAdmin(token.clone())).await
    }

    async fn token(&self, hash: &str) -> Result<Option<Token>> {
        self.read("a token", tokens::find(&self.readers, hash).await)
    }

    async fn use_invite(&self, hash: &str, now: Timestamp) -> Result<InviteUse> {
        self.write(tokens::UseInvite { hash: hash.to_owned(), now }).await
    }

    async fn unused_blobs(&self, sha256: &[String]) -> Result<Vec<String>> {
        let unused = sweep::unused_blobs(&self.readers, sha256.to_vec()).await;
        self.read("what artifacts name", unused.map_err(Fault::from))
    }

    async fn sweep(&self, policy: &RetentionPolicy) -> Result<Swept> {
        self.write(sweep::Sweep { policy: *policy }).await
    }

    async fn ping(&self) -> Result<()> {
        let healthy = self.health.check();
        self.read("the database", healthy)?;
        self.read("the database", read::last_event(&self.readers).await.map(|_| ()))
    }
}
