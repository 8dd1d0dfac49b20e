//! The engine that is Docker, through bollard.
//!
//! Every call has a time limit of its own, around bollard's, because that one ends with the headers of an answer and a
//! hanging engine may stop in the middle of it. The API version is negotiated at the first call and again after the
//! engine was away, since it may have come back as another one.

mod archive;
mod convert;
mod fail;
mod process;
mod reference;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, InspectContainerOptions,
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptions, ListNetworksOptions,
    RemoveContainerOptionsBuilder, StartContainerOptions, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt as _;
use tokio::sync::{Mutex, Semaphore};

use super::{
    ContainerDetails, ContainerId, ContainerSpec, ContainerState, ContainerSummary, Engine, EngineError,
    EngineInfo, Exit, FileContent, ImageInfo, Instance, MAX_IMAGES, NetworkInfo, NetworkSpec, WORKER_LABEL,
};
use fail::Call;
use process::Process;
pub(super) use reference::check as check_image_name;

/// Where Docker listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// More starts than this at one time make an engine slower, not faster (measured: 4 in flight are its limit).
const STARTS_IN_FLIGHT: usize = 4;
/// For calls that an idle engine answers in milliseconds. A busy one may take seconds.
const QUICK: Duration = Duration::from_secs(20);
/// For calls that make or destroy file systems and namespaces.
const SLOW: Duration = Duration::from_secs(120);
/// A ping that takes longer means that the engine hangs.
const PING: Duration = Duration::from_secs(5);
/// A pull may take long, but not without a word.
const PULL_SILENCE: Duration = Duration::from_secs(180);
/// And not for ever: a registry that trickles bytes must not hold a worker.
const PULL_WHOLE: Duration = Duration::from_secs(3_600);
/// How often a wait asks whether the engine still answers.
const WAIT_SLICE: Duration = Duration::from_secs(10);
/// How often a removal is asked about, and how long to pause in between.
const REMOVE_CHECKS: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(100);

/// A Docker engine behind a Unix socket.
#[derive(Debug)]
pub struct DockerEngine {
    socket: PathBuf,
    /// `None` until the version was negotiated, and again after the engine was away.
    connection: Mutex<Option<Connection>>,
    starts: Semaphore,
}

/// An engine that was spoken to.
#[derive(Debug, Clone)]
struct Connection {
    client: Docker,
    /// Whether its id of an image is something else than the digest of the image's config.
    containerd_images: bool,
    /// Open files that it can give a container, where that has a bound.
    open_files_cap: Option<u64>,
}

impl DockerEngine {
    /// The engine behind a socket. Nothing is asked of it yet, so that a worker can start before its engine.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            connection: Mutex::new(None),
            starts: Semaphore::new(STARTS_IN_FLIGHT),
        }
    }

    /// Speaks to the engine for the first time, or for the first time since it was away.
    async fn connect(&self) -> Result<Connection, bollard::errors::Error> {
        let path = self.socket.to_string_lossy();
        let fresh = Docker::connect_with_unix(&path, QUICK.as_secs(), bollard::API_DEFAULT_VERSION)?;
        let client = fresh.negotiate_version().await?;
        let containerd_images = convert::has_containerd_images(&client.info().await?);
        let open_files_cap = Process::behind(&self.socket).and_then(|engine| engine.open_files_cap());
        Ok(Connection { client, containerd_images, open_files_cap })
    }

    /// A connection whose version fits the engine.
    async fn connection(&self, call: &Call) -> Result<Connection, EngineError> {
        let mut slot = self.connection.lock().await;
        if let Some(known) = slot.as_ref() {
            return Ok(known.clone());
        }
        match tokio::time::timeout(QUICK, self.connect()).await {
            Ok(Ok(made)) => Ok(slot.insert(made).clone()),
            Ok(Err(error)) => Err(call.sort(error)),
            Err(_) => Err(call.timed_out()),
        }
    }

    /// A client with the time limit of the call.
    async fn client(&self, call: &Call) -> Result<Docker, EngineError> {
        Ok(self.connection(call).await?.client.with_timeout(call.limit))
    }

    /// Makes one call within its limit.
    async fn call<T, F, W>(&self, call: Call, work: W) -> Result<T, EngineError>
    where
        F: Future<Output = Result<T, bollard::errors::Error>> + Send,
        W: FnOnce(Docker) -> F + Send,
        T: Send,
    {
        let result = match self.client(&call).await {
            Ok(client) => match tokio::time::timeout(call.limit, work(client)).await {
                Ok(answer) => answer.map_err(|error| call.sort(error)),
                Err(_) => Err(call.timed_out()),
            },
            Err(error) => Err(error),
        };
        self.forget_if_away(result).await
    }

    /// An engine that was away may come back with another version.
    async fn forget_if_away<T>(&self, result: Result<T, EngineError>) -> Result<T, EngineError> {
        if let Err(EngineError::Unavailable { .. }) = &result {
            *self.connection.lock().await = None;
        }
        result
    }

    /// Reads the stream of a pull to its end.
    async fn follow_pull(&self, client: Docker, image: &str) -> Result<(), EngineError> {
        let options = CreateImageOptionsBuilder::default().from_image(image).build();
        let mut progress = client.with_timeout(PULL_SILENCE).create_image(Some(options), None, None);
        loop {
            match tokio::time::timeout(PULL_SILENCE, progress.next()).await {
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => return Err(fail::pull(image, error)),
                Ok(None) => return Ok(()),
                Err(_) => {
                    let message = format!("no progress for {} s", PULL_SILENCE.as_secs());
                    return Err(EngineError::PullFailed { image: image.to_owned(), message });
                }
            }
        }
    }

    /// Waits for the end for a while. The inspection that follows says whether it has come.
    async fn wait_a_slice(&self, id: &ContainerId) -> Result<(), EngineError> {
        let call = Call::on_container("wait for", id, QUICK);
        let client = self.client(&call).await?.with_timeout(SLOW);
        let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
        let mut ends = client.wait_container(&id.0, Some(options));
        match tokio::time::timeout(WAIT_SLICE, ends.next()).await {
            // An exit code other than 0 comes as an error of its own kind; the inspection that follows reads it.
            Ok(Some(Err(bollard::errors::Error::DockerContainerWaitError { .. }))) => Ok(()),
            Ok(Some(Err(error))) => Err(call.sort(error)),
            Ok(Some(Ok(_)) | None) | Err(_) => Ok(()),
        }
    }

    async fn try_remove(&self, id: &ContainerId) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let call = Call::on_container("remove", id, SLOW);
        self.call(call, |client| async move { client.remove_container(&id.0, Some(options)).await }).await
    }
}

#[async_trait]
impl Engine for DockerEngine {
    async fn ping(&self) -> Result<(), EngineError> {
        self.call(Call::new("answer a ping", PING), |client| async move { client.ping().await })
            .await
            .map(drop)
    }

    async fn info(&self) -> Result<EngineInfo, EngineError> {
        let call = Call::new("describe itself", QUICK);
        let version = self.call(call.clone(), |client| async move { client.version().await }).await?;
        let (info, api) = self
            .call(call, |client| async move {
                let api = client.client_version().to_string();
                client.info().await.map(|info| (info, api))
            })
            .await?;
        let started = Process::behind(&self.socket).and_then(|engine| engine.started());
        Ok(convert::engine_info(version, info, api, started))
    }

    async fn image(&self, name: &str) -> Result<ImageInfo, EngineError> {
        reference::check(name)?;
        let call = Call::new("inspect an image", QUICK);
        let containerd = self.connection(&call).await?.containerd_images;
        let found = self.call(call, |client| async move { client.inspect_image(name).await }).await;
        match found {
            Ok(image) => Ok(convert::image_info(name, image, containerd)),
            Err(EngineError::NotFound { .. }) => Err(EngineError::ImageMissing { image: name.to_owned() }),
            Err(other) => Err(other),
        }
    }

    async fn images(&self) -> Result<Vec<String>, EngineError> {
        let call = Call::new("list its images", QUICK);
        let list = self
            .call(call, |client| async move { client.list_images(None::<ListImagesOptions>).await })
            .await?;
        let named = |name: &String| !name.contains("<none>");
        let mut names: Vec<String> =
            list.into_iter().flat_map(|image| image.repo_tags).filter(named).collect();
        names.sort();
        names.truncate(MAX_IMAGES);
        Ok(names)
    }

    async fn pull(&self, name: &str) -> Result<(), EngineError> {
        let image = reference::with_tag(name)?;
        let call = Call::new("pull an image", PULL_WHOLE);
        let client = match self.client(&call).await {
            Ok(client) => client,
            Err(error) => return self.forget_if_away(Err(error)).await,
        };
        let result = match tokio::time::timeout(PULL_WHOLE, self.follow_pull(client, &image)).await {
            Ok(result) => result,
            Err(_) => Err(EngineError::PullFailed {
                image,
                message: format!("not done after {} minutes", PULL_WHOLE.as_secs() / 60),
            }),
        };
        self.forget_if_away(result).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, EngineError> {
        let options = CreateContainerOptionsBuilder::default().name(&spec.name).build();
        let call = Call::new(format!("create container {}", spec.name), SLOW);
        let cap = self.connection(&call).await?.open_files_cap.unwrap_or(u64::MAX);
        let body =
            convert::create_body(&ContainerSpec { open_files: spec.open_files.min(cap), ..spec.clone() });
        let made = self
            .call(call, |client| async move { client.create_container(Some(options), body).await })
            .await
            .map_err(|error| match error {
                // The only thing that a creation can fail to find is its image.
                EngineError::NotFound { .. } => EngineError::ImageMissing { image: spec.image.clone() },
                other => other,
            })?;
        Ok(ContainerId(made.id))
    }

    async fn start(&self, id: &ContainerId) -> Result<ContainerDetails, EngineError> {
        let turn = self.starts.acquire().await.expect("the semaphore is never closed");
        let call = Call::on_container("start", id, SLOW);
        self.call(call, |client| async move {
            client.start_container(&id.0, None::<StartContainerOptions>).await
        })
        .await
        .map_err(fail::start)?;
        drop(turn);
        self.inspect(id).await
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerDetails, EngineError> {
        let call = Call::on_container("inspect", id, QUICK);
        let found = self
            .call(call, |client| async move {
                client.inspect_container(&id.0, None::<InspectContainerOptions>).await
            })
            .await?;
        Ok(convert::details(id, found))
    }

    async fn wait(&self, id: &ContainerId) -> Result<Exit, EngineError> {
        loop {
            match self.inspect(id).await?.state {
                ContainerState::Exited(exit) => return Ok(exit),
                ContainerState::Created => {
                    let message = "it was never started".to_owned();
                    return Err(EngineError::Conflict { call: format!("wait for container {id}"), message });
                }
                ContainerState::Running { .. } => {
                    let slice = self.wait_a_slice(id).await;
                    self.forget_if_away(slice).await?;
                }
                ContainerState::Removing => tokio::time::sleep(REMOVE_PAUSE).await,
            }
        }
    }

    async fn kill(&self, id: &ContainerId) -> Result<(), EngineError> {
        let options = KillContainerOptionsBuilder::default().signal("KILL").build();
        let call = Call::on_container("kill", id, QUICK);
        self.call(call, |client| async move { client.kill_container(&id.0, Some(options)).await }).await
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), EngineError> {
        let mut last = None;
        for _ in 0..REMOVE_CHECKS {
            match self.try_remove(id).await {
                // Somebody else is at it (409), or a mount was busy (500): ask again.
                Ok(()) => {}
                Err(error @ (EngineError::Conflict { .. } | EngineError::Failed { .. })) => {
                    last = Some(error)
                }
                Err(EngineError::NotFound { .. }) => return Ok(()),
                Err(other) => return Err(other),
            }
            match self.inspect(id).await {
                Err(EngineError::NotFound { .. }) => return Ok(()),
                Err(other) => return Err(other),
                Ok(_) => tokio::time::sleep(REMOVE_PAUSE).await,
            }
        }
        Err(last.unwrap_or_else(|| EngineError::Failed {
            call: format!("remove container {id}"),
            message: "it is still there".to_owned(),
        }))
    }

    async fn containers(&self, instance: &Instance) -> Result<Vec<ContainerSummary>, EngineError> {
        let label = format!("{WORKER_LABEL}={}", instance.as_str());
        let filters = std::collections::HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let call = Call::new("list containers", QUICK);
        let list =
            self.call(call, |client| async move { client.list_containers(Some(options)).await }).await?;
        Ok(list.into_iter().filter_map(convert::summary).collect())
    }

    async fn read_file(
        &self,
        id: &ContainerId,
        path: &str,
        max_bytes: u64,
    ) -> Result<FileContent, EngineError> {
        let call = Call::on_container(&format!("read {path} of"), id, QUICK);
        self.inspect(id).await?;
        self.call(call, |client| async move { archive::read_file(&client, &id.0, path, max_bytes).await })
            .await
    }

    async fn create_network(&self, spec: &NetworkSpec) -> Result<(), EngineError> {
        let body = convert::network_body(spec);
        let call = Call::new(format!("create network {}", spec.name), SLOW);
        self.call(call, |client| async move { client.create_network(body).await })
            .await
            .map(drop)
            .map_err(fail::network)
    }

    async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        let call = Call::new(format!("remove network {name}"), SLOW);
        match self.call(call, |client| async move { client.remove_network(name).await }).await {
            Err(EngineError::NotFound { .. }) => Ok(()),
            other => other.map_err(fail::network),
        }
    }

    async fn networks(&self) -> Result<Vec<NetworkInfo>, EngineError> {
        let call = Call::new("list networks", QUICK);
        let list = self
            .call(call, |client| async move { client.list_networks(None::<ListNetworksOptions>).await })
            .await?;
        Ok(list.into_iter().filter_map(convert::network_info).collect())
    }
}
