//! What is due though nobody says so: leases, limits, back-offs, deadlines.

use buildyard_types::outcome::{InfraCause, TimeLimit};
use buildyard_types::{AttemptId, JobId, Millis, Outcome, WorkerId};

use super::Deciding;
use crate::index::timers::Due;
use crate::lifecycle::attempt::decided_end;
use crate::lifecycle::job::JobState;
use crate::lifecycle::worker::Liveness;
use crate::retry;

impl Deciding<'_> {
    pub(super) fn everything_due(&mut self) {
        while let Some(due) = self.state.index.timers.take_due(self.now) {
            match due {
                Due::Job(job) => self.job_due(job),
                Due::Worker(worker) => self.worker_due(worker),
            }
        }
    }

    fn job_due(&mut self, job: JobId) {
        let Some(known) = self.state.jobs.get(&job) else {
            return;
        };
        let spec = &known.spec;
        match known.state.clone() {
            JobState::Queued { .. } if self.state.index.queue.is_delayed(job) => {
                self.state.index.job_released(known, &self.state.attempts, &self.state.settings);
            }
            JobState::Queued { .. } => {
                let after_ms = spec.queue_timeout_ms;
                self.finish_job(job, Outcome::TimedOut { limit: TimeLimit::Queue, after_ms });
            }
            JobState::Assigned { attempt, worker } | JobState::Running { attempt, worker, .. }
                if self.state.index.sends(attempt) =>
            {
                let name = self.worker_name(worker);
                let after = self.state.settings.send_limit_ms;
                let detail = format!("{name} did not send log and artifacts within {after}");
                self.stop_job(job, Outcome::Infra { cause: InfraCause::Worker, detail });
            }
            JobState::Assigned { worker, .. } => {
                let name = self.worker_name(worker);
                let after = self.state.settings.prepare_limit_ms;
                let detail = format!("{name} did not begin the first step within {after}");
                self.stop_job(job, Outcome::Infra { cause: InfraCause::Worker, detail });
            }
            JobState::Running { .. } => {
                let after_ms = spec.timeout_ms;
                self.stop_job(job, Outcome::TimedOut { limit: TimeLimit::Job, after_ms });
            }
            JobState::Stopping { attempt, worker, .. } => self.stop_ignored(attempt, worker),
            JobState::Waiting | JobState::Finished { .. } => {}
        }
    }

    fn stop_ignored(&mut self, attempt: AttemptId, worker: WorkerId) {
        let name = self.worker_name(worker);
        let detail = format!("{name} did not stop the attempt when it was told to");
        let ignored = Outcome::Infra { cause: InfraCause::StopIgnored, detail };
        let outcome = match self.state.jobs.get(&attempt.job) {
            Some(job) => job.state.settles_as(&ignored),
            None => ignored.clone(),
        };
        self.end_attempt(attempt, decided_end(ignored), false, outcome, Millis(0));
    }

    fn worker_due(&mut self, worker: WorkerId) {
        let now = self.now;
        match self.state.liveness(worker, now) {
            Some(Liveness::Fresh) => {}
            Some(Liveness::Unknown | Liveness::Quiet) => {
                self.state.index.pool.set_fresh(self.state.workers.get(&worker), worker, false);
                if now >= self.state.lost_at(worker) {
                    self.worker_lost(worker);
                }
            }
            None => return,
        }
        self.state.set_worker_timer(worker, now);
    }

    /// The worker has stopped its attempts by itself by now, whether it lives or not: they may be placed again.
    fn worker_lost(&mut self, worker: WorkerId) {
        let silence = retry::silence_ms(&self.state.settings);
        let detail = format!("{} did not answer for {silence}", self.worker_name(worker));
        let lost = Outcome::Infra { cause: InfraCause::WorkerLost, detail };
        let live: Vec<AttemptId> =
            self.state.index.pool.holding(worker).into_iter().flat_map(|holding| holding.live()).collect();
        for attempt in live {
            let outcome = match self.state.jobs.get(&attempt.job) {
                Some(job) => job.state.settles_as(&lost),
                None => lost.clone(),
            };
            self.end_attempt(attempt, decided_end(lost.clone()), false, outcome, Millis(0));
        }
    }
}
