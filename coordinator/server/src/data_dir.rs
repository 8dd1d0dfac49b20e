//! The coordinator's folder: who may enter it, who holds it, and what lies where in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use buildyard_types::ByteSize;

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another coordinator holds it.
    #[error("another coordinator uses {path}; two of them would both schedule")]
    Held {
        /// The lock.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{doing} {path}")]
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

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { doing, path, source }
}

/// The folder, held by this process until the value is dropped.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    _lock: File,
}

/// Free space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// What a process without privileges may still write.
    pub free: ByteSize,
    /// All of it.
    pub total: ByteSize,
}

impl DataDir {
    /// Makes the folder if need be, closes it to others, and takes its lock.
    pub fn open(root: &Path) -> Result<Self, DataDirError> {
        let private = |path: &Path| -> Result<(), DataDirError> {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(failed("cannot make the folder", path))?;
            // It may have been there before with other rights.
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                .map_err(failed("cannot close to others", path))
        };
        private(root)?;
        let path = root.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("cannot open the lock", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(DataDirError::Held { path }),
            Err(fs::TryLockError::Error(error)) => return Err(failed("cannot take the lock", &path)(error)),
        }
        let dir = Self { root: root.to_owned(), _lock: lock };
        for path in [dir.blobs(), dir.mirrors(), dir.home()] {
            private(&path)?;
        }
        Ok(dir)
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.root.join("coordinator.db")
    }

    /// Log chunks and artifact contents.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Bare mirrors of repositories.
    pub fn mirrors(&self) -> PathBuf {
        self.root.join("mirrors")
    }

    /// Home of every git that is started: nobody's configuration.
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// The administrator's token, for its owner only.
    pub fn admin_token(&self) -> PathBuf {
        self.root.join("admin.token")
    }

    /// The URL at which this coordinator answers.
    pub fn endpoint(&self) -> PathBuf {
        self.root.join("endpoint")
    }

    /// The time of the last event before the clock leapt, while there is doubt about it.
    pub(crate) fn clock_doubt(&self) -> PathBuf {
        self.root.join("clock-doubt")
    }

    /// Which process this coordinator is. The endpoint of one that was killed stays, and so does its port, for
    /// whoever takes it: before a token is sent there, this process must be alive.
    pub fn process(&self) -> PathBuf {
        self.root.join("process.json")
    }

    /// Puts a small file in place, whole or not at all, readable by its owner only, and synced.
    pub fn write_private(&self, path: &Path, text: &str) -> Result<(), DataDirError> {
        let staged = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&staged, path)?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(failed("cannot write", path))
    }

    /// The text of a small file; `None` if there is none.
    pub fn read(&self, path: &Path) -> Result<Option<String>, DataDirError> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("cannot read", path)(error)),
        }
    }

    /// How full the file system is.
    pub fn disk_space(&self) -> Result<DiskSpace, DataDirError> {
        let seen = rustix::fs::statvfs(&self.root)
            .map_err(|error| failed("cannot measure", &self.root)(error.into()))?;
        Ok(DiskSpace {
            free: ByteSize(seen.f_bavail.saturating_mul(seen.f_frsize)),
            total: ByteSize(seen.f_blocks.saturating_mul(seen.f_frsize)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_private_and_held_by_one() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("data");
        let dir = DataDir::open(&root).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(DataDir::open(&root), Err(DataDirError::Held { .. })));
        drop(dir);
        DataDir::open(&root).unwrap();
    }

    #[test]
    fn private_files_are_replaced_whole() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let path = dir.admin_token();
        assert_eq!(dir.read(&path).unwrap(), None);
        dir.write_private(&path, "one").unwrap();
        dir.write_private(&path, "two").unwrap();
        assert_eq!(dir.read(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
