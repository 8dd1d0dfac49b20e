//! Workers: joining, calling, cordoned, removed.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_types::outcome::{InfraCause, TimeLimit};
use buildyard_types::worker::{AttemptProgress, AttemptReport, EndReport, Offer, SessionId};
use buildyard_types::{AttemptId, Millis, Outcome, Timestamp, WorkerId};

use super::{Deciding, Pending};
use crate::input::{Rejection, Reply};
use crate::lifecycle::attempt::{AttemptState, decided_end};
use crate::lifecycle::job::{JobEvent, JobState};
use crate::lifecycle::worker::{Heard, Liveness, Worker};
use crate::record::Record;
use crate::retry;

impl Deciding<'_> {
    pub(super) fn enrol(
        &mut self,
        id: WorkerId,
        name: String,
        pools: BTreeSet<String>,
        offer: Offer,
    ) -> Reply {
        if !self.state.workers.contains_key(&id) {
            let worker = Worker { id, name, pools, offer, cordoned: false, enrolled_at: self.now };
            self.push(Record::WorkerChanged { worker });
        }
        Reply::Done
    }

    pub(super) fn cordon(&mut self, worker: WorkerId, cordoned: bool) -> Reply {
        let Some(known) = self.state.workers.get(&worker) else {
            return Reply::Rejected(Rejection::NoWorker(worker));
        };
        if known.cordoned != cordoned {
            let worker = Worker { cordoned, ..known.clone() };
            self.push(Record::WorkerChanged { worker });
        }
        Reply::Done
    }

    pub(super) fn remove_worker(&mut self, worker: WorkerId) -> Reply {
        let Some(liveness) = self.state.liveness(worker, self.now) else {
            return Reply::Rejected(Rejection::NoWorker(worker));
        };
        let held: Vec<(AttemptId, bool)> =
            self.state.held(worker).map(|attempt| (attempt.id, attempt.state.is_live())).collect();
        let answers = match liveness {
            Liveness::Fresh => true,
            Liveness::Quiet | Liveness::Unknown => false,
        };
        let busy = held.iter().filter(|(_, live)| *live || answers).count();
        if busy > 0 {
            return Reply::Rejected(Rejection::WorkerBusy { worker, attempts: busy });
        }
        // It will not come back to say so.
        for (attempt, _) in held {
            self.remove_attempt(attempt);
        }
        self.push(Record::WorkerRemoved { worker });
        Reply::Done
    }

    pub(super) fn sync(
        &mut self,
        worker: WorkerId,
        session: SessionId,
        sequence: u64,
        offer: Offer,
        attempts: Vec<AttemptReport>,
    ) -> Pending {
        let Some(known) = self.state.workers.get(&worker) else {
            return Pending::Reply(Reply::Rejected(Rejection::NoWorker(worker)));
        };
        match self.state.heard.get(&worker) {
            Some(heard) if !heard.session.admits(session) => {
                let (session, by) = (session.number, heard.session.number);
                return Pending::Reply(Reply::Rejected(Rejection::SessionTakenOver { worker, session, by }));
            }
            // Overtaken on its way: what it says is old. It is answered, and changes nothing.
            Some(heard) if !heard.is_before(session, sequence) => {
                return Pending::Sync { worker, attempts, at_once: true };
            }
            Some(_) | None => {}
        }
        if known.offer != offer {
            let worker = Worker { offer, ..known.clone() };
            self.push(Record::WorkerChanged { worker });
        }
        self.state.hear(worker, Heard { at: self.now, session, sequence });
        self.reported(worker, &attempts);
        Pending::Sync { worker, attempts, at_once: false }
    }

    /// Takes over what a worker says of its attempts, and what it does not say.
    fn reported(&mut self, worker: WorkerId, reports: &[AttemptReport]) {
        let listed: BTreeMap<AttemptId, &AttemptReport> =
            reports.iter().map(|report| (report.attempt, report)).collect();
        let held: Vec<AttemptId> = self.state.held(worker).map(|attempt| attempt.id).collect();
        for id in held {
            let fence = self.state.attempts.get(&id).map(|attempt| attempt.fence);
            match listed.get(&id).filter(|report| Some(report.fence) == fence) {
                Some(report) => self.listed(id, &report.state),
                None => self.unlisted(worker, id),
            }
        }
    }

    fn listed(&mut self, id: AttemptId, progress: &AttemptProgress) {
        let Some(attempt) = self.state.attempts.get(&id) else {
            return;
        };
        let sends = match progress {
            AttemptProgress::Sending => true,
            AttemptProgress::Preparing
            | AttemptProgress::Running { .. }
            | AttemptProgress::Stopping
            | AttemptProgress::Ended { .. } => false,
        };
        if let Some(job) = self.state.jobs.get(&id.job).filter(|_| attempt.state.is_live()) {
            let (attempts, settings) = (&self.state.attempts, &self.state.settings);
            self.state.index.attempt_sends(job, id, sends.then_some(self.now), attempts, settings);
        }
        match (&attempt.state, progress) {
            (AttemptState::Live, AttemptProgress::Running { for_ms }) => {
                // A worker cannot have begun before it was asked.
                let at = (self.now - *for_ms).max(attempt.placed_at);
                self.started(id, at);
            }
            (AttemptState::Live, AttemptProgress::Ended { report, removed }) => {
                self.ended(id, report, *removed);
            }
            (AttemptState::Ended { .. }, AttemptProgress::Ended { removed: true, .. }) => {
                self.remove_attempt(id);
            }
            // It was told, or will be with the answer.
            (
                AttemptState::Live,
                AttemptProgress::Preparing | AttemptProgress::Stopping | AttemptProgress::Sending,
            )
            | (
                AttemptState::Ended { .. },
                AttemptProgress::Preparing
                | AttemptProgress::Running { .. }
                | AttemptProgress::Stopping
                | AttemptProgress::Sending
                | AttemptProgress::Ended { removed: false, .. },
            )
            | (
                AttemptState::Removed { .. },
                AttemptProgress::Preparing
                | AttemptProgress::Running { .. }
                | AttemptProgress::Stopping
                | AttemptProgress::Sending
                | AttemptProgress::Ended { .. },
            ) => {}
        }
    }

    fn started(&mut self, id: AttemptId, at: Timestamp) {
        let unknown = self.state.attempts.get(&id).is_some_and(|attempt| attempt.started_at.is_none());
        if unknown {
            self.push(Record::AttemptStarted { attempt: id, at });
        }
        self.job_event(id.job, JobEvent::Start { at });
    }

    fn ended(&mut self, id: AttemptId, report: &EndReport, removed: bool) {
        let Some(job) = self.state.jobs.get(&id.job) else {
            return;
        };
        let report = believed(report, &job.state);
        let outcome = job.state.settles_as(&report.outcome);
        let settle_ms = self.settle_ms(&report.outcome);
        self.started_before_its_end(id, &report);
        self.end_attempt(id, report, removed, outcome, settle_ms);
    }

    /// How long something of an attempt may still run whose end was reported.
    fn settle_ms(&self, reported: &Outcome) -> Millis {
        // Among these are attempts that the worker does not hold because its journal is lost.
        if reported.infra_cause() == Some(InfraCause::Worker) {
            retry::forgotten_ms(&self.state.settings)
        } else {
            Millis(0)
        }
    }

    /// A short attempt may end before a call could say that it runs. Its steps say for how long it did.
    fn started_before_its_end(&mut self, id: AttemptId, report: &EndReport) {
        let Some(attempt) = self.state.attempts.get(&id) else {
            return;
        };
        if attempt.started_at.is_none() && !report.steps.is_empty() {
            let ran = report.steps.iter().fold(0u64, |sum, step| sum.saturating_add(step.duration_ms.0));
            let at = (self.now - Millis(ran)).max(attempt.placed_at);
            self.push(Record::AttemptStarted { attempt: id, at });
        }
    }

    /// The worker does not know of an attempt that it was given.
    fn unlisted(&mut self, worker: WorkerId, id: AttemptId) {
        let Some(attempt) = self.state.attempts.get(&id) else {
            return;
        };
        match attempt.state {
            AttemptState::Ended { .. } => self.remove_attempt(id),
            // It said that it runs, in this life or in an earlier one.
            AttemptState::Live if attempt.started_at.is_some() => self.forgotten(worker, id),
            // The answer that carried the order or the stop was lost, or is still on its way: the next one
            // carries it again. A worker that is told to stop what it does not hold says that it ended.
            AttemptState::Live => {}
            AttemptState::Removed { .. } => {}
        }
    }

    /// It ran, and now the worker has no memory of it: its journal is lost.
    fn forgotten(&mut self, worker: WorkerId, id: AttemptId) {
        let detail = format!("{} lost its journal while the attempt ran", self.worker_name(worker));
        let lost = Outcome::Infra { cause: InfraCause::Worker, detail };
        let outcome = match self.state.jobs.get(&id.job) {
            Some(job) => job.state.settles_as(&lost),
            None => lost.clone(),
        };
        let settle_ms = retry::forgotten_ms(&self.state.settings);
        self.end_attempt(id, decided_end(lost), true, outcome, settle_ms);
    }
}

/// What is believed of a report. A worker is part of the farm, so its word counts for what only it can see; what
/// it cannot know, or what contradicts itself, is a fault of the worker.
fn believed(report: &EndReport, job: &JobState) -> EndReport {
    let stopping = match job {
        JobState::Stopping { .. } => true,
        JobState::Waiting
        | JobState::Queued { .. }
        | JobState::Assigned { .. }
        | JobState::Running { .. }
        | JobState::Finished { .. } => false,
    };
    let sound = match &report.outcome {
        Outcome::Passed => report.steps.iter().all(|step| matches!(step.exit_code, Some(0) | None)),
        Outcome::OutOfMemory { .. }
        | Outcome::DiskQuota { .. }
        | Outcome::LogCap { .. }
        | Outcome::Refused { .. }
        | Outcome::TimedOut { limit: TimeLimit::Step { .. } | TimeLimit::Job, .. } => true,
        Outcome::Failed { exit_code, .. } => *exit_code != 0,
        Outcome::Cancelled { .. } => stopping,
        Outcome::Skipped { .. } | Outcome::TimedOut { limit: TimeLimit::Queue, .. } => false,
        Outcome::Infra { cause, .. } => match cause {
            InfraCause::SelfFenced
            | InfraCause::Engine
            | InfraCause::Pull
            | InfraCause::WorkerDisk
            | InfraCause::Source
            | InfraCause::Worker => true,
            // Only the coordinator can say these.
            InfraCause::WorkerLost | InfraCause::StopIgnored => false,
        },
    };
    if sound {
        return report.clone();
    }
    let detail = format!("the worker reported an end that cannot be: {}", report.outcome);
    EndReport { outcome: Outcome::Infra { cause: InfraCause::Worker, detail }, ..report.clone() }
}
