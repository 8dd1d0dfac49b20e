//! What a worker should do, measured against what it says that it holds.
//!
//! A function of the state: losing, repeating or reordering calls and answers changes nothing, since the next
//! answer is computed anew.

use std::collections::BTreeMap;

use buildyard_types::outcome::TimeLimit;
use buildyard_types::worker::{
    AttemptOrder, AttemptProgress, AttemptReport, StopCause, StopOrder, SyncResponse,
};
use buildyard_types::{AttemptId, Outcome, WorkerId};

use crate::core::Answer;
use crate::lifecycle::attempt::{Attempt, AttemptState};
use crate::lifecycle::job::JobState;
use crate::state::State;

/// The answer to a call of `worker` that reported `reported`.
pub(crate) fn answer(state: &State, worker: WorkerId, reported: &[AttemptReport]) -> Answer {
    let listed: BTreeMap<AttemptId, &AttemptReport> =
        reported.iter().map(|report| (report.attempt, report)).collect();
    let mut response = SyncResponse {
        lease_ms: state.settings.lease_ms,
        run: Vec::new(),
        stop: Vec::new(),
        forget: Vec::new(),
    };
    for attempt in state.held(worker) {
        match &attempt.state {
            AttemptState::Live => live(state, attempt, listed.get(&attempt.id).copied(), &mut response),
            AttemptState::Ended { .. } | AttemptState::Removed { .. } => {}
        }
    }
    response.run.sort_by_key(|order| order.fence);
    let mut drops = false;
    for report in listed.values() {
        if !is_live(state, worker, report) {
            drops |= not_live(state, report, &mut response);
        }
    }
    let idle = response.run.is_empty() && response.stop.is_empty() && !drops;
    Answer { response, idle }
}

/// Whether a report speaks of an attempt that holds its job, on this worker, under this fence.
fn is_live(state: &State, worker: WorkerId, report: &AttemptReport) -> bool {
    state.attempts.get(&report.attempt).is_some_and(|attempt| {
        attempt.worker == worker && attempt.fence == report.fence && attempt.state.is_live()
    })
}

fn live(state: &State, attempt: &Attempt, listed: Option<&AttemptReport>, response: &mut SyncResponse) {
    let Some(job) = state.jobs.get(&attempt.id.job) else {
        return;
    };
    match &job.state {
        // Listed under another fence, it has to be gone from the worker before it is ordered anew.
        JobState::Assigned { .. } if listed.is_none() => response.run.extend(order(state, attempt)),
        JobState::Stopping { outcome, .. } => {
            let knows = listed.is_some_and(|report| match report.state {
                AttemptProgress::Preparing | AttemptProgress::Running { .. } => report.fence != attempt.fence,
                // It runs no more; only that nobody will take what it sends is news to it.
                AttemptProgress::Sending => stop_cause(outcome) != StopCause::Revoked,
                AttemptProgress::Stopping | AttemptProgress::Ended { .. } => true,
            });
            if !knows {
                response.stop.push(stop(state, attempt, stop_cause(outcome)));
            }
        }
        JobState::Waiting
        | JobState::Queued { .. }
        | JobState::Assigned { .. }
        | JobState::Running { .. }
        | JobState::Finished { .. } => {}
    }
}

/// An attempt that is not (or no more) the worker's. Says whether the worker has something to drop by it.
fn not_live(state: &State, report: &AttemptReport, response: &mut SyncResponse) -> bool {
    match &report.state {
        AttemptProgress::Preparing | AttemptProgress::Running { .. } | AttemptProgress::Sending => {
            response.stop.push(StopOrder {
                attempt: report.attempt,
                fence: report.fence,
                cause: StopCause::Revoked,
                grace_ms: state.settings.stop_grace_ms,
            });
            false
        }
        AttemptProgress::Stopping => false,
        AttemptProgress::Ended { removed, .. } => {
            response.forget.push(report.attempt);
            // Until everything of it is gone the worker keeps it anyway: no news, or the call would be
            // answered at once again and again while the worker cleans up.
            *removed
        }
    }
}

fn order(state: &State, attempt: &Attempt) -> Option<AttemptOrder> {
    let job = state.jobs.get(&attempt.id.job)?;
    let run = state.runs.get(&attempt.id.run())?;
    Some(AttemptOrder {
        attempt: attempt.id,
        fence: attempt.fence,
        spec: job.spec.clone(),
        source: run.source.clone(),
        pipeline: run.pipeline.clone().unwrap_or_else(|| run.file.clone()),
        log_cap: state.settings.log_cap,
    })
}

fn stop(state: &State, attempt: &Attempt, cause: StopCause) -> StopOrder {
    let grace_ms = state.settings.stop_grace_ms;
    StopOrder { attempt: attempt.id, fence: attempt.fence, cause, grace_ms }
}

fn stop_cause(outcome: &Outcome) -> StopCause {
    match outcome {
        Outcome::Cancelled { by } => StopCause::Cancelled { by: by.clone() },
        Outcome::TimedOut { limit: TimeLimit::Job | TimeLimit::Step { .. } | TimeLimit::Queue, after_ms } => {
            StopCause::TimedOut { after_ms: *after_ms }
        }
        Outcome::Passed
        | Outcome::Failed { .. }
        | Outcome::OutOfMemory { .. }
        | Outcome::DiskQuota { .. }
        | Outcome::LogCap { .. }
        | Outcome::Skipped { .. }
        | Outcome::Refused { .. }
        | Outcome::Infra { .. } => StopCause::Revoked,
    }
}
