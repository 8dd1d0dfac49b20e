//! `buildyard serve`: the parts of the farm, each in the foreground.

use std::path::{Path, PathBuf};

use buildyard_coordinator::config::{ConfigFile, CoordinatorConfig, DEFAULT_CONFIG_PATH};
use buildyard_worker::config::{OnExit, WorkerConfig, WorkerSettings};
use buildyard_worker::engine::docker::DEFAULT_SOCKET;
use clap::{Args, Subcommand};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal, setsid};
use tokio::signal::unix::{SignalKind, signal};

use crate::Context;
use crate::client::locate_url;
use crate::config::{Origin, Settings};
use crate::exit::{CliError, Result};
use crate::supervisor::{self, Plan, logfile::LogFile};
use crate::telemetry;

/// The worker's configuration file when no flag names another.
const WORKER_CONFIG_PATH: &str = "/etc/buildyard/worker.toml";

/// Runs one part of the farm in the foreground.
#[derive(Debug, Args)]
#[command(after_help = "\
For service managers and for a second machine; on one machine `buildyard up` does all of it. Ends
with SIGTERM or SIGINT in good order. Logs go to standard error: BUILDYARD_LOG filters (info by
default), BUILDYARD_LOG_FORMAT=json is for programs.")]
pub(crate) struct ServeArgs {
    #[command(subcommand)]
    part: PartArgs,
}

#[derive(Debug, Subcommand)]
enum PartArgs {
    /// Run the coordinator: API, scheduler, store
    Coordinator(CoordinatorArgs),
    /// Run a worker: containers for one coordinator's jobs
    Worker(WorkerArgs),
    /// What `up` starts: watches over coordinator and worker
    #[command(hide = true)]
    Supervisor(SupervisorArgs),
}

/// Flags of the coordinator.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  buildyard serve coordinator --data-dir /srv/farm --listen 127.0.0.1:7317")]
struct CoordinatorArgs {
    /// Address to listen on; port 0 takes any that is free [default: 127.0.0.1:7317]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Configuration file [default: /etc/buildyard/coordinator.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    supervised: Supervised,
}

/// Flags of the worker.
#[derive(Debug, Args)]
#[command(after_help = "\
The first start needs a one-time token; the worker then has a credential of its own in DIR/worker.

Example:
  buildyard workers invite > worker.token          # where the coordinator is
  buildyard serve worker --coordinator http://127.0.0.1:7317 --token-file worker.token")]
struct WorkerArgs {
    /// The name that people see; the host's name by default
    #[arg(long)]
    name: Option<String>,
    /// What becomes of running attempts at the end: they go on and are taken up again, or are stopped and removed
    #[arg(long, value_enum, default_value = "leave")]
    on_exit: WhenTold,
    /// Configuration file [default: /etc/buildyard/worker.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    supervised: Supervised,
}

/// What becomes of running attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum WhenTold {
    Leave,
    Stop,
}

/// Flags of the supervisor.
#[derive(Debug, Args)]
struct SupervisorArgs {
    #[arg(long)]
    listen: Option<String>,
    #[arg(long)]
    coordinator_config: Option<PathBuf>,
}

/// Set by the supervisor.
#[derive(Debug, Args)]
struct Supervised {
    /// The process to end with
    #[arg(long, hide = true, value_name = "PID")]
    supervised: Option<i32>,
}

impl ServeArgs {
    /// Whether the part uses every processor.
    pub(crate) fn is_busy(&self) -> bool {
        match self.part {
            PartArgs::Coordinator(_) | PartArgs::Worker(_) => true,
            // Its parts end with the thread that started them, so there must be no other.
            PartArgs::Supervisor(_) => false,
        }
    }
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: ServeArgs) -> Result {
    match args.part {
        PartArgs::Coordinator(args) => coordinator(&context.settings, args).await,
        PartArgs::Worker(args) => worker(&context.settings, args).await,
        PartArgs::Supervisor(args) => supervise(&context.settings, args).await,
    }
}

/// Becomes ready at SIGTERM or SIGINT.
pub(crate) fn stop_signal() -> Result<impl Future<Output = ()>> {
    let listen =
        |kind| signal(kind).map_err(|error| CliError::farm("cannot listen for signals").because(error));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

impl Supervised {
    /// Ends with the supervisor: a part that nobody watches over would hold the data directory against the next.
    fn follow(&self) -> Result {
        let Some(parent) = self.supervised else { return Ok(()) };
        set_parent_process_death_signal(Some(Signal::TERM)).map_err(|error| {
            CliError::farm("cannot tie this process to its supervisor").because(std::io::Error::from(error))
        })?;
        // It may have ended before the line above.
        if getppid().map(Pid::as_raw_nonzero).map(i32::from) == Some(parent) {
            return Ok(());
        }
        Err(CliError::farm(format!("the supervisor, process {parent}, is gone")))
    }
}

async fn supervise(settings: &Settings, args: SupervisorArgs) -> Result {
    // A terminal that closes must not take the farm along. It fails where there is nothing to leave.
    let _ = setsid();
    let path = settings.log_dir().join("supervisor.log");
    telemetry::to_file(LogFile::open(&path).map_err(|error| CliError::file("open", &path, error))?);
    let plan =
        Plan { settings: settings.clone(), listen: args.listen, coordinator_config: args.coordinator_config };
    supervisor::supervise(plan, stop_signal()?).await
}

async fn coordinator(settings: &Settings, args: CoordinatorArgs) -> Result {
    args.supervised.follow()?;
    telemetry::to_stderr();
    let config = coordinator_config(settings, &args)?;
    let stop = stop_signal()?;
    buildyard_coordinator::serve(config, stop)
        .await
        .map_err(|error| CliError::farm("the coordinator ended").because(error))
}

fn coordinator_config(settings: &Settings, args: &CoordinatorArgs) -> Result<CoordinatorConfig> {
    let (path, text) = config_text(args.config.as_deref(), DEFAULT_CONFIG_PATH)?;
    let wrong = |error: buildyard_coordinator::config::ConfigError| {
        CliError::usage(format!("cannot use {}", path.display())).because(error)
    };
    let mut file = ConfigFile::parse(&text).map_err(wrong)?;
    // The farm's folder holds the coordinator's; its own file may say otherwise where nobody said more.
    if file.data_dir.is_none() || settings.data_dir.origin != Origin::Default {
        file.data_dir = Some(settings.coordinator_dir());
    }
    if args.listen.is_some() {
        file.listen.clone_from(&args.listen);
    }
    file.validate().map_err(wrong)
}

async fn worker(settings: &Settings, args: WorkerArgs) -> Result {
    args.supervised.follow()?;
    telemetry::to_stderr();
    let config = worker_config(settings, &args)?;
    let stop = stop_signal()?;
    buildyard_worker::daemon::serve(config, stop)
        .await
        .map_err(|error| CliError::farm("the worker ended").because(error))
}

/// What the owner of this machine says about workers on it.
pub(crate) fn worker_settings(named: Option<&Path>) -> Result<(PathBuf, WorkerSettings)> {
    let (path, text) = config_text(named, WORKER_CONFIG_PATH)?;
    match WorkerSettings::parse(&text) {
        Ok(file) => Ok((path, file)),
        Err(error) => Err(CliError::usage(format!("cannot use {}", path.display())).because(error)),
    }
}

/// The engine's socket that workers of this machine use. Whoever looks at the engine has to look at the same.
pub(crate) fn engine_socket(settings: &WorkerSettings) -> PathBuf {
    settings.engine_socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into())
}

fn worker_config(settings: &Settings, args: &WorkerArgs) -> Result<WorkerConfig> {
    let (path, mut file) = worker_settings(args.config.as_deref())?;
    if settings.coordinator.is_some() || file.coordinator.is_none() {
        file.coordinator = Some(locate_url(settings)?);
    }
    if args.name.is_some() {
        file.name.clone_from(&args.name);
    }
    // Only a flag names the one-time token: a configured `token_file` is the token of people.
    let token_file = settings
        .token_file
        .as_ref()
        .filter(|file| file.origin == Origin::Flag)
        .map(|file| file.value.clone());
    let mut config = file
        .into_config(settings.worker_dir(), token_file)
        .map_err(|error| CliError::usage(format!("cannot use {}", path.display())).because(error))?;
    config.on_exit = match args.on_exit {
        WhenTold::Leave => OnExit::Leave,
        WhenTold::Stop => OnExit::Stop,
    };
    Ok(config)
}

/// The text of the file that was named, or of the usual one; nothing where the usual one is not there.
fn config_text(named: Option<&Path>, usual: &str) -> Result<(PathBuf, String)> {
    let path = named.unwrap_or(Path::new(usual));
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((path.to_owned(), text)),
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            Ok((path.to_owned(), String::new()))
        }
        Err(error) => Err(CliError::file("read", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_that_is_asked_is_the_one_that_workers_use() {
        let socket = |text: &str| engine_socket(&WorkerSettings::parse(text).unwrap());
        assert_eq!(socket("engine_socket = \"/run/other.sock\"\n"), Path::new("/run/other.sock"));
        assert_eq!(socket(""), Path::new(DEFAULT_SOCKET));
    }
}
