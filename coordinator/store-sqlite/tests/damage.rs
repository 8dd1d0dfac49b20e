//! Files that were cut or changed: noticed, or without effect. Never another verdict, and never touched when
//! they are refused.

#![expect(clippy::unwrap_used, reason = "a test says by a panic what is not as expected")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use buildyard_store::{Store, StoreError};
use buildyard_store_sqlite::{Fault, OpenError, SqliteStore};
use buildyard_types::RunId;
use common::{begin, by, chunk, end, everything};
use proptest::prelude::*;

const RUNS: u64 = 30;

/// A database's files, and what was to be seen after each of its commits.
struct Original {
    main: Vec<u8>,
    wal: Vec<u8>,
    seen: Vec<String>,
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// Files as a crash leaves them: everything since the start is in the write-ahead log. With `closed`, as an
/// orderly end leaves them: everything is in the main file.
async fn make(folder: &Path, closed: bool) -> Original {
    let path = folder.join("original.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let mut seen = vec![everything(&store).await.unwrap()];
    let epoch = store.begin_epoch().await.unwrap();
    seen.push(everything(&store).await.unwrap());
    for number in 1..=RUNS {
        store.commit(epoch, &begin(number)).await.unwrap();
        seen.push(everything(&store).await.unwrap());
        store.append_log(by(number), &chunk(number)).await.unwrap();
        seen.push(everything(&store).await.unwrap());
        // The last ones stay open, so that a scheduler has something to load.
        if number <= RUNS - 5 {
            store.commit(epoch, &end(number)).await.unwrap();
            seen.push(everything(&store).await.unwrap());
        }
    }
    if closed {
        store.close().await.unwrap();
    }
    let main = fs::read(&path).unwrap();
    let wal = fs::read(beside(&path, "-wal")).unwrap_or_default();
    store.close().await.unwrap_or_default();
    Original { main, wal, seen }
}

/// What came of opening files.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Refused with an error that names the damage; the files are as they were.
    Refused(String),
    /// Opened, and a question was answered with an error that names the damage.
    Noticed(String),
    /// As it was after this commit.
    AfterCommit(usize),
    /// Something that never was.
    Wrong(String),
}

async fn open(folder: &Path, main: &[u8], wal: &[u8], seen: &HashMap<&str, usize>) -> Answer {
    let folder = tempfile::tempdir_in(folder).unwrap();
    let path = folder.path().join("farm.db");
    fs::write(&path, main).unwrap();
    if !wal.is_empty() {
        fs::write(beside(&path, "-wal"), wal).unwrap();
    }
    let store = match SqliteStore::open(&path).await {
        Ok(store) => store,
        Err(error @ (OpenError::Damaged { .. } | OpenError::Foreign { .. })) => {
            assert!(fs::read(&path).unwrap() == main, "{error}: the main file was changed");
            let wal_now = fs::read(beside(&path, "-wal")).unwrap_or_default();
            assert!(wal_now == wal, "{error}: the log was changed");
            assert!(error.to_string().contains("farm.db"), "{error}");
            return Answer::Refused(error.to_string());
        }
        Err(other) => return Answer::Wrong(format!("{other:?}")),
    };
    let answer = match everything(&store).await {
        Ok(text) => match seen.get(text.as_str()) {
            Some(commit) => Answer::AfterCommit(*commit),
            None => Answer::Wrong(text),
        },
        Err(StoreError::Unavailable { retry: false, source, .. }) if is_damage(&*source) => {
            assert!(store.ping().await.is_err(), "a store that noticed damage is not healthy");
            Answer::Noticed(source.to_string())
        }
        Err(StoreError::Damaged { during, source }) => {
            assert!(during.contains("farm.db"), "{during}");
            assert!(matches!(source.downcast_ref::<Fault>(), Some(Fault::BadRow { .. })), "{source:?}");
            Answer::Noticed(source.to_string())
        }
        Err(other) => Answer::Wrong(format!("{other:?}")),
    };
    // Damage may be met while closing, too; by then the answer is out.
    let _ = store.close().await;
    answer
}

fn is_damage(source: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    source.downcast_ref::<Fault>().is_some_and(|fault| matches!(fault, Fault::Damaged { .. }))
}

/// Some places of a file, always the same ones.
fn places(length: usize, count: usize) -> Vec<usize> {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = proptest::collection::vec(0..length, count);
    let tree = strategy.new_tree(&mut runner).unwrap();
    proptest::strategy::ValueTree::current(&tree)
}

struct Tally {
    refused: usize,
    noticed: usize,
    earlier: usize,
    unchanged: usize,
}

fn tally(name: &str, answers: &[Answer], last: usize) -> Tally {
    let count =
        |wanted: fn(&Answer, usize) -> bool| answers.iter().filter(|answer| wanted(answer, last)).count();
    let tally = Tally {
        refused: count(|answer, _| matches!(answer, Answer::Refused(_))),
        noticed: count(|answer, _| matches!(answer, Answer::Noticed(_))),
        earlier: count(|answer, last| matches!(answer, Answer::AfterCommit(commit) if *commit < last)),
        unchanged: count(|answer, last| *answer == Answer::AfterCommit(last)),
    };
    let wrong: Vec<_> = answers.iter().filter(|answer| matches!(answer, Answer::Wrong(_))).collect();
    println!(
        "{name}: {} rounds, {} wrong, {} refused, {} noticed at a question, {} at an earlier commit, {} unharmed",
        answers.len(),
        wrong.len(),
        tally.refused,
        tally.noticed,
        tally.earlier,
        tally.unchanged
    );
    assert!(wrong.is_empty(), "{:?}", wrong[0]);
    tally
}

async fn original(closed: bool) -> (tempfile::TempDir, Original) {
    let folder = tempfile::tempdir().unwrap();
    let original = make(folder.path(), closed).await;
    (folder, original)
}

fn by_text(seen: &[String]) -> HashMap<&str, usize> {
    seen.iter().enumerate().map(|(commit, text)| (text.as_str(), commit)).collect()
}

#[tokio::test]
async fn a_log_that_was_cut_ends_at_a_commit() {
    let (folder, original) = original(false).await;
    let seen = by_text(&original.seen);
    let last = original.seen.len() - 1;
    assert_eq!(open(folder.path(), &original.main, &original.wal, &seen).await, Answer::AfterCommit(last));
    let mut answers = Vec::new();
    for length in places(original.wal.len(), 100) {
        answers.push(open(folder.path(), &original.main, &original.wal[..length], &seen).await);
    }
    let tally = tally("log cut", &answers, last);
    assert_eq!(tally.refused + tally.noticed, 0, "a cut log is what a power cut leaves");
    assert!(tally.earlier > 0);
}

#[tokio::test]
async fn a_changed_byte_of_the_log_is_noticed() {
    let (folder, original) = original(false).await;
    let seen = by_text(&original.seen);
    let last = original.seen.len() - 1;
    let mut answers = Vec::new();
    for place in places(original.wal.len(), 100) {
        let mut wal = original.wal.clone();
        wal[place] ^= 1 << (place % 8);
        let answer = open(folder.path(), &original.main, &wal, &seen).await;
        // The end of the log alone cannot be told from one that a power cut tore.
        assert!(
            !matches!(answer, Answer::AfterCommit(commit) if commit + 1 < last),
            "byte {place}: {answer:?}"
        );
        answers.push(answer);
    }
    assert!(tally("log, one byte changed", &answers, last).refused > 0);
}

#[tokio::test]
async fn a_changed_byte_of_the_main_file_is_noticed() {
    let (folder, original) = original(true).await;
    assert!(original.wal.is_empty());
    let seen = by_text(&original.seen);
    let last = original.seen.len() - 1;
    let mut answers = Vec::new();
    for place in places(original.main.len(), 200) {
        let mut main = original.main.clone();
        main[place] ^= 1 << (place % 8);
        let answer = open(folder.path(), &main, &[], &seen).await;
        assert!(!matches!(answer, Answer::AfterCommit(commit) if commit < last), "byte {place}: {answer:?}");
        answers.push(answer);
    }
    let tally = tally("main file, one byte changed", &answers, last);
    assert!(tally.refused + tally.noticed > 0);
}

#[tokio::test]
async fn a_damaged_row_fails_whoever_asks_for_it_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("farm.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let epoch = store.begin_epoch().await.unwrap();
    for number in 1..=2 {
        store.commit(epoch, &begin(number)).await.unwrap();
        store.append_log(by(number), &chunk(number)).await.unwrap();
        store.commit(epoch, &end(number)).await.unwrap();
    }
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let damage = "UPDATE runs SET state = replace(state, 'passed', 'failed') WHERE id = 1";
    sqlx::query(damage).execute(&pool).await.unwrap();
    for round in 0..2 {
        let error = store.run(RunId(1)).await.unwrap_err();
        let StoreError::Damaged { during, source } = &error else { panic!("{error:?}") };
        assert!(during.contains("farm.db"), "{during}");
        assert_eq!(source.to_string(), "the run state of run-1 is not what was written");
        store.ping().await.unwrap();
        assert!(store.run(RunId(2)).await.unwrap().is_some(), "its neighbour is read");
        store.commit(epoch, &begin(3 + round)).await.unwrap();
    }
    store.load().await.expect("a run that is over is not needed at the start");
    // One that is open is: the start says which row, and where to read on.
    sqlx::query("UPDATE runs SET state = state || ' ' WHERE id = 3").execute(&pool).await.unwrap();
    pool.close().await;
    let error = store.load().await.unwrap_err();
    let StoreError::Damaged { during, source } = &error else { panic!("{error:?}") };
    assert!(during.contains("A damaged row"), "{during}");
    assert_eq!(source.to_string(), "the run state of run-3 is not what was written");
}

#[tokio::test]
async fn a_main_file_that_was_cut_is_refused() {
    let (folder, original) = original(true).await;
    let seen = by_text(&original.seen);
    let mut answers = Vec::new();
    for length in places(original.main.len(), 50) {
        answers.push(open(folder.path(), &original.main[..length.max(1)], &[], &seen).await);
    }
    let tally = tally("main file cut", &answers, original.seen.len() - 1);
    assert_eq!(tally.refused, answers.len(), "{answers:?}");
}

#[tokio::test]
async fn a_main_file_that_is_gone_while_its_log_is_not_is_no_new_farm() {
    let (folder, original) = original(false).await;
    let answer = open(folder.path(), &[], &original.wal, &HashMap::new()).await;
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
}

#[tokio::test]
async fn what_is_no_database_of_ours_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = b"[server]\nlisten = \"127.0.0.1:80\"\n".repeat(200);
    let answer = open(folder.path(), &text, &[], &HashMap::new()).await;
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    // A SQLite database of somebody else.
    let path = folder.path().join("other.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("CREATE TABLE notes (text TEXT)").execute(&pool).await.unwrap();
    pool.close().await;
    let other = fs::read(&path).unwrap();
    let answer = open(folder.path(), &other, &[], &HashMap::new()).await;
    assert!(
        matches!(&answer, Answer::Refused(text) if text.contains("not a database of Buildyard")),
        "{answer:?}"
    );
}
