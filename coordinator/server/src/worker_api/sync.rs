//! The held call: what a worker holds, and what it should do.

use axum::Json;
use axum::extract::State;
use axum::routing::post;
use buildyard_types::worker::{AttemptProgress, SyncRequest, SyncResponse};

use super::check;
use crate::api::AppState;
use crate::app::FromWorker;
use crate::error::ApiResult;
use crate::extract::Spoken;
use crate::routes::Route;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post(
            "/api/worker/v1/sync",
            "Say what is held; hear what to do. Held until there is news.",
            post(sync),
        )
        .for_workers()
        .takes("SyncRequest")
        .gives(200, "SyncResponse"),
    ]
}

async fn sync(
    State(app): AppState,
    FromWorker(worker): FromWorker,
    Spoken(mut request): Spoken<SyncRequest>,
) -> ApiResult<Json<SyncResponse>> {
    check::sync(&mut request)?;
    let ended: Vec<_> = request
        .attempts
        .iter()
        .filter(|report| matches!(report.state, AttemptProgress::Ended { .. }))
        .map(|report| report.attempt)
        .collect();
    let answer = app.driver.sync(worker, request).await;
    // Followers of these logs may wait for an end that was never put on their log.
    for attempt in ended {
        app.signals().wake(attempt);
        app.logs.hashes.forget(attempt);
    }
    Ok(Json(answer?))
}
