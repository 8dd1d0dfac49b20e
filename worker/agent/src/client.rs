//! The worker's calls to the coordinator, sorted by what the caller does next.
//!
//! Every call ends within a time limit. None is tried again in here: who calls knows whether waiting helps.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use buildyard_types::api::Problem;
use buildyard_types::worker::{
    ArtifactManifest, EnrolRequest, EnrolResponse, FENCE_HEADER, LogFinish, LogLength, SyncRequest,
    SyncResponse,
};
use buildyard_types::{AttemptId, Fence, RunId};
use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use crate::data::Identity;

/// Time to reach the coordinator at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a call that the coordinator does not hold.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the content of one artifact file: 2 GiB at 1 MB/s and some more.
const BLOB_TIMEOUT: Duration = Duration::from_secs(40 * 60);
/// Longest answer that is read. A `sync` answer with many orders is the longest there is.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer. Waiting helps.
    #[error("the coordinator at {url} could not be reached to {doing}")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// What was attempted.
        doing: &'static str,
        /// What went wrong.
        #[source]
        source: reqwest::Error,
    },
    /// It answers, but cannot serve the call now. Waiting helps.
    #[error("the coordinator could not {doing}: {detail}")]
    Unavailable {
        /// What was attempted.
        doing: &'static str,
        /// In its words.
        detail: String,
    },
    /// It does not know the credential, or no longer.
    #[error("the coordinator refused the worker's credential to {doing}: {detail}")]
    Unauthorized {
        /// What was attempted.
        doing: &'static str,
        /// In its words.
        detail: String,
    },
    /// 409: a stale fence, a session that was taken over, or content that contradicts what is kept.
    #[error("the coordinator refused to {doing}: {detail}")]
    Conflict {
        /// What was attempted.
        doing: &'static str,
        /// Stable name of the reason.
        code: String,
        /// In its words.
        detail: String,
    },
    /// The call is wrong. Sending it again changes nothing.
    #[error("the coordinator refused to {doing} with status {status}: {detail}")]
    Refused {
        /// What was attempted.
        doing: &'static str,
        /// The HTTP status.
        status: u16,
        /// Stable name of the reason.
        code: String,
        /// In its words.
        detail: String,
    },
    /// The answer is not what the protocol says.
    #[error("the coordinator's answer to {doing} could not be read: {reason}")]
    Answer {
        /// What was attempted.
        doing: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file to be sent could not be read.
    #[error("could not read {} to send it", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl ClientError {
    /// Whether nothing of the call can have reached the coordinator, so that it has no effect there.
    pub fn never_arrived(&self) -> bool {
        match self {
            ClientError::Unreachable { source, .. } => source.is_connect(),
            ClientError::Unavailable { .. }
            | ClientError::Unauthorized { .. }
            | ClientError::Conflict { .. }
            | ClientError::Refused { .. }
            | ClientError::Answer { .. }
            | ClientError::File { .. } => false,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_temporary(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } | ClientError::Unavailable { .. } => true,
            ClientError::Unauthorized { .. }
            | ClientError::Conflict { .. }
            | ClientError::Refused { .. }
            | ClientError::Answer { .. }
            | ClientError::File { .. } => false,
        }
    }
}

/// Takes the log of one attempt.
#[async_trait]
pub trait LogStore: Send + Sync {
    /// Adds bytes at an offset; gives the length that is kept.
    async fn append(&self, offset: u64, bytes: Bytes) -> Result<u64, ClientError>;
    /// Closes the log.
    async fn finish(&self, finish: &LogFinish) -> Result<(), ClientError>;
}

/// Takes the artifacts of one attempt.
#[async_trait]
pub trait ArtifactStore: Send + Sync {
    /// Keeps the content of an open file of that size and hash.
    async fn put_blob(&self, sha256: &str, size: u64, file: std::fs::File) -> Result<(), ClientError>;
    /// Keeps the list of an artifact's files.
    async fn put_manifest(&self, name: &str, manifest: &ArtifactManifest) -> Result<(), ClientError>;
}

/// Speaks to one coordinator as one worker.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    identity: Identity,
}

/// Speaks about one attempt, under its fence.
#[derive(Debug, Clone)]
pub struct AttemptClient {
    client: Client,
    attempt: AttemptId,
    fence: Fence,
}

fn http() -> Result<reqwest::Client, ClientError> {
    reqwest::Client::builder()
        .user_agent(concat!("buildyard-worker/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        // A coordinator has no reason to send a worker elsewhere, and its credential must not go there.
        .redirect(reqwest::redirect::Policy::none())
        // The coordinator is named by the administrator; a proxy variable meant for jobs must not catch it.
        .no_proxy()
        .build()
        .map_err(|source| ClientError::Unreachable { url: String::new(), doing: "set up HTTP", source })
}

/// Turns a one-time token into an identity. The token is used up when this succeeds.
pub async fn enrol(url: &str, request: &EnrolRequest) -> Result<EnrolResponse, ClientError> {
    let doing = "enrol";
    let call = http()?.post(format!("{url}/api/worker/v1/enrol")).json(request).timeout(CALL_TIMEOUT);
    read(doing, send(url, doing, call).await?).await
}

async fn send(url: &str, doing: &'static str, call: RequestBuilder) -> Result<Response, ClientError> {
    let answer = call.send().await;
    let answer = answer.map_err(|source| ClientError::Unreachable {
        url: url.to_owned(),
        doing,
        source: source.without_url(),
    })?;
    if answer.status().is_success() { Ok(answer) } else { Err(refusal(doing, answer).await) }
}

async fn refusal(doing: &'static str, answer: Response) -> ClientError {
    let status = answer.status();
    let problem = read::<Problem>(doing, answer).await.ok();
    let detail =
        problem.as_ref().map_or_else(|| format!("status {status}"), |problem| problem.detail.clone());
    let code = problem.map(|problem| problem.code).unwrap_or_default();
    match status {
        // Without a code it is not the coordinator that says so, but a proxy on the way to it.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if code.is_empty() => {
            ClientError::Unavailable { doing, detail }
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ClientError::Unauthorized { doing, detail },
        StatusCode::CONFLICT => ClientError::Conflict { doing, code, detail },
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            ClientError::Unavailable { doing, detail }
        }
        status if status.is_server_error() => ClientError::Unavailable { doing, detail },
        status => ClientError::Refused { doing, status: status.as_u16(), code, detail },
    }
}

async fn read<T: DeserializeOwned>(doing: &'static str, mut answer: Response) -> Result<T, ClientError> {
    let mut bytes = Vec::new();
    loop {
        // Cut off in the middle of an answer: as good as none.
        let part = answer.chunk().await.map_err(|source| ClientError::Unreachable {
            url: String::new(),
            doing,
            source: source.without_url(),
        })?;
        let Some(part) = part else { break };
        if bytes.len() + part.len() > MAX_ANSWER_BYTES {
            let reason = format!("longer than {MAX_ANSWER_BYTES} bytes");
            return Err(ClientError::Answer { doing, reason });
        }
        bytes.extend_from_slice(&part);
    }
    serde_json::from_slice(&bytes).map_err(|error| ClientError::Answer { doing, reason: error.to_string() })
}

impl Client {
    /// A client for the coordinator at `url` (scheme, host and port).
    pub fn new(url: &str, identity: Identity) -> Result<Self, ClientError> {
        Ok(Self { http: http()?, url: url.trim_end_matches('/').to_owned(), identity })
    }

    /// Where the coordinator is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where git finds the commit of a run.
    pub fn source_url(&self, run: RunId) -> String {
        format!("{}/api/worker/v1/source/{run}", self.url)
    }

    /// The header that git sends along.
    pub fn authorization(&self) -> String {
        format!("Authorization: Bearer {}", self.identity.credential)
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/api/worker/v1/{path}", self.url);
        self.http.request(method, url).bearer_auth(&self.identity.credential).timeout(CALL_TIMEOUT)
    }

    /// Says what the worker holds. The coordinator holds the call for a while; `limit` is the time after which
    /// it counts as lost.
    pub async fn sync(&self, request: &SyncRequest, limit: Duration) -> Result<SyncResponse, ClientError> {
        let doing = "sync";
        let call = self.call(Method::POST, "sync").json(request).timeout(limit);
        read(doing, send(&self.url, doing, call).await?).await
    }

    /// Speaks about one attempt.
    pub fn attempt(&self, attempt: AttemptId, fence: Fence) -> AttemptClient {
        AttemptClient { client: self.clone(), attempt, fence }
    }
}

impl AttemptClient {
    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        let path = format!("attempts/{}/{path}", self.attempt);
        self.client.call(method, &path).header(FENCE_HEADER, self.fence.0)
    }

    async fn send(&self, doing: &'static str, call: RequestBuilder) -> Result<Response, ClientError> {
        send(&self.client.url, doing, call).await
    }
}

#[async_trait]
impl LogStore for AttemptClient {
    async fn append(&self, offset: u64, bytes: Bytes) -> Result<u64, ClientError> {
        let doing = "send log bytes";
        let call = self.call(Method::PATCH, "log").query(&[("offset", offset)]).body(bytes);
        let kept: LogLength = read(doing, self.send(doing, call).await?).await?;
        Ok(kept.length)
    }

    async fn finish(&self, finish: &LogFinish) -> Result<(), ClientError> {
        let call = self.call(Method::POST, "log/finish").json(finish);
        self.send("close the log", call).await.map(drop)
    }
}

#[async_trait]
impl ArtifactStore for AttemptClient {
    async fn put_blob(&self, sha256: &str, size: u64, file: std::fs::File) -> Result<(), ClientError> {
        let content = tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::from_std(file), 64 * 1024);
        let call = self
            .call(Method::PUT, &format!("blobs/{sha256}"))
            .header("content-length", size)
            .body(reqwest::Body::wrap_stream(content))
            .timeout(BLOB_TIMEOUT);
        self.send("send an artifact file", call).await.map(drop)
    }

    async fn put_manifest(&self, name: &str, manifest: &ArtifactManifest) -> Result<(), ClientError> {
        let call = self.call(Method::PUT, &format!("artifacts/{name}")).json(manifest);
        self.send("keep an artifact", call).await.map(drop)
    }
}

/// Reads the one-time token of a new worker. From a file, since arguments can be read by every user of a host.
pub fn read_token(path: &Path) -> Result<String, ClientError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ClientError::File { path: path.to_owned(), source })?;
    Ok(text.trim().to_owned())
}
