//! Reads a log back, block by block: a reader holds one block in memory, however slow it is.

use std::collections::VecDeque;
use std::sync::Arc;

use buildyard_store::{LogChunk, Store};
use buildyard_types::AttemptId;
use buildyard_types::api::LogLine;
use buildyard_types::log::{Record, read_record, whole_prefix};
use bytes::Bytes;

use crate::blobs::Blobs;
use crate::error::{ApiError, ApiResult, Code};
use crate::logs::append::storage_failed;

/// Bytes of one block. More than the longest record, so that each block holds at least one.
const BLOCK_BYTES: u64 = 128 << 10;
/// Rows that a reader knows ahead.
const AHEAD: u32 = 16;

/// A place in a log.
pub(crate) struct LogReader {
    store: Arc<dyn Store>,
    blobs: Arc<Blobs>,
    attempt: AttemptId,
    at: u64,
    ahead: VecDeque<LogChunk>,
}

/// Some whole records.
pub(crate) struct Block {
    /// Where they begin.
    pub(crate) offset: u64,
    /// Their bytes.
    pub(crate) bytes: Bytes,
}

impl Block {
    /// The records, each with the offset behind it.
    pub(crate) fn records(&self) -> impl Iterator<Item = (Record<'_>, u64)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (record, length) = read_record(&self.bytes[at..]).ok()??;
            at += length;
            Some((record, self.offset + at as u64))
        })
    }
}

impl LogReader {
    /// A reader that begins at an offset.
    pub(crate) fn new(store: Arc<dyn Store>, blobs: Arc<Blobs>, attempt: AttemptId, at: u64) -> Self {
        Self { store, blobs, attempt, at, ahead: VecDeque::new() }
    }

    /// Where the next block begins.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// The next whole records; `None` at the end of what is kept now.
    pub(crate) async fn next(&mut self) -> ApiResult<Option<Block>> {
        // A second try, since the chunk may have been compacted after its row was read.
        for last_try in [false, true] {
            let Some(chunk) = self.chunk().await? else { return Ok(None) };
            let from = self.at - chunk.offset;
            let to = (from + BLOCK_BYTES).min(chunk.length);
            let bytes = match self.blobs.read(&chunk.object, from, to).await {
                Ok(bytes) => bytes,
                Err(error) if error.is_missing() && !last_try => {
                    self.ahead.clear();
                    continue;
                }
                Err(error) => return Err(storage_failed(&error)),
            };
            let whole = whole_prefix(&bytes);
            if whole == 0 {
                let detail = format!("no record of {} begins at offset {}", self.attempt, self.at);
                return Err(ApiError::new(Code::BadRequest, detail)
                    .hint("an offset is an event's id, or the length that a call answered"));
            }
            let block = Block { offset: self.at, bytes: bytes.slice(..whole) };
            self.at += whole as u64;
            return Ok(Some(block));
        }
        Ok(None)
    }

    /// The chunk that holds the place.
    async fn chunk(&mut self) -> ApiResult<Option<LogChunk>> {
        let end = |chunk: &LogChunk| chunk.offset + chunk.length;
        while self.ahead.front().is_some_and(|chunk| end(chunk) <= self.at) {
            self.ahead.pop_front();
        }
        if self.ahead.is_empty() {
            self.ahead = self.store.log_chunks(self.attempt, self.at, AHEAD).await?.into();
            // A store may give the chunk before as well.
            self.ahead.retain(|chunk| end(chunk) > self.at);
        }
        Ok(self.ahead.front().filter(|chunk| chunk.offset <= self.at).cloned())
    }
}

/// A record as people's programs read it.
pub(crate) fn line(record: &Record<'_>) -> LogLine {
    LogLine {
        kind: record.kind.as_str().to_owned(),
        step: record.step,
        at: record.at,
        text: String::from_utf8_lossy(record.payload).into_owned(),
    }
}
