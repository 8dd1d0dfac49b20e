//! What can be set: text, then a struct, then checked values. Reading the file is the caller's business.

use std::net::SocketAddr;
use std::path::PathBuf;

use buildyard_scheduler::Settings;
use buildyard_types::time::HumanDuration;
use buildyard_types::{ByteSize, Millis};
use serde::Deserialize;

/// Where the file is looked for when no flag names another.
pub const DEFAULT_CONFIG_PATH: &str = "/etc/buildyard/coordinator.toml";

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is not what it should be; the message has line and column.
    #[error("the configuration cannot be read: {0}")]
    Parse(#[source] Box<toml::de::Error>),
    /// A value cannot be used.
    #[error("{key}: {problem}")]
    Value {
        /// Which.
        key: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
}

/// The file as it is written. Every key may be left out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// Folder of database, blobs and mirrors.
    pub data_dir: Option<PathBuf>,
    /// Address to listen on, with its port; port 0 takes any that is free.
    pub listen: Option<String>,
    /// Leases and limits of attempts.
    pub scheduler: SchedulerSection,
    /// Bounds of the HTTP side.
    pub limits: LimitsSection,
    /// How long things are kept.
    pub retention: RetentionSection,
}

/// `[scheduler]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchedulerSection {
    /// A worker's right to its attempts, counted from its last call.
    pub lease: Option<HumanDuration>,
    /// Added to the lease before an attempt is given to another worker.
    pub grace: Option<HumanDuration>,
    /// Attempts at one job while the farm keeps failing it.
    pub max_attempts: Option<u32>,
    /// Wait before the second attempt.
    pub retry_backoff: Option<HumanDuration>,
    /// Time between TERM and KILL.
    pub stop_grace: Option<HumanDuration>,
    /// What a worker may take on top of that.
    pub stop_slack: Option<HumanDuration>,
    /// Most bytes that one attempt's log may hold.
    pub log_cap: Option<ByteSize>,
    /// How long a worker may prepare an attempt.
    pub prepare_limit: Option<HumanDuration>,
    /// Added to a job's own time limit before the coordinator stops it.
    pub limit_slack: Option<HumanDuration>,
    /// How long an attempt may send its log and artifacts after its steps have ended.
    pub send_limit: Option<HumanDuration>,
    /// Most runs that are not finished; more are refused.
    pub max_runs: Option<u32>,
}

/// `[limits]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// Connections at one time.
    pub connections: Option<u32>,
    /// Open event and log streams at one time.
    pub streams: Option<u32>,
    /// Largest file of an artifact.
    pub artifact_file: Option<ByteSize>,
}

/// `[retention]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSection {
    /// Runs with everything that belongs to them.
    pub runs: Option<HumanDuration>,
    /// Logs.
    pub logs: Option<HumanDuration>,
    /// Longest time that an artifact may ask to be kept.
    pub artifacts_max: Option<HumanDuration>,
    /// Below this much free space nothing new is accepted.
    pub disk_free_min: Option<ByteSize>,
    /// The same in per cent of the file system.
    pub disk_free_min_percent: Option<u8>,
    /// Time between two sweeps.
    pub sweep_every: Option<HumanDuration>,
}

/// Bounds of the HTTP side.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at one time; the next waits to be accepted.
    pub connections: u32,
    /// Open event and log streams at one time; the next is refused.
    pub streams: u32,
    /// Largest file of an artifact.
    pub artifact_file: ByteSize,
}

/// How long things are kept.
#[derive(Debug, Clone)]
pub struct Retention {
    /// Runs with everything that belongs to them.
    pub runs_ms: Millis,
    /// Logs.
    pub logs_ms: Millis,
    /// Longest time that an artifact may ask to be kept.
    pub artifacts_max_ms: Millis,
    /// Below this much free space nothing new is accepted.
    pub disk_free_min: ByteSize,
    /// The same in per cent of the file system.
    pub disk_free_min_percent: u8,
    /// Time between two sweeps.
    pub sweep_every_ms: Millis,
}

/// A configuration that can be used.
#[derive(Debug, Clone)]
pub struct CoordinatorConfig {
    /// Folder of database, blobs and mirrors.
    pub data_dir: PathBuf,
    /// Address to listen on; loopback.
    pub listen: SocketAddr,
    /// The scheduler's numbers.
    pub settings: Settings,
    /// Bounds of the HTTP side.
    pub limits: Limits,
    /// How long things are kept.
    pub retention: Retention,
}

/// The service's folder where the distribution's rules put state.
fn default_data_dir() -> PathBuf {
    PathBuf::from("/var/lib/buildyard/coordinator")
}

/// Loopback, since there is no TLS; a port that no well-known service has.
fn default_listen() -> String {
    "127.0.0.1:7317".to_owned()
}

/// Each worker holds one connection and each follower one; a descriptor each, well below usual limits.
fn default_connections() -> u32 {
    4_096
}

/// A stream costs a task and about 128 KiB when its reader is slow: 512 of them stay below 64 MiB.
fn default_streams() -> u32 {
    512
}

/// Larger than any build product seen; one file must not fill the disk.
fn default_artifact_file() -> ByteSize {
    ByteSize::from_gib(8)
}

/// A quarter of a year: "what changed since the last release" can be answered.
fn default_runs() -> HumanDuration {
    days(90)
}

/// Logs are the bulk of the data and are rarely read after a week.
fn default_logs() -> HumanDuration {
    days(30)
}

/// A file may ask for less, never for more.
fn default_artifacts_max() -> HumanDuration {
    days(365)
}

/// SQLite's write-ahead log, a fetch and some chunks must still fit when new work is refused.
fn default_disk_free_min() -> ByteSize {
    ByteSize::from_gib(1)
}

/// Beyond this, file systems get slow and other services of the host suffer.
fn default_disk_free_min_percent() -> u8 {
    5
}

/// Often enough that an hour's growth is the most that is kept too long.
fn default_sweep_every() -> HumanDuration {
    HumanDuration(Millis::from_mins(60))
}

fn days(count: u64) -> HumanDuration {
    HumanDuration(Millis::from_mins(count * 24 * 60))
}

impl ConfigFile {
    /// Reads the text of the file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Parse(Box::new(error)))
    }

    /// Checks every value and fills in the defaults.
    pub fn validate(self) -> Result<CoordinatorConfig, ConfigError> {
        let data_dir = self.data_dir.unwrap_or_else(default_data_dir);
        if !data_dir.is_absolute() {
            return Err(value("data_dir", format!("`{}` is not an absolute path", data_dir.display())));
        }
        Ok(CoordinatorConfig {
            data_dir,
            listen: listen_address(self.listen.unwrap_or_else(default_listen))?,
            settings: self.scheduler.validate()?,
            limits: self.limits.validate()?,
            retention: self.retention.validate()?,
        })
    }
}

fn value(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, problem: problem.into() }
}

fn listen_address(text: String) -> Result<SocketAddr, ConfigError> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| value("listen", format!("`{text}` is not an address with a port: 127.0.0.1:7317")))?;
    if !address.ip().is_loopback() {
        let problem = "listeners beyond loopback need TLS, which this version does not have";
        return Err(value("listen", format!("{address}: {problem}")));
    }
    Ok(address)
}

fn positive(key: &'static str, set: Option<HumanDuration>, default: Millis) -> Result<Millis, ConfigError> {
    match set {
        None => Ok(default),
        Some(HumanDuration(Millis(0))) => Err(value(key, "must be longer than nothing")),
        Some(HumanDuration(ms)) => Ok(ms),
    }
}

impl SchedulerSection {
    fn validate(self) -> Result<Settings, ConfigError> {
        let default = Settings::default();
        let lease_ms = positive("scheduler.lease", self.lease, default.lease_ms)?;
        // A third of the lease is the longest hold of a sync; below a second the calls would never rest.
        if lease_ms < Millis::from_secs(1) || lease_ms > Millis::from_mins(60) {
            return Err(value("scheduler.lease", "must be between 1s and 1h"));
        }
        let max_attempts = self.max_attempts.unwrap_or(default.max_attempts);
        if !(1..=10).contains(&max_attempts) {
            return Err(value("scheduler.max_attempts", "must be between 1 and 10"));
        }
        let log_cap = self.log_cap.unwrap_or(default.log_cap);
        if log_cap < ByteSize(64 * 1024) {
            return Err(value("scheduler.log_cap", "must be at least 64KiB"));
        }
        Ok(Settings {
            lease_ms,
            grace_ms: positive("scheduler.grace", self.grace, default.grace_ms)?,
            max_attempts,
            retry_backoff_ms: positive(
                "scheduler.retry_backoff",
                self.retry_backoff,
                default.retry_backoff_ms,
            )?,
            stop_grace_ms: positive("scheduler.stop_grace", self.stop_grace, default.stop_grace_ms)?,
            stop_slack_ms: positive("scheduler.stop_slack", self.stop_slack, default.stop_slack_ms)?,
            log_cap,
            prepare_limit_ms: positive(
                "scheduler.prepare_limit",
                self.prepare_limit,
                default.prepare_limit_ms,
            )?,
            limit_slack_ms: positive("scheduler.limit_slack", self.limit_slack, default.limit_slack_ms)?,
            send_limit_ms: positive("scheduler.send_limit", self.send_limit, default.send_limit_ms)?,
            max_runs: self.max_runs.map_or(default.max_runs, |runs| runs as usize),
        })
    }
}

impl LimitsSection {
    fn validate(self) -> Result<Limits, ConfigError> {
        let connections = self.connections.unwrap_or_else(default_connections);
        if connections < 16 {
            return Err(value("limits.connections", "must be at least 16"));
        }
        let streams = self.streams.unwrap_or_else(default_streams);
        if streams == 0 || streams >= connections {
            return Err(value("limits.streams", "must be at least 1 and below limits.connections"));
        }
        let artifact_file = self.artifact_file.unwrap_or_else(default_artifact_file);
        Ok(Limits { connections, streams, artifact_file })
    }
}

impl RetentionSection {
    fn validate(self) -> Result<Retention, ConfigError> {
        let disk_free_min_percent = self.disk_free_min_percent.unwrap_or_else(default_disk_free_min_percent);
        if disk_free_min_percent > 50 {
            return Err(value("retention.disk_free_min_percent", "must be at most 50"));
        }
        let artifacts_max = self.artifacts_max.unwrap_or_else(default_artifacts_max);
        Ok(Retention {
            runs_ms: positive("retention.runs", self.runs, default_runs().0)?,
            logs_ms: positive("retention.logs", self.logs, default_logs().0)?,
            artifacts_max_ms: positive("retention.artifacts_max", Some(artifacts_max), Millis(1))?,
            disk_free_min: self.disk_free_min.unwrap_or_else(default_disk_free_min),
            disk_free_min_percent,
            sweep_every_ms: positive("retention.sweep_every", self.sweep_every, default_sweep_every().0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<CoordinatorConfig, String> {
        ConfigFile::parse(text).and_then(ConfigFile::validate).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = check("").unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7317");
        assert_eq!(config.settings, Settings::default());
        assert_eq!(config.retention.runs_ms, Millis::from_mins(90 * 24 * 60));
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_key() {
        for (text, expected) in [
            ("listen = '0.0.0.0:7317'", "listen: 0.0.0.0:7317: listeners beyond loopback need TLS"),
            ("listen = '[::]:1'", "need TLS"),
            ("listen = 'localhost'", "is not an address with a port"),
            ("data_dir = 'data'", "is not an absolute path"),
            ("scheduler.lease = '10ms'", "scheduler.lease: must be between"),
            ("scheduler.lease = '10'", "is not a duration"),
            ("scheduler.max_attempts = 0", "scheduler.max_attempts"),
            ("limits.streams = 99999", "limits.streams"),
            ("retention.runs = '0s'", "retention.runs"),
            ("colour = 'blue'", "unknown field `colour`"),
        ] {
            let problem = check(text).unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }

    #[test]
    fn sizes_and_durations_carry_units() {
        let config = check(
            "listen = '[::1]:0'\n[scheduler]\nlease = '3s'\nlog_cap = '1MiB'\n[retention]\nlogs = '1d'\ndisk_free_min = '10MiB'",
        )
        .unwrap();
        assert_eq!(config.settings.lease_ms, Millis(3_000));
        assert_eq!(config.settings.log_cap, ByteSize::from_mib(1));
        assert_eq!(config.retention.disk_free_min, ByteSize::from_mib(10));
    }
}
