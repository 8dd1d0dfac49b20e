//! What is asked of an engine and what it answers, as values of our own.
//!
//! [`ContainerSpec`] is narrow on purpose: there is no field for a privileged container, a device, a process
//! or mount namespace of others, an unconfined profile or a cgroup parent, so that no bug above can ask for one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use buildyard_types::{ByteSize, Timestamp};

/// Carried by everything that a worker makes; its value is the [`Instance`] of the worker.
pub const WORKER_LABEL: &str = "buildyard.worker";

/// Which worker of this host something belongs to: the worker's id, or a name of its own for a local run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance(String);

impl Instance {
    /// Takes letters, digits, `-`, `_` and `.`; anything else becomes `-`, since the text ends up in labels.
    pub fn new(text: &str) -> Self {
        let keep = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
        Self(text.chars().take(64).map(keep).collect())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Six characters made from the text: short enough for the name of a network interface.
    pub fn short(&self) -> String {
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(self.0.as_bytes());
        digest.iter().take(3).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The label that says so.
    pub fn label(&self) -> (String, String) {
        (WORKER_LABEL.to_owned(), self.0.clone())
    }
}

/// The engine's name of a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(pub String);

impl std::fmt::Display for ContainerId {
    /// The first 12 characters, as people know them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.get(..12).unwrap_or(&self.0))
    }
}

/// A user and its group, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What the engine is and how it is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// Version of the engine: `20.10.24`.
    pub version: String,
    /// Version of its API that is spoken.
    pub api: String,
    /// Architecture in Docker's words: `amd64`, `arm64`.
    pub arch: String,
    /// Version of the runtime as it names itself, where the engine says so.
    pub runc: Option<String>,
    /// How layers become a file system: `overlay2`.
    pub storage_driver: String,
    /// Whether images live in containerd's store, where the engine's id of an image is not its config digest.
    pub containerd_images: bool,
    /// Where the engine keeps its data.
    pub data_root: PathBuf,
    /// Whether containers survive a restart of the engine.
    pub live_restore: bool,
    /// 1 or 2.
    pub cgroup_version: Option<u8>,
    /// Whether uid 0 of a container is another uid outside.
    pub userns_remap: bool,
    /// Processors.
    pub cpus: u64,
    /// Memory of the host.
    pub memory: ByteSize,
    /// Limits that this engine cannot hold on this kernel: "memory", "swap", "pids", "cpu".
    pub missing_limits: Vec<&'static str>,
    /// When the engine's process started, where that can be found out. A container that was started before and
    /// died of signal 9 since then was the engine's to lose.
    pub started: Option<Timestamp>,
}

/// An image that the engine holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// How containers are made of it. Names content, so that a tag moved meanwhile changes nothing.
    pub engine_ref: String,
    /// Digest of its config, the image's identity; `None` where the engine does not say it.
    pub config_digest: Option<String>,
    /// Digests under which registries serve it: `name@sha256:…`.
    pub manifest_digests: Vec<String>,
    /// Its `USER`, as written.
    pub user: String,
    /// Its variables, `PATH` among them.
    pub env: BTreeMap<String, String>,
    /// Operating system in Docker's words.
    pub os: String,
    /// Architecture in Docker's words.
    pub arch: String,
    /// Bytes on disk.
    pub size: ByteSize,
    /// Digests of its uncompressed layers, lowest first.
    pub diff_ids: Vec<String>,
    /// Names that point to it.
    pub names: Vec<String>,
}

/// A capability that a container may get back after all were dropped. There are no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// Give files to other users.
    Chown,
    /// Pass file permissions.
    DacOverride,
    /// Act as a file's owner.
    Fowner,
    /// Become another user.
    Setuid,
    /// Become another group.
    Setgid,
    /// Signal processes of other users.
    Kill,
}

impl Capability {
    /// The kernel's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Capability::Chown => "CHOWN",
            Capability::DacOverride => "DAC_OVERRIDE",
            Capability::Fowner => "FOWNER",
            Capability::Setuid => "SETUID",
            Capability::Setgid => "SETGID",
            Capability::Kill => "KILL",
        }
    }
}

/// A file or folder of the host that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// On the host. It must exist.
    pub source: PathBuf,
    /// In the container.
    pub target: String,
    /// Whether it may only be read.
    pub read_only: bool,
}

/// Which network a container joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerNetwork {
    /// A loopback of its own and nothing else.
    None,
    /// A network of the engine, by name.
    Named(String),
    /// That of another container of this worker, which has to run. Host name and `/etc/hosts` are then that one's too.
    Of(ContainerId),
    /// The host's.
    Host,
}

/// What a container may use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In thousandths of a processor.
    pub cpu_millis: u64,
    /// Memory; there is no swap beyond it.
    pub memory: ByteSize,
    /// Processes and threads.
    pub pids: u64,
}

/// A container to make.
///
/// Every container drops all capabilities but those listed, gains no privileges through setuid programs, runs
/// under the engine's seccomp profile with /proc and /sys masked, keeps no log, leaves no core files and is
/// never restarted by the engine. None of that can be asked otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Unique on the engine.
    pub name: String,
    /// Cannot change later.
    pub labels: BTreeMap<String, String>,
    /// [`ImageInfo::engine_ref`].
    pub image: String,
    /// As whom its first process runs.
    pub user: Owner,
    /// Program and arguments; the image's own entrypoint and command are dropped.
    pub entrypoint: Vec<String>,
    /// Added to the image's variables.
    pub env: BTreeMap<String, String>,
    /// What it sees of the host.
    pub mounts: Vec<Mount>,
    /// Which network it joins.
    pub network: ContainerNetwork,
    /// Its host name; ignored with a network that is not its own.
    pub hostname: String,
    /// What it may use.
    pub limits: Limits,
    /// What it gets back of the dropped capabilities.
    pub capabilities: BTreeSet<Capability>,
    /// Open files of each process, or what the engine can give where that is less.
    pub open_files: u64,
}

/// Where a container is in its life. Only gone is an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Its first process lives.
    Running {
        /// That process, as the host sees it.
        pid: u32,
        /// Since when.
        started: Option<Timestamp>,
    },
    /// Its first process ended.
    Exited(Exit),
    /// The engine is taking it away.
    Removing,
}

/// How the first process of a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + signal where a signal ended it.
    pub code: i64,
    /// Whether the kernel killed a process of the container for lack of memory. It may have been a child: then
    /// the code can well be 0.
    pub oom_killed: bool,
    /// What the engine has to say about it.
    pub error: Option<String>,
    /// When it started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
}

/// A container as the engine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDetails {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where it is in its life.
    pub state: ContainerState,
    /// The folder of the host that takes what the container writes outside its mounts. `None`: not known with
    /// this storage driver, so that its size cannot be watched.
    pub upper_dir: Option<PathBuf>,
    /// Other folders of the host that what it writes outside its mounts may end up in: volumes that its image
    /// declares, and the engine's folder with its /etc/hosts.
    pub other_dirs: Vec<PathBuf>,
}

impl ContainerDetails {
    /// The first process, if it lives.
    pub fn pid(&self) -> Option<u32> {
        match self.state {
            ContainerState::Running { pid, .. } => Some(pid),
            ContainerState::Created | ContainerState::Exited(_) | ContainerState::Removing => None,
        }
    }
}

/// A container in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSummary {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether its first process lives.
    pub running: bool,
}

/// A network to make: a bridge of its own, outwards only between containers and the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Unique on the engine.
    pub name: String,
    /// Name of the bridge on the host, at most 15 bytes.
    pub bridge: String,
    /// `10.x.y.0/24`
    pub subnet: String,
    /// The host's address in it.
    pub gateway: String,
    /// Cannot change later.
    pub labels: BTreeMap<String, String>,
}

/// A network as the engine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkInfo {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its subnets.
    pub subnets: Vec<String>,
    /// Name of its bridge, where it has one of a name of its own.
    pub bridge: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A file read out of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileContent {
    /// There is no such file.
    Missing,
    /// What it holds.
    Bytes(Vec<u8>),
    /// Longer than the reader would take.
    TooLong,
    /// A folder, a device or something else that has no content, or a chain of links that ends nowhere.
    NotAFile,
}
