//! The worker's data directory: what lies where, who may hold it, and writes that survive a power cut.
//!
//! ```text
//! lock             held by the running worker, so that two cannot share one directory
//! instance         random name of this directory; the label of everything that the worker makes
//! session          counts the starts
//! identity.json    the worker's id and credential, readable by its owner only
//! journal          what was ordered, see `journal.rs`
//! mirrors/         bare git repositories, see `source.rs`
//! attempts/<id>/   spool, socket and workspace of one attempt
//! ```
//!
//! The directory itself, `attempts` and the folder of an attempt can be passed through by others (0711) because git
//! checks out as the job's user, and because a container's init gets to its socket. From there on a workspace is open
//! to the group of its job's user only; every file and every other folder is closed to others.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use buildyard_types::{AttemptId, WorkerId};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Another worker runs on it.
    #[error("another worker holds {}; give each worker a data directory of its own (--data-dir)", .0.display())]
    Held(PathBuf),
    /// A file or folder could not be made, read or written.
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
    /// A file holds something else than what the worker writes there.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Who the worker is. Its credential never leaves this file except as a header to the coordinator.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its id.
    pub worker: WorkerId,
    /// Bearer token of its calls.
    pub credential: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("worker", &self.worker).field("credential", &"redacted").finish()
    }
}

/// A data directory that this process holds until the value is dropped.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    instance: String,
    _lock: File,
}

fn io_error<'p>(doing: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> DataError + 'p {
    move |source| DataError::Io { doing, path: path.to_owned(), source }
}

/// Makes a folder, if it is not there, and gives it exactly this mode.
pub(crate) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Puts `bytes` in the place of a file, whole or not at all, even across a power cut.
pub(crate) fn write_synced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

fn read_if_there(path: &Path) -> Result<Option<String>, DataError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

impl DataDir {
    /// Opens the directory, makes what is missing and takes its lock. Never waits for the lock.
    pub fn open(root: &Path) -> Result<Self, DataError> {
        make_dir(root, 0o711).map_err(io_error("make", root))?;
        // git and the engine are handed paths below it, from other working directories.
        let root = root.canonicalize().map_err(io_error("find", root))?;
        let path = root.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(io_error("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DataError::Held(root)),
            Err(error) => return Err(io_error("lock", &path)(error.into())),
        }
        for (name, mode) in [("attempts", 0o711), ("mirrors", 0o700)] {
            let path = root.join(name);
            make_dir(&path, mode).map_err(io_error("make", &path))?;
        }
        let path = root.join("instance");
        let instance = match read_if_there(&path)? {
            Some(text) => text.trim().to_owned(),
            None => {
                let instance = format!("{:016x}", rand::random::<u64>());
                write_synced(&path, instance.as_bytes(), 0o600).map_err(io_error("write", &path))?;
                instance
            }
        };
        if instance.is_empty() || !instance.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(DataError::Damaged { path, reason: "expected letters and digits".into() });
        }
        Ok(Self { root, instance, _lock: lock })
    }

    /// The random name of this directory: the label of everything that its worker makes.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The directory, absolute and without links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Counts this start. The number is greater than that of every earlier start, even after a power cut.
    pub fn next_session(&self) -> Result<u64, DataError> {
        let path = self.root.join("session");
        let last = match read_if_there(&path)? {
            None => 0,
            Some(text) => text.trim().parse::<u64>().map_err(|error| DataError::Damaged {
                path: path.clone(),
                reason: format!("expected a number: {error}"),
            })?,
        };
        let next = last.saturating_add(1);
        write_synced(&path, next.to_string().as_bytes(), 0o600).map_err(io_error("write", &path))?;
        Ok(next)
    }

    /// The worker's identity, if it has enrolled.
    pub fn identity(&self) -> Result<Option<Identity>, DataError> {
        let path = self.root.join("identity.json");
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        // The parser's message could quote the credential.
        let identity = serde_json::from_str(&text)
            .map_err(|_| DataError::Damaged { path, reason: "expected worker and credential".into() })?;
        Ok(Some(identity))
    }

    /// Keeps the identity.
    pub fn keep_identity(&self, identity: &Identity) -> Result<(), DataError> {
        let path = self.root.join("identity.json");
        let text = serde_json::to_vec_pretty(identity).expect("two strings always serialise");
        write_synced(&path, &text, 0o600).map_err(io_error("write", &path))
    }

    /// Where the journal is.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// Where the mirrors are.
    pub fn mirrors(&self) -> PathBuf {
        self.root.join("mirrors")
    }

    /// Where the attempts are.
    pub fn attempts(&self) -> PathBuf {
        self.root.join("attempts")
    }

    /// Everything that the worker keeps of one attempt.
    pub fn attempt(&self, attempt: AttemptId) -> PathBuf {
        self.attempts().join(attempt.to_string())
    }

    /// The attempts that have a folder, whether or not the journal knows them.
    pub fn attempts_on_disk(&self) -> Result<Vec<AttemptId>, DataError> {
        let path = self.attempts();
        let entries = fs::read_dir(&path).map_err(io_error("list", &path))?;
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("list", &path))?;
            if let Some(attempt) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                found.push(attempt);
            }
        }
        found.sort();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_by_one_worker_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let first = DataDir::open(temp.path()).unwrap();
        assert!(matches!(DataDir::open(temp.path()), Err(DataError::Held(_))));
        let instance = first.instance().to_owned();
        drop(first);
        assert_eq!(DataDir::open(temp.path()).unwrap().instance(), instance, "its name stays");
    }

    #[test]
    fn sessions_count_up_over_starts() {
        let temp = tempfile::tempdir().unwrap();
        let numbers: Vec<u64> =
            (0..3).map(|_| DataDir::open(temp.path()).unwrap().next_session().unwrap()).collect();
        assert_eq!(numbers, [1, 2, 3]);
        fs::write(temp.path().join("session"), "many").unwrap();
        let error = DataDir::open(temp.path()).unwrap().next_session().unwrap_err();
        assert!(matches!(error, DataError::Damaged { .. }), "{error}");
    }

    #[test]
    fn the_identity_is_readable_by_its_owner_only_and_shown_by_nobody() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::open(temp.path()).unwrap();
        assert_eq!(data.identity().unwrap(), None);
        let identity = Identity { worker: WorkerId(7), credential: "canary-5a5a".into() };
        data.keep_identity(&identity).unwrap();
        assert_eq!(data.identity().unwrap(), Some(identity.clone()));
        let path = temp.path().join("identity.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{identity:?}").contains("canary"));
        fs::write(&path, "{\"credential\": \"canary-5a5a\"").unwrap();
        let error = data.identity().unwrap_err().to_string();
        assert!(!error.contains("canary"), "{error}");
    }
}
