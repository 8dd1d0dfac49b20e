//! Artifacts: contents by hash, lists of files, downloads.

use axum::body::Body;
use buildyard_types::api::ArtifactView;
use buildyard_types::{Millis, Outcome};
use serde_json::{Value, json};

use super::support::{Answer, FakeWorker, Farm, PIPELINE, Repository};
use crate::blobs::sha256_hex;
use buildyard_types::worker::AttemptOrder;

async fn begun() -> (Farm, FakeWorker, AttemptOrder) {
    let farm = Farm::start().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let mut worker = farm.worker().await;
    farm.trigger(&repository, None).await.done();
    let order = worker.order().await;
    (farm, worker, order)
}

async fn blob(worker: &FakeWorker, order: &AttemptOrder, sha256: &str, content: &[u8]) -> Answer {
    let body = Body::from(content.to_vec());
    worker.send(worker.write("PUT", order, &format!("blobs/{sha256}"), body)).await
}

async fn manifest(worker: &FakeWorker, order: &AttemptOrder, name: &str, files: Value) -> Answer {
    let body = Body::from(json!({ "files": files, "keep_ms": 86_400_000 }).to_string());
    worker.send(worker.write("PUT", order, &format!("artifacts/{name}"), body)).await
}

fn file(path: &str, content: &[u8]) -> Value {
    json!({ "path": path, "size": content.len(), "sha256": sha256_hex(content), "executable": false })
}

#[tokio::test]
async fn an_artifact_comes_back_as_it_went_in() {
    let (farm, mut worker, order) = begun().await;
    let (tool, page) = (b"\x7fELF".as_slice(), b"<script>alert(1)</script>".as_slice());
    let files = json!([file("bin/tool", tool), file("index.html", page)]);
    let early = manifest(&worker, &order, "out", files.clone()).await;
    assert_eq!(early.problem(), (409, "blobs-missing".into()));
    for content in [tool, page, tool] {
        blob(&worker, &order, &sha256_hex(content), content).await.done();
    }
    for _ in 0..3 {
        manifest(&worker, &order, "out", files.clone()).await.done();
    }
    let other = manifest(&worker, &order, "out", json!([file("bin/tool", tool)])).await;
    assert_eq!(other.problem(), (409, "conflict".into()));
    worker.carry_out(&order, Outcome::Passed).await;

    let list: Vec<ArtifactView> =
        farm.get(&format!("/api/v1/runs/{}/artifacts", order.attempt.run())).await.ok();
    assert_eq!((list[0].name.as_str(), list[0].job_name.as_str(), list[0].files.len()), ("out", "build", 2));
    let base = format!("/api/v1/jobs/{}/artifacts/out", order.attempt.job);
    let got = farm.get(&format!("{base}/index.html")).await;
    assert_eq!(got.body, page);
    assert_eq!(got.headers["content-disposition"], "attachment");
    assert_eq!(got.headers["content-type"], "application/octet-stream");
    assert_eq!(got.headers["x-content-type-options"], "nosniff");
    assert!(got.headers["content-security-policy"].to_str().unwrap().contains("sandbox"));
    assert_eq!(farm.get(&format!("{base}/bin/tool")).await.body, tool);
    let archive = farm.get(&base).await;
    assert_eq!(archive.headers["content-type"], "application/x-tar");
    assert_eq!(archive.body.len() % 512, 0);
    assert!(archive.text().contains("bin/tool"));
    for wrong in ["bin", "bin/", "../out/bin/tool", "%2e%2e/x", "..%2f..%2fcoordinator.db", "nothing"] {
        let answer = farm.get(&format!("{base}/{wrong}")).await;
        assert_eq!(answer.problem(), (404, "artifact-not-found".into()), "{wrong}");
    }
}

#[tokio::test]
async fn what_an_attempt_made_that_does_not_count_is_not_the_jobs() {
    let (farm, mut worker, order) = begun().await;
    blob(&worker, &order, &sha256_hex(b"binary"), b"binary").await.done();
    manifest(&worker, &order, "out", json!([file("a", b"binary")])).await.done();
    let list = format!("/api/v1/runs/{}/artifacts", order.attempt.run());
    let one = format!("/api/v1/jobs/{}/artifacts/out", order.attempt.job);
    assert_eq!(farm.get(&list).await.text(), "[]", "the attempt is still live");
    worker.carry_out(&order, Outcome::Failed { step: "run".into(), exit_code: 1 }).await;
    assert_eq!(farm.get(&list).await.text(), "[]");
    for path in [one.clone(), format!("{one}/a")] {
        assert_eq!(farm.get(&path).await.problem(), (404, "artifact-not-found".into()));
    }
}

#[tokio::test]
async fn uploads_at_once_do_not_count_on_the_same_free_space() {
    let (farm, worker, order) = begun().await;
    let app = &farm.coordinator.app;
    let free = app.dir.disk_space().unwrap().free.0;
    let mut first = app.promise(free / 2).unwrap();
    assert_eq!(app.promise(free / 4 * 3).err().unwrap().code, crate::error::Code::DiskLow);
    assert_eq!(
        app.promised.load(std::sync::atomic::Ordering::Relaxed),
        free / 2,
        "a refusal promises nothing"
    );
    first.keep(free / 4);
    assert_eq!(app.promised.load(std::sync::atomic::Ordering::Relaxed), free / 2 - free / 4);
    // Nothing is left for the next; it waits for a free disk, and is no fault of its own.
    let before = app.promised.fetch_add(free, std::sync::atomic::Ordering::Relaxed);
    let refused = blob(&worker, &order, &sha256_hex(b"more"), b"more").await;
    assert_eq!(refused.problem(), (507, "disk-low".into()));
    app.promised.store(before, std::sync::atomic::Ordering::Relaxed);
    drop(first);
    assert_eq!(app.promised.load(std::sync::atomic::Ordering::Relaxed), 0);
    blob(&worker, &order, &sha256_hex(b"more"), b"more").await.done();
}

#[tokio::test]
async fn logs_are_taken_down_to_a_lower_mark_than_new_work() {
    let (farm, mut worker, order) = begun().await;
    let seen = farm.coordinator.app.dir.disk_space().unwrap();
    worker.router = axum::Router::new();
    let temp = farm.crash().await;
    // All of the disk is wanted free: new work is refused, and logs are taken as long as a quarter is.
    let mut config = super::support::config(&temp.path().join("data"));
    config.retention.disk_free_min_percent = 100;
    let farm = Farm::with(temp, config).await;
    worker.router = farm.router.clone();
    let refused = blob(&worker, &order, &sha256_hex(b"more"), b"more").await;
    assert_eq!(refused.problem(), (507, "disk-low".into()));
    let log = super::support::records(&["hello"]);
    let answer = worker.log(&order, 0, &log).await;
    if seen.free.0 < seen.total.0 / 4 {
        assert_eq!(answer.problem(), (507, "disk-low".into()), "the worker keeps it and asks again");
        worker.log(&order, 0, b"").await.done();
    } else {
        answer.done();
    }
}

#[tokio::test]
async fn contents_that_are_not_what_they_are_called_are_not_kept() {
    let (farm, worker, order) = begun().await;
    let hash = sha256_hex(b"good");
    assert_eq!(blob(&worker, &order, &hash, b"evil").await.problem(), (422, "bad-artifact".into()));
    assert_eq!(blob(&worker, &order, "abc", b"x").await.problem(), (422, "bad-artifact".into()));
    assert_eq!(farm.coordinator.app.blobs.content_length(&hash).await.unwrap(), None);
    blob(&worker, &order, &hash, b"good").await.done();
    let lies = json!([{ "path": "a", "size": 5, "sha256": hash, "executable": false }]);
    assert_eq!(manifest(&worker, &order, "out", lies).await.problem(), (422, "bad-artifact".into()));
    for path in ["../a", "/a", "a/../b", ""] {
        let answer = manifest(&worker, &order, "out", json!([file(path, b"good")])).await;
        assert_eq!(answer.problem(), (422, "bad-artifact".into()), "{path}");
    }
    for name in [".hidden", "a%2fb", "a%00b", "a b"] {
        let name = name.replace(' ', "%20");
        let answer = manifest(&worker, &order, &name, json!([])).await;
        assert_eq!(answer.problem().0, 422, "{name}: {}", answer.text());
    }
}

#[tokio::test]
async fn what_no_artifact_names_is_swept_and_the_rest_stays() {
    let (farm, worker, order) = begun().await;
    for content in [b"named".as_slice(), b"orphan"] {
        blob(&worker, &order, &sha256_hex(content), content).await.done();
    }
    manifest(&worker, &order, "out", json!([file("a", b"named")])).await.done();
    let log = super::support::records(&["kept"]);
    worker.log(&order, 0, &log).await.done();
    let app = &farm.coordinator.app;
    let stray = app.blobs.put_log(order.attempt, 999, &sha256_hex(b"stray"), "stray".into()).await.unwrap();
    let gone = crate::retention::sweep_orphans(app, std::time::Duration::ZERO).await.unwrap();
    assert_eq!(gone, 2);
    assert_eq!(app.blobs.content_length(&sha256_hex(b"orphan")).await.unwrap(), None);
    assert_eq!(app.blobs.content_length(&sha256_hex(b"named")).await.unwrap(), Some(5));
    assert!(app.blobs.read(&stray, 0, 1).await.unwrap_err().is_missing());
    assert_eq!(farm.get(&format!("/api/v1/attempts/{}/log", order.attempt)).await.text(), "kept\n");
}

#[tokio::test]
async fn what_is_too_old_goes_with_everything_that_belongs_to_it() {
    let (farm, mut worker, order) = begun().await;
    let content = b"old".as_slice();
    blob(&worker, &order, &sha256_hex(content), content).await.done();
    manifest(&worker, &order, "out", json!([file("a", content)])).await.done();
    worker.carry_out(&order, Outcome::Failed { step: "run".into(), exit_code: 1 }).await;
    let app = &farm.coordinator.app;
    let run = format!("/api/v1/runs/{}", order.attempt.run());
    let now = app.clock.now();
    assert_eq!(crate::retention::sweep(app, now).await.unwrap(), 0);
    farm.get(&run).await.done();
    let logs = || app.blobs.older_than("logs", std::time::Duration::ZERO, 10).unwrap().len();
    assert_eq!(logs(), 1);

    let later = now + app.config.retention.logs_ms + Millis(60_000);
    crate::retention::sweep(app, later).await.unwrap();
    assert_eq!(logs(), 0, "logs go before their runs");
    let log = farm.get(&format!("/api/v1/attempts/{}/log", order.attempt)).await;
    assert_eq!(log.problem(), (404, "log-not-found".into()));
    assert!(log.text().contains("dropped after retention.logs"), "{}", log.text());
    let why = farm.get(&format!("/api/v1/explain/{}", order.attempt)).await.text();
    assert!(why.contains("its log was dropped") && !why.contains("not closed"), "{why}");
    assert!(app.store.artifacts(order.attempt.run()).await.unwrap().is_empty(), "it was kept for a day");

    let later = now + app.config.retention.runs_ms + Millis(60_000);
    assert_eq!(crate::retention::sweep(app, later).await.unwrap(), 1);
    assert_eq!(farm.get(&run).await.problem(), (404, "run-not-found".into()));
    assert_eq!(app.mirrors.runs().await.unwrap().len(), 1);
    crate::retention::sweep_orphans(app, std::time::Duration::ZERO).await.unwrap();
    assert!(app.mirrors.runs().await.unwrap().is_empty());
    assert_eq!(app.blobs.content_length(&sha256_hex(content)).await.unwrap(), None);
}
