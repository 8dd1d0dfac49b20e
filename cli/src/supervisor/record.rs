//! What the supervisor of a data directory leaves for others to read: a lock that it holds while it lives, and a
//! file that says who it is and what it watches over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub(crate) use buildyard_coordinator::process::ProcessId;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The supervisor.
    pub(crate) supervisor: ProcessId,
    /// The coordinator's URL, once it is known.
    pub(crate) endpoint: Option<String>,
    /// What it watches over.
    pub(crate) parts: Vec<Part>,
}

/// One process under supervision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// `coordinator` or `worker`.
    pub(crate) name: String,
    /// Its process, while it has one.
    pub(crate) process: Option<ProcessId>,
    /// How often it was started again.
    pub(crate) restarts: u64,
    /// How its last process ended.
    pub(crate) last_end: Option<String>,
}

fn lock_path(data_dir: &Path) -> PathBuf {
    data_dir.join("supervisor.lock")
}

fn record_path(data_dir: &Path) -> PathBuf {
    data_dir.join("supervisor.json")
}

/// The right to supervise a data directory; given up with the value, and by the kernel with the process.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock; `None` where another process holds it.
    pub(crate) fn take(data_dir: &Path) -> io::Result<Option<Self>> {
        let path = lock_path(data_dir);
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a process holds the lock. Where there is no directory, nobody does.
    pub(crate) fn is_held(data_dir: &Path) -> io::Result<bool> {
        match File::open(lock_path(data_dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
            // Sharing would be refused exactly while a supervisor holds it; two askers do not disturb each other.
            Ok(file) => match flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => Ok(false),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
                Err(error) => Err(error.into()),
            },
        }
    }
}

/// What the last supervisor wrote; `None` if there was none, or not one of this version.
pub(crate) fn read(data_dir: &Path) -> io::Result<Option<Record>> {
    match fs::read(record_path(data_dir)) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the file, whole or not at all.
pub(crate) fn write(data_dir: &Path, record: &Record) -> io::Result<()> {
    let path = record_path(data_dir);
    let text = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
    replace(&path, &text, 0o644)
}

/// Takes the file away: nobody supervises any more.
pub(crate) fn remove(data_dir: &Path) -> io::Result<()> {
    match fs::remove_file(record_path(data_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Puts `bytes` in the place of a file, whole or not at all.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.write_all(bytes)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_supervises_and_others_see_it() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Lock::is_held(folder.path()).unwrap());
        let lock = Lock::take(folder.path()).unwrap();
        assert!(lock.is_some() && Lock::is_held(folder.path()).unwrap());
        assert!(Lock::take(folder.path()).unwrap().is_none());
        drop(lock);
        assert!(!Lock::is_held(folder.path()).unwrap());
    }

    #[test]
    fn the_record_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        let supervisor = ProcessId::of(std::process::id()).unwrap();
        let record = Record { supervisor, endpoint: Some("http://127.0.0.1:1".into()), parts: vec![] };
        write(folder.path(), &record).unwrap();
        assert_eq!(read(folder.path()).unwrap(), Some(record));
        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
    }
}
