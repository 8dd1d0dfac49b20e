//! Starts git, on our terms: no terminal, no foreign configuration, no protocol but local files, a time limit,
//! and its whole process group killed when we lose interest.
//!
//! Git also looks into repositories of others, whose own configuration it reads. What that can make it run is
//! closed here: hooks, and the fetch of objects that a partial clone lacks, which starts whatever the
//! repository names as its `uploadpack`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// Git's look at a tiny repository.
const PROBE: Duration = Duration::from_secs(20);
/// Settings that no repository's configuration overrides.
const SETTINGS: [(&str, &str); 3] =
    [("core.hooksPath", "/dev/null"), ("gc.auto", "0"), ("maintenance.auto", "false")];
/// A partial clone without objects. Whoever asks it for one, and may fetch, runs its command.
const TRAP: &str = "\
[core]
\trepositoryformatversion = 1
\tbare = true
[extensions]
\tpartialClone = origin
[remote \"origin\"]
\turl = .
\tpromisor = true
\tuploadpack = touch sprung && false
";
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
    /// It runs what a repository's configuration names.
    #[error(
        "this git fetches missing objects although it is told not to (GIT_NO_LAZY_FETCH), so that a repository \
         could run commands here; install git 2.39.4 or newer"
    )]
    Lazy,
    /// Its home cannot be prepared.
    #[error("cannot prepare the home of git")]
    Home(#[source] std::io::Error),
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
    pub(crate) fn new(home: &Path) -> Result<Self, GitError> {
        // Repositories belong to other users than the coordinator; nothing is ever run from them.
        let config = "[safe]\n\tdirectory = *\n";
        std::fs::write(home.join("gitconfig"), config).map_err(GitError::Home)?;
        Ok(Self { home: home.to_owned() })
    }

    /// Refuses a git that could be made to run a repository's commands. Tried out rather than read from the
    /// version, since distributions mend older ones.
    pub(crate) async fn check(&self) -> Result<(), GitError> {
        let trap = self.home.join("trap.git");
        self.lay(&trap).map_err(GitError::Home)?;
        let mut look = self.command();
        look.arg("-C").arg(&trap).args(["cat-file", "-e", &"1".repeat(40)]);
        match self.run("cat-file", look, PROBE).await {
            // There is no such object, whatever git tried.
            Ok(_) | Err(GitError::Failed { .. }) => {}
            Err(error) => return Err(error),
        }
        if trap.join("sprung").exists() { Err(GitError::Lazy) } else { Ok(()) }
    }

    fn lay(&self, trap: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(trap.join("objects"))?;
        std::fs::create_dir_all(trap.join("refs"))?;
        std::fs::write(trap.join("HEAD"), "ref: refs/heads/main\n")?;
        std::fs::write(trap.join("config"), TRAP)?;
        match std::fs::remove_file(trap.join("sprung")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
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
            .env("GIT_CONFIG_COUNT", SETTINGS.len().to_string())
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_ALLOW_PROTOCOL", "file")
            .env("LC_ALL", "C")
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        for (index, (key, value)) in SETTINGS.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{index}"), key);
            command.env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_git_that_fetches_on_its_own_is_seen() {
        let temp = tempfile::tempdir().unwrap();
        let git = Git::new(temp.path()).unwrap();
        git.check().await.unwrap();
        // What an older git would do, which does not know the variable.
        let mut look = git.command();
        look.env_remove("GIT_NO_LAZY_FETCH").arg("-C").arg(temp.path().join("trap.git"));
        look.args(["cat-file", "-e", &"1".repeat(40)]);
        git.run("cat-file", look, PROBE).await.unwrap_err();
        assert!(temp.path().join("trap.git/sprung").exists(), "the trap is a trap");
        git.check().await.unwrap();
    }
}
