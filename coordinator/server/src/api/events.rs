//! What happened, as a list or as a stream.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use buildyard_types::RunId;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{AppState, whole_run};
use crate::app::{Admin, App};
use crate::error::{ApiError, ApiResult, Code};
use crate::extract::{Id, Query, accepts, header_text};
use crate::routes::Route;
use crate::sse::{self, Piece, Teller, Woken};

/// Events in one piece of a stream, or in a list when nobody says how many.
const PAGE: u32 = 200;
const MAX_PAGE: u32 = 1_000;

pub(super) fn routes() -> Vec<Route> {
    const QUERY: &[&str] = &["after", "limit"];
    vec![
        Route::get("/api/v1/events", "What happened on the farm.", get(of_farm))
            .query(QUERY)
            .gives(200, "EventView[] or text/event-stream"),
        Route::get("/api/v1/runs/{id}/events", "What happened to a run.", get(of_run))
            .query(QUERY)
            .gives(200, "EventView[] or text/event-stream"),
    ]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventQuery {
    after: Option<u64>,
    limit: Option<u32>,
}

async fn of_farm(
    State(app): AppState,
    _: Admin,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    answer(app, None, &query, &headers).await
}

async fn of_run(
    State(app): AppState,
    _: Admin,
    Id(run): Id<RunId>,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    whole_run(&app, run).await?;
    answer(app, Some(run), &query, &headers).await
}

async fn answer(
    app: Arc<App>,
    run: Option<RunId>,
    query: &EventQuery,
    headers: &HeaderMap,
) -> ApiResult<Response> {
    let seen =
        match header_text(headers, "last-event-id") {
            None => query.after,
            Some(text) => Some(text.parse().map_err(|_| {
                ApiError::new(Code::BadRequest, "Last-Event-ID is not the number of an event")
            })?),
        };
    if !accepts(headers, "text/event-stream") {
        let limit = query.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
        let events = app.store.events(seen.unwrap_or(0), run, limit).await?;
        return Ok(Json(events).into_response());
    }
    let permit = app.stream_permit()?;
    let after = match (seen, run) {
        (Some(seen), _) => seen,
        // A run's story is short and told from its beginning; the farm's is not.
        (None, Some(_)) => 0,
        (None, None) => app.store.last_event().await?,
    };
    let (closing, news) = (app.closing.clone(), app.events.clone());
    let story = Story { app, run, after, closing, news, over: false, _permit: permit };
    Ok(sse::response(sse::told(story)))
}

/// Events that are being told.
struct Story {
    app: Arc<App>,
    run: Option<RunId>,
    after: u64,
    closing: watch::Receiver<bool>,
    news: watch::Receiver<u64>,
    /// The run was final before the last look.
    over: bool,
    _permit: OwnedSemaphorePermit,
}

#[derive(Serialize)]
struct End {
    run: RunId,
}

impl Teller for Story {
    async fn piece(&mut self) -> ApiResult<Piece> {
        loop {
            if *self.closing.borrow() {
                return Ok(Piece::Last(Bytes::new()));
            }
            // Marked as seen before looking: what comes between the two wakes the wait below.
            self.news.borrow_and_update();
            let events = self.app.store.events(self.after, self.run, PAGE).await?;
            if let Some(last) = events.last() {
                self.after = last.sequence;
                let mut out = Vec::new();
                events.iter().for_each(|event| sse::push(&mut out, event.sequence, None, event));
                return Ok(Piece::More(out.into()));
            }
            if let Some(run) = self.run {
                if self.over {
                    let mut out = Vec::new();
                    sse::push(&mut out, self.after, Some("end"), &End { run });
                    return Ok(Piece::Last(out.into()));
                }
                let known = self.app.store.run(run).await?;
                if known.is_none_or(|run| run.state.is_final()) {
                    // Once more: the last event may have come between the two questions.
                    self.over = true;
                    continue;
                }
            }
            let news = async {
                // The sender ends with the process, and then `closing` speaks.
                if self.news.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            match sse::wait(news, &mut self.closing).await {
                Woken::News => {}
                Woken::Silence => return Ok(Piece::More(Bytes::from_static(sse::STILL_HERE))),
                Woken::Closing => return Ok(Piece::Last(Bytes::new())),
            }
        }
    }
}
