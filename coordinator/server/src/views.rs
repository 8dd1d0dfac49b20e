//! What is on record, as people and programs see it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_scheduler::Core;
use buildyard_scheduler::lifecycle::attempt::{Attempt, AttemptState};
use buildyard_scheduler::lifecycle::job::{Job, JobState};
use buildyard_scheduler::lifecycle::run::{Run, RunState};
use buildyard_scheduler::lifecycle::worker::{Liveness, Worker};
use buildyard_store::LogState;
use buildyard_types::api::{self, AttemptView, JobView, RunView, WorkerView};
use buildyard_types::worker::Usage;
use buildyard_types::{JobId, Outcome, Timestamp, Verdict, WorkerId};

use crate::sentences::{count, ended, mistakes, short, verdict_clause};

/// What the store does not know and the views show.
#[derive(Debug, Clone, Default)]
pub(crate) struct Live {
    /// Names of the workers that are spoken of.
    pub(crate) workers: BTreeMap<WorkerId, String>,
    /// Why jobs wait.
    pub(crate) why: BTreeMap<JobId, String>,
}

impl Live {
    /// What the core knows of some jobs and workers.
    pub(crate) fn of(core: &Core, now: Timestamp, jobs: &[JobId], workers: &BTreeSet<WorkerId>) -> Self {
        let known = workers.iter().filter_map(|worker| core.state().workers.get(worker));
        let workers = known.map(|worker| (worker.id, worker.name.clone())).collect();
        let why = core.why_each(jobs, now).into_iter().map(|(job, why)| (job, why.to_string())).collect();
        Self { workers, why }
    }

    fn worker_name(&self, worker: WorkerId) -> String {
        self.workers.get(&worker).cloned().unwrap_or_else(|| worker.to_string())
    }
}

/// A run and all that belongs to it.
#[derive(Debug, Clone)]
pub(crate) struct Whole {
    pub(crate) run: Run,
    pub(crate) jobs: Vec<Job>,
    pub(crate) attempts: Vec<(Attempt, LogState)>,
}

impl Whole {
    /// The workers of its attempts.
    pub(crate) fn workers(&self) -> BTreeSet<WorkerId> {
        self.attempts.iter().map(|(attempt, _)| attempt.worker).collect()
    }

    /// The jobs that wait for something.
    pub(crate) fn waiting(&self) -> Vec<JobId> {
        let waits = |job: &&Job| match job.state {
            JobState::Waiting | JobState::Queued { .. } => true,
            JobState::Assigned { .. }
            | JobState::Running { .. }
            | JobState::Stopping { .. }
            | JobState::Finished { .. } => false,
        };
        self.jobs.iter().filter(waits).map(|job| job.id).collect()
    }

    /// A job of it.
    pub(crate) fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.iter().find(|job| job.id == id)
    }

    /// The attempts at a job, oldest first.
    pub(crate) fn attempts_at(&self, id: JobId) -> impl Iterator<Item = &(Attempt, LogState)> {
        self.attempts.iter().filter(move |(attempt, _)| attempt.id.job == id)
    }

    /// The run with its jobs.
    pub(crate) fn view(&self, live: &Live) -> RunView {
        let jobs = self.jobs.iter().map(|job| self.job_view(job, live)).collect();
        RunView { jobs, ..run_view(&self.run, &self.jobs) }
    }

    /// A job with its attempts.
    pub(crate) fn job_view(&self, job: &Job, live: &Live) -> JobView {
        let (started_at, ended_at) = match &job.state {
            JobState::Finished { started, ended, .. } => (*started, Some(*ended)),
            JobState::Running { started, .. } => (Some(*started), None),
            JobState::Waiting
            | JobState::Queued { .. }
            | JobState::Assigned { .. }
            | JobState::Stopping { .. } => (None, None),
        };
        let first = self.attempts_at(job.id).find_map(|(attempt, _)| attempt.started_at);
        JobView {
            id: job.id,
            name: job.spec.name.clone(),
            state: job_state(&job.state),
            outcome: job.state.outcome().cloned(),
            sentence: job_sentence(job, live),
            needs: job.spec.needs.clone(),
            image: job.spec.image.clone(),
            labels: job.spec.labels.to_string(),
            started_at: first.or(started_at),
            ended_at,
            attempts: self
                .attempts_at(job.id)
                .map(|(attempt, log)| attempt_view(attempt, log, job, live))
                .collect(),
        }
    }
}

fn job_state(state: &JobState) -> api::JobState {
    match state {
        JobState::Waiting => api::JobState::Waiting,
        JobState::Queued { .. } => api::JobState::Queued,
        JobState::Assigned { .. } => api::JobState::Assigned,
        JobState::Running { .. } => api::JobState::Running,
        JobState::Stopping { .. } => api::JobState::Stopping,
        JobState::Finished { .. } => api::JobState::Finished,
    }
}

fn run_state(state: &RunState) -> api::RunState {
    match state {
        RunState::Received => api::RunState::Received,
        RunState::Refused { .. } => api::RunState::Refused,
        RunState::AwaitingApproval { .. } => api::RunState::AwaitingApproval,
        RunState::Active => api::RunState::Active,
        RunState::Finished { .. } => api::RunState::Finished,
    }
}

/// What a job is doing, in one sentence.
pub(crate) fn job_sentence(job: &Job, live: &Live) -> String {
    let on = |worker: &WorkerId| live.worker_name(*worker);
    match &job.state {
        JobState::Waiting | JobState::Queued { .. } => match live.why.get(&job.id) {
            Some(why) => why.clone(),
            None => "waits for a worker".to_owned(),
        },
        JobState::Assigned { worker, .. } => format!("is being prepared on worker {}", on(worker)),
        JobState::Running { worker, .. } => format!("runs on worker {}", on(worker)),
        JobState::Stopping { worker, outcome, .. } => {
            format!("is being stopped on worker {}: {outcome}", on(worker))
        }
        JobState::Finished { outcome, .. } => ended(outcome),
    }
}

/// A run as it stands in a list.
pub(crate) fn run_view(run: &Run, jobs: &[Job]) -> RunView {
    let (verdict, finished_at, diagnostics) = match &run.state {
        RunState::Received | RunState::AwaitingApproval { .. } | RunState::Active => (None, None, Vec::new()),
        RunState::Refused { diagnostics, at } => (Some(Verdict::Refused), Some(*at), diagnostics.clone()),
        RunState::Finished { verdict, at, .. } => (Some(*verdict), Some(*at), Vec::new()),
    };
    RunView {
        id: run.id,
        pipeline: run.pipeline.clone().unwrap_or_else(|| run.file.clone()),
        file: run.file.clone(),
        repository: run.source.repository.clone(),
        commit: run.source.commit.clone(),
        ref_name: run.source.ref_name.clone(),
        state: run_state(&run.state),
        verdict,
        sentence: run_sentence(run, jobs),
        diagnostics,
        images: "open".to_owned(),
        created_at: run.created_at,
        finished_at,
        jobs: Vec::new(),
    }
}

/// What a run is doing or how it ended, in one sentence.
pub(crate) fn run_sentence(run: &Run, jobs: &[Job]) -> String {
    match &run.state {
        RunState::Received => format!("reading {} at {}", run.file, short(&run.source.commit)),
        RunState::AwaitingApproval { .. } => "waits for an approval".to_owned(),
        RunState::Refused { diagnostics, .. } => format!("was refused: {}", mistakes(diagnostics)),
        RunState::Active => progress(jobs),
        RunState::Finished { verdict, reason: Some(reason), .. } => {
            format!("{}: {reason}", verdict_clause(*verdict))
        }
        RunState::Finished { verdict, reason: None, .. } => match culprit(jobs, *verdict) {
            Some((job, outcome)) => {
                format!("{}: job `{}` {}", verdict_clause(*verdict), job.spec.name, ended(outcome))
            }
            None => format!("{}: {}", verdict_clause(*verdict), count(jobs.len(), "job")),
        },
    }
}

/// The first job, in file order, that brought the verdict about.
pub(crate) fn culprit(jobs: &[Job], verdict: Verdict) -> Option<(&Job, &Outcome)> {
    if verdict == Verdict::Passed {
        return None;
    }
    let outcomes = jobs.iter().filter_map(|job| Some((job, job.state.outcome()?)));
    outcomes.into_iter().find(|(_, outcome)| Verdict::of([*outcome]) == verdict)
}

fn progress(jobs: &[Job]) -> String {
    let mut waiting = 0;
    let mut queued = 0;
    let mut running = 0;
    let mut finished = 0;
    for job in jobs {
        match job.state {
            JobState::Waiting => waiting += 1,
            JobState::Queued { .. } => queued += 1,
            JobState::Assigned { .. } | JobState::Running { .. } | JobState::Stopping { .. } => running += 1,
            JobState::Finished { .. } => finished += 1,
        }
    }
    let mut parts = vec![format!("{finished} of {} finished", count(jobs.len(), "job"))];
    let counted =
        [(running, "on workers"), (queued, "waiting for a worker"), (waiting, "waiting for other jobs")];
    parts.extend(
        counted.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}")),
    );
    parts.join(", ")
}

fn attempt_view(attempt: &Attempt, log: &LogState, job: &Job, live: &Live) -> AttemptView {
    let holds = job.state.live().is_some_and(|(live, _)| live == attempt.id);
    let state = match (&attempt.state, &job.state) {
        (AttemptState::Ended { .. }, _) => api::AttemptState::Ended,
        (AttemptState::Removed { .. }, _) => api::AttemptState::Removed,
        (AttemptState::Live, JobState::Stopping { .. }) if holds => api::AttemptState::Stopping,
        (AttemptState::Live, JobState::Running { .. }) if holds => api::AttemptState::Running,
        (AttemptState::Live, _) => api::AttemptState::Assigned,
    };
    let ended_at = match &attempt.state {
        AttemptState::Live => None,
        AttemptState::Ended { at, .. } | AttemptState::Removed { at, .. } => Some(*at),
    };
    let report = attempt.state.report();
    AttemptView {
        id: attempt.id,
        worker: attempt.worker,
        worker_name: live.worker_name(attempt.worker),
        fence: attempt.fence,
        state,
        outcome: report.map(|report| report.outcome.clone()),
        placed_at: attempt.placed_at,
        started_at: attempt.started_at,
        ended_at,
        steps: report.map(|report| report.steps.clone()).unwrap_or_default(),
        usage: report.map_or(Usage::default(), |report| report.usage),
        notes: report.map(|report| report.notes.clone()).unwrap_or_default(),
        image_digest: report.and_then(|report| report.image_digest.clone()),
        log_length: log.length,
        log_finished: log.sha256.is_some(),
    }
}

/// A worker as it is now.
pub(crate) fn worker_view(core: &Core, worker: &Worker, now: Timestamp) -> WorkerView {
    let liveness = match core.liveness(worker.id, now) {
        Some(Liveness::Fresh) => api::Liveness::Fresh,
        Some(Liveness::Quiet) => api::Liveness::Quiet,
        Some(Liveness::Unknown) | None => api::Liveness::Unknown,
    };
    WorkerView {
        id: worker.id,
        name: worker.name.clone(),
        liveness,
        last_heard_at: core.state().heard.get(&worker.id).map(|heard| heard.at),
        cordoned: worker.cordoned,
        unfit: worker.offer.unfit.clone(),
        labels: worker.labels(),
        capacity: worker.offer.capacity,
        used: core.used(worker.id),
        attempts: core.held(worker.id),
        images: worker.offer.images.clone(),
        version: worker.offer.version.clone(),
    }
}
