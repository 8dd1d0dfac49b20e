//! What the session is told, and what it says to do.

use buildyard_types::worker::{AttemptOrder, EndReport, StopCause, SyncResponse};
use buildyard_types::{AttemptId, Millis, Timestamp};
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
    /// The end of an attempt is judged: nothing of it runs any more. The rest of its log and its artifacts are
    /// still to be sent.
    Judged {
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
#[expect(clippy::large_enum_variant, reason = "a handful of them live for as long as it takes to do them")]
pub enum Action {
    /// Write the order to the journal, sync it, remove whatever an earlier life of this worker left under the
    /// attempt's name, then begin the attempt. Its steps begin only while [`crate::Session::may_start`] holds.
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
    /// Tell the attempt's init that the worker speaks for a live lease until `until`: hearing nothing newer, it
    /// stops the steps then.
    KeepAlive {
        /// Which.
        attempt: AttemptId,
        /// End of the lease less the margin, by the worker's monotonic clock.
        until: Timestamp,
    },
    /// The lease is about to run out: the attempt's steps have to be killed now, without TERM and grace.
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
    /// Nothing of it runs any more; its log and artifacts are being sent. It needs no lease.
    Sending,
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
