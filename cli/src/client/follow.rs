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
    /// Since when bytes are waited for. It outlives the calls of [`Follow::next`], which callers cut short.
    silent_since: Option<tokio::time::Instant>,
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
            silent_since: None,
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
            let since = *self.silent_since.get_or_insert_with(tokio::time::Instant::now);
            let step =
                async { if self.connection.is_none() { self.connect().await } else { self.read().await } };
            let step = match tokio::time::timeout_at(since + SILENCE, step).await {
                Ok(step) => step,
                Err(_) => Err(CliError::unreachable(self.client.url(), "the connection went silent")),
            };
            if !matches!(step, Ok(true)) {
                self.silent_since = None;
            }
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
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(false),
            Err(error) => return Err(self.client.unreachable(&error)),
        };
        self.silent_since = None;
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::client::Endpoint;

    /// A coordinator that begins to answer and then says nothing more. Gives a client of it.
    async fn silent_coordinator(says: &'static str) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                stream.write_all(says.as_bytes()).await.unwrap();
                held.push(stream);
            }
        });
        Client::to(Endpoint { url, token: None, token_origin: String::new(), own: None }).unwrap()
    }

    /// How often a caller that waits 10 s each time asks until it is told of the outage.
    async fn asks_until_lost(says: &'static str) -> usize {
        let mut stream = Follow::new(&silent_coordinator(says).await, &["events"], &[]);
        for asked in 0..20 {
            match tokio::time::timeout(Duration::from_secs(10), stream.next()).await {
                Ok(Ok(Followed::Lost(error))) => {
                    assert!(error.message.contains("silent"), "{error}");
                    return asked;
                }
                Ok(Ok(Followed::Event(_))) | Err(_) => {}
                Ok(other) => panic!("{other:?}"),
            }
        }
        panic!("nobody noticed");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_however_short_the_callers_wait() {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nid: 1\ndata: x\n\n";
        assert_eq!(asks_until_lost(head).await, 5, "one event, then four waits and a half");
        assert_eq!(asks_until_lost("").await, 4);
    }
}
