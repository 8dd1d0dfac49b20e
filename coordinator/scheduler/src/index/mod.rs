//! What follows from the state, kept beside it so that no decision has to look at everything.
//!
//! Nothing here is committed. [`Index::build`] makes it from the state alone; applying records keeps it in step,
//! and a property test holds the two against each other. What depends on the time (who is fresh, which back-off
//! is over) is told by the timers.

pub(crate) mod order;
pub(crate) mod pool;
pub(crate) mod queue;
pub(crate) mod timers;

use std::collections::BTreeMap;

use buildyard_types::outcome::InfraCause;
use buildyard_types::{AttemptId, JobId, Millis, RunId, Timestamp};

use crate::demand::{Demand, Share};
use crate::lifecycle::attempt::{Attempt, AttemptState};
use crate::lifecycle::job::{Job, JobState};
use crate::lifecycle::run::Run;
use crate::lifecycle::worker::Worker;
use crate::retry;
use crate::state::{Settings, State};
use buildyard_types::WorkerId;
use pool::{Held, Life, Pool};
use queue::Queue;
use timers::{Due, Timers};

/// How much of a run is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Open {
    /// Jobs that are not finished.
    pub(crate) jobs: usize,
    /// Attempts that are not removed.
    pub(crate) attempts: usize,
}

/// Everything that is derived.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    pub(crate) queue: Queue,
    pub(crate) pool: Pool,
    pub(crate) timers: Timers,
    /// Jobs that need a job.
    pub(crate) dependents: BTreeMap<JobId, Vec<JobId>>,
    pub(crate) open: BTreeMap<RunId, Open>,
    /// When this process began to listen: nobody could call before.
    listening_since: Timestamp,
    /// Live attempts of which nothing runs any more, and since when this process knows that. Not derived: their
    /// workers say it with each call.
    sending: BTreeMap<AttemptId, Timestamp>,
}

impl Index {
    /// Everything, from the state alone.
    pub(crate) fn build(
        runs: &BTreeMap<RunId, Run>,
        jobs: &BTreeMap<JobId, Job>,
        attempts: &BTreeMap<AttemptId, Attempt>,
        workers: &BTreeMap<WorkerId, Worker>,
        settings: &Settings,
        listening_since: Timestamp,
    ) -> Self {
        let mut index = Self { listening_since, ..Self::default() };
        for worker in workers.values() {
            index.pool.worker_changed(None, Some(worker), worker.id);
        }
        for run in runs.keys() {
            index.open.entry(*run).or_default();
        }
        for attempt in attempts.values() {
            if let Some(job) = jobs.get(&attempt.id.job) {
                index.attempt_changed(workers.get(&attempt.worker), job, attempt, None);
            }
        }
        for job in jobs.values() {
            index.job_added(job, attempts, settings);
        }
        index
    }

    /// A job became known.
    pub(crate) fn job_added(
        &mut self,
        job: &Job,
        attempts: &BTreeMap<AttemptId, Attempt>,
        settings: &Settings,
    ) {
        for need in &job.needs {
            self.dependents.entry(*need).or_default().push(job.id);
        }
        self.open.entry(job.id.run).or_default().jobs += 1;
        self.job_entered(job, attempts, settings);
    }

    /// A job is about to leave its state.
    pub(crate) fn job_leaves(&mut self, job: &Job) {
        match &job.state {
            JobState::Queued { since, .. } => {
                if !self.queue.delay(job.id, false) {
                    self.queue.remove((*since, job.id), &Demand::of(&job.spec));
                }
            }
            JobState::Finished { .. } => self.open.entry(job.id.run).or_default().jobs += 1,
            JobState::Waiting
            | JobState::Assigned { .. }
            | JobState::Running { .. }
            | JobState::Stopping { .. } => {}
        }
    }

    /// A job entered the state that it has now.
    pub(crate) fn job_entered(
        &mut self,
        job: &Job,
        attempts: &BTreeMap<AttemptId, Attempt>,
        settings: &Settings,
    ) {
        match &job.state {
            JobState::Queued { since, not_before } => {
                if not_before > since {
                    self.queue.delay(job.id, true);
                } else {
                    self.queue.insert((*since, job.id), Demand::of(&job.spec));
                }
            }
            JobState::Finished { .. } => {
                let open = self.open.entry(job.id.run).or_default();
                open.jobs = open.jobs.saturating_sub(1);
            }
            JobState::Waiting
            | JobState::Assigned { .. }
            | JobState::Running { .. }
            | JobState::Stopping { .. } => {}
        }
        let due = self.due(job, self.queue.is_delayed(job.id), attempts, settings);
        self.timers.set(Due::Job(job.id), due);
    }

    /// The back-off of a job is over.
    pub(crate) fn job_released(
        &mut self,
        job: &Job,
        attempts: &BTreeMap<AttemptId, Attempt>,
        settings: &Settings,
    ) {
        if let JobState::Queued { since, .. } = &job.state
            && self.queue.delay(job.id, false)
        {
            self.queue.insert((*since, job.id), Demand::of(&job.spec));
        }
        self.timers.set(Due::Job(job.id), self.due(job, false, attempts, settings));
    }

    /// An attempt was made (`before` is `None`) or moved on from `before`.
    pub(crate) fn attempt_changed(
        &mut self,
        worker: Option<&Worker>,
        job: &Job,
        attempt: &Attempt,
        before: Option<&AttemptState>,
    ) {
        let counted = before.is_some_and(|before| !before.is_removed());
        let counts = !attempt.state.is_removed();
        if !attempt.state.is_live() {
            self.sending.remove(&attempt.id);
        }
        let open = self.open.entry(attempt.id.run()).or_default();
        match (counted, counts) {
            (false, true) => open.attempts += 1,
            (true, false) => open.attempts = open.attempts.saturating_sub(1),
            (true, true) | (false, false) => {}
        }
        let held = life(&attempt.state).map(|life| Held { share: Share::of(&job.spec), life });
        if counted || counts {
            self.pool.hold(worker, attempt.worker, attempt.id, held);
        }
    }

    /// A worker says of a live attempt that only sending is left to do (`since` is now), or that it is not.
    pub(crate) fn attempt_sends(
        &mut self,
        job: &Job,
        attempt: AttemptId,
        since: Option<Timestamp>,
        attempts: &BTreeMap<AttemptId, Attempt>,
        settings: &Settings,
    ) {
        if self.sending.contains_key(&attempt) == since.is_some() {
            return;
        }
        match since {
            Some(since) => self.sending.insert(attempt, since),
            None => self.sending.remove(&attempt),
        };
        let due = self.due(job, self.queue.is_delayed(job.id), attempts, settings);
        self.timers.set(Due::Job(job.id), due);
    }

    /// Whether only sending is left to do for a live attempt.
    pub(crate) fn sends(&self, attempt: AttemptId) -> bool {
        self.sending.contains_key(&attempt)
    }

    /// The part in which this differs from what the state implies.
    pub(crate) fn differs_from(&self, state: &State) -> Option<String> {
        let State { runs, jobs, attempts, workers, settings, listening_since, .. } = state;
        let built = Self::build(runs, jobs, attempts, workers, settings, *listening_since);
        let is_delayed = |job: &Job| self.queue.is_delayed(job.id);
        let due = |job: &Job| Some((job.id, self.due(job, is_delayed(job), attempts, settings)?));
        let queued = |job: &Job| match &job.state {
            JobState::Queued { since, .. } => Some(((*since, job.id), Demand::of(&job.spec))),
            JobState::Waiting
            | JobState::Assigned { .. }
            | JobState::Running { .. }
            | JobState::Stopping { .. }
            | JobState::Finished { .. } => None,
        };
        if self.dependents != built.dependents {
            return Some("dependents".to_owned());
        }
        if self.open != built.open {
            return Some("open".to_owned());
        }
        if !self.timers.are_of_jobs(&jobs.values().filter_map(due).collect()) {
            return Some("timers".to_owned());
        }
        let queued = jobs.values().filter_map(queued).collect();
        self.queue.differs_from(&queued).or_else(|| self.pool.differs_from(built.pool, workers))
    }

    /// When something is due for a job that nobody reports.
    ///
    /// A moment that passed while no coordinator listened says nothing: whoever could have met it could not say
    /// so, or was not told. After a start each has a fresh term: a job to be taken, a worker to say that it has
    /// begun or ended an attempt, and to hear of a stop and obey.
    fn due(
        &self,
        job: &Job,
        delayed: bool,
        attempts: &BTreeMap<AttemptId, Attempt>,
        settings: &Settings,
    ) -> Option<Timestamp> {
        let listening = self.listening_since;
        let heard_out = |limit: Timestamp, began: Timestamp| {
            if began < listening { limit.max(listening + retry::silence_ms(settings)) } else { limit }
        };
        match &job.state {
            JobState::Queued { not_before, .. } if delayed => Some(*not_before),
            JobState::Queued { since, not_before } => {
                Some((*since).max(*not_before).max(listening) + job.spec.queue_timeout_ms)
            }
            JobState::Assigned { attempt, .. } | JobState::Running { attempt, .. }
                if self.sends(*attempt) =>
            {
                self.sent_by(*attempt, settings)
            }
            JobState::Assigned { attempt, .. } => {
                let placed_at = attempts.get(attempt)?.placed_at;
                Some(heard_out(placed_at + settings.prepare_limit_ms, placed_at))
            }
            JobState::Running { started, .. } => {
                let limit = Millis(job.spec.timeout_ms.0.saturating_add(settings.limit_slack_ms.0));
                Some(heard_out(*started + limit, *started))
            }
            JobState::Stopping { attempt, deadline, .. } => {
                let deadline = (*deadline).max(retry::stop_deadline(settings, listening));
                Some(self.sent_by(*attempt, settings).map_or(deadline, |sent_by| sent_by.max(deadline)))
            }
            JobState::Waiting | JobState::Finished { .. } => None,
        }
    }

    fn sent_by(&self, attempt: AttemptId, settings: &Settings) -> Option<Timestamp> {
        self.sending.get(&attempt).map(|since| *since + settings.send_limit_ms)
    }

    /// A run left the state.
    pub(crate) fn run_dropped(&mut self, run: RunId, jobs: &[Job]) {
        self.open.remove(&run);
        for job in jobs {
            self.dependents.remove(&job.id);
            self.timers.set(Due::Job(job.id), None);
        }
    }
}

fn life(state: &AttemptState) -> Option<Life> {
    match state {
        AttemptState::Live => Some(Life::Live),
        AttemptState::Ended { report, .. } => match report.outcome.infra_cause() {
            Some(InfraCause::StopIgnored) => Some(Life::StopIgnored),
            Some(_) | None => Some(Life::Ended),
        },
        AttemptState::Removed { .. } => None,
    }
}
