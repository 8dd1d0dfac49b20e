//! The life of an attempt: Live (with its job's Assigned, Running, Stopping), Ended, Removed.

use buildyard_types::worker::EndReport;
use buildyard_types::{AttemptId, Fence, Timestamp, WorkerId};
use serde::{Deserialize, Serialize};

/// One placement of a job on one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which.
    pub id: AttemptId,
    /// Where.
    pub worker: WorkerId,
    /// Carried by every write of the worker about it.
    pub fence: Fence,
    /// When it was placed.
    pub placed_at: Timestamp,
    /// When its first step began.
    pub started_at: Option<Timestamp>,
    /// Where it is in its life.
    pub state: AttemptState,
}

/// Where an attempt is in its life. Assigned, Running and Stopping are told apart by its job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum AttemptState {
    /// Holds its job. Its fence is good: writes are accepted.
    Live,
    /// Ended, by the worker's report or by the farm's decision. Its fence is stale from here on.
    /// It holds its share of the worker until the worker says that everything of it is gone.
    Ended {
        /// How.
        report: EndReport,
        /// When.
        at: Timestamp,
    },
    /// Nothing of it is left on the worker. Final.
    Removed {
        /// How it ended.
        report: EndReport,
        /// When it ended.
        at: Timestamp,
    },
}

impl AttemptState {
    /// How it ended, once it has.
    pub fn report(&self) -> Option<&EndReport> {
        match self {
            AttemptState::Live => None,
            AttemptState::Ended { report, .. } | AttemptState::Removed { report, .. } => Some(report),
        }
    }

    /// The name in the store.
    pub fn name(&self) -> &'static str {
        match self {
            AttemptState::Live => "live",
            AttemptState::Ended { .. } => "ended",
            AttemptState::Removed { .. } => "removed",
        }
    }
}
