//! The life of a job: Waiting, Queued, Assigned, Running, Stopping, Finished.

use buildyard_types::{AttemptId, JobId, JobSpec, Outcome, Timestamp, WorkerId};
use serde::{Deserialize, Serialize};

/// A node of a run's graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its place in its run.
    pub id: JobId,
    /// What it is. Never changes.
    pub spec: JobSpec,
    /// Jobs of the same run that must pass first. Names of `spec.needs`, resolved.
    pub needs: Vec<JobId>,
    /// Where it is in its life.
    pub state: JobState,
    /// Attempts made so far.
    pub attempts: u32,
}

/// Where a job is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum JobState {
    /// Its gates are not all open: jobs that it needs are not finished.
    Waiting,
    /// Waiting for a worker.
    Queued {
        /// Its place in the order. A retry counts from its first placement, so that it goes before all jobs
        /// that were queued after that.
        since: Timestamp,
        /// Not to be placed before this (back-off after a farm fault).
        not_before: Timestamp,
    },
    /// Placed; the worker has not said that its first step began.
    Assigned {
        /// By which attempt.
        attempt: AttemptId,
        /// Where.
        worker: WorkerId,
    },
    /// Its steps run.
    Running {
        /// By which attempt.
        attempt: AttemptId,
        /// Where.
        worker: WorkerId,
        /// Since when.
        started: Timestamp,
    },
    /// Its worker was told to stop it.
    Stopping {
        /// Which attempt.
        attempt: AttemptId,
        /// Where.
        worker: WorkerId,
        /// How the job will end when the worker says that the attempt is gone.
        outcome: Outcome,
        /// When the attempt counts as ended if it has not, as a stop that was ignored.
        deadline: Timestamp,
    },
    /// Final.
    Finished {
        /// How it ended.
        outcome: Outcome,
        /// When its first attempt began its first step, if one did.
        started: Option<Timestamp>,
        /// When.
        ended: Timestamp,
    },
}

/// What can happen to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// Its gates are all open.
    Open,
    /// It was given to a worker.
    Place {
        /// As which attempt.
        attempt: AttemptId,
        /// To whom.
        worker: WorkerId,
    },
    /// Its first step began.
    Start {
        /// When.
        at: Timestamp,
    },
    /// It has to end, and its worker has to be told.
    Stop {
        /// How it will have ended.
        outcome: Outcome,
        /// When the attempt counts as ended if the worker has not answered.
        deadline: Timestamp,
    },
    /// The farm failed it, and it is tried again.
    Requeue {
        /// Its place in the order.
        since: Timestamp,
        /// Not before this.
        not_before: Timestamp,
    },
    /// It is over.
    Finish {
        /// How it ended.
        outcome: Outcome,
        /// When its first attempt began its first step, if one did.
        started: Option<Timestamp>,
    },
}

impl JobState {
    /// The state after an event; `None` when the event does not concern a job in this state, as a late report
    /// does not concern a finished one.
    pub fn on(&self, event: JobEvent, now: Timestamp) -> Option<JobState> {
        match (self, event) {
            (JobState::Waiting, JobEvent::Open) => Some(JobState::Queued { since: now, not_before: now }),
            (JobState::Queued { .. }, JobEvent::Place { attempt, worker }) => {
                Some(JobState::Assigned { attempt, worker })
            }
            (JobState::Assigned { attempt, worker }, JobEvent::Start { at }) => {
                Some(JobState::Running { attempt: *attempt, worker: *worker, started: at })
            }
            (
                JobState::Assigned { attempt, worker } | JobState::Running { attempt, worker, .. },
                JobEvent::Stop { outcome, deadline },
            ) => Some(JobState::Stopping { attempt: *attempt, worker: *worker, outcome, deadline }),
            // Stopped for a limit, and now somebody does not want it any more: it must not be tried again. The
            // worker knows of the stop already, so its deadline stays.
            (
                JobState::Stopping { attempt, worker, outcome: before, deadline },
                JobEvent::Stop { outcome, .. },
            ) if !before.is_cancelled() && outcome.is_cancelled() => {
                Some(JobState::Stopping { attempt: *attempt, worker: *worker, outcome, deadline: *deadline })
            }
            (
                JobState::Assigned { .. } | JobState::Running { .. } | JobState::Stopping { .. },
                JobEvent::Requeue { since, not_before },
            ) => Some(JobState::Queued { since, not_before }),
            (
                JobState::Waiting
                | JobState::Queued { .. }
                | JobState::Assigned { .. }
                | JobState::Running { .. }
                | JobState::Stopping { .. },
                JobEvent::Finish { outcome, started },
            ) => Some(JobState::Finished { outcome, started, ended: now }),
            (JobState::Waiting, JobEvent::Place { .. } | JobEvent::Start { .. })
            | (
                JobState::Waiting | JobState::Queued { .. },
                JobEvent::Stop { .. } | JobEvent::Requeue { .. },
            )
            | (JobState::Queued { .. }, JobEvent::Open | JobEvent::Start { .. })
            | (JobState::Assigned { .. }, JobEvent::Open | JobEvent::Place { .. })
            | (JobState::Running { .. }, JobEvent::Open | JobEvent::Place { .. } | JobEvent::Start { .. })
            | (
                JobState::Stopping { .. },
                JobEvent::Open | JobEvent::Place { .. } | JobEvent::Start { .. } | JobEvent::Stop { .. },
            )
            | (
                JobState::Finished { .. },
                JobEvent::Open
                | JobEvent::Place { .. }
                | JobEvent::Start { .. }
                | JobEvent::Stop { .. }
                | JobEvent::Requeue { .. }
                | JobEvent::Finish { .. },
            ) => None,
        }
    }

    /// How the job ends when its attempt ended with `reported`.
    ///
    /// A cancelled job is cancelled, whatever its last moments looked like. In the other cases the coordinator
    /// told the worker to stop because it had heard nothing for too long, and the worker knows better: the attempt
    /// may have passed long ago, or been killed by the farm, with the report still on its way.
    pub fn settles_as(&self, reported: &Outcome) -> Outcome {
        match self {
            JobState::Stopping { outcome, .. } if outcome.is_cancelled() || reported.is_cancelled() => {
                outcome.clone()
            }
            JobState::Stopping { .. } => reported.clone(),
            JobState::Waiting
            | JobState::Queued { .. }
            | JobState::Assigned { .. }
            | JobState::Running { .. }
            | JobState::Finished { .. } => reported.clone(),
        }
    }

    /// The attempt that holds the job now, and its worker.
    pub fn live(&self) -> Option<(AttemptId, WorkerId)> {
        match self {
            JobState::Assigned { attempt, worker }
            | JobState::Running { attempt, worker, .. }
            | JobState::Stopping { attempt, worker, .. } => Some((*attempt, *worker)),
            JobState::Waiting | JobState::Queued { .. } | JobState::Finished { .. } => None,
        }
    }

    /// The outcome, once final.
    pub fn outcome(&self) -> Option<&Outcome> {
        match self {
            JobState::Finished { outcome, .. } => Some(outcome),
            JobState::Waiting
            | JobState::Queued { .. }
            | JobState::Assigned { .. }
            | JobState::Running { .. }
            | JobState::Stopping { .. } => None,
        }
    }

    /// The name in the API and the store.
    pub fn name(&self) -> &'static str {
        match self {
            JobState::Waiting => "waiting",
            JobState::Queued { .. } => "queued",
            JobState::Assigned { .. } => "assigned",
            JobState::Running { .. } => "running",
            JobState::Stopping { .. } => "stopping",
            JobState::Finished { .. } => "finished",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildyard_types::outcome::{InfraCause, TimeLimit};
    use buildyard_types::{Millis, RunId};

    const NOW: Timestamp = Timestamp(1_000);

    fn attempt() -> AttemptId {
        RunId(1).job(0).attempt(1)
    }

    fn infra() -> Outcome {
        Outcome::Infra { cause: InfraCause::Engine, detail: String::new() }
    }

    fn cancelled() -> Outcome {
        Outcome::Cancelled { by: "by admin".into() }
    }

    fn stopping(outcome: Outcome) -> JobState {
        JobState::Stopping { attempt: attempt(), worker: WorkerId(7), outcome, deadline: Timestamp(9) }
    }

    fn states() -> Vec<JobState> {
        let (attempt, worker) = (attempt(), WorkerId(7));
        vec![
            JobState::Waiting,
            JobState::Queued { since: NOW, not_before: NOW },
            JobState::Assigned { attempt, worker },
            JobState::Running { attempt, worker, started: NOW },
            stopping(cancelled()),
            JobState::Finished { outcome: Outcome::Passed, started: None, ended: NOW },
        ]
    }

    fn events() -> Vec<(&'static str, JobEvent)> {
        let (attempt, worker) = (attempt(), WorkerId(7));
        vec![
            ("open", JobEvent::Open),
            ("place", JobEvent::Place { attempt, worker }),
            ("start", JobEvent::Start { at: NOW }),
            ("stop", JobEvent::Stop { outcome: cancelled(), deadline: NOW }),
            ("requeue", JobEvent::Requeue { since: NOW, not_before: NOW }),
            ("finish", JobEvent::Finish { outcome: Outcome::Passed, started: None }),
        ]
    }

    /// The whole machine as a table: state, event, state after it (`-`: nothing).
    #[test]
    fn every_pair_of_state_and_event_is_as_the_table_says() {
        let table = [
            ("waiting", ["queued", "-", "-", "-", "-", "finished"]),
            ("queued", ["-", "assigned", "-", "-", "-", "finished"]),
            ("assigned", ["-", "-", "running", "stopping", "queued", "finished"]),
            ("running", ["-", "-", "-", "stopping", "queued", "finished"]),
            ("stopping", ["-", "-", "-", "-", "queued", "finished"]),
            ("finished", ["-", "-", "-", "-", "-", "-"]),
        ];
        for (state, (name, row)) in states().iter().zip(table) {
            assert_eq!(state.name(), name);
            for ((event_name, event), expected) in events().into_iter().zip(row) {
                let after = state.on(event, NOW).map_or("-", |after| after.name());
                assert_eq!(after, expected, "{name} on {event_name}");
            }
        }
    }

    #[test]
    fn a_cancel_takes_the_place_of_a_stop_that_would_have_been_tried_again() {
        let stop = JobEvent::Stop { outcome: cancelled(), deadline: Timestamp(99) };
        let after = stopping(infra()).on(stop, NOW);
        assert_eq!(after, Some(stopping(cancelled())), "the outcome is new, the deadline is not");
    }

    #[test]
    fn a_stop_by_the_farm_does_not_take_the_place_of_a_cancel() {
        let stop = JobEvent::Stop { outcome: infra(), deadline: NOW };
        assert_eq!(stopping(cancelled()).on(stop, NOW), None);
    }

    #[test]
    fn a_cancelled_job_is_cancelled_whatever_the_worker_saw() {
        for reported in [Outcome::Passed, infra()] {
            assert_eq!(stopping(cancelled()).settles_as(&reported), cancelled());
        }
    }

    /// Found by the simulation: answers were lost and calls were not, so the worker fenced the attempt and could
    /// not say so. The coordinator's own limit passed, and a fault of the farm turned the commit red.
    #[test]
    fn a_worker_knows_better_than_a_limit_that_passed_unheard() {
        let limit = Outcome::TimedOut { limit: TimeLimit::Job, after_ms: Millis(5) };
        let stopping = stopping(limit.clone());
        for reported in [infra(), Outcome::Passed, limit.clone()] {
            assert_eq!(stopping.settles_as(&reported), reported);
        }
        assert_eq!(stopping.settles_as(&cancelled()), limit, "nobody cancelled it");
    }

    #[test]
    fn a_job_that_was_not_told_to_stop_ends_as_reported() {
        let running = JobState::Running { attempt: attempt(), worker: WorkerId(7), started: NOW };
        assert_eq!(running.settles_as(&infra()), infra());
    }
}
