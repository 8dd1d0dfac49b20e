//! A worker against a coordinator that answers as it is told, over real connections.

use std::path::Path;
use std::sync::{Arc, Mutex};

use buildyard_types::api::Problem;
use buildyard_types::worker::{EnrolResponse, SyncResponse};
use buildyard_types::{ByteSize, Millis, WorkerId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::*;
use crate::data::{DataDir, Identity};
use crate::engine::scripted::{Program, ScriptedEngine};

/// What the coordinator does about a call.
enum Answer {
    /// It answers with this.
    Says(u16, Vec<u8>),
    /// It holds the call for ever.
    Holds,
}

type Make = fn() -> Answer;

fn says(status: u16, body: &impl serde::Serialize) -> Answer {
    Answer::Says(status, serde_json::to_vec(body).unwrap())
}

fn problem(status: u16, code: &str) -> Answer {
    let (title, detail) = (code.to_owned(), format!("told to say {code}"));
    says(status, &Problem { code: code.to_owned(), title, status, detail, hint: None, request_id: None })
}

fn welcome() -> Answer {
    says(200, &EnrolResponse { worker: WorkerId(7), credential: "secret".into() })
}

fn nothing_to_do() -> Answer {
    let lease_ms = Millis(15_000);
    says(200, &SyncResponse { lease_ms, run: Vec::new(), stop: Vec::new(), forget: Vec::new() })
}

/// A call as it arrived.
struct Call {
    path: String,
    body: serde_json::Value,
}

struct Coordinator {
    url: String,
    calls: Arc<Mutex<Vec<Call>>>,
    arrived: Arc<Notify>,
}

impl Coordinator {
    /// It is asked with the last part of a call's path, and how many calls of that kind there were before.
    async fn start(answer: impl Fn(&str, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (calls, arrived) = (Arc::<Mutex<Vec<Call>>>::default(), Arc::new(Notify::new()));
        let (kept, bell) = (calls.clone(), arrived.clone());
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, bell, answer) = (kept.clone(), bell.clone(), answer.clone());
                tokio::spawn(async move {
                    let (mut stream, call) = read(stream).await;
                    let name = call.path.rsplit('/').next().unwrap().to_owned();
                    let before = {
                        let mut kept = kept.lock().unwrap();
                        let before = kept.iter().filter(|other| other.path == call.path).count();
                        kept.push(call);
                        before
                    };
                    bell.notify_one();
                    match answer(&name, before) {
                        Answer::Says(status, body) => {
                            let head = format!(
                                "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                                body.len()
                            );
                            stream.write_all(head.as_bytes()).await.unwrap();
                            stream.write_all(&body).await.unwrap();
                        }
                        Answer::Holds => std::future::pending().await,
                    }
                });
            }
        });
        Self { url, calls, arrived }
    }

    fn calls(&self, name: &str) -> Vec<serde_json::Value> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| call.path.ends_with(name)).map(|call| call.body.clone()).collect()
    }

    async fn when_called(&self, name: &str, times: usize) {
        while self.calls(name).len() < times {
            self.arrived.notified().await;
        }
    }
}

async fn read(mut stream: TcpStream) -> (TcpStream, Call) {
    let mut bytes = Vec::new();
    loop {
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = head {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length =
                |line: &str| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok();
            let length: usize = head.lines().find_map(length).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                let path = head.split_whitespace().nth(1).unwrap().to_owned();
                let body = serde_json::from_slice(&bytes[end + 4..]).unwrap();
                return (stream, Call { path, body });
            }
        }
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "a call ends in its midst");
    }
}

fn config(coordinator: &Coordinator, data: &Path) -> WorkerConfig {
    let token = data.join("token");
    std::fs::write(&token, "one-time\n").unwrap();
    WorkerConfig {
        data_dir: data.join("worker"),
        coordinator: coordinator.url.clone(),
        token_file: Some(token),
        name: "w".into(),
        engine_socket: None,
        capacity: Default::default(),
        policy: Default::default(),
        artifacts: Default::default(),
        mirrors: ByteSize::from_gib(1),
        on_exit: OnExit::Leave,
    }
}

async fn begin(config: &WorkerConfig) -> Result<start::Started, WorkerError> {
    let engine = Arc::new(ScriptedEngine::new(|_| Program::Runs));
    start::start_with(config, DataDir::open(&config.data_dir)?, engine).await
}

async fn run(
    coordinator: &Coordinator,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), WorkerError> {
    let data = tempfile::tempdir().unwrap();
    let config = config(coordinator, data.path());
    let started = begin(&config).await?;
    let ended = carry_on(config.on_exit, started, std::pin::pin!(shutdown)).await;
    // Its folder is free for the next start.
    assert_eq!(DataDir::open(&config.data_dir)?.next_session()?, 2);
    ended
}

/// Answers to `sync` in this order, and from then on the last one.
async fn syncing(answers: &'static [Make]) -> Coordinator {
    let answer = |name: &str, before: usize| match name {
        "enrol" => welcome(),
        _ => answers[before.min(answers.len() - 1)](),
    };
    Coordinator::start(answer).await
}

#[tokio::test]
async fn a_token_that_is_refused_is_shown_once_and_no_identity_is_kept() {
    let coordinator = Coordinator::start(|name, before| match (name, before) {
        ("enrol", 0 | 1) => problem(403, "forbidden"),
        ("enrol", _) => welcome(),
        _ => Answer::Holds,
    });
    let coordinator = coordinator.await;
    let data = tempfile::tempdir().unwrap();
    let config = config(&coordinator, data.path());
    for times in 1..=2 {
        let error = begin(&config).await.err().expect("refused");
        assert!(matches!(error, WorkerError::Enrol(ClientError::Unauthorized { .. })), "{error}");
        assert_eq!(coordinator.calls("enrol").len(), times, "it is not tried again by itself");
        assert_eq!(DataDir::open(&config.data_dir).unwrap().identity().unwrap(), None);
    }
    drop(begin(&config).await.unwrap());
    let identity = Identity { worker: WorkerId(7), credential: "secret".into() };
    assert_eq!(DataDir::open(&config.data_dir).unwrap().identity().unwrap(), Some(identity));
    drop(begin(&config).await.unwrap());
    let calls = coordinator.calls("enrol");
    assert_eq!(calls.len(), 3, "who has an identity needs no token");
    assert_eq!(calls[0]["token"], "one-time");
}

#[tokio::test]
async fn a_worker_that_is_turned_away_says_what_to_do() {
    const ROWS: [(&[Make], &str); 3] = [
        (&[|| problem(401, "unauthorized")], "remove its identity.json"),
        (&[nothing_to_do, || problem(409, "session-taken-over")], "a data directory of its own"),
        (&[|| problem(400, "protocol-unsupported")], "does not accept this worker's calls"),
    ];
    for (answers, says) in ROWS {
        let coordinator = syncing(answers).await;
        let error = run(&coordinator, std::future::pending()).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(coordinator.calls("sync").len(), answers.len(), "{error}");
    }
}

#[tokio::test]
async fn a_coordinator_that_cannot_answer_is_asked_again_until_the_worker_is_told_to_end() {
    const ANSWERS: [Make; 5] = [
        || problem(503, "unavailable"),
        || Answer::Says(502, b"<html>".to_vec()),
        // A proxy that is just being set up, and knows nothing of credentials.
        || Answer::Says(403, b"<html>".to_vec()),
        nothing_to_do,
        || Answer::Holds,
    ];
    let coordinator = syncing(&ANSWERS).await;
    run(&coordinator, coordinator.when_called("sync", 5)).await.unwrap();
    let calls = coordinator.calls("sync");
    let sequences: Vec<_> = calls.iter().map(|call| call["sequence"].as_u64().unwrap()).collect();
    assert!(sequences.is_sorted_by(|before, after| before < after), "{sequences:?}");
    let session = &calls[0]["session"];
    assert!(session["number"] == 1 && calls.iter().all(|call| &call["session"] == session), "one session");
}
