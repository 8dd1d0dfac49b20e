//! Finds the commit that a trigger means, and the pipeline files in it. Everything that was typed is data.

use std::path::{Path, PathBuf};
use std::time::Duration;

use buildyard_pipelines::{FOLDER, MAIN_FILE};

use super::git::{Git, GitError};
use crate::sentences::one_line;

/// Looking up a name takes milliseconds; a network file system may be slow.
const LOOK_UP: Duration = Duration::from_secs(20);
/// Longest revision that is looked up.
const MAX_REVISION_BYTES: usize = 256;

/// A commit on this host, and what to run of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) repository: String,
    pub(crate) commit: String,
    pub(crate) ref_name: Option<String>,
    /// Sorted; never empty.
    pub(crate) files: Vec<String>,
}

/// Why a trigger names nothing that can be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// The path is no repository.
    #[error("`{path}` {problem}")]
    Repository {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The name is no commit of it.
    #[error("`{revision}` is no branch, tag or commit of {repository}")]
    Revision {
        /// As it was given.
        revision: String,
        /// Where it was looked up.
        repository: String,
    },
    /// The commit would make more runs than one push may.
    #[error("{repository} cannot be built")]
    TooMany {
        /// Where.
        repository: String,
        /// How many there are.
        #[source]
        source: buildyard_pipelines::TooManyPipelines,
    },
    /// Git failed.
    #[error("cannot look into {repository}")]
    Git {
        /// Where.
        repository: String,
        /// What it said.
        #[source]
        source: GitError,
    },
}

/// The canonical path of a repository on this host.
pub(crate) fn repository_path(text: &str) -> Result<PathBuf, ResolveError> {
    let fail = |problem| ResolveError::Repository { path: one_line(text.chars().take(200)), problem };
    if !text.starts_with('/') {
        return Err(fail("is not an absolute path on the coordinator's host"));
    }
    if text.contains(|c: char| c.is_control()) || text.len() > 4_096 {
        return Err(fail("is not a path that can be used"));
    }
    let path =
        Path::new(text).canonicalize().map_err(|_| fail("does not exist on the coordinator's host"))?;
    let is_repository = path.join(".git").exists() || path.join("HEAD").is_file();
    if !path.is_dir() || !is_repository {
        return Err(fail("is not the top folder of a git repository"));
    }
    // A link may lead to a name that was not typed.
    if path.to_str().is_none_or(|path| path.contains(|c: char| c.is_control())) {
        return Err(fail("has a name that is not UTF-8, or holds control characters"));
    }
    Ok(path)
}

fn in_repository(git: &Git, path: &Path) -> tokio::process::Command {
    let mut command = git.command();
    if let Some(parent) = path.parent() {
        // A folder inside another repository is not that repository.
        command.env("GIT_CEILING_DIRECTORIES", parent);
    }
    command.arg("-C").arg(path);
    command
}

/// Finds commit, ref and pipeline files.
pub(crate) async fn resolve(git: &Git, repository: &str, revision: &str) -> Result<Resolved, ResolveError> {
    let path = repository_path(repository)?;
    let unknown = || ResolveError::Revision {
        revision: one_line(revision.chars().take(200)),
        repository: path.display().to_string(),
    };
    let strange = |text: &str| text.is_empty() || text.contains(|c: char| c.is_control() || c == ' ');
    if strange(revision) || revision.len() > MAX_REVISION_BYTES {
        return Err(unknown());
    }
    let mut commit = in_repository(git, &path);
    commit
        .args(["rev-parse", "--verify", "--quiet", "--end-of-options"])
        .arg(format!("{revision}^{{commit}}"));
    let mut name = in_repository(git, &path);
    name.args(["rev-parse", "--verify", "--quiet", "--symbolic-full-name", "--end-of-options", revision]);
    let (commit, name) =
        tokio::join!(git.run("rev-parse", commit, LOOK_UP), git.run("rev-parse", name, LOOK_UP));
    let commit = match commit {
        Ok(output) => text(&output),
        Err(GitError::Failed { .. }) => return Err(unknown()),
        Err(source) => return Err(ResolveError::Git { repository: path.display().to_string(), source }),
    };
    if !is_commit(&commit) {
        return Err(unknown());
    }
    // A bare commit has no name, and that is fine.
    let ref_name = name.ok().map(|output| text(&output)).filter(|name| name.starts_with("refs/"));
    let files = pipeline_files(git, &path, &commit).await?;
    Ok(Resolved { repository: path.display().to_string(), commit, ref_name, files })
}

/// The pipeline files of a commit.
pub(crate) async fn pipeline_files(
    git: &Git,
    repository: &Path,
    commit: &str,
) -> Result<Vec<String>, ResolveError> {
    let mut list = in_repository(git, repository);
    list.args(["ls-tree", "-z", "--full-tree", "--end-of-options", commit, MAIN_FILE, FOLDER]);
    let listed = git
        .run("ls-tree", list, LOOK_UP)
        .await
        .map_err(|source| ResolveError::Git { repository: repository.display().to_string(), source })?;
    let paths: Vec<String> = blobs_of(&listed).collect();
    let mut files = buildyard_pipelines::pipeline_files(paths.iter().map(String::as_str));
    buildyard_pipelines::check_count(&files)
        .map_err(|source| ResolveError::TooMany { repository: repository.display().to_string(), source })?;
    if files.is_empty() {
        // A run is where people are told that there is none.
        files.push(MAIN_FILE.to_owned());
    }
    Ok(files)
}

/// Paths of plain files in what `ls-tree -z` says: `mode type id TAB path NUL`. Links are not followed.
fn blobs_of(listed: &[u8]) -> impl Iterator<Item = String> {
    listed.split(|byte| *byte == 0).filter_map(|entry| {
        let (meta, path) = std::str::from_utf8(entry).ok()?.split_once('\t')?;
        let plain = meta.starts_with("100644 blob ") || meta.starts_with("100755 blob ");
        plain.then(|| path.to_owned())
    })
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).trim_end().to_owned()
}

/// Whether a text is the full id of an object: 40 digits, or 64 in repositories with SHA-256.
pub(crate) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
