//! What the database says, as something that a coordinator can act on.

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use buildyard_store::StoreError;

/// Why a database could not be opened. Nothing of it was changed, unless the text says so.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another coordinator has it.
    #[error("{path} is in use by another coordinator ({holder}); stop that one first")]
    InUse {
        /// The database.
        path: PathBuf,
        /// `process 4711`, or that it is not known.
        holder: String,
    },
    /// Its content is not what was written. Restore a backup, or move it away to begin anew.
    #[error("{path} is damaged: {finding}; it was left as it is")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        finding: String,
    },
    /// It is a SQLite database, but not a coordinator's.
    #[error(
        "{path} is not a database of Buildyard (application id {application_id:#x}); it was left as it is"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it says it is.
        application_id: i64,
    },
    /// A newer Buildyard wrote it.
    #[error("{path} has schema {found}, this program knows up to {known}; it was left as it is")]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Newest migration that was applied to it.
        found: i64,
        /// Newest migration that this program has.
        known: i64,
    },
    /// A migration did not go through. The database has the schema it had, and a copy lies beside it.
    #[error("{path} could not be brought to schema {to}")]
    Migration {
        /// The database.
        path: PathBuf,
        /// The schema that was wanted.
        to: i64,
        /// What the database said.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// A file could not be read, made or locked.
    #[error("{during}")]
    File {
        /// What was attempted, on which path.
        during: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The database refused.
    #[error("{during}")]
    Database {
        /// What was attempted, on which path.
        during: String,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
}

/// What stands behind [`StoreError::Unavailable`].
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Another process held the database for longer than we wait.
    #[error("the database is locked by another process")]
    Locked(#[source] Arc<sqlx::Error>),
    /// There is no room for the change. Nothing of it was kept.
    #[error("the disk is full")]
    Full(#[source] sqlx::Error),
    /// The file or its file system can only be read.
    #[error("the database cannot be written")]
    ReadOnly(#[source] sqlx::Error),
    /// Reading, writing or syncing failed. What the disk holds is not known until the database is opened anew.
    #[error("the disk failed")]
    Disk(#[source] sqlx::Error),
    /// Something is not what was written.
    #[error("the database is damaged: {finding}")]
    Damaged {
        /// What was found.
        finding: String,
        /// What found it.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// One row is not what was written. The file as a whole is still SQLite's, and other rows are good.
    #[error("{finding}")]
    BadRow {
        /// Which row, as far as it is known.
        finding: String,
        /// What found it.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// An earlier failure left it unknown what the disk holds.
    #[error("the database failed before and takes no writes until it is opened anew: {0}")]
    Failed(Arc<str>),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// All connections were busy for longer than we wait, or the database had no memory.
    #[error("the database is busy")]
    Busy(#[source] sqlx::Error),
    /// What should not happen: a statement that the database does not understand, a broken constraint.
    #[error("the database refused a statement")]
    Refused(#[source] sqlx::Error),
}

// Primary result codes of SQLite: https://www.sqlite.org/rescode.html. Extended ones carry them in the low byte.
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const NOMEM: i32 = 7;
const READONLY: i32 = 8;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const NOTADB: i32 = 26;
/// The index of the write-ahead log could not grow: a full disk, which SQLite names otherwise.
const IOERR_SHMSIZE: i32 = IOERR | (19 << 8);

impl Fault {
    /// Whether the same call may succeed later.
    pub fn retry(&self) -> bool {
        match self {
            Fault::Locked(_) | Fault::Full(_) | Fault::Busy(_) => true,
            Fault::ReadOnly(_)
            | Fault::Disk(_)
            | Fault::Damaged { .. }
            | Fault::BadRow { .. }
            | Fault::Failed(_)
            | Fault::Closed
            | Fault::Refused(_) => false,
        }
    }

    /// Whether nothing may be written after it until the database is opened anew.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Fault::Disk(_) | Fault::Damaged { .. } | Fault::Failed(_) => true,
            Fault::Locked(_)
            | Fault::Full(_)
            | Fault::ReadOnly(_)
            | Fault::BadRow { .. }
            | Fault::Closed
            | Fault::Busy(_)
            | Fault::Refused(_) => false,
        }
    }

    /// As the store's callers see it.
    pub(crate) fn during(self, during: String) -> StoreError {
        match self {
            Fault::BadRow { .. } => StoreError::Damaged { during, source: Box::new(self) },
            fault => StoreError::Unavailable { during, retry: fault.retry(), source: Box::new(fault) },
        }
    }
}

/// SQLite's extended result code, if the error is SQLite's own.
pub(crate) fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// Whether the error says that the file is not what SQLite wrote.
pub(crate) fn is_damage(error: &sqlx::Error) -> bool {
    sqlite_code(error).is_some_and(|code| matches!(code & 0xff, CORRUPT | NOTADB))
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        let Some(code) = sqlite_code(&error) else {
            return match error {
                sqlx::Error::PoolTimedOut => Fault::Busy(error),
                sqlx::Error::PoolClosed => Fault::Closed,
                // The thread of the connection is gone: nobody knows how far it came.
                sqlx::Error::WorkerCrashed | sqlx::Error::Io(_) => Fault::Disk(error),
                // A column that does not hold what the schema says.
                sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                    Fault::BadRow { finding: "a column is of the wrong type".into(), source: error.into() }
                }
                other => Fault::Refused(other),
            };
        };
        if code == IOERR_SHMSIZE {
            return Fault::Full(error);
        }
        match code & 0xff {
            BUSY | LOCKED => Fault::Locked(error.into()),
            FULL => Fault::Full(error),
            READONLY => Fault::ReadOnly(error),
            IOERR => Fault::Disk(error),
            CORRUPT | NOTADB => Fault::Damaged { finding: error.to_string(), source: error.into() },
            NOMEM | CANTOPEN => Fault::Busy(error),
            _ => Fault::Refused(error),
        }
    }
}

impl From<crate::seal::BrokenSeal> for Fault {
    fn from(broken: crate::seal::BrokenSeal) -> Self {
        Fault::BadRow { finding: broken.to_string(), source: broken.into() }
    }
}

/// Remembers the first final fault: from then on the store acknowledges nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    failed: Arc<OnceLock<Arc<str>>>,
}

impl Health {
    /// Takes note of a fault.
    pub(crate) fn note(&self, fault: &Fault) {
        if let Fault::BadRow { finding, .. } = fault {
            tracing::error!(finding, "a row of the database is damaged");
        }
        if !fault.is_final() {
            return;
        }
        let mut reason = fault.to_string();
        if let Some(source) = fault.source() {
            reason = format!("{reason}: {source}");
        }
        if self.failed.set(reason.into()).is_ok() {
            tracing::error!(%fault, "the store takes no more writes");
        }
    }

    /// The fault that stands, if there is one.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        match self.failed.get() {
            None => Ok(()),
            Some(reason) => Err(Fault::Failed(reason.clone())),
        }
    }
}
