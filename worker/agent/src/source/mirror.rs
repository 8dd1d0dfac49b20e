//! The worker's bare mirrors, one for each repository, bounded in number and size.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use buildyard_types::ByteSize;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex as AsyncMutex, OwnedRwLockReadGuard, RwLock};

use super::git::Git;
use super::{SourceError, io_error, is_commit_id};

/// Most mirrors at one time.
const MAX_MIRRORS: usize = 32;
/// Most packs of one mirror. Every fetch adds one and git looks through all of them, so a mirror beyond this
/// is fetched anew, which packs it into one.
const MAX_PACKS: usize = 200;
/// Fetches between two times that a mirror is fetched anew for its size: its repository may be larger than the limit.
const FEW_PACKS: usize = 20;
const FETCH_LIMIT: Duration = Duration::from_secs(15 * 60);
const SHORT_LIMIT: Duration = Duration::from_secs(60);

/// Where a commit is to be had.
#[derive(Debug, Clone, Copy)]
pub struct Remote<'r> {
    /// What people call the repository: the mirror's key. Never opened.
    pub repository: &'r str,
    /// The coordinator's address of the run's commit.
    pub url: &'r str,
    /// A whole header line, credential included.
    pub authorization: &'r str,
    /// The run: its tags are fetched once.
    pub run: &'r str,
}

/// All mirrors of a worker.
#[derive(Debug)]
pub struct Mirrors {
    root: PathBuf,
    max_bytes: u64,
    protocols: &'static str,
    locks: Mutex<HashMap<PathBuf, Locks>>,
}

#[derive(Debug, Clone, Default)]
struct Locks {
    /// Held for reading by everyone who uses the mirror, for writing by who removes it.
    in_use: Arc<RwLock<()>>,
    /// Held by who fetches: the jobs of one run fetch once.
    fetch: Arc<AsyncMutex<()>>,
}

/// A mirror that holds a commit, and is kept as long as this value lives.
#[derive(Debug)]
pub struct Mirror {
    git_dir: PathBuf,
    _in_use: OwnedRwLockReadGuard<()>,
}

impl Mirror {
    /// The bare repository.
    pub fn git_dir(&self) -> &Path {
        &self.git_dir
    }
}

impl Mirrors {
    /// The mirrors below a folder, together no larger than `max` (until the next fetch notices).
    pub fn new(root: PathBuf, max: ByteSize) -> Self {
        Self { root, max_bytes: max.0, protocols: "http:https", locks: Mutex::default() }
    }

    /// Fetches from folders too: for tests, which serve no HTTP.
    #[cfg(test)]
    pub(super) fn with_folders(mut self) -> Self {
        self.protocols = "file";
        self
    }

    fn locks(&self, git_dir: &Path) -> Locks {
        // A poisoned lock only means that another thread panicked between two map operations.
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(git_dir.to_owned()).or_default().clone()
    }

    /// Sees to it that the mirror holds the commit (and with `tags`, the repository's tags).
    pub async fn obtain(&self, remote: Remote<'_>, commit: &str, tags: bool) -> Result<Mirror, SourceError> {
        if !is_commit_id(commit) {
            return Err(SourceError::BadCommit(commit.chars().take(80).collect()));
        }
        let git_dir = self.root.join(format!("{:.32x}.git", Sha256::digest(remote.repository.as_bytes())));
        let locks = self.locks(&git_dir);
        let commit_ref = git_dir.join(format!("refs/buildyard/{commit}"));
        if !commit_ref.exists() {
            self.drop_overgrown(&git_dir, &locks).await?;
        }
        let in_use = locks.in_use.clone().read_owned().await;
        let fetching = locks.fetch.lock().await;
        let there = commit_ref.exists();
        let tags_there =
            !tags || fs::read_to_string(git_dir.join("tags-of")).is_ok_and(|run| run == remote.run);
        if !there || !tags_there {
            make_bare(&git_dir, commit)?;
            fetch(self.protocols, &git_dir, remote, commit, tags).await?;
        }
        drop(fetching);
        let mirror = Mirror { git_dir, _in_use: in_use };
        touch(&mirror.git_dir)?;
        if !there {
            self.evict();
        }
        Ok(mirror)
    }

    /// Drops the mirror of a repository, so that the next job fetches it anew: something in it is damaged.
    pub async fn drop_mirror(&self, mirror: Mirror) -> Result<(), SourceError> {
        let git_dir = mirror.git_dir.clone();
        drop(mirror);
        let locks = self.locks(&git_dir);
        let _alone = locks.in_use.write().await;
        remove(&git_dir)
    }

    /// Drops a mirror that grew beyond the limits before it is fetched into again: from then on it is in use, and on a
    /// worker of one repository there is no other to drop.
    async fn drop_overgrown(&self, git_dir: &Path, locks: &Locks) -> Result<(), SourceError> {
        let size = size_of(git_dir);
        if !self.is_overgrown(size) {
            return Ok(());
        }
        let _alone = match locks.in_use.try_write() {
            Ok(alone) => alone,
            // The next one may find it idle. A worker that is never idle waits for its checkouts at last.
            Err(_) if size.packs <= 2 * MAX_PACKS => return Ok(()),
            Err(_) => locks.in_use.write().await,
        };
        // Another one waited for the same.
        if self.is_overgrown(size_of(git_dir)) { remove(git_dir) } else { Ok(()) }
    }

    fn is_overgrown(&self, size: Size) -> bool {
        size.packs > MAX_PACKS || (size.bytes > self.max_bytes && size.packs > FEW_PACKS)
    }

    /// Removes mirrors that are not in use, those first that were not used for longest, until the rest is
    /// within the limits; and mirrors of too many packs.
    fn evict(&self) {
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        let mut mirrors: Vec<(SystemTime, PathBuf, Size)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let used = fs::metadata(path.join("used")).and_then(|used| used.modified());
                let size = size_of(&path);
                Some((used.unwrap_or(SystemTime::UNIX_EPOCH), path, size))
            })
            .collect();
        mirrors.sort();
        let mut count = mirrors.len();
        let mut bytes: u64 = mirrors.iter().map(|(_, _, size)| size.bytes).sum();
        for (_, path, size) in mirrors {
            if count <= MAX_MIRRORS && bytes <= self.max_bytes && size.packs <= MAX_PACKS {
                continue;
            }
            let locks = self.locks(&path);
            let Ok(_alone) = locks.in_use.try_write() else { continue };
            match remove(&path) {
                Ok(()) => {
                    count -= 1;
                    bytes = bytes.saturating_sub(size.bytes);
                }
                Err(error) => tracing::warn!(path = %path.display(), error = %error, "a mirror stays"),
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Size {
    bytes: u64,
    packs: usize,
}

fn size_of(git_dir: &Path) -> Size {
    let Ok(entries) = fs::read_dir(git_dir.join("objects/pack")) else { return Size { bytes: 0, packs: 0 } };
    let mut size = Size { bytes: 0, packs: 0 };
    for entry in entries.flatten() {
        size.bytes += entry.metadata().map_or(0, |entry| entry.len());
        size.packs += usize::from(entry.path().extension().is_some_and(|extension| extension == "pack"));
    }
    size
}

fn touch(git_dir: &Path) -> Result<(), SourceError> {
    let path = git_dir.join("used");
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).open(&path);
    file.and_then(|file| file.set_modified(SystemTime::now())).map_err(io_error("write", path))
}

fn remove(git_dir: &Path) -> Result<(), SourceError> {
    match fs::remove_dir_all(git_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", git_dir)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes an empty bare repository, if there is none. Safe to repeat over a half-made one.
fn make_bare(git_dir: &Path, commit: &str) -> Result<(), SourceError> {
    let head = git_dir.join("HEAD");
    if head.exists() {
        return Ok(());
    }
    for folder in ["objects/info", "objects/pack", "refs/heads", "refs/buildyard"] {
        let path = git_dir.join(folder);
        fs::create_dir_all(&path).map_err(io_error("make", path))?;
    }
    let config = git_dir.join("config");
    let format = super::checkout::object_format(commit);
    fs::write(&config, format!("{format}\tbare = true\n")).map_err(io_error("write", config))?;
    // Last: a repository without HEAD is none.
    fs::write(&head, "ref: refs/heads/none\n").map_err(io_error("write", head))
}

async fn fetch(
    protocols: &str,
    git_dir: &Path,
    remote: Remote<'_>,
    commit: &str,
    tags: bool,
) -> Result<(), SourceError> {
    let doing = "fetch the commit from the coordinator";
    let mut git = Git::at(git_dir)
        .protocols(protocols)
        .setting("http.extraHeader", remote.authorization)
        .setting("http.followRedirects", "false")
        // A pack that arrives stays one: unpacking it writes a file for each object.
        .setting("fetch.unpackLimit", "1")
        .args(&["fetch", "--quiet", "--no-write-fetch-head", "--no-auto-maintenance", "--no-tags", "--force"])
        .then(remote.url)
        .arg(&format!("{commit}:refs/buildyard/{commit}"));
    if tags {
        git = git.arg("refs/tags/*:refs/tags/*");
    }
    git.run(doing, FETCH_LIMIT).await?;
    if tags {
        let path = git_dir.join("tags-of");
        fs::write(&path, remote.run).map_err(io_error("write", path))?;
    }
    // Seen to be a commit, and whole: what else could be asked for by its id?
    let kind = Git::at(git_dir).args(&["cat-file", "-t"]).arg(commit);
    let kind = kind.read("read the commit", SHORT_LIMIT, 64).await?;
    if kind.trim_ascii() == b"commit" {
        return Ok(());
    }
    let path = git_dir.join(format!("refs/buildyard/{commit}"));
    fs::remove_file(&path).map_err(io_error("remove", path))?;
    Err(SourceError::Git { doing, message: format!("{commit} is no commit") })
}
