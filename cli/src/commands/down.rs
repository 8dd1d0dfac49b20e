//! `buildyard down`: stops the farm of a data directory and says whether anything of it is left.

use std::path::Path;
use std::time::Duration;

use buildyard_types::Millis;
use buildyard_types::time::HumanDuration;
use buildyard_worker::engine::docker::DockerEngine;
use buildyard_worker::engine::{Engine, Instance};
use clap::Args;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;

use super::serve;
use crate::Context;
use crate::config::Settings;
use crate::exit::{CliError, Kind, Result};
use crate::output;
use crate::supervisor::record::{self, Lock, ProcessId, Record};

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Stops the farm of this machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Stops the worker, which ends its attempts and removes their containers, then the coordinator, then
the supervisor. What was acknowledged stays in the data directory; `buildyard up` goes on with it.")]
pub(crate) struct DownArgs {
    /// How long to wait until everything is gone
    #[arg(long, value_name = "DURATION", default_value_t = HumanDuration(Millis::from_mins(2)))]
    timeout: HumanDuration,
}

/// `--output json`
#[derive(Debug, Serialize)]
struct Stopped {
    was_running: bool,
    left: Vec<String>,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: DownArgs) -> Result {
    let data_dir = &context.settings.data_dir.value;
    let record =
        record::read(data_dir).map_err(|error| CliError::file("read the record in", data_dir, error))?;
    let was_running = is_held(data_dir)?;
    if was_running {
        stop_supervisor(data_dir)?;
        let gone = wait_until(|| is_held(data_dir).map(|held| !held));
        if tokio::time::timeout(args.timeout.0.into(), gone)
            .await
            .map_or(Ok(false), |gone| gone.map(|()| true))?
        {
            context.ui.progress("the farm is stopped");
        } else {
            let message = format!("the farm is not down after {}", args.timeout);
            return Err(CliError::new(Kind::Timeout, message)
                .hint(format!("see {}", context.settings.log_dir().join("supervisor.log").display())));
        }
    } else {
        context.ui.progress(&format!("no farm runs on {}", data_dir.display()));
    }
    // A supervisor that was killed leaves parts that end by themselves when it is gone.
    let parts = parts_of(record.as_ref());
    let all_gone = wait_until(|| Ok(!parts.iter().any(|(_, process)| process.is_alive())));
    let _ = tokio::time::timeout(args.timeout.0.into(), all_gone).await;
    let left = leftovers(&context.settings, &parts).await;
    if !was_running && left.is_empty() && record.is_some() {
        record::remove(data_dir).map_err(|error| CliError::file("remove the record in", data_dir, error))?;
    }
    if context.ui.json() {
        output::print_json(&Stopped { was_running, left: left.clone() })?;
    }
    if left.is_empty() {
        return Ok(());
    }
    for thing in &left {
        context.ui.progress(&format!("left behind: {thing}"));
    }
    Err(CliError::farm("the farm is stopped, but not all of it is gone").hint(
        "`buildyard up` sweeps what its worker's journal does not know; `docker rm -f NAME` takes one away",
    ))
}

fn is_held(data_dir: &Path) -> Result<bool> {
    Lock::is_held(data_dir).map_err(|error| CliError::file("look at the lock in", data_dir, error))
}

async fn wait_until(mut condition: impl FnMut() -> Result<bool>) -> Result {
    while !condition()? {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Sends TERM to the process that the record names, if it is that process still: a handle on it is taken first and
/// its start time compared after, so that a number given anew cannot be hit.
fn stop_supervisor(data_dir: &Path) -> Result {
    let unknown = || {
        CliError::farm(format!("a supervisor holds {}, but its record names no process", data_dir.display()))
            .hint("find it with `fuser` on supervisor.lock in that folder, and end it with SIGTERM")
    };
    let record = record::read(data_dir).ok().flatten().ok_or_else(unknown)?;
    let supervisor = record.supervisor;
    let pid = i32::try_from(supervisor.pid).ok().and_then(Pid::from_raw).ok_or_else(unknown)?;
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        // It ended in between: that is what was wanted.
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other.map_err(|error| cannot_signal(&supervisor, error))?,
    };
    if !supervisor.is_alive() {
        return Err(unknown());
    }
    match pidfd_send_signal(handle, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(cannot_signal(&supervisor, error)),
    }
}

fn cannot_signal(process: &ProcessId, error: rustix::io::Errno) -> CliError {
    let kind = if error == rustix::io::Errno::PERM { Kind::Refused } else { Kind::Farm };
    CliError::new(kind, format!("cannot stop the supervisor, process {}", process.pid))
        .because(std::io::Error::from(error))
        .hint("run the command as the user who typed `buildyard up`, usually root")
}

fn parts_of(record: Option<&Record>) -> Vec<(String, ProcessId)> {
    let parts = record.map(|record| record.parts.clone()).unwrap_or_default();
    parts.into_iter().filter_map(|part| Some((part.name, part.process?))).collect()
}

/// Processes, mounts and containers of the farm that are still there.
async fn leftovers(settings: &Settings, parts: &[(String, ProcessId)]) -> Vec<String> {
    let alive = parts.iter().filter(|(_, process)| process.is_alive());
    let mut left: Vec<String> =
        alive.map(|(name, process)| format!("process {} ({name})", process.pid)).collect();
    let worker_dir = settings.worker_dir().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    left.extend(
        mounts
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1))
            .filter(|target| target.starts_with(&worker_dir))
            .map(|target| format!("mount {target}")),
    );
    left.extend(containers(settings).await);
    left
}

async fn containers(settings: &Settings) -> Vec<String> {
    let Ok(name) = std::fs::read_to_string(settings.worker_dir().join("instance")) else {
        // No worker ever ran on this folder.
        return Vec::new();
    };
    let socket = match serve::worker_settings(None) {
        Ok((_, settings)) => serve::engine_socket(&settings),
        Err(error) => return vec![format!("containers, perhaps: {error}")],
    };
    match DockerEngine::new(&socket).containers(&Instance::new(name.trim())).await {
        Ok(containers) => containers.iter().map(|found| format!("container {}", found.name)).collect(),
        Err(error) => vec![format!("containers, perhaps: the engine cannot be asked ({error})")],
    }
}
