//! `buildyard up`: starts a supervisor and waits until the farm can take work.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use buildyard_types::api::{Liveness, StatusView, WorkerView};
use buildyard_types::size::rounded;
use buildyard_types::time::HumanDuration;
use buildyard_types::{Millis, WorkerId};
use buildyard_worker::host::doctor::{Level, examine};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::serve;
use crate::Context;
use crate::client::Client;
use crate::config::{Origin, Settings};
use crate::exit::{CliError, Kind, Result};
use crate::output::{self, Tone};
use crate::supervisor::logfile::tail;
use crate::supervisor::record::{self, Lock, Record};
use crate::supervisor::{self, Plan, part::Role};
use crate::telemetry;
use crate::terminal;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A part that died so often before it was ready will not get there by itself.
const HOPELESS_AFTER: u64 = 3;
/// Lines of its log that are shown then.
const LAST_LINES: usize = 5;

/// Starts the farm on this machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Starts coordinator and worker as processes of their own and watches over them: killing one starts
that one again. Returns when the farm can take work. Needs root and Docker, since the worker makes
containers; `buildyard doctor` says what is missing.

Examples:
  buildyard up
  buildyard up --data-dir /srv/farm --listen 127.0.0.1:0
  buildyard up --foreground         for a service manager; ends with SIGTERM")]
pub(crate) struct UpArgs {
    /// Stay in the foreground and write the supervisor's log to standard error
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Address of the coordinator; port 0 takes any that is free [default: 127.0.0.1:7317]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Configuration of the coordinator [default: /etc/buildyard/coordinator.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    coordinator_config: Option<PathBuf>,
    /// How long to wait until the farm is ready
    #[arg(long, value_name = "DURATION", default_value_t = HumanDuration(Millis::from_secs(60)))]
    timeout: HumanDuration,
}

/// `--output json`
#[derive(Debug, Serialize)]
struct Started {
    coordinator: String,
    worker: WorkerView,
    data_dir: PathBuf,
    log_dir: PathBuf,
    supervisor_pid: u32,
}

/// Carries the command out.
pub(crate) async fn run(context: &Context, args: UpArgs) -> Result {
    let settings = own_farm(&context.settings);
    make_dir(&settings.data_dir.value, 0o755)?;
    make_dir(&settings.log_dir(), 0o750)?;
    let config = args
        .coordinator_config
        .map(|path| std::path::absolute(&path).map_err(|error| CliError::file("resolve", &path, error)));
    let plan =
        Plan { settings: settings.clone(), listen: args.listen, coordinator_config: config.transpose()? };
    let limit = args.timeout;
    if is_up(&settings)? {
        context.ui.progress("the farm runs already");
        let started = within(limit, &settings, wait_until_ready(&settings, || None)).await?;
        return show(context, &settings, &started);
    }
    if args.foreground {
        telemetry::to_stderr();
        let supervised = supervisor::supervise(plan, serve::stop_signal()?);
        let greet = async {
            let started = within(limit, &settings, wait_until_ready(&settings, || None)).await;
            if let Err(error) = started.and_then(|started| show(context, &settings, &started)) {
                // In the foreground the supervisor goes on trying; its log tells the rest.
                tracing::error!("{error}");
            }
            std::future::pending::<std::convert::Infallible>().await
        };
        return tokio::select! {
            result = supervised => result,
            never = greet => match never {},
        };
    }
    preflight(context, &settings).await?;
    let mut child = detach(&plan)?;
    let died = || child.try_wait().ok().flatten().map(|status| status.to_string());
    let ready = within(limit, &settings, wait_until_ready(&settings, died)).await;
    show(context, &settings, &ready?)
}

/// The farm of the data directory, whatever coordinator the user has configured for other commands.
fn own_farm(settings: &Settings) -> Settings {
    Settings { coordinator: None, token_file: None, ..settings.clone() }
}

fn make_dir(path: &Path, mode: u32) -> Result {
    let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|error| {
        CliError::file("make", path, error).hint("run the command as root, or name a folder with --data-dir")
    })
}

fn is_up(settings: &Settings) -> Result<bool> {
    let data_dir = &settings.data_dir.value;
    Lock::is_held(data_dir).map_err(|error| CliError::file("look at the lock in", data_dir, error))
}

/// Without root or an engine no worker starts. Saying so at once beats saying so after a minute.
async fn preflight(context: &Context, settings: &Settings) -> Result {
    let socket = serve::engine_socket(&serve::worker_settings(None)?.1);
    let checks = examine(&socket, &settings.data_dir.value).await;
    let (fatal, other): (Vec<_>, Vec<_>) = checks
        .into_iter()
        .filter(|check| check.level == Level::Fail)
        .partition(|check| matches!(check.name, "root" | "docker"));
    for check in other {
        context.ui.progress(&format!("warning: {}", check.found));
    }
    let Some(check) = fatal.into_iter().next() else { return Ok(()) };
    let remedy = check.remedy.unwrap_or_default();
    Err(CliError::farm(format!("no worker can run here: {}", check.found))
        .hint(format!("mend it with: {remedy}; `buildyard doctor` looks at everything")))
}

/// Starts the supervisor as a process that outlives this one and its terminal.
fn detach(plan: &Plan) -> Result<Child> {
    let program = std::env::current_exe()
        .map_err(|error| CliError::farm("cannot find the program's own file").because(error))?;
    let log = plan.settings.log_dir().join("supervisor.log");
    let open = std::fs::OpenOptions::new().create(true).append(true).open(&log);
    let output = open.map_err(|error| CliError::file("open", &log, error))?;
    let stderr = output.try_clone().map_err(|error| CliError::file("open", &log, error))?;
    let mut command = Command::new(program);
    command.args(["serve", "supervisor", "--data-dir"]).arg(&plan.settings.data_dir.value);
    if let Some(listen) = &plan.listen {
        command.args(["--listen", listen]);
    }
    if let Some(config) = &plan.coordinator_config {
        command.arg("--coordinator-config").arg(config);
    }
    // The folder that `up` was typed in must stay free to be removed or unmounted.
    command.current_dir("/").stdin(Stdio::null()).stdout(output).stderr(stderr);
    command.spawn().map_err(|error| CliError::farm("cannot start the supervisor").because(error))
}

/// Bounds the wait, and says what was not there in time.
async fn within<T>(
    limit: HumanDuration,
    settings: &Settings,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(limit.0.into(), work).await {
        Ok(result) => result,
        Err(_) => {
            let record = record::read(&settings.data_dir.value).ok().flatten();
            let role = match record.and_then(|record| record.endpoint) {
                None => Role::Coordinator,
                Some(_) => Role::Worker,
            };
            Err(not_ready(settings, role, &format!("is not ready after {limit}"), Kind::Timeout))
        }
    }
}

async fn wait_until_ready(settings: &Settings, mut died: impl FnMut() -> Option<String>) -> Result<Started> {
    loop {
        if let Some(status) = died() {
            let log = settings.log_dir().join("supervisor.log");
            let last = tail(&log, 1).pop().unwrap_or(status);
            return Err(CliError::farm(format!("the supervisor ended: {last}"))
                .hint(format!("its log: {}", log.display())));
        }
        let record = record::read(&settings.data_dir.value).ok().flatten();
        if let Some(record) = record.filter(|record| record.supervisor.is_alive()) {
            if let Some(role) = hopeless(&record, settings) {
                return Err(not_ready(settings, role, "does not start", Kind::Farm));
            }
            if record.endpoint.is_some()
                && let Some(started) = look(settings, &record).await
            {
                return Ok(started);
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The part that died again and again before it was ready.
fn hopeless(record: &Record, settings: &Settings) -> Option<Role> {
    let dying = |role: Role| {
        record.parts.iter().any(|part| part.name == role.name() && part.restarts >= HOPELESS_AFTER)
    };
    if record.endpoint.is_none() && dying(Role::Coordinator) {
        return Some(Role::Coordinator);
    }
    (own_worker(settings).is_none() && dying(Role::Worker)).then_some(Role::Worker)
}

fn not_ready(settings: &Settings, role: Role, what: &str, kind: Kind) -> CliError {
    let log = settings.log_dir().join(format!("{}.log", role.name()));
    let last = tail(&log, LAST_LINES).join("\n  ");
    let said = if last.is_empty() { String::new() } else { format!(", it said: {last}") };
    CliError::new(kind, format!("the {} {what}{said}", role.name())).hint(format!(
        "its log: {}; `buildyard doctor` says what this machine lacks, `buildyard down` stops what was started",
        log.display()
    ))
}

/// Asks the coordinator; `None` as long as it or the worker is not ready.
async fn look(settings: &Settings, record: &Record) -> Option<Started> {
    let client = Client::connect(settings).ok()?;
    client.get::<StatusView>(&["status"], &[]).await.ok()?;
    let own = own_worker(settings)?;
    let workers: Vec<WorkerView> = client.get(&["workers"], &[]).await.ok()?;
    let worker = workers.into_iter().find(|worker| worker.id == own && worker.liveness == Liveness::Fresh)?;
    Some(Started {
        coordinator: client.url().to_owned(),
        worker,
        data_dir: settings.data_dir.value.clone(),
        log_dir: settings.log_dir(),
        supervisor_pid: record.supervisor.pid,
    })
}

/// The id of this data directory's worker, once it has joined.
fn own_worker(settings: &Settings) -> Option<WorkerId> {
    #[derive(Deserialize)]
    struct Identity {
        worker: WorkerId,
    }
    let bytes = std::fs::read(settings.worker_dir().join("identity.json")).ok()?;
    serde_json::from_slice::<Identity>(&bytes).ok().map(|identity| identity.worker)
}

fn show(context: &Context, settings: &Settings, started: &Started) -> Result {
    let worker = &started.worker;
    if context.ui.json() {
        output::print_json(started)?;
    } else {
        // Whoever named the folder by a flag has to name it again.
        let flag = match settings.data_dir.origin {
            Origin::Flag => format!(" --data-dir {}", started.data_dir.display()),
            Origin::Env | Origin::File(_) | Origin::Default => String::new(),
        };
        for line in [
            format!("coordinator  {}", started.coordinator),
            format!(
                "worker       {} joined: {} slots, {} of memory",
                worker.name,
                worker.capacity.slots,
                rounded(worker.capacity.memory.0)
            ),
            format!("data         {}, logs in {}", started.data_dir.display(), started.log_dir.display()),
            format!("next         in a checkout: buildyard check, then buildyard trigger . --follow{flag}"),
            format!("             to stop it: buildyard down{flag}"),
        ] {
            output::print(&terminal::line(&line))?;
        }
    }
    match &worker.unfit {
        None => Ok(()),
        Some(reason) => {
            let warning = terminal::line(&format!("the worker takes no jobs: {reason}"));
            context.ui.progress(&context.ui.paint(Tone::Warn, &warning));
            Err(CliError::farm("the farm runs, but can run no job")
                .hint("`buildyard doctor` says how to mend it; the worker then goes on by itself"))
        }
    }
}
