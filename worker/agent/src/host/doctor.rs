//! What a worker needs of this host, whether it is there, and the command that mends it.
//!
//! Each check is a function to a [`Check`]; nothing is changed but what the checks of mounts and rules make and take
//! away again.

use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use buildyard_types::ByteSize;
use serde::Serialize;
use tokio::process::Command;

use super::{room, runc};
use crate::engine::docker::DockerEngine;
use crate::engine::{Engine, EngineInfo};
use crate::workspace::{DiskCap, Workspaces};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as well or as safely as it could.
    Warn,
    /// No job can run.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable name.
    pub name: &'static str,
    /// How it came out.
    pub level: Level,
    /// What was found, in one sentence.
    pub found: String,
    /// What mends it: a command where there is one.
    pub remedy: Option<String>,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        })
    }
}

/// A system tool answers at once or not at all.
const TOOL_LIMIT: Duration = Duration::from_secs(15);
/// Below this, jobs cannot run for long.
const DISK_WARN: ByteSize = ByteSize::from_gib(10);
/// The oldest engine that was tried.
const OLDEST_ENGINE: u32 = 20;

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, level: Level::Ok, found: found.into(), remedy: None }
}

fn bad(name: &'static str, level: Level, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, level, found: found.into(), remedy: Some(remedy.into()) }
}

/// Looks at everything, in the order in which one would mend it.
pub async fn examine(socket: &Path, data_dir: &Path) -> Vec<Check> {
    let mut checks = vec![root(), git().await, mkfs().await];
    match DockerEngine::new(socket).info().await {
        Ok(info) => checks.extend(engine(&info)),
        Err(error) => checks.push(no_engine(socket, &error)),
    }
    checks.push(loop_mounts().await);
    checks.push(packet_filter().await);
    checks.push(disk("disk", data_dir));
    checks
}

fn engine(info: &EngineInfo) -> Vec<Check> {
    vec![
        version(info),
        live_restore(info),
        runtime(info),
        cgroups(info),
        limits(info),
        storage(info),
        user_namespaces(info),
        disk("engine-disk", &info.data_root),
    ]
}

fn root() -> Check {
    if rustix::process::geteuid().is_root() {
        return ok("root", "running as root");
    }
    let found = "not running as root; workers make containers, mounts and rules of the packet filter";
    bad("root", Level::Fail, found, "run it as root: `sudo buildyard up`")
}

/// What a tool prints on its standard output; `Err` says why there is none.
async fn tool(name: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(TOOL_LIMIT, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("`{name}` could not be run: {error}")),
        Err(_) => return Err(format!("`{name}` did not answer in {} s", TOOL_LIMIT.as_secs())),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(200).collect();
    Err(format!("`{name}` failed: {said}"))
}

async fn git() -> Check {
    let remedy = "apt-get install git";
    match tool("git", &["--version"]).await {
        Err(why) => bad("git", Level::Fail, why, remedy),
        // The first that takes --end-of-options, without which a ref could be read as an option.
        Ok(text) if version_at_least(&text, [2, 24]) => ok("git", text),
        Ok(text) => bad("git", Level::Fail, format!("{text} is too old; 2.24 is needed"), remedy),
    }
}

/// Whether the first number with a dot in the text is at least that.
fn version_at_least(text: &str, least: [u32; 2]) -> bool {
    let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let mut parts = version.unwrap_or_default().split('.').map_while(|part| part.parse::<u32>().ok());
    [parts.next().unwrap_or(0), parts.next().unwrap_or(0)] >= least
}

async fn mkfs() -> Check {
    // It prints its version on the other stream; that it runs is all that is asked.
    match tool("mkfs.ext4", &["-V"]).await {
        Ok(_) => ok("mkfs.ext4", "mkfs.ext4 is there"),
        Err(why) => bad("mkfs.ext4", Level::Warn, why, "apt-get install e2fsprogs"),
    }
}

fn no_engine(socket: &Path, error: &dyn std::error::Error) -> Check {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    let found = format!("no Docker Engine answers at {}{cause}", socket.display());
    let installed = ["/usr/bin/dockerd", "/usr/sbin/dockerd"].iter().any(|path| Path::new(path).exists());
    let remedy = if installed { "systemctl start docker" } else { "apt-get install docker.io" };
    bad("docker", Level::Fail, found, remedy)
}

fn version(info: &EngineInfo) -> Check {
    let found = format!("Docker Engine {}, API {}", info.version, info.api);
    if version_at_least(&info.version, [OLDEST_ENGINE, 10]) {
        return ok("docker", found);
    }
    bad(
        "docker",
        Level::Warn,
        format!("{found}; older than 20.10, which was never tried"),
        "apt-get install docker.io",
    )
}

fn live_restore(info: &EngineInfo) -> Check {
    if info.live_restore {
        return ok("live-restore", "containers survive a restart of the engine");
    }
    let found = "a restart of the engine kills every running job, which is then tried again";
    let remedy =
        "put `\"live-restore\": true` into /etc/docker/daemon.json and run `systemctl reload docker`";
    bad("live-restore", Level::Warn, found, remedy)
}

fn runtime(info: &EngineInfo) -> Check {
    let name = "runc";
    let Some(text) = &info.runc else {
        return bad(
            name,
            Level::Warn,
            "the engine does not say its version of runc",
            "look at `runc --version`",
        );
    };
    let Some(holes) = runc::holes(text) else {
        return bad(
            name,
            Level::Warn,
            format!("runc {text} is no version that is known"),
            "look at `runc --version`",
        );
    };
    if holes.is_empty() {
        return ok(name, format!("runc {text}"));
    }
    let names: Vec<&str> = holes.iter().map(|hole| hole.names).collect();
    let perhaps = if holes.iter().all(|hole| hole.perhaps_mended) {
        "; the distribution may have mended it without saying so in the version"
    } else {
        ""
    };
    let level = if holes.iter().any(|hole| hole.grave) { Level::Fail } else { Level::Warn };
    let found = format!(
        "runc {text} is older than what mends {}: ways out of a container{perhaps}",
        names.join(", ")
    );
    bad(
        name,
        level,
        found,
        "apt-get update && apt-get install --only-upgrade runc, or runc 1.2.8, 1.3.3 or later",
    )
}

fn cgroups(info: &EngineInfo) -> Check {
    match info.cgroup_version {
        Some(version) => ok("cgroups", format!("version {version}")),
        None => {
            bad("cgroups", Level::Warn, "the engine does not say which version it uses", "update the engine")
        }
    }
}

pub(super) fn limits(info: &EngineInfo) -> Check {
    let grave = info.missing_limits.iter().any(|name| *name != "swap");
    if info.missing_limits.is_empty() {
        return ok("limits", "memory, swap, processes and processors can be limited");
    }
    let found = format!("the kernel cannot limit: {}", info.missing_limits.join(", "));
    let remedy = "boot with `cgroup_enable=memory swapaccount=1`";
    bad("limits", if grave { Level::Fail } else { Level::Warn }, found, remedy)
}

pub(super) fn storage(info: &EngineInfo) -> Check {
    let driver = &info.storage_driver;
    if matches!(driver.as_str(), "overlay2" | "fuse-overlayfs") {
        return ok("storage", format!("storage driver {driver}"));
    }
    let found =
        format!("with storage driver {driver} nothing caps what jobs write outside workspace, home and /tmp");
    bad(
        "storage",
        Level::Fail,
        found,
        "use overlay2: `\"storage-driver\": \"overlay2\"` in /etc/docker/daemon.json",
    )
}

pub(super) fn user_namespaces(info: &EngineInfo) -> Check {
    if !info.userns_remap {
        return ok(
            "userns",
            "uids of containers are those of the host; jobs are uid 1000 without capabilities",
        );
    }
    let found =
        "the engine maps uids (userns-remap), which workspaces do not follow yet: jobs could not write";
    bad("userns", Level::Fail, found, "take `userns-remap` out of /etc/docker/daemon.json and restart docker")
}

async fn loop_mounts() -> Check {
    let name = "loop-mounts";
    let found = match tempfile::tempdir() {
        Err(error) => Err(format!("no temporary folder: {error}")),
        Ok(folder) => match Workspaces::open(folder.path()).await {
            Err(error) => Err(error.to_string()),
            Ok(workspaces) => match workspaces.cap() {
                DiskCap::Hard => Ok(()),
                DiskCap::Watched => Err(workspaces.why_watched().unwrap_or("unknown reason").to_owned()),
            },
        },
    };
    match found {
        Ok(()) => ok(name, "workspaces are file systems of their own, with a hard cap"),
        Err(why) => {
            let found =
                format!("workspaces are plain folders whose size is counted about once a second: {why}");
            bad(name, Level::Warn, found, "modprobe loop && apt-get install e2fsprogs, as root")
        }
    }
}

async fn packet_filter() -> Check {
    let name = "iptables";
    match tool("iptables", &["-w", "5", "-t", "raw", "-S", "PREROUTING"]).await {
        Ok(_) => ok(name, "the packet filter can be set"),
        Err(why) => {
            let found = format!("jobs with `network = \"egress\"` cannot run: {why}");
            bad(name, Level::Warn, found, "apt-get install iptables && modprobe iptable_raw, as root")
        }
    }
}

fn disk(name: &'static str, folder: &Path) -> Check {
    let shown = folder.display();
    let room = match room(folder) {
        Ok(room) => room,
        Err(error) => {
            return bad(
                name,
                Level::Fail,
                format!("{shown} cannot be looked at: {error}"),
                format!("ls -ld {shown}"),
            );
        }
    };
    let found = format!("{} free at {shown}", buildyard_types::size::rounded(room.free.0));
    let remedy = "docker image prune, or a larger disk";
    if let Some(lack) = room.lacks() {
        return bad(name, Level::Fail, format!("{shown}: {lack}"), remedy);
    }
    match room.free {
        free if free < DISK_WARN => bad(name, Level::Warn, found, remedy),
        _ => ok(name, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::scripted::{Program, ScriptedEngine};

    async fn info(change: impl FnOnce(&mut EngineInfo)) -> EngineInfo {
        let mut info = ScriptedEngine::new(|_| Program::Runs).info().await.expect("the fake answers");
        info.version = "20.10.24+dfsg1".into();
        info.runc = Some("1.3.3".into());
        info.storage_driver = "overlay2".into();
        info.cgroup_version = Some(2);
        info.data_root = "/".into();
        change(&mut info);
        info
    }

    fn level(checks: &[Check], name: &str) -> Level {
        checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("{name}")).level
    }

    #[tokio::test]
    async fn each_lack_is_named_with_its_remedy() {
        type Change = fn(&mut EngineInfo);
        let rows: [(&str, Level, Change); 10] = [
            ("docker", Level::Warn, |info| info.version = "19.03.1".into()),
            ("live-restore", Level::Warn, |info| info.live_restore = false),
            ("runc", Level::Fail, |info| info.runc = Some("1.1.4".into())),
            ("runc", Level::Warn, |info| info.runc = Some("1.1.5+ds1 (1.1.5+ds1-1+deb12u1)".into())),
            ("runc", Level::Warn, |info| info.runc = None),
            ("cgroups", Level::Warn, |info| info.cgroup_version = None),
            ("limits", Level::Warn, |info| info.missing_limits = vec!["swap"]),
            ("limits", Level::Fail, |info| info.missing_limits = vec!["pids"]),
            ("storage", Level::Fail, |info| info.storage_driver = "zfs".into()),
            ("userns", Level::Fail, |info| info.userns_remap = true),
        ];
        let well = engine(&info(|_| {}).await);
        for (name, expected, change) in rows {
            assert_eq!(level(&well, name), Level::Ok, "{name}: {well:?}");
            let checks = engine(&info(change).await);
            assert_eq!(level(&checks, name), expected, "{name}");
            let remedied = checks.iter().all(|check| (check.level == Level::Ok) == check.remedy.is_none());
            assert!(remedied, "{checks:?}");
        }
    }

    #[tokio::test]
    async fn without_an_engine_the_rest_is_said_all_the_same() {
        let data = tempfile::tempdir().expect("a folder");
        let checks = examine(&data.path().join("no.sock"), data.path()).await;
        let docker = checks.iter().find(|check| check.name == "docker").expect("said");
        assert_eq!(docker.level, Level::Fail);
        assert!(docker.found.contains("no.sock") && docker.remedy.is_some(), "{docker:?}");
        let names: Vec<&str> = checks.iter().map(|check| check.name).collect();
        assert_eq!(names, ["root", "git", "mkfs.ext4", "docker", "loop-mounts", "iptables", "disk"]);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version_at_least("git version 2.39.5", [2, 24]));
        assert!(version_at_least("git version 2.100", [2, 24]));
        assert!(version_at_least("28.2.2", [20, 10]));
        assert!(!version_at_least("git version 2.9.1", [2, 24]));
        assert!(!version_at_least("nonsense", [2, 24]));
    }
}
