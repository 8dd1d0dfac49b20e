//! Log bytes, and the end of a log.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{patch, post};
use buildyard_types::AttemptId;
use buildyard_types::worker::{LogFinish, LogLength};
use serde::Deserialize;

use super::fenced;
use crate::api::AppState;
use crate::app::{FromWorker, disk_low};
use crate::error::ApiResult;
use crate::extract::{self, Id, Query, whole_body};
use crate::logs::MAX_CHUNK_BYTES;
use crate::routes::Route;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::patch(
            "/api/worker/v1/attempts/{id}/log",
            "Log bytes from an offset on; the answer is the length that is kept.",
            patch(append),
        )
        .for_workers()
        .query(&["offset"])
        .gives(200, "LogLength"),
        Route::post(
            "/api/worker/v1/attempts/{id}/log/finish",
            "Size and hash of the whole log.",
            post(finish),
        )
        .for_workers()
        .takes("LogFinish")
        .gives(204, ""),
    ]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Offset {
    offset: u64,
}

async fn append(
    State(app): AppState,
    FromWorker(worker): FromWorker,
    Id(attempt): Id<AttemptId>,
    Query(Offset { offset }): Query<Offset>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Json<LogLength>> {
    let by = fenced(worker, attempt, &headers)?;
    let body = whole_body(body, MAX_CHUNK_BYTES).await?;
    if let Some(why) = app.disk_full().filter(|_| !body.is_empty()) {
        return Err(disk_low(why));
    }
    app.logs.append(by, offset, body).await.map(Json)
}

async fn finish(
    State(app): AppState,
    FromWorker(worker): FromWorker,
    Id(attempt): Id<AttemptId>,
    headers: HeaderMap,
    extract::Json(said): extract::Json<LogFinish>,
) -> ApiResult<StatusCode> {
    let by = fenced(worker, attempt, &headers)?;
    app.logs.finish(by, &said).await?;
    Ok(StatusCode::NO_CONTENT)
}
