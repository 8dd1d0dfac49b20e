//! The run's commit, as git's smart HTTP protocol. Only fetching, and only for a worker that has a live
//! attempt of the run; so the forge's credentials stay with the coordinator.

use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use buildyard_scheduler::lifecycle::attempt::AttemptState;
use buildyard_types::{RunId, WorkerId};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdout, Command};
use tokio::sync::mpsc;

use crate::api::AppState;
use crate::app::{App, FromWorker};
use crate::error::{ApiError, ApiResult, Code};
use crate::extract::{PathText, Query, header_text, whole_body};
use crate::routes::Route;
use crate::source::git::GroupGuard;
use crate::turns::Turn;

/// What a worker asks for: ids of commits. Compressed and not.
const MAX_REQUEST_BYTES: usize = 4 << 20;
const MAX_UNPACKED_BYTES: u64 = 16 << 20;
/// A worker that reads so slowly does not hold a process for longer: for all of it, and for one piece.
const TRANSFER: Duration = Duration::from_secs(1_800);
const PIECE: Duration = Duration::from_secs(60);
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that wait for the worker.
const PIECES: usize = 2;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get(
            "/api/worker/v1/source/{id}/info/refs",
            "What can be fetched of a run's source.",
            get(refs),
        )
        .for_workers()
        .query(&["service"])
        .gives(200, "application/x-git-upload-pack-advertisement"),
        Route::post("/api/worker/v1/source/{id}/git-upload-pack", "Fetch a run's source.", post(upload_pack))
            .for_workers()
            .gives(200, "application/x-git-upload-pack-result"),
    ]
}

/// The mirror of a run that the worker may read.
async fn mirror_for(app: &App, worker: WorkerId, run: RunId) -> ApiResult<PathBuf> {
    let source = app
        .driver
        .look(move |core, _| {
            let state = core.state();
            let mut attempts =
                state.attempts.range(run.job(0).attempt(0)..run.job(u32::MAX).attempt(u32::MAX));
            let live = attempts.any(|(_, attempt)| {
                let live = match attempt.state {
                    AttemptState::Live => true,
                    AttemptState::Ended { .. } | AttemptState::Removed { .. } => false,
                };
                live && attempt.worker == worker
            });
            state.runs.get(&run).filter(|_| live).map(|run| run.source.repository.clone())
        })
        .await?;
    let repository = source.ok_or_else(|| {
        ApiError::new(Code::Forbidden, format!("the worker holds no live attempt of {run}"))
    })?;
    Ok(app.mirrors.path(&repository))
}

fn command(app: &App, run: RunId, headers: &HeaderMap, mirror: &PathBuf, advertise: bool) -> Command {
    let mut command = app.mirrors.git().command();
    // What is listed is this run's. It is no wall: who knows the id of another commit of the repository may fetch
    // it, as git's protocol 2 has it. A worker that builds a repository may read that repository.
    command.args(["-c", "uploadpack.hideRefs=refs/buildyard/"]);
    command.args(["-c", &format!("uploadpack.hideRefs=!refs/buildyard/runs/{}", run.0)]);
    command.args(["-c", "uploadpack.allowAnySHA1InWant=true"]);
    command.args(["upload-pack", "--strict", "--stateless-rpc"]);
    if advertise {
        command.arg("--advertise-refs");
    }
    command.arg(mirror);
    if let Some(version) = protocol(headers) {
        command.env("GIT_PROTOCOL", version);
    }
    command
}

/// The protocol version that the client asks for; anything else is not passed on.
fn protocol(headers: &HeaderMap) -> Option<&str> {
    header_text(headers, "git-protocol").filter(|text| matches!(*text, "version=1" | "version=2"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    service: Option<String>,
}

async fn refs(
    State(app): AppState,
    FromWorker(worker): FromWorker,
    path: PathText,
    Query(Service { service }): Query<Service>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let run: RunId = path.id("id")?;
    if service.as_deref() != Some("git-upload-pack") {
        return Err(ApiError::new(Code::Forbidden, "only git-upload-pack is served here"));
    }
    let mirror = mirror_for(&app, worker, run).await?;
    let preamble: &[u8] = match protocol(&headers) {
        Some("version=2") => b"",
        Some(_) | None => b"001e# service=git-upload-pack\n0000",
    };
    let command = command(&app, run, &headers, &mirror, true);
    let kind = "application/x-git-upload-pack-advertisement";
    let turn = app.transfers.take(worker).await?;
    transfer(turn, command, Bytes::new(), Bytes::from_static(preamble), kind)
}

async fn upload_pack(
    State(app): AppState,
    FromWorker(worker): FromWorker,
    path: PathText,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let run: RunId = path.id("id")?;
    let mirror = mirror_for(&app, worker, run).await?;
    let body = unpacked(whole_body(body, MAX_REQUEST_BYTES).await?, &headers)?;
    let turn = app.transfers.take(worker).await?;
    let command = command(&app, run, &headers, &mirror, false);
    transfer(turn, command, body, Bytes::new(), "application/x-git-upload-pack-result")
}

/// Git compresses requests of more than a kilobyte.
fn unpacked(body: Bytes, headers: &HeaderMap) -> ApiResult<Bytes> {
    match header_text(headers, "content-encoding") {
        None | Some("identity") => Ok(body),
        Some("gzip" | "x-gzip") => {
            let mut plain = Vec::new();
            let mut reader = flate2::read::GzDecoder::new(&body[..]).take(MAX_UNPACKED_BYTES + 1);
            reader
                .read_to_end(&mut plain)
                .map_err(|error| ApiError::new(Code::BadRequest, format!("the body is no gzip: {error}")))?;
            if plain.len() as u64 > MAX_UNPACKED_BYTES {
                let detail = format!("the body unpacks to more than {MAX_UNPACKED_BYTES} bytes");
                return Err(ApiError::new(Code::BodyTooLarge, detail));
            }
            Ok(plain.into())
        }
        Some(_) => Err(ApiError::new(Code::UnsupportedMedia, "only gzip is read as Content-Encoding")),
    }
}

/// A running `git upload-pack` whose output is the body of the answer.
struct Transfer {
    stdout: ChildStdout,
    child: tokio::process::Child,
    guard: GroupGuard,
    _turn: Turn,
}

fn transfer(
    turn: Turn,
    mut command: Command,
    input: Bytes,
    preamble: Bytes,
    kind: &'static str,
) -> ApiResult<Response> {
    let failed = |error: std::io::Error| ApiError::internal("cannot start git upload-pack", &error);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(failed)?;
    let guard = GroupGuard::of(&child);
    let stdin = child.stdin.take();
    tokio::spawn(async move {
        if let Some(mut stdin) = stdin {
            // Git may have ended already; its output tells.
            let _ = stdin.write_all(&input).await;
        }
    });
    let Some(stdout) = child.stdout.take() else {
        return Err(ApiError::new(Code::Internal, "git upload-pack has no output"));
    };
    let (pieces, body) = mpsc::channel(PIECES);
    // A task of its own, since a body that nobody reads is not asked for anything, not even for the time.
    tokio::spawn(carry(preamble, Transfer { stdout, child, guard, _turn: turn }, pieces));
    let mut response = Body::from_stream(output(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// Carries git's output to the worker, and an empty piece behind it if that was all. When this ends, git is gone
/// and the turn is free.
async fn carry(preamble: Bytes, mut transfer: Transfer, pieces: mpsc::Sender<Bytes>) {
    let until = tokio::time::Instant::now() + TRANSFER;
    let mut piece = preamble;
    loop {
        if !piece.is_empty() && pieces.send_timeout(piece, PIECE).await.is_err() {
            // Gone, or too slow.
            return;
        }
        let mut buffer = Vec::with_capacity(PIECE_BYTES);
        match tokio::time::timeout_at(until, transfer.stdout.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => break,
            Ok(Ok(_)) => piece = buffer.into(),
            Ok(Err(error)) => return tracing::warn!(error = %error, "git upload-pack cannot be read"),
            Err(_) => return tracing::warn!("a git transfer took too long"),
        }
    }
    let ended = transfer.child.wait().await;
    transfer.guard.release();
    match ended {
        Ok(status) if status.success() => drop(pieces.send_timeout(Bytes::new(), PIECE).await),
        Ok(status) => tracing::warn!(%status, "git upload-pack failed"),
        Err(error) => tracing::warn!(error = %error, "git upload-pack failed"),
    }
}

/// The body of an answer: the pieces, and an error if they do not end as they should.
fn output(pieces: mpsc::Receiver<Bytes>) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    stream::unfold(Some(pieces), |pieces| async {
        let mut pieces = pieces?;
        match pieces.recv().await {
            Some(piece) if piece.is_empty() => None,
            Some(piece) => Some((Ok(piece), Some(pieces))),
            None => Some((Err(std::io::Error::other("the transfer broke off")), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(content: &[u8]) -> Bytes {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap().into()
    }

    #[test]
    fn compressed_requests_are_unpacked_and_bombs_refused() {
        let mut headers = HeaderMap::new();
        assert_eq!(unpacked(Bytes::from_static(b"plain"), &headers).unwrap(), "plain");
        headers.insert("content-encoding", HeaderValue::from_static("gzip"));
        assert_eq!(unpacked(gzip(b"0032want"), &headers).unwrap(), "0032want");
        let bomb = gzip(&vec![0; 20 << 20]);
        assert!(bomb.len() < 100_000);
        assert_eq!(unpacked(bomb, &headers).unwrap_err().code, Code::BodyTooLarge);
        assert_eq!(unpacked(Bytes::from_static(b"nope"), &headers).unwrap_err().code, Code::BadRequest);
        headers.insert("content-encoding", HeaderValue::from_static("br"));
        assert_eq!(unpacked(Bytes::new(), &headers).unwrap_err().code, Code::UnsupportedMedia);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_does_not_read_gives_its_turn_back_and_no_whole_answer() {
        let turns = crate::turns::Turns::new("git transfers", 1, 1, std::time::Duration::from_secs(60));
        let turn = turns.take(WorkerId(1)).await.unwrap();
        let mut endless = Command::new("yes");
        endless.process_group(0).kill_on_drop(true);
        let response = transfer(turn, endless, Bytes::new(), Bytes::from_static(b"first"), "text/plain");
        let body = response.unwrap().into_body();
        // Nobody reads, and the one turn comes back.
        let _turn = loop {
            if let Ok(turn) = turns.take(WorkerId(2)).await {
                break turn;
            }
        };
        let all: Vec<_> = futures_util::StreamExt::collect(body.into_data_stream()).await;
        assert_eq!(all[0].as_ref().unwrap(), "first");
        assert!(all.last().unwrap().is_err(), "what is not all does not look like all");
    }
}
