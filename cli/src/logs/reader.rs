//! The log of one attempt as a stream of records, over outages and to its true end.

use std::time::Duration;

use buildyard_types::AttemptId;
use buildyard_types::api::{AttemptState, AttemptView, LogLine};

use crate::client::{Client, Follow, Followed};
use crate::exit::{CliError, Result};
use crate::target;

/// A log that is silent for so long is asked whether it is complete: the attempt may have lost its worker.
const SILENCE: Duration = Duration::from_secs(10);

/// Whether to wait for what is not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// What is kept now.
    Now,
    /// Everything until the log is complete.
    Follow,
}

/// What comes out.
#[derive(Debug)]
pub(crate) enum Read {
    /// A record.
    Record(LogLine),
    /// The coordinator is away; it is asked again.
    Lost(String),
    /// Nothing more will come.
    End(Ending),
}

/// Why nothing more will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The log is complete.
    Whole,
    /// The attempt goes on, and nobody asked to wait for it.
    Open,
    /// The attempt is over without having closed its log.
    Cut,
}

/// Reads one log.
pub(crate) struct Reader {
    client: Client,
    attempt: AttemptId,
    mode: Mode,
    stream: Follow,
}

impl Reader {
    /// A reader at the beginning of a log.
    pub(crate) fn new(client: &Client, attempt: AttemptId, mode: Mode) -> Self {
        let follow = (mode == Mode::Follow).to_string();
        let stream = Follow::new(client, &["attempts", &attempt.to_string(), "log"], &[("follow", follow)]);
        Self { client: client.clone(), attempt, mode, stream }
    }

    /// Whether a record is at hand without waiting.
    pub(crate) fn is_ready(&self) -> bool {
        self.stream.is_ready()
    }

    /// The next record, outage or end.
    pub(crate) async fn next(&mut self) -> Result<Read> {
        loop {
            match tokio::time::timeout(SILENCE, self.stream.next()).await {
                Ok(next) => match next? {
                    Followed::Lost(error) => return Ok(Read::Lost(error.message)),
                    Followed::Event(event) if event.kind == "end" => {}
                    Followed::Event(event) => return self.record(&event.data).map(Read::Record),
                    Followed::Ended => {}
                },
                // Whoever asks for what is kept now gets all of it, but not from a coordinator that is dead: then
                // the question for the end fails.
                Err(_) if self.mode == Mode::Now && self.ending().await? == Ending::Open => continue,
                Err(_) => {}
            }
            // A coordinator that goes down in good order ends its streams too: only the attempt's own view
            // tells whether the log is complete.
            match (self.ending().await?, self.mode) {
                (Ending::Open, Mode::Follow) => {}
                (ending, _) => return Ok(Read::End(ending)),
            }
        }
    }

    fn record(&self, data: &str) -> Result<LogLine> {
        serde_json::from_str(data).map_err(|error| {
            CliError::farm(format!("cannot understand the log of {}", self.attempt)).because(error)
        })
    }

    async fn ending(&self) -> Result<Ending> {
        let job = target::job(&self.client, self.attempt.job).await?;
        let view = job.attempts.into_iter().find(|attempt| attempt.id == self.attempt);
        let view = view.ok_or_else(|| CliError::usage(format!("there is no {}", self.attempt)))?;
        let read = self.stream.last_id().and_then(|id| id.parse().ok()).unwrap_or(0);
        Ok(ending(&view, read))
    }
}

fn ending(view: &AttemptView, read: u64) -> Ending {
    let over = match view.state {
        AttemptState::Ended | AttemptState::Removed => true,
        AttemptState::Assigned | AttemptState::Running | AttemptState::Stopping => false,
    };
    match (view.log_finished, over) {
        (true, _) if read >= view.log_length => Ending::Whole,
        (false, true) if read >= view.log_length => Ending::Cut,
        (true | false, _) => Ending::Open,
    }
}
