//! Held sync calls: one per worker, answered by news, by a newer call, or by time.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_types::worker::{AttemptReport, SessionId, SyncRequest, SyncResponse};
use buildyard_types::{Millis, Timestamp, WorkerId};
use tokio::sync::oneshot;

use super::DriverError;

pub(super) type SyncAnswer = oneshot::Sender<Result<SyncResponse, DriverError>>;

/// What a held call said.
#[derive(Debug)]
pub(super) struct Reported {
    /// The worker's session.
    pub(super) session: SessionId,
    /// Number of the call in it.
    pub(super) sequence: u64,
    /// How long the worker can wait for its answer.
    pub(super) hold_ms: Millis,
    /// What it holds.
    pub(super) attempts: Vec<AttemptReport>,
}

impl Reported {
    /// Calls of one worker in the order in which it made them.
    pub(super) fn order(&self) -> (SessionId, u64) {
        (self.session, self.sequence)
    }
}

impl From<SyncRequest> for Reported {
    fn from(request: SyncRequest) -> Self {
        let SyncRequest { session, sequence, hold_ms, attempts, protocol: _, offer: _ } = request;
        Self { session, sequence, hold_ms, attempts }
    }
}

/// A call that waits for news.
#[derive(Debug)]
pub(super) struct Hold {
    /// What the worker said; looked at again when something of the worker changed.
    pub(super) reported: Reported,
    /// What to say if nothing happens.
    pub(super) idle: SyncResponse,
    /// When to say it.
    pub(super) until: Timestamp,
    /// Where to say it.
    pub(super) answer: SyncAnswer,
}

/// The held calls. At most one per worker, so they are bounded by the number of workers.
#[derive(Debug, Default)]
pub(super) struct Holds {
    by_worker: BTreeMap<WorkerId, Hold>,
    by_time: BTreeSet<(Timestamp, WorkerId)>,
}

impl Holds {
    /// Holds a call. The worker's older call, if one is held, is answered at once.
    pub(super) fn hold(&mut self, worker: WorkerId, hold: Hold) {
        self.release(worker);
        self.by_time.insert((hold.until, worker));
        self.by_worker.insert(worker, hold);
    }

    /// Takes a worker's call out.
    pub(super) fn take(&mut self, worker: WorkerId) -> Option<Hold> {
        let hold = self.by_worker.remove(&worker)?;
        self.by_time.remove(&(hold.until, worker));
        Some(hold)
    }

    /// Answers a worker's call with nothing new.
    pub(super) fn release(&mut self, worker: WorkerId) {
        if let Some(hold) = self.take(worker) {
            // The caller may have gone away meanwhile; then nobody is to be told.
            let _ = hold.answer.send(Ok(hold.idle));
        }
    }

    /// What a worker's held call said.
    pub(super) fn reported(&self, worker: WorkerId) -> Option<&Reported> {
        self.by_worker.get(&worker).map(|hold| &hold.reported)
    }

    /// Answers every call whose time has come.
    pub(super) fn release_due(&mut self, now: Timestamp) {
        while let Some((until, worker)) = self.by_time.first().copied()
            && until <= now
        {
            self.release(worker);
        }
    }

    /// Answers every call with a refusal.
    pub(super) fn refuse_all(&mut self, error: &DriverError) {
        self.by_time.clear();
        for (_, hold) in std::mem::take(&mut self.by_worker) {
            let _ = hold.answer.send(Err(error.clone()));
        }
    }

    /// When the next call has to be answered.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(until, _)| *until)
    }

    /// How many are held.
    pub(super) fn len(&self) -> usize {
        self.by_worker.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn hold(sequence: u64, until: u64) -> (Hold, oneshot::Receiver<Result<SyncResponse, DriverError>>) {
        let (answer, receiver) = oneshot::channel();
        let reported = Reported {
            session: SessionId { number: 1, nonce: 0 },
            sequence,
            hold_ms: Millis(0),
            attempts: Vec::new(),
        };
        let idle = SyncResponse {
            lease_ms: Millis(sequence),
            run: Vec::new(),
            stop: Vec::new(),
            forget: Vec::new(),
        };
        (Hold { reported, idle, until: Timestamp(until), answer }, receiver)
    }

    #[test]
    fn a_newer_call_answers_the_older_at_once() {
        let mut holds = Holds::default();
        let (older, mut first) = hold(1, 100);
        let (newer, mut second) = hold(2, 50);
        holds.hold(WorkerId(1), older);
        holds.hold(WorkerId(1), newer);
        assert_eq!(first.try_recv().unwrap().unwrap().lease_ms, Millis(1));
        assert!(second.try_recv().is_err());
        assert_eq!(holds.next_due(), Some(Timestamp(50)));
        holds.release_due(Timestamp(49));
        assert_eq!(holds.len(), 1);
        holds.release_due(Timestamp(50));
        assert_eq!(second.try_recv().unwrap().unwrap().lease_ms, Millis(2));
        assert_eq!(holds.next_due(), None);
    }

    #[test]
    fn a_shutdown_refuses_every_held_call() {
        let mut holds = Holds::default();
        let (call, mut receiver) = hold(1, 100);
        holds.hold(WorkerId(7), call);
        holds.refuse_all(&DriverError::Stopping);
        assert!(matches!(receiver.try_recv().unwrap(), Err(DriverError::Stopping)));
        assert_eq!((holds.len(), holds.next_due()), (0, None));
    }
}
