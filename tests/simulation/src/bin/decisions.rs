//! How long decisions take: `BUILDYARD_WORKERS` (1,000) workers, `BUILDYARD_JOBS` (100,000) queued jobs of
//! `BUILDYARD_CLASSES` (40) demands. Each input is measured alone, in processor time of the deciding thread, so
//! that what else the machine does is not counted. Nothing is asserted on times.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use buildyard_scheduler::lifecycle::attempt::decided_end;
use buildyard_scheduler::{Compiled, Core, Input, Reply, Settings, Snapshot, State};
use buildyard_test_simulation::rng::Rng;
use buildyard_types::job::{CheckoutSpec, JobUser, NetworkMode, Pipeline, Resources};
use buildyard_types::worker::{
    AttemptProgress, AttemptReport, Capacity, Offer, SessionId, SourceRef, SyncResponse,
};
use buildyard_types::{ByteSize, Epoch, JobSpec, Millis, Outcome, RunId, Timestamp, WorkerId};

const JOBS_PER_RUN: u64 = 10;
const NOW: Timestamp = Timestamp(1_000_000);

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn processor_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

struct Farm {
    core: Core,
    sequences: BTreeMap<WorkerId, u64>,
    took: BTreeMap<&'static str, Vec<Duration>>,
}

impl Farm {
    fn decide(&mut self, what: &'static str, input: Input) -> Reply {
        let begun = processor_time();
        let decision = self.core.decide(input, NOW);
        self.took.entry(what).or_default().push(processor_time().saturating_sub(begun));
        decision.reply
    }

    fn sync(&mut self, what: &'static str, worker: WorkerId, attempts: Vec<AttemptReport>) -> SyncResponse {
        let sequence = self.sequences.entry(worker).or_default();
        *sequence += 1;
        let session = SessionId { number: 1, nonce: 0 };
        let input = Input::Sync { worker, session, sequence: *sequence, offer: offer(worker.0), attempts };
        match self.decide(what, input) {
            Reply::Sync { response, .. } => response,
            other => panic!("a call was answered with {other:?}"),
        }
    }

    fn submit(&mut self, plan: u64, classes: u64) {
        let source = SourceRef { repository: "r".into(), commit: "c".into(), ref_name: None };
        let submit = Input::Submit {
            source,
            file: "pipeline.toml".into(),
            requested_by: "by admin".into(),
            key: None,
        };
        let Reply::Run(run) = self.decide("submit", submit) else { panic!("a submission makes a run") };
        let jobs = (0..JOBS_PER_RUN).map(|index| spec(index, (plan * 7 + index) % classes)).collect();
        let pipeline = Pipeline { name: "p".into(), file: "pipeline.toml".into(), jobs };
        self.decide("compiled, 10 jobs", Input::Compiled { run, result: Compiled::Pipeline(pipeline) });
    }
}

fn offer(worker: u64) -> Offer {
    let arch = if worker.is_multiple_of(10) { "arm64" } else { "amd64" };
    let facts = [("os", "linux"), ("arch", arch)].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let images = (0..20).map(|image| format!("image-{}", (image * 7 + worker) % 100)).collect();
    let capacity = Capacity {
        slots: 4,
        cpu_millis: 16_000,
        memory: ByteSize::from_gib(64),
        disk: ByteSize::from_gib(500),
    };
    Offer { facts: facts.into(), capacity, images, ..Offer::default() }
}

fn spec(index: u64, class: u64) -> JobSpec {
    let labels = if class.is_multiple_of(10) { "os=linux && arch=arm64" } else { "os=linux && arch=amd64" };
    JobSpec {
        name: format!("job-{index}"),
        image: format!("image-{}", class % 100),
        labels: labels.parse().expect("the expressions above are good"),
        needs: Vec::new(),
        env: BTreeMap::new(),
        steps: Vec::new(),
        resources: Resources {
            cpu_millis: 1_000 + class,
            memory: ByteSize::from_gib(1 + class % 4),
            pids: 512,
            disk: ByteSize::from_gib(10),
        },
        timeout_ms: Millis::from_mins(30),
        queue_timeout_ms: Millis::from_mins(120),
        artifacts: Vec::new(),
        network: NetworkMode::None,
        user: JobUser::Build,
        checkout: CheckoutSpec { depth: None, tags: false },
    }
}

fn main() {
    let (workers, jobs) = (from_env("BUILDYARD_WORKERS", 1_000), from_env("BUILDYARD_JOBS", 100_000));
    let classes = from_env("BUILDYARD_CLASSES", 40);
    let state = State::from_snapshot(Epoch(1), Settings::default(), Snapshot::default(), NOW);
    let mut farm = Farm { core: Core::new(state), sequences: BTreeMap::new(), took: BTreeMap::new() };
    for worker in (1..=workers).map(WorkerId) {
        let name = format!("worker-{}", worker.0);
        farm.decide("enrol", Input::Enrol { worker, name, pools: BTreeSet::new(), offer: offer(worker.0) });
        farm.sync("first call", worker, Vec::new());
    }
    for plan in 0..jobs.div_ceil(JOBS_PER_RUN) {
        farm.submit(plan, classes);
    }
    println!(
        "decisions: {workers} workers, {} jobs not finished, {classes} demands",
        farm.core.state().jobs.len()
    );

    let mut rng = Rng::new(1);
    for _ in 0..20_000 {
        one_attempt_ends(&mut farm, WorkerId(rng.between(1, workers)));
    }
    for plan in 0..200 {
        farm.submit(plan, classes);
        farm.decide("tick", Input::Tick);
        farm.decide(
            "cancel run",
            Input::CancelRun { run: RunId(rng.between(1, jobs / JOBS_PER_RUN)), by: "by admin".into() },
        );
    }
    for (what, mut took) in farm.took {
        took.sort_unstable();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        println!(
            "decisions: {what}: n {}, p50 {:?}, p99 {:?}, most {:?}",
            took.len(),
            at(50),
            at(99),
            at(100)
        );
    }
}

/// A worker says that its first attempt ended, and gets another one.
fn one_attempt_ends(farm: &mut Farm, worker: WorkerId) {
    let report = |state: &State, ended: bool| -> Vec<AttemptReport> {
        let running = AttemptProgress::Running { for_ms: Millis(5) };
        let over = AttemptProgress::Ended { report: Box::new(decided_end(Outcome::Passed)), removed: true };
        let state_of = |place: usize| if ended && place == 0 { over.clone() } else { running.clone() };
        let held = state.held(worker).enumerate();
        held.map(|(place, held)| AttemptReport {
            attempt: held.id,
            fence: held.fence,
            state: state_of(place),
        })
        .collect()
    };
    let attempts = report(farm.core.state(), false);
    farm.sync("call, nothing new", worker, attempts);
    let attempts = report(farm.core.state(), true);
    farm.sync("call, an attempt ended and another is placed", worker, attempts);
}
