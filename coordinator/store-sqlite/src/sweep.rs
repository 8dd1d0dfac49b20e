//! Drops what is too old, a bounded number of runs at a time, and says which objects nothing refers to any more.
//!
//! Objects are deleted by the caller after the commit. If it ends in between, the names would be lost and the
//! objects stay for ever; so they are kept as garbage, and the first sweeps of the next epoch name them again.

use std::collections::BTreeSet;

use buildyard_store::{RetentionPolicy, Swept};
use sqlx::sqlite::SqliteConnection;

use crate::changes::int;
use crate::seal::{check, word};
use crate::writer::{Failure, Write};

const LOG: &str = "log";
const BLOB: &str = "blob";
/// Most objects of earlier epochs to name in one transaction.
const LEFT_OVER: i64 = 10_000;

/// One transaction of the retention.
pub(crate) struct Sweep {
    pub(crate) policy: RetentionPolicy,
}

impl Write for Sweep {
    type Output = Swept;

    fn during(&self) -> String {
        "dropping what is too old".into()
    }

    async fn write(&self, conn: &mut SqliteConnection) -> Result<Swept, Failure> {
        let limit = i64::from(self.policy.batch.max(1));
        let epoch = epoch(conn).await?;
        // What this epoch's sweeps named before is deleted by now.
        sqlx::query!("DELETE FROM garbage WHERE epoch = ?", epoch).execute(&mut *conn).await?;

        let artifacts_before = int(self.policy.artifacts_before.0);
        let expired = expired_artifacts(conn, artifacts_before, limit).await?;
        let mut reached = expired.len() as i64 >= limit;
        let mut blobs = drop_artifacts_by_id(conn, expired).await?;
        let old_runs = runs_to_drop(conn, int(self.policy.runs_before.0), artifacts_before, limit).await?;
        let no_logs = runs_to_strip(conn, int(self.policy.logs_before.0), limit).await?;
        reached |= old_runs.len() as i64 >= limit || no_logs.len() as i64 >= limit;

        let (mut logs, all_logs) = left_over(conn, LOG).await?;
        logs.extend(drop_logs(conn, &no_logs).await?);
        logs.extend(drop_logs(conn, &old_runs).await?);
        let (old_blobs, all_blobs) = left_over(conn, BLOB).await?;
        blobs.extend(old_blobs);
        blobs.extend(drop_artifacts(conn, &old_runs).await?);
        drop_runs(conn, &old_runs).await?;
        let farm_events = drop_farm_events(conn, int(self.policy.runs_before.0), limit).await?;

        logs.sort_unstable();
        logs.dedup();
        let blobs = unused_blobs(&mut *conn, blobs).await?;
        let more = reached || !all_logs || !all_blobs || farm_events >= limit as u64;
        let swept = Swept { runs: old_runs.len() as u64, log_objects: logs, blobs, more };
        remember(conn, LOG, &swept.log_objects, epoch).await?;
        remember(conn, BLOB, &swept.blobs, epoch).await?;
        Ok(swept)
    }
}

fn json<T: serde::Serialize>(values: &T) -> String {
    serde_json::to_string(values).expect("lists of texts and numbers are JSON")
}

/// A run whose attempts are not all removed is still the scheduler's, and one that kept something for longer
/// stays as long: people find it by its run.
async fn runs_to_drop(
    conn: &mut SqliteConnection,
    before: i64,
    artifacts_before: i64,
    limit: i64,
) -> Result<Vec<i64>, Failure> {
    let ids = sqlx::query_scalar!(
        r#"SELECT id FROM runs
           WHERE final_ms < ?1
               AND NOT EXISTS (SELECT 1 FROM attempts WHERE run = runs.id AND state_name <> 'removed')
               AND NOT EXISTS (SELECT 1 FROM artifacts WHERE run = runs.id AND expires_ms >= ?2)
           ORDER BY final_ms LIMIT ?3"#,
        before,
        artifacts_before,
        limit
    );
    Ok(ids.fetch_all(conn).await?)
}

/// Runs whose logs are too old, marked as without logs.
async fn runs_to_strip(conn: &mut SqliteConnection, before: i64, limit: i64) -> Result<Vec<i64>, Failure> {
    let ids = sqlx::query_scalar!(
        r#"UPDATE runs SET logs_swept = 1
           WHERE id IN (SELECT id FROM runs WHERE final_ms < ? AND logs_swept = 0 ORDER BY final_ms LIMIT ?)
           RETURNING id"#,
        before,
        limit
    );
    Ok(ids.fetch_all(conn).await?)
}

async fn drop_logs(conn: &mut SqliteConnection, runs: &[i64]) -> Result<Vec<String>, Failure> {
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    let runs = json(&runs);
    let objects = sqlx::query_scalar!(
        "DELETE FROM log_chunks WHERE run IN (SELECT value FROM json_each(?)) RETURNING object",
        runs
    )
    .fetch_all(&mut *conn)
    .await?;
    sqlx::query!("DELETE FROM logs WHERE run IN (SELECT value FROM json_each(?))", runs)
        .execute(conn)
        .await?;
    Ok(objects)
}

async fn expired_artifacts(
    conn: &mut SqliteConnection,
    before: i64,
    limit: i64,
) -> Result<Vec<i64>, Failure> {
    let expired = sqlx::query_scalar!(
        "SELECT id FROM artifacts WHERE expires_ms < ? ORDER BY expires_ms LIMIT ?",
        before,
        limit
    )
    .fetch_all(conn)
    .await?;
    Ok(expired)
}

async fn drop_artifacts(conn: &mut SqliteConnection, runs: &[i64]) -> Result<Vec<String>, Failure> {
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    let runs = json(&runs);
    let ids =
        sqlx::query_scalar!("SELECT id FROM artifacts WHERE run IN (SELECT value FROM json_each(?))", runs)
            .fetch_all(&mut *conn)
            .await?;
    drop_artifacts_by_id(conn, ids).await
}

/// Contents of the files of artifacts, which are gone afterwards.
async fn drop_artifacts_by_id(conn: &mut SqliteConnection, ids: Vec<i64>) -> Result<Vec<String>, Failure> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ids = json(&ids);
    let contents = sqlx::query_scalar!(
        "SELECT DISTINCT sha256 FROM artifact_files WHERE artifact IN (SELECT value FROM json_each(?))",
        ids
    )
    .fetch_all(&mut *conn)
    .await?;
    // Their files go with them.
    sqlx::query!("DELETE FROM artifacts WHERE id IN (SELECT value FROM json_each(?))", ids)
        .execute(conn)
        .await?;
    Ok(contents)
}

/// Jobs, attempts and keys go with their run; events name it without belonging to it.
async fn drop_runs(conn: &mut SqliteConnection, runs: &[i64]) -> Result<(), Failure> {
    if runs.is_empty() {
        return Ok(());
    }
    let runs = json(&runs);
    sqlx::query!("DELETE FROM events WHERE run IN (SELECT value FROM json_each(?))", runs)
        .execute(&mut *conn)
        .await?;
    sqlx::query!("DELETE FROM runs WHERE id IN (SELECT value FROM json_each(?))", runs).execute(conn).await?;
    Ok(())
}

/// Events of no run are kept as long as runs are. Gives how many went.
async fn drop_farm_events(conn: &mut SqliteConnection, before: i64, limit: i64) -> Result<u64, Failure> {
    let dropped = sqlx::query!(
        r#"DELETE FROM events WHERE sequence IN
               (SELECT sequence FROM events WHERE run IS NULL AND at_ms < ? ORDER BY at_ms LIMIT ?)"#,
        before,
        limit
    )
    .execute(conn)
    .await?;
    Ok(dropped.rows_affected())
}

/// Takes up what earlier epochs named, and perhaps did not delete. Says whether that was all.
async fn left_over(conn: &mut SqliteConnection, kind: &str) -> Result<(Vec<String>, bool), Failure> {
    let objects = sqlx::query!(
        r#"DELETE FROM garbage
           WHERE kind = ?1 AND object IN (SELECT object FROM garbage WHERE kind = ?1 LIMIT ?2)
           RETURNING object, seal"#,
        kind,
        LEFT_OVER
    );
    let rows = objects.fetch_all(conn).await?;
    // A changed name may be that of another object, which is in use.
    let sound = |object: &str, seal| check("garbage", object, &kind, seal).is_ok();
    let all = (rows.len() as i64) < LEFT_OVER;
    let objects = rows.into_iter().filter(|row| sound(&row.object, row.seal)).map(|row| row.object);
    Ok((objects.collect(), all))
}

/// The contents that no artifact names.
pub(crate) async fn unused_blobs<'c>(
    on: impl sqlx::SqliteExecutor<'c>,
    hashes: Vec<String>,
) -> Result<Vec<String>, sqlx::Error> {
    if hashes.is_empty() {
        return Ok(hashes);
    }
    let hashes = json(&BTreeSet::from_iter(hashes));
    let unused = sqlx::query_scalar!(
        r#"SELECT value || '' AS "value!: String" FROM json_each(?)
           WHERE NOT EXISTS (SELECT 1 FROM artifact_files WHERE sha256 = value) ORDER BY value"#,
        hashes
    );
    unused.fetch_all(on).await
}

async fn epoch(conn: &mut SqliteConnection) -> Result<i64, Failure> {
    Ok(sqlx::query!("SELECT epoch FROM meta").fetch_one(conn).await?.epoch)
}

/// Keeps the names of log objects that a compaction replaced.
pub(crate) async fn remember_logs(conn: &mut SqliteConnection, objects: &[String]) -> Result<(), Failure> {
    let epoch = epoch(conn).await?;
    remember(conn, LOG, objects, epoch).await
}

async fn remember(
    conn: &mut SqliteConnection,
    kind: &str,
    objects: &[String],
    epoch: i64,
) -> Result<(), Failure> {
    if objects.is_empty() {
        return Ok(());
    }
    let rows = objects.iter().map(|object| (object, word("garbage", object, &kind)));
    let objects = json(&rows.collect::<Vec<_>>());
    sqlx::query!(
        r#"INSERT INTO garbage (kind, object, epoch, seal)
           SELECT ?, value ->> 0, ?, value ->> 1 FROM json_each(?) WHERE true
           ON CONFLICT (kind, object) DO UPDATE SET epoch = excluded.epoch, seal = excluded.seal"#,
        kind,
        epoch,
        objects
    )
    .execute(conn)
    .await?;
    Ok(())
}
