//! The container engine behind an interface of our own.
//!
//! [`DockerEngine`](docker::DockerEngine) speaks to Docker; [`ScriptedEngine`](scripted::ScriptedEngine) is its
//! fake, whose failures are scripted. [`contract`] holds the behaviours that both must show.
//!
//! Order and multiplicity: `create` once per name (a second one is a conflict), then `start` once, `wait` and
//! `inspect` as often as one likes and from several tasks, `kill` and `remove` as often as one likes. `remove` is
//! idempotent and takes running containers. Every call ends within a time limit of its own; dropping the future of
//! a call leaves it unknown whether it was carried out.

pub mod contract;
pub mod docker;
mod error;
pub mod scripted;
mod spec;

use async_trait::async_trait;

pub use error::{EngineError, Source};
pub use spec::{
    Capability, ContainerDetails, ContainerId, ContainerNetwork, ContainerSpec, ContainerState,
    ContainerSummary, EngineInfo, Exit, FileContent, ImageInfo, Instance, Limits, Mount, NetworkInfo,
    NetworkSpec, Owner, WORKER_LABEL,
};

/// Longest list of images that is given.
pub const MAX_IMAGES: usize = 500;

/// What a worker asks of a container engine.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Whether the engine answers.
    async fn ping(&self) -> Result<(), EngineError>;

    /// What the engine is and how it is set up.
    async fn info(&self) -> Result<EngineInfo, EngineError>;

    /// The image of that name, digest or [`engine_ref`](ImageInfo::engine_ref), if the engine holds it:
    /// [`EngineError::ImageMissing`] if not.
    async fn image(&self, name: &str) -> Result<ImageInfo, EngineError>;

    /// Names of the images that the engine holds, sorted, at most [`MAX_IMAGES`].
    async fn images(&self) -> Result<Vec<String>, EngineError>;

    /// Fetches an image. [`EngineError::ImageUnknown`] is final, [`EngineError::PullFailed`] is not.
    async fn pull(&self, name: &str) -> Result<(), EngineError>;

    /// Makes a container. A name that is taken is a [`EngineError::Conflict`].
    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, EngineError>;

    /// Starts a container and says what it has become, the pid of its first process among it. Waits for its turn:
    /// the engine is handed only a few starts at a time. Starting one that runs changes nothing.
    async fn start(&self, id: &ContainerId) -> Result<ContainerDetails, EngineError>;

    /// Everything known of a container, by id or name.
    async fn inspect(&self, id: &ContainerId) -> Result<ContainerDetails, EngineError>;

    /// Waits until a container has ended and says how. Has no time limit, but ends with an error when the engine
    /// goes away or hangs. One that was never started is a [`EngineError::Conflict`].
    async fn wait(&self, id: &ContainerId) -> Result<Exit, EngineError>;

    /// Kills the first process, and with it the container. One that does not run is [`EngineError::Conflict`].
    async fn kill(&self, id: &ContainerId) -> Result<(), EngineError>;

    /// Takes a container away, running or not, with its anonymous volumes, and returns when the engine no longer
    /// knows it. One that does not exist is fine.
    async fn remove(&self, id: &ContainerId) -> Result<(), EngineError>;

    /// All containers that carry the label of a worker, in any state.
    async fn containers(&self, instance: &Instance) -> Result<Vec<ContainerSummary>, EngineError>;

    /// Reads a file of a container in any state, following links inside it, up to a length.
    async fn read_file(
        &self,
        id: &ContainerId,
        path: &str,
        max_bytes: u64,
    ) -> Result<FileContent, EngineError>;

    /// Makes a network. A name that is taken, or a subnet that overlaps another, is a [`EngineError::Conflict`].
    async fn create_network(&self, spec: &NetworkSpec) -> Result<(), EngineError>;

    /// Takes a network away. One that does not exist is fine; one in use is a [`EngineError::Conflict`].
    async fn remove_network(&self, name: &str) -> Result<(), EngineError>;

    /// All networks of the engine.
    async fn networks(&self) -> Result<Vec<NetworkInfo>, EngineError>;
}
