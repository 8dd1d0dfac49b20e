//! The worker's executor without a farm: `buildyard run`.
//!
//! Containers, workspaces, init, limits and verdicts are those of the farm; only the ends differ. The commit is a
//! copy of somebody's checkout as it stands, the log goes to whoever watches, artifacts go into a folder.

mod artifacts;
mod copy;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use buildyard_types::log::{HEADER_BYTES, Record};
use buildyard_types::worker::{AttemptOrder, EndReport, SourceRef, StopCause};
use buildyard_types::{ByteSize, Fence, JobSpec, RunId, Timestamp};
use tokio::sync::watch;

use crate::cgroup::MemoryCounters;
use crate::client::ArtifactStore;
use crate::clock::Clock;
use crate::data::{DataDir, DataError, make_dir};
use crate::engine::docker::{DEFAULT_SOCKET, DockerEngine};
use crate::engine::{Engine, EngineError, Instance};
use crate::executor::outcome::in_one_sentence;
use crate::executor::{Assignment, Executor, Finished, GRACE, LogSink, Orders, Supervisor};
use crate::image::Images;
use crate::init_binary;
use crate::network::{Egress, EgressNetwork, Holders, holders};
use crate::profile::Policy;
use crate::workspace::Workspaces;
pub use copy::{Checkout, CheckoutError};

/// What the runner is told.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// Where workspaces are made. Several runs may use one folder at a time; nothing of them stays in it.
    pub folder: PathBuf,
    /// Socket of the container engine; the usual one where it is not given.
    pub engine_socket: Option<PathBuf>,
    /// What jobs may do beyond the ordinary.
    pub policy: Policy,
    /// How much a job may keep.
    pub artifacts: crate::artifacts::ArtifactLimits,
}

/// Why a job could not be carried out here at all.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// It was not started by root.
    #[error(
        "running jobs here needs root, as on a worker: workspaces are mounted and files are given to the job's user; \
         start it with sudo"
    )]
    NotRoot,
    /// There is no container engine.
    #[error(
        "no container engine answers; is it running? (systemctl start docker, or apt-get install docker.io)"
    )]
    NoEngine(#[source] EngineError),
    /// The folder cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A part could not be set up.
    #[error("could not {doing}")]
    Setup {
        /// What was attempted.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Hears the log of a job as it comes.
pub trait Sink: Send + Sync {
    /// One record: output, the begin or end of a step, or a sentence by the farm.
    fn record(&mut self, record: &Record<'_>);
}

/// A job to run here.
#[derive(Debug, Clone)]
pub struct LocalJob {
    /// Its place in the pipeline, from 0.
    pub index: u32,
    /// What it does.
    pub spec: JobSpec,
    /// The pipeline's name.
    pub pipeline: String,
    /// Most bytes that its log may hold.
    pub log_cap: ByteSize,
    /// Where its artifacts go; they are dropped where there is no folder.
    pub artifacts: Option<PathBuf>,
}

/// Runs jobs on this machine.
pub struct LocalRunner {
    executor: Executor,
    data: DataDir,
}

fn setup<E: std::error::Error + Send + Sync + 'static>(doing: &'static str) -> impl FnOnce(E) -> LocalError {
    move |source| LocalError::Setup { doing, source: Box::new(source) }
}

impl LocalRunner {
    /// Sets everything up, and clears away what killed runs left behind.
    pub async fn open(config: &LocalConfig) -> Result<Self, LocalError> {
        if !rustix::process::geteuid().is_root() {
            return Err(LocalError::NotRoot);
        }
        let socket = config.engine_socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET));
        Self::open_with(config, Arc::new(DockerEngine::new(socket)), MemoryCounters::of).await
    }

    async fn open_with(
        config: &LocalConfig,
        engine: Arc<dyn Engine>,
        counters: fn(u32) -> Option<MemoryCounters>,
    ) -> Result<Self, LocalError> {
        let info = engine.info().await.map_err(LocalError::NoEngine)?;
        make_dir(&config.folder, 0o711).map_err(setup("make the folder of runs"))?;
        clear_away(&config.folder, &*engine).await;
        let folder = config.folder.join(format!("run-{:016x}", rand::random::<u64>()));
        let data = DataDir::open(&folder)?;
        let instance = Instance::new(data.instance());
        let init = init_binary::write_to(data.root()).map_err(setup("write the program of process 1"))?;
        let executor = Executor {
            // It has no later attempts to make anything ahead for.
            holders: Holders::new(engine.clone(), instance.clone(), init.clone(), 0, holders::sockets),
            images: Images::open(data.root(), instance.clone()).map_err(setup("open the facts of images"))?,
            engine,
            instance,
            workspaces: Workspaces::open(data.root()).await.map_err(setup("make workspaces"))?,
            // There is no coordinator: the job's own network rules still keep it from this host.
            egress: Arc::new(Egress::new(None)),
            host_arch: info.arch,
            policy: config.policy,
            init,
            artifacts: config.artifacts,
            clock: Clock::start(),
            counters,
            attempts: data.attempts(),
        };
        Ok(Self { executor, data })
    }

    /// Runs one job and removes everything of it but its artifacts. When `stop` completes, the job is cancelled
    /// with the grace that the farm gives.
    pub async fn run(
        &self,
        job: &LocalJob,
        checkout: &Checkout,
        sink: &mut dyn Sink,
        stop: impl Future<Output = ()>,
    ) -> EndReport {
        let checkout = &checkout.with_history(&job.spec.checkout);
        let order = AttemptOrder {
            attempt: RunId(0).job(job.index).attempt(1),
            fence: Fence(0),
            spec: job.spec.clone(),
            source: checkout.source().clone(),
            pipeline: job.pipeline.clone(),
            log_cap: job.log_cap,
        };
        let until = Some(Timestamp(u64::MAX));
        let (orders, told) = watch::channel(Orders { until, ..Orders::default() });
        let mut log = Told { sink, next: 0, length: 0 };
        let store = artifacts::Folder::new(job.artifacts.clone(), checkout.owner());
        let assignment = Assignment {
            order: &order,
            source: checkout,
            log: &mut log,
            artifacts: &store as &dyn ArtifactStore,
            supervisor: &AtOnce,
            orders: told,
        };
        let cancel = async {
            stop.await;
            let cause = StopCause::Cancelled { by: "by you".to_owned() };
            orders.send_modify(|orders| orders.stop = Some((cause, GRACE)));
            std::future::pending::<()>().await
        };
        let finished = tokio::select! {
            finished = self.executor.run(assignment) => finished,
            () = cancel => unreachable!("it waits for ever"),
        };
        self.executor.remove(order.attempt).await;
        if let Err(error) = store.close() {
            tracing::warn!(error = %error, "parts of artifacts stay");
        }
        match finished {
            Finished::Report(report) => *report,
            Finished::Left(_) => unreachable!("nobody orders a local job to be left"),
        }
    }

    /// Takes away what all jobs shared: the network, and the folder of this run.
    pub async fn close(self) {
        if self.executor.egress.is_made().await
            && let Err(error) = EgressNetwork::remove(&*self.executor.engine, &self.executor.instance).await
        {
            tracing::warn!(error = %in_one_sentence(&error), "the network stays");
        }
        let folder = self.data.root().to_owned();
        drop(self.data);
        if let Err(error) = std::fs::remove_dir_all(&folder) {
            tracing::warn!(folder = %folder.display(), error = %error, "a folder stays");
        }
    }
}

/// Removes what runs left behind that were killed: their folders have no holder any more.
async fn clear_away(folder: &Path, engine: &dyn Engine) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_run =
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("run-"));
        // One that is held belongs to a run that goes on.
        if is_run
            && let Ok(data) = DataDir::open(&path)
            && let Err(error) = clear_run(&data, engine).await
        {
            tracing::warn!(folder = %path.display(), error = %error, "what a killed run left stays for now");
        }
    }
}

async fn clear_run(
    data: &DataDir,
    engine: &dyn Engine,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let instance = Instance::new(data.instance());
    for container in engine.containers(&instance).await? {
        engine.remove(&container.id).await?;
    }
    EgressNetwork::remove(engine, &instance).await?;
    let swept = Workspaces::open(data.root()).await?.sweep(&Default::default()).await?;
    if let Some(failure) = swept.failed.first() {
        return Err(failure.as_str().into());
    }
    Ok(std::fs::remove_dir_all(data.root())?)
}

/// The sink as the executor's log. There is nobody to send anything again to, so everything is safe at once.
struct Told<'s> {
    sink: &'s mut dyn Sink,
    next: u64,
    length: u64,
}

impl LogSink for Told<'_> {
    fn append(&mut self, record: &Record<'_>) -> io::Result<()> {
        self.length += (HEADER_BYTES + record.payload.len()) as u64;
        self.sink.record(record);
        Ok(())
    }

    fn commit(&mut self, next: u64) -> io::Result<()> {
        self.next = next;
        Ok(())
    }

    fn next(&self) -> u64 {
        self.next
    }

    fn length(&self) -> u64 {
        self.length
    }
}

/// Without a coordinator there is no lease to wait for.
struct AtOnce;

#[async_trait]
impl Supervisor for AtOnce {
    async fn may_start(&self) -> bool {
        true
    }

    async fn started(&self) {}
}

/// What is said of a checkout in `BUILDYARD_*`.
fn source_ref(repository: &Path, commit: String, ref_name: Option<String>) -> SourceRef {
    SourceRef { repository: repository.display().to_string(), commit, ref_name }
}
