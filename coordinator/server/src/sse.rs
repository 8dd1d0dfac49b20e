//! Server-sent events, written by hand: many records become one piece of the body, and a stream that waits
//! says so from time to time, so that both sides notice a cut.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Serialize;
use tokio::sync::watch;

use crate::app::closed;
use crate::error::ApiResult;

/// Longest silence of a stream. Readers may take three of them for a cut.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);
/// A comment: readers skip it.
pub(crate) const STILL_HERE: &[u8] = b": still here\n\n";

/// Appends one event. Data is JSON, so it holds no line ends.
pub(crate) fn push(out: &mut Vec<u8>, id: u64, kind: Option<&str>, data: &impl Serialize) {
    out.extend_from_slice(format!("id: {id}\n").as_bytes());
    if let Some(kind) = kind {
        out.extend_from_slice(format!("event: {kind}\n").as_bytes());
    }
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, data).expect("views hold no maps with keys that are no text");
    out.extend_from_slice(b"\n\n");
}

/// One piece of a body that is made while it is read.
pub(crate) enum Piece {
    /// More follows.
    More(Bytes),
    /// The end, with what is left to say.
    Last(Bytes),
}

/// What tells a story piece by piece.
pub(crate) trait Teller: Send + Sized + 'static {
    /// The next piece. Waits until there is one.
    fn piece(&mut self) -> impl Future<Output = ApiResult<Piece>> + Send;
}

/// The pieces as a body; each is made when the reader has taken the one before.
pub(crate) fn told(teller: impl Teller) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::unfold(Some(teller), |teller| async {
        let mut teller = teller?;
        match teller.piece().await {
            Ok(Piece::More(bytes)) => Some((Ok(bytes), Some(teller))),
            Ok(Piece::Last(bytes)) => Some((Ok(bytes), None)),
            Err(error) => {
                // The head of the answer is out; breaking the body off is the one way to say so. The reader comes
                // again and says what it has.
                tracing::warn!(error = error.detail, "a reader was broken off");
                Some((Err(io::Error::other(error.detail)), None))
            }
        }
    })
}

/// A response whose body is an event stream.
pub(crate) fn response<S>(stream: S) -> Response
where
    S: Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
{
    let mut response = Body::from_stream(stream).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that gather answers would hold the stream back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Why a stream woke up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// There may be something new.
    News,
    /// Nothing happened for a while.
    Silence,
    /// The process ends, and so does the stream.
    Closing,
}

/// Waits for news, but neither for too long nor beyond the end of the process.
pub(crate) async fn wait(news: impl Future<Output = ()>, closing: &mut watch::Receiver<bool>) -> Woken {
    tokio::select! {
        () = closed(closing) => Woken::Closing,
        () = news => Woken::News,
        () = tokio::time::sleep(SILENCE) => Woken::Silence,
    }
}
