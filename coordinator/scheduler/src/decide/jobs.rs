//! Jobs and their attempts: gates open, ends, farm faults, stops.

use std::collections::VecDeque;

use buildyard_types::worker::EndReport;
use buildyard_types::{AttemptId, JobId, Millis, Outcome, Timestamp};

use super::Deciding;
use crate::input::{Rejection, Reply};
use crate::lifecycle::attempt::AttemptEvent;
use crate::lifecycle::job::{JobEvent, JobState};
use crate::record::Record;
use crate::retry::{self, Next};

impl Deciding<'_> {
    pub(super) fn cancel_job(&mut self, job: JobId, by: String) -> Reply {
        let Some(known) = self.state.jobs.get(&job) else {
            return Reply::Rejected(self.no_job(job));
        };
        if known.state.outcome().is_some() {
            return Reply::Rejected(Rejection::AlreadyFinished(job.to_string()));
        }
        self.stop_job(job, Outcome::Cancelled { by });
        Reply::Done
    }

    fn no_job(&self, job: JobId) -> Rejection {
        if !self.state.runs.contains_key(&job.run) && self.was_given(job.run) {
            Rejection::AlreadyFinished(job.to_string())
        } else {
            Rejection::NoJob(job)
        }
    }

    /// Moves a job on. Says whether the event concerned it.
    pub(super) fn job_event(&mut self, job: JobId, event: JobEvent) -> bool {
        let after = self.state.jobs.get(&job).and_then(|known| known.state.on(event, self.now));
        match after {
            Some(state) => {
                self.push(Record::JobChanged { job, state });
                true
            }
            None => false,
        }
    }

    /// Ends a job that no worker holds, or has its worker told to end it.
    pub(super) fn stop_job(&mut self, job: JobId, outcome: Outcome) {
        let Some(known) = self.state.jobs.get(&job) else {
            return;
        };
        match &known.state {
            JobState::Waiting | JobState::Queued { .. } => self.finish_job(job, outcome),
            JobState::Assigned { .. } | JobState::Running { .. } | JobState::Stopping { .. } => {
                let deadline = retry::stop_deadline(&self.state.settings, self.now);
                self.job_event(job, JobEvent::Stop { outcome, deadline });
            }
            JobState::Finished { .. } => {}
        }
    }

    /// Finishes a job, and with it whatever waited for it in vain; opens the gates of whatever did not.
    pub(super) fn finish_job(&mut self, job: JobId, outcome: Outcome) {
        let mut over = VecDeque::from([(job, outcome)]);
        while let Some((job, outcome)) = over.pop_front() {
            let passed = outcome == Outcome::Passed;
            let reason = not_passed(self.state.jobs.get(&job).map_or("", |known| &known.spec.name), &outcome);
            let started = self.first_start(job);
            if !self.job_event(job, JobEvent::Finish { outcome, started }) {
                continue;
            }
            let dependents = self.state.index.dependents.get(&job).cloned().unwrap_or_default();
            for dependent in dependents {
                if !passed {
                    over.push_back((dependent, Outcome::Skipped { reason: reason.clone() }));
                } else if self.needs_passed(dependent) {
                    self.job_event(dependent, JobEvent::Open);
                }
            }
        }
        self.finish_run(job.run);
    }

    fn needs_passed(&self, job: JobId) -> bool {
        let passed = |need: &JobId| {
            self.state.jobs.get(need).is_some_and(|need| need.state.outcome() == Some(&Outcome::Passed))
        };
        self.state.jobs.get(&job).is_some_and(|job| job.needs.iter().all(passed))
    }

    /// When the first attempt of a job began its first step.
    pub(super) fn first_start(&self, job: JobId) -> Option<Timestamp> {
        self.state.attempts_at(job).filter_map(|attempt| attempt.started_at).min()
    }

    /// Ends an attempt, and finishes its job or queues it again. `settle_ms`: how long something of the attempt
    /// may still run.
    pub(super) fn end_attempt(
        &mut self,
        attempt: AttemptId,
        report: EndReport,
        removed: bool,
        outcome: Outcome,
        settle_ms: Millis,
    ) {
        let event = AttemptEvent::End { report, removed };
        let after = self.state.attempts.get(&attempt).and_then(|known| known.state.on(event, self.now));
        let Some(state) = after else {
            return;
        };
        self.push(Record::AttemptChanged { attempt, state });
        let job = attempt.job;
        let attempts = self.state.jobs.get(&job).map_or(0, |known| known.attempts);
        match retry::after(outcome, attempts, settle_ms, &self.state.settings, self.now) {
            Next::Finish(outcome) => self.finish_job(job, outcome),
            Next::Retry { not_before } => {
                let first = self.state.attempts_at(job).next();
                let since = first.map_or(self.now, |first| first.placed_at);
                self.job_event(job, JobEvent::Requeue { since, not_before });
            }
        }
    }

    /// Nothing is left of an attempt on its worker.
    pub(super) fn remove_attempt(&mut self, attempt: AttemptId) {
        let after = self.state.attempts.get(&attempt);
        if let Some(state) = after.and_then(|known| known.state.on(AttemptEvent::Remove, self.now)) {
            self.push(Record::AttemptChanged { attempt, state });
        }
    }
}

/// Why a dependent is skipped, as a clause.
fn not_passed(job: &str, outcome: &Outcome) -> String {
    let became = match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed { .. } => "failed",
        Outcome::TimedOut { .. } => "timed out",
        Outcome::OutOfMemory { .. } => "ran out of memory",
        Outcome::DiskQuota { .. } => "filled its disk quota",
        Outcome::LogCap { .. } => "filled its log",
        Outcome::Cancelled { .. } => "was cancelled",
        Outcome::Skipped { .. } => "was skipped",
        Outcome::Refused { .. } => "was refused",
        Outcome::Infra { .. } => "could not be finished by the farm",
    };
    format!("job `{job}` {became}")
}
