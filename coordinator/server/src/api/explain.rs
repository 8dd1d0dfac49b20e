//! `explain`: any id, and why it is as it is.

use std::collections::VecDeque;

use axum::Json;
use axum::extract::State;
use axum::routing::get;
use buildyard_scheduler::lifecycle::attempt::AttemptState;
use buildyard_types::api::Explanation;
use buildyard_types::log::RecordKind;
use buildyard_types::{AttemptId, JobId, RunId, WorkerId};

use super::{AppState, live, whole_run, whole_with};
use crate::app::{Admin, App};
use crate::error::{ApiError, ApiResult, Code};
use crate::explain;
use crate::extract::PathText;
use crate::routes::Route;
use crate::views::worker_view;

/// Lines of a log that an explanation shows, and the most of each.
const TAIL_LINES: usize = 12;
const TAIL_LINE_CHARS: usize = 300;
/// Where the search for the last lines begins, counted from the end.
const TAIL_BYTES: u64 = 64 << 10;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/api/v1/explain/{id}", "Why something is as it is; any id.", get(answer))
            .gives(200, "Explanation"),
    ]
}

/// Any id that can be explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Run(RunId),
    Job(JobId),
    Attempt(AttemptId),
    Worker(WorkerId),
}

fn subject(text: &str) -> ApiResult<Subject> {
    let read = || match text.split_once('-') {
        Some(("job", _)) => text.parse().map(Subject::Job),
        Some(("att", _)) => text.parse().map(Subject::Attempt),
        Some(("wkr", _)) => text.parse().map(Subject::Worker),
        Some(_) | None => text.parse().map(Subject::Run),
    };
    read().map_err(|_| {
        let text: String = text.chars().take(64).collect();
        ApiError::new(Code::BadId, format!("`{text}` is not an id"))
            .hint("ids look like run-42, job-42-3, att-42-3-1 or wkr-0123456789abc")
    })
}

async fn answer(State(app): AppState, _: Admin, path: PathText) -> ApiResult<Json<Explanation>> {
    match subject(path.text("id"))? {
        Subject::Run(id) => {
            let whole = whole_run(&app, id).await?;
            let live = live(&app, &whole, whole.jobs.iter().map(|job| job.id).collect()).await;
            Ok(Json(explain::run(&whole, &live)))
        }
        Subject::Job(id) => {
            let whole = whole_with(&app, id).await?;
            let live = live(&app, &whole, whole.jobs.iter().map(|job| job.id).collect()).await;
            let newest = whole.attempts_at(id).max_by_key(|(attempt, _)| attempt.id);
            let tail = match newest {
                Some((attempt, log)) => tail(&app, attempt.id, log.length).await,
                None => Vec::new(),
            };
            let job = whole.job(id);
            let job = job.ok_or_else(|| ApiError::new(Code::JobNotFound, format!("there is no {id}")))?;
            Ok(Json(explain::job(&whole, job, &live, &tail)))
        }
        Subject::Attempt(id) => attempt(&app, id).await,
        Subject::Worker(id) => {
            let found = app.driver.look(move |core, now| {
                core.state().workers.get(&id).map(|worker| worker_view(core, worker, now))
            });
            let missing = || ApiError::new(Code::WorkerNotFound, format!("there is no {id}"));
            Ok(Json(explain::worker(&found.await?.ok_or_else(missing)?)))
        }
    }
}

async fn attempt(app: &App, id: AttemptId) -> ApiResult<Json<Explanation>> {
    let missing = || ApiError::new(Code::AttemptNotFound, format!("there is no {id}"));
    let whole = whole_with(app, id.job).await.map_err(|error| match error.code {
        Code::JobNotFound => missing(),
        _ => error,
    })?;
    let known = whole.attempts_at(id.job).find(|(attempt, _)| attempt.id == id).ok_or_else(missing)?;
    let tail = match known.0.state {
        AttemptState::Live => Vec::new(),
        AttemptState::Ended { .. } | AttemptState::Removed { .. } => tail(app, id, known.1.length).await,
    };
    let live = live(app, &whole, Vec::new()).await;
    Ok(Json(explain::attempt(&whole, id, known, &live, &tail)))
}

/// The last lines that the job printed. An explanation without them is still one.
async fn tail(app: &App, attempt: AttemptId, length: u64) -> Vec<String> {
    match read_tail(app, attempt, length).await {
        Ok(lines) => lines,
        Err(error) => {
            tracing::warn!(attempt_id = %attempt, error = error.detail, "the end of a log cannot be read");
            Vec::new()
        }
    }
}

async fn read_tail(app: &App, attempt: AttemptId, length: u64) -> ApiResult<Vec<String>> {
    // Records cannot be found from behind, but objects begin with one.
    let near = app.store.log_chunks(attempt, length.saturating_sub(TAIL_BYTES), 1).await?;
    let mut reader = app.log_reader(attempt, near.first().map_or(0, |chunk| chunk.offset));
    let mut lines = Tail::default();
    while let Some(block) = reader.next().await? {
        for (record, _) in block.records() {
            match record.kind {
                RecordKind::Stdout | RecordKind::Stderr => lines.push(record.payload),
                RecordKind::StepStart | RecordKind::StepEnd | RecordKind::Note => {}
            }
        }
    }
    Ok(lines.finish())
}

/// Keeps the last lines of what goes by.
#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
    open: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = (TAIL_LINE_CHARS * 4).saturating_sub(self.open.len());
            self.open.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.open)).into_owned();
        if line.trim().is_empty() {
            return;
        }
        // A line that is shown in a terminal or a page must not steer it.
        let plain = line.trim_end().chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c });
        self.lines.push_back(plain.take(TAIL_LINE_CHARS).collect());
        if self.lines.len() > TAIL_LINES {
            self.lines.pop_front();
        }
    }

    fn finish(mut self) -> Vec<String> {
        self.close();
        self.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_short_and_harmless() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.push(format!("line {number}\nha").as_bytes());
            tail.push(b"lf\n\n");
        }
        tail.push(&[b'x'; 100_000]);
        tail.push(b"\n\x1b[2Jred");
        let lines = tail.finish();
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines[TAIL_LINES - 1], "\u{fffd}[2Jred");
        assert_eq!(lines[TAIL_LINES - 2].len(), TAIL_LINE_CHARS);
        assert_eq!(lines[TAIL_LINES - 3], "half");
    }

    #[test]
    fn every_id_has_its_kind_and_the_rest_is_refused() {
        assert_eq!(subject("42").unwrap(), Subject::Run(RunId(42)));
        assert_eq!(subject("job-1-0").unwrap(), Subject::Job(RunId(1).job(0)));
        assert_eq!(subject("att-1-0-1").unwrap(), Subject::Attempt(RunId(1).job(0).attempt(1)));
        for text in ["", "wkr-1", "job-1", "run-x", "../etc"] {
            assert_eq!(subject(text).unwrap_err().code, Code::BadId, "{text}");
        }
    }
}
