//! Wakes the readers of a log when there is more of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use buildyard_types::AttemptId;
use tokio::sync::watch;

/// One signal per attempt that somebody follows; so the map is bounded by the number of open streams.
#[derive(Debug, Default, Clone)]
pub(crate) struct LogSignals {
    followed: Arc<Mutex<HashMap<AttemptId, watch::Sender<()>>>>,
}

/// Wakes one reader.
pub(crate) struct LogSignal {
    changed: watch::Receiver<()>,
    signals: LogSignals,
    attempt: AttemptId,
}

impl LogSignals {
    /// Begins to listen. What is added to the log from here on wakes the reader.
    pub(crate) fn listen(&self, attempt: AttemptId) -> LogSignal {
        let mut followed = self.lock();
        let sender = followed.entry(attempt).or_insert_with(|| watch::channel(()).0);
        LogSignal { changed: sender.subscribe(), signals: self.clone(), attempt }
    }

    /// There is more of this log, or it is finished, or its attempt ended.
    pub(crate) fn wake(&self, attempt: AttemptId) {
        if let Some(sender) = self.lock().get(&attempt) {
            sender.send_replace(());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AttemptId, watch::Sender<()>>> {
        // A panic while it was held cannot have left the map half changed.
        self.followed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl LogSignal {
    /// Waits for the next change.
    pub(crate) async fn changed(&mut self) {
        // The sender lives in the map as long as this does.
        let _ = self.changed.changed().await;
    }
}

impl Drop for LogSignal {
    fn drop(&mut self) {
        let mut followed = self.signals.lock();
        if followed.get(&self.attempt).is_some_and(|sender| sender.receiver_count() <= 1) {
            followed.remove(&self.attempt);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildyard_types::RunId;

    #[tokio::test]
    async fn a_change_before_the_wait_is_not_lost_and_nothing_stays_behind() {
        let signals = LogSignals::default();
        let attempt = RunId(1).job(0).attempt(1);
        let mut one = signals.listen(attempt);
        let two = signals.listen(attempt);
        signals.wake(attempt);
        one.changed().await;
        drop(two);
        assert_eq!(signals.lock().len(), 1);
        drop(one);
        assert_eq!(signals.lock().len(), 0);
        signals.wake(attempt);
    }
}
