//! The life of a run: Received, then Refused, AwaitingApproval or Active, then Finished.

use buildyard_types::job::Diagnostic;
use buildyard_types::worker::SourceRef;
use buildyard_types::{RunId, Timestamp, Verdict};
use serde::{Deserialize, Serialize};

/// One execution of a pipeline for one commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its number.
    pub id: RunId,
    /// The file that defines it, as a path in the repository.
    pub file: String,
    /// The pipeline's name; `None` until the file has been read.
    pub pipeline: Option<String>,
    /// What it builds.
    pub source: SourceRef,
    /// Who asked for it, as a clause: "triggered by admin".
    pub requested_by: String,
    /// The requester's own key: the same key again means this run and not another.
    pub key: Option<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// Where it is in its life.
    pub state: RunState,
}

/// Where a run is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RunState {
    /// Accepted; its commit has not been fetched or its file not been read.
    Received,
    /// Its file is wrong, or asks for what the farm does not have. Final.
    Refused {
        /// Every mistake that was found.
        diagnostics: Vec<Diagnostic>,
        /// When.
        at: Timestamp,
    },
    /// Its author is not trusted by himself; somebody must approve it. (Set by webhooks.)
    AwaitingApproval {
        /// Since when.
        since: Timestamp,
    },
    /// Its jobs are under way.
    Active,
    /// Every job is finished. Final.
    Finished {
        /// The sum of its jobs.
        verdict: Verdict,
        /// Why, where no job says it: "the commit could not be fetched: …".
        reason: Option<String>,
        /// When.
        at: Timestamp,
    },
}

impl RunState {
    /// Whether nothing will change any more.
    pub fn is_final(&self) -> bool {
        match self {
            RunState::Refused { .. } | RunState::Finished { .. } => true,
            RunState::Received | RunState::AwaitingApproval { .. } | RunState::Active => false,
        }
    }

    /// The name in the API and the store.
    pub fn name(&self) -> &'static str {
        match self {
            RunState::Received => "received",
            RunState::Refused { .. } => "refused",
            RunState::AwaitingApproval { .. } => "awaiting_approval",
            RunState::Active => "active",
            RunState::Finished { .. } => "finished",
        }
    }
}
