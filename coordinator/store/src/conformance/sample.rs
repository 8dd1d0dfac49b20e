//! Runs, jobs, attempts and workers to fill a store with.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_scheduler::Record;
use buildyard_scheduler::lifecycle::attempt::{Attempt, AttemptState};
use buildyard_scheduler::lifecycle::job::{Job, JobState};
use buildyard_scheduler::lifecycle::run::{Run, RunState};
use buildyard_scheduler::lifecycle::worker::Worker;
use buildyard_types::api::EventView;
use buildyard_types::job::{
    CheckoutSpec, Diagnostic, JobSpec, JobUser, NetworkMode, Resources, Shell, StepSpec,
};
use buildyard_types::worker::{EndReport, Offer, SourceRef, StepReport, Usage};
use buildyard_types::{
    AttemptId, ByteSize, Epoch, Fence, JobId, LabelExpr, Millis, Outcome, RunId, Timestamp, Verdict, WorkerId,
};

use crate::{Batch, Fenced, LogChunk, Store};

pub(super) const WORKER: WorkerId = WorkerId(0xfedc_ba98_7654_3210);

pub(super) fn run(number: u64) -> Run {
    Run {
        id: RunId(number),
        file: "pipeline.toml".into(),
        pipeline: None,
        source: SourceRef {
            repository: "/srv/git/cjson".into(),
            commit: format!("{number:040x}"),
            ref_name: Some("refs/heads/größe".into()),
        },
        requested_by: "triggered by admin".into(),
        key: None,
        created_at: Timestamp(1_000 + number),
        state: RunState::Received,
    }
}

pub(super) fn spec(name: &str) -> JobSpec {
    JobSpec {
        name: name.into(),
        image: "debian:12".into(),
        labels: LabelExpr::Any,
        needs: Vec::new(),
        env: BTreeMap::from([("CC".into(), "gcc".into())]),
        steps: vec![StepSpec {
            name: "make".into(),
            run: "make check\nprintf '\\0\"'\n".into(),
            shell: Shell::Sh,
            dir: String::new(),
            env: BTreeMap::new(),
            timeout_ms: Some(Millis::from_mins(5)),
        }],
        resources: Resources {
            cpu_millis: 2_000,
            memory: ByteSize::from_gib(2),
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

pub(super) fn job(id: JobId) -> Job {
    let name = format!("job {}", id.index.0);
    Job { id, spec: spec(&name), needs: Vec::new(), state: JobState::Waiting, attempts: 0 }
}

pub(super) fn queued(at: u64) -> JobState {
    JobState::Queued { since: Timestamp(at), not_before: Timestamp(at) }
}

pub(super) fn job_passed(at: u64) -> JobState {
    JobState::Finished { outcome: Outcome::Passed, started: Some(Timestamp(at - 1)), ended: Timestamp(at) }
}

pub(super) fn run_passed(at: u64) -> RunState {
    RunState::Finished { verdict: Verdict::Passed, reason: None, at: Timestamp(at) }
}

pub(super) fn refused(at: u64) -> RunState {
    let diagnostic = Diagnostic {
        file: "pipeline.toml".into(),
        line: 3,
        column: 1,
        length: 4,
        source: "nmae = \"x\"".into(),
        code: "unknown-key".into(),
        message: "no key `nmae`".into(),
        help: Some("did you mean `name`?".into()),
    };
    RunState::Refused { diagnostics: vec![diagnostic], at: Timestamp(at) }
}

pub(super) fn attempt(id: AttemptId, fence: u64) -> Attempt {
    Attempt {
        id,
        worker: WORKER,
        fence: Fence(fence),
        placed_at: Timestamp(2_000),
        started_at: None,
        state: AttemptState::Live,
    }
}

pub(super) fn report(outcome: Outcome) -> EndReport {
    let step = StepReport { name: "make".into(), exit_code: Some(0), duration_ms: Millis(1_234) };
    EndReport {
        outcome,
        steps: vec![step],
        usage: Usage { cpu_ms: Millis(900), ..Usage::default() },
        notes: vec!["a child was killed for lack of memory".into()],
        image_digest: Some("sha256:00".into()),
    }
}

pub(super) fn ended(at: u64) -> AttemptState {
    AttemptState::Ended { report: report(Outcome::Passed), at: Timestamp(at) }
}

pub(super) fn removed(at: u64) -> AttemptState {
    AttemptState::Removed { report: report(Outcome::Passed), at: Timestamp(at) }
}

pub(super) fn worker(id: WorkerId) -> Worker {
    Worker {
        id,
        name: "anvil".into(),
        pools: BTreeSet::from(["linux".to_owned()]),
        offer: Offer { version: "0.1.0".into(), ..Offer::default() },
        cordoned: false,
        enrolled_at: Timestamp(500),
    }
}

pub(super) fn event(run: Option<u64>, sentence: &str) -> EventView {
    EventView {
        sequence: 0,
        at: Timestamp(3_000),
        kind: "job.finished".into(),
        run: run.map(RunId),
        job: run.map(|run| RunId(run).job(0)),
        worker: None,
        sentence: sentence.into(),
    }
}

pub(super) fn batch(records: Vec<Record>) -> Batch {
    Batch { at: Timestamp(4_000), records, ..Batch::default() }
}

/// A run with one job, placed and live, under a fence that is the run's number.
pub(super) fn live_run(number: u64) -> Vec<Record> {
    let id = RunId(number).job(0).attempt(1);
    vec![
        Record::RunCreated { run: run(number) },
        Record::RunCompiled { run: RunId(number), pipeline: "cjson".into(), jobs: vec![job(id.job)] },
        Record::RunChanged { run: RunId(number), state: RunState::Active },
        Record::AttemptCreated { attempt: attempt(id, number) },
        Record::JobChanged { job: id.job, state: JobState::Assigned { attempt: id, worker: WORKER } },
        Record::AttemptStarted { attempt: id, at: Timestamp(2_500) },
    ]
}

/// What ends the run of [`live_run`] at a time, so that nothing of it is left.
pub(super) fn over(number: u64, at: u64) -> Vec<Record> {
    let id = RunId(number).job(0).attempt(1);
    vec![
        Record::AttemptChanged { attempt: id, state: ended(at) },
        Record::JobChanged { job: id.job, state: job_passed(at) },
        Record::RunChanged { run: RunId(number), state: run_passed(at) },
        Record::AttemptChanged { attempt: id, state: removed(at) },
    ]
}

/// The right of the worker of [`live_run`] to write.
pub(super) fn by(number: u64) -> Fenced {
    Fenced { worker: WORKER, attempt: RunId(number).job(0).attempt(1), fence: Fence(number) }
}

/// A chunk of a log whose hash and object follow from its place.
pub(super) fn chunk(number: u64, offset: u64, length: u64) -> LogChunk {
    let sha256 = format!("{offset:032x}{length:032x}");
    LogChunk { offset, length, sha256, object: format!("logs/{number}/{offset}") }
}

/// Begins an epoch and commits records in it.
pub(super) async fn commit(store: &dyn Store, records: Vec<Record>) -> Epoch {
    let epoch = store.begin_epoch().await.unwrap();
    store.commit(epoch, &batch(records)).await.unwrap();
    epoch
}
