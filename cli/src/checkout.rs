//! The git checkout that the user stands in: its root, its HEAD, and what a name in it means.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::exit::{CliError, Result};

/// Runs git with data-only arguments behind `--end-of-options` where a user's text is among them.
fn git(folder: &Path, arguments: &[&str]) -> std::io::Result<Option<String>> {
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(arguments)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned();
    Ok((output.status.success() && !text.is_empty()).then_some(text))
}

fn git_here(arguments: &[&str]) -> Result<Option<String>> {
    git(Path::new("."), arguments).map_err(|error| {
        CliError::farm("cannot start git").because(error).hint("install it: `apt-get install git`")
    })
}

/// The root, or the working folder itself where there is no checkout.
pub(crate) fn root_or_here() -> Result<PathBuf> {
    match git_here(&["rev-parse", "--show-toplevel"])? {
        Some(root) => Ok(root.into()),
        None => std::env::current_dir().map_err(|error| CliError::file("find", Path::new("."), error)),
    }
}

/// The commit of HEAD.
pub(crate) fn head() -> Result<String> {
    match git_here(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"])? {
        Some(commit) => Ok(commit),
        None if git_here(&["rev-parse", "--show-toplevel"])?.is_some() => {
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
