//! Prints how many writes a second the store makes durable, each beside what it is measured against.
//!
//! `cargo run --release -p buildyard-store-sqlite --example commit_rate [FOLDER]`
//!
//! A claim is what placing a job commits: the job's change, its attempt and an event. A finish is what its end
//! commits: the attempt's change, the job's and an event. "alone" waits for each commit before the next;
//! "64 at once" keeps 64 callers busy; "64 in a batch" is how the driver commits, many inputs in one batch.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use buildyard_scheduler::Record;
use buildyard_scheduler::lifecycle::attempt::{Attempt, AttemptState};
use buildyard_scheduler::lifecycle::job::{Job, JobState};
use buildyard_scheduler::lifecycle::run::{Run, RunState};
use buildyard_store::{Batch, Fenced, LogChunk, Store};
use buildyard_store_sqlite::SqliteStore;
use buildyard_types::api::EventView;
use buildyard_types::job::{CheckoutSpec, JobSpec, JobUser, NetworkMode, Resources, Shell, StepSpec};
use buildyard_types::worker::{EndReport, SourceRef, Usage};
use buildyard_types::{
    ByteSize, Epoch, Fence, JobId, LabelExpr, Millis, Outcome, RunId, Timestamp, WorkerId,
};
use tokio::task::JoinSet;

const WORKER: WorkerId = WorkerId(0xfedc_ba98);
const JOBS_PER_RUN: u64 = 100;

fn run(id: RunId) -> Run {
    let source = SourceRef {
        repository: "https://forge.example/team/cjson.git".into(),
        commit: "7".repeat(40),
        ref_name: Some("refs/heads/main".into()),
    };
    Run {
        id,
        file: "pipeline.toml".into(),
        pipeline: None,
        source,
        requested_by: "triggered by admin".into(),
        key: None,
        created_at: Timestamp(1),
        state: RunState::Received,
    }
}

fn job(id: JobId) -> Job {
    let step = |name: &str| StepSpec {
        name: name.into(),
        run: "make check CC=\"$MATRIX_CC\"\n".repeat(8),
        shell: Shell::Sh,
        dir: String::new(),
        env: [("CFLAGS".to_owned(), "-O2 -g".to_owned())].into(),
        timeout_ms: None,
    };
    let resources = Resources {
        cpu_millis: 1_000,
        memory: ByteSize::from_gib(2),
        pids: 512,
        disk: ByteSize::from_gib(10),
    };
    let spec = JobSpec {
        name: format!("job {}", id.index.0),
        image: "c-toolchain:12".into(),
        labels: LabelExpr::Any,
        needs: Vec::new(),
        env: [("CI".to_owned(), "true".to_owned())].into(),
        steps: vec![step("build"), step("unit tests")],
        resources,
        timeout_ms: Millis::from_mins(30),
        queue_timeout_ms: Millis::from_mins(120),
        artifacts: Vec::new(),
        network: NetworkMode::None,
        user: JobUser::Build,
        checkout: CheckoutSpec { depth: None, tags: false },
    };
    Job { id, spec, needs: Vec::new(), state: JobState::Waiting, attempts: 0 }
}

fn id(number: u64) -> JobId {
    RunId(number / JOBS_PER_RUN + 1).job((number % JOBS_PER_RUN) as u32)
}

fn event(job: JobId, sentence: &str) -> EventView {
    EventView {
        sequence: 0,
        at: Timestamp(2),
        kind: "job.changed".into(),
        run: Some(job.run),
        job: Some(job),
        worker: Some(WORKER),
        sentence: sentence.into(),
    }
}

fn claim(batch: &mut Batch, number: u64) {
    let job = id(number);
    let attempt = job.attempt(1);
    batch.records.push(Record::AttemptCreated {
        attempt: Attempt {
            id: attempt,
            worker: WORKER,
            fence: Fence(number + 1),
            placed_at: Timestamp(2),
            started_at: None,
            state: AttemptState::Live,
        },
    });
    batch.records.push(Record::JobChanged { job, state: JobState::Assigned { attempt, worker: WORKER } });
    batch.events.push(event(job, "job `unit tests` was placed on anvil"));
}

fn finish(batch: &mut Batch, number: u64) {
    let job = id(number);
    let report = EndReport {
        outcome: Outcome::Passed,
        steps: Vec::new(),
        usage: Usage::default(),
        notes: Vec::new(),
        image_digest: Some(format!("sha256:{}", "0".repeat(64))),
    };
    let at = Timestamp(3);
    batch
        .records
        .push(Record::AttemptChanged { attempt: job.attempt(1), state: AttemptState::Ended { report, at } });
    let state = JobState::Finished { outcome: Outcome::Passed, started: Some(Timestamp(2)), ended: at };
    batch.records.push(Record::JobChanged { job, state });
    batch.events.push(event(job, "job `unit tests` passed"));
}

type Fill = fn(&mut Batch, u64);

fn batch_of(fill: Fill, numbers: impl Iterator<Item = u64>) -> Batch {
    let mut batch = Batch::default();
    numbers.for_each(|number| fill(&mut batch, number));
    batch
}

/// Processor time of this process so far. On a busy machine it says more than the clock.
fn processor_time() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second field may hold blanks; the third begins behind its parenthesis. Times are in hundredths.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields
        .get(11..13)
        .context("no times in /proc/self/stat")?
        .iter()
        .filter_map(|t| t.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Runs one measurement and prints it.
async fn measure(name: &str, count: u64, work: impl Future<Output = Result<()>>) -> Result<()> {
    let (begun, used) = (Instant::now(), processor_time()?);
    work.await?;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    let cpu = (processor_time()? - used).as_secs_f64() * 1e6 / count as f64;
    println!("{name:<48} {rate:>9.0}/s {cpu:>8.0} us of processor each  n={count}");
    Ok(())
}

/// Each waits for the one before.
async fn alone(
    store: &SqliteStore,
    epoch: Epoch,
    numbers: std::ops::Range<u64>,
    per_batch: usize,
) -> Result<()> {
    let all: Vec<u64> = numbers.collect();
    for group in all.chunks(per_batch) {
        store.commit(epoch, &batch_of(claim, group.iter().copied())).await?;
        store.commit(epoch, &batch_of(finish, group.iter().copied())).await?;
    }
    Ok(())
}

/// So many callers, each of which waits for its own.
async fn at_once(
    store: &Arc<SqliteStore>,
    epoch: Epoch,
    numbers: std::ops::Range<u64>,
    callers: u64,
) -> Result<()> {
    let mut calls = JoinSet::new();
    for caller in 0..callers {
        let store = Arc::clone(store);
        let mine: Vec<u64> = numbers.clone().filter(|number| number % callers == caller).collect();
        calls.spawn(async move {
            for number in mine {
                store.commit(epoch, &batch_of(claim, [number].into_iter())).await?;
                store.commit(epoch, &batch_of(finish, [number].into_iter())).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    Ok(())
}

/// Log chunks, each caller to a log of its own.
async fn logs(store: &Arc<SqliteStore>, first: u64, callers: u64, chunks: u64) -> Result<()> {
    let mut calls = JoinSet::new();
    for number in first..first + callers {
        let store = Arc::clone(store);
        let by = Fenced { worker: WORKER, attempt: id(number).attempt(1), fence: Fence(number + 1) };
        calls.spawn(async move {
            for place in 0..chunks {
                let object = format!("logs/{}/{:014}-0123456789abcdef", by.attempt, place * 65_536);
                let chunk =
                    LogChunk { offset: place * 65_536, length: 65_536, sha256: "a".repeat(64), object };
                store.append_log(by, &chunk).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    Ok(())
}

fn sync_time(folder: &Path) -> Result<Duration> {
    use std::os::unix::fs::FileExt;
    const SYNCS: u32 = 500;
    let file = std::fs::File::create(folder.join("sync"))?;
    let begun = Instant::now();
    for place in 0..SYNCS {
        file.write_all_at(&[7; 12_288], u64::from(place) * 12_288)?;
        file.sync_data()?;
    }
    Ok(begun.elapsed() / SYNCS)
}

async fn submit(store: &SqliteStore, epoch: Epoch, jobs: u64) -> Result<()> {
    for number in 1..=jobs / JOBS_PER_RUN {
        let run_id = RunId(number);
        let jobs = (0..JOBS_PER_RUN as u32).map(|index| job(run_id.job(index))).collect();
        let records = vec![
            Record::RunCreated { run: run(run_id) },
            Record::RunCompiled { run: run_id, pipeline: "cjson".into(), jobs },
            Record::RunChanged { run: run_id, state: RunState::Active },
        ];
        store.commit(epoch, &Batch { records, ..Batch::default() }).await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let folder = match std::env::args_os().nth(1) {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    };
    let folder = folder.context("making a folder for the database")?;
    println!("one write of 12 KiB with fdatasync: {:?}", sync_time(folder.path())?);
    let path = folder.path().join("farm.db");
    let store = Arc::new(SqliteStore::open(&path).await?);
    let epoch = store.begin_epoch().await?;
    let jobs = 100_000;
    measure("jobs submitted, 100 in a run, a commit each", jobs, submit(&store, epoch, jobs)).await?;
    measure("claim + finish, alone", 3_000, alone(&store, epoch, 0..3_000, 1)).await?;
    measure("claim + finish, 64 at once", 20_000, at_once(&store, epoch, 10_000..30_000, 64)).await?;
    measure("claim + finish, 64 in a batch", 20_000, alone(&store, epoch, 30_000..50_000, 64)).await?;
    measure("claim + finish, 10,000 in a batch", 40_000, alone(&store, epoch, 50_000..90_000, 10_000))
        .await?;
    store.commit(epoch, &batch_of(claim, 90_000..90_064)).await?;
    measure("log chunks, alone", 3_000, logs(&store, 90_000, 1, 3_000)).await?;
    measure("log chunks, 63 logs at once", 63 * 500, logs(&store, 90_001, 63, 500)).await?;
    store.close().await?;

    let begun = Instant::now();
    let store = SqliteStore::open(&path).await?;
    let opened = begun.elapsed();
    let begun = Instant::now();
    let open_jobs = store.load().await?.jobs.len();
    ensure!(open_jobs as u64 == jobs, "{open_jobs} of {jobs} jobs came back");
    let size = std::fs::metadata(&path)?.len() >> 20;
    println!(
        "opened a database of {size} MiB in {opened:?}, loaded {open_jobs} jobs in {:?}",
        begun.elapsed()
    );
    store.close().await?;
    Ok(())
}
