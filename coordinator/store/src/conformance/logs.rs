//! Logs: chunks in order, each once, readable from any place before and after they are compacted.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::Maker;
use super::sample::*;
use crate::{LogChunk, LogState, Store, StoreError};

async fn state(store: &dyn Store, number: u64) -> LogState {
    store.attempt(by(number).attempt).await.unwrap().unwrap().1
}

fn assert_conflict<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Conflict(_))), "{result:?}");
}

/// Chunks of 10, 20, 30, … bytes.
fn growing(count: u64) -> Vec<LogChunk> {
    let mut offset = 0;
    let next = |place: u64| {
        let chunk = chunk(1, offset, place * 10);
        offset += chunk.length;
        chunk
    };
    (1..=count).map(next).collect()
}

async fn with_log(maker: &dyn Maker, chunks: &[LogChunk]) -> Arc<dyn Store> {
    let store = maker.fresh().await;
    commit(&*store, live_run(1)).await;
    for chunk in chunks {
        store.append_log(by(1), chunk).await.unwrap();
    }
    store
}

pub(super) async fn a_log_grows_by_its_chunks(maker: &dyn Maker) {
    let store = with_log(maker, &[]).await;
    assert_eq!(state(&*store, 1).await, LogState::default());
    let chunks = growing(4);
    for chunk in &chunks {
        let length = store.append_log(by(1), chunk).await.unwrap();
        assert_eq!(length, chunk.offset + chunk.length);
        assert_eq!(state(&*store, 1).await, LogState { length, sha256: None, dropped: false });
    }
    let store = maker.reopen(store).await;
    assert_eq!(state(&*store, 1).await.length, 100);
    assert_eq!(store.log_chunks(by(1).attempt, 0, 100).await.unwrap(), chunks);
    let end = growing(5).pop().unwrap();
    assert_eq!(store.append_log(by(1), &end).await.unwrap(), 150);
}

pub(super) async fn a_chunk_that_is_sent_again_is_accepted(maker: &dyn Maker) {
    let chunks = growing(3);
    let store = with_log(maker, &chunks).await;
    for chunk in chunks.iter().chain(&chunks) {
        assert_eq!(store.append_log(by(1), chunk).await.unwrap(), 60);
    }
    assert_eq!(store.log_chunks(by(1).attempt, 0, 100).await.unwrap(), chunks);
    // No bytes are no chunk, and take nobody's place.
    assert_eq!(store.append_log(by(1), &chunk(1, 60, 0)).await.unwrap(), 60);
    assert_eq!(store.append_log(by(1), &chunk(1, 60, 5)).await.unwrap(), 65);
}

pub(super) async fn a_chunk_that_contradicts_is_refused(maker: &dyn Maker) {
    let chunks = growing(3);
    let store = with_log(maker, &chunks).await;
    let other = LogChunk { sha256: "ff".repeat(32), ..chunks[1].clone() };
    assert_conflict(store.append_log(by(1), &other).await);
    for (offset, length) in [(10, 19), (10, 21), (11, 19), (0, 60), (61, 10), (70, 10), (1 << 62, 10)] {
        assert_conflict(store.append_log(by(1), &chunk(1, offset, length)).await);
    }
    for (offset, length) in [(60, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
        assert_conflict(store.append_log(by(1), &chunk(1, offset, length)).await);
    }
    assert_eq!(store.log_chunks(by(1).attempt, 0, 100).await.unwrap(), chunks);
    assert_eq!(state(&*store, 1).await.length, 60);
}

pub(super) async fn a_log_is_closed_once(maker: &dyn Maker) {
    let store = with_log(maker, &growing(2)).await;
    for wrong in [0, 10, 29, 31, u64::MAX] {
        assert_conflict(store.finish_log(by(1), wrong, "aa").await);
    }
    assert_eq!(state(&*store, 1).await, LogState { length: 30, sha256: None, dropped: false });
    for _ in 0..2 {
        store.finish_log(by(1), 30, "aa").await.unwrap();
    }
    assert_conflict(store.finish_log(by(1), 30, "bb").await);
    assert_conflict(store.append_log(by(1), &chunk(1, 30, 10)).await);
    // What was sent before the end may come once more after it.
    assert_eq!(store.append_log(by(1), &growing(1)[0]).await.unwrap(), 30);
    let store = maker.reopen(store).await;
    assert_eq!(state(&*store, 1).await, LogState { length: 30, sha256: Some("aa".into()), dropped: false });

    let silent = with_log(maker, &[]).await;
    silent.finish_log(by(1), 0, "ee").await.unwrap();
    assert_eq!(state(&*silent, 1).await, LogState { length: 0, sha256: Some("ee".into()), dropped: false });
    assert_conflict(silent.append_log(by(1), &chunk(1, 0, 10)).await);
}

/// Reads from every place and compares with what holds it.
async fn assert_readable(store: &dyn Store, kept: &[LogChunk]) {
    let attempt = by(1).attempt;
    let length = kept.last().map_or(0, |last| last.offset + last.length);
    for from in 0..length {
        let expected: Vec<_> =
            kept.iter().filter(|chunk| chunk.offset + chunk.length > from).cloned().collect();
        assert_eq!(store.log_chunks(attempt, from, 100).await.unwrap(), expected, "from {from}");
        let two = store.log_chunks(attempt, from, 2).await.unwrap();
        assert_eq!(two, expected[..expected.len().min(2)], "two from {from}");
    }
    for from in [length, length + 1, u64::MAX] {
        assert!(store.log_chunks(attempt, from, 100).await.unwrap().is_empty());
    }
}

pub(super) async fn a_log_is_read_from_any_place(maker: &dyn Maker) {
    let chunks = growing(6);
    let store = with_log(maker, &chunks).await;
    assert_readable(&*store, &chunks).await;
    let none = store.log_chunks(by(1).attempt.job.attempt(2), 0, 100).await.unwrap();
    assert!(none.is_empty());
}

fn whole(offset: u64, length: u64) -> LogChunk {
    LogChunk { object: format!("logs/1/whole-{offset}"), ..chunk(1, offset, length) }
}

pub(super) async fn a_compacted_log_reads_as_before(maker: &dyn Maker) {
    let chunks = growing(6);
    let store = with_log(maker, &chunks).await;
    store.finish_log(by(1), 210, "aa").await.unwrap();
    let attempt = by(1).attempt;
    // Chunks 2 to 4 first: they hold the bytes from 10 to 100.
    let middle = whole(10, 90);
    let objects = |chunks: &[LogChunk]| chunks.iter().map(|chunk| chunk.object.clone()).collect::<Vec<_>>();
    assert_eq!(store.compact_log(attempt, &middle).await.unwrap(), objects(&chunks[1..4]));
    let kept = [&chunks[..1], &[middle], &chunks[4..]].concat();
    assert_readable(&*store, &kept).await;
    // Again, and then all of it.
    assert!(store.compact_log(attempt, &whole(10, 90)).await.unwrap().is_empty());
    let all = whole(0, 210);
    assert_eq!(store.compact_log(attempt, &all).await.unwrap(), objects(&kept));
    let store = maker.reopen(store).await;
    assert_readable(&*store, &[all]).await;
    assert_eq!(state(&*store, 1).await, LogState { length: 210, sha256: Some("aa".into()), dropped: false });
}

pub(super) async fn only_whole_chunks_are_compacted(maker: &dyn Maker) {
    let chunks = growing(4);
    let store = with_log(maker, &chunks).await;
    for (offset, length) in
        [(0, 99), (0, 101), (5, 95), (10, 40), (0, 0), (100, 10), (0, u64::MAX), (u64::MAX, 1)]
    {
        assert_conflict(store.compact_log(by(1).attempt, &whole(offset, length)).await);
    }
    assert_readable(&*store, &chunks).await;
}

pub(super) async fn logs_in_small_chunks_are_found(maker: &dyn Maker) {
    let store = maker.fresh().await;
    commit(&*store, (1..=6).flat_map(live_run).collect()).await;
    // One chunk; two; two of which one is long; two; two, but not finished; nothing.
    let lengths: [&[u64]; 6] = [&[10], &[10, 20], &[10, 100], &[99, 99], &[10, 10], &[]];
    for (number, lengths) in (1..).zip(lengths) {
        let mut offset = 0;
        for length in lengths {
            store.append_log(by(number), &chunk(number, offset, *length)).await.unwrap();
            offset += length;
        }
        if number != 5 {
            store.finish_log(by(number), offset, "aa").await.unwrap();
        }
    }
    let (second, fourth) = (by(2).attempt, by(4).attempt);
    let store = maker.reopen(store).await;
    for (after, limit, expected) in [
        (None, 10, vec![second, fourth]),
        (None, 1, vec![second]),
        (Some(second), 10, vec![fourth]),
        (Some(fourth), 10, vec![]),
    ] {
        assert_eq!(store.small_logs(after, 100, limit).await.unwrap(), expected, "{after:?} {limit}");
    }
}

pub(super) async fn many_logs_grow_at_once(maker: &dyn Maker) {
    const LOGS: u64 = 40;
    let store = maker.fresh().await;
    commit(&*store, (1..=LOGS).flat_map(live_run).collect()).await;
    let mut calls = JoinSet::new();
    for number in 1..=LOGS {
        let store = Arc::clone(&store);
        calls.spawn(async move {
            for place in 0..10 {
                // One that would leave a gap waits in the same queue, and is refused alone.
                let (good, gap) = (chunk(number, place * 10, 10), chunk(number, place * 10 + 500, 10));
                let (good, gap) =
                    tokio::join!(store.append_log(by(number), &good), store.append_log(by(number), &gap));
                assert_eq!(good.unwrap(), place * 10 + 10);
                assert_conflict(gap);
            }
            store.finish_log(by(number), 100, "aa").await.unwrap();
        });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap();
    }
    let store = maker.reopen(store).await;
    for number in 1..=LOGS {
        assert_eq!(
            state(&*store, number).await,
            LogState { length: 100, sha256: Some("aa".into()), dropped: false }
        );
        let chunks = store.log_chunks(by(number).attempt, 0, 100).await.unwrap();
        assert_eq!(chunks, (0..10).map(|place| chunk(number, place * 10, 10)).collect::<Vec<_>>());
    }
}
