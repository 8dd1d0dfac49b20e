//! What the supervisor of a data directory leaves for others to read: a lock that it holds while it lives, and a
//! file that says who it is and what it watches over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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

/// A process that cannot be mistaken for a later one of the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Its number.
    pub(crate) pid: u32,
    /// When it started, in ticks since boot.
    pub(crate) started: u64,
    /// Which boot.
    pub(crate) boot: String,
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

impl ProcessId {
    /// The process of a number, if there is one.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Self { pid, started: start_time(&stat)?, boot: boot.trim().to_owned() })
    }

    /// Whether it still lives.
    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }
}

/// Field 22 of `/proc/PID/stat`. Field 2 is the program's name and may hold anything, `)` and blanks among it.
fn start_time(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_whitespace().nth(19)?.parse().ok()
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
    fn the_start_time_is_found_behind_any_name() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        assert_eq!(start_time(stat), Some(987654));
        assert_eq!(start_time("42 (cut"), None);
    }

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let own = ProcessId::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(!ProcessId { started: own.started - 1, ..own.clone() }.is_alive());
        assert!(!ProcessId { boot: "another".into(), ..own }.is_alive());
    }

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
