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

/// What can happen to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEvent {
    /// Its jobs are known.
    Activate,
    /// Its file is wrong, or asks for what the farm does not have.
    Refuse {
        /// Every mistake that was found.
        diagnostics: Vec<Diagnostic>,
    },
    /// It is over.
    Finish {
        /// The sum of its jobs.
        verdict: Verdict,
        /// Why, where no job says it.
        reason: Option<String>,
    },
}

impl RunState {
    /// The state after an event; `None` when the event does not concern a run in this state.
    pub fn on(&self, event: RunEvent, now: Timestamp) -> Option<RunState> {
        match (self, event) {
            (RunState::Received | RunState::AwaitingApproval { .. }, RunEvent::Activate) => {
                Some(RunState::Active)
            }
            (RunState::Received | RunState::AwaitingApproval { .. }, RunEvent::Refuse { diagnostics }) => {
                Some(RunState::Refused { diagnostics, at: now })
            }
            (
                RunState::Received | RunState::AwaitingApproval { .. } | RunState::Active,
                RunEvent::Finish { verdict, reason },
            ) => Some(RunState::Finished { verdict, reason, at: now }),
            (RunState::Active, RunEvent::Activate | RunEvent::Refuse { .. })
            | (
                RunState::Refused { .. } | RunState::Finished { .. },
                RunEvent::Activate | RunEvent::Refuse { .. } | RunEvent::Finish { .. },
            ) => None,
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_state_and_event_is_as_the_table_says() {
        let now = Timestamp(1);
        let states = [
            RunState::Received,
            RunState::AwaitingApproval { since: now },
            RunState::Active,
            RunState::Refused { diagnostics: Vec::new(), at: now },
            RunState::Finished { verdict: Verdict::Passed, reason: None, at: now },
        ];
        let table = [
            ("received", ["active", "refused", "finished"]),
            ("awaiting_approval", ["active", "refused", "finished"]),
            ("active", ["-", "-", "finished"]),
            ("refused", ["-", "-", "-"]),
            ("finished", ["-", "-", "-"]),
        ];
        for (state, (name, row)) in states.iter().zip(table) {
            assert_eq!(state.name(), name);
            let events = [
                RunEvent::Activate,
                RunEvent::Refuse { diagnostics: Vec::new() },
                RunEvent::Finish { verdict: Verdict::Failed, reason: None },
            ];
            for (event, expected) in events.into_iter().zip(row) {
                let said = format!("{name} on {event:?}");
                assert_eq!(state.on(event, now).map_or("-", |after| after.name()), expected, "{said}");
            }
        }
    }
}
