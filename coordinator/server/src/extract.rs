//! What comes with a request, read strictly: what cannot be read is a problem with a code, never a guess.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use buildyard_types::id::ParseIdError;
use buildyard_types::worker::PROTOCOL;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::error::{ApiError, ApiResult, Code};

/// Most bytes of a JSON body: a worker's sync with some thousand attempts.
pub(crate) const MAX_JSON_BYTES: usize = 4 << 20;
/// A body that is to be in memory has to arrive within this time.
const BODY: Duration = Duration::from_secs(30);

/// A whole body, bounded in length and in time.
pub(crate) async fn whole_body(body: Body, limit: usize) -> ApiResult<Bytes> {
    let collected = tokio::time::timeout(BODY, Limited::new(body, limit).collect()).await;
    let collected = collected.map_err(|_| {
        let detail = format!("the body did not arrive within {} s", BODY.as_secs());
        ApiError::new(Code::RequestTimeout, detail)
    })?;
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ApiError::new(Code::BodyTooLarge, format!("the body is longer than {limit} bytes")))
        }
        Err(error) => Err(ApiError::new(Code::BadRequest, format!("the body did not arrive whole: {error}"))),
    }
}

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Arc<App>) -> Result<Self, ApiError> {
        read(&json_body(request).await?).map(Self)
    }
}

/// A JSON body of a worker. The version of the protocol is read before anything else: in another version the rest may
/// have another shape, and the worker is to hear the reason by its name.
pub(crate) struct Spoken<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Spoken<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Arc<App>) -> Result<Self, ApiError> {
        #[derive(serde::Deserialize)]
        struct Version {
            protocol: u32,
        }
        let body = json_body(request).await?;
        let Version { protocol } = read(&body)?;
        if protocol != PROTOCOL {
            let detail = format!("the worker speaks protocol {protocol}, this coordinator {PROTOCOL}");
            let unsupported = ApiError::new(Code::ProtocolUnsupported, detail);
            return Err(unsupported.hint("install the same version on both sides"));
        }
        read(&body).map(Self)
    }
}

async fn json_body(request: Request) -> ApiResult<Bytes> {
    let (parts, body) = request.into_parts();
    let kind = parts.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let is_json = kind.split(';').next().is_some_and(|kind| kind.trim() == "application/json");
    let body = whole_body(body, MAX_JSON_BYTES).await?;
    if is_json {
        Ok(body)
    } else {
        Err(ApiError::new(Code::UnsupportedMedia, "expected Content-Type: application/json"))
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::new(Code::BadRequest, format!("the body cannot be read: {error}")))
}

/// The query of a request. Unknown keys are refused where the type refuses them.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        query_of(&parts.uri)
    }
}

fn query_of<T: DeserializeOwned>(uri: &Uri) -> ApiResult<Query<T>> {
    let read = axum::extract::Query::<T>::try_from_uri(uri);
    read.map(|axum::extract::Query(value)| Query(value)).map_err(|error| {
        ApiError::new(Code::BadRequest, format!("the query cannot be read: {}", error.body_text()))
    })
}

/// The named parts of the path, as text.
pub(crate) struct PathText(Vec<(String, String)>);

impl FromRequestParts<Arc<App>> for PathText {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, app).await;
        let params = params
            .map_err(|error| ApiError::new(Code::BadRequest, format!("the path cannot be read: {error}")))?;
        Ok(Self(params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
    }
}

impl PathText {
    /// A part of the path.
    pub(crate) fn text(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// A part of the path that has to be an id.
    pub(crate) fn id<T: FromStr<Err = ParseIdError>>(&self, name: &str) -> ApiResult<T> {
        Ok(self.text(name).parse()?)
    }
}

/// The only part of a path that has only one: an id.
pub(crate) struct Id<T>(pub(crate) T);

impl<T: FromStr<Err = ParseIdError>> FromRequestParts<Arc<App>> for Id<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        PathText::from_request_parts(parts, app).await?.id("id").map(Self)
    }
}

/// A header as text.
pub(crate) fn header_text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether the client asks for a media type.
pub(crate) fn accepts(headers: &HeaderMap, kind: &str) -> bool {
    header_text(headers, "accept").is_some_and(|accepted| {
        accepted.split(',').any(|one| one.split(';').next().is_some_and(|one| one.trim() == kind))
    })
}
