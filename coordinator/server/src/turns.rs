//! Turns for long transfers: so many at one time, fewer for one worker, and a bounded wait for one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use buildyard_types::WorkerId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{ApiError, ApiResult, Code};

/// The turns of one kind of transfer.
pub(crate) struct Turns {
    what: &'static str,
    wait: Duration,
    all: Arc<Semaphore>,
    each: usize,
    /// Entries live as long as the worker has a turn or waits for one.
    workers: Mutex<HashMap<WorkerId, Weak<Semaphore>>>,
}

/// The right to one transfer.
pub(crate) struct Turn {
    _all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl Turns {
    /// At most `all` at one time, and `each` of one worker; whoever wants one more is refused after `wait`.
    pub(crate) fn new(what: &'static str, all: usize, each: usize, wait: Duration) -> Self {
        Self { what, wait, all: Arc::new(Semaphore::new(all)), each, workers: Mutex::default() }
    }

    fn of(&self, worker: WorkerId) -> Arc<Semaphore> {
        // A panic while it was held cannot have left the map half changed.
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = workers.get(&worker).and_then(Weak::upgrade) {
            return own;
        }
        workers.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(self.each));
        workers.insert(worker, Arc::downgrade(&own));
        own
    }

    /// Waits for a turn. The worker's own limit comes first: whoever has too many of its own waits without
    /// standing in the way of others.
    pub(crate) async fn take(&self, worker: WorkerId) -> ApiResult<Turn> {
        let turn = async {
            let own = self.of(worker).acquire_owned().await?;
            let all = self.all.clone().acquire_owned().await?;
            Ok(Turn { _all: all, _own: own })
        };
        match tokio::time::timeout(self.wait, turn).await {
            Ok(turn) => turn.map_err(|_: tokio::sync::AcquireError| {
                ApiError::new(Code::ShuttingDown, format!("{} are over", self.what))
            }),
            Err(_) => {
                let detail = format!("as many {} as may be are under way", self.what);
                Err(ApiError::new(Code::TooManyTransfers, detail).retry_after(10))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_worker_takes_not_all_turns_and_nobody_waits_for_ever() {
        let turns = Turns::new("uploads", 3, 2, Duration::from_secs(60));
        let (greedy, other) = (WorkerId(1), WorkerId(2));
        let held = (turns.take(greedy).await.unwrap(), turns.take(greedy).await.unwrap());
        assert_eq!(turns.take(greedy).await.err().unwrap().code, Code::TooManyTransfers);
        let third = turns.take(other).await.unwrap();
        assert_eq!(turns.take(other).await.err().unwrap().code, Code::TooManyTransfers, "three are all");
        drop(held);
        turns.take(other).await.unwrap();
        drop(third);
        turns.take(greedy).await.unwrap();
        assert_eq!(turns.workers.lock().unwrap().len(), 1, "who has none is forgotten");
    }
}
