//! A farm without sockets, a repository to build, and a worker made of calls.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use buildyard_store::Store;
use buildyard_store_sqlite::OpenError;
use buildyard_types::log::{Record, RecordKind};
use buildyard_types::worker::{
    AttemptOrder, AttemptProgress, AttemptReport, Capacity, EndReport, EnrolResponse, FENCE_HEADER,
    LogFinish, Offer, PROTOCOL, SessionId, StepReport, SyncRequest, SyncResponse, Usage,
};
use buildyard_types::{AttemptId, ByteSize, Fence, Millis, Outcome, Timestamp, WorkerId};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::blobs::sha256_hex;
use crate::config::{ConfigFile, CoordinatorConfig};
use crate::data_dir::{DataDir, DataDirError};
use crate::start::{Coordinator, ServeError};

/// A configuration for a folder. The disk of whoever runs the tests may be full; they do not care.
pub(super) fn config(data: &Path) -> CoordinatorConfig {
    let text = "listen = '127.0.0.1:0'\n[retention]\ndisk_free_min = '1MiB'\ndisk_free_min_percent = 0";
    let mut file = ConfigFile::parse(text).unwrap();
    file.data_dir = Some(data.to_owned());
    file.validate().unwrap()
}

/// An answer with its body in memory.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The status, and the code of the problem if it is one.
    pub(super) fn problem(&self) -> (u16, String) {
        let code = serde_json::from_slice::<Value>(&self.body).ok();
        let code = code.and_then(|body| Some(body.get("type")?.as_str()?.to_owned()));
        (self.status.as_u16(), code.unwrap_or_default())
    }

    /// The body of a success.
    #[track_caller]
    pub(super) fn ok<T: DeserializeOwned>(&self) -> T {
        assert!(self.status.is_success(), "{}: {}", self.status, self.text());
        self.json()
    }

    #[track_caller]
    pub(super) fn done(&self) {
        assert!(self.status.is_success(), "{}: {}", self.status, self.text());
    }
}

/// A coordinator without a socket.
pub(super) struct Farm {
    pub(super) temp: Arc<tempfile::TempDir>,
    pub(super) coordinator: Coordinator,
    pub(super) router: Router,
    pub(super) admin: String,
}

impl Farm {
    pub(super) async fn start() -> Self {
        Self::open(Arc::new(tempfile::tempdir().unwrap())).await
    }

    /// Opens the folder of an earlier farm.
    pub(super) async fn open(temp: Arc<tempfile::TempDir>) -> Self {
        let config = config(&temp.path().join("data"));
        Self::with(temp, config).await
    }

    /// Opens a folder with a configuration of the test's own.
    pub(super) async fn with(temp: Arc<tempfile::TempDir>, config: CoordinatorConfig) -> Self {
        loop {
            match Coordinator::start(config.clone()).await {
                Ok(coordinator) => return Self::around(temp, coordinator),
                // The threads of a farm that was let go of need a moment, and a process that is just being
                // started by another test holds every lock of ours for as long.
                Err(ServeError::DataDir(DataDirError::Held { .. })) => tokio::task::yield_now().await,
                Err(ServeError::Open { source: OpenError::InUse { .. }, .. }) => {
                    tokio::task::yield_now().await
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// A farm over a store of the test's own.
    pub(super) async fn over(
        temp: Arc<tempfile::TempDir>,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
    ) -> Self {
        let config = config(&temp.path().join("data"));
        let dir = DataDir::open(&config.data_dir).unwrap();
        let store = buildyard_store_sqlite::SqliteStore::open(&dir.database()).await.unwrap();
        let coordinator = Coordinator::start_with(config, dir, wrap(Arc::new(store))).await.unwrap();
        Self::around(temp, coordinator)
    }

    fn around(temp: Arc<tempfile::TempDir>, coordinator: Coordinator) -> Self {
        let admin = std::fs::read_to_string(coordinator.admin_token_file()).unwrap().trim().to_owned();
        Self { temp, router: coordinator.router(), coordinator, admin }
    }

    /// Lets go of everything at once, as a crash does; gives the folder back.
    pub(super) async fn crash(self) -> Arc<tempfile::TempDir> {
        let Self { temp, coordinator, router, .. } = self;
        let app = Arc::downgrade(&coordinator.app);
        drop(router);
        drop(coordinator);
        // Aborted tasks let go of the folder's lock at their next step.
        while app.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
        temp
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(request("GET", path, &self.admin, Body::empty())).await
    }

    pub(super) async fn post(&self, path: &str, body: impl Serialize) -> Answer {
        self.send(json_request("POST", path, &self.admin, &body)).await
    }

    pub(super) async fn trigger(&self, repository: &Repository, key: Option<&str>) -> Answer {
        let body = json!({ "repository": repository.path, "revision": "main", "key": key });
        self.post("/api/v1/runs", body).await
    }

    /// Waits until a view satisfies a condition.
    pub(super) async fn until(&self, path: &str, condition: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..10_000 {
            let view: Value = self.get(path).await.ok();
            if condition(&view) {
                return view;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        panic!("{path} stays as it is: {}", self.get(path).await.text());
    }

    pub(super) async fn worker(&self) -> FakeWorker {
        let invite: Value = self.post("/api/v1/workers/invite", json!({})).await.ok();
        let answer = self.enrol(invite["token"].as_str().unwrap()).await;
        let EnrolResponse { worker, credential } = answer.ok();
        FakeWorker { id: worker, credential, router: self.router.clone(), session: 1, nonce: 0, sequence: 0 }
    }

    pub(super) async fn enrol(&self, token: &str) -> Answer {
        let body = json!({ "protocol": PROTOCOL, "token": token, "name": "w1", "offer": offer() });
        self.send(json_request("POST", "/api/worker/v1/enrol", "", &body)).await
    }
}

pub(super) fn request(method: &str, path: &str, token: &str, body: Body) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    request.body(body).unwrap()
}

pub(super) fn json_request(method: &str, path: &str, token: &str, body: &impl Serialize) -> Request<Body> {
    let mut request = request(method, path, token, Body::from(serde_json::to_vec(body).unwrap()));
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    request
}

pub(super) fn offer() -> Offer {
    Offer {
        facts: [("os", "linux"), ("arch", "amd64")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        capacity: Capacity {
            slots: 4,
            cpu_millis: 64_000,
            memory: ByteSize::from_gib(64),
            disk: ByteSize::from_gib(640),
        },
        version: "0.1.0".into(),
        images: vec!["debian:12".into()],
        ..Offer::default()
    }
}

/// A repository on this host.
pub(crate) struct Repository {
    pub(crate) path: PathBuf,
}

pub(super) const PIPELINE: &str = "\
name = \"demo\"

[jobs.build]
image = \"debian:12\"
run = \"make\"

[jobs.test]
image = \"debian:12\"
needs = [\"build\"]
run = \"make check\"
";

impl Repository {
    pub(crate) fn with(folder: &Path, files: &[(&str, &str)]) -> Self {
        let path = folder.join(format!("repository-{}", rand::random::<u32>()));
        std::fs::create_dir_all(&path).unwrap();
        let repository = Self { path: path.canonicalize().unwrap() };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository.commit(files);
        repository
    }

    pub(crate) fn commit(&self, files: &[(&str, &str)]) {
        for (name, content) in files {
            let path = self.path.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", "a change"]);
    }

    pub(crate) fn git(&self, args: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
            .arg("-C")
            .arg(&self.path)
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// A worker made of calls.
#[derive(Clone)]
pub(super) struct FakeWorker {
    pub(super) id: WorkerId,
    pub(super) credential: String,
    pub(super) router: Router,
    pub(super) session: u64,
    pub(super) nonce: u64,
    pub(super) sequence: u64,
}

impl FakeWorker {
    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(super) fn sync_request(&mut self, attempts: Vec<AttemptReport>) -> Request<Body> {
        self.sequence += 1;
        let (session, sequence) = (self.session, self.sequence);
        let hold_ms = Millis::from_secs(30);
        let session = SessionId { number: session, nonce: self.nonce };
        let body = SyncRequest { protocol: PROTOCOL, session, sequence, hold_ms, offer: offer(), attempts };
        json_request("POST", "/api/worker/v1/sync", &self.credential, &body)
    }

    pub(super) async fn sync(&mut self, attempts: Vec<AttemptReport>) -> SyncResponse {
        let request = self.sync_request(attempts);
        self.send(request).await.ok()
    }

    /// Calls until it is told to begin something.
    pub(super) async fn order(&mut self) -> AttemptOrder {
        for _ in 0..6 {
            if let Some(order) = self.sync(Vec::new()).await.run.into_iter().next() {
                return order;
            }
        }
        panic!("no order came");
    }

    pub(super) fn write(&self, method: &str, order: &AttemptOrder, rest: &str, body: Body) -> Request<Body> {
        self.write_as(method, order.attempt, order.fence, rest, body)
    }

    pub(super) fn write_as(
        &self,
        method: &str,
        attempt: AttemptId,
        fence: Fence,
        rest: &str,
        body: Body,
    ) -> Request<Body> {
        let path = format!("/api/worker/v1/attempts/{attempt}/{rest}");
        let mut request = request(method, &path, &self.credential, body);
        request.headers_mut().insert(FENCE_HEADER, fence.0.to_string().parse().unwrap());
        request.headers_mut().insert("content-type", "application/json".parse().unwrap());
        request
    }

    pub(super) async fn log(&self, order: &AttemptOrder, offset: u64, bytes: &[u8]) -> Answer {
        let body = Body::from(bytes.to_vec());
        self.send(self.write("PATCH", order, &format!("log?offset={offset}"), body)).await
    }

    pub(super) async fn finish_log(&self, order: &AttemptOrder, whole: &[u8]) -> Answer {
        let said = LogFinish { length: whole.len() as u64, sha256: sha256_hex(whole) };
        let body = Body::from(serde_json::to_vec(&said).unwrap());
        self.send(self.write("POST", order, "log/finish", body)).await
    }

    /// Carries an order out: a log with one line, and the outcome.
    pub(super) async fn carry_out(&mut self, order: &AttemptOrder, outcome: Outcome) {
        let log = records(&["hello"]);
        self.log(order, 0, &log).await.done();
        self.finish_log(order, &log).await.done();
        self.end(order, outcome).await;
    }

    /// Reports the end, and calls until it may forget the attempt.
    pub(super) async fn end(&mut self, order: &AttemptOrder, outcome: Outcome) {
        for _ in 0..6 {
            let answer = self.sync(vec![ended(order, outcome.clone(), true)]).await;
            if answer.forget.contains(&order.attempt) {
                return;
            }
        }
        panic!("the end of {} is not on record", order.attempt);
    }
}

pub(super) fn ended(order: &AttemptOrder, outcome: Outcome, removed: bool) -> AttemptReport {
    let exit_code = match &outcome {
        Outcome::Failed { exit_code, .. } => Some(*exit_code),
        _ => Some(0),
    };
    let steps = order
        .spec
        .steps
        .iter()
        .map(|step| StepReport { name: step.name.clone(), exit_code, duration_ms: Millis(5) })
        .collect();
    let report = EndReport {
        outcome,
        steps,
        usage: Usage::default(),
        notes: Vec::new(),
        image_digest: Some(format!("sha256:{}", "a".repeat(64))),
    };
    let state = AttemptProgress::Ended { report: Box::new(report), removed };
    AttemptReport { attempt: order.attempt, fence: order.fence, state }
}

pub(super) fn running(order: &AttemptOrder) -> AttemptReport {
    let state = AttemptProgress::Running { for_ms: Millis(1) };
    AttemptReport { attempt: order.attempt, fence: order.fence, state }
}

/// A log with a step around some lines.
pub(super) fn records(lines: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |kind, payload: &[u8]| {
        Record { kind, step: 0, at: Timestamp(1_000), payload }.write_to(&mut out);
    };
    put(RecordKind::StepStart, b"run");
    for line in lines {
        put(RecordKind::Stdout, format!("{line}\n").as_bytes());
    }
    put(RecordKind::StepEnd, b"0");
    out
}
