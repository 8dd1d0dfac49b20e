//! The git checkout that the user stands in: its root, its HEAD, and what a name in it means.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::exit::{CliError, Result};

/// What git said.
enum Said {
    /// This.
    Text(String),
    /// No, and why; empty where the name merely means nothing.
    No(String),
}

impl Said {
    fn text(self) -> Option<String> {
        match self {
            Said::Text(text) => Some(text),
            Said::No(_) => None,
        }
    }
}

/// Runs git with data-only arguments behind `--end-of-options` where a user's text is among them.
fn git(folder: &Path, arguments: &[&str]) -> Result<Said> {
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(arguments)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            CliError::farm("cannot start git").because(error).hint("install it: `apt-get install git`")
        })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned();
    let said = text(&output.stdout);
    Ok(if output.status.success() && !said.is_empty() {
        Said::Text(said)
    } else {
        Said::No(text(&output.stderr))
    })
}

fn git_here(arguments: &[&str]) -> Result<Option<String>> {
    git(Path::new("."), arguments).map(Said::text)
}

/// The root of the checkout around a folder; `None` where there is none. That git does not want to look into one
/// (it belongs to somebody else, say) is not the same, and git knows the remedy.
fn root_of(folder: &Path) -> Result<Option<PathBuf>> {
    match git(folder, &["rev-parse", "--show-toplevel"])? {
        Said::Text(root) => Ok(Some(root.into())),
        Said::No(reason) if reason.is_empty() || reason.contains("not a git repository") => Ok(None),
        Said::No(reason) => {
            let mut lines = reason.lines().map(str::trim).filter(|line| !line.is_empty());
            let first = lines.next().unwrap_or_default();
            let error = CliError::usage(format!("git does not read this checkout: {first}"));
            let rest = lines.collect::<Vec<_>>().join(" ");
            Err(if rest.is_empty() { error } else { error.hint(rest) })
        }
    }
}

/// The root, or the working folder itself where there is no checkout.
pub(crate) fn root_or_here() -> Result<PathBuf> {
    match root_of(Path::new("."))? {
        Some(root) => Ok(root),
        None => std::env::current_dir().map_err(|error| CliError::file("find", Path::new("."), error)),
    }
}

/// The commit of HEAD.
pub(crate) fn head() -> Result<String> {
    match git_here(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"])? {
        Some(commit) => Ok(commit),
        None if root_of(Path::new("."))?.is_some() => {
            Err(CliError::usage("this checkout has no commit yet").hint("commit something first"))
        }
        None => Err(no_checkout()),
    }
}

/// The commit that a name means in this checkout; `None` if it means nothing here.
pub(crate) fn commit_of(name: &str) -> Result<Option<String>> {
    let revision = format!("{name}^{{commit}}");
    git_here(&["rev-parse", "--verify", "--quiet", "--end-of-options", &revision])
}

fn no_checkout() -> CliError {
    CliError::usage("this folder is in no git checkout, so there is no HEAD to take the run from")
        .hint("name a run, for example `run-42`; `buildyard runs` lists them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_why_git_does_not_read_a_checkout_is_told() {
        let folder = tempfile::tempdir().unwrap();
        assert!(root_of(folder.path()).unwrap().is_none(), "no checkout is no error");
        let status = Command::new("git").args(["init", "--quiet"]).arg(folder.path()).status().unwrap();
        assert!(status.success());
        assert!(root_of(folder.path()).unwrap().is_some());
        std::fs::write(folder.path().join(".git/config"), "[core\n").unwrap();
        let error = root_of(folder.path()).unwrap_err();
        assert!(error.message.contains("bad config line 1"), "{error}");
    }
}
