//! How a commit comes into a workspace.
//!
//! The worker keeps a bare mirror of each repository, fetched from the coordinator under the worker's own
//! credential; forge credentials never come here. Out of the mirror, root packs what a job may see; the job's
//! own user unpacks and checks it out. So no file of the mirror is ever shared with a job, as a hard link of a
//! local clone would be, and whatever a hostile commit does to git, it does as a user that owns nothing but
//! the workspace.
//!
//! Names out of a repository (branch, tag, path, URL) travel as data: in a file or behind `--end-of-options`.
//! There are no hooks, no templates, no filters, no submodules, no prompts, and no configuration but ours.

mod checkout;
mod git;
mod mirror;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use checkout::{Checkout, Origin, PACK, check_out, transfer_history};
pub use git::{Git, run_as_owner};
pub use mirror::{Mirror, Mirrors, Remote};

/// Why a commit is not in the workspace.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The coordinator names a commit in a form that is none.
    #[error("`{0}` is not a full commit id")]
    BadCommit(String),
    /// There is no git on this host.
    #[error("git could not be started; install it (apt-get install git)")]
    NoGit(#[source] io::Error),
    /// git ended with an error.
    #[error("could not {doing}: {message}")]
    Git {
        /// What was attempted.
        doing: &'static str,
        /// The end of what it printed.
        message: String,
    },
    /// git took too long.
    #[error("could not {doing} within {} s", after.as_secs())]
    TimedOut {
        /// What was attempted.
        doing: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// A file could not be made, read or written.
    #[error("could not {doing} {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Whether a text is a full commit id, SHA-1 or SHA-256.
pub fn is_commit_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn io_error(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> SourceError {
    let path = path.into();
    move |source| SourceError::Io { doing, path, source }
}

#[cfg(test)]
mod tests;
