//! Questions about what is kept. They see whole transactions only, and never wait for the writer.

use buildyard_scheduler::lifecycle::attempt::Attempt;
use buildyard_scheduler::lifecycle::job::Job;
use buildyard_scheduler::lifecycle::run::Run;
use buildyard_scheduler::lifecycle::worker::Worker;
use buildyard_store::{AuditLine, LogState, RunQuery, Snapshot};
use buildyard_types::api::EventView;
use buildyard_types::{AttemptId, RunId, Timestamp};
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use crate::changes::int;
use crate::error::Fault;
use crate::logs::Key;
use crate::seal::{check, unseal};

/// Most runs of one page.
const PAGE: u32 = 200;
/// Most keys of requesters that a scheduler takes up.
const KEYS: i64 = 10_000;

struct RunRow {
    id: i64,
    run: String,
    pipeline: Option<String>,
    state: String,
}

impl RunRow {
    fn read(self) -> Result<Run, Fault> {
        let id = RunId(self.id as u64);
        let text = id.to_string();
        let run: Run = unseal("run", &text, &self.run)?;
        let pipeline = match &self.pipeline {
            None => None,
            Some(sealed) => Some(unseal("pipeline", &text, sealed)?),
        };
        Ok(Run { id, pipeline, state: unseal("run state", &text, &self.state)?, ..run })
    }
}

struct JobRow {
    run: i64,
    job: i64,
    spec: String,
    state: String,
    attempts: i64,
}

impl JobRow {
    fn read(self) -> Result<Job, Fault> {
        let id = RunId(self.run as u64).job(self.job as u32);
        let text = id.to_string();
        let job: Job = unseal("job", &text, &self.spec)?;
        let attempts = job.attempts.max(self.attempts as u32);
        Ok(Job { id, attempts, state: unseal("job state", &text, &self.state)?, ..job })
    }
}

struct AttemptRow {
    run: i64,
    job: i64,
    number: i64,
    attempt: String,
    started: Option<String>,
    state: String,
    length: i64,
    sha256: Option<String>,
    seal: Option<i64>,
    dropped: bool,
}

impl AttemptRow {
    fn read(self) -> Result<(Attempt, LogState), Fault> {
        let id = RunId(self.run as u64).job(self.job as u32).attempt(self.number as u32);
        let text = id.to_string();
        let attempt: Attempt = unseal("attempt", &text, &self.attempt)?;
        let started_at = match &self.started {
            None => None,
            Some(sealed) => Some(unseal("start", &text, sealed)?),
        };
        let state = unseal("attempt state", &text, &self.state)?;
        if let Some(seal) = self.seal {
            check("log", &text, &(self.length, &self.sha256), seal)?;
        }
        let log = LogState { length: self.length as u64, sha256: self.sha256, dropped: self.dropped };
        Ok((Attempt { id, started_at, state, ..attempt }, log))
    }
}

fn read_all<R, T>(rows: Vec<R>, read: impl Fn(R) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
    rows.into_iter().map(read).collect()
}

/// A run.
pub(crate) async fn run(readers: &SqlitePool, run: RunId) -> Result<Option<Run>, Fault> {
    let id = int(run.0);
    let row = sqlx::query_as!(RunRow, "SELECT id, run, pipeline, state FROM runs WHERE id = ?", id)
        .fetch_optional(readers)
        .await?;
    row.map(RunRow::read).transpose()
}

/// A page of runs. Each form of the question has an index of its own, so none reads through all runs.
pub(crate) async fn runs(readers: &SqlitePool, query: &RunQuery) -> Result<Vec<Run>, Fault> {
    let before = query.before.map_or(i64::MAX, |run| int(run.0));
    let limit = query.limit.min(PAGE);
    let rows = match (&query.commit, &query.repository) {
        (Some(commit), repository) => {
            runs_by_commit(readers, commit, repository.as_deref(), before, limit).await
        }
        (None, Some(repository)) => {
            sqlx::query_as!(
                RunRow,
                r#"SELECT id, run, pipeline, state FROM runs WHERE repository = ? AND id < ?
                   ORDER BY id DESC LIMIT ?"#,
                repository,
                before,
                limit
            )
            .fetch_all(readers)
            .await
        }
        (None, None) => {
            sqlx::query_as!(
                RunRow,
                "SELECT id, run, pipeline, state FROM runs WHERE id < ? ORDER BY id DESC LIMIT ?",
                before,
                limit
            )
            .fetch_all(readers)
            .await
        }
    };
    read_all(rows?, RunRow::read)
}

async fn runs_by_commit(
    readers: &SqlitePool,
    commit: &str,
    repository: Option<&str>,
    before: i64,
    limit: u32,
) -> sqlx::Result<Vec<RunRow>> {
    // Commits are hexadecimal, so everything that begins with the prefix sorts below the prefix and a `g`.
    let end = format!("{commit}g");
    sqlx::query_as!(
        RunRow,
        r#"SELECT id, run, pipeline, state FROM runs INDEXED BY runs_by_commit
           WHERE commit_id >= ?1 AND commit_id < ?2 AND id < ?3 AND (?4 IS NULL OR repository = ?4)
           ORDER BY id DESC LIMIT ?5"#,
        commit,
        end,
        before,
        repository,
        limit
    )
    .fetch_all(readers)
    .await
}

/// The jobs of a run.
pub(crate) async fn jobs(readers: &SqlitePool, run: RunId) -> Result<Vec<Job>, Fault> {
    let id = int(run.0);
    let rows = sqlx::query_as!(
        JobRow,
        r#"SELECT j.run, j.job, s.spec, j.state,
               (SELECT coalesce(max(number), 0) FROM attempts a WHERE a.run = j.run AND a.job = j.job)
                   AS "attempts!: i64"
           FROM jobs j JOIN job_specs s ON s.run = j.run AND s.job = j.job
           WHERE j.run = ? ORDER BY j.job"#,
        id
    )
    .fetch_all(readers)
    .await?;
    read_all(rows, JobRow::read)
}

/// The attempts of a run.
pub(crate) async fn attempts(readers: &SqlitePool, run: RunId) -> Result<Vec<(Attempt, LogState)>, Fault> {
    let id = int(run.0);
    let rows = sqlx::query_as!(
        AttemptRow,
        r#"SELECT a.run, a.job, a.number, a.attempt, a.started, a.state,
               coalesce(l.length, (SELECT start + c.length FROM log_chunks c
                   WHERE c.run = a.run AND c.job = a.job AND c.number = a.number
                   ORDER BY start DESC LIMIT 1), 0) AS "length!: i64",
               l.sha256 AS "sha256?: String", l.seal AS "seal?: i64", r.logs_swept AS "dropped: bool"
           FROM attempts a JOIN runs r ON r.id = a.run LEFT JOIN logs l ON l.run = a.run AND l.job = a.job AND l.number = a.number
           WHERE a.run = ? ORDER BY a.job, a.number"#,
        id
    )
    .fetch_all(readers)
    .await?;
    read_all(rows, AttemptRow::read)
}

/// One attempt.
pub(crate) async fn attempt(
    readers: &SqlitePool,
    attempt: AttemptId,
) -> Result<Option<(Attempt, LogState)>, Fault> {
    let key = Key::from(attempt);
    let row = sqlx::query_as!(
        AttemptRow,
        r#"SELECT a.run, a.job, a.number, a.attempt, a.started, a.state,
               coalesce(l.length, (SELECT start + c.length FROM log_chunks c
                   WHERE c.run = a.run AND c.job = a.job AND c.number = a.number
                   ORDER BY start DESC LIMIT 1), 0) AS "length!: i64",
               l.sha256 AS "sha256?: String", l.seal AS "seal?: i64", r.logs_swept AS "dropped: bool"
           FROM attempts a JOIN runs r ON r.id = a.run LEFT JOIN logs l ON l.run = a.run AND l.job = a.job AND l.number = a.number
           WHERE a.run = ? AND a.job = ? AND a.number = ?"#,
        key.run,
        key.job,
        key.number
    )
    .fetch_optional(readers)
    .await?;
    row.map(AttemptRow::read).transpose()
}

struct EventRow {
    sequence: i64,
    event: String,
}

impl EventRow {
    fn read(self) -> Result<EventView, Fault> {
        let event: EventView = unseal("event", "", &self.event)?;
        Ok(EventView { sequence: self.sequence as u64, ..event })
    }
}

/// Events after a number.
pub(crate) async fn events(
    readers: &SqlitePool,
    after: u64,
    run: Option<RunId>,
    limit: u32,
) -> Result<Vec<EventView>, Fault> {
    let after = int(after);
    let rows =
        match run.map(|run| int(run.0)) {
            Some(run) => sqlx::query_as!(
                EventRow,
                "SELECT sequence, event FROM events WHERE run = ? AND sequence > ? ORDER BY sequence LIMIT ?",
                run,
                after,
                limit
            )
            .fetch_all(readers)
            .await?,
            None => {
                sqlx::query_as!(
                    EventRow,
                    "SELECT sequence, event FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?",
                    after,
                    limit
                )
                .fetch_all(readers)
                .await?
            }
        };
    read_all(rows, EventRow::read)
}

/// The newest event's number.
pub(crate) async fn last_event(readers: &SqlitePool) -> Result<u64, Fault> {
    let row = sqlx::query!("SELECT last_event FROM meta").fetch_one(readers).await?;
    Ok(row.last_event as u64)
}

/// Acts on record.
pub(crate) async fn audit(readers: &SqlitePool, limit: u32) -> Result<Vec<AuditLine>, Fault> {
    let rows =
        sqlx::query!("SELECT at_ms, actor, act, subject, seal FROM audit ORDER BY id DESC LIMIT ?", limit)
            .fetch_all(readers)
            .await?;
    read_all(rows, |row| {
        check("act", "", &(row.at_ms, &row.actor, &row.act, &row.subject), row.seal)?;
        Ok(AuditLine {
            at: Timestamp(row.at_ms as u64),
            actor: row.actor,
            act: row.act,
            subject: row.subject,
        })
    })
}

/// What a scheduler needs to go on: one transaction, so that all of it is of one moment.
pub(crate) async fn load(readers: &SqlitePool) -> Result<Snapshot, Fault> {
    let mut snapshot = readers.begin().await?;
    let conn = &mut *snapshot;
    let meta = sqlx::query!("SELECT last_run, last_fence FROM meta").fetch_one(&mut *conn).await?;
    let runs = sqlx::query_as!(
        RunRow,
        r#"SELECT id, run, pipeline, state FROM runs WHERE final_ms IS NULL
           UNION
           SELECT id, run, pipeline, state FROM runs
           WHERE id IN (SELECT run FROM attempts WHERE state_name <> 'removed') ORDER BY id"#
    )
    .fetch_all(&mut *conn)
    .await?;
    Ok(Snapshot {
        last_run: meta.last_run as u64,
        last_fence: meta.last_fence as u64,
        runs: read_all(runs, RunRow::read)?,
        jobs: open_jobs(conn).await?,
        attempts: open_attempts(conn).await?,
        workers: workers(conn).await?,
        keys: keys(conn).await?,
    })
}

async fn open_jobs(conn: &mut SqliteConnection) -> Result<Vec<Job>, Fault> {
    let rows = sqlx::query_as!(
        JobRow,
        r#"WITH open AS (
               SELECT id FROM runs WHERE final_ms IS NULL
               UNION SELECT run FROM attempts WHERE state_name <> 'removed')
           SELECT j.run, j.job, s.spec, j.state,
               (SELECT coalesce(max(number), 0) FROM attempts a WHERE a.run = j.run AND a.job = j.job)
                   AS "attempts!: i64"
           FROM open JOIN jobs j ON j.run = open.id JOIN job_specs s ON s.run = j.run AND s.job = j.job
           ORDER BY j.run, j.job"#
    )
    .fetch_all(conn)
    .await?;
    read_all(rows, JobRow::read)
}

async fn open_attempts(conn: &mut SqliteConnection) -> Result<Vec<Attempt>, Fault> {
    let rows = sqlx::query_as!(
        AttemptRow,
        r#"WITH open AS (
               SELECT id FROM runs WHERE final_ms IS NULL
               UNION SELECT run FROM attempts WHERE state_name <> 'removed')
           SELECT a.run, a.job, a.number, a.attempt, a.started, a.state,
               0 AS "length!: i64", NULL AS "sha256?: String", NULL AS "seal?: i64",
               false AS "dropped!: bool"
           FROM open JOIN attempts a ON a.run = open.id ORDER BY a.run, a.job, a.number"#
    )
    .fetch_all(conn)
    .await?;
    read_all(rows, |row| row.read().map(|(attempt, _)| attempt))
}

async fn workers(conn: &mut SqliteConnection) -> Result<Vec<Worker>, Fault> {
    let rows = sqlx::query!("SELECT id, worker FROM workers ORDER BY id").fetch_all(conn).await?;
    rows.into_iter().map(|row| Ok(unseal("worker", &row.id, &row.worker)?)).collect()
}

async fn keys(conn: &mut SqliteConnection) -> Result<Vec<(String, RunId)>, Fault> {
    let rows =
        sqlx::query!("SELECT request_key, run, seal FROM request_keys ORDER BY run DESC LIMIT ?", KEYS)
            .fetch_all(conn)
            .await?;
    read_all(rows, |row| {
        check("key", &row.request_key, &row.run, row.seal)?;
        Ok((row.request_key, RunId(row.run as u64)))
    })
}
