//! A worker can write only about what it holds, and that is decided in the transaction of the write.

use std::sync::Arc;

use buildyard_scheduler::Record;
use buildyard_types::{Fence, RunId, Timestamp, WorkerId};
use tokio::task::JoinSet;

use super::Maker;
use super::sample::*;
use crate::{Artifact, Fenced, Store, StoreError};

fn artifact(by: Fenced) -> Artifact {
    let (created_at, expires_at) = (Timestamp(1), Timestamp(9_000));
    Artifact { attempt: by.attempt, name: "bin".into(), files: Vec::new(), created_at, expires_at }
}

async fn assert_stale(store: &dyn Store, by: Fenced) {
    let stale = |error: StoreError| match error {
        StoreError::Stale { attempt } => assert_eq!(attempt, by.attempt),
        other => panic!("{by:?}: {other:?}"),
    };
    stale(store.append_log(by, &chunk(1, 0, 10)).await.unwrap_err());
    stale(store.append_log(by, &chunk(1, 10, 10)).await.unwrap_err());
    stale(store.finish_log(by, 10, "aa").await.unwrap_err());
    stale(store.put_artifact(by, &artifact(by)).await.unwrap_err());
}

pub(super) async fn a_stale_write_changes_nothing(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let epoch = commit(&*store, [live_run(1), live_run(2)].concat()).await;
    store.append_log(by(1), &chunk(1, 0, 10)).await.unwrap();
    let id = by(1).attempt;
    let before = store.attempt(id).await.unwrap();

    assert_stale(&*store, Fenced { fence: Fence(0), ..by(1) }).await;
    assert_stale(&*store, Fenced { fence: Fence(2), ..by(1) }).await;
    assert_stale(&*store, Fenced { worker: WorkerId(1), ..by(1) }).await;
    assert_stale(&*store, Fenced { attempt: by(2).attempt, ..by(1) }).await;
    assert_stale(&*store, Fenced { attempt: id.job.attempt(2), ..by(1) }).await;
    assert_stale(&*store, Fenced { attempt: RunId(77).job(0).attempt(1), ..by(1) }).await;

    for state in [ended(5_000), removed(5_000)] {
        let records = vec![Record::AttemptChanged { attempt: id, state }];
        store.commit(epoch, &batch(records)).await.unwrap();
        assert_stale(&*store, by(1)).await;
    }
    let (_, log) = store.attempt(id).await.unwrap().unwrap();
    assert_eq!(log, before.unwrap().1);
    assert_eq!(store.log_chunks(id, 0, 10).await.unwrap(), [chunk(1, 0, 10)]);
    assert!(store.artifacts(RunId(1)).await.unwrap().is_empty());
    // The artifact of another attempt is not the caller's, even under a good fence.
    let foreign = store.put_artifact(by(2), &artifact(by(1))).await;
    assert!(matches!(foreign, Err(StoreError::Stale { .. })), "{foreign:?}");
}

pub(super) async fn no_write_gets_in_behind_the_end_of_its_attempt(maker: &dyn Maker) {
    const ATTEMPTS: u64 = 24;
    let store = maker.fresh().await;
    let epoch = commit(&*store, (1..=ATTEMPTS).flat_map(live_run).collect()).await;
    let mut calls = JoinSet::new();
    for number in 1..=ATTEMPTS {
        let writer = Arc::clone(&store);
        calls.spawn(async move {
            // Until it is told that the attempt is over.
            for place in 0.. {
                if writer.append_log(by(number), &chunk(number, place * 10, 10)).await.is_err() {
                    break;
                }
            }
        });
        let ender = Arc::clone(&store);
        calls.spawn(async move {
            let records = vec![Record::AttemptChanged { attempt: by(number).attempt, state: ended(5_000) }];
            ender.commit(epoch, &batch(records)).await.unwrap();
            let (_, at_end) = ender.attempt(by(number).attempt).await.unwrap().unwrap();
            for _ in 0..3 {
                let late = ender.append_log(by(number), &chunk(number, at_end.length, 10)).await;
                assert!(matches!(late, Err(StoreError::Stale { .. })), "{late:?}");
            }
            let (_, later) = ender.attempt(by(number).attempt).await.unwrap().unwrap();
            assert_eq!(later, at_end);
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
}
