//! The scheduler's transaction.

use buildyard_store::StoreError;
use buildyard_types::Epoch;
use sqlx::sqlite::SqliteConnection;

use crate::changes::{Changes, Rows, int};
use crate::seal::word;
use crate::tokens;
use crate::writer::{Failure, Write};

/// Begins a new epoch.
pub(crate) struct BeginEpoch;

impl Write for BeginEpoch {
    type Output = Epoch;

    fn during(&self) -> String {
        "beginning a new epoch".into()
    }

    async fn write(&self, conn: &mut SqliteConnection) -> Result<Epoch, Failure> {
        let row = sqlx::query!("UPDATE meta SET epoch = epoch + 1, twin = twin + 1 RETURNING epoch");
        Ok(Epoch(row.fetch_one(conn).await?.epoch as u64))
    }
}

/// Commits the changes of one batch. Gives the sequence number before its first event.
pub(crate) struct Commit {
    pub(crate) epoch: Epoch,
    pub(crate) changes: Changes,
}

impl Write for Commit {
    type Output = u64;

    fn during(&self) -> String {
        format!("committing {} records", self.changes.records)
    }

    async fn write(&self, conn: &mut SqliteConnection) -> Result<u64, Failure> {
        let changes = &self.changes;
        let last_event = self.count(conn).await?;
        put_runs(conn, changes).await?;
        put_jobs(conn, changes).await?;
        put_attempts(conn, changes).await?;
        put_workers(conn, changes).await?;
        put_events(conn, last_event, &changes.events).await?;
        for line in &changes.audit {
            let at = int(line.at.0);
            let seal = word("act", "", &(at, &line.actor, &line.act, &line.subject));
            sqlx::query!(
                "INSERT INTO audit (at_ms, actor, act, subject, seal) VALUES (?, ?, ?, ?, ?)",
                at,
                line.actor,
                line.act,
                line.subject,
                seal
            )
            .execute(&mut *conn)
            .await?;
        }
        for token in &changes.tokens {
            tokens::put(conn, token).await?;
        }
        Ok(last_event as u64)
    }
}

impl Commit {
    /// Checks the epoch and moves the counters on, in one statement. Gives the newest event's number before it.
    async fn count(&self, conn: &mut SqliteConnection) -> Result<i64, Failure> {
        let ours = int(self.epoch.0);
        let events = int(self.changes.events.count);
        let counted = sqlx::query!(
            r#"UPDATE meta
               SET last_run = max(last_run, ?1), last_fence = max(last_fence, ?2), last_event = last_event + ?3,
                   twin = epoch + 3 * max(last_run, ?1) + 5 * max(last_fence, ?2) + 7 * (last_event + ?3)
               WHERE epoch = ?4
               RETURNING last_event"#,
            self.changes.last_run,
            self.changes.last_fence,
            events,
            ours
        )
        .fetch_optional(&mut *conn)
        .await?;
        if let Some(row) = counted {
            return Ok(row.last_event - events);
        }
        let newest = sqlx::query!("SELECT epoch FROM meta").fetch_one(conn).await?.epoch;
        let newest = Epoch(newest as u64);
        Err(Failure::Refused(StoreError::EpochOver { ours: self.epoch, newest }))
    }
}

/// A record that speaks of something unknown is a broken invariant of the caller; nothing of its batch stays.
fn all_found(what: &str, rows: &Rows, found: u64) -> Result<(), Failure> {
    if rows.count == found {
        return Ok(());
    }
    let missing = rows.count.saturating_sub(found);
    let text = format!("{missing} of {} changed {what} are not on record", rows.count);
    Err(Failure::Undo(StoreError::Conflict(text)))
}

async fn put_runs(conn: &mut SqliteConnection, changes: &Changes) -> Result<(), Failure> {
    if changes.runs_created.count > 0 {
        sqlx::query!(
            r#"INSERT INTO runs
                   (id, repository, commit_id, created_ms, run, pipeline, state, state_name, final_ms)
               SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
                   value ->> 7, value ->> 8
               FROM json_each(?) WHERE true
               ON CONFLICT (id) DO UPDATE SET
                   repository = excluded.repository, commit_id = excluded.commit_id,
                   created_ms = excluded.created_ms, run = excluded.run, pipeline = excluded.pipeline,
                   state = excluded.state, state_name = excluded.state_name, final_ms = excluded.final_ms"#,
            changes.runs_created.json
        )
        .execute(&mut *conn)
        .await?;
    }
    if changes.request_keys.count > 0 {
        sqlx::query!(
            r#"INSERT INTO request_keys (request_key, run, seal)
               SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE true
               ON CONFLICT (request_key) DO UPDATE SET run = excluded.run, seal = excluded.seal"#,
            changes.request_keys.json
        )
        .execute(&mut *conn)
        .await?;
    }
    if changes.runs_changed.count > 0 {
        let done = sqlx::query!(
            r#"UPDATE runs
               SET pipeline = coalesce(row.value ->> 1, pipeline), state = coalesce(row.value ->> 2, state),
                   state_name = coalesce(row.value ->> 3, state_name),
                   final_ms = iif(row.value ->> 2 IS NULL, final_ms, row.value ->> 4)
               FROM json_each(?) AS row
               WHERE runs.id = row.value ->> 0"#,
            changes.runs_changed.json
        )
        .execute(&mut *conn)
        .await?;
        all_found("runs", &changes.runs_changed, done.rows_affected())?;
    }
    Ok(())
}

async fn put_jobs(conn: &mut SqliteConnection, changes: &Changes) -> Result<(), Failure> {
    if changes.jobs_created.count > 0 {
        sqlx::query!(
            r#"INSERT INTO job_specs (run, job, spec)
               SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE true
               ON CONFLICT (run, job) DO UPDATE SET spec = excluded.spec"#,
            changes.job_specs.json
        )
        .execute(&mut *conn)
        .await?;
        sqlx::query!(
            r#"INSERT INTO jobs (run, job, state, state_name)
               SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?) WHERE true
               ON CONFLICT (run, job) DO UPDATE SET state = excluded.state, state_name = excluded.state_name"#,
            changes.jobs_created.json
        )
        .execute(&mut *conn)
        .await?;
    }
    if changes.jobs_changed.count > 0 {
        let done = sqlx::query!(
            r#"UPDATE jobs SET state = row.value ->> 2, state_name = row.value ->> 3
               FROM json_each(?) AS row
               WHERE run = row.value ->> 0 AND job = row.value ->> 1"#,
            changes.jobs_changed.json
        )
        .execute(&mut *conn)
        .await?;
        all_found("jobs", &changes.jobs_changed, done.rows_affected())?;
    }
    Ok(())
}

async fn put_attempts(conn: &mut SqliteConnection, changes: &Changes) -> Result<(), Failure> {
    if changes.attempts_created.count > 0 {
        sqlx::query!(
            r#"INSERT INTO attempts (run, job, number, fence, worker, attempt, started, state, state_name)
               SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
                   value ->> 7, value ->> 8
               FROM json_each(?) WHERE true
               ON CONFLICT (run, job, number) DO UPDATE SET
                   fence = excluded.fence, worker = excluded.worker, attempt = excluded.attempt,
                   started = excluded.started, state = excluded.state, state_name = excluded.state_name"#,
            changes.attempts_created.json
        )
        .execute(&mut *conn)
        .await?;
    }
    if changes.attempts_changed.count > 0 {
        let done = sqlx::query!(
            r#"UPDATE attempts
               SET started = coalesce(row.value ->> 3, started), state = coalesce(row.value ->> 4, state),
                   state_name = coalesce(row.value ->> 5, state_name)
               FROM json_each(?) AS row
               WHERE run = row.value ->> 0 AND job = row.value ->> 1 AND number = row.value ->> 2"#,
            changes.attempts_changed.json
        )
        .execute(&mut *conn)
        .await?;
        all_found("attempts", &changes.attempts_changed, done.rows_affected())?;
    }
    Ok(())
}

async fn put_workers(conn: &mut SqliteConnection, changes: &Changes) -> Result<(), Failure> {
    if changes.workers_changed.count > 0 {
        sqlx::query!(
            r#"INSERT INTO workers (worker, id)
               SELECT value ->> 0, value ->> 1 FROM json_each(?) WHERE true
               ON CONFLICT (id) DO UPDATE SET worker = excluded.worker"#,
            changes.workers_changed.json
        )
        .execute(&mut *conn)
        .await?;
    }
    if changes.workers_removed.count > 0 {
        let removed = &changes.workers_removed.json;
        sqlx::query!("DELETE FROM workers WHERE id IN (SELECT value FROM json_each(?))", removed)
            .execute(&mut *conn)
            .await?;
        sqlx::query!("DELETE FROM tokens WHERE worker IN (SELECT value FROM json_each(?))", removed)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

async fn put_events(conn: &mut SqliteConnection, last_event: i64, events: &Rows) -> Result<(), Failure> {
    if events.count > 0 {
        sqlx::query!(
            r#"INSERT INTO events (sequence, at_ms, run, event)
               SELECT ? + 1 + key, value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)"#,
            last_event,
            events.json
        )
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}
