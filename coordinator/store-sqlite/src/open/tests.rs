//! What only this crate can see of an opening: the connections' settings, and schemas that are not yet written.

#![allow(clippy::unwrap_used, reason = "a test says by a panic what is not as expected")]

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType};

use super::*;

async fn pragma(conn: &mut SqliteConnection, name: &'static str) -> String {
    let row: sqlx::sqlite::SqliteRow =
        sqlx::query(sqlx::AssertSqlSafe(format!("PRAGMA {name}"))).fetch_one(conn).await.unwrap();
    let text: Result<String, _> = sqlx::Row::try_get(&row, 0);
    text.unwrap_or_else(|_| sqlx::Row::get::<i64, _>(&row, 0).to_string())
}

#[tokio::test]
async fn the_connections_are_set_as_the_promises_need() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("farm.db");
    open(&path, &MIGRATIONS).await.unwrap().close().await.unwrap();
    let mut writer = SqliteConnection::connect_with(&write_options(&path)).await.unwrap();
    assert_eq!(pragma(&mut writer, "synchronous").await, "2", "FULL");
    assert_eq!(pragma(&mut writer, "journal_mode").await, "wal");
    assert_eq!(pragma(&mut writer, "foreign_keys").await, "1");
    assert_eq!(pragma(&mut writer, "busy_timeout").await, WAIT.as_millis().to_string());
    assert_eq!(pragma(&mut writer, "wal_autocheckpoint").await, CHECKPOINT_PAGES);
    let mut reader = SqliteConnection::connect_with(&read_options(&path)).await.unwrap();
    assert_eq!(pragma(&mut reader, "query_only").await, "1");
    let refused = sqlx::query("UPDATE meta SET epoch = 7").execute(&mut reader).await;
    assert!(refused.is_err(), "{refused:?}");
}

fn migration(version: i64, sql: &'static str) -> Migration {
    Migration::new(version, "later".into(), MigrationType::Simple, sql.into_sql_str(), false)
}

/// Our migrations, and some that are yet to come.
fn with(later: Vec<Migration>) -> Migrator {
    Migrator::with_migrations(MIGRATIONS.iter().cloned().chain(later).collect())
}

const LATER: i64 = 1_000;
const GOOD: &str = "ALTER TABLE runs ADD COLUMN mood TEXT; UPDATE runs SET mood = 'sunny';";

/// A database of today's schema with something in it, as a crash leaves it: its newest part is in the log.
async fn database(folder: &Path) -> PathBuf {
    let path = folder.join("farm.db");
    let store = open(&path, &MIGRATIONS).await.unwrap();
    store.write(crate::commit::BeginEpoch).await.unwrap();
    let crashed = folder.join("crashed.db");
    for suffix in ["", "-wal"] {
        fs::copy(beside(&path, suffix), beside(&crashed, suffix)).unwrap();
    }
    store.close().await.unwrap();
    crashed
}

async fn epoch(path: &Path) -> i64 {
    let mut conn = SqliteConnection::connect_with(&read_options(path)).await.unwrap();
    sqlx::query_scalar("SELECT epoch FROM meta").fetch_one(&mut conn).await.unwrap()
}

#[tokio::test]
async fn a_migration_is_made_after_a_copy_that_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(folder.path()).await;
    let store = open(&path, &with(vec![migration(LATER, GOOD)])).await.unwrap();
    let moods = sqlx::query("SELECT mood FROM runs").fetch_all(&store.readers).await;
    assert!(moods.is_ok(), "{moods:?}");
    store.close().await.unwrap();
    let copy = beside(&path, ".schema-1");
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(epoch(&copy).await, 1, "what was only in the log is in the copy");
    // Whoever goes back takes the copy, and the older program opens it.
    let store = open(&copy, &MIGRATIONS).await.unwrap();
    store.close().await.unwrap();
    // The newer file is refused by the older program, and stays as it is.
    let before = fs::read(&path).unwrap();
    let refused = open(&path, &MIGRATIONS).await.unwrap_err();
    assert!(matches!(refused, OpenError::TooNew { found: LATER, .. }), "{refused:?}");
    assert!(fs::read(&path).unwrap() == before);
}

#[tokio::test]
async fn a_migration_that_fails_leaves_the_schema_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(folder.path()).await;
    let broken = "ALTER TABLE runs ADD COLUMN mood TEXT; INSERT INTO nowhere VALUES (1);";
    let later = with(vec![migration(LATER, GOOD), migration(LATER + 1, broken)]);
    // The first of the two is kept, the second is not, and trying again comes to the same.
    for _ in 0..2 {
        let refused = open(&path, &later).await.unwrap_err();
        assert!(matches!(refused, OpenError::Migration { .. }), "{refused:?}");
        assert!(refused.to_string().contains("crashed.db"), "{refused}");
    }
    let store = open(&path, &with(vec![migration(LATER, GOOD)])).await.unwrap();
    store.close().await.unwrap();
    assert_eq!(epoch(&path).await, 1);
}

#[tokio::test]
async fn opening_again_makes_no_copy() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(folder.path()).await;
    for _ in 0..2 {
        open(&path, &MIGRATIONS).await.unwrap().close().await.unwrap();
    }
    let names =
        fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let copies: Vec<String> = names.filter(|name| name.contains("schema") || name.contains("copy")).collect();
    assert!(copies.is_empty(), "{copies:?}");
}
