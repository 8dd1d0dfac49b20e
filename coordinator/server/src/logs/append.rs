//! Takes log bytes from a worker. They are hostile until checked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use buildyard_scheduler::lifecycle::attempt::{Attempt, AttemptState};
use buildyard_store::{Fenced, LogChunk, LogState, Store, StoreError};
use buildyard_types::log::whole_prefix;
use buildyard_types::worker::{LogFinish, LogLength};
use buildyard_types::{AttemptId, ByteSize};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::compact::CompactQueue;
use super::signals::LogSignals;
use crate::blobs::{Blobs, hex, is_sha256, sha256_hex};
use crate::error::{ApiError, ApiResult, Code};
use crate::metrics::Metrics;

/// Most bytes of one call: a worker's spool is sent in a few calls, and a call fits into memory.
pub(crate) const MAX_CHUNK_BYTES: usize = 4 << 20;
/// Logs whose hash is carried along. Beyond it the oldest is let go: many of those are of attempts that were lost and
/// never finish; where one does, its hash is computed anew.
const MAX_HASHES: usize = 4_096;
/// Most chunks asked of the store at once while a log is read for its hash.
const PAGE: u32 = 64;

/// Keeps logs.
#[derive(Clone)]
pub(crate) struct LogWriter {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) signals: LogSignals,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) compact: CompactQueue,
    /// What a worker cuts logs at, as it counts.
    pub(crate) log_cap: ByteSize,
    pub(crate) hashes: Arc<Hashes>,
}

/// Hashes of logs that grow, each with the length that it covers.
#[derive(Default)]
pub(crate) struct Hashes(Mutex<BTreeMap<AttemptId, (u64, Sha256)>>);

impl Hashes {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<AttemptId, (u64, Sha256)>> {
        // A panic while it was held cannot have left an entry half made; a wrong one would only be refused.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Carries a log's hash on. A gap (another process wrote before, two calls at once) drops it.
    fn add(&self, attempt: AttemptId, offset: u64, bytes: &[u8]) {
        let taken = self.lock().remove(&attempt);
        let mut hash = match taken {
            Some((length, hash)) if length == offset => hash,
            None if offset == 0 => Sha256::new(),
            Some(_) | None => return,
        };
        // Outside the lock: hashing 4 MiB takes milliseconds.
        hash.update(bytes);
        let mut hashes = self.lock();
        if hashes.len() >= MAX_HASHES {
            hashes.pop_first();
        }
        hashes.insert(attempt, (offset + bytes.len() as u64, hash));
    }

    /// The attempt ended: nothing more comes.
    pub(crate) fn forget(&self, attempt: AttemptId) {
        self.lock().remove(&attempt);
    }

    fn take(&self, attempt: AttemptId, length: u64) -> Option<String> {
        let (covered, hash) = self.lock().remove(&attempt)?;
        (covered == length).then(|| hex(&hash.finalize()))
    }
}

impl LogWriter {
    /// Takes bytes that begin at `offset`. The answer is the length that is kept, wherever they began: that is
    /// where the worker goes on.
    pub(crate) async fn append(&self, by: Fenced, offset: u64, body: Bytes) -> ApiResult<LogLength> {
        let (_, log) = self.held(by).await?;
        let kept = log.length;
        let end = offset.saturating_add(body.len() as u64);
        if offset > kept || end <= kept {
            // A gap, or bytes that are here already: in both cases the worker needs to know the length.
            return Ok(LogLength { length: kept });
        }
        let overlap = usize::try_from(kept - offset).unwrap_or(usize::MAX);
        let fresh = body.slice(overlap..);
        if whole_prefix(&fresh) != fresh.len() {
            let detail = format!("the bytes of {} from {kept} on are not whole log records", by.attempt);
            return Err(ApiError::new(Code::BadLog, detail));
        }
        if end > most_raw_bytes(self.log_cap) {
            let detail =
                format!("the log of {} would hold {end} bytes; the cap is {}", by.attempt, self.log_cap);
            return Err(ApiError::new(Code::LogCap, detail));
        }
        let sha256 = sha256_hex(&fresh);
        let object = self.blobs.put_log(by.attempt, kept, &sha256, fresh.clone()).await;
        let object = object.map_err(|error| storage_failed(&error))?;
        let chunk = LogChunk { offset: kept, length: fresh.len() as u64, sha256, object };
        match self.store.append_log(by, &chunk).await {
            Ok(length) => {
                self.hashes.add(by.attempt, kept, &fresh);
                self.metrics.logged(chunk.length);
                self.signals.wake(by.attempt);
                Ok(LogLength { length })
            }
            // Another call was quicker. Its bytes count; the worker is told how many there are.
            Err(StoreError::Conflict(what)) => {
                let (_, now) = self.held(by).await?;
                if now.length > kept && now.sha256.is_none() {
                    Ok(LogLength { length: now.length })
                } else {
                    Err(ApiError::new(Code::Conflict, what))
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Closes a log if it is what the worker says it is.
    pub(crate) async fn finish(&self, by: Fenced, said: &LogFinish) -> ApiResult<()> {
        if !is_sha256(&said.sha256) {
            return Err(ApiError::new(Code::BadLog, "`sha256` is not 64 lower-case hexadecimal digits"));
        }
        let (_, log) = self.held(by).await?;
        if log.sha256.is_none() && log.length == said.length {
            let found = match self.hashes.take(by.attempt, log.length) {
                Some(found) => found,
                None => self.hash_anew(by.attempt, log.length).await?,
            };
            if found != said.sha256 {
                let detail = format!("what is kept of {} has the hash {found}", by.attempt);
                return Err(ApiError::new(Code::Conflict, detail));
            }
        }
        self.store.finish_log(by, said.length, &said.sha256).await?;
        self.signals.wake(by.attempt);
        self.compact.push(by.attempt);
        Ok(())
    }

    /// The attempt, if it is the caller's to write about. The store checks it again with the change; here it
    /// keeps a stale worker from filling the disk.
    async fn held(&self, by: Fenced) -> ApiResult<(Attempt, LogState)> {
        let stale = || StoreError::Stale { attempt: by.attempt };
        let (attempt, log) = self.store.attempt(by.attempt).await?.ok_or_else(stale)?;
        let live = match attempt.state {
            AttemptState::Live => true,
            AttemptState::Ended { .. } | AttemptState::Removed { .. } => false,
        };
        if !live || attempt.worker != by.worker || attempt.fence != by.fence {
            return Err(stale().into());
        }
        Ok((attempt, log))
    }

    async fn hash_anew(&self, attempt: AttemptId, length: u64) -> ApiResult<String> {
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < length {
            let chunks = self.store.log_chunks(attempt, at, PAGE).await?;
            for chunk in &chunks {
                let bytes = self.blobs.read(&chunk.object, 0, chunk.length).await;
                hash.update(bytes.map_err(|error| storage_failed(&error))?);
                at = chunk.offset + chunk.length;
            }
            if chunks.is_empty() {
                return Err(ApiError::new(Code::Internal, format!("the log of {attempt} ends at {at}")));
            }
        }
        Ok(hex(&hash.finalize()))
    }
}

/// A worker counts what the job printed; records add their headers. A worker that goes beyond twice the cap
/// does not keep the cap.
fn most_raw_bytes(cap: ByteSize) -> u64 {
    cap.0.saturating_mul(2).saturating_add(16 << 20)
}

/// The disk does not take or give objects. The same call may succeed later.
pub(crate) fn storage_failed(error: &crate::blobs::BlobError) -> ApiError {
    tracing::error!(error = %crate::error::chain(error), "the object store failed");
    ApiError::new(Code::Unavailable, "the coordinator's disk did not take it; nothing was changed")
        .hint("send the same request again")
        .retry_after(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildyard_types::RunId;

    #[test]
    fn the_newest_logs_have_their_hashes_carried_on() {
        let hashes = Hashes::default();
        let attempt = |run: usize| RunId(run as u64).job(0).attempt(1);
        for run in 0..MAX_HASHES + 10 {
            hashes.add(attempt(run), 0, b"ab");
            hashes.add(attempt(run), 2, b"c");
        }
        assert_eq!(hashes.lock().len(), MAX_HASHES);
        assert_eq!(hashes.take(attempt(0), 3), None, "the oldest were let go");
        assert_eq!(hashes.take(attempt(MAX_HASHES + 9), 3), Some(sha256_hex(b"abc")));
        hashes.forget(attempt(MAX_HASHES + 8));
        assert_eq!(hashes.take(attempt(MAX_HASHES + 8), 3), None);
    }
}
