//! Where the bytes of logs are. Every write of a worker is checked in the transaction that makes it.

use buildyard_store::{Fenced, LogChunk, StoreError};
use buildyard_types::{AttemptId, RunId};
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use crate::changes::int;
use crate::error::Fault;
use crate::seal::{check as check_seal, word};
use crate::sweep::remember_logs;
use crate::writer::{Failure, Write};

/// An attempt's id as the columns that hold it.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    pub(crate) run: i64,
    pub(crate) job: i64,
    pub(crate) number: i64,
}

impl From<AttemptId> for Key {
    fn from(id: AttemptId) -> Self {
        Self { run: int(id.job.run.0), job: id.job.index.0.into(), number: id.number.0.into() }
    }
}

/// What is kept of a log, with the right of the caller to change it checked.
struct Kept {
    length: i64,
    sha256: Option<String>,
}

fn stale(by: &Fenced) -> Failure {
    Failure::Refused(StoreError::Stale { attempt: by.attempt })
}

fn conflict(text: String) -> Failure {
    Failure::Refused(StoreError::Conflict(text))
}

/// A number that a worker sent. One beyond 2^63 cannot be true of anything that is kept.
fn sent(number: u64, by: &Fenced) -> Result<i64, Failure> {
    i64::try_from(number)
        .map_err(|_| conflict(format!("{number} bytes are more than a log of {} can hold", by.attempt)))
}

/// Whether the attempt is live, the caller's, and under this fence.
pub(crate) async fn check(conn: &mut SqliteConnection, by: &Fenced) -> Result<(), Failure> {
    kept(conn, by).await.map(|_| ())
}

async fn kept(conn: &mut SqliteConnection, by: &Fenced) -> Result<Kept, Failure> {
    let key = Key::from(by.attempt);
    let (fence, worker) = (int(by.fence.0), by.worker.to_string());
    let row = sqlx::query!(
        r#"SELECT coalesce((SELECT start + c.length FROM log_chunks c
                   WHERE c.run = a.run AND c.job = a.job AND c.number = a.number
                   ORDER BY start DESC LIMIT 1), 0) AS "length!: i64",
               l.sha256 AS "sha256?: String"
           FROM attempts a LEFT JOIN logs l ON l.run = a.run AND l.job = a.job AND l.number = a.number
           WHERE a.run = ? AND a.job = ? AND a.number = ? AND a.fence = ? AND a.worker = ?
               AND a.state_name = 'live'"#,
        key.run,
        key.job,
        key.number,
        fence,
        worker
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| Kept { length: row.length, sha256: row.sha256 }).ok_or_else(|| stale(by))
}

/// Adds a chunk.
pub(crate) struct Append {
    pub(crate) by: Fenced,
    pub(crate) chunk: LogChunk,
}

impl Write for Append {
    type Output = u64;

    fn during(&self) -> String {
        format!("adding to the log of {}", self.by.attempt)
    }

    async fn write(&self, conn: &mut SqliteConnection) -> Result<u64, Failure> {
        let (by, chunk) = (&self.by, &self.chunk);
        let kept = kept(conn, by).await?;
        let (start, length) = (sent(chunk.offset, by)?, sent(chunk.length, by)?);
        let end = start.checked_add(length);
        let end = end.ok_or_else(|| conflict(format!("the log of {} cannot be so long", by.attempt)))?;
        if start < kept.length {
            same_chunk(conn, by, chunk, start, length).await?;
            return Ok(kept.length as u64);
        }
        if start > kept.length {
            let text = format!(
                "{} bytes of the log of {} are kept; {start} would leave a gap",
                kept.length, by.attempt
            );
            return Err(conflict(text));
        }
        // No bytes are no chunk: its place would be the next one's.
        if length == 0 {
            return Ok(kept.length as u64);
        }
        if kept.sha256.is_some() {
            return Err(conflict(format!("the log of {} is finished", by.attempt)));
        }
        add_chunk(conn, by.attempt, chunk, start, length).await?;
        Ok(end as u64)
    }
}

async fn same_chunk(
    conn: &mut SqliteConnection,
    by: &Fenced,
    chunk: &LogChunk,
    start: i64,
    length: i64,
) -> Result<(), Failure> {
    let key = Key::from(by.attempt);
    let row = sqlx::query!(
        "SELECT length, sha256 FROM log_chunks WHERE run = ? AND job = ? AND number = ? AND start = ?",
        key.run,
        key.job,
        key.number,
        start
    )
    .fetch_optional(conn)
    .await?;
    match row {
        Some(row) if row.length == length && row.sha256 == chunk.sha256 => Ok(()),
        Some(_) | None => {
            Err(conflict(format!("other bytes are kept at {start} of the log of {}", by.attempt)))
        }
    }
}

async fn add_chunk(
    conn: &mut SqliteConnection,
    attempt: AttemptId,
    chunk: &LogChunk,
    start: i64,
    length: i64,
) -> Result<(), Failure> {
    let key = Key::from(attempt);
    let seal = word("log chunk", &attempt.to_string(), &(start, length, &chunk.sha256, &chunk.object));
    sqlx::query!(
        r#"INSERT INTO log_chunks (run, job, number, start, length, sha256, object, seal)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?)"#,
        key.run,
        key.job,
        key.number,
        start,
        length,
        chunk.sha256,
        chunk.object,
        seal
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Closes a log.
pub(crate) struct Finish {
    pub(crate) by: Fenced,
    pub(crate) length: u64,
    pub(crate) sha256: String,
}

impl Write for Finish {
    type Output = ();

    fn during(&self) -> String {
        format!("closing the log of {}", self.by.attempt)
    }

    async fn write(&self, conn: &mut SqliteConnection) -> Result<(), Failure> {
        let by = &self.by;
        let kept = kept(conn, by).await?;
        let length = sent(self.length, by)?;
        if length != kept.length {
            let text = format!("{} bytes of the log of {} are kept, not {length}", kept.length, by.attempt);
            return Err(conflict(text));
        }
        match kept.sha256 {
            Some(sha256) if sha256 == self.sha256 => return Ok(()),
            Some(_) => {
                return Err(conflict(format!("the log of {} was closed with another hash", by.attempt)));
            }
            None => {}
        }
        let key = Key::from(by.attempt);
        let seal = word("log", &by.attempt.to_string(), &(length, Some(&self.sha256)));
        sqlx::query!(
            "INSERT INTO logs (run, job, number, length, sha256, seal) VALUES (?, ?, ?, ?, ?, ?)",
            key.run,
            key.job,
            key.number,
            length,
            self.sha256,
            seal
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}

/// Puts one object in the place of several chunks.
pub(crate) struct Compact {
    pub(crate) attempt: AttemptId,
    pub(crate) whole: LogChunk,
}

impl Write for Compact {
    type Output = Vec<String>;

    fn during(&self) -> String {
        format!("compacting the log of {}", self.attempt)
    }

    async fn write(&self, conn: &mut SqliteConnection) -> Result<Vec<String>, Failure> {
        let key = Key::from(self.attempt);
        let (start, length) = (int(self.whole.offset), int(self.whole.length));
        let end = start.saturating_add(length);
        let covered = sqlx::query!(
            r#"SELECT start, length, object FROM log_chunks
               WHERE run = ? AND job = ? AND number = ? AND start + length > ? AND start < ? ORDER BY start"#,
            key.run,
            key.job,
            key.number,
            start,
            end
        )
        .fetch_all(&mut *conn)
        .await?;
        // Chunks follow each other without a gap, so the first and the last say whether all of it is theirs.
        let first = covered.first().map(|chunk| chunk.start);
        let last = covered.last().map(|chunk| chunk.start + chunk.length);
        if (first, last) != (Some(start), Some(end)) {
            let text = format!("bytes {start} to {end} of the log of {} are not whole chunks", self.attempt);
            return Err(conflict(text));
        }
        let mut replaced: Vec<String> = covered.into_iter().map(|chunk| chunk.object).collect();
        replaced.retain(|object| *object != self.whole.object);
        if replaced.is_empty() {
            return Ok(replaced);
        }
        sqlx::query!(
            "DELETE FROM log_chunks WHERE run = ? AND job = ? AND number = ? AND start >= ? AND start < ?",
            key.run,
            key.job,
            key.number,
            start,
            end
        )
        .execute(&mut *conn)
        .await?;
        add_chunk(conn, self.attempt, &self.whole, start, length).await?;
        remember_logs(conn, &replaced).await?;
        Ok(replaced)
    }
}

/// Finished logs with several short chunks, behind `after`.
pub(crate) async fn small(
    readers: &SqlitePool,
    after: Option<AttemptId>,
    below: u64,
    limit: u32,
) -> Result<Vec<AttemptId>, Fault> {
    let below = int(below);
    let Key { run, job, number } = after.map_or(Key { run: -1, job: 0, number: 0 }, Key::from);
    let rows = sqlx::query!(
        r#"SELECT run, job, number FROM logs AS l
           WHERE (run, job, number) > (?1, ?2, ?3)
               AND (SELECT count(*) FROM (SELECT 1 FROM log_chunks AS c
                   WHERE c.run = l.run AND c.job = l.job AND c.number = l.number AND c.length < ?4
                   LIMIT 2)) > 1
           ORDER BY run, job, number LIMIT ?5"#,
        run,
        job,
        number,
        below,
        limit
    )
    .fetch_all(readers)
    .await?;
    let id = |run: i64, job: i64, number: i64| RunId(run as u64).job(job as u32).attempt(number as u32);
    Ok(rows.into_iter().map(|row| id(row.run, row.job, row.number)).collect())
}

/// The chunks from the one that holds `from` on.
pub(crate) async fn chunks(
    readers: &SqlitePool,
    attempt: AttemptId,
    from: u64,
    limit: u32,
) -> Result<Vec<LogChunk>, Fault> {
    let key = Key::from(attempt);
    let from = int(from);
    let rows = sqlx::query!(
        r#"SELECT start AS "start!", length AS "length!", sha256 AS "sha256!", object AS "object!",
               seal AS "seal!"
           FROM log_chunks
           WHERE run = ?1 AND job = ?2 AND number = ?3 AND start + length > ?4
               AND start >= coalesce((SELECT max(start) FROM log_chunks
                   WHERE run = ?1 AND job = ?2 AND number = ?3 AND start <= ?4), 0)
           ORDER BY start LIMIT ?5"#,
        key.run,
        key.job,
        key.number,
        from,
        limit
    )
    .fetch_all(readers)
    .await?;
    let id = attempt.to_string();
    let mut chunks = Vec::with_capacity(rows.len());
    for row in rows {
        check_seal("log chunk", &id, &(row.start, row.length, &row.sha256, &row.object), row.seal)?;
        chunks.push(LogChunk {
            offset: row.start as u64,
            length: row.length as u64,
            sha256: row.sha256,
            object: row.object,
        });
    }
    Ok(chunks)
}
