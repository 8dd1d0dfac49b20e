//! From an order to a container whose init waits for its job.
//!
//! As much as possible happens at once: the commit is fetched while the workspace is made, and checked out while
//! the container starts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use buildyard_init::protocol::{self, InitState, Job, SOCKET_NAME};
use buildyard_types::job::{self, NetworkMode};
use buildyard_types::worker::AttemptOrder;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::files::{AttemptFiles, Handed};
use super::outcome::PrepareError;
use super::{Assignment, Container, Executor, GRACE};
use crate::channel::Listener;
use crate::engine::{ContainerDetails, ContainerId, ContainerSpec, ContainerState, Mount};
use crate::image::ImageFacts;
use crate::init_binary::IN_CONTAINER;
use crate::network::EgressNetwork;
use crate::network::holders::Wanted;
use crate::profile::{self, Parts, Profile};
use crate::source::SourceError;
use crate::workspace::{WORKSPACE, Workspace};

/// Where the container finds init's socket.
const CONTROL: &str = "/.buildyard/ctl";
/// How long init waits for a worker after the end of its job: long enough for a worker that is being mended.
const LINGER_MS: u64 = 24 * 60 * 60 * 1_000;

/// A container whose init waits for this job.
pub(super) struct Ready {
    pub(super) container: Container,
    pub(super) job: Box<Job>,
    pub(super) image_digest: Option<String>,
    /// The network namespace that was not there and had to be made for it.
    pub(super) missed: Option<Wanted>,
}

/// A container that was started.
struct Started {
    listener: Listener,
    details: ContainerDetails,
    pid: u32,
    missed: Option<Wanted>,
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PrepareError {
    let path = path.to_owned();
    move |source| PrepareError::Io { doing, path, source }
}

/// Runs something to its end even if nobody waits for it any more, so that what it makes can be removed.
async fn unbroken<T: Send + 'static>(
    tracker: &TaskTracker,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, PrepareError> {
    let (done, result) = oneshot::channel();
    tracker.spawn(async move {
        // Nobody may wait any more.
        let _ = done.send(work.await);
    });
    // Its task panicked, and was reported as that.
    result.await.map_err(|_| PrepareError::Panicked)
}

impl Executor {
    pub(super) async fn prepare(
        &self,
        assignment: &Assignment<'_>,
        files: &AttemptFiles,
        tracker: &TaskTracker,
    ) -> Result<Ready, PrepareError> {
        let order = assignment.order;
        let again = files.was_begun();
        files.begin().map_err(io_error("make", files.folder()))?;
        if again {
            self.engine.remove(&ContainerId(self.container_name(order.attempt))).await?;
            self.holders.give_back(order.attempt);
        }
        let facts = async {
            let image = self.images.find(&*self.engine, &order.spec.image).await?;
            let (images, engine) = (self.images.clone(), self.engine.clone());
            let facts = unbroken(tracker, async move { images.facts(&*engine, &image).await }).await??;
            let profile = profile::judge(&order.spec, &facts, &self.host_arch, &self.policy)?;
            Ok::<_, PrepareError>((facts, profile))
        };
        let fetch = async { assignment.source.fetch().await.map_err(PrepareError::Source) };
        let made = async {
            let (facts, profile) = facts.await?;
            let workspaces = self.workspaces.clone();
            let (attempt, owner, disk) = (order.attempt, profile.owner, order.spec.resources.disk);
            let workspace =
                unbroken(tracker, async move { workspaces.make(attempt, owner, disk).await }).await??;
            Ok::<_, PrepareError>((facts, profile, workspace))
        };
        let mut fetching = std::pin::pin!(fetch);
        // A failure to fetch waits until the image's is known, which the author of the job can mend.
        let mut fetched = None;
        let (facts, profile, workspace) = {
            let mut made = std::pin::pin!(made);
            loop {
                tokio::select! {
                    made = &mut made => break made?,
                    result = &mut fetching, if fetched.is_none() => fetched = Some(result),
                }
            }
        };
        let fill = async {
            match fetched {
                Some(result) => result?,
                None => fetching.await?,
            }
            let folder = workspace.workspace();
            let filled = assignment.source.fill(&folder, profile.owner).await;
            filled.map_err(|error| self.not_filled(&workspace, error))
        };
        let start = self.start(order, files, &facts, &profile, &workspace, tracker);
        let ((), Started { listener, details, pid, missed }) = tokio::try_join!(fill, start)?;
        let counters = (self.counters)(pid);
        let image_digest = facts.config_digest.clone();
        let job = Box::new(self.job(order, &facts, &profile));
        let container = Container { pid, details, listener, counters, workspace: Some(workspace) };
        Ok(Ready { container, job, image_digest, missed })
    }

    /// A commit that does not fit is the job's own matter.
    fn not_filled(&self, workspace: &Workspace, error: SourceError) -> PrepareError {
        let full = workspace.usage().ok().flatten().is_some_and(|usage| usage.is_full());
        match error {
            SourceError::Git { .. } | SourceError::Io { .. } if full => PrepareError::TooLarge,
            SourceError::Git { .. }
            | SourceError::Io { .. }
            | SourceError::BadCommit(_)
            | SourceError::NoGit(_)
            | SourceError::TimedOut { .. } => PrepareError::Source(error),
        }
    }

    /// Makes and starts the container. Its init connects to the listener.
    async fn start(
        &self,
        order: &AttemptOrder,
        files: &AttemptFiles,
        facts: &ImageFacts,
        profile: &Profile,
        workspace: &Workspace,
        tracker: &TaskTracker,
    ) -> Result<Started, PrepareError> {
        let control = files.control();
        let listener = Listener::bind(&control).map_err(io_error("listen in", &control))?;
        let mut mounts = workspace.mounts();
        let read_only =
            |source: PathBuf, target: &str| Mount { source, target: target.into(), read_only: true };
        mounts.push(read_only(self.init.clone(), IN_CONTAINER));
        mounts.push(read_only(control, CONTROL));
        let parts = Parts {
            instance: &self.instance,
            name: self.container_name(order.attempt),
            resources: &order.spec.resources,
            entrypoint: vec![IN_CONTAINER.to_owned(), format!("{CONTROL}/{SOCKET_NAME}")],
            mounts,
            egress: EgressNetwork::container_network_of(&self.instance),
        };
        let spec = profile::container(profile, facts, parts);
        let (details, missed) = self.start_in_namespace(order, profile, spec, tracker).await?;
        match &details.state {
            ContainerState::Running { pid, .. } => {
                let pid = *pid;
                Ok(Started { listener, details, pid, missed })
            }
            ContainerState::Created | ContainerState::Removing => {
                Err(PrepareError::Init("the engine started the container, and it does not run".to_owned()))
            }
            ContainerState::Exited(exit) => Err(PrepareError::Init(format!(
                "the container ended with exit code {} before it got its job",
                exit.code
            ))),
        }
    }

    /// In a namespace that was made ahead, where there is one for this job; else in one of its own.
    async fn start_in_namespace(
        &self,
        order: &AttemptOrder,
        profile: &Profile,
        spec: ContainerSpec,
        tracker: &TaskTracker,
    ) -> Result<(ContainerDetails, Option<Wanted>), PrepareError> {
        let mode = order.spec.network;
        let lendable = match mode {
            NetworkMode::None | NetworkMode::Egress => profile.owner.uid != 0,
            NetworkMode::Host => false,
        };
        if !lendable {
            return Ok((self.start_on(mode, spec, tracker).await?, None));
        }
        if let Some(network) = self.holders.lend(order.attempt, &spec.network) {
            let joining = ContainerSpec { network, ..spec.clone() };
            match self.start_on(mode, joining, tracker).await {
                Err(PrepareError::Engine(error)) => {
                    tracing::warn!(attempt_id = %order.attempt, error = %error, "a network namespace cannot be joined");
                    self.engine.remove(&ContainerId(spec.name.clone())).await?;
                    self.holders.give_up(order.attempt);
                }
                started => return Ok((started?, None)),
            }
        }
        let missed = Wanted { network: spec.network.clone(), image: spec.image.clone() };
        Ok((self.start_on(mode, spec, tracker).await?, Some(missed)))
    }

    async fn start_on(
        &self,
        mode: NetworkMode,
        spec: ContainerSpec,
        tracker: &TaskTracker,
    ) -> Result<ContainerDetails, PrepareError> {
        match mode {
            NetworkMode::Egress => self.start_outwards(spec, tracker).await,
            NetworkMode::None | NetworkMode::Host => self.create_and_start(spec, tracker).await,
        }
    }

    async fn create_and_start(
        &self,
        spec: ContainerSpec,
        tracker: &TaskTracker,
    ) -> Result<ContainerDetails, PrepareError> {
        let engine = self.engine.clone();
        let started = unbroken(tracker, async move {
            let id = engine.create(&spec).await?;
            engine.start(&id).await
        });
        Ok(started.await??)
    }

    /// A container with a way outwards. The rules are set again meanwhile: its init does nothing until it gets a job.
    async fn start_outwards(
        &self,
        spec: ContainerSpec,
        tracker: &TaskTracker,
    ) -> Result<ContainerDetails, PrepareError> {
        let mut again = false;
        loop {
            let network = self.egress.network(&*self.engine, &self.instance).await?;
            let start = self.create_and_start(spec.clone(), tracker);
            let close = async { self.egress.close(&self.instance).await.map_err(PrepareError::Network) };
            let (started, closed) = tokio::join!(start, close);
            match started {
                // Somebody cleaned up the networks that no container is on.
                Err(PrepareError::Engine(error)) if error.is_not_found() && !again => {
                    again = true;
                    self.engine.remove(&ContainerId(spec.name.clone())).await?;
                    self.egress.forget().await;
                }
                started => {
                    let details = started?;
                    closed?;
                    network.isolate().await?;
                    return Ok(details);
                }
            }
        }
    }

    /// Waits until the steps may begin, and notes that they are about to.
    pub(super) async fn wait_for_start(
        &self,
        assignment: &Assignment<'_>,
        files: &AttemptFiles,
        handed: &Handed,
    ) -> Result<(), PrepareError> {
        let mut told = assignment.orders.clone();
        loop {
            told.mark_unchanged();
            if told.borrow().ends_it() {
                return Err(PrepareError::Stopped);
            }
            if assignment.supervisor.may_start().await {
                break;
            }
            // After a restart: nothing was heard from the coordinator yet.
            if told.changed().await.is_err() {
                return Err(PrepareError::Stopped);
            }
        }
        files.hand(handed).map_err(io_error("write in", files.folder()))
    }

    /// What init has to do.
    fn job(&self, order: &AttemptOrder, facts: &ImageFacts, profile: &Profile) -> Job {
        let shared = profile::environment(order, &BTreeMap::new(), facts, profile);
        let step = |step: &job::StepSpec| {
            let whole = profile::environment(order, &step.env, facts, profile);
            // Only what differs: some hundred steps with the whole environment each would not fit into a frame.
            let own = whole.into_iter().filter(|(name, value)| shared.get(name) != Some(value));
            protocol::Step {
                script: step.run.clone(),
                shell: match step.shell {
                    job::Shell::Sh => protocol::Shell::Sh,
                    job::Shell::Bash => protocol::Shell::Bash,
                },
                dir: step.dir.clone(),
                env: own.collect(),
                timeout_ms: step.timeout_ms.map(|limit| limit.0),
            }
        };
        Job {
            key: order.attempt.to_string(),
            steps: order.spec.steps.iter().map(step).collect(),
            env: shared.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            workdir: WORKSPACE.to_owned(),
            workspace: WORKSPACE.to_owned(),
            log_cap_bytes: order.log_cap.0,
            timeout_ms: order.spec.timeout_ms.0,
            grace_ms: GRACE.0,
            // Filled in when it is handed over.
            lease_ms: 0,
            linger_ms: LINGER_MS,
        }
    }
}

/// How long a fresh container may take until its init speaks.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// Whether an init of this state takes a job.
pub(super) fn takes_job(state: InitState) -> bool {
    match state {
        InitState::Waiting => true,
        InitState::Running | InitState::Done => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_is_an_error_and_is_not_waited_for() {
        let tracker = TaskTracker::new();
        let result = unbroken(&tracker, async { panic!("on purpose") }).await;
        assert!(matches!(result, Err::<(), _>(PrepareError::Panicked)));
    }
}
