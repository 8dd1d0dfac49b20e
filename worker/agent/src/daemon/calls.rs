//! The held calls: at most two at a time, the newest with the newest state.

use std::time::Duration;

use buildyard_types::worker::{SyncRequest, SyncResponse};
use buildyard_types::{Millis, Timestamp};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::client::{Client, ClientError};
use crate::clock::Clock;
use crate::executor::outcome::in_one_sentence;

/// One is held while a newer one brings news. The coordinator answers the older one then.
const MAX_CALLS: usize = 2;
/// The longest that a coordinator holds a call.
const MAX_HOLD: Duration = Duration::from_secs(30);
/// Time for an answer beyond the hold, before the lease is known.
const FIRST_SLACK: Duration = Duration::from_secs(10);

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
    lease: Option<Duration>,
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

    /// Sends a call.
    pub(super) fn send(&mut self, client: Client, request: SyncRequest, clock: Clock) {
        self.wanted = false;
        let limit = self.limit();
        self.running.spawn(async move {
            let sent = clock.now();
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
                }
                Some(answer)
            }
            // A panic was reported as that; the next call tries again.
            Some(Ok(_) | Err(_)) => None,
        }
    }

    /// A call came to nothing. The next one waits a little, unless another is still held.
    pub(super) fn failed(&mut self, error: &ClientError) {
        if !self.running.is_empty() {
            self.wanted = true;
            return;
        }
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

    /// The length of the lease decides how long a call is held.
    pub(super) fn lease(&mut self, lease_ms: Millis) {
        self.lease = Some(lease_ms.into());
    }

    /// How long a call may take: two that are lost still leave time to renew the lease with a third.
    fn limit(&self) -> Duration {
        match self.lease {
            None => MAX_HOLD + FIRST_SLACK,
            Some(lease) => (lease / 3).min(MAX_HOLD) + (lease / 10).max(Duration::from_millis(500)),
        }
    }
}
