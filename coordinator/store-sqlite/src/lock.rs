//! Keeps two coordinators from opening one database. SQLite itself would let them take turns.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::OpenError;

/// Held while the database is open. The kernel gives it back when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    // The lock is the open file; it is never read again.
    _file: File,
}

/// The lock lies beside the database. It is no lock on the database's own file: SQLite has its own there, and
/// closing any other handle of that file would drop them.
pub(crate) fn lock_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

impl Lock {
    /// Takes the lock, or says who has it.
    pub(crate) fn take(database: &Path) -> Result<Self, OpenError> {
        let path = lock_path(database);
        let failed =
            |what: &str, source| OpenError::File { during: format!("{what} {}", path.display()), source };
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = opened.map_err(|error| failed("opening the lock", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::InUse { path: database.to_owned(), holder: holder(&mut file) });
            }
            Err(TryLockError::Error(error)) => return Err(failed("taking the lock", error)),
        }
        let note = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        // Only a help for people: on a full disk the lock is good without it.
        if let Err(error) = note(&mut file) {
            tracing::warn!(path = %path.display(), %error, "cannot write the process id into the lock");
        }
        Ok(Self { _file: file })
    }
}

/// Who wrote the lock file, as far as it says so.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    // A process id has few digits; more than that is not ours to show.
    let read = file.take(20).read_to_string(&mut text);
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(pid)) => format!("process {pid}"),
        (Ok(_) | Err(_), _) => "its process is not known".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says by a panic what is not as expected")]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_who_has_it_and_the_next_one_gets_it() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("farm.db");
        let first = Lock::take(&database).unwrap();
        let refused = Lock::take(&database).unwrap_err().to_string();
        assert!(
            refused.contains("farm.db") && refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(first);
        Lock::take(&database).unwrap();
    }
}
