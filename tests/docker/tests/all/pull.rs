//! Pulls from a registry on this machine that answers as it is told.

use std::sync::Arc;

use buildyard_test_docker::Ground;
use buildyard_worker::engine::EngineError;
use buildyard_worker::engine::contract::Host as _;
use sha2::Digest as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What the registry answers to a path: status, content type, body. `None` hangs up.
type Answer = Option<(u16, &'static str, Vec<u8>)>;

/// A registry for one test, on a port of its own.
struct Registry {
    port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Registry {
    async fn start(answers: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        // The engine takes plain HTTP from loopback addresses.
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("a socket").port();
        let answers = Arc::new(answers);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answers = Arc::clone(&answers);
                tokio::spawn(async move { serve(stream, &*answers).await });
            }
        });
        Self { port, task }
    }

    fn image(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers one request and hangs up, so that every request is a connection.
async fn serve(mut stream: TcpStream, answers: &(dyn Fn(&str) -> Answer + Send + Sync)) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) if request.len() < 16_384 => request.push(byte),
            Ok(_) | Err(_) => return,
        }
    }
    let text = String::from_utf8_lossy(&request);
    let mut words = text.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let Some((status, kind, body)) = answers(path) else { return };
    let head = format!(
        "HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\nConnection: close\r\n\r\n",
        body.len(),
        digest(&body)
    );
    let _ = stream.write_all(head.as_bytes()).await;
    if method != "HEAD" {
        let _ = stream.write_all(&body).await;
    }
    let _ = stream.shutdown().await;
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn error(status: u16, code: &str) -> Answer {
    let body = format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"said by the test\"}}]}}");
    Some((status, "application/json", body.into_bytes()))
}

#[tokio::test]
async fn what_is_final_is_told_from_what_may_pass() {
    let Some(ground) = Ground::find().await else { return };
    let registry = Registry::start(|path| match path {
        "/v2/" => Some((200, "application/json", b"{}".to_vec())),
        path if path.starts_with("/v2/unknown/") => error(404, "MANIFEST_UNKNOWN"),
        path if path.starts_with("/v2/nameless/") => error(404, "NAME_UNKNOWN"),
        path if path.starts_with("/v2/secret/") => error(401, "UNAUTHORIZED"),
        path if path.starts_with("/v2/denied/") => error(403, "DENIED"),
        path if path.starts_with("/v2/broken/") => error(500, "UNKNOWN"),
        path if path.starts_with("/v2/busy/") => error(503, "UNAVAILABLE"),
        path if path.starts_with("/v2/limited/") => error(429, "TOOMANYREQUESTS"),
        path if path.starts_with("/v2/nonsense/") => Some((200, "text/html", b"<html>".to_vec())),
        _ => None,
    })
    .await;
    for name in ["unknown/x:1", "nameless/x:1", "secret/x:1", "denied/x:1"] {
        let found = ground.engine().pull(&registry.image(name)).await;
        assert!(matches!(found, Err(EngineError::ImageUnknown { .. })), "{name}: {found:?}");
    }
    for name in ["broken/x:1", "busy/x:1", "limited/x:1", "cut/x:1"] {
        let found = ground.engine().pull(&registry.image(name)).await;
        assert!(matches!(found, Err(EngineError::PullFailed { .. })), "{name}: {found:?}");
    }
    ground.engine().pull(&registry.image("nonsense/x:1")).await.expect_err("that is no image");
    let port = registry.port;
    drop(registry);
    let found = ground.engine().pull(&format!("127.0.0.1:{port}/x:1")).await;
    assert!(matches!(found, Err(EngineError::PullFailed { .. })), "nobody there: {found:?}");
}

/// An image of one empty layer.
struct Tiny {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Tiny {
    fn new(arch: &str) -> Self {
        // Two empty blocks are a whole tar archive.
        let layer = vec![0; 1_024];
        let config = format!(
            "{{\"architecture\":\"{arch}\",\"os\":\"linux\",\"config\":{{\"User\":\"1234\",\"Env\":[\"PATH=/x\"]}},\
             \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{}\"]}}}}",
            digest(&layer)
        )
        .into_bytes();
        let manifest = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.docker.distribution.manifest.v2+json\",\
             \"config\":{{\"mediaType\":\"application/vnd.docker.container.image.v1+json\",\"size\":{},\"digest\":\"{}\"}},\
             \"layers\":[{{\"mediaType\":\"application/vnd.docker.image.rootfs.diff.tar.gzip\",\"size\":{},\"digest\":\"{}\"}}]}}",
            config.len(),
            digest(&config),
            layer.len(),
            digest(&layer)
        )
        .into_bytes();
        Self { layer, config, manifest }
    }

    fn answer(&self, path: &str) -> Answer {
        if path == "/v2/" {
            return Some((200, "application/json", b"{}".to_vec()));
        }
        if path.contains("/manifests/") {
            let kind = "application/vnd.docker.distribution.manifest.v2+json";
            return Some((200, kind, self.manifest.clone()));
        }
        let blob = [&self.layer, &self.config].into_iter().find(|blob| path.ends_with(&digest(blob)));
        blob.map(|blob| (200, "application/octet-stream", blob.clone()))
    }
}

#[tokio::test]
async fn a_pulled_image_is_known_by_its_configs_digest() {
    let Some(ground) = Ground::find().await else { return };
    let arch = ground.engine().info().await.expect("info").arch;
    let tiny = Arc::new(Tiny::new(&arch));
    let served = Arc::clone(&tiny);
    let registry = Registry::start(move |path| served.answer(path)).await;
    let name = registry.image("team/tiny");
    let missing = ground.engine().image(&name).await;
    assert!(matches!(missing, Err(EngineError::ImageMissing { .. })), "{missing:?}");
    ground.engine().pull(&name).await.expect("pull");
    let found = ground.engine().image(&name).await.expect("it is held now");
    let by_digest = format!("{name}@{}", digest(&tiny.manifest));
    let same = ground.engine().image(&by_digest).await.expect("by its manifest's digest too");
    let removed = std::process::Command::new("docker").args(["rmi", &format!("{name}:latest")]).status();
    assert!(removed.expect("docker").success());

    assert_eq!(found.engine_ref, same.engine_ref);
    if !ground.engine().info().await.expect("info").containerd_images {
        assert_eq!(found.config_digest, Some(digest(&tiny.config)));
    }
    assert!(found.manifest_digests.contains(&by_digest), "{found:?}");
    assert_eq!((found.user.as_str(), found.arch, found.diff_ids), ("1234", arch, vec![digest(&tiny.layer)]));
}
