//! Contents of artifacts by their hash, and the lists of files that name them.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::put;
use buildyard_scheduler::lifecycle::attempt::AttemptState;
use buildyard_store::{Artifact, Fenced, StoreError};
use buildyard_types::AttemptId;
use buildyard_types::worker::ArtifactManifest;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

use super::{check, fenced};
use crate::api::AppState;
use crate::app::{App, FromWorker};
use crate::blobs::{BlobError, is_sha256};
use crate::error::{ApiError, ApiResult, Code};
use crate::extract::{self, PathText};
use crate::logs::storage_failed;
use crate::routes::Route;

/// A content may be large, so its time is not bounded; silence in it is.
const SILENCE: Duration = Duration::from_secs(30);

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
    if let Some(why) = app.disk_low() {
        return Err(ApiError::new(Code::DiskLow, why).retry_after(30));
    }
    let _turn =
        app.uploads.acquire().await.map_err(|_| ApiError::new(Code::ShuttingDown, "uploads are over"))?;
    let limit = app.config.limits.artifact_file.0;
    let stored = app.blobs.put_content(sha256, limit, Box::pin(not_silent(body))).await;
    match stored {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(error @ BlobError::Mismatch { .. }) => Err(ApiError::new(Code::BadArtifact, error.to_string())),
        Err(error @ BlobError::TooLarge { .. }) => Err(ApiError::new(Code::BodyTooLarge, error.to_string())
            .hint("the limit is limits.artifact_file of the coordinator")),
        Err(error @ BlobError::Cut(_)) => Err(ApiError::new(Code::RequestTimeout, error.to_string())),
        Err(error @ (BlobError::Store { .. } | BlobError::Folder { .. })) => Err(storage_failed(&error)),
    }
}

/// A body as a stream that breaks off when nothing comes for too long.
fn not_silent(body: Body) -> impl Stream<Item = Result<Bytes, String>> + Send {
    stream::unfold(Some(body.into_data_stream()), |body| async {
        let mut body = body?;
        match tokio::time::timeout(SILENCE, body.next()).await {
            Err(_) => Some((Err(format!("nothing came for {} s", SILENCE.as_secs())), None)),
            Ok(None) => None,
            Ok(Some(Ok(bytes))) => Some((Ok(bytes), Some(body))),
            Ok(Some(Err(error))) => Some((Err(error.to_string()), None)),
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
