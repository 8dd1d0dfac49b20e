//! Talks to the coordinator's `/api/v1`.

mod follow;
mod locate;
mod patience;
mod sse;

use std::time::Duration;

use buildyard_types::api::Problem;
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Settings;
use crate::exit::{CliError, Kind, Result};

pub(crate) use follow::{Follow, Followed};
pub(crate) use locate::{Endpoint, locate_url};
use patience::Patience;

/// Longest answer that is read into memory.
const ANSWER_LIMIT_BYTES: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one answer. A held or streaming call does not use it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to one coordinator.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    endpoint: Endpoint,
}

/// Names and values of a query.
pub(crate) type Query<'q> = &'q [(&'q str, String)];

impl Client {
    /// Finds the coordinator and prepares to talk to it.
    pub(crate) fn connect(settings: &Settings) -> Result<Self> {
        Self::to(locate::locate(settings)?)
    }

    /// Prepares to talk to a coordinator.
    pub(crate) fn to(endpoint: Endpoint) -> Result<Self> {
        let base = Url::parse(&endpoint.url).ok().filter(|url| !url.cannot_be_a_base()).ok_or_else(|| {
            CliError::usage(format!("`{}` is no URL", endpoint.url)).hint("write it as http://HOST:PORT")
        })?;
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            // A redirect would carry the token to wherever it points.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("buildyard/", env!("CARGO_PKG_VERSION")));
        if locate::is_loopback(&base) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| CliError::farm("cannot prepare HTTP").because(error))?;
        Ok(Self { http, base, endpoint })
    }

    /// The coordinator's URL.
    pub(crate) fn url(&self) -> &str {
        &self.endpoint.url
    }

    /// Where the token came from.
    pub(crate) fn token_origin(&self) -> &str {
        &self.endpoint.token_origin
    }

    /// Asks for a document.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str], query: Query<'_>) -> Result<T> {
        let response = self.send(self.request(Method::GET, path).query(query)).await?;
        self.read_json(response).await
    }

    /// Asks for a document, and again while the coordinator is away.
    pub(crate) async fn get_patiently<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: Query<'_>,
    ) -> Result<T> {
        patiently(|| self.get(path, query)).await
    }

    /// Sends a document and reads the answer.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T> {
        let response = self.send(self.request(Method::POST, path).json(body)).await?;
        self.read_json(response).await
    }

    /// Asks for a change whose answer says nothing more.
    pub(crate) async fn act(&self, method: Method, path: &[&str]) -> Result {
        self.send(self.request(method, path)).await.map(drop)
    }

    /// Asks for bytes, to be read as they come.
    pub(crate) async fn open(&self, path: &[&str], query: Query<'_>) -> Result<Response> {
        self.send_untimed(self.request(Method::GET, path).query(query)).await
    }

    /// The next piece of an answer.
    pub(crate) async fn chunk(&self, response: &mut Response) -> Result<Option<Vec<u8>>> {
        match tokio::time::timeout(ANSWER_TIMEOUT, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk.map(|bytes| bytes.to_vec())),
            Ok(Err(error)) => Err(self.unreachable(&error)),
            Err(_) => Err(CliError::unreachable(self.url(), "it stopped in the middle of an answer")),
        }
    }

    /// A request below `/api/v1`. Every segment is encoded.
    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("the base was checked to hold a path in `to`")
            .pop_if_empty()
            .extend(["api", "v1"])
            .extend(path);
        let request = self.http.request(method, url);
        match &self.endpoint.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        self.send_untimed(request.timeout(ANSWER_TIMEOUT)).await
    }

    async fn send_untimed(&self, request: RequestBuilder) -> Result<Response> {
        if let Some(own) = &self.endpoint.own {
            own.check(self.url())?;
        }
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, request.send()).await;
        match answer {
            Ok(Ok(response)) if response.status().is_success() => Ok(response),
            Ok(Ok(response)) => Err(self.read_problem(response).await),
            Ok(Err(error)) => Err(self.unreachable(&error)),
            Err(_) => Err(CliError::unreachable(self.url(), "it does not answer")),
        }
    }

    async fn read_problem(&self, response: Response) -> CliError {
        let status = response.status();
        if status.as_u16() == 401 && self.endpoint.token.is_none() {
            return CliError::new(Kind::Refused, format!("no token is known for {}", self.url()))
                .hint("name a file that holds one: --token-file FILE or BUILDYARD_TOKEN_FILE");
        }
        let body = match self.read_body(response).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => CliError::problem(problem),
            Err(_) => CliError::problem(Problem {
                code: "unexplained".into(),
                title: status.canonical_reason().unwrap_or("Unexplained").into(),
                status: status.as_u16(),
                detail: format!("{} answered {status} without a reason", self.url()),
                hint: Some("check that the URL is a Buildyard coordinator's".into()),
                request_id: None,
            }),
        }
    }

    async fn read_json<T: DeserializeOwned>(&self, response: Response) -> Result<T> {
        let body = self.read_body(response).await?;
        serde_json::from_slice(&body).map_err(|error| {
            CliError::farm(format!("cannot understand the answer of {}", self.url()))
                .because(error)
                .hint("check that the URL is a Buildyard coordinator's, of this version or the one before")
        })
    }

    async fn read_body(&self, mut response: Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if body.len() + chunk.len() > ANSWER_LIMIT_BYTES {
                return Err(CliError::farm(format!("the answer of {} is larger than 64 MiB", self.url())));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn unreachable(&self, error: &reqwest::Error) -> CliError {
        let reason = if error.is_timeout() { "it does not answer".into() } else { root_cause(error) };
        CliError::unreachable(self.url(), &reason)
    }
}

/// Tries a call again while the coordinator is away.
pub(crate) async fn patiently<T, F: Future<Output = Result<T>>>(mut call: impl FnMut() -> F) -> Result<T> {
    let mut patience = Patience::default();
    let clock = tokio::time::Instant::now();
    loop {
        match call().await {
            Err(error) if is_passing(&error) => match patience.failed(clock.elapsed()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            },
            other => return other,
        }
    }
}

/// Whether the same call may succeed when it is made again.
pub(crate) fn is_passing(error: &CliError) -> bool {
    let status = error.problem.as_ref().map(|problem| problem.status);
    error.kind == Kind::Unreachable || matches!(status, Some(429 | 502..=504))
}

/// The innermost cause: `Connection refused`.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = cause.to_string();
    // "(os error 111)" tells a reader nothing that the words before it do not.
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}
