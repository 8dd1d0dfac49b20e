//! An engine that exists only in memory and fails when told to.
//!
//! It keeps the states of containers as honestly as Docker does (the contract suite holds both to the same
//! behaviours), runs no program, and remembers what was asked of it. A [`Program`] says what becomes of a container
//! that is started; a [`Fault`] is what the next call of a kind meets.

mod calls;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use buildyard_types::ByteSize;
use tokio::sync::watch;

use super::{
    ContainerDetails, ContainerId, ContainerSpec, ContainerState, ContainerSummary, Engine, EngineError,
    EngineInfo, Exit, FileContent, ImageInfo, Instance, Limits, NetworkInfo, NetworkSpec,
};
pub use calls::{Call, CallKind, Fault};
use state::State;

/// What becomes of a container that is started.
#[derive(Clone)]
pub enum Program {
    /// It runs until it is killed.
    Runs,
    /// It ends at once with this code.
    Exits(i64),
    /// It runs into its memory limit and is killed by the kernel.
    RunsOutOfMemory,
    /// There is no such program in the image.
    Missing,
    /// It runs, and somebody plays its part.
    Played(Arc<dyn Fn(Running) + Send + Sync>),
}

/// Says what a container does when it is started.
pub type Programs = Arc<dyn Fn(&ContainerSpec) -> Program + Send + Sync>;

/// An image that the fake holds or that its registry has.
#[derive(Debug, Clone)]
pub struct ScriptedImage {
    /// What the engine says of it.
    pub info: ImageInfo,
    /// Its files by absolute path. Folders are implied.
    pub files: BTreeMap<String, ScriptedFile>,
}

/// A file of a scripted image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScriptedFile {
    /// With this content.
    Bytes(Vec<u8>),
    /// A link to another path.
    Link(String),
}

impl ScriptedImage {
    /// An image with a shell, a user root and no USER, for the architecture `amd64`.
    pub fn plain(name: &str) -> Self {
        use sha2::Digest as _;
        let hex: String =
            sha2::Sha256::digest(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = format!("sha256:{hex}");
        let file =
            |path: &str, content: &str| (path.to_owned(), ScriptedFile::Bytes(content.as_bytes().to_vec()));
        Self {
            info: ImageInfo {
                engine_ref: digest.clone(),
                config_digest: Some(digest),
                manifest_digests: Vec::new(),
                user: String::new(),
                env: [("PATH".to_owned(), "/bin:/usr/bin".to_owned())].into(),
                os: "linux".to_owned(),
                arch: "amd64".to_owned(),
                size: ByteSize::from_mib(2),
                diff_ids: Vec::new(),
                names: vec![name.to_owned()],
            },
            files: [
                file("/bin/busybox", "\u{7f}ELF"),
                ("/bin/sh".to_owned(), ScriptedFile::Link("busybox".to_owned())),
                file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
                file("/etc/group", "root:x:0:\n"),
            ]
            .into(),
        }
    }
}

/// The fake engine. Clones are the same engine.
#[derive(Clone)]
pub struct ScriptedEngine {
    state: Arc<Mutex<State>>,
    /// Counts changes, so that waiting needs no polling.
    changes: watch::Sender<u64>,
    programs: Programs,
}

/// A container that was started, for whoever plays its part.
#[derive(Clone)]
pub struct Running {
    /// Which.
    pub id: ContainerId,
    /// As it was asked for.
    pub spec: ContainerSpec,
    engine: ScriptedEngine,
}

impl Running {
    /// The program ends with this code.
    pub fn exit(&self, code: i64) {
        self.engine.end(&self.id, code, false);
    }

    /// The kernel kills it for lack of memory.
    pub fn out_of_memory(&self) {
        self.engine.end(&self.id, 137, true);
    }

    /// Returns when the container no longer runs, whoever ended it.
    pub async fn ended(&self) {
        self.engine.until(|state| !state.runs(&self.id)).await;
    }
}

impl ScriptedEngine {
    /// An engine without images, whose containers do what `programs` says.
    pub fn new(programs: impl Fn(&ContainerSpec) -> Program + Send + Sync + 'static) -> Self {
        Self { state: Arc::default(), changes: watch::Sender::new(0), programs: Arc::new(programs) }
    }

    /// The engine holds this image from now on.
    pub fn hold_image(&self, image: ScriptedImage) {
        self.change(|state| state.images.push(image));
    }

    /// The registry has this image from now on, so that a pull finds it.
    pub fn offer_image(&self, image: ScriptedImage) {
        self.change(|state| state.registry.push(image));
    }

    /// The next call of this kind meets this fault. Several faults of a kind are met one after the other.
    pub fn script(&self, kind: CallKind, fault: Fault) {
        self.change(|state| state.faults.push((kind, fault)));
    }

    /// No call is answered any more, and waiting ones fail, until [`come_back`](Self::come_back). Containers go on.
    pub fn go_away(&self) {
        self.change(|state| state.away = true);
    }

    /// The engine answers again.
    pub fn come_back(&self) {
        self.change(|state| state.away = false);
    }

    /// Started containers say this pid, for tests in which the first process is one of their own.
    pub fn set_pid(&self, pid: u32) {
        self.change(|state| state.pid = Some(pid));
    }

    /// Containers say that they write into this folder.
    pub fn set_upper_dir(&self, folder: PathBuf) {
        self.change(|state| state.upper_dir = Some(folder));
    }

    /// What was asked so far, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Names of the containers that exist, in any state.
    pub fn container_names(&self) -> Vec<String> {
        self.lock().containers.values().map(|container| container.spec.name.clone()).collect()
    }

    /// What a container may use now, by name.
    pub fn limits_of(&self, name: &str) -> Option<Limits> {
        self.lock().containers.values().find(|found| found.spec.name == name).map(|found| found.spec.limits)
    }

    /// Ends a running container from outside: a crash, or the kernel.
    pub fn end(&self, id: &ContainerId, code: i64, oom_killed: bool) {
        self.change(|state| state.end(id, code, oom_killed));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let result = work(&mut self.lock());
        self.changes.send_modify(|count| *count += 1);
        result
    }

    async fn until(&self, done: impl Fn(&State) -> bool) {
        let mut changes = self.changes.subscribe();
        while !done(&self.lock()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes note of a call and lets it meet its fault.
    async fn meet(&self, kind: CallKind, subject: &str) -> Result<(), EngineError> {
        let fault = self.change(|state| state.called(kind, subject));
        let call = format!("{kind:?} {subject}").to_lowercase();
        match fault {
            None => Ok(()),
            Some(Fault::Away) => Err(state::away(call)),
            Some(Fault::Slow(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
            Some(Fault::TimesOut) => Err(EngineError::Timeout { call, after: Duration::from_secs(20) }),
            Some(Fault::Fails(message)) => Err(EngineError::Failed { call, message }),
            Some(Fault::CannotStart(message)) => Err(EngineError::CannotStart { message }),
            Some(Fault::PullFails(message)) => {
                Err(EngineError::PullFailed { image: subject.to_owned(), message })
            }
        }
    }
}

#[async_trait]
impl Engine for ScriptedEngine {
    async fn ping(&self) -> Result<(), EngineError> {
        self.meet(CallKind::Ping, "").await
    }

    async fn info(&self) -> Result<EngineInfo, EngineError> {
        self.meet(CallKind::Info, "").await?;
        Ok(EngineInfo {
            version: "0.0.0".to_owned(),
            api: "1.41".to_owned(),
            arch: "amd64".to_owned(),
            runc: None,
            storage_driver: "memory".to_owned(),
            containerd_images: false,
            data_root: PathBuf::from("/nowhere"),
            live_restore: true,
            cgroup_version: None,
            userns_remap: false,
            cpus: 4,
            memory: ByteSize::from_gib(8),
            missing_limits: Vec::new(),
            started: None,
        })
    }

    async fn image(&self, name: &str) -> Result<ImageInfo, EngineError> {
        super::docker::check_image_name(name)?;
        self.meet(CallKind::Image, name).await?;
        self.lock().image(name).map(|image| image.info.clone())
    }

    async fn images(&self) -> Result<Vec<String>, EngineError> {
        self.meet(CallKind::Images, "").await?;
        let mut names: Vec<String> =
            self.lock().images.iter().flat_map(|image| image.info.names.clone()).collect();
        names.sort();
        names.truncate(super::MAX_IMAGES);
        Ok(names)
    }

    async fn pull(&self, name: &str) -> Result<(), EngineError> {
        super::docker::check_image_name(name)?;
        self.meet(CallKind::Pull, name).await?;
        self.change(|state| state.pull(name))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<ContainerId, EngineError> {
        self.meet(CallKind::Create, &spec.name).await?;
        self.change(|state| state.create(spec))
    }

    async fn start(&self, id: &ContainerId) -> Result<ContainerDetails, EngineError> {
        self.meet(CallKind::Start, &id.0).await?;
        let already = matches!(self.lock().find(id)?.state, ContainerState::Running { .. });
        if !already {
            let spec = self.lock().find(id)?.spec.clone();
            let program = (self.programs)(&spec);
            if let Program::Missing = program {
                let message = format!("exec: \"{}\": no such file", spec.entrypoint.join(" "));
                return Err(EngineError::CannotStart { message });
            }
            let id = self.change(|state| state.start(id))?;
            match program {
                Program::Runs | Program::Missing => {}
                Program::Exits(code) => self.end(&id, code, false),
                Program::RunsOutOfMemory => self.end(&id, 137, true),
                Program::Played(play) => play(Running { id, spec, engine: self.clone() }),
            }
        }
        self.lock().details(id)
    }

    async fn inspect(&self, id: &ContainerId) -> Result<ContainerDetails, EngineError> {
        self.meet(CallKind::Inspect, &id.0).await?;
        self.lock().details(id)
    }

    async fn wait(&self, id: &ContainerId) -> Result<Exit, EngineError> {
        self.meet(CallKind::Wait, &id.0).await?;
        if let ContainerState::Created = self.lock().find(id)?.state {
            let message = "it was never started".to_owned();
            return Err(EngineError::Conflict { call: format!("wait for container {id}"), message });
        }
        self.until(|state| state.away || !state.runs(id)).await;
        let state = self.lock();
        if state.away {
            return Err(state::away(format!("wait for container {id}")));
        }
        match &state.find(id)?.state {
            ContainerState::Exited(exit) => Ok(exit.clone()),
            ContainerState::Created | ContainerState::Running { .. } | ContainerState::Removing => {
                Err(EngineError::NotFound { what: format!("container {id}") })
            }
        }
    }

    async fn kill(&self, id: &ContainerId) -> Result<(), EngineError> {
        self.meet(CallKind::Kill, &id.0).await?;
        self.change(|state| state.kill(id))
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), EngineError> {
        self.meet(CallKind::Remove, &id.0).await?;
        self.change(|state| state.remove(id));
        Ok(())
    }

    async fn containers(&self, instance: &Instance) -> Result<Vec<ContainerSummary>, EngineError> {
        self.meet(CallKind::Containers, instance.as_str()).await?;
        Ok(self.lock().list(instance))
    }

    async fn read_file(
        &self,
        id: &ContainerId,
        path: &str,
        max_bytes: u64,
    ) -> Result<FileContent, EngineError> {
        self.meet(CallKind::ReadFile, path).await?;
        self.lock().read_file(id, path, max_bytes)
    }

    async fn create_network(&self, spec: &NetworkSpec) -> Result<(), EngineError> {
        self.meet(CallKind::CreateNetwork, &spec.name).await?;
        self.change(|state| state.create_network(spec))
    }

    async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        self.meet(CallKind::RemoveNetwork, name).await?;
        self.change(|state| state.remove_network(name))
    }

    async fn networks(&self) -> Result<Vec<NetworkInfo>, EngineError> {
        self.meet(CallKind::Networks, "").await?;
        Ok(self.lock().networks.clone())
    }
}
