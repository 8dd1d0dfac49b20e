//! What a worker is told by its owner: the text of `worker.toml` and what becomes of it.

use std::path::PathBuf;

use buildyard_types::ByteSize;
use serde::Deserialize;

use crate::artifacts::ArtifactLimits;
use crate::profile::Policy;

/// `worker.toml`. Everything may be left out; flags win over it.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSettings {
    /// Address of the coordinator: `http://host:port`.
    pub coordinator: Option<String>,
    /// The name that people will see; the host's name by default.
    pub name: Option<String>,
    /// Socket of the container engine; the usual one, or `DOCKER_HOST`, by default.
    pub engine_socket: Option<PathBuf>,
    /// What attempts may use together.
    pub capacity: CapacitySettings,
    /// What jobs may do beyond the ordinary.
    pub policy: Policy,
    /// Files of one artifact at most.
    pub artifact_files: Option<usize>,
    /// Bytes of all artifacts of one job at most.
    pub artifact_size: Option<ByteSize>,
    /// Bytes of all git mirrors at most.
    pub mirror_size: Option<ByteSize>,
}

/// What attempts may use together, where it is not what the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapacitySettings {
    /// Attempts at one time.
    pub slots: Option<u32>,
    /// In thousandths of a processor.
    pub cpu_millis: Option<u64>,
    /// Memory.
    pub memory: Option<ByteSize>,
    /// Disk for workspaces and container roots.
    pub disk: Option<ByteSize>,
}

/// What becomes of running attempts when the worker is told to end. One that is turned away leaves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExit {
    /// They go on: their containers run, their inits keep what they print, and the next start takes them up
    /// again. The way of an upgrade. What no worker takes up in a lease stops itself.
    #[default]
    Leave,
    /// They are killed and everything of them is removed; the next start reports them as lost with the worker.
    Stop,
}

/// A worker, ready to be started.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerConfig {
    /// Where it keeps everything. One worker per folder.
    pub data_dir: PathBuf,
    /// Address of the coordinator, without a `/` at its end.
    pub coordinator: String,
    /// File with the one-time token, for the first start.
    pub token_file: Option<PathBuf>,
    /// The name that people will see.
    pub name: String,
    /// Socket of the container engine; the usual one where it is not given.
    pub engine_socket: Option<PathBuf>,
    /// What attempts may use together.
    pub capacity: CapacitySettings,
    /// What jobs may do beyond the ordinary.
    pub policy: Policy,
    /// How much an attempt may keep.
    pub artifacts: ArtifactLimits,
    /// How large all mirrors may become.
    pub mirrors: ByteSize,
    /// What becomes of running attempts.
    pub on_exit: OnExit,
}

/// Why a configuration is none.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not what `worker.toml` may hold.
    #[error("the worker's configuration cannot be read")]
    Parse(#[source] toml::de::Error),
    /// There is no coordinator to work for.
    #[error("a worker needs the address of its coordinator (--coordinator http://HOST:PORT)")]
    NoCoordinator,
    /// The address is of another kind.
    #[error("`{0}` is not the address of a coordinator; expected http://HOST:PORT")]
    Coordinator(String),
}

/// Mirrors of a few large repositories fit; the oldest go first.
fn default_mirrors() -> ByteSize {
    ByteSize::from_gib(10)
}

/// What people call this host.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "worker".to_owned() } else { name.trim().to_owned() }
}

impl WorkerSettings {
    /// Reads the text of a `worker.toml`.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(ConfigError::Parse)
    }

    /// Fills in the defaults and checks what is given.
    pub fn into_config(
        self,
        data_dir: PathBuf,
        token_file: Option<PathBuf>,
    ) -> Result<WorkerConfig, ConfigError> {
        let coordinator = self.coordinator.ok_or(ConfigError::NoCoordinator)?;
        let coordinator = coordinator.trim_end_matches('/').to_owned();
        let host = coordinator.strip_prefix("http://").unwrap_or_default();
        if host.is_empty() || host.contains(['/', '?', '#', '@', ' ']) {
            return Err(ConfigError::Coordinator(coordinator));
        }
        let artifacts = ArtifactLimits::default();
        Ok(WorkerConfig {
            data_dir,
            coordinator,
            token_file,
            name: self.name.unwrap_or_else(host_name),
            engine_socket: self.engine_socket,
            capacity: self.capacity,
            policy: self.policy,
            artifacts: ArtifactLimits {
                files: self.artifact_files.unwrap_or(artifacts.files),
                bytes: self.artifact_size.unwrap_or(artifacts.bytes),
            },
            mirrors: self.mirror_size.unwrap_or_else(default_mirrors),
            on_exit: OnExit::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<WorkerConfig, ConfigError> {
        WorkerSettings::parse(text)?.into_config("/data".into(), None)
    }

    #[test]
    fn a_file_fills_a_configuration() {
        let text = "coordinator = 'http://127.0.0.1:7317/'\nname = 'a'\nmirror_size = '1GiB'\n\
                    [capacity]\nslots = 3\nmemory = '2GiB'\n[policy]\nallow_root = true\n";
        let config = config(text).unwrap();
        assert_eq!(config.coordinator, "http://127.0.0.1:7317");
        assert_eq!((config.capacity.slots, config.capacity.cpu_millis), (Some(3), None));
        assert!(config.policy.allow_root && !config.policy.allow_host_network);
        assert_eq!(config.mirrors, ByteSize::from_gib(1));
        assert_eq!(config.on_exit, OnExit::Leave);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let says = |text: &str| {
            let error = config(text).unwrap_err();
            format!(
                "{error} {}",
                std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
            )
        };
        assert!(says("").contains("--coordinator"));
        assert!(says("coordinator = 'ftp://x'").contains("`ftp://x`"));
        assert!(says("coordinator = 'http://u:p@x'").contains("http://HOST:PORT"));
        assert!(says("coordinatr = 'http://x'").contains("coordinatr"));
    }
}
