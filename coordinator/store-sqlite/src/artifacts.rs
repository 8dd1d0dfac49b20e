//! Artifacts: names and hashes of files. Their contents are objects elsewhere.

use buildyard_store::{Artifact, Fenced, StoreError};
use buildyard_types::worker::ArtifactFile;
use buildyard_types::{RunId, Timestamp};
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use crate::changes::int;
use crate::error::Fault;
use crate::logs::{Key, check};
use crate::seal::{check as check_seal, word};
use crate::writer::{Failure, Write};

/// Keeps an artifact.
pub(crate) struct Put {
    pub(crate) by: Fenced,
    pub(crate) artifact: Artifact,
}

impl Write for Put {
    type Output = ();

    fn during(&self) -> String {
        format!("keeping the artifact `{}` of {}", self.artifact.name, self.by.attempt)
    }

    async fn write(&self, conn: &mut SqliteConnection) -> Result<(), Failure> {
        let artifact = &self.artifact;
        check(conn, &self.by).await?;
        if artifact.attempt != self.by.attempt {
            return Err(Failure::Refused(StoreError::Stale { attempt: artifact.attempt }));
        }
        if !artifact.files.is_sorted_by(|one, next| one.path < next.path) {
            let text =
                format!("the files of artifact `{}` are not sorted, or one is named twice", artifact.name);
            return Err(Failure::Refused(StoreError::Conflict(text)));
        }
        let key = Key::from(artifact.attempt);
        let known = sqlx::query!(
            "SELECT id FROM artifacts WHERE run = ? AND job = ? AND number = ? AND name = ?",
            key.run,
            key.job,
            key.number,
            artifact.name
        )
        .fetch_optional(&mut *conn)
        .await?;
        if let Some(known) = known {
            if files(conn, known.id).await? == artifact.files {
                return Ok(());
            }
            let text = format!("{} has an artifact `{}` with other files", artifact.attempt, artifact.name);
            return Err(Failure::Refused(StoreError::Conflict(text)));
        }
        insert(conn, key, artifact).await
    }
}

async fn insert(conn: &mut SqliteConnection, key: Key, artifact: &Artifact) -> Result<(), Failure> {
    let (created, expires) = (int(artifact.created_at.0), int(artifact.expires_at.0));
    let row = (&artifact.name, created, expires, &artifact.files);
    let seal = word("artifact", &artifact.attempt.to_string(), &row);
    let row = sqlx::query!(
        r#"INSERT INTO artifacts (run, job, number, name, created_ms, expires_ms, seal)
           VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id"#,
        key.run,
        key.job,
        key.number,
        artifact.name,
        created,
        expires,
        seal
    )
    .fetch_one(&mut *conn)
    .await?;
    let rows = artifact.files.iter().map(|file| (&file.path, int(file.size), &file.sha256, file.executable));
    let rows = serde_json::to_string(&rows.collect::<Vec<_>>()).expect("rows are tuples of text and numbers");
    sqlx::query!(
        r#"INSERT INTO artifact_files (artifact, path, size, sha256, executable)
           SELECT ?, value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)"#,
        row.id,
        rows
    )
    .execute(&mut *conn)
    .await?;
    Ok(())
}

async fn files(conn: &mut SqliteConnection, artifact: i64) -> Result<Vec<ArtifactFile>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT path, size, sha256, executable AS "executable: bool" FROM artifact_files
           WHERE artifact = ? ORDER BY path"#,
        artifact
    )
    .fetch_all(conn)
    .await?;
    let file =
        |path, size: i64, sha256, executable| ArtifactFile { path, size: size as u64, sha256, executable };
    Ok(rows.into_iter().map(|row| file(row.path, row.size, row.sha256, row.executable)).collect())
}

/// The artifacts of a run, in the order of its jobs and of their names.
pub(crate) async fn of_run(readers: &SqlitePool, run: RunId) -> Result<Vec<Artifact>, Fault> {
    let number = int(run.0);
    // One transaction: a sweep between the statements would show an artifact without its files.
    let mut snapshot = readers.begin().await?;
    let rows = sqlx::query!(
        r#"SELECT id, job, number, name, created_ms, expires_ms, seal FROM artifacts WHERE run = ?
           ORDER BY job, number, name"#,
        number
    )
    .fetch_all(&mut *snapshot)
    .await?;
    let mut artifacts = Vec::with_capacity(rows.len());
    for row in rows {
        let attempt = run.job(row.job as u32).attempt(row.number as u32);
        let files = files(&mut snapshot, row.id).await?;
        let sealed = (&row.name, row.created_ms, row.expires_ms, &files);
        check_seal("artifact", &attempt.to_string(), &sealed, row.seal)?;
        artifacts.push(Artifact {
            attempt,
            name: row.name,
            files,
            created_at: Timestamp(row.created_ms as u64),
            expires_at: Timestamp(row.expires_ms as u64),
        });
    }
    Ok(artifacts)
}
