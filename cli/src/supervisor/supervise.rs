//! The supervisor's loop.

use std::cell::RefCell;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use buildyard_types::api::{InviteRequest, InviteResponse};
use tokio::sync::watch;

use super::logfile::LogFile;
use super::part::{self, Launch, Role, Running};
use super::policy::RestartPolicy;
use super::record::{self, Lock, Part, ProcessId, Record};
use crate::client::Client;
use crate::config::Settings;
use crate::exit::{CliError, Kind, Result};

/// How often the supervisor looks for a file or an answer that it waits for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What to watch over.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The configuration.
    pub(crate) settings: Settings,
    /// Where the coordinator listens; its own configuration's address if `None`.
    pub(crate) listen: Option<String>,
    /// The coordinator's configuration file.
    pub(crate) coordinator_config: Option<PathBuf>,
}

/// What the two loops share. All of it lives on one thread.
struct Shared {
    plan: Plan,
    program: PathBuf,
    record: RefCell<Record>,
    endpoint: watch::Sender<Option<String>>,
}

/// Starts coordinator and worker and keeps them running until `stop` says otherwise; then stops the worker, which
/// ends its attempts and reports them, and after it the coordinator.
pub(crate) async fn supervise(plan: Plan, stop: impl Future<Output = ()>) -> Result {
    let data_dir = plan.settings.data_dir.value.clone();
    let lock = Lock::take(&data_dir).map_err(|error| CliError::file("lock", &data_dir, error))?;
    let Some(_lock) = lock else {
        return Err(CliError::new(
            Kind::Refused,
            format!("another supervisor runs on {}", data_dir.display()),
        )
        .hint("`buildyard status` shows its farm, `buildyard down` stops it"));
    };
    let shared = Rc::new(prepare(plan)?);
    shared.write_record();
    let (stop_worker, worker_stopped) = watch::channel(false);
    let (stop_coordinator, coordinator_stopped) = watch::channel(false);
    let local = tokio::task::LocalSet::new();
    let result = local
        .run_until(async {
            let coordinator = keep_running(&shared, Role::Coordinator, coordinator_stopped);
            let worker = keep_running(&shared, Role::Worker, worker_stopped);
            let order = async {
                stop.await;
                tracing::info!("stopping the worker, then the coordinator");
                // The loops end only by these; nobody else can have dropped the receivers.
                let _ = stop_worker.send(true);
            };
            let worker_then_coordinator = async {
                let ended = tokio::join!(worker, order).0;
                let _ = stop_coordinator.send(true);
                ended
            };
            let (worker, coordinator) = tokio::join!(worker_then_coordinator, coordinator);
            worker.and(coordinator)
        })
        .await;
    record::remove(&data_dir).map_err(|error| CliError::file("remove the record in", &data_dir, error))?;
    result
}

fn prepare(plan: Plan) -> Result<Shared> {
    let program = std::env::current_exe()
        .map_err(|error| CliError::farm("cannot find the program's own file").because(error))?;
    let supervisor = ProcessId::of(std::process::id())
        .ok_or_else(|| CliError::farm("cannot read /proc of this process").hint("mount /proc"))?;
    let parts = [Role::Coordinator, Role::Worker].map(|role| Part {
        name: role.name().to_owned(),
        process: None,
        restarts: 0,
        last_end: None,
    });
    let record = RefCell::new(Record { supervisor, endpoint: None, parts: parts.into() });
    Ok(Shared { plan, program, record, endpoint: watch::Sender::new(None) })
}

impl Shared {
    fn data_dir(&self) -> &Path {
        &self.plan.settings.data_dir.value
    }

    fn change(&self, role: Role, change: impl FnOnce(&mut Part)) {
        let mut record = self.record.borrow_mut();
        if let Some(part) = record.parts.iter_mut().find(|part| part.name == role.name()) {
            change(part);
        }
        drop(record);
        self.write_record();
    }

    /// The record is for `status` and `down`; a full disk must not end the farm.
    fn write_record(&self) {
        if let Err(error) = record::write(self.data_dir(), &self.record.borrow()) {
            tracing::warn!(%error, "cannot write the supervisor's record");
        }
    }

    fn set_endpoint(&self, url: &str) {
        self.record.borrow_mut().endpoint = Some(url.to_owned());
        self.write_record();
        self.endpoint.send_replace(Some(url.to_owned()));
    }

    fn arguments(&self, role: Role) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["serve".into(), role.name().into()];
        let mut add = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
        add("--data-dir", self.data_dir().into());
        add("--supervised", std::process::id().to_string().into());
        match role {
            Role::Coordinator => {
                // After the first start the port is known, and workers know it too.
                let known = self.endpoint.borrow().as_deref().and_then(host_and_port);
                if let Some(listen) = known.or_else(|| self.plan.listen.clone()) {
                    add("--listen", listen.into());
                }
                if let Some(config) = &self.plan.coordinator_config {
                    add("--config", config.into());
                }
            }
            Role::Worker => {
                // Who types `down` wants nothing left; a restart after a crash takes attempts up again all the same.
                if let Some(url) = &*self.endpoint.borrow() {
                    add("--coordinator", url.into());
                }
                add("--on-exit", "stop".into());
                if !self.has_identity() {
                    add("--token-file", self.token_path().into());
                }
            }
        }
        arguments
    }

    fn has_identity(&self) -> bool {
        self.plan.settings.worker_dir().join("identity.json").exists()
    }

    fn token_path(&self) -> PathBuf {
        self.data_dir().join("worker.token")
    }
}

/// `http://127.0.0.1:7317` as an address to listen on.
fn host_and_port(url: &str) -> Option<String> {
    Some(url.strip_prefix("http://")?.trim_end_matches('/').to_owned())
}

/// Keeps one part running until it is told to stop.
async fn keep_running(shared: &Rc<Shared>, role: Role, mut stop: watch::Receiver<bool>) -> Result {
    let log_path = shared.plan.settings.log_dir().join(format!("{}.log", role.name()));
    let log = LogFile::open(&log_path).map_err(|error| CliError::file("open", &log_path, error))?;
    let log = Rc::new(RefCell::new(log));
    let mut policy = RestartPolicy::default();
    while !*stop.borrow_and_update() {
        tokio::select! {
            () = before_start(shared, role) => {}
            _ = stop.changed() => continue,
        }
        let begun = Instant::now();
        let launch =
            Launch { program: shared.program.clone(), arguments: shared.arguments(role), log: log.clone() };
        let endpoint = EndpointFile::look(&shared.plan.settings);
        let end = match part::start(&launch) {
            Err(error) => format!("could not be started: {error}"),
            Ok(running) => match run_one(shared, role, running, endpoint, &mut stop).await {
                Some(end) => end,
                None => return Ok(()),
            },
        };
        let delay = policy.ended(begun.elapsed());
        tracing::warn!(part = role.name(), %end, delay_ms = delay.as_millis() as u64, "starting it again");
        shared.change(role, |part| {
            part.process = None;
            part.restarts += 1;
            part.last_end = Some(end);
        });
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = stop.changed() => {}
        }
    }
    Ok(())
}

/// Watches one process. Gives how it ended, or `None` after a stop.
async fn run_one(
    shared: &Rc<Shared>,
    role: Role,
    mut running: Running,
    endpoint: EndpointFile,
    stop: &mut watch::Receiver<bool>,
) -> Option<String> {
    tracing::info!(part = role.name(), pid = running.pid(), "started");
    shared.change(role, |part| part.process = ProcessId::of(running.pid()));
    let words = |status: io::Result<std::process::ExitStatus>| match status {
        Ok(status) => part::describe(status),
        Err(error) => format!("was lost: {error}"),
    };
    tokio::select! {
        status = running.wait() => Some(words(status)),
        never = while_running(shared, role, endpoint) => match never {},
        _ = stop.changed() => {
            let end = words(running.stop().await);
            tracing::info!(part = role.name(), %end, "stopped");
            shared.change(role, |part| {
                part.process = None;
                part.last_end = Some(end);
            });
            None
        }
    }
}

/// What has to be there before a part is started: the coordinator's address and an invitation for a new worker.
async fn before_start(shared: &Rc<Shared>, role: Role) {
    match role {
        Role::Coordinator => {}
        Role::Worker => {
            let mut endpoint = shared.endpoint.subscribe();
            // The sender lives as long as `shared`.
            let _ = endpoint.wait_for(Option::is_some).await;
            if !shared.has_identity() {
                invite(shared).await;
            }
        }
    }
}

/// What is done beside a running part.
async fn while_running(shared: &Rc<Shared>, role: Role, mut endpoint: EndpointFile) -> Infallible {
    match role {
        Role::Coordinator => loop {
            if let Some(url) = endpoint.changed(&shared.plan.settings) {
                tracing::info!(%url, "the coordinator listens");
                shared.set_endpoint(&url);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        },
        Role::Worker => {
            while !shared.has_identity() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            // Used up: the worker has its own credential now.
            if let Err(error) = std::fs::remove_file(shared.token_path())
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "cannot remove the worker's used token");
            }
            std::future::pending().await
        }
    }
}

/// Asks for a one-time token until the coordinator gives one, and leaves it where only the worker can read it.
async fn invite(shared: &Rc<Shared>) {
    let mut policy = RestartPolicy::default();
    loop {
        match try_invite(shared).await {
            Ok(()) => return,
            Err(error) => {
                let delay = policy.ended(Duration::ZERO);
                tracing::info!(%error, "no invitation for the worker yet");
                tokio::time::sleep(delay).await;
            }
        }
    }
}

async fn try_invite(shared: &Rc<Shared>) -> Result {
    let mut settings = shared.plan.settings.clone();
    // The farm of this data directory is meant, whatever coordinator the user has configured for other commands.
    settings.coordinator = None;
    settings.token_file = None;
    let client = Client::connect(&settings)?;
    let invite: InviteResponse = client.post(&["workers", "invite"], &InviteRequest::default()).await?;
    let path = shared.token_path();
    record::replace(&path, invite.token.as_bytes(), 0o600)
        .map_err(|error| CliError::file("write", &path, error))
}

/// The coordinator writes its address when it listens. What lies there from an earlier start is not news.
#[derive(Debug)]
struct EndpointFile {
    seen: Option<(u64, std::time::SystemTime)>,
}

impl EndpointFile {
    fn stamp(settings: &Settings) -> Option<(u64, std::time::SystemTime)> {
        use std::os::unix::fs::MetadataExt;
        let data = std::fs::metadata(settings.coordinator_dir().join("endpoint")).ok()?;
        Some((data.ino(), data.modified().ok()?))
    }

    fn look(settings: &Settings) -> Self {
        Self { seen: Self::stamp(settings) }
    }

    /// The address, if it was written since the last look.
    fn changed(&mut self, settings: &Settings) -> Option<String> {
        let stamp = Self::stamp(settings);
        if stamp.is_none() || stamp == self.seen {
            return None;
        }
        let text = std::fs::read_to_string(settings.coordinator_dir().join("endpoint")).ok()?;
        let url = text.trim();
        if url.is_empty() {
            return None;
        }
        self.seen = stamp;
        Some(url.to_owned())
    }
}
