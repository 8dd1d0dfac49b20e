//! A store that fails: nobody is told that something happened which did not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use buildyard_scheduler::lifecycle::attempt::Attempt;
use buildyard_scheduler::lifecycle::job::Job;
use buildyard_scheduler::lifecycle::run::Run;
use buildyard_store::{
    Artifact, AuditLine, Batch, Fenced, InviteUse, LogChunk, LogState, Result, RetentionPolicy, RunQuery,
    Snapshot, Store, StoreError, Swept, Token,
};
use buildyard_types::api::{EventView, RunList, TriggerResponse};
use buildyard_types::worker::SyncResponse;
use buildyard_types::{AttemptId, Epoch, Outcome, RunId, Timestamp};

use tokio::sync::Semaphore;

use crate::driver::DriverError;

use super::support::{Farm, PIPELINE, Repository, ended, running};

/// A store whose next commits and loads fail.
struct Failing {
    inner: Arc<dyn Store>,
    commits: Arc<AtomicU32>,
    loads: Arc<AtomicU32>,
    /// A commit takes a permit and gives it back.
    gate: Arc<Semaphore>,
    committed: Arc<AtomicU32>,
}

fn take(left: &AtomicU32) -> Result<()> {
    let took = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    match took {
        Err(_) => Ok(()),
        Ok(_) => Err(StoreError::Unavailable {
            during: "committing to the test's store".into(),
            retry: true,
            source: "the disk is full".into(),
        }),
    }
}

#[async_trait]
impl Store for Failing {
    async fn begin_epoch(&self) -> Result<Epoch> {
        self.inner.begin_epoch().await
    }
    async fn load(&self) -> Result<Snapshot> {
        take(&self.loads)?;
        self.inner.load().await
    }
    async fn commit(&self, epoch: Epoch, batch: &Batch) -> Result<Vec<EventView>> {
        let _open = self.gate.acquire().await.unwrap();
        take(&self.commits)?;
        self.committed.fetch_add(1, Ordering::SeqCst);
        self.inner.commit(epoch, batch).await
    }
    async fn run(&self, run: RunId) -> Result<Option<Run>> {
        self.inner.run(run).await
    }
    async fn runs(&self, query: &RunQuery) -> Result<Vec<Run>> {
        self.inner.runs(query).await
    }
    async fn jobs(&self, run: RunId) -> Result<Vec<Job>> {
        self.inner.jobs(run).await
    }
    async fn attempts(&self, run: RunId) -> Result<Vec<(Attempt, LogState)>> {
        self.inner.attempts(run).await
    }
    async fn attempt(&self, attempt: AttemptId) -> Result<Option<(Attempt, LogState)>> {
        self.inner.attempt(attempt).await
    }
    async fn events(&self, after: u64, run: Option<RunId>, limit: u32) -> Result<Vec<EventView>> {
        self.inner.events(after, run, limit).await
    }
    async fn last_event(&self) -> Result<u64> {
        self.inner.last_event().await
    }
    async fn audit(&self, limit: u32) -> Result<Vec<AuditLine>> {
        self.inner.audit(limit).await
    }
    async fn append_log(&self, by: Fenced, chunk: &LogChunk) -> Result<u64> {
        self.inner.append_log(by, chunk).await
    }
    async fn finish_log(&self, by: Fenced, length: u64, sha256: &str) -> Result<()> {
        self.inner.finish_log(by, length, sha256).await
    }
    async fn small_logs(&self, after: Option<AttemptId>, below: u64, limit: u32) -> Result<Vec<AttemptId>> {
        self.inner.small_logs(after, below, limit).await
    }
    async fn log_chunks(&self, attempt: AttemptId, from: u64, limit: u32) -> Result<Vec<LogChunk>> {
        self.inner.log_chunks(attempt, from, limit).await
    }
    async fn compact_log(&self, attempt: AttemptId, whole: &LogChunk) -> Result<Vec<String>> {
        self.inner.compact_log(attempt, whole).await
    }
    async fn put_artifact(&self, by: Fenced, artifact: &Artifact) -> Result<()> {
        self.inner.put_artifact(by, artifact).await
    }
    async fn artifacts(&self, run: RunId) -> Result<Vec<Artifact>> {
        self.inner.artifacts(run).await
    }
    async fn replace_admin_token(&self, token: &Token) -> Result<()> {
        self.inner.replace_admin_token(token).await
    }
    async fn add_token(&self, token: &Token) -> Result<()> {
        self.inner.add_token(token).await
    }
    async fn token(&self, hash: &str) -> Result<Option<Token>> {
        self.inner.token(hash).await
    }
    async fn use_invite(&self, hash: &str, now: Timestamp) -> Result<InviteUse> {
        self.inner.use_invite(hash, now).await
    }
    async fn sweep(&self, policy: &RetentionPolicy) -> Result<Swept> {
        self.inner.sweep(policy).await
    }
    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }
}

/// What a test holds of its store.
struct Faults {
    /// Next commits that fail.
    commits: Arc<AtomicU32>,
    /// Next loads that fail.
    loads: Arc<AtomicU32>,
    gate: Arc<Semaphore>,
    /// Commits that went through.
    committed: Arc<AtomicU32>,
}

async fn failing() -> (Farm, Faults) {
    let faults = Faults {
        commits: Arc::default(),
        loads: Arc::default(),
        gate: Arc::new(Semaphore::new(1)),
        committed: Arc::default(),
    };
    let Faults { commits, loads, gate, committed } = &faults;
    let (commits, loads, gate, committed) = (commits.clone(), loads.clone(), gate.clone(), committed.clone());
    let wrap = move |inner| Arc::new(Failing { inner, commits, loads, gate, committed }) as Arc<dyn Store>;
    (Farm::over(Arc::new(tempfile::tempdir().unwrap()), wrap).await, faults)
}

#[tokio::test]
async fn a_commit_that_fails_is_told_and_leaves_nothing() {
    let (farm, Faults { commits, loads, .. }) = failing().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    commits.store(1, Ordering::SeqCst);
    loads.store(2, Ordering::SeqCst);
    let answer = farm.trigger(&repository, Some("k")).await;
    assert_eq!(answer.problem(), (503, "unavailable".into()));
    assert!(answer.headers.contains_key("retry-after"));
    assert!(farm.get("/api/v1/runs").await.ok::<RunList>().runs.is_empty());
    // The client does as it was told. While the core is rebuilt it may hear the same again.
    let made: TriggerResponse = loop {
        let answer = farm.trigger(&repository, Some("k")).await;
        if answer.status.is_success() {
            break answer.json();
        }
        assert_eq!(answer.problem(), (503, "unavailable".into()));
        tokio::task::yield_now().await;
    };
    assert_eq!(made.runs[0].id, RunId(1), "the number of the run that was not made is not lost");
    let mut worker = farm.worker().await;
    let order = worker.order().await;
    worker.carry_out(&order, Outcome::Passed).await;
    assert!(farm.get("/metrics").await.text().contains("buildyard_commit_failures_total 1\n"));
}

#[tokio::test]
async fn a_worker_keeps_its_lease_while_the_store_is_away() {
    let (farm, Faults { commits, .. }) = failing().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    let mut worker = farm.worker().await;
    farm.trigger(&repository, None).await.done();
    let order = worker.order().await;
    // Its first report would be put on record, and that fails: it hears of its lease and of nothing else.
    commits.store(1, Ordering::SeqCst);
    let told: SyncResponse = worker.sync(vec![running(&order)]).await;
    assert!(told.lease_ms.0 > 0 && told.run.is_empty() && told.stop.is_empty() && told.forget.is_empty());
    commits.store(1, Ordering::SeqCst);
    let told: SyncResponse = worker.sync(vec![ended(&order, Outcome::Passed, true)]).await;
    assert!(told.forget.is_empty(), "an end that is not on record is not forgotten");
    worker.carry_out(&order, Outcome::Passed).await;
    let next = worker.order().await;
    assert_eq!(next.spec.name, "test");
}

#[tokio::test]
async fn a_newer_epoch_ends_the_coordinator() {
    let (farm, ..) = failing().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    farm.coordinator.app.store.begin_epoch().await.unwrap();
    let answer = farm.trigger(&repository, None).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(farm.get("/api/v1/runs").await.ok::<RunList>().runs.is_empty());
    let ended = farm.coordinator.stop().await;
    assert!(matches!(ended, Err(crate::ServeError::Driver(crate::DriverEnd::EpochOver(_)))), "{ended:?}");
}

#[tokio::test]
async fn nothing_is_said_before_the_commit_and_many_inputs_share_one() {
    let (farm, faults) = failing().await;
    let shut = faults.gate.clone().acquire_owned().await.unwrap();
    let before = faults.committed.load(Ordering::SeqCst);
    let driver = &farm.coordinator.app.driver;
    let submit = |number: u32| {
        let source = buildyard_types::worker::SourceRef {
            repository: "/nowhere".into(),
            commit: "0".repeat(40),
            ref_name: None,
        };
        let file = "pipeline.toml".to_owned();
        let requested_by = "triggered by a test".to_owned();
        let key = Some(number.to_string());
        driver.decide(
            buildyard_scheduler::Input::Submit { source, file, requested_by, key },
            Vec::new(),
            None,
        )
    };
    // The first is on its way to the disk and stays there; the others arrive meanwhile.
    let mut all = Box::pin(futures_util::future::join_all((0..100).map(submit)));
    for _ in 0..1_000 {
        assert!(futures_util::poll!(&mut all).is_pending(), "an answer came before the commit");
        tokio::task::yield_now().await;
    }
    drop(shut);
    let answers = all.await;
    let mut runs = std::collections::BTreeSet::new();
    for answer in answers {
        match answer.unwrap() {
            buildyard_scheduler::Reply::Run(run) => runs.insert(run),
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(runs.len(), 100);
    let commits = faults.committed.load(Ordering::SeqCst) - before;
    assert!(commits < 20, "{commits} commits for 100 inputs that waited together");
}

#[tokio::test]
async fn a_call_that_was_given_up_is_never_carried_out() {
    let (farm, faults) = failing().await;
    let shut = faults.gate.clone().acquire_owned().await.unwrap();
    let hasty = farm.coordinator.app.driver.patient(std::time::Duration::from_millis(1));
    let submit = |key: &str| {
        let source = buildyard_types::worker::SourceRef {
            repository: "/nowhere".into(),
            commit: "0".repeat(40),
            ref_name: None,
        };
        let file = "pipeline.toml".to_owned();
        let requested_by = "triggered by a test".to_owned();
        let key = Some(key.to_owned());
        let input = buildyard_scheduler::Input::Submit { source, file, requested_by, key };
        Box::pin(hasty.decide(input, Vec::new(), None))
    };
    // The first is taken up and its commit hangs; the second is still in the queue.
    let (mut first, mut second) = (submit("first"), submit("second"));
    assert!(futures_util::poll!(&mut first).is_pending());
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert!(futures_util::poll!(&mut second).is_pending());
    assert_eq!(first.await.unwrap_err(), DriverError::Unknown);
    assert_eq!(second.await.unwrap_err(), DriverError::Busy);
    drop(shut);
    let patient = &farm.coordinator.app.driver;
    let keys = patient.look(|core, _| core.state().keys.keys().cloned().collect::<Vec<_>>()).await.unwrap();
    assert_eq!(keys, ["first"]);
}

#[tokio::test]
async fn an_end_while_the_store_is_away_commits_nothing_that_was_refused() {
    let (farm, faults) = failing().await;
    let repository = Repository::with(farm.temp.path(), &[("pipeline.toml", PIPELINE)]);
    faults.commits.store(1, Ordering::SeqCst);
    faults.loads.store(u32::MAX, Ordering::SeqCst);
    let before = faults.committed.load(Ordering::SeqCst);
    assert_eq!(farm.trigger(&repository, None).await.problem(), (503, "unavailable".into()));
    let Farm { coordinator, router, temp, .. } = farm;
    drop(router);
    coordinator.stop().await.unwrap();
    assert_eq!(faults.committed.load(Ordering::SeqCst), before);
    assert!(Farm::open(temp).await.get("/api/v1/runs").await.ok::<RunList>().runs.is_empty());
}
