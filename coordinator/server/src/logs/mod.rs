//! Logs: chunks come from workers, are checked and kept; readers get them back as records.
//!
//! There is no append to objects: a log is objects and rows. The object is synced first, then its row is
//! committed under the attempt's fence, then the worker is told. A crash between the two leaves an object that
//! no row names; the sweeper finds it by its age.

mod append;
mod compact;
mod read;
mod signals;

pub(crate) use append::{Hashes, LogWriter, MAX_CHUNK_BYTES, storage_failed};
#[cfg(test)]
pub(crate) use compact::compact;
pub(crate) use compact::{CompactQueue, compact_task};
pub(crate) use read::{Block, LogReader, line};
pub(crate) use signals::LogSignals;
