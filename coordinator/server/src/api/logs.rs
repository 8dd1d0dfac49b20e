//! Logs of attempts: as text, as lines of JSON, as they are stored, or as a stream of events.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use buildyard_scheduler::lifecycle::attempt::AttemptState;
use buildyard_store::LogState;
use buildyard_types::log::RecordKind;
use buildyard_types::{AttemptId, JobId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{AppState, whole_with};
use crate::app::{Admin, App};
use crate::error::{ApiError, ApiResult, Code, chain};
use crate::extract::{Id, Query, accepts, header_text};
use crate::logs::{Block, LogReader, line};
use crate::routes::Route;
use crate::sse::{self, Piece, Teller, Woken};

pub(super) fn routes() -> Vec<Route> {
    const QUERY: &[&str] = &["format", "offset", "follow"];
    vec![
        Route::get("/api/v1/attempts/{id}/log", "The log of an attempt.", get(of_attempt))
            .query(QUERY)
            .gives(200, "text/plain, application/jsonl, application/octet-stream or text/event-stream"),
        Route::get("/api/v1/jobs/{id}/log", "The log of a job's newest attempt.", get(of_job))
            .query(QUERY)
            .gives(200, "text/plain, application/jsonl, application/octet-stream or text/event-stream"),
    ]
}

/// The form in which a log is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// What the job wrote, byte for byte.
    Text,
    /// One [`buildyard_types::api::LogLine`] on each line.
    Jsonl,
    /// The records as they are stored.
    Raw,
    /// Server-sent events, each with the offset behind its record as its id.
    Events,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogQuery {
    format: Option<String>,
    offset: Option<u64>,
    #[serde(default)]
    follow: bool,
}

impl LogQuery {
    fn format(&self, headers: &HeaderMap) -> ApiResult<Format> {
        match self.format.as_deref() {
            Some("text") => Ok(Format::Text),
            Some("json" | "jsonl") => Ok(Format::Jsonl),
            Some("raw") => Ok(Format::Raw),
            Some("sse") => Ok(Format::Events),
            Some(other) => {
                let detail = format!("`format={other}` is not known; text, json, raw and sse are");
                Err(ApiError::new(Code::BadRequest, detail))
            }
            None if accepts(headers, "text/event-stream") => Ok(Format::Events),
            None if accepts(headers, "application/json") || accepts(headers, "application/jsonl") => {
                Ok(Format::Jsonl)
            }
            None => Ok(Format::Text),
        }
    }

    /// Where to begin: a stream that is taken up again says it in its own header.
    fn from(&self, headers: &HeaderMap) -> ApiResult<u64> {
        match header_text(headers, "last-event-id") {
            None => Ok(self.offset.unwrap_or(0)),
            Some(text) => text
                .parse()
                .map_err(|_| ApiError::new(Code::BadRequest, "Last-Event-ID is not an offset of this log")),
        }
    }
}

async fn of_attempt(
    State(app): AppState,
    _: Admin,
    Id(attempt): Id<AttemptId>,
    Query(query): Query<LogQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let Some((_, log)) = app.store.attempt(attempt).await? else {
        return Err(ApiError::new(Code::AttemptNotFound, format!("there is no {attempt}")));
    };
    answer(app, attempt, &log, &query, &headers)
}

async fn of_job(
    State(app): AppState,
    _: Admin,
    Id(job): Id<JobId>,
    Query(query): Query<LogQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let whole = whole_with(&app, job).await?;
    let newest = whole.attempts_at(job).max_by_key(|(attempt, _)| attempt.id);
    let Some((attempt, log)) = newest else {
        return Err(ApiError::new(Code::LogNotFound, format!("{job} has no attempt yet, so it has no log"))
            .hint(format!("`buildyard explain {job}` says what it waits for")));
    };
    answer(app, attempt.id, log, &query, &headers)
}

fn answer(
    app: Arc<App>,
    attempt: AttemptId,
    log: &LogState,
    query: &LogQuery,
    headers: &HeaderMap,
) -> ApiResult<Response> {
    let format = query.format(headers)?;
    if log.dropped {
        let detail = format!("the log of {attempt} was dropped after retention.logs");
        return Err(ApiError::new(Code::LogNotFound, detail));
    }
    let streaming = query.follow || format == Format::Events;
    let permit = if streaming { Some(app.stream_permit()?) } else { None };
    let tail = Tail {
        reader: app.log_reader(attempt, query.from(headers)?),
        attempt,
        format,
        follow: query.follow,
        closing: app.closing.clone(),
        app,
        _permit: permit,
    };
    let body = sse::told(tail);
    if format == Format::Events {
        return Ok(sse::response(body));
    }
    let kind = match format {
        Format::Text => "text/plain; charset=utf-8",
        Format::Jsonl => "application/jsonl",
        Format::Raw | Format::Events => "application/octet-stream",
    };
    let mut response = Body::from_stream(body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// A log that is being read out.
struct Tail {
    app: Arc<App>,
    attempt: AttemptId,
    reader: LogReader,
    format: Format,
    follow: bool,
    closing: watch::Receiver<bool>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The last event of a log's stream.
#[derive(Serialize)]
struct End {
    length: u64,
    finished: bool,
}

impl Teller for Tail {
    async fn piece(&mut self) -> ApiResult<Piece> {
        loop {
            if self.follow && *self.closing.borrow() {
                return Ok(Piece::Last(Bytes::new()));
            }
            // Listen before looking: what comes between the two wakes the wait below.
            let mut signal = self.app.signals().listen(self.attempt);
            if let Some(block) = self.reader.next().await? {
                let bytes = self.render(&block);
                if bytes.is_empty() {
                    continue;
                }
                return Ok(Piece::More(bytes));
            }
            let (over, finished) = self.state().await?;
            if over || !self.follow {
                // What was added between the look and the question is still to be read.
                if let Some(block) = self.reader.next().await? {
                    return Ok(Piece::More(self.render(&block)));
                }
                return Ok(Piece::Last(self.end(finished)));
            }
            match sse::wait(signal.changed(), &mut self.closing).await {
                Woken::News => {}
                // Silence is also the moment to look whether the attempt ended without a word to its log.
                Woken::Silence if self.format == Format::Events => {
                    return Ok(Piece::More(Bytes::from_static(sse::STILL_HERE)));
                }
                Woken::Silence => {}
                Woken::Closing => return Ok(Piece::Last(Bytes::new())),
            }
        }
    }
}

impl Tail {
    /// Whether nothing more will come, and whether the log is complete.
    async fn state(&self) -> ApiResult<(bool, bool)> {
        let known = self.app.store.attempt(self.attempt).await.map_err(|error| {
            tracing::warn!(error = chain(&error), "the store does not answer a log's reader");
            ApiError::from(error)
        })?;
        // The run may have been swept meanwhile.
        let Some((attempt, log)) = known else { return Ok((true, false)) };
        let ended = match attempt.state {
            AttemptState::Live => false,
            AttemptState::Ended { .. } | AttemptState::Removed { .. } => true,
        };
        Ok((ended || log.sha256.is_some(), log.sha256.is_some()))
    }

    fn render(&self, block: &Block) -> Bytes {
        let mut out = Vec::with_capacity(block.bytes.len() + block.bytes.len() / 4);
        match self.format {
            Format::Raw => return block.bytes.clone(),
            Format::Text => {
                for (record, _) in block.records() {
                    match record.kind {
                        RecordKind::Stdout | RecordKind::Stderr => out.extend_from_slice(record.payload),
                        RecordKind::StepStart | RecordKind::StepEnd | RecordKind::Note => {}
                    }
                }
            }
            Format::Jsonl => {
                for (record, _) in block.records() {
                    let line = serde_json::to_vec(&line(&record));
                    out.extend(line.expect("a log line holds text and numbers only"));
                    out.push(b'\n');
                }
            }
            Format::Events => {
                block
                    .records()
                    .for_each(|(record, behind)| sse::push(&mut out, behind, None, &line(&record)));
            }
        }
        out.into()
    }

    fn end(&self, finished: bool) -> Bytes {
        let mut out = Vec::new();
        if self.format == Format::Events {
            let length = self.reader.at();
            sse::push(&mut out, length, Some("end"), &End { length, finished });
        }
        out.into()
    }
}
