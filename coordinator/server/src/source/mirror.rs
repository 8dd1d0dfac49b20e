//! Bare mirrors of repositories: one per repository, filled by git's command line, read by git2.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use buildyard_types::RunId;
use buildyard_types::worker::SourceRef;

use super::git::{Git, GitError};
use crate::blobs::sha256_hex;

/// A first fetch of a large repository from a slow disk.
const FETCH: Duration = Duration::from_secs(600);
/// Packs, and loose objects, from which on a mirror is packed anew. Each fetch brings a pack.
const MANY_PACKS: usize = 20;
const MANY_LOOSE: usize = 6_000;
/// Most bytes of a pipeline file that are read: one more than the compiler takes, so that it can say so.
const MAX_FILE_BYTES: usize = (1 << 20) + 1;

/// Why a mirror cannot give what was asked of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MirrorError {
    /// Git's command line failed.
    #[error(transparent)]
    Git(#[from] GitError),
    /// Reading objects failed.
    #[error("cannot read {what} in the mirror")]
    Read {
        /// What was read.
        what: String,
        /// What the library said.
        #[source]
        source: git2::Error,
    },
    /// The folder could not be made.
    #[error("cannot make the mirror {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The reading thread ended.
    #[error("the reading of the mirror was given up")]
    Gone,
}

/// A file at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileAt {
    /// Its content, at most one byte more than a pipeline file may have.
    Content(Vec<u8>),
    /// There is no such file.
    Missing,
}

/// The mirrors.
pub(crate) struct Mirrors {
    root: PathBuf,
    git: Git,
    /// One fetch at a time into one mirror. Entries live as long as somebody fetches.
    fetching: Mutex<HashMap<PathBuf, Weak<tokio::sync::Mutex<()>>>>,
}

fn run_ref(run: RunId) -> String {
    format!("refs/buildyard/runs/{}", run.0)
}

fn commit_ref(commit: &str) -> String {
    format!("refs/buildyard/commits/{commit}")
}

impl Mirrors {
    /// Mirrors in a folder that exists.
    pub(crate) fn new(root: PathBuf, git: Git) -> Self {
        Self { root, git, fetching: Mutex::default() }
    }

    /// How to start git.
    pub(crate) fn git(&self) -> &Git {
        &self.git
    }

    /// Where the mirror of a repository is.
    pub(crate) fn path(&self, repository: &str) -> PathBuf {
        self.root.join(format!("{}.git", &sha256_hex(repository.as_bytes())[..32]))
    }

    fn lock_of(&self, path: &Path) -> Arc<tokio::sync::Mutex<()>> {
        // A panic while it was held cannot have left the map half changed.
        let mut fetching = self.fetching.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(lock) = fetching.get(path).and_then(Weak::upgrade) {
            return lock;
        }
        fetching.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        fetching.insert(path.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// Makes sure that the run's commit is in the mirror with its whole history, and that it stays there as
    /// long as the run is kept.
    pub(crate) async fn ensure(&self, run: RunId, source: &SourceRef) -> Result<(), MirrorError> {
        let path = self.path(&source.repository);
        let lock = self.lock_of(&path);
        let _one_at_a_time = lock.lock().await;
        if !path.join("HEAD").exists() {
            self.init(&path).await?;
        }
        if pin(path.clone(), run, source.commit.clone()).await? {
            return Ok(());
        }
        self.fetch(&path, source).await?;
        if pin(path, run, source.commit.clone()).await? {
            return Ok(());
        }
        let what = "fetch";
        Err(GitError::Failed { what, said: format!("it brought no commit {}", source.commit) }.into())
    }

    async fn init(&self, path: &Path) -> Result<(), MirrorError> {
        // Made aside and renamed, so that a crash leaves no half mirror.
        let staged = path.with_extension("new");
        let folder = |source| MirrorError::Folder { path: path.to_owned(), source };
        if staged.exists() {
            tokio::fs::remove_dir_all(&staged).await.map_err(folder)?;
        }
        let mut init = self.git.command();
        init.args(["init", "--quiet", "--bare", "--template="]).arg(&staged);
        self.git.run("init", init, FETCH).await?;
        tokio::fs::rename(&staged, path).await.map_err(folder)
    }

    /// Brings the commit and the tags. The commit's own ref is written by git after it has checked that
    /// everything below is there; so the ref says that the commit is whole.
    async fn fetch(&self, path: &Path, source: &SourceRef) -> Result<(), MirrorError> {
        let commit = &source.commit;
        let mut fetch = self.git.command();
        fetch.arg("-C").arg(path);
        fetch.args(["fetch", "--quiet", "--no-write-fetch-head", "--no-auto-gc", "--no-recurse-submodules"]);
        // A shallow repository gives what it has; so does its mirror.
        fetch.args(["--no-tags", "--update-shallow", "--end-of-options", &source.repository]);
        fetch.arg(format!("+{commit}:{}", commit_ref(commit)));
        fetch.arg("+refs/tags/*:refs/tags/*");
        self.git.run("fetch", fetch, FETCH).await?;
        Ok(())
    }

    /// A file at a commit that is in the mirror.
    pub(crate) async fn read(&self, source: &SourceRef, file: &str) -> Result<FileAt, MirrorError> {
        let path = self.path(&source.repository);
        let (commit, file) = (source.commit.clone(), file.to_owned());
        blocking(move || {
            let what = format!("{file} at {commit}");
            read_file(&path, &commit, &file).map_err(|source| MirrorError::Read { what, source })
        })
        .await
    }

    /// Every run that a mirror keeps a commit for.
    pub(crate) async fn runs(&self) -> Result<BTreeSet<RunId>, MirrorError> {
        let root = self.root.clone();
        blocking(move || {
            let mut runs = BTreeSet::new();
            for_each_mirror(&root, |path| {
                match runs_in(path) {
                    Ok(found) => runs.extend(found),
                    // Its runs are not known, so none of them is let go of; the other mirrors are looked after.
                    Err(error) => tracing::warn!(mirror = %path.display(), %error, "a mirror cannot be read"),
                }
                Ok(())
            })?;
            Ok(runs)
        })
        .await
    }

    /// Lets go of runs, and keeps every mirror small: without runs it is removed, with many packs it is packed
    /// anew, and what no run needs any more is dropped.
    pub(crate) async fn tend(&self, gone: BTreeSet<RunId>) -> Result<(), MirrorError> {
        let root = self.root.clone();
        let listed = blocking(move || {
            remove_gone(&root)?;
            let mut mirrors = Vec::new();
            for_each_mirror(&root, |path| {
                mirrors.push(path.to_owned());
                Ok(())
            })?;
            Ok(mirrors)
        });
        for path in listed.await? {
            if let Err(error) = self.tend_one(&path, &gone).await {
                let mirror = path.display();
                tracing::warn!(%mirror, error = %crate::error::chain(&error), "a mirror is left as it is");
            }
        }
        Ok(())
    }

    async fn tend_one(&self, path: &Path, gone: &BTreeSet<RunId>) -> Result<(), MirrorError> {
        if has_many_parts(path) {
            // Nothing is dropped here, so that fetches go on meanwhile.
            let mut repack = self.git.command();
            repack.arg("-C").arg(path);
            repack.args(["repack", "-a", "-d", "--keep-unreachable", "--quiet"]);
            self.git.run("repack", repack, FETCH).await?;
        }
        let lock = self.lock_of(path);
        let _nobody_fetches = lock.lock().await;
        let (mirror, runs) = (path.to_owned(), gone.clone());
        let left = blocking(move || {
            let read = || forget_in(&mirror, &runs);
            read().map_err(|source| MirrorError::Read { what: mirror.display().to_string(), source })
        });
        match left.await? {
            Left { runs: 0, .. } => self.remove(path).await,
            Left { dropped: 0, .. } => Ok(()),
            Left { .. } => {
                // Under the lock: a fetch would count on objects that are about to go. A transfer that began
                // before keeps reading what it opened; objects of the last hours stay anyway.
                let mut gc = self.git.command();
                gc.arg("-C").arg(path).args(["gc", "--quiet", "--prune=6.hours.ago"]);
                self.git.run("gc", gc, FETCH).await?;
                Ok(())
            }
        }
    }

    /// Removes a mirror. Nobody fetches into it, and without runs nobody may read it.
    async fn remove(&self, path: &Path) -> Result<(), MirrorError> {
        let folder = |source| MirrorError::Folder { path: path.to_owned(), source };
        // Under another name first, so that a crash leaves no half mirror; the next round takes what is left.
        let gone = path.with_extension("gone");
        tokio::fs::rename(path, &gone).await.map_err(folder)?;
        tokio::fs::remove_dir_all(&gone).await.map_err(folder)
    }
}

/// Whether a mirror is in so many files that looking into it gets slow.
fn has_many_parts(path: &Path) -> bool {
    let count = |folder: &str, suffix: &str| {
        let entries = std::fs::read_dir(path.join(folder)).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(suffix)).count()
    };
    // Loose objects are spread evenly over 256 folders, so one of them tells; git guesses in the same way.
    count("objects/pack", ".pack") >= MANY_PACKS || count("objects/17", "") * 256 >= MANY_LOOSE
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, MirrorError> + Send + 'static,
) -> Result<T, MirrorError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| MirrorError::Gone)?
}

/// Writes the run's ref if the commit is whole in the mirror; says whether it is.
async fn pin(path: PathBuf, run: RunId, commit: String) -> Result<bool, MirrorError> {
    blocking(move || {
        let write = || {
            let repository = git2::Repository::open_bare(&path)?;
            if repository.find_reference(&commit_ref(&commit)).is_err() {
                return Ok(false);
            }
            let commit = git2::Oid::from_str(&commit)?;
            repository.reference(&run_ref(run), commit, true, "kept for its run")?;
            Ok(true)
        };
        write().map_err(|source| MirrorError::Read { what: format!("the commit of {run}"), source })
    })
    .await
}

fn read_file(path: &Path, commit: &str, file: &str) -> Result<FileAt, git2::Error> {
    let repository = git2::Repository::open_bare(path)?;
    let tree = repository.find_commit(git2::Oid::from_str(commit)?)?.tree()?;
    let entry = match tree.get_path(Path::new(file)) {
        Ok(entry) => entry,
        Err(error) if error.code() == git2::ErrorCode::NotFound => return Ok(FileAt::Missing),
        Err(error) => return Err(error),
    };
    if entry.kind() != Some(git2::ObjectType::Blob) || entry.filemode() == 0o120_000 {
        return Ok(FileAt::Missing);
    }
    let (size, _) = repository.odb()?.read_header(entry.id())?;
    if size >= MAX_FILE_BYTES {
        // Only the length matters to the compiler; so the content of a huge file is not read at all.
        return Ok(FileAt::Content(vec![b'\n'; MAX_FILE_BYTES]));
    }
    Ok(FileAt::Content(repository.find_blob(entry.id())?.content().to_vec()))
}

/// Takes away what a crash left of mirrors that were being removed.
fn remove_gone(root: &Path) -> Result<(), MirrorError> {
    let folder = |source| MirrorError::Folder { path: root.to_owned(), source };
    for entry in std::fs::read_dir(root).map_err(folder)? {
        let path = entry.map_err(folder)?.path();
        if path.extension().is_some_and(|extension| extension == "gone") {
            std::fs::remove_dir_all(&path).map_err(folder)?;
        }
    }
    Ok(())
}

fn for_each_mirror(
    root: &Path,
    mut visit: impl FnMut(&Path) -> Result<(), git2::Error>,
) -> Result<(), MirrorError> {
    let folder = |source| MirrorError::Folder { path: root.to_owned(), source };
    for entry in std::fs::read_dir(root).map_err(folder)? {
        let path = entry.map_err(folder)?.path();
        if path.extension().is_some_and(|extension| extension == "git") {
            let what = format!("the refs of {}", path.display());
            visit(&path).map_err(|source| MirrorError::Read { what, source })?;
        }
    }
    Ok(())
}

fn run_of(reference: &git2::Reference<'_>) -> Option<RunId> {
    reference.name().ok()?.rsplit('/').next()?.parse().ok().map(RunId)
}

fn runs_in(path: &Path) -> Result<Vec<RunId>, git2::Error> {
    let repository = git2::Repository::open_bare(path)?;
    let mut runs = Vec::new();
    for reference in repository.references_glob("refs/buildyard/runs/*")? {
        runs.extend(run_of(&reference?));
    }
    Ok(runs)
}

/// What became of a mirror's refs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Left {
    /// Runs that still have their commit.
    runs: usize,
    /// Refs that are gone.
    dropped: usize,
}

/// Lets go of runs, and of commits that no other run has.
fn forget_in(path: &Path, gone: &BTreeSet<RunId>) -> Result<Left, git2::Error> {
    let repository = git2::Repository::open_bare(path)?;
    let mut left = Left::default();
    let mut needed = HashSet::new();
    for reference in repository.references_glob("refs/buildyard/runs/*")? {
        let mut reference = reference?;
        if run_of(&reference).is_some_and(|run| gone.contains(&run)) {
            reference.delete()?;
            left.dropped += 1;
        } else {
            needed.extend(reference.target());
            left.runs += 1;
        }
    }
    for reference in repository.references_glob("refs/buildyard/commits/*")? {
        let mut reference = reference?;
        if reference.target().is_none_or(|commit| !needed.contains(&commit)) {
            reference.delete()?;
            left.dropped += 1;
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::support::Repository;

    fn mirrors(folder: &Path) -> Mirrors {
        std::fs::create_dir_all(folder.join("mirrors")).unwrap();
        Mirrors::new(folder.join("mirrors"), Git::new(folder).unwrap())
    }

    fn source(repository: &Repository) -> SourceRef {
        let repository_path = repository.path.to_str().unwrap().to_owned();
        SourceRef {
            repository: repository_path,
            commit: repository.git(&["rev-parse", "main"]),
            ref_name: None,
        }
    }

    fn packs(mirror: &Path) -> usize {
        let entries = std::fs::read_dir(mirror.join("objects/pack")).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().path().extension() == Some("pack".as_ref())).count()
    }

    #[tokio::test]
    async fn a_mirror_that_cannot_be_read_keeps_no_other_from_being_looked_after() {
        let temp = tempfile::tempdir().unwrap();
        let mirrors = mirrors(temp.path());
        let repository = Repository::with(temp.path(), &[("pipeline.toml", "0")]);
        mirrors.ensure(RunId(1), &source(&repository)).await.unwrap();
        let root = temp.path().join("mirrors");
        std::fs::create_dir(root.join("broken.git")).unwrap();
        // A crash left half of a mirror that was being removed.
        std::fs::create_dir_all(root.join("old.gone/objects")).unwrap();
        assert_eq!(mirrors.runs().await.unwrap(), BTreeSet::from([RunId(1)]));
        mirrors.tend(BTreeSet::from([RunId(1)])).await.unwrap();
        let left: Vec<_> =
            std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["broken.git"]);
    }

    #[tokio::test]
    async fn a_mirror_of_many_packs_is_packed_anew_and_one_without_runs_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let mirrors = mirrors(temp.path());
        let repository = Repository::with(temp.path(), &[("pipeline.toml", "0")]);
        let mirror = mirrors.path(repository.path.to_str().unwrap());
        for run in 0..MANY_PACKS as u64 {
            repository.commit(&[("pipeline.toml", &run.to_string())]);
            mirrors.ensure(RunId(run), &source(&repository)).await.unwrap();
            let mut pack = mirrors.git.command();
            pack.arg("-C").arg(&mirror).args(["repack", "-d", "-q"]);
            mirrors.git.run("repack", pack, FETCH).await.unwrap();
        }
        assert!(packs(&mirror) >= MANY_PACKS);
        mirrors.tend(BTreeSet::new()).await.unwrap();
        assert_eq!(packs(&mirror), 1, "although no run is gone");
        let file = mirrors.read(&source(&repository), "pipeline.toml").await.unwrap();
        assert_eq!(file, FileAt::Content((MANY_PACKS - 1).to_string().into_bytes()));

        let last = RunId(MANY_PACKS as u64 - 1);
        mirrors.tend((0..last.0).map(RunId).collect()).await.unwrap();
        assert_eq!(mirrors.runs().await.unwrap(), BTreeSet::from([last]));
        mirrors.read(&source(&repository), "pipeline.toml").await.unwrap();
        mirrors.tend(BTreeSet::from([last])).await.unwrap();
        assert_eq!(std::fs::read_dir(temp.path().join("mirrors")).unwrap().count(), 0);
        mirrors.ensure(last, &source(&repository)).await.unwrap();
        mirrors.read(&source(&repository), "pipeline.toml").await.unwrap();
    }
}
