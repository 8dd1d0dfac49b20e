//! What must hold, whatever happens: checked after each commit and each start of a container.
//!
//! The coordinator's own truths are `buildyard_scheduler::invariants`. Here stand those that only somebody sees who
//! looks at both sides at once, with one clock.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_scheduler::invariants::{broken_by, broken_in};
use buildyard_scheduler::lifecycle::attempt::AttemptState;
use buildyard_scheduler::lifecycle::job::JobState;
use buildyard_scheduler::lifecycle::run::RunState;
use buildyard_scheduler::{Record, Snapshot, State};
use buildyard_types::outcome::{InfraCause, TimeLimit};
use buildyard_types::{Epoch, JobId, Millis, Outcome, Timestamp};

use crate::host::Container;
use crate::people::plan_of;
use crate::scenario::{RunPlan, Scenario};
use crate::world::World;

/// What was seen.
#[derive(Debug)]
pub(crate) struct Audit {
    /// Everything that does not hold.
    pub(crate) broken: Vec<String>,
    /// Every committed record, applied one by one, never reloaded.
    model: State,
    /// The container of each job whose steps run.
    running: BTreeMap<JobId, (u64, usize)>,
    containers: u64,
    /// Since when the coordinator has listened without a break.
    listening_since: u64,
    /// Outcomes on record, of all runs ever.
    outcomes: BTreeMap<JobId, Outcome>,
    /// Which plan a run belongs to.
    plans: BTreeMap<u64, RunPlan>,
    scenario: Scenario,
    /// Numbers for the summary.
    pub(crate) attempts: u64,
}

impl Audit {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let (settings, now) = (scenario.settings.clone(), Timestamp(0));
        Self {
            broken: Vec::new(),
            model: State::from_snapshot(Epoch(0), settings, Snapshot::default(), now),
            running: BTreeMap::new(),
            containers: 0,
            listening_since: 0,
            outcomes: BTreeMap::new(),
            plans: BTreeMap::new(),
            scenario: scenario.clone(),
            attempts: 0,
        }
    }

    fn breaks(&mut self, name: &str, detail: impl std::fmt::Display) {
        self.broken.push(format!("broken: {name}: {detail}"));
    }

    /// A record became durable.
    pub(crate) fn committed(&mut self, record: &Record, now: u64) {
        let broken = broken_by(&self.model, record);
        self.broken.extend(broken.iter().map(ToString::to_string));
        match record {
            Record::RunCreated { run } => {
                let plan =
                    run.source.commit.parse::<usize>().ok().and_then(|plan| self.scenario.runs.get(plan));
                if let Some(plan) = plan {
                    self.plans.insert(run.id.0, plan.clone());
                }
            }
            Record::JobChanged { job, state: JobState::Finished { outcome, ended, .. } } => {
                self.job_finished(*job, outcome);
                self.waited_for_long_enough(*job, outcome, *ended);
                self.farm_failed_for_a_reason(*job, outcome);
                if ended.0 > now {
                    self.breaks("nothing ends in the future", job);
                }
            }
            Record::AttemptCreated { attempt } => {
                self.attempts += 1;
                if self.scenario.is_calm() && attempt.id.number.0 > 1 {
                    self.breaks("without need nothing is tried again", attempt.id);
                }
            }
            Record::AttemptChanged { attempt, state: AttemptState::Ended { report, at } } => {
                self.waited_for_long_enough(attempt.job, &report.outcome, *at);
                self.farm_failed_for_a_reason(attempt.job, &report.outcome);
            }
            Record::JobChanged { .. }
            | Record::RunCompiled { .. }
            | Record::RunChanged { .. }
            | Record::AttemptStarted { .. }
            | Record::AttemptChanged { .. }
            | Record::WorkerChanged { .. }
            | Record::WorkerRemoved { .. } => {}
        }
        self.model.apply(record);
    }

    /// A part of the farm is blamed only for what happened to it.
    fn farm_failed_for_a_reason(&mut self, job: JobId, outcome: &Outcome) {
        if let Some(cause) = outcome.infra_cause()
            && !self.scenario.may_fail(cause)
        {
            self.breaks("the farm fails only by what went wrong with it", format!("{job} is {outcome}"));
        }
    }

    /// The names in the plan, whatever the scheduler makes of them.
    fn needs_of(&self, job: JobId) -> Vec<JobId> {
        let Some(plan) = self.plans.get(&job.run.0) else {
            return Vec::new();
        };
        let jobs = &plan.pipeline.jobs;
        let index = |need: &String| jobs.iter().position(|other| other.name == *need);
        let needs = jobs[job.index.0 as usize].needs.iter().filter_map(index);
        needs.map(|index| job.run.job(index as u32)).collect()
    }

    /// A coordinator begins to listen.
    pub(crate) fn listens(&mut self, now: u64) {
        self.listening_since = now;
    }

    /// What is concluded from silence is concluded from silence that somebody could have broken.
    fn waited_for_long_enough(&mut self, job: JobId, outcome: &Outcome, at: Timestamp) {
        let settings = &self.model.settings;
        let silence = Millis(settings.lease_ms.0 + settings.grace_ms.0);
        let needed = match outcome {
            Outcome::TimedOut { limit: TimeLimit::Queue, after_ms } => *after_ms,
            Outcome::Infra { cause: InfraCause::WorkerLost | InfraCause::StopIgnored, .. } => silence,
            Outcome::Infra { .. }
            | Outcome::TimedOut { .. }
            | Outcome::Passed
            | Outcome::Failed { .. }
            | Outcome::OutOfMemory { .. }
            | Outcome::DiskQuota { .. }
            | Outcome::LogCap { .. }
            | Outcome::Cancelled { .. }
            | Outcome::Skipped { .. }
            | Outcome::Refused { .. } => return,
        };
        let listened = at.since(Timestamp(self.listening_since));
        if listened < needed {
            let said = format!("{job} is {outcome} after {listened} of listening");
            self.breaks("time in which no coordinator listened is held against nobody", said);
        }
    }

    /// The verdict is the one that the scripts make known in advance, or one for which there is a reason.
    fn job_finished(&mut self, job: JobId, outcome: &Outcome) {
        if let Some(before) = self.outcomes.insert(job, outcome.clone()) {
            self.breaks("a job has one verdict", format!("{job}: {before}, then {outcome}"));
        }
        let Some(plan) = self.plans.get(&job.run.0) else {
            return self.breaks("a job has a run", job);
        };
        let index = job.index.0 as usize;
        let (spec, script) = (&plan.pipeline.jobs[index], plan.scripts[index]);
        let right = match outcome {
            Outcome::Infra { .. } => !self.scenario.is_calm() || plan.obeys_after[index] > 10_000,
            Outcome::Cancelled { .. } => {
                plan.cancel.is_some_and(|(_, one)| one.is_none_or(|one| one == job.index.0))
            }
            Outcome::Skipped { .. } => self
                .needs_of(job)
                .iter()
                .any(|need| self.outcomes.get(need).is_some_and(|outcome| *outcome != Outcome::Passed)),
            Outcome::TimedOut { limit: TimeLimit::Queue, .. } => {
                spec.queue_timeout_ms < Millis::from_mins(60)
            }
            Outcome::Passed
            | Outcome::Failed { .. }
            | Outcome::TimedOut { .. }
            | Outcome::OutOfMemory { .. }
            | Outcome::DiskQuota { .. }
            | Outcome::LogCap { .. }
            | Outcome::Refused { .. } => script.allows(outcome, spec.timeout_ms),
        };
        if !right {
            self.breaks("the verdict is the true one", format!("{job} does {script:?} and is {outcome}"));
        }
    }

    /// A batch became durable.
    pub(crate) fn after_commit(&mut self) {
        let broken = broken_in(&self.model);
        self.broken.extend(broken.iter().map(ToString::to_string));
    }

    /// A scheduler was made from the store.
    pub(crate) fn reloaded(&mut self, state: &State) {
        if let Some(part) = state.differs_from(&self.model) {
            self.breaks("reloading gives the same state", part);
        }
        let broken = broken_in(state);
        self.broken.extend(broken.iter().map(ToString::to_string));
    }

    /// The scheduler goes on after a commit.
    pub(crate) fn same_as_committed(&mut self, state: &State) {
        if let Some(part) = state.differs_from(&self.model) {
            self.breaks("the scheduler knows what was committed, no less and no more", part);
        }
        let broken = broken_in(state);
        self.broken.extend(broken.iter().map(ToString::to_string));
    }

    pub(crate) fn next_container(&mut self) -> u64 {
        self.containers += 1;
        self.containers
    }

    /// Steps begin.
    pub(crate) fn container_starts(&mut self, container: &Container, id: u64, host: usize, now: u64) {
        let (attempt, job) = (container.attempt, container.attempt.job);
        if let Some((other, where_)) = self.running.insert(job, (id, host)) {
            let said = format!("{attempt} starts on host {host} while container {other} runs on {where_}");
            self.breaks("two containers of one job never overlap", said);
        }
        if let Some(outcome) = self.outcomes.get(&job) {
            let said = format!("{attempt} starts at {now}, its job is {outcome}");
            self.breaks("a finished job never starts, cancelled or not", said);
        }
        let open = |need: &JobId| self.outcomes.get(need) != Some(&Outcome::Passed);
        if let Some(need) = self.needs_of(job).into_iter().find(open) {
            let said = format!("{attempt} starts and needs {need}");
            self.breaks("a job starts only after all that it needs passed", said);
        }
        if !self.plans.contains_key(&job.run.0) {
            self.breaks("what runs is on record", attempt);
        }
    }

    /// The steps of a container are dead.
    pub(crate) fn container_gone(&mut self, container: &Container, id: u64, _now: u64) {
        let job = container.attempt.job;
        if self.running.get(&job).is_some_and(|(running, _)| *running == id) {
            self.running.remove(&job);
        }
    }
}

impl World {
    /// Whether everything that anybody wanted is done and cleaned up.
    pub(crate) fn is_done(&self) -> bool {
        let Some(process) = &self.coordinator.process else {
            return false;
        };
        self.people.all_answered()
            && process.core.state().runs.is_empty()
            && self.coordinator.store.runs.values().all(|run| run.state.is_final())
            && self.hosts.iter().all(|host| host.is_clean())
    }

    /// What is missing for that.
    pub(crate) fn unfinished(&self) -> String {
        let store = &self.coordinator.store;
        let runs: Vec<String> = store
            .runs
            .values()
            .filter(|run| !run.state.is_final())
            .map(|run| format!("{} {}", run.id, run.state.name()))
            .collect();
        let jobs: Vec<String> = store
            .jobs
            .values()
            .filter(|job| job.state.outcome().is_none())
            .map(|job| format!("{} {}", job.id, job.state.name()))
            .collect();
        let attempts: Vec<String> = store
            .attempts
            .values()
            .filter(|attempt| !attempt.state.is_removed())
            .map(|attempt| format!("{} {} on {}", attempt.id, attempt.state.name(), attempt.worker))
            .collect();
        let dirty: Vec<usize> = (0..self.hosts.len()).filter(|host| !self.hosts[*host].is_clean()).collect();
        let answered = self.people.all_answered();
        format!("runs {runs:?}, jobs {jobs:?}, attempts {attempts:?}, hosts {dirty:?}, answered {answered}")
    }

    /// The whole, once nothing is left to do.
    pub(crate) fn audit_the_end(&self) -> Result<(), String> {
        let store = &self.coordinator.store;
        let of_runs: BTreeSet<usize> = store.runs.keys().filter_map(|run| plan_of(store, *run)).collect();
        if store.runs.len() != self.scenario.runs.len() || of_runs.len() != store.runs.len() {
            return Err(format!("broken: one key is one run: {} runs", store.runs.len()));
        }
        for (plan, run) in &self.people.acknowledged {
            if plan_of(store, *run) != Some(*plan) {
                return Err(format!("broken: no acknowledged run is lost: {run}"));
            }
        }
        for run in store.runs.values() {
            let jobs = store.jobs.range(run.id.job(0)..=run.id.job(u32::MAX)).count();
            let expected = self.scenario.runs[plan_of(store, run.id).unwrap_or_default()].pipeline.jobs.len();
            let complete = match &run.state {
                RunState::Finished { reason: None, .. } => jobs == expected,
                RunState::Finished { reason: Some(_), .. } | RunState::Refused { .. } => jobs == 0,
                RunState::Received | RunState::AwaitingApproval { .. } | RunState::Active => false,
            };
            if !complete {
                return Err(format!("broken: once faults stop, every job finishes: {} of {}", jobs, run.id));
            }
        }
        Ok(())
    }
}
