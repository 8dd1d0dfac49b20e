//! What the retention takes, and what it must leave.

use std::collections::BTreeSet;
use std::sync::Arc;

use buildyard_scheduler::Record;
use buildyard_types::{RunId, Timestamp};

use super::Maker;
use super::artifacts::{artifact, file};
use super::sample::*;
use crate::{Artifact, LogState, RetentionPolicy, RunQuery, Store, Swept};

/// Takes runs, logs and artifacts from before these times.
fn before(runs: u64, logs: u64, artifacts: u64) -> RetentionPolicy {
    RetentionPolicy {
        runs_before: Timestamp(runs),
        logs_before: Timestamp(logs),
        artifacts_before: Timestamp(artifacts),
        batch: 100,
    }
}

/// Runs with a log and an artifact each: run 1 is over, and its artifact expires, at 1,000, run 2 at 2,000 and so on.
async fn with_runs(maker: &dyn Maker, count: u64) -> Arc<dyn Store> {
    let store = maker.fresh().await;
    let epoch = commit(&*store, (1..=count).flat_map(live_run).collect()).await;
    for number in 1..=count {
        store.append_log(by(number), &chunk(number, 0, 10)).await.unwrap();
        store.append_log(by(number), &chunk(number, 10, 10)).await.unwrap();
        store.finish_log(by(number), 20, "aa").await.unwrap();
        let kept = artifact(number, "bin", vec![file("a", number), file("shared", 99)]);
        let kept = Artifact { expires_at: Timestamp(number * 1_000), ..kept };
        store.put_artifact(by(number), &kept).await.unwrap();
        let mut end = batch(over(number, number * 1_000));
        end.events = vec![event(Some(number), "over")];
        store.commit(epoch, &end).await.unwrap();
    }
    store
}

async fn runs(store: &dyn Store) -> Vec<u64> {
    let query = RunQuery { limit: 200, ..RunQuery::default() };
    store.runs(&query).await.unwrap().iter().map(|run| run.id.0).collect()
}

fn objects(number: u64) -> Vec<String> {
    vec![chunk(number, 0, 10).object, chunk(number, 10, 10).object]
}

fn content(number: u64) -> String {
    file("", number).sha256
}

pub(super) async fn what_is_too_old_is_dropped_and_nothing_else(maker: &dyn Maker) {
    let store = with_runs(maker, 3).await;
    let nothing = store.sweep(&before(1_000, 1_000, 1_000)).await.unwrap();
    assert_eq!(nothing, Swept::default());
    let swept = store.sweep(&before(2_001, 0, 2_001)).await.unwrap();
    let expected = Swept {
        runs: 2,
        log_objects: [objects(1), objects(2)].concat(),
        blobs: vec![content(1), content(2)],
        more: false,
    };
    assert_eq!(swept, expected);
    let store = maker.reopen(store).await;
    assert_eq!(runs(&*store).await, [3]);
    for number in [1, 2] {
        let run = RunId(number);
        assert_eq!(store.run(run).await.unwrap(), None);
        assert!(store.jobs(run).await.unwrap().is_empty());
        assert!(store.attempts(run).await.unwrap().is_empty());
        assert!(store.artifacts(run).await.unwrap().is_empty());
        assert!(store.events(0, Some(run), 10).await.unwrap().is_empty());
        assert!(store.log_chunks(by(number).attempt, 0, 10).await.unwrap().is_empty());
    }
    let kept = RunId(3);
    assert_eq!(store.run(kept).await.unwrap().unwrap().state, run_passed(3_000));
    assert_eq!(store.attempts(kept).await.unwrap()[0].1.length, 20);
    assert_eq!(store.artifacts(kept).await.unwrap().len(), 1);
    assert_eq!(store.events(0, Some(kept), 10).await.unwrap().len(), 1);
}

pub(super) async fn numbers_are_not_given_again_after_a_sweep(maker: &dyn Maker) {
    let store = with_runs(maker, 3).await;
    store.sweep(&before(9_000, 9_000, 9_000)).await.unwrap();
    let store = maker.reopen(store).await;
    assert!(runs(&*store).await.is_empty());
    let snapshot = store.load().await.unwrap();
    assert_eq!((snapshot.last_run, snapshot.last_fence), (3, 3));
    assert_eq!(store.last_event().await.unwrap(), 3);
    let epoch = store.begin_epoch().await.unwrap();
    let mut next = batch(live_run(4));
    next.events = vec![event(Some(4), "begun")];
    assert_eq!(store.commit(epoch, &next).await.unwrap()[0].sequence, 4);
}

pub(super) async fn a_run_that_is_not_over_is_never_dropped(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let mut records: Vec<Record> = [live_run(1), live_run(2)].concat();
    // Run 2 is final, but something of its attempt is left on the worker.
    records.extend(over(2, 1_000).into_iter().take(3));
    let epoch = commit(&*store, records).await;
    let everything = before(u64::MAX, u64::MAX, u64::MAX);
    assert_eq!(store.sweep(&everything).await.unwrap().runs, 0);
    assert_eq!(runs(&*store).await, [2, 1]);
    store.commit(epoch, &batch(over(2, 1_000))).await.unwrap();
    assert_eq!(store.sweep(&everything).await.unwrap().runs, 1);
    assert_eq!(runs(&*store).await, [1]);
    assert_eq!(store.append_log(by(1), &chunk(1, 0, 10)).await.unwrap(), 10);
}

pub(super) async fn a_sweep_is_bounded(maker: &dyn Maker) {
    let store = with_runs(maker, 7).await;
    let policy = RetentionPolicy { batch: 3, ..before(9_000, 0, 9_000) };
    let mut dropped = Vec::new();
    for left in [vec![7, 6, 5, 4], vec![7], vec![]] {
        let swept = store.sweep(&policy).await.unwrap();
        assert!(swept.runs <= 3);
        assert_eq!(swept.more, swept.runs == 3, "whoever asks goes on where a limit was reached");
        dropped.push(swept.runs);
        assert_eq!(runs(&*store).await, left, "the oldest go first");
    }
    assert_eq!(dropped, [3, 3, 1]);
    assert_eq!(store.sweep(&policy).await.unwrap(), Swept::default());
}

pub(super) async fn a_run_stays_as_long_as_what_it_made(maker: &dyn Maker) {
    let store = with_runs(maker, 3).await;
    let swept = store.sweep(&before(9_000, 0, 2_000)).await.unwrap();
    assert_eq!((swept.runs, runs(&*store).await), (1, vec![3, 2]));
    assert_eq!(store.artifacts(RunId(2)).await.unwrap().len(), 1);
    let swept = store.sweep(&before(9_000, 0, 2_001)).await.unwrap();
    assert_eq!((swept.runs, runs(&*store).await), (1, vec![3]));
}

pub(super) async fn logs_go_before_their_runs(maker: &dyn Maker) {
    let store = with_runs(maker, 2).await;
    let swept = store.sweep(&before(0, 1_001, 0)).await.unwrap();
    assert_eq!(swept, Swept { log_objects: objects(1), ..Swept::default() });
    let dropped = LogState { dropped: true, ..LogState::default() };
    assert_eq!(store.attempt(by(1).attempt).await.unwrap().unwrap().1, dropped);
    assert_eq!(store.attempts(RunId(1)).await.unwrap()[0].1, dropped);
    let kept = store.attempt(by(2).attempt).await.unwrap().unwrap().1;
    assert_eq!((kept.length, kept.dropped), (20, false));
    assert_eq!(store.artifacts(RunId(1)).await.unwrap().len(), 1);
    assert_eq!(store.sweep(&before(0, 1_001, 0)).await.unwrap(), Swept::default());
    // The run goes later, and its log is not named again.
    let swept = store.sweep(&before(1_001, 1_001, 1_001)).await.unwrap();
    assert_eq!(swept, Swept { runs: 1, blobs: vec![content(1)], ..Swept::default() });
}

pub(super) async fn contents_that_are_shared_stay(maker: &dyn Maker) {
    let store = with_runs(maker, 3).await;
    let swept = store.sweep(&before(2_001, 0, 2_001)).await.unwrap();
    assert!(!swept.blobs.contains(&content(99)), "run 3 still has it");
    // Artifacts expire by their own time.
    assert_eq!(store.sweep(&before(0, 0, 3_000)).await.unwrap(), Swept::default());
    let swept = store.sweep(&before(0, 0, 3_001)).await.unwrap();
    assert_eq!(swept, Swept { blobs: vec![content(3), content(99)], ..Swept::default() });
    assert!(store.artifacts(RunId(3)).await.unwrap().is_empty());
    assert_eq!(runs(&*store).await, [3]);
}

pub(super) async fn what_a_crash_kept_from_being_deleted_is_named_again(maker: &dyn Maker) {
    let store = with_runs(maker, 2).await;
    store.finish_log(by(2), 20, "aa").await.unwrap_err();
    let policy = before(1_001, 0, 1_001);
    let first = store.sweep(&policy).await.unwrap();
    assert_eq!(first, Swept { runs: 1, log_objects: objects(1), blobs: vec![content(1)], more: false });
    // In the same epoch the caller has deleted them.
    assert_eq!(store.sweep(&policy).await.unwrap(), Swept::default());

    let swept = store.sweep(&before(2_001, 0, 2_001)).await.unwrap();
    assert_eq!(swept.blobs, [content(2), content(99)]);
    let store = maker.reopen(store).await;
    let epoch = store.begin_epoch().await.unwrap();
    // One of them is in use again by now.
    store.commit(epoch, &batch(live_run(3))).await.unwrap();
    store.put_artifact(by(3), &artifact(3, "bin", vec![file("again", 99)])).await.unwrap();
    let again = store.sweep(&policy).await.unwrap();
    assert_eq!(again, Swept { runs: 0, log_objects: objects(2), blobs: vec![content(2)], more: false });
    assert_eq!(store.sweep(&policy).await.unwrap(), Swept::default());
}

pub(super) async fn contents_in_use_are_told_from_the_rest(maker: &dyn Maker) {
    let store = with_runs(maker, 2).await;
    let asked = [content(7), content(2), content(99), "".to_owned(), content(1), content(7)];
    let unused =
        |found: Vec<String>| found.into_iter().filter(|hash| !hash.is_empty()).collect::<BTreeSet<_>>();
    let found = store.unused_blobs(&asked).await.unwrap();
    assert_eq!(unused(found), BTreeSet::from([content(7)]));
    store.sweep(&before(1_001, 0, 1_001)).await.unwrap();
    let found = store.unused_blobs(&asked).await.unwrap();
    assert_eq!(unused(found), BTreeSet::from([content(1), content(7)]));
    assert!(store.unused_blobs(&[]).await.unwrap().is_empty());
}
