//! A worker gone bad: every call about what is not its own, and the same attempt under old fences.

use axum::body::Body;
use buildyard_types::worker::{AttemptOrder, AttemptProgress, AttemptReport, LogFinish};
use buildyard_types::{Fence, Outcome};
use serde_json::json;

use super::support::{FakeWorker, Farm, PIPELINE, Repository, ended, records, request};
use crate::blobs::sha256_hex;

/// Every write that a worker can make about an attempt.
async fn every_write(
    worker: &FakeWorker,
    order: &AttemptOrder,
    fence: Fence,
) -> Vec<(&'static str, u16, String)> {
    let content = b"content";
    let finish = serde_json::to_vec(&LogFinish { length: 0, sha256: sha256_hex(b"") }).unwrap();
    let manifest = json!({ "files": [], "keep_ms": 1 }).to_string().into_bytes();
    let blob = format!("blobs/{}", sha256_hex(content));
    let calls = [
        ("log", "PATCH", "log?offset=0".to_owned(), records(&["mine"])),
        ("finish", "POST", "log/finish".to_owned(), finish),
        ("blob", "PUT", blob, content.to_vec()),
        ("artifact", "PUT", "artifacts/out".to_owned(), manifest),
    ];
    let mut answers = Vec::new();
    for (name, method, rest, body) in calls {
        let request = worker.write_as(method, order.attempt, fence, &rest, Body::from(body));
        let (status, code) = worker.send(request).await.problem();
        answers.push((name, status, code));
    }
    answers
}

fn all_stale(answers: &[(&'static str, u16, String)]) -> bool {
    answers.len() == 4 && answers.iter().all(|(_, status, code)| *status == 409 && code == "stale-fence")
}

#[tokio::test]
async fn nobody_writes_about_anothers_attempt() {
    let farm = Farm::start().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let mut good = farm.worker().await;
    farm.trigger(&repository, None).await.done();
    let order = good.order().await;
    let mut bad = farm.worker().await;
    // With the true fence, with others, and about attempts that do not exist.
    for fence in [order.fence, Fence(0), Fence(order.fence.0 + 1), Fence(u64::MAX)] {
        let answers = every_write(&bad, &order, fence).await;
        assert!(all_stale(&answers), "{answers:?}");
    }
    let mut invented = order.clone();
    invented.attempt = buildyard_types::RunId(999).job(0).attempt(1);
    let answers = every_write(&good, &invented, order.fence).await;
    assert!(all_stale(&answers), "{answers:?}");
    // It claims the attempt, and that it ended.
    let claims = vec![ended(&order, Outcome::Passed, true)];
    bad.sync(claims).await;
    let source = format!("/api/worker/v1/source/{}/info/refs?service=git-upload-pack", order.attempt.run());
    let answer = bad.send(request("GET", &source, &bad.credential, Body::empty())).await;
    assert_eq!(answer.problem(), (403, "forbidden".into()));
    let push = source.replace("upload", "receive");
    let answer = good.send(request("GET", &push, &good.credential, Body::empty())).await;
    assert_eq!(answer.problem(), (403, "forbidden".into()));
    // Nothing of it had an effect.
    let view: serde_json::Value = farm.get(&format!("/api/v1/jobs/{}", order.attempt.job)).await.ok();
    assert_eq!((&view["outcome"], &view["attempts"][0]["log_length"]), (&json!(null), &json!(0)));
    good.carry_out(&order, Outcome::Passed).await;
    let text = farm.get("/metrics").await.text();
    assert!(text.contains("buildyard_stale_writes_total 20\n"), "{text}");
}

#[tokio::test]
async fn an_attempt_that_ended_takes_nothing_more() {
    let farm = Farm::start().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let mut worker = farm.worker().await;
    farm.trigger(&repository, None).await.done();
    let order = worker.order().await;
    worker.carry_out(&order, Outcome::Passed).await;
    for fence in [order.fence, Fence(order.fence.0 - 1)] {
        let answers = every_write(&worker, &order, fence).await;
        assert!(all_stale(&answers), "{answers:?}");
    }
    // An old finish, replayed with another outcome, changes no verdict.
    let failed = Outcome::Failed { step: "run".into(), exit_code: 1 };
    worker.sync(vec![ended(&order, failed, true)]).await;
    let view: serde_json::Value = farm.get(&format!("/api/v1/jobs/{}", order.attempt.job)).await.ok();
    assert_eq!(view["outcome"]["kind"], "passed");
}

#[tokio::test]
async fn an_older_session_is_told_that_another_took_over() {
    let farm = Farm::start().await;
    let mut first = farm.worker().await;
    let mut second = first.clone();
    second.session = 2;
    let report = AttemptReport {
        attempt: buildyard_types::RunId(1).job(0).attempt(1),
        fence: Fence(1),
        state: AttemptProgress::Preparing,
    };
    // Something to stop, so that neither call is held.
    second.sync(vec![report.clone()]).await;
    let late = first.sync_request(vec![report]);
    assert_eq!(first.send(late).await.problem(), (409, "session-taken-over".into()));
    let mut copy = second.clone();
    copy.nonce = 7;
    let copied = copy.sync_request(Vec::new());
    assert_eq!(copy.send(copied).await.problem(), (409, "session-taken-over".into()));
}

#[tokio::test]
async fn a_protocol_that_is_not_spoken_is_refused_by_name() {
    let farm = Farm::start().await;
    let mut worker = farm.worker().await;
    let body = json!({ "protocol": 99, "token": "t", "name": "w", "offer": super::support::offer() });
    let answer = farm.send(super::support::json_request("POST", "/api/worker/v1/enrol", "", &body)).await;
    assert_eq!(answer.problem(), (400, "protocol-unsupported".into()));
    // Whatever else another version says, and however.
    let (parts, _) = worker.sync_request(Vec::new()).into_parts();
    let other = Body::from(json!({ "protocol": 2, "session": { "shape": "another" } }).to_string());
    let answer = worker.send(axum::http::Request::from_parts(parts, other)).await;
    assert_eq!(answer.problem(), (400, "protocol-unsupported".into()));
    let missing = worker.sync_request(Vec::new());
    let (parts, _) = missing.into_parts();
    let answer = worker.send(axum::http::Request::from_parts(parts, Body::from("{}"))).await;
    assert_eq!(answer.problem(), (400, "bad-request".into()));
}

#[tokio::test]
async fn a_write_without_a_fence_is_no_write() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let path = "/api/worker/v1/attempts/att-1-0-1/log?offset=0";
    let answer = worker.send(request("PATCH", path, &worker.credential, Body::from(records(&["x"])))).await;
    assert_eq!(answer.problem(), (400, "bad-request".into()));
}

/// A repository whose configuration names a program for fetching the objects that it lacks.
fn booby_trapped(farm: &Farm) -> (Repository, std::path::PathBuf) {
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let (program, sprung) = (farm.temp.path().join("evil"), farm.temp.path().join("sprung"));
    std::fs::write(&program, format!("#!/bin/sh\ntouch {}\nexit 1\n", sprung.display())).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).unwrap();
    let (url, program) = (repository.path.to_str().unwrap(), program.to_str().unwrap());
    for (key, value) in [
        ("core.repositoryFormatVersion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.promisor", "true"),
        ("remote.origin.url", url),
        ("remote.origin.uploadpack", program),
        ("uploadpack.packObjectsHook", program),
        ("core.fsmonitor", program),
        ("core.sshCommand", program),
        ("core.alternateRefsCommand", program),
        ("core.hooksPath", farm.temp.path().to_str().unwrap()),
    ] {
        repository.git(&["config", key, value]);
    }
    (repository, sprung)
}

#[tokio::test]
async fn a_repository_cannot_run_its_own_program_at_the_coordinator() {
    let farm = Farm::start().await;
    let (whole, sprung) = booby_trapped(&farm);
    let created: serde_json::Value = farm.trigger(&whole, None).await.ok();
    let run = created["runs"][0]["id"].as_str().unwrap().to_owned();
    farm.until(&format!("/api/v1/runs/{run}"), |run| {
        run["jobs"].as_array().is_some_and(|jobs| jobs.len() == 2)
    })
    .await;
    assert!(!sprung.exists(), "a whole repository: it is looked up and fetched");

    let (holed, _) = booby_trapped(&farm);
    let tree = holed.git(&["rev-parse", "main^{tree}"]);
    std::fs::remove_file(holed.path.join(format!(".git/objects/{}/{}", &tree[..2], &tree[2..]))).unwrap();
    let answer = farm.trigger(&holed, None).await;
    assert!(!answer.status.is_success(), "{}", answer.text());
    std::fs::write(holed.path.join(".git/refs/heads/main"), format!("{}\n", "1".repeat(40))).unwrap();
    let answer = farm.trigger(&holed, None).await;
    assert!(!answer.status.is_success(), "{}", answer.text());
    assert!(!sprung.exists(), "what a repository lacks is not fetched by its own program");
}
