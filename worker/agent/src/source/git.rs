//! Runs git with an environment of ours, a time limit, and the end of its whole process group.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::SourceError;
use crate::engine::Owner;

/// Most bytes that are kept of what git prints about an error.
const MESSAGE_BYTES: u64 = 8 * 1024;

/// One call of git that is being put together.
#[derive(Debug)]
pub struct Git {
    command: Command,
    settings: Vec<(String, String)>,
}

/// Kills a process group when dropped, unless its leader was waited for.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // The leader is not reaped yet, so the number is still its own.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Git {
    /// Works on a bare repository or the `.git` of a workspace.
    pub fn at(git_dir: &Path) -> Self {
        let mut command = Command::new("git");
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_ALLOW_PROTOCOL", "http:https")
            .env("GIT_DIR", git_dir)
            .current_dir(git_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .process_group(0);
        let settings = [("core.hooksPath", "/dev/null"), ("gc.auto", "0"), ("maintenance.auto", "false")];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Self { command, settings }
    }

    /// Adds an argument that is ours. Names from outside come behind [`then`](Self::then).
    pub fn arg(mut self, argument: &str) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments that are ours.
    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    /// Ends the options and adds an argument from outside, which can then be none.
    pub fn then(mut self, argument: &str) -> Self {
        self.command.arg("--end-of-options").arg(argument);
        self
    }

    /// Sets a configuration value, invisible in the list of processes.
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Which ways of transport may be used; HTTP by default.
    pub fn protocols(mut self, protocols: &str) -> Self {
        self.command.env("GIT_ALLOW_PROTOCOL", protocols);
        self
    }

    /// Works on the files of this folder.
    pub fn work_tree(mut self, folder: &Path) -> Self {
        self.command.env("GIT_WORK_TREE", folder).current_dir(folder);
        self
    }

    /// Runs as another user, without any of our groups.
    pub fn owner(mut self, owner: Owner) -> Self {
        if rustix::process::geteuid().is_root() {
            self.command.uid(owner.uid).gid(owner.gid);
        }
        self
    }

    /// Reads from there.
    pub fn stdin(mut self, from: impl Into<Stdio>) -> Self {
        self.command.stdin(from);
        self
    }

    /// Writes to there.
    pub fn stdout(mut self, to: impl Into<Stdio>) -> Self {
        self.command.stdout(to);
        self
    }

    /// Starts it. The caller waits with [`Running::end`].
    pub fn start(mut self, doing: &'static str) -> Result<Running, SourceError> {
        self.command.env("GIT_CONFIG_COUNT", self.settings.len().to_string());
        for (index, (key, value)) in self.settings.iter().enumerate() {
            self.command.env(format!("GIT_CONFIG_KEY_{index}"), key);
            self.command.env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        let child = self.command.spawn().map_err(SourceError::NoGit)?;
        // The pipes that the command holds must close here, or a reader waits for their end for ever.
        drop(self.command);
        let pid = child.id().and_then(|id| Pid::from_raw(id as i32));
        Ok(Running { doing, child, group: Group(pid) })
    }

    /// Runs it to its end.
    pub async fn run(self, doing: &'static str, limit: Duration) -> Result<(), SourceError> {
        self.start(doing)?.end(limit).await.map(drop)
    }

    /// Runs it to its end and gives what it printed, up to a length.
    pub async fn read(
        self,
        doing: &'static str,
        limit: Duration,
        max_bytes: u64,
    ) -> Result<Vec<u8>, SourceError> {
        let mut running = self.stdout(Stdio::piped()).start(doing)?;
        let stdout = running.child.stdout.take().expect("its output was asked to be a pipe");
        let read = read_bounded(stdout, max_bytes);
        let (output, ended) = tokio::join!(read, running.end(limit));
        ended?;
        let (bytes, whole) = output;
        if !whole {
            return Err(SourceError::Git {
                doing,
                message: format!("it printed more than {max_bytes} bytes"),
            });
        }
        Ok(bytes)
    }
}

/// A git that runs.
pub struct Running {
    doing: &'static str,
    /// The process, for its pipes.
    pub child: Child,
    group: Group,
}

impl Running {
    /// Waits for its end. What it printed to standard error becomes the message of a failure.
    pub async fn end(mut self, limit: Duration) -> Result<(), SourceError> {
        let doing = self.doing;
        let stderr = self.child.stderr.take();
        let message = async {
            match stderr {
                Some(stderr) => read_bounded(stderr, MESSAGE_BYTES).await.0,
                None => Vec::new(),
            }
        };
        let both = async { tokio::join!(self.child.wait(), message) };
        let (status, message) = tokio::time::timeout(limit, both)
            .await
            .map_err(|_| SourceError::TimedOut { doing, after: limit })?;
        self.group.0 = None;
        let status = status.map_err(SourceError::NoGit)?;
        if status.success() {
            return Ok(());
        }
        let mut message = String::from_utf8_lossy(&message).trim().to_owned();
        if message.is_empty() {
            message = status.to_string();
        }
        Err(SourceError::Git { doing, message })
    }
}

/// Reads to the end, keeps at most `max` bytes, and says whether that was all.
async fn read_bounded(mut from: impl AsyncRead + Unpin, max: u64) -> (Vec<u8>, bool) {
    let mut kept = Vec::new();
    let whole = (&mut from).take(max).read_to_end(&mut kept).await.is_ok();
    let more = tokio::io::copy(&mut from, &mut tokio::io::sink()).await.unwrap_or(0);
    (kept, whole && more == 0)
}

/// Runs git in somebody's own checkout, as its owner, so that neither its configuration nor its hooks run as
/// root. Blocks.
pub fn run_as_owner(checkout: &Path, arguments: &[&str]) -> std::io::Result<Output> {
    use std::os::unix::fs::MetadataExt as _;
    let owner = std::fs::metadata(checkout)?;
    let mut command = std::process::Command::new("git");
    command.arg("-C").arg(checkout).args(arguments).stdin(Stdio::null()).env("GIT_TERMINAL_PROMPT", "0");
    command.env("GIT_OPTIONAL_LOCKS", "0");
    if rustix::process::geteuid().is_root() && owner.uid() != 0 {
        command.uid(owner.uid()).gid(owner.gid());
    }
    command.output()
}
