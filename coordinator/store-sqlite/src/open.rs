//! Opens a database: lock, look without touching, then migrate.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sqlx::Connection;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};

use crate::error::{Health, OpenError, is_damage};
use crate::lock::Lock;
use crate::wal::{self, Finding};
use crate::writer::Writer;
use crate::{READERS, SqliteStore, WAIT};

/// The schema that this program knows.
pub(crate) static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// `BYRD`, as the first migration writes it.
const APPLICATION_ID: i64 = 0x4259_5244;
/// The write-ahead log is copied into the main file when it has so many pages: 16 MiB. A smaller figure syncs
/// the main file more often, a larger one makes the start after a crash slower.
const CHECKPOINT_PAGES: &str = "4096";
/// The write-ahead log is cut to this when it was larger for a while.
const WAL_LIMIT_BYTES: &str = "67108864";

/// Opens the database at `path`, and makes it if there is none.
pub(crate) async fn open(path: &Path, migrations: &Migrator) -> Result<SqliteStore, OpenError> {
    let lock = Lock::take(path)?;
    let is_new = !exists(path)?;
    let schema = if is_new { 0 } else { look(path, migrations).await? };
    make_private(path, is_new)?;
    let failed = |during| database_error(path, during);

    // A pool of one, since a migrator that is given a bare connection makes a future that cannot change threads.
    let writer = SqlitePoolOptions::new().max_connections(1).connect_with(write_options(path));
    let writer = writer.await.map_err(failed("opening"))?;
    // A fresh log for this start: see `wal`.
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&writer).await.map_err(failed("checkpointing"))?;
    let newest = newest(migrations);
    if schema > 0 && schema < newest {
        copy(&writer, path, schema).await?;
    }
    migrations.run(&writer).await.map_err(|source| migration_error(path, newest, source))?;
    check_counters(&writer, path).await?;
    let conn = writer.acquire().await.map_err(failed("opening"))?.detach();

    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(WAIT)
        .idle_timeout(None)
        .max_lifetime(None)
        // A connection to a file does not go away by itself.
        .test_before_acquire(false)
        .connect_with(read_options(path))
        .await
        .map_err(failed("opening for reading"))?;
    Ok(started(path, conn, readers, lock))
}

fn started(path: &Path, conn: SqliteConnection, readers: SqlitePool, lock: Lock) -> SqliteStore {
    let health = Health::default();
    let writer = Writer::start(conn, lock, health.clone());
    SqliteStore { path: path.to_owned(), readers, writer, health }
}

fn newest(migrations: &Migrator) -> i64 {
    migrations.iter().map(|migration| migration.version).max().unwrap_or(0)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn file_error(during: &str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let during = format!("{during} {}", path.display());
    move |source| OpenError::File { during, source }
}

/// Damage has its own name, whatever was being done when it was met.
fn database_error(path: &Path, during: &'static str) -> impl FnOnce(sqlx::Error) -> OpenError {
    let path = path.to_owned();
    move |source| match is_damage(&source) {
        true => OpenError::Damaged { path, finding: source.to_string() },
        false => OpenError::Database { during: format!("{during} {}", path.display()), source },
    }
}

fn migration_error(path: &Path, to: i64, source: MigrateError) -> OpenError {
    match source {
        MigrateError::VersionMissing(found) => OpenError::TooNew { path: path.to_owned(), found, known: to },
        source => OpenError::Migration { path: path.to_owned(), to, source },
    }
}

/// Whether there is a database with something in it.
fn exists(path: &Path) -> Result<bool, OpenError> {
    let length = |path: &Path| match fs::metadata(path) {
        Ok(found) => Ok(found.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(file_error("looking at", path)(error)),
    };
    if length(path)? > 0 {
        return Ok(true);
    }
    // SQLite would take the file for a new one, and drop the log with all that is in it.
    if length(&beside(path, "-wal"))? > 0 {
        let finding = "it is empty or gone, but its write-ahead log is not".to_owned();
        return Err(OpenError::Damaged { path: path.to_owned(), finding });
    }
    Ok(false)
}

/// Looks at a database without changing a byte of it: the connection can only read, so that closing it does not
/// copy a damaged log into the main file. Gives the schema that it has.
async fn look(path: &Path, migrations: &Migrator) -> Result<i64, OpenError> {
    let wal = beside(path, "-wal");
    match wal::examine(&wal).map_err(file_error("reading", &wal))? {
        Finding::Good => {}
        Finding::Damaged(finding) => return Err(OpenError::Damaged { path: path.to_owned(), finding }),
    }
    let failed = || database_error(path, "examining");
    let mut conn = SqliteConnection::connect_with(&read_options(path)).await.map_err(failed())?;
    let found = examine(&mut conn, path, migrations).await;
    let closed = conn.close().await.map_err(failed());
    let schema = found?;
    closed?;
    Ok(schema)
}

async fn examine(conn: &mut SqliteConnection, path: &Path, migrations: &Migrator) -> Result<i64, OpenError> {
    let failed = || database_error(path, "examining");
    let foreign =
        "SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' AND name <> '_sqlx_migrations'";
    let application_id: i64 =
        sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *conn).await.map_err(failed())?;
    let tables: i64 = sqlx::query_scalar(foreign).fetch_one(&mut *conn).await.map_err(failed())?;
    if application_id != APPLICATION_ID {
        // The first start may have ended between making the file and making the tables.
        return match tables {
            0 => Ok(0),
            _ => Err(OpenError::Foreign { path: path.to_owned(), application_id }),
        };
    }
    let findings: Vec<String> =
        sqlx::query_scalar("PRAGMA integrity_check(3)").fetch_all(&mut *conn).await.map_err(failed())?;
    if findings != ["ok"] {
        return Err(OpenError::Damaged { path: path.to_owned(), finding: findings.join("; ") });
    }
    let found: i64 = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations")
        .fetch_one(&mut *conn)
        .await
        .map_err(failed())?;
    let known = newest(migrations);
    match found > known {
        true => Err(OpenError::TooNew { path: path.to_owned(), found, known }),
        false => Ok(found),
    }
}

/// What is in it is nobody else's business: names of repositories, hashes of credentials. SQLite gives the files
/// beside it the same mode when it makes them.
fn make_private(path: &Path, is_new: bool) -> Result<(), OpenError> {
    if is_new {
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(file_error("making", path))?;
    }
    for file in [path.to_owned(), beside(path, "-wal"), beside(path, "-shm")] {
        let mode = match fs::metadata(&file) {
            Ok(found) => found.permissions().mode(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(file_error("looking at", &file)(error)),
        };
        if mode & 0o077 != 0 {
            tracing::warn!(path = %file.display(), "others could read this file; now they cannot");
            let private = Permissions::from_mode(0o600);
            fs::set_permissions(&file, private).map_err(file_error("protecting", &file))?;
        }
    }
    Ok(())
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(WAIT)
        .foreign_keys(true)
        .pragma("cell_size_check", "ON")
        .pragma("trusted_schema", "OFF")
}

fn write_options(path: &Path) -> SqliteConnectOptions {
    options(path)
        .journal_mode(SqliteJournalMode::Wal)
        // NORMAL would acknowledge what a power cut takes away.
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .pragma("journal_size_limit", WAL_LIMIT_BYTES)
}

fn read_options(path: &Path) -> SqliteConnectOptions {
    // Rows come over from the connection's thread in portions of this many.
    options(path).read_only(true).pragma("query_only", "ON").row_buffer_size(1_024)
}

/// A copy as of before the migration, made under another name first: a copy that is there is whole.
async fn copy(conn: &SqlitePool, path: &Path, schema: i64) -> Result<(), OpenError> {
    let whole = beside(path, &format!(".schema-{schema}"));
    let partial = beside(path, ".copy");
    match fs::remove_file(&partial) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(file_error("removing", &partial)(error)),
    }
    // Made beforehand for its mode: SQLite writes into an empty file.
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
    made.map_err(file_error("making", &partial))?;
    let name = partial
        .to_str()
        .ok_or_else(|| file_error("copying to", &partial)(io::Error::other("the path is no UTF-8")))?;
    sqlx::query("VACUUM INTO ?").bind(name).execute(conn).await.map_err(database_error(path, "copying"))?;
    let sync = |path: &Path| {
        fs::File::open(path).and_then(|file| file.sync_all()).map_err(file_error("syncing", path))
    };
    sync(&partial)?;
    fs::rename(&partial, &whole).map_err(file_error("naming", &whole))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync(folder)?;
    tracing::info!(copy = %whole.display(), "copied the database before its migration");
    Ok(())
}

/// Numbers are never given twice: the counters are at least as great as what they counted.
async fn check_counters(conn: &SqlitePool, path: &Path) -> Result<(), OpenError> {
    let row = sqlx::query!(
        r#"SELECT last_run >= (SELECT coalesce(max(id), 0) FROM runs) AS "runs!: bool",
               last_fence >= (SELECT coalesce(max(fence), 0) FROM attempts) AS "fences!: bool",
               last_event >= (SELECT coalesce(max(sequence), 0) FROM events) AS "events!: bool"
           FROM meta"#
    )
    .fetch_one(conn)
    .await
    .map_err(database_error(path, "examining"))?;
    if row.runs && row.fences && row.events {
        return Ok(());
    }
    let finding = "a counter is behind what it counted".to_owned();
    Err(OpenError::Damaged { path: path.to_owned(), finding })
}

#[cfg(test)]
mod tests;
