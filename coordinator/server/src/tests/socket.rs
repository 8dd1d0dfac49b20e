//! With a socket: the files beside it, git's own client, slow clients, and an end that nothing holds up.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use buildyard_types::worker::{AttemptOrder, SyncResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::support::{FakeWorker, Farm, PIPELINE, Repository, config};
use crate::start::serve;

/// A farm whose router also listens.
async fn listening() -> (Farm, String) {
    let farm = Farm::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let closing = farm.coordinator.app.closing.clone();
    tokio::spawn(crate::listen::serve(listener, farm.router.clone(), 64, closing));
    (farm, url)
}

async fn begun(farm: &Farm, repository: &Repository) -> (FakeWorker, AttemptOrder) {
    let mut worker = farm.worker().await;
    farm.trigger(repository, None).await.done();
    let order = worker.order().await;
    (worker, order)
}

fn fetch(url: &str, credential: &str, target: &Path, commit: &str, version: &str) -> Result<(), String> {
    let git = |args: &[&str]| {
        let output = Command::new("git")
            .args(["-c", &format!("http.extraHeader=Authorization: Bearer {credential}")])
            .args(["-c", &format!("protocol.version={version}")])
            .arg("-C")
            .arg(target)
            .args(args)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    };
    git(&["init", "--quiet"])?;
    git(&["fetch", "--quiet", "--depth=1", "--no-tags", "--", url, commit])?;
    git(&["checkout", "--quiet", "FETCH_HEAD"])
}

#[tokio::test(flavor = "multi_thread")]
async fn gits_own_client_fetches_the_runs_commit() {
    let (farm, url) = listening().await;
    let repository =
        Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE), ("src/a.c", "int a;")]);
    let (worker, order) = begun(&farm, &repository).await;
    let source = format!("{url}/api/worker/v1/source/{}", order.attempt.run());
    for version in ["0", "2"] {
        let target = tempfile::tempdir().unwrap();
        let (source, credential) = (source.clone(), worker.credential.clone());
        let (commit, path) = (order.source.commit.clone(), target.path().to_owned());
        let fetched =
            tokio::task::spawn_blocking(move || fetch(&source, &credential, &path, &commit, version));
        fetched.await.unwrap().unwrap_or_else(|error| panic!("protocol {version}: {error}"));
        let got = std::fs::read_to_string(target.path().join("src/a.c")).unwrap();
        assert_eq!(got, "int a;");
    }
    let target = tempfile::tempdir().unwrap();
    let (credential, commit, path) =
        (farm.admin.clone(), order.source.commit.clone(), target.path().to_owned());
    let refused = tokio::task::spawn_blocking(move || fetch(&source, &credential, &path, &commit, "2"));
    let error = refused.await.unwrap().unwrap_err();
    assert!(error.contains("403"), "{error}");
}

async fn raw(address: &str, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address.trim_start_matches("http://")).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_leaves_its_address_and_ends_with_open_streams() {
    let temp = Arc::new(tempfile::tempdir().unwrap());
    let data = temp.path().join("data");
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async { stopped.await.unwrap_or(()) };
    let running = tokio::spawn(serve(config(&data), shutdown));
    let url = loop {
        if let Ok(text) = std::fs::read_to_string(data.join("endpoint")) {
            break text.trim().to_owned();
        }
        tokio::task::yield_now().await;
    };
    let token = std::fs::read_to_string(data.join("admin.token")).unwrap();
    let head = format!("host: x\r\nauthorization: Bearer {}\r\n", token.trim());
    // A stream that is never read to its end, a head that never ends, and a body that never comes.
    let accept = "accept: text/event-stream\r\n";
    let mut stream = raw(&url, &format!("GET /api/v1/events HTTP/1.1\r\n{head}{accept}\r\n")).await;
    let mut begin = [0; 15];
    stream.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200 OK");
    let _half_head = raw(&url, "GET /api/v1/status HTTP/1.1\r\nhos").await;
    let json = "content-type: application/json\r\ncontent-length: 100\r\n";
    let _half_body = raw(&url, &format!("POST /api/v1/runs HTTP/1.1\r\n{head}{json}\r\n{{")).await;
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
    assert!(!data.join("endpoint").exists(), "who looks now is told that there is none");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    // The folder is free again at once.
    Farm::open(temp).await.get("/readyz").await.done();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_beyond_loopback_is_refused() {
    let file = crate::ConfigFile::parse("listen = '192.0.2.1:7317'").unwrap();
    let error = file.validate().unwrap_err().to_string();
    assert!(error.contains("listeners beyond loopback need TLS"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_carries_a_held_call() {
    let (farm, url) = listening().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let mut worker = farm.worker().await;
    let (_, body) = worker.sync_request(Vec::new()).into_parts();
    let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    let head = format!(
        "POST /api/worker/v1/sync HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        worker.credential,
        body.len()
    );
    let mut stream = raw(&url, &head).await;
    stream.write_all(&body).await.unwrap();
    farm.trigger(&repository, None).await.done();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let told: SyncResponse = serde_json::from_str(body).unwrap();
    assert_eq!(told.run.len(), 1);
}
