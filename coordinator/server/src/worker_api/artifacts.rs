//! Contents of artifacts by their hash, and the lists of files that name them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::put;
use buildyard_scheduler::lifecycle::attempt::AttemptState;
use buildyard_store::{Artifact, Fenced, StoreError};
use buildyard_types::AttemptId;
use buildyard_types::worker::ArtifactManifest;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::time::Instant;

use super::{check, fenced};
use crate::api::AppState;
use crate::app::{App, FromWorker, Promise, disk_low};
use crate::blobs::{BlobError, is_sha256};
use crate::error::{ApiError, ApiResult, Code};
use crate::extract::{self, PathText};
use crate::logs::storage_failed;
use crate::routes::Route;

/// A content may be large, so its time follows from its length: after a start, so many bytes in each second.
const SILENCE: Duration = Duration::from_secs(30);
const START: Duration = Duration::from_secs(60);
const LEAST_RATE: u64 = 256 << 10;
/// After so many bytes the disk is looked at again.
const LOOK_BYTES: u64 = 8 << 20;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::put("/api/worker/v1/attempts/{id}/blobs/{sha256}", "The content of one file.", put(blob))
            .for_workers()
            .gives(204, ""),
        Route::put(
            "/api/worker/v1/attempts/{id}/artifacts/{name}",
            "The files of an artifact.",
            put(artifact),
        )
        .for_workers()
        .takes("ArtifactManifest")
        .gives(204, ""),
    ]
}

/// Whether the attempt is the caller's to write about.
async fn held(app: &App, by: Fenced) -> ApiResult<()> {
    let known = app.store.attempt(by.attempt).await?;
    let good = known.is_some_and(|(attempt, _)| {
        let live = match attempt.state {
            AttemptState::Live => true,
            AttemptState::Ended { .. } | AttemptState::Removed { .. } => false,
        };
        live && attempt.worker == by.worker && attempt.fence == by.fence
    });
    if good { Ok(()) } else { Err(StoreError::Stale { attempt: by.attempt }.into()) }
}

async fn blob(
    State(app): AppState,
    FromWorker(worker): FromWorker,
    path: PathText,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<StatusCode> {
    let sha256 = path.text("sha256");
    if !is_sha256(sha256) {
        return Err(ApiError::new(Code::BadArtifact, "the name is not 64 lower-case hexadecimal digits"));
    }
    held(&app, fenced(worker, path.id::<AttemptId>("id")?, &headers)?).await?;
    if app.blobs.content_length(sha256).await.map_err(|error| storage_failed(&error))?.is_some() {
        // Named by its hash, so it is the same. It is touched, so that the sweeper takes it for new.
        app.blobs.touch_content(sha256).await.map_err(|error| storage_failed(&error))?;
        return Ok(StatusCode::NO_CONTENT);
    }
    let limit = app.config.limits.artifact_file.0;
    let declared = body.size_hint().exact().unwrap_or(limit);
    if declared > limit {
        return Err(too_large(&BlobError::TooLarge { limit }));
    }
    let _turn = app.uploads.take(worker).await?;
    let promise = app.promise(declared)?;
    let stored = app.blobs.put_content(sha256, limit, Box::pin(bounded(app.clone(), body, promise))).await;
    match stored {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(error @ BlobError::Mismatch { .. }) => Err(ApiError::new(Code::BadArtifact, error.to_string())),
        Err(error @ BlobError::TooLarge { .. }) => Err(too_large(&error)),
        Err(error @ BlobError::Cut(_)) => match app.disk_low() {
            Some(why) => Err(disk_low(why)),
            None => Err(ApiError::new(Code::RequestTimeout, error.to_string())),
        },
        Err(error @ (BlobError::Store { .. } | BlobError::Folder { .. })) => Err(storage_failed(&error)),
    }
}

fn too_large(error: &BlobError) -> ApiError {
    ApiError::new(Code::BodyTooLarge, error.to_string())
        .hint("the limit is limits.artifact_file of the coordinator")
}

/// A body that is being received.
struct Receiving {
    app: Arc<App>,
    body: BodyDataStream,
    pace: Pace,
    promise: Promise,
}

/// How fast a body comes. Pure.
struct Pace {
    began: Instant,
    received: u64,
}

impl Pace {
    /// When the next bytes have to be here: one byte before each silence ends would hold a turn for ever.
    fn due(&self, now: Instant) -> Instant {
        let earned = Duration::from_secs(self.received / LEAST_RATE);
        (now + SILENCE).min(self.began + START + earned)
    }

    /// Takes note of bytes; whether the disk has to be looked at again.
    fn take(&mut self, bytes: u64) -> bool {
        let before = self.received / LOOK_BYTES;
        self.received += bytes;
        self.received / LOOK_BYTES > before
    }
}

/// A body as a stream that breaks off when it comes too slowly, or when something else fills the disk meanwhile.
fn bounded(app: Arc<App>, body: Body, promise: Promise) -> impl Stream<Item = Result<Bytes, String>> + Send {
    let pace = Pace { began: Instant::now(), received: 0 };
    let receiving = Receiving { app, body: body.into_data_stream(), pace, promise };
    stream::unfold(Some(receiving), |receiving| async {
        let mut receiving = receiving?;
        let due = receiving.pace.due(Instant::now());
        match tokio::time::timeout_at(due, receiving.body.next()).await {
            Err(_) => Some((Err("it came too slowly".to_owned()), None)),
            Ok(None) => None,
            Ok(Some(Err(error))) => Some((Err(error.to_string()), None)),
            Ok(Some(Ok(bytes))) => {
                let look = receiving.pace.take(bytes.len() as u64);
                receiving.promise.keep(bytes.len() as u64);
                let low = if look { receiving.app.disk_low() } else { None };
                match low {
                    Some(why) => Some((Err(why), None)),
                    None => Some((Ok(bytes), Some(receiving))),
                }
            }
        }
    })
}

async fn artifact(
    State(app): AppState,
    FromWorker(worker): FromWorker,
    path: PathText,
    headers: HeaderMap,
    extract::Json(manifest): extract::Json<ArtifactManifest>,
) -> ApiResult<StatusCode> {
    let by = fenced(worker, path.id("id")?, &headers)?;
    let name = path.text("name");
    check::artifact_name(name)?;
    check::manifest(&manifest)?;
    held(&app, by).await?;
    let mut missing = 0_usize;
    for file in &manifest.files {
        match app.blobs.content_length(&file.sha256).await.map_err(|error| storage_failed(&error))? {
            Some(length) if length == file.size => {}
            Some(length) => {
                let detail = format!("`{}` has {length} bytes, not {}", file.path, file.size);
                return Err(ApiError::new(Code::BadArtifact, detail));
            }
            None => missing += 1,
        }
    }
    if missing > 0 {
        let detail = format!("{missing} contents of `{name}` are not here");
        return Err(ApiError::new(Code::BlobsMissing, detail).hint("send the contents first"));
    }
    let now = app.clock.now();
    let keep_ms = manifest.keep_ms.min(app.config.retention.artifacts_max_ms);
    let artifact = Artifact {
        attempt: by.attempt,
        name: name.to_owned(),
        files: manifest.files,
        created_at: now,
        expires_at: now + keep_ms,
    };
    app.store.put_artifact(by, &artifact).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_as_long_as_its_length_takes_at_the_least_rate() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut pace = Pace { began, received: 0 };
        assert_eq!(pace.due(after(0)), after(30), "silence ends it");
        assert!(!pace.take(1));
        assert_eq!(pace.due(after(45)), after(60), "and so does one byte now and then");
        pace.take(100 * LEAST_RATE);
        assert_eq!(pace.due(after(100)), after(130));
        assert_eq!(pace.due(after(150)), after(160));
    }

    #[test]
    fn the_disk_is_looked_at_after_so_many_bytes() {
        let mut pace = Pace { began: Instant::now(), received: 0 };
        let looks = (0..64).filter(|_| pace.take(1 << 20)).count();
        assert_eq!(looks, 8);
    }
}
