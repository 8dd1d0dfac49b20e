//! What the canned coordinator knows: a few runs, one for each verdict, with hostile names among them.

use serde_json::{Value, json};

use crate::coordinator::{Answer, Request};

const PASSED: &str = "1111111111111111111111111111111111111111";
const FAILED: &str = "2222222222222222222222222222222222222222";

fn json_answer(value: &Value) -> Answer {
    Answer { status: 200, kind: "application/json", body: value.to_string().into_bytes(), cut: false }
}

fn events(body: String) -> Answer {
    Answer { status: 200, kind: "text/event-stream", body: body.into_bytes(), cut: false }
}

pub(crate) fn problem(status: u16, code: &str, detail: &str, hint: Option<&str>) -> Answer {
    let body = json!({
        "type": code, "title": "It did not work", "status": status, "detail": detail, "hint": hint,
        "request_id": "req-0123456789abcdef",
    });
    Answer { status, kind: "application/problem+json", body: body.to_string().into_bytes(), cut: false }
}

/// The answer to a request. `earlier` counts the event streams that were opened before.
pub(crate) fn answer(request: &Request, earlier: usize) -> Answer {
    let (line, query) = request.line.split_once('?').unwrap_or((&request.line, ""));
    let Some((method, path)) = line.split_once(" /api/v1/") else {
        return problem(404, "not-found", "there is nothing here", None);
    };
    let parts: Vec<&str> = path.split('/').collect();
    match (method, parts.as_slice()) {
        ("GET", ["status"]) => json_answer(&status()),
        ("GET", ["runs"]) => json_answer(&list(query)),
        ("POST", ["runs"]) => json_answer(&json!({ "runs": [without_jobs(run(43))] })),
        ("GET", ["runs", "run-46"]) if earlier > 1 => json_answer(&passed_by_now(46)),
        ("GET", ["runs", id]) => number(id).map_or_else(|| no_run(id), |number| json_answer(&run(number))),
        ("POST", ["runs", "run-41", "cancel"]) => problem(
            409,
            "already-finished",
            "run-41 is finished already",
            Some("start it anew with `buildyard trigger`"),
        ),
        ("POST", ["runs" | "jobs", _, "cancel"]) => json_answer(&json!({})),
        ("GET", ["runs", id, "events"]) => run_events(id, request),
        ("GET", ["runs", "run-41", "artifacts"]) => json_answer(&json!([artifact("out/file", HELLO)])),
        ("GET", ["runs", "run-43", "artifacts"]) => json_answer(&json!([artifact("../../escape", HELLO)])),
        ("GET", ["runs", "run-44", "artifacts"]) => {
            json_answer(&json!([artifact("out/file", &"0".repeat(64))]))
        }
        ("GET", ["runs", _, "artifacts"]) => json_answer(&json!([])),
        ("GET", ["jobs", _, "artifacts", "bin", ..]) => {
            Answer { status: 200, kind: "application/octet-stream", body: b"hello\n".to_vec(), cut: false }
        }
        ("GET", ["jobs", id]) => job_of(id).map_or_else(|| no_job(id), |job| json_answer(&job)),
        ("GET", ["attempts", id, "log"]) => log(id, query),
        ("GET", ["explain", subject]) => explain(subject),
        ("GET", ["images"]) => json_answer(&json!([
            { "name": "alpine:3", "admission": "open", "workers": ["one", "two"] },
            { "name": "debian:12", "admission": "open", "workers": ["one", "two"] },
        ])),
        ("GET", ["workers"]) => {
            json_answer(&json!([worker("wkr-0000000000001", "one"), worker("wkr-0000000000002", "two")]))
        }
        ("POST", ["workers", "invite"]) => {
            json_answer(&json!({ "token": "inv-once", "expires_at": 1_700_003_600_000_u64 }))
        }
        ("POST" | "DELETE", ["workers", ..]) => json_answer(&json!({})),
        _ => problem(404, "not-found", &format!("there is nothing at {path}"), None),
    }
}

fn number(id: &str) -> Option<u64> {
    id.strip_prefix("run-")?.parse().ok().filter(|number| (41..=47).contains(number))
}

fn no_run(id: &str) -> Answer {
    problem(404, "run-not-found", &format!("there is no {id}"), Some("`buildyard runs` lists them"))
}

fn no_job(id: &str) -> Answer {
    problem(404, "job-not-found", &format!("there is no {id}"), None)
}

fn status() -> Value {
    json!({
        "version": "0.1.0", "epoch": 3, "uptime_ms": 3_725_000, "workers_fresh": 1, "workers_known": 2,
        "runs_active": 1, "jobs_waiting": 0, "jobs_queued": 2, "jobs_running": 1,
        "disk_free": 53_687_091_200_u64, "warnings": ["worker two was last heard of 2h ago"],
    })
}

fn list(query: &str) -> Value {
    let numbers: &[u64] = if query.contains("commit=") {
        &[]
    } else if query.contains("before=") {
        &[41]
    } else {
        &[45, 44, 43, 42, 41]
    };
    let runs: Vec<Value> = numbers.iter().map(|number| without_jobs(run(*number))).collect();
    json!({ "runs": runs, "next": null })
}

fn without_jobs(mut run: Value) -> Value {
    if let Some(fields) = run.as_object_mut() {
        fields.remove("jobs");
    }
    run
}

fn run(number: u64) -> Value {
    let (state, verdict, sentence) = match number {
        41 => ("finished", json!("passed"), "passed: 1 job"),
        42 => (
            "finished",
            json!("infra"),
            "the farm could not finish it: job `test` infra (worker lost): worker one did not answer for 25s",
        ),
        43 => ("finished", json!("failed"), "failed: job `test` failed: step `unit` ended with exit code 2"),
        44 => ("refused", json!("refused"), "was refused: 1 mistake in pipeline.toml"),
        45 => ("finished", json!("cancelled"), "cancelled by admin"),
        _ => ("active", Value::Null, "1 job runs"),
    };
    let diagnostics = if number == 44 {
        json!([{ "file": "pipeline.toml", "line": 2, "column": 1, "length": 2, "source": "rn = \"make\u{202e}\"",
                 "code": "unknown-key", "message": "`rn` is no key of a job", "help": "did you mean `run`?" }])
    } else {
        json!([])
    };
    let jobs = if number == 44 { json!([]) } else { json!([job(number)]) };
    json!({
        "id": format!("run-{number}"), "pipeline": if number == 45 { "evil\u{1b}]0;x\u{7}" } else { "cjson" },
        "file": "pipeline.toml", "repository": "/srv/cjson",
        "commit": if number == 41 { PASSED } else { FAILED }, "ref_name": "refs/heads/main",
        "state": state, "verdict": verdict, "sentence": sentence, "diagnostics": diagnostics,
        "images": "open", "created_at": 1_700_000_000_000_u64,
        "finished_at": if state == "active" { Value::Null } else { json!(1_700_000_012_300_u64) },
        "jobs": jobs,
    })
}

fn job_of(id: &str) -> Option<Value> {
    let (run, index) = id.strip_prefix("job-")?.split_once('-')?;
    let run = number(&format!("run-{run}"))?;
    (index == "0").then(|| job(run))
}

fn outcome(number: u64) -> Value {
    match number {
        41 => json!({ "kind": "passed" }),
        42 => {
            json!({ "kind": "infra", "cause": "worker_lost", "detail": "worker one did not answer for 25s" })
        }
        43 => json!({ "kind": "failed", "step": "unit", "exit_code": 2 }),
        45 => json!({ "kind": "cancelled", "by": "by admin" }),
        _ => Value::Null,
    }
}

fn job(number: u64) -> Value {
    let ended = !outcome(number).is_null();
    let end = if ended { json!(1_700_000_011_000_u64) } else { Value::Null };
    json!({
        "id": format!("job-{number}-0"), "name": "test", "state": if ended { "finished" } else { "running" },
        "outcome": outcome(number), "sentence": if ended { "ended" } else { "runs on worker one" }, "needs": [],
        "image": "debian:12", "labels": "os=linux", "started_at": 1_700_000_001_000_u64, "ended_at": end,
        "attempts": [{
            "id": format!("att-{number}-0-1"), "worker": "wkr-0000000000001", "worker_name": "one", "fence": 7,
            "state": if ended { "removed" } else { "running" }, "outcome": outcome(number),
            "placed_at": 1_700_000_000_100_u64, "started_at": 1_700_000_001_000_u64, "ended_at": end,
            "steps": [{ "name": "unit", "exit_code": 2, "duration_ms": 9_500 }],
            "usage": { "cpu_ms": 4_200, "peak_rss": "64MiB", "log_bytes": 300, "prepare_ms": 90 },
            "notes": ["a child was killed for lack of memory"], "image_digest": "sha256:ab",
            "log_length": 300, "log_finished": true,
        }],
    })
}

/// What a run has become once its whole story was told.
fn passed_by_now(number: u64) -> Value {
    let mut view = run(number);
    view["state"] = json!("finished");
    view["verdict"] = json!("passed");
    view["sentence"] = json!("passed: 1 job");
    view
}

/// The stream of run 46 breaks in the middle of the second event; whoever asks again behind the first gets the rest.
fn run_events(id: &str, request: &Request) -> Answer {
    let event = |sequence: u64, sentence: &str| {
        let event = json!({ "sequence": sequence, "at": 1_700_000_000_000_u64, "kind": "job.changed", "run": id,
                            "job": null, "worker": null, "sentence": sentence });
        format!("id: {sequence}\ndata: {event}\n\n")
    };
    match request.last_event_id.as_deref() {
        _ if id != "run-46" => events("event: end\ndata: {}\n\n".into()),
        None => {
            let half = &event(2, "job `test` runs on one")[..20];
            Answer { cut: true, ..events(event(1, "run-46 was accepted\u{1b}[2J") + half) }
        }
        Some("1") => events(event(2, "job `test` runs on one") + &event(3, "job `test` passed")),
        Some(_) => events("event: end\ndata: {}\n\n".into()),
    }
}

fn log(id: &str, query: &str) -> Answer {
    if id != "att-43-0-1" {
        return events("id: 300\nevent: end\ndata: {\"length\":300,\"finished\":true}\n\n".into());
    }
    if query.contains("format=raw") {
        let mut body = Vec::new();
        buildyard_types::log::Record {
            kind: buildyard_types::log::RecordKind::Stdout,
            step: 0,
            at: buildyard_types::Timestamp(1),
            payload: b"raw \x1b[2J bytes\n",
        }
        .write_to(&mut body);
        return Answer { status: 200, kind: "application/octet-stream", body, cut: false };
    }
    let records = [
        ("note", 0, "prepared in 90ms"),
        ("step_start", 0, "build"),
        ("stdout", 0, "cc -c cjson.c\r\n50%\r100%\n"),
        ("step_end", 0, "0"),
        ("step_start", 1, "unit"),
        ("stdout", 1, "\u{1b}[31mred\u{1b}[0m \u{1b}]0;title\u{7}\n"),
        ("stderr", 1, "no line end \u{202e}"),
        ("step_end", 1, "2"),
    ];
    let line = |(index, (kind, step, text)): (usize, &(&str, u16, &str))| {
        let record = json!({ "kind": kind, "step": step, "at": 1_700_000_002_000_u64, "text": text });
        format!("id: {}\ndata: {record}\n\n", (index + 1) * 30)
    };
    let body: String = records.iter().enumerate().map(line).collect();
    events(body + "id: 300\nevent: end\ndata: {\"length\":300,\"finished\":true}\n\n")
}

fn explain(subject: &str) -> Answer {
    if subject == "nonsense" {
        return problem(400, "malformed-id", "`nonsense` is no id", Some("ids look like run-42"));
    }
    json_answer(&json!({
        "subject": subject, "sentence": format!("{subject} failed: step `unit` ended with exit code 2."), "fault": "job",
        "details": ["it ran 9.5s on worker one", "the run before it passed\u{1b}[2J",
                    "the last lines of its log:\n  expected 1\n  got 2"],
        "next": ["buildyard logs 43/test"],
    }))
}

fn worker(id: &str, name: &str) -> Value {
    let capacity = json!({ "slots": 4, "cpu_millis": 2000, "memory": "8GiB", "disk": "40GiB" });
    let used = json!({ "slots": 1, "cpu_millis": 500, "memory": "1GiB", "disk": "2GiB" });
    json!({
        "id": id, "name": name, "liveness": if name == "one" { "fresh" } else { "quiet" }, "last_heard_at": null,
        "cordoned": name == "two", "unfit": null,
        "labels": { "facts": { "arch": "amd64", "os": "linux" }, "pools": ["build"] },
        "capacity": capacity, "used": used, "attempts": ["att-46-0-1"],
        "images": ["debian:12", "alpine:3"], "version": "0.1.0",
    })
}

/// SHA-256 of `hello\n`.
const HELLO: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

fn artifact(path: &str, sha256: &str) -> Value {
    json!({
        "job": "job-41-0", "job_name": "test", "attempt": "att-41-0-1", "name": "bin",
        "files": [{ "path": path, "size": 6, "sha256": sha256, "executable": false }],
        "size": 6, "expires_at": 1_702_592_000_000_u64,
    })
}
