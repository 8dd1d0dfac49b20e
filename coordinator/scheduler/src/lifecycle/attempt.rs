//! The life of an attempt: Live (with its job's Assigned, Running, Stopping), Ended, Removed.

use buildyard_types::worker::{EndReport, Usage};
use buildyard_types::{AttemptId, Fence, Outcome, Timestamp, WorkerId};
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

/// What can happen to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptEvent {
    /// It ended.
    End {
        /// How.
        report: EndReport,
        /// Whether nothing is left of it.
        removed: bool,
    },
    /// Nothing is left of it.
    Remove,
}

impl AttemptState {
    /// The state after an event; `None` when it changes nothing: the first end of an attempt is its end.
    pub fn on(&self, event: AttemptEvent, now: Timestamp) -> Option<AttemptState> {
        match (self, event) {
            (AttemptState::Live, AttemptEvent::End { report, removed: false }) => {
                Some(AttemptState::Ended { report, at: now })
            }
            (AttemptState::Live, AttemptEvent::End { report, removed: true }) => {
                Some(AttemptState::Removed { report, at: now })
            }
            (
                AttemptState::Ended { report, at },
                AttemptEvent::Remove | AttemptEvent::End { removed: true, .. },
            ) => Some(AttemptState::Removed { report: report.clone(), at: *at }),
            // A live attempt ends first: something that may still run is never taken for gone.
            (AttemptState::Live, AttemptEvent::Remove)
            | (AttemptState::Ended { .. }, AttemptEvent::End { removed: false, .. })
            | (AttemptState::Removed { .. }, AttemptEvent::End { .. } | AttemptEvent::Remove) => None,
        }
    }

    /// Whether it holds its job.
    pub fn is_live(&self) -> bool {
        match self {
            AttemptState::Live => true,
            AttemptState::Ended { .. } | AttemptState::Removed { .. } => false,
        }
    }

    /// Whether nothing of it is left on its worker.
    pub fn is_removed(&self) -> bool {
        match self {
            AttemptState::Removed { .. } => true,
            AttemptState::Live | AttemptState::Ended { .. } => false,
        }
    }

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

/// The report of an attempt whose end the coordinator decided by itself.
pub fn decided_end(outcome: Outcome) -> EndReport {
    EndReport { outcome, steps: Vec::new(), usage: Usage::default(), notes: Vec::new(), image_digest: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(note: &str) -> EndReport {
        EndReport { notes: vec![note.into()], ..decided_end(Outcome::Passed) }
    }

    fn end(note: &str, removed: bool) -> AttemptEvent {
        AttemptEvent::End { report: report(note), removed }
    }

    #[test]
    fn an_attempt_ends_once_and_keeps_its_first_report() {
        let (t1, t2) = (Timestamp(1), Timestamp(2));
        let ended = AttemptState::Live.on(end("first", false), t1).expect("live attempts end");
        assert_eq!(ended, AttemptState::Ended { report: report("first"), at: t1 });
        assert_eq!(ended.on(end("second", false), t2), None, "a late report changes nothing");
        let removed = AttemptState::Removed { report: report("first"), at: t1 };
        assert_eq!(ended.on(end("second", true), t2), Some(removed.clone()));
        assert_eq!(ended.on(AttemptEvent::Remove, t2), Some(removed.clone()));
        assert_eq!(removed.on(end("third", true), t2), None);
        assert_eq!(removed.on(AttemptEvent::Remove, t2), None);
    }

    #[test]
    fn a_live_attempt_is_not_taken_for_gone() {
        assert_eq!(AttemptState::Live.on(AttemptEvent::Remove, Timestamp(1)), None);
    }

    #[test]
    fn an_attempt_may_end_and_be_gone_at_once() {
        let removed = AttemptState::Live.on(end("only", true), Timestamp(1));
        assert_eq!(removed, Some(AttemptState::Removed { report: report("only"), at: Timestamp(1) }));
    }
}
