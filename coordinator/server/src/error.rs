//! The one error of the HTTP side: a status, a stable code, what was attempted, and what to do next.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use buildyard_scheduler::input::Rejection;
use buildyard_store::StoreError;
use buildyard_types::api::Problem;
use buildyard_types::id::ParseIdError;

/// Every problem that the API knows. Codes are never used again for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    BadId,
    BadRequest,
    ProtocolUnsupported,
    Unauthorized,
    Forbidden,
    InviteUnknown,
    InviteUsed,
    InviteExpired,
    NotFound,
    RunNotFound,
    JobNotFound,
    AttemptNotFound,
    WorkerNotFound,
    ArtifactNotFound,
    LogNotFound,
    MethodNotAllowed,
    RequestTimeout,
    AlreadyFinished,
    WorkerBusy,
    StaleFence,
    SessionTakenOver,
    Conflict,
    BlobsMissing,
    BodyTooLarge,
    UnsupportedMedia,
    BadRepository,
    BadRevision,
    BadLog,
    BadArtifact,
    LogCap,
    TooManyRuns,
    Internal,
    Unavailable,
    TooManyStreams,
    TooManyTransfers,
    ShuttingDown,
    OutcomeUnknown,
    DiskLow,
}

impl Code {
    /// Status, code and title, in one row each.
    fn row(self) -> (u16, &'static str, &'static str) {
        match self {
            Code::BadId => (400, "bad-id", "This is not an id"),
            Code::BadRequest => (400, "bad-request", "The request cannot be read"),
            Code::ProtocolUnsupported => (400, "protocol-unsupported", "This protocol version is not spoken"),
            Code::Unauthorized => (401, "unauthorized", "No good token came with the request"),
            Code::Forbidden => (403, "forbidden", "The token does not allow this"),
            Code::InviteUnknown => (403, "invite-unknown", "There is no such invitation"),
            Code::InviteUsed => (403, "invite-used", "The invitation was used before"),
            Code::InviteExpired => (403, "invite-expired", "The invitation is too old"),
            Code::NotFound => (404, "not-found", "There is nothing here"),
            Code::RunNotFound => (404, "run-not-found", "There is no such run"),
            Code::JobNotFound => (404, "job-not-found", "There is no such job"),
            Code::AttemptNotFound => (404, "attempt-not-found", "There is no such attempt"),
            Code::WorkerNotFound => (404, "worker-not-found", "There is no such worker"),
            Code::ArtifactNotFound => (404, "artifact-not-found", "There is no such artifact"),
            Code::LogNotFound => (404, "log-not-found", "There is no log"),
            Code::MethodNotAllowed => (405, "method-not-allowed", "This method is not served here"),
            Code::RequestTimeout => (408, "request-timeout", "The request took too long to arrive"),
            Code::AlreadyFinished => (409, "already-finished", "It is finished already"),
            Code::WorkerBusy => (409, "worker-busy", "The worker still holds attempts"),
            Code::StaleFence => (409, "stale-fence", "The attempt is not held under this fence"),
            Code::SessionTakenOver => (409, "session-taken-over", "A newer session of this worker took over"),
            Code::Conflict => (409, "conflict", "It contradicts what is kept"),
            Code::BlobsMissing => (409, "blobs-missing", "Contents of the artifact are missing"),
            Code::LogCap => (409, "log-cap", "The log is full"),
            Code::BodyTooLarge => (413, "body-too-large", "The body is too large"),
            Code::UnsupportedMedia => (415, "unsupported-media", "This content type is not read here"),
            Code::BadRepository => (422, "bad-repository", "The repository cannot be used"),
            Code::BadRevision => (422, "bad-revision", "The revision names no commit"),
            Code::BadLog => (422, "bad-log", "The bytes are no log"),
            Code::BadArtifact => (422, "bad-artifact", "The artifact cannot be kept"),
            Code::TooManyRuns => (429, "too-many-runs", "The farm holds as many runs as it may"),
            Code::Internal => (500, "internal", "The coordinator failed"),
            Code::Unavailable => (503, "unavailable", "The store does not answer"),
            Code::TooManyStreams => (503, "too-many-streams", "Too many streams are open"),
            Code::TooManyTransfers => (503, "too-many-transfers", "Too many transfers are under way"),
            Code::ShuttingDown => (503, "shutting-down", "The coordinator is shutting down"),
            Code::OutcomeUnknown => (504, "outcome-unknown", "It is not known whether this was done"),
            Code::DiskLow => (507, "disk-low", "The coordinator's disk is nearly full"),
        }
    }
}

/// An answer that is no success.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) code: Code,
    pub(crate) detail: String,
    pub(crate) hint: Option<String>,
    retry_after_s: Option<u32>,
}

pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), hint: None, retry_after_s: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same error, when a part of what was asked for is on record already: "try again" alone would be wrong.
    pub(crate) fn after_a_change(mut self) -> Self {
        if matches!(self.code, Code::Unavailable | Code::ShuttingDown) {
            self.code = Code::OutcomeUnknown;
            self.hint = Some("a part of it is on record: look, or ask again with the same key".to_owned());
        }
        self
    }

    /// The same call may succeed after so many seconds.
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The cause goes to the log; the caller learns only that it happened.
    pub(crate) fn internal(doing: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = %chain(error), "{doing}");
        Self::new(Code::Internal, doing.to_owned())
            .hint("the coordinator's log has the cause under this request id")
    }

    pub(crate) fn status(&self) -> StatusCode {
        // The rows above hold valid statuses only.
        StatusCode::from_u16(self.code.row().0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// What the client reads.
    pub(crate) fn problem(&self, request_id: Option<&str>) -> Problem {
        let (status, code, title) = self.code.row();
        Problem {
            code: code.to_owned(),
            title: title.to_owned(),
            status,
            detail: self.detail.clone(),
            hint: self.hint.clone(),
            request_id: request_id.map(str::to_owned),
        }
    }

    /// The answer, with its request id once that is known.
    pub(crate) fn response(&self, request_id: Option<&str>) -> Response {
        let mut response = (self.status(), Json(self.problem(request_id))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == Code::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    /// The outermost layer writes the body again with the request id; it finds the error beside the answer.
    fn into_response(self) -> Response {
        let mut response = self.response(None);
        response.extensions_mut().insert(self);
        response
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Stale { attempt } => {
                ApiError::new(Code::StaleFence, format!("{attempt} is not held under this fence"))
                    .hint("another attempt has taken its place or it has ended; stop it and forget it")
            }
            StoreError::Conflict(what) => ApiError::new(Code::Conflict, what.clone()),
            StoreError::EpochOver { .. } => {
                tracing::error!(error = %error, "another coordinator took over");
                ApiError::new(Code::ShuttingDown, "another coordinator took over this database")
                    .retry_after(5)
            }
            StoreError::Damaged { .. } => {
                tracing::error!(error = %chain(&error), "a row of the database is damaged");
                ApiError::new(Code::Internal, chain(&error))
                    .hint("docs/operations.md says under \"A damaged row\" what can be done")
            }
            StoreError::Unavailable { .. } => {
                tracing::warn!(error = %chain(&error), "the store does not answer");
                ApiError::new(Code::Unavailable, "the database is locked, full or away; nothing was changed")
                    .hint("send the same request again")
                    .retry_after(2)
            }
        }
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let code = match &rejection {
            Rejection::NoRun(_) => Code::RunNotFound,
            Rejection::NoJob(_) => Code::JobNotFound,
            Rejection::NoWorker(_) => Code::WorkerNotFound,
            Rejection::TooManyRuns { .. } => Code::TooManyRuns,
            Rejection::AlreadyFinished(_) => Code::AlreadyFinished,
            Rejection::SessionTakenOver { .. } => Code::SessionTakenOver,
            Rejection::WorkerBusy { .. } => Code::WorkerBusy,
        };
        ApiError::new(code, rejection.to_string())
    }
}

impl From<ParseIdError> for ApiError {
    fn from(error: ParseIdError) -> Self {
        ApiError::new(Code::BadId, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_as_agreed() {
        let error = ApiError::new(Code::RunNotFound, "there is no run-7").hint("`buildyard runs` lists them");
        let text = serde_json::to_string(&error.problem(Some("req-1"))).unwrap();
        assert_eq!(
            text,
            r#"{"type":"run-not-found","title":"There is no such run","status":404,"detail":"there is no run-7","hint":"`buildyard runs` lists them","request_id":"req-1"}"#
        );
    }
}
