//! What was acknowledged survives; what is held wakes up; two coordinators are one too many.

use std::sync::Arc;

use buildyard_types::Outcome;
use buildyard_types::api::{RunView, StatusView, TriggerResponse};
use buildyard_types::worker::SyncResponse;

use super::support::{Farm, PIPELINE, Repository, config, records, running};
use crate::start::{Coordinator, ServeError};

#[tokio::test]
async fn a_crash_loses_nothing_that_was_acknowledged() {
    let farm = Farm::start().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let mut worker = farm.worker().await;
    let made: TriggerResponse = farm.trigger(&repository, Some("key")).await.ok();
    let order = worker.order().await;
    worker.sync(vec![running(&order)]).await;
    let log = records(&["before", "after"]);
    let half = log.len() - records(&[]).len() / 2 - 1;
    let cut = buildyard_types::log::whole_prefix(&log[..half]);
    worker.log(&order, 0, &log[..cut]).await.done();
    let token = farm.admin.clone();
    worker.router = axum::Router::new();
    let temp = farm.crash().await;

    let farm = Farm::open(temp).await;
    assert_eq!(farm.admin, token, "the token is made once");
    let status: StatusView = farm.get("/api/v1/status").await.ok();
    assert_eq!((status.epoch, status.workers_known, status.workers_fresh), (2, 1, 0));
    let again: TriggerResponse = farm.trigger(&repository, Some("key")).await.ok();
    assert_eq!(again.runs[0].id, made.runs[0].id);
    // The same attempt goes on, under the same credential and fence.
    worker.router = farm.router.clone();
    worker.session = 2;
    worker.log(&order, 0, &log).await.done();
    worker.finish_log(&order, &log).await.done();
    worker.end(&order, Outcome::Passed).await;
    let next = worker.order().await;
    worker.carry_out(&next, Outcome::Passed).await;
    let view: RunView = farm.get(&format!("/api/v1/runs/{}", made.runs[0].id)).await.ok();
    assert_eq!(view.sentence, "passed: 2 jobs");
    assert_eq!(view.jobs[0].attempts.len(), 1);
    let text = farm.get(&format!("/api/v1/attempts/{}/log", order.attempt)).await.text();
    assert_eq!(text, "before\nafter\n");
}

#[tokio::test]
async fn a_run_that_was_only_received_is_read_after_the_restart() {
    let farm = Farm::start().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let made: TriggerResponse = farm.trigger(&repository, None).await.ok();
    // Wherever the reading was when the process went away.
    let temp = farm.crash().await;
    let farm = Farm::open(temp).await;
    let path = format!("/api/v1/runs/{}", made.runs[0].id);
    let view = farm.until(&path, |run| run["state"] == "active").await;
    assert_eq!(view["jobs"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_second_coordinator_on_one_folder_is_refused() {
    let farm = Farm::start().await;
    let second = Coordinator::start(config(&farm.temp.path().join("data"))).await;
    assert!(matches!(second, Err(ServeError::DataDir(crate::DataDirError::Held { .. }))));
    // In good order it lets go at once.
    let Farm { temp, coordinator, router, .. } = farm;
    drop(router);
    coordinator.stop().await.unwrap();
    Farm::open(temp).await.get("/readyz").await.done();
}

#[tokio::test]
async fn a_held_call_wakes_when_there_is_work() {
    let farm = Farm::start().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let mut worker = farm.worker().await;
    let call = worker.sync_request(Vec::new());
    let caller = worker.clone();
    let held = tokio::spawn(async move { caller.send(call).await });
    while !farm.get("/metrics").await.text().contains("buildyard_held_syncs 1\n") {
        tokio::task::yield_now().await;
    }
    farm.trigger(&repository, None).await.done();
    let told: SyncResponse = held.await.unwrap().ok();
    assert_eq!(told.run.len(), 1);
}

#[tokio::test]
async fn a_newer_call_answers_the_older_at_once() {
    let farm = Farm::start().await;
    let mut worker = farm.worker().await;
    let older = worker.sync_request(Vec::new());
    let newer = worker.sync_request(Vec::new());
    let caller = worker.clone();
    let first = tokio::spawn(async move { caller.send(older).await });
    while !farm.get("/metrics").await.text().contains("buildyard_held_syncs 1\n") {
        tokio::task::yield_now().await;
    }
    let caller = worker.clone();
    let second = tokio::spawn(async move { caller.send(newer).await });
    let told: SyncResponse = first.await.unwrap().ok();
    assert!(told.run.is_empty() && told.lease_ms.0 > 0);
    assert!(!second.is_finished());
    second.abort();
}

#[tokio::test]
async fn the_end_answers_held_calls_and_streams() {
    let farm = Farm::start().await;
    let mut worker = farm.worker().await;
    let call = worker.sync_request(Vec::new());
    let caller = worker.clone();
    let held = tokio::spawn(async move { caller.send(call).await });
    while !farm.get("/metrics").await.text().contains("buildyard_held_syncs 1\n") {
        tokio::task::yield_now().await;
    }
    let mut events = super::logs::Events::open(&farm, "/api/v1/events", None).await;
    let Farm { coordinator, router, admin, temp } = farm;
    coordinator.stop().await.unwrap();
    assert_eq!(held.await.unwrap().problem(), (503, "shutting-down".into()));
    assert!(events.next().await.is_none());
    let request = super::support::request("GET", "/api/v1/status", &admin, axum::body::Body::empty());
    let answer = tower::ServiceExt::oneshot(router, request).await.unwrap();
    assert_eq!(answer.status(), 503);
    drop(Arc::clone(&temp));
}
