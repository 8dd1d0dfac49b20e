//! What the tests of this folder share: small commits that can be told apart, and what is to be seen of them.

#![allow(dead_code, reason = "each test program uses a part of it")]

use buildyard_scheduler::Record;
use buildyard_scheduler::lifecycle::attempt::{Attempt, AttemptState};
use buildyard_scheduler::lifecycle::job::{Job, JobState};
use buildyard_scheduler::lifecycle::run::{Run, RunState};
use buildyard_store::{Batch, Fenced, LogChunk, Result, RunQuery, Store};
use buildyard_types::api::EventView;
use buildyard_types::job::{CheckoutSpec, JobSpec, JobUser, NetworkMode, Resources};
use buildyard_types::worker::{EndReport, SourceRef, Usage};
use buildyard_types::{ByteSize, Fence, LabelExpr, Millis, Outcome, RunId, Timestamp, Verdict, WorkerId};

/// The worker of every attempt.
pub(crate) const WORKER: WorkerId = WorkerId(4_711);

/// The right to write about the attempt of a run.
pub(crate) fn by(number: u64) -> Fenced {
    Fenced { worker: WORKER, attempt: RunId(number).job(0).attempt(1), fence: Fence(number) }
}

/// The first ten bytes of the log of a run.
pub(crate) fn chunk(number: u64) -> LogChunk {
    LogChunk { offset: 0, length: 10, sha256: format!("{number:064x}"), object: format!("logs/{number}") }
}

fn job(number: u64) -> Job {
    let resources = Resources {
        cpu_millis: 1_000,
        memory: ByteSize::from_gib(2),
        pids: 512,
        disk: ByteSize::from_gib(10),
    };
    let spec = JobSpec {
        name: "test".into(),
        image: "debian:12".into(),
        labels: LabelExpr::Any,
        needs: Vec::new(),
        env: [("CC".to_owned(), "gcc".to_owned())].into(),
        steps: Vec::new(),
        resources,
        timeout_ms: Millis::from_mins(30),
        queue_timeout_ms: Millis::from_mins(120),
        artifacts: Vec::new(),
        network: NetworkMode::None,
        user: JobUser::Build,
        checkout: CheckoutSpec { depth: None, tags: false },
    };
    Job { id: RunId(number).job(0), spec, needs: Vec::new(), state: JobState::Waiting, attempts: 0 }
}

fn event(number: u64, sentence: &str) -> EventView {
    EventView {
        sequence: 0,
        at: Timestamp(2_000),
        kind: "run.changed".into(),
        run: Some(RunId(number)),
        job: None,
        worker: None,
        sentence: sentence.into(),
    }
}

/// A run with one live attempt.
pub(crate) fn begin(number: u64) -> Batch {
    let id = by(number).attempt;
    let source =
        SourceRef { repository: "/srv/git/cjson".into(), commit: format!("{number:040x}"), ref_name: None };
    let run = Run {
        id: RunId(number),
        file: "pipeline.toml".into(),
        pipeline: None,
        source,
        requested_by: "triggered by admin".into(),
        key: Some(format!("key {number}")),
        created_at: Timestamp(1_000 + number),
        state: RunState::Received,
    };
    let attempt = Attempt {
        id,
        worker: WORKER,
        fence: Fence(number),
        placed_at: Timestamp(1_500),
        started_at: None,
        state: AttemptState::Live,
    };
    let records = vec![
        Record::RunCreated { run },
        Record::RunCompiled { run: RunId(number), pipeline: "cjson".into(), jobs: vec![job(number)] },
        Record::RunChanged { run: RunId(number), state: RunState::Active },
        Record::AttemptCreated { attempt },
        Record::JobChanged { job: id.job, state: JobState::Assigned { attempt: id, worker: WORKER } },
    ];
    Batch { records, events: vec![event(number, "begun")], ..Batch::default() }
}

/// How the run ends: every third one fails.
pub(crate) fn outcome(number: u64) -> Outcome {
    match number.is_multiple_of(3) {
        true => Outcome::Failed { step: "unit tests".into(), exit_code: 1 + (number % 200) as i32 },
        false => Outcome::Passed,
    }
}

/// The end of the run of [`begin`].
pub(crate) fn end(number: u64) -> Batch {
    let id = by(number).attempt;
    let at = Timestamp(3_000 + number);
    let outcome = outcome(number);
    let verdict = Verdict::of([&outcome]);
    let report = EndReport {
        outcome: outcome.clone(),
        steps: Vec::new(),
        usage: Usage::default(),
        notes: Vec::new(),
        image_digest: None,
    };
    let records = vec![
        Record::AttemptChanged { attempt: id, state: AttemptState::Removed { report, at } },
        Record::JobChanged { job: id.job, state: JobState::Finished { outcome, started: None, ended: at } },
        Record::RunChanged { run: RunId(number), state: RunState::Finished { verdict, reason: None, at } },
    ];
    Batch { records, events: vec![event(number, "over")], ..Batch::default() }
}

/// Everything that can be asked about, as one text.
pub(crate) async fn everything(store: &dyn Store) -> Result<String> {
    let mut text = format!("{:?}\n", store.load().await?);
    let mut query = RunQuery { limit: 200, ..RunQuery::default() };
    loop {
        let runs = store.runs(&query).await?;
        let Some(last) = runs.last() else { break };
        query.before = Some(last.id);
        for run in &runs {
            text += &format!("{run:?}\n{:?}\n", store.jobs(run.id).await?);
            for (attempt, log) in store.attempts(run.id).await? {
                text += &format!("{attempt:?} {log:?} {:?}\n", store.log_chunks(attempt.id, 0, 100).await?);
            }
        }
    }
    text += &format!("{:?} {}", store.events(0, None, u32::MAX).await?, store.last_event().await?);
    Ok(text)
}
