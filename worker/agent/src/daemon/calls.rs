//! The held calls: at most two at a time, the newest with the newest state.

use std::time::Duration;

use buildyard_types::Timestamp;
use buildyard_types::worker::{SyncRequest, SyncResponse};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::client::{Client, ClientError};
use crate::executor::outcome::in_one_sentence;

/// One is held while a newer one brings news. The coordinator answers the older one then.
const MAX_CALLS: usize = 2;

/// What came of a call.
pub(super) struct Answer {
    /// When it was sent: the lease counts from there.
    pub(super) sent: Timestamp,
    pub(super) result: Result<SyncResponse, ClientError>,
}

#[derive(Default)]
pub(super) struct Calls {
    running: JoinSet<(u64, Answer)>,
    /// There is news to tell.
    wanted: bool,
    /// The newest call that was answered. Answers to older ones are out of date: what they order may have been
    /// carried out and forgotten since.
    newest: u64,
    backoff: Backoff,
    retry_at: Option<Instant>,
}

impl Calls {
    /// Whether a call should be sent now.
    pub(super) fn wants_one(&self) -> bool {
        let idle = self.running.is_empty() && self.retry_at.is_none();
        idle || (self.wanted && self.running.len() < MAX_CALLS && self.retry_at.is_none())
    }

    /// There is news.
    pub(super) fn call_soon(&mut self) {
        self.wanted = true;
    }

    /// Sends a call that is given up after `limit`.
    pub(super) fn send(&mut self, client: Client, request: SyncRequest, limit: Duration, sent: Timestamp) {
        self.wanted = false;
        self.running.spawn(async move {
            let result = client.sync(&request, limit).await;
            (request.sequence, Answer { sent, result })
        });
    }

    /// Waits until a call is over. `None` where its answer is out of date: the caller looks again whether another
    /// call is wanted, since this may have been the last one under way.
    pub(super) async fn next(&mut self) -> Option<Answer> {
        match self.running.join_next().await {
            // Nothing is under way while a failure is waited out.
            None => std::future::pending().await,
            Some(Ok((sequence, answer))) if sequence > self.newest => {
                if answer.result.is_ok() {
                    self.newest = sequence;
                    self.backoff = Backoff::default();
                    self.retry_at = None;
                }
                Some(answer)
            }
            // A panic was reported as that; the next call tries again.
            Some(Ok(_) | Err(_)) => None,
        }
    }

    /// A call came to nothing. The next one waits a little, also while another is still held: that one may be
    /// answered first, or fail as fast.
    pub(super) fn failed(&mut self, error: &ClientError) {
        self.wanted = true;
        let wait = self.backoff.next();
        tracing::warn!(error = %in_one_sentence(error), wait_ms = wait.as_millis() as u64, "a call failed");
        self.retry_at = Some(Instant::now() + wait);
    }

    /// When to try again after a failure.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// It is time to try again.
    pub(super) fn retry(&mut self) {
        self.retry_at = None;
    }
}

#[cfg(test)]
mod tests {
    use buildyard_types::Millis;

    use super::*;

    fn unavailable() -> ClientError {
        ClientError::Unavailable { doing: "sync", detail: "it is away".into() }
    }

    fn answer() -> SyncResponse {
        SyncResponse { lease_ms: Millis(15_000), run: Vec::new(), stop: Vec::new(), forget: Vec::new() }
    }

    /// With one call held and the link down, the other failed and was sent again in a circle.
    #[tokio::test]
    async fn a_call_that_fails_beside_a_held_one_is_waited_out() {
        let mut calls = Calls::default();
        calls.running.spawn(std::future::pending());
        for _ in 0..3 {
            calls.call_soon();
            assert!(calls.wants_one());
            calls.failed(&unavailable());
            assert!(!calls.wants_one(), "not before its time");
            assert!(calls.retry_at().is_some());
            calls.retry();
            assert!(calls.wants_one(), "what was to be told is still to be told");
        }
    }

    #[tokio::test]
    async fn an_answer_ends_the_waiting() {
        let mut calls = Calls::default();
        calls.failed(&unavailable());
        let sent = Timestamp(0);
        calls.running.spawn(async move { (1, Answer { sent, result: Ok(answer()) }) });
        assert!(calls.next().await.is_some());
        assert_eq!(calls.retry_at(), None);
    }
}
