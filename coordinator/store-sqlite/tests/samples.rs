//! Databases that released versions wrote must open for ever, and say what they said.
//!
//! `samples/schema-N.sql` is the dump of a database of schema N, `samples/schema-N.json` what is to be seen in it.
//! When a migration is added, the newest pair stays, and `write_sample` (ignored) adds the next one. A field that
//! is added to a kept type needs `#[serde(default)]`, or these databases cannot be read any more. (Until the first
//! release, writing the sample of schema 1 anew will do.)

#![expect(clippy::unwrap_used, reason = "a test says by a panic what is not as expected")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use buildyard_store::{Batch, RunQuery, Store, Token, TokenKind};
use buildyard_store_sqlite::SqliteStore;
use buildyard_types::Timestamp;
use common::{begin, by, chunk, end};
use serde_json::{Value, json};

/// The schema of today.
const NEWEST: u32 = 1;

fn sample(schema: u32, suffix: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/samples/schema-{schema}.{suffix}"))
}

/// What programs see of a database.
async fn seen(store: &SqliteStore) -> Value {
    let loaded = store.load().await.unwrap();
    let mut runs = Vec::new();
    for run in store.runs(&RunQuery { limit: 200, ..RunQuery::default() }).await.unwrap() {
        let (jobs, attempts) = (store.jobs(run.id).await.unwrap(), store.attempts(run.id).await.unwrap());
        let attempts = attempts.iter().map(|(attempt, log)| json!([attempt, log.length, log.sha256]));
        runs.push(json!({ "run": run, "jobs": jobs, "attempts": attempts.collect::<Vec<_>>() }));
    }
    json!({
        "last_run": loaded.last_run,
        "last_fence": loaded.last_fence,
        "keys": loaded.keys,
        "open": loaded.runs,
        "runs": runs,
        "events": store.events(0, None, 1_000).await.unwrap(),
    })
}

/// Every value that was there is there. Fields may have come to it.
fn assert_within(expected: &Value, found: &Value, place: &str) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (key, value) in expected {
                let place = format!("{place}.{key}");
                assert_within(value, found.get(key).unwrap_or(&Value::Null), &place);
            }
        }
        (Value::Array(expected), Value::Array(found)) => {
            assert_eq!(expected.len(), found.len(), "{place}");
            for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
                assert_within(expected, found, &format!("{place}[{index}]"));
            }
        }
        (expected, found) => assert_eq!(expected, found, "{place}"),
    }
}

#[tokio::test]
async fn a_database_of_every_schema_says_what_it_said() {
    for schema in 1..=NEWEST {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("farm.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let pool = sqlx::SqlitePool::connect_with(options.foreign_keys(false)).await.unwrap();
        let dump = fs::read_to_string(sample(schema, "sql")).unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(dump)).execute(&pool).await.unwrap();
        pool.close().await;

        let store = SqliteStore::open(&path).await.unwrap();
        let expected = fs::read_to_string(sample(schema, "json")).unwrap();
        let expected: Value = serde_json::from_str(&expected).unwrap();
        assert_within(&expected, &seen(&store).await, &format!("schema {schema}"));
        assert_eq!(store.token("aa").await.unwrap().map(|token| token.name).as_deref(), Some("ann"));
        // And work goes on in it.
        let epoch = store.begin_epoch().await.unwrap();
        let next = store.load().await.unwrap().last_run + 1;
        store.commit(epoch, &begin(next)).await.unwrap();
        store.commit(epoch, &end(next)).await.unwrap();
        store.close().await.unwrap();
    }
}

#[tokio::test]
#[ignore = "writes the sample of today's schema, when a migration was added"]
async fn write_sample() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("farm.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let epoch = store.begin_epoch().await.unwrap();
    for number in 1..=6 {
        store.commit(epoch, &begin(number)).await.unwrap();
        store.append_log(by(number), &chunk(number)).await.unwrap();
        if number <= 4 {
            store.finish_log(by(number), 10, "aa").await.unwrap();
            store.commit(epoch, &end(number)).await.unwrap();
        }
    }
    let token = Token {
        hash: "aa".into(),
        name: "ann".into(),
        kind: TokenKind::Admin,
        created_at: Timestamp(1),
        expires_at: None,
    };
    store.commit(epoch, &Batch { tokens: vec![token], ..Batch::default() }).await.unwrap();
    let text = serde_json::to_string_pretty(&seen(&store).await).unwrap();
    store.close().await.unwrap();
    let dump = Command::new("sqlite3").arg(&path).args(["PRAGMA application_id", ".dump"]).output().unwrap();
    assert!(dump.status.success());
    let dump = String::from_utf8(dump.stdout).unwrap();
    // A dump leaves the application id out.
    let (id, dump) = dump.split_once('\n').unwrap();
    fs::write(sample(NEWEST, "sql"), format!("PRAGMA application_id = {id};\n{dump}")).unwrap();
    fs::write(sample(NEWEST, "json"), text + "\n").unwrap();
}
