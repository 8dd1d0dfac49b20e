//! Starts git, on our terms: no terminal, no foreign configuration, no protocol but local files, a time limit,
//! and its whole process group killed when we lose interest.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// Most of what git says that is read: a listing of pipeline files is short.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;
/// Most of git's complaints that are kept.
const MAX_ERROR_BYTES: u64 = 8 << 10;

/// Why git did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    /// It could not be started, or its output not be read.
    #[error("cannot run `git {what}`")]
    Run {
        /// The command.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("`git {what}` failed: {said}")]
    Failed {
        /// The command.
        what: &'static str,
        /// What it said.
        said: String,
    },
    /// It took too long.
    #[error("`git {what}` took longer than {} s", limit.as_secs())]
    TimedOut {
        /// The command.
        what: &'static str,
        /// What it had.
        limit: Duration,
    },
    /// It said more than is read.
    #[error("`git {what}` said more than {MAX_OUTPUT_BYTES} bytes")]
    TooMuch {
        /// The command.
        what: &'static str,
    },
}

/// Knows how to start git.
#[derive(Debug, Clone)]
pub(crate) struct Git {
    home: PathBuf,
}

/// Kills a process group when it is dropped before it was told that all is well.
pub(crate) struct GroupGuard(Option<Pid>);

impl GroupGuard {
    /// Guards the group that a child leads.
    pub(crate) fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(id.cast_signed())))
    }

    /// The child ended by itself.
    pub(crate) fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for GroupGuard {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may be gone already, and then there is nothing to kill.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Git {
    /// Git with `home` as its home; writes the configuration that it is to have.
    pub(crate) fn new(home: &Path) -> std::io::Result<Self> {
        // Repositories belong to other users than the coordinator; nothing is ever run from them.
        std::fs::write(home.join("gitconfig"), "[safe]\n\tdirectory = *\n[gc]\n\tauto = 0\n")?;
        Ok(Self { home: home.to_owned() })
    }

    /// A command with our surroundings and nothing else's.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("git");
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("HOME", &self.home)
            .env("GIT_CONFIG_GLOBAL", self.home.join("gitconfig"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ALLOW_PROTOCOL", "file")
            .env("LC_ALL", "C")
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end and gives what it said.
    pub(crate) async fn run(
        &self,
        what: &'static str,
        mut command: Command,
        limit: Duration,
    ) -> Result<Vec<u8>, GitError> {
        let failed = |source| GitError::Run { what, source };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
        let guard = GroupGuard::of(&child);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ended = async {
            let (output, complaint) =
                tokio::try_join!(bounded(stdout, MAX_OUTPUT_BYTES + 1), bounded(stderr, MAX_ERROR_BYTES))?;
            if output.len() as u64 > MAX_OUTPUT_BYTES {
                return Ok(None);
            }
            Ok(Some((child.wait().await?, output, complaint)))
        };
        let ended = tokio::time::timeout(limit, ended).await;
        let ended = ended.map_err(|_| GitError::TimedOut { what, limit })?.map_err(failed)?;
        let (status, output, complaint) = ended.ok_or(GitError::TooMuch { what })?;
        guard.release();
        if status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&complaint);
        let said = said.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
        Err(GitError::Failed { what, said: if said.is_empty() { status.to_string() } else { said } })
    }
}

/// Reads a pipe to its end, and keeps the first `limit` bytes. What goes beyond is read and dropped for
/// complaints, so that git is not held up; the caller of an output that is too long gives up at once.
async fn bounded(pipe: Option<impl AsyncRead + Unpin>, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(limit).read_to_end(&mut kept).await?;
        if limit == MAX_ERROR_BYTES {
            tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
        }
    }
    Ok(kept)
}
