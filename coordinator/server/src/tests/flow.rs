//! The whole way: trigger, orders, logs, verdict.

use axum::body::Body;
use buildyard_types::Outcome;
use buildyard_types::api::{EventView, Explanation, RunList, RunView, TriggerResponse};
use buildyard_types::worker::SyncResponse;
use serde_json::{Value, json};

use super::support::{Farm, PIPELINE, Repository, request, running};

#[tokio::test]
async fn a_commit_gets_its_verdict() {
    let farm = Farm::start().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let mut worker = farm.worker().await;
    let made: TriggerResponse = farm.trigger(&repository, None).await.ok();
    assert_eq!(made.runs.len(), 1);
    let run = made.runs[0].id;
    assert_eq!(made.runs[0].commit, repository.git(&["rev-parse", "HEAD"]));
    assert_eq!(made.runs[0].ref_name.as_deref(), Some("refs/heads/main"));

    for expected in ["build", "test"] {
        let order = worker.order().await;
        assert_eq!(order.spec.name, expected);
        assert_eq!(order.pipeline, "demo");
        worker.sync(vec![running(&order)]).await;
        worker.carry_out(&order, Outcome::Passed).await;
    }

    let view: RunView = farm.get(&format!("/api/v1/runs/{run}")).await.ok();
    assert_eq!((view.state.as_str(), view.sentence.as_str()), ("finished", "passed: 2 jobs"));
    assert_eq!(view.images, "open");
    assert_eq!(view.jobs.iter().map(|job| job.name.as_str()).collect::<Vec<_>>(), ["build", "test"]);
    let attempt = &view.jobs[0].attempts[0];
    assert_eq!((attempt.state.as_str(), attempt.log_finished), ("removed", true));
    assert_eq!(attempt.worker_name, "w1");

    let log = farm.get(&format!("/api/v1/jobs/job-{}-0/log", run.0)).await;
    assert_eq!(log.text(), "hello\n");
    let events: Vec<EventView> = farm.get(&format!("/api/v1/runs/{run}/events")).await.ok();
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds.first(), Some(&"run.received"));
    assert!(kinds.contains(&"run.finished"), "{kinds:?}");
    let sentence = &events.iter().find(|event| event.kind == "job.finished").unwrap().sentence;
    assert_eq!(sentence, "job `build` passed");
}

#[tokio::test]
async fn a_failure_says_step_code_fault_and_last_lines() {
    let farm = Farm::start().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let mut worker = farm.worker().await;
    farm.trigger(&repository, None).await.done();
    let order = worker.order().await;
    let step = order.spec.steps[0].name.clone();
    worker.carry_out(&order, Outcome::Failed { step: step.clone(), exit_code: 7 }).await;

    let run = order.attempt.run();
    let view: RunView = farm.get(&format!("/api/v1/runs/{run}")).await.ok();
    assert_eq!(view.sentence, format!("failed: job `build` failed: step `{step}` ended with exit code 7"));
    let skipped = view.jobs[1].outcome.as_ref().unwrap();
    assert!(matches!(skipped, Outcome::Skipped { .. }), "{skipped}");

    let why: Explanation = farm.get(&format!("/api/v1/explain/{}", order.attempt.job)).await.ok();
    assert_eq!(why.fault, Some(buildyard_types::Fault::Job));
    assert!(why.sentence.contains("exit code 7"), "{}", why.sentence);
    assert!(why.details.iter().any(|detail| detail.contains("hello")), "{:?}", why.details);
    assert!(why.next.iter().any(|next| next.contains("buildyard logs")), "{:?}", why.next);
    for id in [run.to_string(), order.attempt.to_string(), worker.id.to_string(), run.0.to_string()] {
        let why: Explanation = farm.get(&format!("/api/v1/explain/{id}")).await.ok();
        assert!(why.sentence.ends_with('.'), "{}", why.sentence);
    }
}

#[tokio::test]
async fn a_waiting_job_says_why() {
    let farm = Farm::start().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let made: TriggerResponse = farm.trigger(&repository, None).await.ok();
    let path = format!("/api/v1/runs/{}", made.runs[0].id);
    let view = farm.until(&path, |run| run["jobs"].as_array().is_some_and(|jobs| !jobs.is_empty())).await;
    assert_eq!(view["jobs"][0]["sentence"], "no worker has joined yet");
    assert_eq!(view["jobs"][1]["state"], "waiting");
}

#[tokio::test]
async fn the_same_key_is_the_same_runs() {
    let farm = Farm::start().await;
    let files = [("pipeline.toml", PIPELINE), (".buildyard/nightly.toml", PIPELINE)];
    let repository = Repository::with(farm.temp.path(), &files);
    let first: TriggerResponse = farm.trigger(&repository, Some("k1")).await.ok();
    let names: Vec<&str> = first.runs.iter().map(|run| run.file.as_str()).collect();
    assert_eq!(names, ["pipeline.toml", ".buildyard/nightly.toml"]);
    // The branch moves on, and still the key means what it meant.
    repository.commit(&[("pipeline.toml", PIPELINE), ("Makefile", "all:")]);
    for _ in 0..20 {
        let again: TriggerResponse = farm.trigger(&repository, Some("k1")).await.ok();
        let ids = |made: &TriggerResponse| made.runs.iter().map(|run| run.id).collect::<Vec<_>>();
        assert_eq!(ids(&again), ids(&first));
    }
    let other: TriggerResponse = farm.trigger(&repository, Some("k")).await.ok();
    assert_ne!(other.runs[0].commit, first.runs[0].commit);
    let list: RunList = farm.get("/api/v1/runs").await.ok();
    assert_eq!(list.runs.len(), 4);
    let page: RunList = farm.get("/api/v1/runs?limit=3").await.ok();
    let rest: RunList = farm.get(&format!("/api/v1/runs?before={}", page.next.unwrap())).await.ok();
    assert_eq!((page.runs.len(), rest.runs.len(), rest.next), (3, 1, None));
    let by_commit = format!("/api/v1/runs?commit={}", &other.runs[0].commit[..12]);
    assert_eq!(farm.get(&by_commit).await.ok::<RunList>().runs.len(), 2);
}

#[tokio::test]
async fn a_file_that_is_wrong_is_refused_with_its_mistakes() {
    let farm = Farm::start().await;
    let cycle = "[jobs.a]\nimage = \"i\"\nrun = \"x\"\nneeds = [\"b\"]\n[jobs.b]\nimage = \"i\"\nrun = \"x\"\nneeds = [\"a\"]\n";
    let large = format!("# {}\n", "x".repeat(1 << 20));
    for (files, code) in [
        (vec![("README.md", "nothing")], Some("no-pipeline")),
        (vec![("pipeline.toml", "[jobs.a\n")], None),
        (vec![("pipeline.toml", cycle)], None),
        (vec![("pipeline.toml", large.as_str())], None),
    ] {
        let repository = Repository::with(farm.temp.path(), &files);
        let made: TriggerResponse = farm.trigger(&repository, None).await.ok();
        let path = format!("/api/v1/runs/{}", made.runs[0].id);
        let view = farm.until(&path, |run| run["state"] != "received").await;
        assert_eq!((&view["state"], &view["verdict"]), (&json!("refused"), &json!("refused")), "{view}");
        let found = &view["diagnostics"][0]["code"];
        assert!(found.is_string() && code.is_none_or(|code| found == code), "{view}");
        let why: Explanation = farm.get(&format!("/api/v1/explain/{}", made.runs[0].id)).await.ok();
        assert!(why.sentence.contains("was refused"), "{}", why.sentence);
    }
}

#[tokio::test]
async fn a_trigger_that_names_nothing_is_told_so() {
    let farm = Farm::start().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let inside = repository.path.join("inside");
    std::fs::create_dir(&inside).unwrap();
    let marker = farm.temp.path().join("marker");
    let upload_pack = format!("--upload-pack=touch {}", marker.display());
    let good = repository.path.to_str().unwrap();
    for (path, revision, expected) in [
        ("relative", "main", "bad-repository"),
        ("/nonexistent", "main", "bad-repository"),
        (inside.to_str().unwrap(), "main", "bad-repository"),
        ("ext::sh -c true", "main", "bad-repository"),
        (good, "nosuch", "bad-revision"),
        (good, "", "bad-revision"),
        (good, "main:pipeline.toml", "bad-revision"),
        (good, "--all", "bad-revision"),
        (good, &upload_pack, "bad-revision"),
        (good, "a b", "bad-revision"),
    ] {
        let body = json!({ "repository": path, "revision": revision });
        let answer = farm.post("/api/v1/runs", body).await;
        assert_eq!(answer.problem(), (422, expected.to_owned()), "{path} {revision}: {}", answer.text());
        assert!(answer.json::<Value>()["hint"].is_string());
    }
    assert!(!marker.exists());
    assert!(farm.get("/api/v1/runs").await.ok::<RunList>().runs.is_empty());
}

#[tokio::test]
async fn a_cancelled_run_ends_and_a_second_cancel_is_told_so() {
    let farm = Farm::start().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let mut worker = farm.worker().await;
    farm.trigger(&repository, None).await.done();
    let order = worker.order().await;
    let path = format!("/api/v1/runs/{}", order.attempt.run());
    farm.post(&format!("{path}/cancel"), json!({})).await.done();
    let told = worker.sync(vec![running(&order)]).await;
    assert_eq!(told.stop[0].attempt, order.attempt);
    worker.end(&order, Outcome::Cancelled { by: "by admin".into() }).await;
    let view: RunView = farm.get(&path).await.ok();
    assert_eq!(view.verdict, Some(buildyard_types::Verdict::Cancelled));
    let again = farm.post(&format!("{path}/cancel"), json!({})).await;
    assert_eq!(again.problem(), (409, "already-finished".into()));
    let job = farm.post(&format!("/api/v1/jobs/{}/cancel", order.attempt.job), json!({})).await;
    assert_eq!(job.problem(), (409, "already-finished".into()));
}

#[tokio::test]
async fn workers_are_cordoned_shown_and_removed() {
    let farm = Farm::start().await;
    let mut worker = farm.worker().await;
    let path = format!("/api/v1/workers/{}", worker.id);
    let view: Value = farm.post(&format!("{path}/cordon"), json!({})).await.ok();
    assert_eq!(view["cordoned"], true);
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let made: TriggerResponse = farm.trigger(&repository, None).await.ok();
    let run = format!("/api/v1/runs/{}", made.runs[0].id);
    let (call, caller) = (worker.sync_request(Vec::new()), worker.clone());
    let held = tokio::spawn(async move { caller.send(call).await });
    let waits = |run: &Value| run["jobs"][0]["sentence"].as_str().is_some_and(|why| why.contains("cordoned"));
    farm.until(&run, waits).await;
    farm.post(&format!("{path}/uncordon"), json!({})).await.done();
    let told: SyncResponse = held.await.unwrap().ok();
    let [order] = told.run.try_into().unwrap();
    let busy = farm.send(request("DELETE", &path, &farm.admin, Body::empty())).await;
    assert_eq!(busy.problem(), (409, "worker-busy".into()));
    worker.carry_out(&order, Outcome::Failed { step: "run".into(), exit_code: 1 }).await;
    farm.send(request("DELETE", &path, &farm.admin, Body::empty())).await.done();
    let request = worker.sync_request(Vec::new());
    assert_eq!(worker.send(request).await.problem(), (401, "unauthorized".into()));
    assert_eq!(farm.get(&path).await.problem(), (404, "worker-not-found".into()));
    let audit = farm.coordinator.app.store.audit(20).await.unwrap();
    let acts: Vec<&str> = audit.iter().rev().map(|line| line.act.as_str()).collect();
    let expected =
        ["worker.invite", "worker.enrol", "worker.cordon", "run.create", "worker.uncordon", "worker.remove"];
    assert_eq!(acts, expected);
}

#[tokio::test]
async fn the_farm_is_told_at_a_glance() {
    let farm = Farm::start().await;
    let status: Value = farm.get("/api/v1/status").await.ok();
    assert_eq!((&status["epoch"], &status["workers_known"]), (&json!(1), &json!(0)));
    let mut worker = farm.worker().await;
    let call = worker.sync_request(Vec::new());
    let held = tokio::spawn(async move { worker.send(call).await });
    let metric = |text: &str, name: &str| text.lines().any(|line| line == name);
    while !metric(&farm.get("/metrics").await.text(), "buildyard_held_syncs 1") {
        tokio::task::yield_now().await;
    }
    let text = farm.get("/metrics").await.text();
    assert!(metric(&text, "buildyard_workers{liveness=\"fresh\"} 1"), "{text}");
    assert!(text.contains("# TYPE buildyard_commit_seconds_sum counter"), "{text}");
    let images: Value = farm.get("/api/v1/images").await.ok();
    assert_eq!(images, json!([{ "name": "debian:12", "admission": "open", "workers": ["w1"] }]));
    assert_eq!(farm.get("/healthz").await.text(), "ok\n");
    assert_eq!(farm.get("/readyz").await.text(), "ready\n");
    let version: Value = farm.get("/version").await.ok();
    assert_eq!(version["api"], "v1");
    held.abort();
}

#[tokio::test]
async fn a_full_disk_refuses_new_runs_and_says_so() {
    let temp = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let mut config = super::support::config(&temp.path().join("data"));
    // More than there is: half of the disk counts then, and a share of half as well.
    config.retention.disk_free_min = buildyard_types::ByteSize(u64::MAX);
    config.retention.disk_free_min_percent = 100;
    let farm = Farm::with(temp, config).await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let answer = farm.trigger(&repository, None).await;
    assert_eq!(answer.problem(), (507, "disk-low".into()));
    assert_eq!(farm.get("/readyz").await.problem(), (503, "unavailable".into()));
    farm.get("/healthz").await.done();
    let status: Value = farm.get("/api/v1/status").await.ok();
    assert!(status["warnings"][0].as_str().unwrap().contains("are needed"), "{status}");
    // What is under way goes on: workers still call.
    farm.worker().await;
}

#[tokio::test]
async fn a_shallow_repository_is_built_as_well() {
    let farm = Farm::start().await;
    let deep = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    deep.commit(&[("Makefile", "all:")]);
    let path = farm.temp.path().canonicalize().unwrap().join("shallow");
    let url = format!("file://{}", deep.path.display());
    deep.git(&["clone", "--quiet", "--depth=1", &url, path.to_str().unwrap()]);
    let shallow = Repository { path };
    let made: TriggerResponse = farm.trigger(&shallow, None).await.ok();
    let view =
        farm.until(&format!("/api/v1/runs/{}", made.runs[0].id), |run| run["state"] != "received").await;
    assert_eq!(view["state"], "active", "{view}");
}
