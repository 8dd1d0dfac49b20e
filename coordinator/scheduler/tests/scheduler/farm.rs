//! A farm for tests: a core, a clock, workers that call, and a check of every invariant after each input.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_scheduler::invariants::{broken_by, broken_in};
use buildyard_scheduler::lifecycle::attempt::decided_end;
use buildyard_scheduler::lifecycle::job::JobState;
use buildyard_scheduler::{Compiled, Core, Decision, Input, Record, Reply, Settings, Snapshot, State};
use buildyard_types::job::{CheckoutSpec, Diagnostic, JobUser, NetworkMode, Pipeline, Resources};
use buildyard_types::outcome::InfraCause;
use buildyard_types::worker::{
    AttemptProgress, AttemptReport, Capacity, Offer, SessionId, SourceRef, StepReport, SyncResponse,
};
use buildyard_types::{
    AttemptId, ByteSize, Epoch, JobId, JobSpec, Millis, Outcome, RunId, Timestamp, WorkerId,
};

/// Where a farm's clock begins.
pub(crate) const START: u64 = 1_000_000;

pub(crate) struct Farm {
    pub(crate) core: Core,
    pub(crate) now: u64,
    /// Every record, applied one by one and never reloaded.
    pub(crate) committed: State,
    /// The last decision.
    pub(crate) last: Option<Decision>,
    pub(crate) sequences: BTreeMap<WorkerId, (u64, u64)>,
    workers: u64,
}

impl Farm {
    pub(crate) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let state =
            || State::from_snapshot(Epoch(1), settings.clone(), Snapshot::default(), Timestamp(START));
        Self {
            core: Core::new(state()),
            now: START,
            committed: state(),
            last: None,
            sequences: BTreeMap::new(),
            workers: 0,
        }
    }

    pub(crate) fn decide(&mut self, input: Input) -> Reply {
        let decision = self.core.decide(input, Timestamp(self.now));
        for record in &decision.records {
            assert_eq!(broken_by(&self.committed, record), []);
            self.committed.apply(record);
        }
        assert_eq!(broken_in(self.core.state()), []);
        assert_eq!(self.core.state().differs_from(&self.committed), None, "records are the whole change");
        assert_eq!(
            reloaded(self.core.state()).differs_from(&self.committed),
            None,
            "a restart arrives here too"
        );
        let reply = decision.reply.clone();
        self.last = Some(decision);
        reply
    }

    pub(crate) fn records(&self) -> &[Record] {
        self.last.as_ref().map_or(&[], |decision| &decision.records)
    }

    /// Lets time pass, and whatever is due happen.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.decide(Input::Tick);
    }

    /// The coordinator's process ends and begins again.
    pub(crate) fn restart(&mut self) {
        self.core = Core::new(reloaded_at(self.core.state(), Timestamp(self.now)));
    }

    /// A worker with four slots that offers `os=linux` and these labels; it has called once.
    pub(crate) fn worker(&mut self, labels: &str) -> WorkerId {
        self.worker_of(labels, capacity(4, 8))
    }

    pub(crate) fn worker_of(&mut self, labels: &str, capacity: Capacity) -> WorkerId {
        let worker = self.silent_worker(labels, capacity);
        self.sync(worker, &[]);
        worker
    }

    /// A worker that joined and has not called.
    pub(crate) fn silent_worker(&mut self, labels: &str, capacity: Capacity) -> WorkerId {
        self.workers += 1;
        let worker = WorkerId(self.workers);
        let (facts, pools): (Vec<&str>, Vec<&str>) =
            labels.split_whitespace().partition(|label| label.contains('='));
        let fact = |fact: &&str| {
            let (key, value) = fact.split_once('=').expect("a fact has a value");
            (key.to_owned(), value.to_owned())
        };
        let mut facts: BTreeMap<String, String> = facts.iter().map(fact).collect();
        facts.entry("os".into()).or_insert("linux".into());
        let pools: BTreeSet<String> = pools.into_iter().map(str::to_owned).collect();
        let offer = Offer { facts, capacity, ..Offer::default() };
        let name = format!("worker-{}", self.workers);
        self.decide(Input::Enrol { worker, name, pools, offer });
        worker
    }

    /// A call of a worker.
    pub(crate) fn sync(&mut self, worker: WorkerId, attempts: &[AttemptReport]) -> SyncResponse {
        match self.call(worker, attempts) {
            Reply::Sync { response, .. } => response,
            other => panic!("a call was answered with {other:?}"),
        }
    }

    pub(crate) fn call(&mut self, worker: WorkerId, attempts: &[AttemptReport]) -> Reply {
        let offer =
            self.core.state().workers.get(&worker).map(|known| known.offer.clone()).unwrap_or_default();
        self.call_offering(worker, offer, attempts)
    }

    pub(crate) fn call_offering(
        &mut self,
        worker: WorkerId,
        offer: Offer,
        attempts: &[AttemptReport],
    ) -> Reply {
        let (session, sequence) = self.sequences.entry(worker).or_insert((1, 0));
        *sequence += 1;
        let (session, sequence) = (SessionId { number: *session, nonce: 0 }, *sequence);
        let attempts = attempts.to_vec();
        self.decide(Input::Sync { worker, session, sequence, offer, attempts })
    }

    /// The worker's process ends and begins again.
    pub(crate) fn worker_restarts(&mut self, worker: WorkerId) {
        let (session, sequence) = self.sequences.entry(worker).or_insert((1, 0));
        (*session, *sequence) = (*session + 1, 0);
    }

    /// What a worker holds, as it would say it of attempts that run.
    pub(crate) fn running(&self, worker: WorkerId) -> Vec<AttemptReport> {
        let held = self.core.state().held(worker);
        held.map(|attempt| self.report(attempt.id, AttemptProgress::Running { for_ms: Millis(0) })).collect()
    }

    /// A report about an attempt under its own fence.
    pub(crate) fn report(&self, attempt: AttemptId, state: AttemptProgress) -> AttemptReport {
        let known = self.core.state().attempts.get(&attempt);
        let fence = known.unwrap_or_else(|| panic!("{attempt} is not known")).fence;
        AttemptReport { attempt, fence, state }
    }

    pub(crate) fn preparing(&self, attempt: AttemptId) -> AttemptReport {
        self.report(attempt, AttemptProgress::Preparing)
    }

    pub(crate) fn runs(&self, attempt: AttemptId, for_ms: u64) -> AttemptReport {
        self.report(attempt, AttemptProgress::Running { for_ms: Millis(for_ms) })
    }

    pub(crate) fn ended(&self, attempt: AttemptId, outcome: Outcome, removed: bool) -> AttemptReport {
        self.report(attempt, AttemptProgress::Ended { report: Box::new(decided_end(outcome)), removed })
    }

    pub(crate) fn submit(&mut self) -> RunId {
        self.submit_keyed(None)
    }

    pub(crate) fn submit_keyed(&mut self, key: Option<&str>) -> RunId {
        let source = SourceRef { repository: "/srv/cjson".into(), commit: "0".repeat(40), ref_name: None };
        let key = key.map(str::to_owned);
        let requested_by = "triggered by admin".to_owned();
        match self.decide(Input::Submit { source, file: "pipeline.toml".into(), requested_by, key }) {
            Reply::Run(run) => run,
            other => panic!("a submission was answered with {other:?}"),
        }
    }

    pub(crate) fn compile(&mut self, run: RunId, jobs: Vec<JobSpec>) -> Reply {
        let pipeline = Pipeline { name: "cjson".into(), file: "pipeline.toml".into(), jobs };
        self.decide(Input::Compiled { run, result: Compiled::Pipeline(pipeline) })
    }

    /// A run with these jobs, under way.
    pub(crate) fn run(&mut self, jobs: Vec<JobSpec>) -> RunId {
        let run = self.submit();
        self.compile(run, jobs);
        run
    }

    pub(crate) fn state_of(&self, job: JobId) -> &JobState {
        &self.core.state().jobs.get(&job).unwrap_or_else(|| panic!("{job} is not known")).state
    }

    /// The name of a job's state.
    pub(crate) fn is(&self, job: JobId) -> &'static str {
        self.state_of(job).name()
    }

    /// Where a job is.
    pub(crate) fn on(&self, job: JobId) -> Option<WorkerId> {
        self.state_of(job).live().map(|(_, worker)| worker)
    }

    /// The outcome of a job, also when its run left the state with the last decision.
    pub(crate) fn outcome(&self, job: JobId) -> Outcome {
        let settled = self.last.iter().flat_map(|decision| &decision.settled).flat_map(|run| &run.jobs);
        let found =
            self.core.state().jobs.get(&job).or_else(|| settled.into_iter().find(|one| one.id == job));
        let outcome = found.and_then(|job| job.state.outcome()).cloned();
        outcome.unwrap_or_else(|| panic!("{job} is not finished"))
    }

    /// The diagnostics of a run that was refused by the last decision.
    pub(crate) fn refused(&self) -> Vec<Diagnostic> {
        use buildyard_scheduler::lifecycle::run::RunState;
        let found = self.records().iter().find_map(|record| match record {
            Record::RunChanged { state: RunState::Refused { diagnostics, .. }, .. } => {
                Some(diagnostics.clone())
            }
            _ => None,
        });
        found.unwrap_or_default()
    }

    /// Plays a job through on its worker.
    pub(crate) fn finish(&mut self, job: JobId, outcome: Outcome) {
        let (attempt, worker) = self.state_of(job).live().expect("the job is on a worker");
        let mut reports = self.running(worker);
        reports.retain(|report| report.attempt != attempt);
        reports.push(self.ended(attempt, outcome, true));
        self.sync(worker, &reports);
    }
}

/// The state as a restart would make it from what the state holds.
pub(crate) fn reloaded(state: &State) -> State {
    reloaded_at(state, state.listening_since)
}

fn reloaded_at(state: &State, now: Timestamp) -> State {
    let loaded = Snapshot {
        last_run: state.next_run.0 - 1,
        last_fence: state.next_fence.0 - 1,
        runs: state.runs.values().cloned().collect(),
        jobs: state.jobs.values().cloned().collect(),
        attempts: state.attempts.values().cloned().collect(),
        workers: state.workers.values().cloned().collect(),
        keys: state.keys.iter().map(|(key, run)| (key.clone(), *run)).collect(),
    };
    State::from_snapshot(state.epoch, state.settings.clone(), loaded, now)
}

pub(crate) fn capacity(slots: u32, cpus: u64) -> Capacity {
    Capacity {
        slots,
        cpu_millis: cpus * 1_000,
        memory: ByteSize::from_gib(16),
        disk: ByteSize::from_gib(100),
    }
}

/// A job of one cpu that runs anywhere.
pub(crate) fn job(name: &str) -> JobSpec {
    JobSpec {
        name: name.into(),
        image: "debian:12".into(),
        labels: "".parse().expect("an empty expression"),
        needs: Vec::new(),
        env: BTreeMap::new(),
        steps: Vec::new(),
        resources: Resources {
            cpu_millis: 1_000,
            memory: ByteSize::from_gib(1),
            pids: 512,
            disk: ByteSize::from_gib(1),
        },
        timeout_ms: Millis::from_mins(30),
        queue_timeout_ms: Millis::from_mins(120),
        artifacts: Vec::new(),
        network: NetworkMode::None,
        user: JobUser::Build,
        checkout: CheckoutSpec { depth: None, tags: false },
    }
}

pub(crate) fn needing(name: &str, needs: &[&str]) -> JobSpec {
    JobSpec { needs: needs.iter().map(|need| (*need).to_owned()).collect(), ..job(name) }
}

pub(crate) fn labelled(name: &str, labels: &str) -> JobSpec {
    JobSpec { labels: labels.parse().expect("a good expression"), ..job(name) }
}

pub(crate) fn sized(name: &str, cpus: u64) -> JobSpec {
    let spec = job(name);
    JobSpec { resources: Resources { cpu_millis: cpus * 1_000, ..spec.resources.clone() }, ..spec }
}

pub(crate) fn failed() -> Outcome {
    Outcome::Failed { step: "test".into(), exit_code: 2 }
}

pub(crate) fn infra(cause: InfraCause) -> Outcome {
    Outcome::Infra { cause, detail: "it broke".into() }
}

pub(crate) fn step(ms: u64) -> StepReport {
    StepReport { name: "test".into(), exit_code: Some(0), duration_ms: Millis(ms) }
}
