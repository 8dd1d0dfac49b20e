//! From a configuration to a worker that can begin: directory, engine, identity, journal, and a sweep of whatever
//! belongs to nobody.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use buildyard_types::label::is_name;
use buildyard_types::worker::{EnrolRequest, Offer, PROTOCOL, SessionId};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::WorkerError;
use super::offer::Host;
use crate::backoff::Backoff;
use crate::cgroup::MemoryCounters;
use crate::client::{self, Client, ClientError};
use crate::clock::Clock;
use crate::config::WorkerConfig;
use crate::data::{DataDir, Identity};
use crate::engine::docker::{DEFAULT_SOCKET, DockerEngine};
use crate::engine::{Engine, EngineInfo, Instance};
use crate::executor::Executor;
use crate::executor::outcome::in_one_sentence;
use crate::image::Images;
use crate::init_binary;
use crate::journal::Journal;
use crate::network::{Egress, Holders, holders};
use crate::source::Mirrors;
use crate::workspace::Workspaces;

/// How long a worker that starts waits for its engine: both start with the host.
const ENGINE_LIMIT: Duration = Duration::from_secs(60);

/// Network namespaces that are made ahead at most. More attempts than this at one time gain nothing: the engine starts
/// no more than four at once.
const MOST_HOLDERS: usize = 8;

/// A worker that can begin.
pub(super) struct Started {
    pub(super) data: DataDir,
    pub(super) id: SessionId,
    pub(super) client: Client,
    pub(super) executor: Executor,
    pub(super) journal: Journal,
    pub(super) mirrors: Mirrors,
    pub(super) offer: watch::Receiver<Offer>,
}

fn setup<E: std::error::Error + Send + Sync + 'static>(doing: &'static str) -> impl FnOnce(E) -> WorkerError {
    move |source| WorkerError::Setup { doing, source: Box::new(source) }
}

pub(super) async fn start(config: &WorkerConfig) -> Result<Started, WorkerError> {
    if !rustix::process::geteuid().is_root() {
        return Err(WorkerError::NotRoot);
    }
    let data = DataDir::open(&config.data_dir)?;
    if let Some(folder) = closed_folder(data.root()) {
        return Err(WorkerError::Closed(folder));
    }
    let engine: Arc<dyn Engine> = Arc::new(match &config.engine_socket {
        Some(socket) => DockerEngine::new(socket),
        None => DockerEngine::new(Path::new(DEFAULT_SOCKET)),
    });
    start_with(config, data, engine).await
}

/// Everything behind the choice of the engine.
pub(super) async fn start_with(
    config: &WorkerConfig,
    data: DataDir,
    engine: Arc<dyn Engine>,
) -> Result<Started, WorkerError> {
    let info = wait_for_engine(&*engine).await?;
    let host = Host { capacity: config.capacity, data: data.root().to_owned() };
    let first = host.look(&*engine, &info).await;
    let identity = match data.identity()? {
        Some(identity) => identity,
        None => join(config, &data, first.clone()).await?,
    };
    let client = Client::new(&config.coordinator, identity).map_err(WorkerError::Refused)?;
    let journal = Journal::open(&data.journal())?;
    let instance = Instance::new(data.instance());
    let workspaces = Workspaces::open(data.root()).await.map_err(setup("make workspaces"))?;
    if let Some(why) = workspaces.why_watched() {
        tracing::warn!(why, "workspaces have no hard cap here; they are watched");
    }
    let init = init_binary::write_to(data.root()).map_err(setup("write the program of process 1"))?;
    let executor = Executor {
        images: Images::open(data.root(), instance.clone()).map_err(setup("open the facts of images"))?,
        holders: Holders::new(engine.clone(), instance.clone(), init.clone(), MOST_HOLDERS, holders::sockets),
        engine: engine.clone(),
        instance,
        workspaces,
        egress: Arc::new(Egress::new(Some(&config.coordinator))),
        host_arch: info.arch.clone(),
        policy: config.policy,
        init,
        artifacts: config.artifacts,
        clock: Clock::start(),
        counters: MemoryCounters::of,
        attempts: data.attempts(),
    };
    sweep(&executor, &journal, &data).await?;
    let mirrors = Mirrors::new(data.mirrors(), config.mirrors);
    let (sender, offer) = watch::channel(first);
    tokio::spawn(host.watch(engine, info, sender));
    let id = SessionId { number: data.next_session()?, nonce: rand::random() };
    Ok(Started { data, id, client, executor, journal, mirrors, offer })
}

/// The folder on the way to `path` that the users of jobs may not pass through, if there is one. They check commits out
/// below it, as themselves.
fn closed_folder(path: &Path) -> Option<PathBuf> {
    let closed = |folder: &&Path| {
        std::fs::metadata(folder).is_ok_and(|found| std::os::unix::fs::MetadataExt::mode(&found) & 0o001 == 0)
    };
    path.ancestors().find(closed).map(Path::to_owned)
}

async fn wait_for_engine(engine: &dyn Engine) -> Result<EngineInfo, WorkerError> {
    let deadline = Instant::now() + ENGINE_LIMIT;
    let mut backoff = Backoff::default();
    loop {
        match engine.info().await {
            Ok(info) => return Ok(info),
            Err(error) if Instant::now() >= deadline => return Err(WorkerError::NoEngine(error)),
            Err(error) => {
                tracing::warn!(error = %in_one_sentence(&error), "waiting for the container engine");
                sleep(backoff.next()).await;
            }
        }
    }
}

/// Joins the farm with the one-time token.
async fn join(config: &WorkerConfig, data: &DataDir, offer: Offer) -> Result<Identity, WorkerError> {
    let path = config.token_file.as_ref().ok_or(WorkerError::NotEnrolled)?;
    let token = client::read_token(path).map_err(WorkerError::Enrol)?;
    let request = EnrolRequest { protocol: PROTOCOL, token, name: name(&config.name), offer };
    let mut backoff = Backoff::default();
    let response = loop {
        match client::enrol(&config.coordinator, &request).await {
            Ok(response) => break response,
            // Nothing reached the coordinator, so the token is still good. Any other failure may have used it up.
            Err(error @ ClientError::Unreachable { .. }) if error.never_arrived() => {
                tracing::warn!(error = %in_one_sentence(&error), "waiting for the coordinator");
                sleep(backoff.next()).await;
            }
            Err(error) => return Err(WorkerError::Enrol(error)),
        }
    };
    let identity = Identity { worker: response.worker, credential: response.credential };
    data.keep_identity(&identity)?;
    tracing::info!(worker_id = %identity.worker, "joined the farm");
    Ok(identity)
}

/// A name that the coordinator takes, whatever the host is called.
fn name(wanted: &str) -> String {
    let keep = |c: char| if is_name(&c.to_string()) { c } else { '-' };
    let name: String = wanted.chars().take(64).map(keep).collect();
    if is_name(&name) { name } else { "worker".to_owned() }
}

/// Removes what carries this worker's label or lies in its directory and is in no journal.
async fn sweep(executor: &Executor, journal: &Journal, data: &DataDir) -> Result<(), WorkerError> {
    let known: BTreeSet<_> = journal.entries().map(|entry| entry.order.attempt).collect();
    let mut names: BTreeSet<_> = known.iter().map(|attempt| executor.container_name(*attempt)).collect();
    // One that ended has given its holder back, and another may have it.
    let unended = journal.entries().filter(|entry| entry.ended.is_none()).map(|entry| entry.order.attempt);
    for attempt in &unended.collect::<Vec<_>>() {
        // A file that cannot be read is named where the attempt goes on.
        if let Some(holder) =
            executor.files(*attempt).handed().ok().flatten().and_then(|handed| handed.holder)
        {
            executor.holders.adopt(*attempt, holder.clone());
            names.insert(holder);
        }
    }
    let containers = executor.engine.containers(&executor.instance).await;
    for container in containers.map_err(setup("list this worker's containers"))? {
        if names.contains(&container.name) {
            continue;
        }
        tracing::info!(container = %container.name, "removing a container that is in no journal");
        if let Err(error) = executor.engine.remove(&container.id).await {
            tracing::warn!(container = %container.name, error = %in_one_sentence(&error), "it stays");
        }
    }
    let swept = executor.workspaces.sweep(&known).await.map_err(setup("sweep workspaces"))?;
    for failure in &swept.failed {
        tracing::warn!(failure, "a workspace stays");
    }
    for attempt in data.attempts_on_disk()? {
        if !known.contains(&attempt)
            && let Err(error) = executor.files(attempt).remove()
        {
            tracing::warn!(attempt_id = %attempt, error = %error, "its files stay");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_has_a_name_that_is_taken() {
        for (wanted, expected) in [("build-7", "build-7"), ("büro host", "b-ro-host"), ("", "worker")] {
            assert_eq!(name(wanted), expected);
        }
        assert_eq!(name(&"x".repeat(100)).len(), 64);
    }
}
