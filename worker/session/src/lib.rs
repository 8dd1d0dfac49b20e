//! What a worker does about desired state, exits and silence, as functions over values.
//!
//! A [`Session`] holds every attempt of one worker and what is known of it. It is told what happened
//! ([`Event`]) and says what to do ([`Action`]); the worker's shell does it and reports back. It knows no
//! Docker, no HTTP and no clock, so that the simulation runs the very same code beside the scheduler.

use std::collections::BTreeMap;

use buildyard_types::worker::{AttemptOrder, AttemptReport, EndReport, StopCause, SyncResponse};
use buildyard_types::{AttemptId, Fence, Millis, Timestamp};
use serde::{Deserialize, Serialize};

/// What the worker's journal holds of an attempt: written and synced before anything of it is made, so that a
/// restarted worker can tell what is its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// What was ordered.
    pub order: AttemptOrder,
    /// How it ended, once log and artifacts are with the coordinator.
    pub ended: Option<EndReport>,
}

/// Something that happened on the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The coordinator answered a call that was sent at `sent`. The lease counts from there.
    Answered {
        /// When the call was sent, by the monotonic clock.
        sent: Timestamp,
        /// What to do.
        response: SyncResponse,
    },
    /// The first step of an attempt began.
    Started {
        /// Which.
        attempt: AttemptId,
    },
    /// An attempt ended, and its log and artifacts are with the coordinator (or were refused as stale).
    Ended {
        /// Which.
        attempt: AttemptId,
        /// How.
        report: EndReport,
    },
    /// Container, network, volumes and workspace of an attempt are gone.
    Removed {
        /// Which.
        attempt: AttemptId,
    },
    /// Only time passed.
    Tick,
}

/// Something that the shell must do. Each is safe to do twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write the order to the journal, sync it, then begin the attempt.
    Begin {
        /// What to do.
        order: AttemptOrder,
    },
    /// End the attempt: TERM, and KILL after the grace.
    Stop {
        /// Which.
        attempt: AttemptId,
        /// Why.
        cause: StopCause,
        /// Between TERM and KILL.
        grace_ms: Millis,
    },
    /// Tell the attempt's init that the worker speaks for a live lease until `until`.
    KeepAlive {
        /// Which.
        attempt: AttemptId,
        /// End of the lease, by the worker's monotonic clock.
        until: Timestamp,
    },
    /// The lease ran out: the attempt's steps have to be dead now, whatever else.
    Fence {
        /// Which.
        attempt: AttemptId,
    },
    /// Drop the attempt from journal and spool.
    Forget {
        /// Which.
        attempt: AttemptId,
    },
    /// Call `sync` now: there is news.
    SyncNow,
}

/// Where an attempt is on this worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Begun; no step yet.
    Preparing,
    /// Steps run since then.
    Running {
        /// By the monotonic clock.
        since: Timestamp,
    },
    /// Told to stop.
    Stopping {
        /// Why.
        cause: StopCause,
    },
    /// Ended; what is left of it is being removed, or is.
    Ended {
        /// How.
        report: Box<EndReport>,
        /// Whether nothing is left.
        removed: bool,
        /// Whether the coordinator has the end on record.
        on_record: bool,
    },
}

/// Every attempt of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Session {
    attempts: BTreeMap<AttemptId, (Fence, Held)>,
    lease_until: Option<Timestamp>,
}

impl Session {
    /// Takes up what the journal holds. Entries without an end are being re-adopted: they count as preparing
    /// until the shell says otherwise.
    pub fn adopt(_entries: impl IntoIterator<Item = JournalEntry>) -> Self {
        Self::default()
    }

    /// Takes note of an event and says what to do about it, in this order.
    pub fn on(&mut self, _event: Event, _now: Timestamp) -> Vec<Action> {
        Vec::new()
    }

    /// What to tell the coordinator.
    pub fn report(&self, _now: Timestamp) -> Vec<AttemptReport> {
        Vec::new()
    }

    /// Every attempt that is held.
    pub fn attempts(&self) -> &BTreeMap<AttemptId, (Fence, Held)> {
        &self.attempts
    }

    /// The next moment at which the session wants [`Event::Tick`]: when the lease is about to end.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        None
    }

    /// Whether the steps of an attempt may begin now: it is preparing, and its lease is live. The shell asks
    /// right before it hands the job to init, also after a restart.
    pub fn may_start(&self, _attempt: AttemptId, _now: Timestamp) -> bool {
        false
    }

    /// When the lease of the attempts ends; `None` before the first answer.
    pub fn lease_until(&self) -> Option<Timestamp> {
        self.lease_until
    }
}
