//! Follows an event stream over outages: after a cut it asks for what came behind the last event it has.

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderName};
use reqwest::{Method, Response};

use super::patience::Patience;
use super::sse::{Event, Parser};
use super::{Client, is_passing};
use crate::exit::{CliError, Result};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The coordinator sends a comment at least every 15 s; three missing ones mean that nobody is there.
const SILENCE: Duration = Duration::from_secs(45);

/// What comes out of a stream.
#[derive(Debug)]
pub(crate) enum Followed {
    /// An event.
    Event(Event),
    /// The coordinator is away; said once for each outage.
    Lost(CliError),
    /// The coordinator ended the stream in good order. Asking again connects anew.
    Ended,
}

/// One stream.
pub(crate) struct Follow {
    client: Client,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
    last_id: Option<String>,
    connection: Option<(Response, Parser)>,
    ready: VecDeque<Event>,
    patience: Patience,
    clock: tokio::time::Instant,
    pause: Duration,
}

impl Follow {
    /// A stream that is not connected yet.
    pub(crate) fn new(client: &Client, path: &[&str], query: &[(&'static str, String)]) -> Self {
        Self {
            client: client.clone(),
            path: path.iter().map(|part| (*part).to_owned()).collect(),
            query: query.to_vec(),
            last_id: None,
            connection: None,
            ready: VecDeque::new(),
            patience: Patience::default(),
            clock: tokio::time::Instant::now(),
            pause: Duration::ZERO,
        }
    }

    /// The id of the last event that was given out.
    pub(crate) fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// Whether an event is at hand without waiting.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next event, end or outage. Gives an error when the coordinator refuses, or is away for too long.
    ///
    /// Safe to drop between events: nothing that was read is lost.
    pub(crate) async fn next(&mut self) -> Result<Followed> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.last_id = event.id.clone().or(self.last_id.take());
                return Ok(Followed::Event(event));
            }
            tokio::time::sleep(std::mem::take(&mut self.pause)).await;
            let step = if self.connection.is_none() { self.connect().await } else { self.read().await };
            match step {
                Ok(true) => {}
                Ok(false) => {
                    self.connection = None;
                    // A server that ends every stream at once must not be asked without a pause.
                    self.pause = Duration::from_millis(200);
                    return Ok(Followed::Ended);
                }
                Err(error) => {
                    self.connection = None;
                    if let Some(lost) = self.lost(error)? {
                        return Ok(lost);
                    }
                }
            }
        }
    }

    fn lost(&mut self, error: CliError) -> Result<Option<Followed>> {
        if !is_passing(&error) {
            return Err(error);
        }
        let first = self.patience.is_calm();
        match self.patience.failed(self.clock.elapsed()) {
            None => Err(error),
            Some(pause) => {
                self.pause = pause;
                Ok(first.then_some(Followed::Lost(error)))
            }
        }
    }

    async fn connect(&mut self) -> Result<bool> {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let mut request =
            self.client.request(Method::GET, &path).query(&self.query).header(ACCEPT, "text/event-stream");
        if let Some(id) = &self.last_id {
            request = request.header(LAST_EVENT_ID, id);
        }
        let response = self.client.send_untimed(request).await?;
        self.connection = Some((response, Parser::default()));
        Ok(true)
    }

    /// Reads a piece; `false` at the end of the stream.
    async fn read(&mut self) -> Result<bool> {
        let Some((response, parser)) = &mut self.connection else { return Ok(true) };
        let url = self.client.url();
        let chunk = match tokio::time::timeout(SILENCE, response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => return Ok(false),
            Ok(Err(error)) => return Err(self.client.unreachable(&error)),
            Err(_) => return Err(CliError::unreachable(url, "the connection went silent")),
        };
        let mut events = Vec::new();
        parser.push(&chunk, &mut events).map_err(|error| {
            CliError::farm(format!("cannot understand the event stream of {url}")).because(error)
        })?;
        self.ready.extend(events);
        // Only bytes end an outage: whoever accepts and hangs up at once is not back.
        self.patience.succeeded();
        Ok(true)
    }
}
