//! Artifacts: list, one file, or all files of one as a tar archive.
//!
//! Contents are handed out as downloads that no browser interprets: another's build product is not our page.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use buildyard_scheduler::lifecycle::attempt::{Attempt, AttemptState};
use buildyard_store::Artifact;
use buildyard_types::api::ArtifactView;
use buildyard_types::{AttemptId, JobId, Outcome, RunId};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

use super::{AppState, tar, whole_run};
use crate::app::{Admin, App};
use crate::error::{ApiError, ApiResult, Code};
use crate::extract::{Id, PathText};
use crate::logs::storage_failed;
use crate::routes::Route;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/api/v1/runs/{id}/artifacts", "What the jobs of a run kept.", get(list))
            .gives(200, "ArtifactView[]"),
        Route::get("/api/v1/jobs/{id}/artifacts/{name}", "An artifact as a tar archive.", get(archive))
            .gives(200, "application/x-tar"),
        Route::get("/api/v1/jobs/{id}/artifacts/{name}/{*path}", "One file of an artifact.", get(file))
            .gives(200, "application/octet-stream"),
    ]
}

async fn list(State(app): AppState, _: Admin, Id(run): Id<RunId>) -> ApiResult<Json<Vec<ArtifactView>>> {
    let whole = whole_run(&app, run).await?;
    let view = |artifact: Artifact| {
        let job = artifact.attempt.job;
        ArtifactView {
            job,
            job_name: whole.job(job).map(|job| job.spec.name.clone()).unwrap_or_default(),
            attempt: artifact.attempt,
            name: artifact.name,
            size: artifact.files.iter().map(|file| file.size).sum(),
            files: artifact.files,
            expires_at: artifact.expires_at,
        }
    };
    Ok(Json(kept(&app, run).await?.into_iter().map(view).collect()))
}

/// What the passed attempts of a run made. An attempt may send its files and be lost before its report; then what
/// it made counts as little as it does.
async fn kept(app: &App, run: RunId) -> ApiResult<Vec<Artifact>> {
    // Artifacts first: an end that is committed in between is seen with what it made.
    let mut artifacts = app.store.artifacts(run).await?;
    if artifacts.is_empty() {
        return Ok(artifacts);
    }
    let attempts = app.store.attempts(run).await?.into_iter().map(|(attempt, _)| attempt);
    let passed: BTreeSet<AttemptId> = attempts.filter(passed).map(|attempt| attempt.id).collect();
    artifacts.retain(|artifact| passed.contains(&artifact.attempt));
    Ok(artifacts)
}

fn passed(attempt: &Attempt) -> bool {
    match &attempt.state {
        AttemptState::Live => false,
        AttemptState::Ended { report, .. } | AttemptState::Removed { report, .. } => {
            report.outcome == Outcome::Passed
        }
    }
}

/// The artifact of a job's newest attempt that made it.
async fn find(app: &App, job: JobId, name: &str) -> ApiResult<Artifact> {
    let all = kept(app, job.run).await?;
    let ours = all.into_iter().filter(|artifact| artifact.attempt.job == job && artifact.name == name);
    ours.max_by_key(|artifact| artifact.attempt).ok_or_else(|| {
        let name: String = name.chars().take(100).collect();
        ApiError::new(Code::ArtifactNotFound, format!("{job} has no artifact `{name}`"))
            .hint(format!("`buildyard artifacts list {}` shows what was kept", job.run))
    })
}

async fn file(State(app): AppState, _: Admin, path: PathText) -> ApiResult<Response> {
    let artifact = find(&app, path.id("id")?, path.text("name")).await?;
    let wanted = path.text("path");
    // Looked up among names that were checked when they came; nothing of it becomes a path on our disk.
    let found = artifact.files.iter().find(|file| file.path == wanted).ok_or_else(|| {
        let wanted: String = wanted.chars().take(200).collect();
        ApiError::new(Code::ArtifactNotFound, format!("`{}` has no file `{wanted}`", artifact.name))
    })?;
    let content = app.blobs.content(&found.sha256).await.map_err(|error| storage_failed(&error))?;
    let mut response = download(Body::from_stream(content), "application/octet-stream");
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(found.size));
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", found.sha256)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

async fn archive(State(app): AppState, _: Admin, path: PathText) -> ApiResult<Response> {
    let artifact = find(&app, path.id("id")?, path.text("name")).await?;
    Ok(download(Body::from_stream(archived(app, artifact)), "application/x-tar"))
}

fn download(body: Body, kind: &'static str) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // Without a name: the client knows what it asked for, and names come from jobs.
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    response
}

/// The archive, one file after the other, each read as it is sent.
fn archived(app: Arc<App>, artifact: Artifact) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let files = stream::iter(artifact.files).then(move |file| {
        let app = app.clone();
        async move {
            let head = Bytes::from(tar::header(&file.path, file.size, file.executable));
            let padding = Bytes::from(tar::padding(file.size));
            let once = |bytes| stream::once(async move { Ok(bytes) });
            match app.blobs.content(&file.sha256).await {
                Ok(content) => once(head).chain(content).chain(once(padding)).boxed(),
                Err(error) => stream::once(async move { Err(io::Error::other(error)) }).boxed(),
            }
        }
    });
    files.flatten().chain(stream::once(async { Ok(Bytes::from(tar::end())) }))
}
