//! The driver: one task that owns the scheduler's core.
//!
//! Everything that can wake it is listed in [`Call`]; besides, there are time (the core's next wake-up, a held
//! call that has waited long enough) and the end of the process. It takes the inputs that wait, decides each,
//! commits the records of all in one transaction, and only then lets anything out: answers, events, orders to
//! workers. If the commit fails, nothing of it was said to anybody; the core is rebuilt from the store.

mod commit;
mod handle;
mod holds;
mod task;

use buildyard_scheduler::input::Rejection;
pub(crate) use handle::{Act, Answer, DriverHandle};
pub(crate) use task::{Driver, DriverParts};

use buildyard_scheduler::{Core, Input};
use buildyard_store::{StoreError, Token};
use buildyard_types::worker::SyncRequest;
use buildyard_types::{RunId, Timestamp, WorkerId};
use tokio::sync::oneshot;

use crate::error::{ApiError, Code};
use holds::SyncAnswer;

/// Calls that may wait for the driver. More callers than that wait to be let in, for a bounded time.
pub(crate) const QUEUE: usize = 1_024;
/// Inputs that one transaction may carry: enough that a burst shares one sync of the disk, and few enough
/// that the first caller does not wait for long.
pub(crate) const BATCH: usize = 256;

/// Looks at the core, the time and the number of held calls.
pub(crate) type View = Box<dyn FnOnce(&Core, Timestamp, usize) + Send>;

/// Everything that can wake the driver, besides time.
pub(crate) enum Call {
    /// An input that changes the farm.
    Decide {
        /// What happened.
        input: Box<Input>,
        /// Credentials that begin to be good with it.
        tokens: Vec<Token>,
        /// Who did it, where it is the act of a person.
        act: Option<Act>,
        /// Told after the commit.
        answer: Answer,
    },
    /// A credential is to be good, without any change of the farm.
    Grant {
        /// Which.
        token: Token,
        /// Who made it.
        act: Act,
        /// Told after the commit.
        answer: Answer,
    },
    /// A worker says what it holds and waits for news.
    Sync {
        /// Who, by its credential.
        worker: WorkerId,
        /// What it says.
        request: SyncRequest,
        /// Told when there is news, or after a while.
        answer: SyncAnswer,
    },
    /// Somebody looks at the farm as it is on record.
    Look(View),
    /// Which received runs have no source work yet, at most so many. They count as given out.
    TakeReceived {
        /// At most.
        limit: usize,
        /// Told at once.
        answer: oneshot::Sender<Vec<RunId>>,
    },
}

/// Why the driver gives no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DriverError {
    /// The commit failed, or the core is being rebuilt. Nothing was changed.
    #[error("the store does not answer; nothing was changed")]
    Unavailable,
    /// The calls before this one took too long. It was given up, and nothing was changed.
    #[error("the coordinator is too busy; nothing was changed")]
    Busy,
    /// The call was taken up, and what became of it is not known: its commit hangs, or the process ends.
    #[error("the change is not confirmed: it may be on record, now or in a moment")]
    Unknown,
    /// The input's premises do not hold; nothing was changed.
    #[error(transparent)]
    Rejected(Rejection),
    /// The process is ending.
    #[error("the coordinator is shutting down")]
    Stopping,
}

impl From<DriverError> for ApiError {
    fn from(error: DriverError) -> Self {
        let text = error.to_string();
        match error {
            DriverError::Rejected(why) => why.into(),
            DriverError::Unavailable | DriverError::Busy => {
                ApiError::new(Code::Unavailable, text).hint("send the same request again").retry_after(2)
            }
            DriverError::Unknown => ApiError::new(Code::OutcomeUnknown, text)
                .hint("look whether it was done, or ask again with the same key")
                .retry_after(5),
            DriverError::Stopping => ApiError::new(Code::ShuttingDown, text).retry_after(5),
        }
    }
}

/// Why the driver's task ended though nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum DriverEnd {
    /// Another coordinator began an epoch on this database. Going on would mean two schedulers.
    #[error("this coordinator must end")]
    EpochOver(#[source] StoreError),
    /// The database will not take anything from this process again: it is damaged, or a sync failed.
    #[error("the store is lost to this process; start it again once the cause is mended")]
    StoreLost(#[source] StoreError),
}
