//! One process under supervision: how it is started, heard and stopped.

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use super::logfile::LogFile;

/// What a process is given to end by itself before it is killed. The worker ends its attempts in it.
const STOP_TIME: Duration = Duration::from_secs(45);

/// A part of the farm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The coordinator.
    Coordinator,
    /// The worker.
    Worker,
}

impl Role {
    /// Its name in commands, files and records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Coordinator => "coordinator",
            Role::Worker => "worker",
        }
    }
}

/// What to start, and where its output goes.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// This program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<std::ffi::OsString>,
    /// Gets both outputs.
    pub(crate) log: Rc<RefCell<LogFile>>,
}

/// A running process.
pub(crate) struct Running {
    child: Child,
    pid: u32,
}

/// Starts a process in a process group of its own, so that an interrupt typed at the terminal reaches the supervisor
/// alone, which then stops the parts in order.
pub(crate) fn start(launch: &Launch) -> io::Result<Running> {
    let mut command = Command::new(&launch.program);
    command.args(&launch.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
    let pid = child.id().ok_or_else(|| io::Error::other("the process ended before it was looked at"))?;
    if let Some(stdout) = child.stdout.take() {
        tokio::task::spawn_local(keep(stdout, launch.log.clone()));
    }
    if let Some(stderr) = child.stderr.take() {
        tokio::task::spawn_local(keep(stderr, launch.log.clone()));
    }
    Ok(Running { child, pid })
}

/// Copies an output into the log until its end. A log that cannot be written (disk full) must not stop the process,
/// so its output is then read and dropped.
async fn keep(mut output: impl tokio::io::AsyncRead + Unpin, log: Rc<RefCell<LogFile>>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length) = output.read(&mut buffer).await {
        if length == 0 {
            return;
        }
        let _ = log.borrow_mut().write_all(&buffer[..length]);
    }
}

impl Running {
    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks it to end, and kills it when it does not.
    pub(crate) async fn stop(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM);
        match tokio::time::timeout(STOP_TIME, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                tracing::warn!(pid = self.pid, "does not end within {STOP_TIME:?}; killing it");
                self.signal(Signal::KILL);
                self.child.wait().await
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // The child is not reaped before `wait` has returned, so the number is still its own.
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
            && let Err(error) = kill_process(pid, signal)
        {
            tracing::debug!(pid = self.pid, %error, "cannot signal");
        }
    }
}

/// How a process ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
