//! Requests that are wrong, and answers that say so.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::support::{Farm, config, json_request, request};
use crate::routes::{Who, all};

#[tokio::test]
async fn a_problem_is_a_problem_everywhere() {
    let farm = Farm::start().await;
    let admin = farm.admin.clone();
    let too_large = format!("\"{}\"", "x".repeat(5 << 20));
    let plain = request("POST", "/api/v1/runs", &admin, Body::from("{}"));
    let broken = {
        let mut broken = request("POST", "/api/v1/runs", &admin, Body::from("{"));
        broken.headers_mut().insert("content-type", "application/json".parse().unwrap());
        broken
    };
    let get = |path: &str| request("GET", path, &admin, Body::empty());
    for (sent, status, code) in [
        (get("/nowhere"), 404, "not-found"),
        (get("/api/v1/nowhere"), 404, "not-found"),
        (request("DELETE", "/api/v1/runs", &admin, Body::empty()), 405, "method-not-allowed"),
        (get("/api/v1/runs/x"), 400, "bad-id"),
        (get("/api/v1/runs/run-042"), 400, "bad-id"),
        (get("/api/v1/jobs/run-1"), 400, "bad-id"),
        (get("/api/v1/attempts/att-1-1/log"), 400, "bad-id"),
        (get("/api/v1/workers/wkr-1"), 400, "bad-id"),
        (get("/api/v1/explain/..%2f..%2fetc"), 400, "bad-id"),
        (get("/api/v1/runs?before=zzz"), 400, "bad-id"),
        (get("/api/v1/runs?limit=many"), 400, "bad-request"),
        (get("/api/v1/runs?colour=blue"), 400, "bad-request"),
        (get("/api/v1/runs/run-7"), 404, "run-not-found"),
        (get("/api/v1/jobs/job-7-0"), 404, "job-not-found"),
        (get("/api/v1/jobs/job-7-0/log"), 404, "job-not-found"),
        (get("/api/v1/attempts/att-7-0-1"), 404, "attempt-not-found"),
        (get("/api/v1/attempts/att-7-0-1/log"), 404, "attempt-not-found"),
        (get("/api/v1/runs/run-7/events"), 404, "run-not-found"),
        (get("/api/v1/workers/wkr-0000000000007"), 404, "worker-not-found"),
        (get("/api/v1/jobs/job-7-0/artifacts/bin"), 404, "artifact-not-found"),
        (plain, 415, "unsupported-media"),
        (broken, 400, "bad-request"),
        (json_request("POST", "/api/v1/runs", &admin, &json!({ "repo": "/x" })), 400, "bad-request"),
        (json_request("POST", "/api/v1/runs", &admin, &too_large), 413, "body-too-large"),
        (json_request("POST", "/api/v1/runs/run-7/cancel", &admin, &json!({})), 404, "run-not-found"),
        (
            json_request("POST", "/api/v1/workers/invite", &admin, &json!({ "pools": ["a b"] })),
            400,
            "bad-request",
        ),
    ] {
        let path = sent.uri().to_string();
        let answer = farm.send(sent).await;
        assert_eq!(answer.problem(), (status, code.to_owned()), "{path}: {}", answer.text());
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{path}");
        let id = answer.headers["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!(answer.json::<Value>()["request_id"], id, "{path}");
    }
}

#[tokio::test]
async fn streams_beyond_the_bound_are_refused_until_one_ends() {
    let temp = Arc::new(tempfile::tempdir().unwrap());
    let mut bounded = config(&temp.path().join("data"));
    bounded.limits.streams = 2;
    let farm = Farm::with(temp, bounded).await;
    let stream = || {
        let mut events = request("GET", "/api/v1/events", &farm.admin, Body::empty());
        events.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
        farm.router.clone().oneshot(events)
    };
    let (first, second) = (stream().await.unwrap(), stream().await.unwrap());
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    let refused = stream().await.unwrap();
    assert_eq!(refused.status().as_u16(), 503);
    assert!(refused.headers().contains_key("retry-after"), "{:?}", refused.headers());
    farm.get("/api/v1/events").await.done();
    drop(first);
    assert_eq!(stream().await.unwrap().status().as_u16(), 200);
}

#[tokio::test]
async fn a_refused_method_says_which_are_served() {
    let farm = Farm::start().await;
    let answer = farm.send(request("PUT", "/api/v1/runs", &farm.admin, Body::empty())).await;
    assert_eq!(answer.status, 405);
    let allow = answer.headers["allow"].to_str().unwrap();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
}

/// Every row of the table: nothing without a token, nothing with the wrong kind, nothing with a made-up one.
#[tokio::test]
async fn every_route_is_closed_to_whom_it_is_not_for() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let made_up = format!("bya-{}", "0".repeat(64));
    for route in all() {
        let path = concrete(route.path);
        let call = |token: &str| -> Request<Body> {
            let mut request = request(route.method.as_str(), &path, token, Body::from("{}"));
            request.headers_mut().insert("content-type", "application/json".parse().unwrap());
            request
        };
        let place = format!("{} {path}", route.method);
        match route.who {
            Who::Anyone => {
                let answer = farm.send(call("")).await;
                assert_ne!(answer.status, 401, "{place}");
            }
            Who::Admin | Who::Worker => {
                for token in ["", made_up.as_str()] {
                    let answer = farm.send(call(token)).await;
                    assert_eq!(answer.problem(), (401, "unauthorized".into()), "{place}");
                    assert_eq!(answer.headers["www-authenticate"], "Bearer", "{place}");
                }
                let wrong = if route.who == Who::Admin { &worker.credential } else { &farm.admin };
                assert_eq!(farm.send(call(wrong)).await.problem(), (403, "forbidden".into()), "{place}");
            }
        }
    }
}

fn concrete(path: &str) -> String {
    let mut out = path.replace("{name}", "n").replace("{*path}", "p").replace("{sha256}", &"0".repeat(64));
    let id = match path {
        path if path.contains("/jobs/") => "job-1-0",
        path if path.contains("/attempts/") => "att-1-0-1",
        path if path.contains("/workers/") => "wkr-0000000000001",
        _ => "run-1",
    };
    out = out.replace("{id}", id);
    out
}

#[tokio::test]
async fn an_invitation_is_good_once() {
    let farm = Farm::start().await;
    let invite: Value = farm.post("/api/v1/workers/invite", json!({ "pools": ["gpu"] })).await.ok();
    let token = invite["token"].as_str().unwrap();
    let (one, two) = tokio::join!(farm.enrol(token), farm.enrol(token));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 403]);
    assert_eq!(farm.enrol(token).await.problem(), (403, "invite-used".into()));
    assert_eq!(farm.enrol("byi-made-up").await.problem(), (403, "invite-unknown".into()));
    // An invitation is no token for anything else.
    let answer = farm.send(request("GET", "/api/v1/status", token, Body::empty())).await;
    assert_eq!(answer.problem(), (401, "unauthorized".into()));
    let workers: Value = farm.get("/api/v1/workers").await.ok();
    assert_eq!(workers.as_array().unwrap().len(), 1);
    assert_eq!(workers[0]["labels"]["pools"], json!(["gpu"]));
}

#[tokio::test]
async fn the_description_is_served_as_it_is_checked_in() {
    let farm = Farm::start().await;
    let served: Value = farm.get("/api/v1/openapi.json").await.ok();
    assert_eq!(served["openapi"], "3.1.0");
    let paths = served["paths"].as_object().unwrap();
    for route in all() {
        let entry = &paths[&route.path.replace("{*", "{")];
        assert!(entry[route.method.as_str().to_lowercase()].is_object(), "{} {}", route.method, route.path);
    }
}
