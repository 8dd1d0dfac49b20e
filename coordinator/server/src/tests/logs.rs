//! Logs: chunks at any cut, followers, and readers that come late.

use axum::body::Body;
use axum::http::Request;
use buildyard_types::Outcome;
use buildyard_types::api::{EventView, LogLine};
use buildyard_types::log::{HEADER_BYTES, read_record};
use buildyard_types::worker::LogLength;
use futures_util::StreamExt;
use serde_json::Value;
use tower::ServiceExt;

use super::support::{FakeWorker, Farm, PIPELINE, Repository, ended, records, request};
use crate::blobs::sha256_hex;
use crate::logs::compact;
use crate::retention::without_rows;
use buildyard_store::Fenced;
use buildyard_types::worker::AttemptOrder;

async fn begun() -> (Farm, FakeWorker, AttemptOrder) {
    let farm = Farm::start().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let mut worker = farm.worker().await;
    farm.trigger(&repository, None).await.done();
    let order = worker.order().await;
    (farm, worker, order)
}

/// Offsets at which records begin.
fn boundaries(log: &[u8]) -> Vec<usize> {
    let mut at = 0;
    let mut found = vec![0];
    while let Ok(Some((_, length))) = read_record(&log[at..]) {
        at += length;
        found.push(at);
    }
    found
}

#[tokio::test]
async fn a_log_is_kept_whole_however_it_is_sent() {
    let (farm, worker, order) = begun().await;
    let log = records(&["one", "two", "three", "four"]);
    let cuts = boundaries(&log);
    let kept = |answer: super::support::Answer| answer.ok::<LogLength>().length;
    // A gap changes nothing; the answer says where to go on.
    assert_eq!(kept(worker.log(&order, 1_000, &log).await), 0);
    assert_eq!(kept(worker.log(&order, 0, &log[..cuts[2]]).await), cuts[2] as u64);
    // Sent again a hundred times, and with an overlap.
    for _ in 0..100 {
        assert_eq!(kept(worker.log(&order, 0, &log[..cuts[1]]).await), cuts[2] as u64);
    }
    assert_eq!(kept(worker.log(&order, cuts[1] as u64, &log[cuts[1]..cuts[4]]).await), cuts[4] as u64);
    // Torn records and bytes that are no records.
    let torn = worker.log(&order, cuts[4] as u64, &log[cuts[4]..log.len() - 1]).await;
    assert_eq!(torn.problem(), (422, "bad-log".into()));
    let noise = worker.log(&order, cuts[4] as u64, &[0xff; 64]).await;
    assert_eq!(noise.problem(), (422, "bad-log".into()));
    let early = worker.finish_log(&order, &log).await;
    assert_eq!(early.problem(), (409, "conflict".into()));
    assert_eq!(kept(worker.log(&order, cuts[4] as u64, &log[cuts[4]..]).await), log.len() as u64);
    let mut wrong = log.clone();
    wrong[HEADER_BYTES] ^= 1;
    assert_eq!(worker.finish_log(&order, &wrong).await.problem(), (409, "conflict".into()));
    worker.finish_log(&order, &log).await.done();
    worker.finish_log(&order, &log).await.done();
    let more = worker.log(&order, log.len() as u64, &log).await;
    assert_eq!(more.problem(), (409, "conflict".into()), "a finished log takes nothing more");

    let path = format!("/api/v1/attempts/{}/log", order.attempt);
    assert_eq!(farm.get(&path).await.text(), "one\ntwo\nthree\nfour\n");
    assert_eq!(farm.get(&format!("{path}?format=raw")).await.body, log);
    let from = farm.get(&format!("{path}?format=json&offset={}", cuts[3])).await;
    let lines: Vec<LogLine> = from.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(texts, ["three\n", "four\n", "0"]);
    assert_eq!(farm.get(&format!("{path}?format=xml")).await.problem(), (400, "bad-request".into()));
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_refused() {
    let (_farm, worker, order) = begun().await;
    let large = records(&vec!["x".repeat(60_000).as_str(); 80]);
    assert!(large.len() > crate::logs::MAX_CHUNK_BYTES);
    assert_eq!(worker.log(&order, 0, &large).await.problem(), (413, "body-too-large".into()));
}

#[tokio::test]
async fn compacted_logs_read_the_same() {
    let (farm, worker, order) = begun().await;
    let log = records(&["a", "b", "c", "d", "e"]);
    let cuts = boundaries(&log);
    for pair in cuts.windows(2) {
        worker.log(&order, pair[0] as u64, &log[pair[0]..pair[1]]).await.done();
    }
    worker.finish_log(&order, &log).await.done();
    let store = farm.coordinator.app.store.clone();
    while store.log_chunks(order.attempt, 0, 100).await.unwrap().len() > 1 {
        tokio::task::yield_now().await;
    }
    let path = format!("/api/v1/attempts/{}/log", order.attempt);
    assert_eq!(farm.get(&path).await.text(), "a\nb\nc\nd\ne\n");
    let from = farm.get(&format!("{path}?format=raw&offset={}", cuts[3])).await;
    assert_eq!(from.body, log[cuts[3]..]);
    let files = || farm.coordinator.app.blobs.older_than("logs", std::time::Duration::ZERO, 100).unwrap();
    while files().len() > 1 {
        tokio::task::yield_now().await;
    }
}

/// Writes a log in one chunk for each record; gives it.
async fn in_small_chunks(worker: &FakeWorker, order: &AttemptOrder) -> Vec<u8> {
    let log = records(&["a", "b", "c", "d", "e"]);
    for pair in boundaries(&log).windows(2) {
        worker.log(order, pair[0] as u64, &log[pair[0]..pair[1]]).await.done();
    }
    log
}

#[tokio::test]
async fn a_log_of_many_rows_loses_no_file_to_the_search_for_orphans() {
    let (farm, worker, order) = begun().await;
    in_small_chunks(&worker, &order).await;
    let store = farm.coordinator.app.store.clone();
    let files = farm.coordinator.app.blobs.older_than("logs", std::time::Duration::ZERO, 100).unwrap();
    assert_eq!(files.len(), 7);
    let stray = format!("logs/{}/stray", order.attempt);
    let with_stray = || files.iter().cloned().chain([stray.clone()]).collect();
    for page in [1, 2, 3, 7, 8, 100] {
        let unnamed = without_rows(&*store, order.attempt, with_stray(), page).await.unwrap();
        assert_eq!(Vec::from_iter(unnamed), [stray.as_str()], "{page} rows at a time");
    }
}

#[tokio::test]
async fn a_log_of_many_rows_is_compacted_to_its_end() {
    let (farm, worker, order) = begun().await;
    let log = in_small_chunks(&worker, &order).await;
    let app = &farm.coordinator.app;
    compact(&*app.store, &app.blobs, order.attempt, 3).await.unwrap();
    let chunks = app.store.log_chunks(order.attempt, 0, 100).await.unwrap();
    assert_eq!(chunks.len(), 3, "three, three and one of seven: {chunks:?}");
    let path = format!("/api/v1/attempts/{}/log?format=raw", order.attempt);
    assert_eq!(farm.get(&path).await.body, log);
}

#[tokio::test]
async fn a_compaction_that_a_crash_cut_off_is_taken_up() {
    let (farm, worker, order) = begun().await;
    let log = in_small_chunks(&worker, &order).await;
    let by = Fenced { worker: worker.id, attempt: order.attempt, fence: order.fence };
    // Finished on record, and nobody was told to compact it.
    let store = farm.coordinator.app.store.clone();
    store.finish_log(by, log.len() as u64, &sha256_hex(&log)).await.unwrap();
    drop((store, worker));
    let farm = Farm::open(farm.crash().await).await;
    let store = farm.coordinator.app.store.clone();
    while store.log_chunks(order.attempt, 0, 100).await.unwrap().len() > 1 {
        tokio::task::yield_now().await;
    }
    let path = format!("/api/v1/attempts/{}/log?format=raw", order.attempt);
    assert_eq!(farm.get(&path).await.body, log);
}

/// Reads an event stream up to a number of events; gives id, kind and data of each.
pub(super) struct Events {
    body: axum::body::BodyDataStream,
    text: String,
}

impl Events {
    pub(super) async fn open(farm: &Farm, path: &str, last: Option<&str>) -> Self {
        let mut request: Request<Body> = request("GET", path, &farm.admin, Body::empty());
        request.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
        if let Some(last) = last {
            request.headers_mut().insert("last-event-id", last.parse().unwrap());
        }
        let response = farm.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), text: String::new() }
    }

    /// The next event; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Option<(String, String, Value)> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let event: String = self.text.drain(..end + 2).collect();
                let field = |name: &str| {
                    let found = event.lines().find_map(|line| line.strip_prefix(name));
                    found.unwrap_or_default().to_owned()
                };
                if event.starts_with(':') {
                    continue;
                }
                let data = serde_json::from_str(&field("data: ")).unwrap();
                return Some((field("id: "), field("event: "), data));
            }
            let piece = self.body.next().await?.unwrap();
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }
}

#[tokio::test]
async fn a_follower_sees_each_record_once_and_the_end() {
    let (farm, mut worker, order) = begun().await;
    let log = records(&["one", "two"]);
    let cuts = boundaries(&log);
    let path = format!("/api/v1/attempts/{}/log?follow=true", order.attempt);
    let mut events = Events::open(&farm, &path, None).await;
    worker.log(&order, 0, &log[..cuts[2]]).await.done();
    let (id, kind, data) = events.next().await.unwrap();
    assert_eq!((id.as_str(), kind.as_str()), (cuts[1].to_string().as_str(), ""));
    assert_eq!((&data["kind"], &data["text"]), (&"step_start".into(), &"run".into()));
    let (resume, _, data) = events.next().await.unwrap();
    assert_eq!(data["text"], "one\n");
    drop(events);

    // Taken up again behind what was read.
    let mut events = Events::open(&farm, &path, Some(&resume)).await;
    worker.log(&order, cuts[2] as u64, &log[cuts[2]..]).await.done();
    assert_eq!(events.next().await.unwrap().2["text"], "two\n");
    assert_eq!(events.next().await.unwrap().2["kind"], "step_end");
    worker.finish_log(&order, &log).await.done();
    let (id, kind, data) = events.next().await.unwrap();
    assert_eq!((id, kind.as_str()), (log.len().to_string(), "end"));
    assert_eq!(data, serde_json::json!({ "length": log.len(), "finished": true }));
    assert!(events.next().await.is_none());
    worker.end(&order, Outcome::Passed).await;
}

#[tokio::test]
async fn a_follower_is_told_when_the_attempt_ends_without_closing_its_log() {
    let (farm, mut worker, order) = begun().await;
    let path = format!("/api/v1/attempts/{}/log?follow=true", order.attempt);
    let mut events = Events::open(&farm, &path, None).await;
    let log = records(&["half"]);
    worker.log(&order, 0, &log).await.done();
    for _ in 0..3 {
        events.next().await.unwrap();
    }
    let infra = Outcome::Infra {
        cause: buildyard_types::outcome::InfraCause::Engine,
        detail: "the engine went away".into(),
    };
    worker.sync(vec![ended(&order, infra, false)]).await;
    let (_, kind, data) = events.next().await.unwrap();
    assert_eq!((kind.as_str(), &data["finished"]), ("end", &false.into()));
}

#[tokio::test]
async fn events_can_be_taken_up_again_and_end_with_the_run() {
    let (farm, mut worker, order) = begun().await;
    let path = format!("/api/v1/runs/{}/events", order.attempt.run());
    let mut events = Events::open(&farm, &path, None).await;
    let (id, _, first) = events.next().await.unwrap();
    let first: EventView = serde_json::from_value(first).unwrap();
    assert_eq!((first.kind.as_str(), first.sequence.to_string()), ("run.received", id.clone()));
    drop(events);
    let mut events = Events::open(&farm, &path, Some(&id)).await;
    worker.carry_out(&order, Outcome::Failed { step: "run".into(), exit_code: 1 }).await;
    let mut kinds = Vec::new();
    let mut last = first.sequence;
    loop {
        let (_, kind, data) = events.next().await.unwrap();
        if kind == "end" {
            break;
        }
        let event: EventView = serde_json::from_value(data).unwrap();
        assert!(event.sequence > last);
        last = event.sequence;
        kinds.push(event.kind);
    }
    assert!(!kinds.contains(&"run.received".to_owned()), "{kinds:?}");
    assert!(kinds.contains(&"run.finished".to_owned()), "{kinds:?}");
    assert!(events.next().await.is_none());
}
