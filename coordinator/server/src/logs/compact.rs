//! After the finish, many small objects of a log become few large ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use buildyard_store::{LogChunk, Store};
use buildyard_types::AttemptId;
use tokio::sync::{mpsc, watch};

use crate::app::closed;
use crate::blobs::Blobs;
use crate::error::chain;

/// Logs that wait to be compacted. Further ones are looked up in the store when these are done.
const QUEUE: usize = 1_024;
/// Objects of about this size are large enough to stay as they are.
const LARGE_BYTES: u64 = 1 << 20;
/// Most bytes that one object gathers: whoever wants the end of a log reads one object from its beginning.
const TARGET_BYTES: u64 = 16 << 20;
/// Most rows looked at in one go.
const PAGE: u32 = 16_384;
/// Logs that are looked up in the store at one time.
const LOGS: u32 = 100;

/// Takes attempts whose log is finished.
#[derive(Clone)]
pub(crate) struct CompactQueue {
    attempts: mpsc::Sender<AttemptId>,
    more: Arc<AtomicBool>,
}

/// Where a queue is emptied.
pub(crate) struct CompactWork {
    attempts: mpsc::Receiver<AttemptId>,
    /// Whether the store may hold finished logs that were not in the queue.
    more: Arc<AtomicBool>,
}

impl CompactQueue {
    /// A queue and its end. What waited when the process ended before is in the store.
    pub(crate) fn new() -> (Self, CompactWork) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let more = Arc::new(AtomicBool::new(true));
        (Self { attempts: sender, more: more.clone() }, CompactWork { attempts: receiver, more })
    }

    /// Asks for a log to be compacted some time.
    pub(crate) fn push(&self, attempt: AttemptId) {
        if self.attempts.try_send(attempt).is_err() {
            self.more.store(true, Ordering::Relaxed);
        }
    }
}

/// Compacts one log after the other, so that it never takes more than one disk's worth of attention.
pub(crate) async fn compact_task(
    store: Arc<dyn Store>,
    blobs: Arc<Blobs>,
    mut work: CompactWork,
    mut closing: watch::Receiver<bool>,
) {
    let compact = async |attempt| {
        if let Err(error) = compact(&*store, &blobs, attempt, PAGE).await {
            tracing::warn!(attempt_id = %attempt, error = %chain(&*error), "the log stays in small objects");
        }
    };
    while !*closing.borrow() {
        if let Ok(attempt) = work.attempts.try_recv() {
            compact(attempt).await;
            continue;
        }
        if work.more.swap(false, Ordering::Relaxed) {
            let mut after = None;
            while let Some(logs) = small_logs(&*store, after).await {
                after = logs.last().copied();
                for attempt in logs {
                    if *closing.borrow() {
                        return;
                    }
                    compact(attempt).await;
                }
            }
            continue;
        }
        tokio::select! {
            () = closed(&mut closing) => return,
            attempt = work.attempts.recv() => match attempt {
                Some(attempt) => compact(attempt).await,
                None => return,
            },
        }
    }
}

/// The next finished logs that are still in small objects; `None` behind the last.
async fn small_logs(store: &dyn Store, after: Option<AttemptId>) -> Option<Vec<AttemptId>> {
    match store.small_logs(after, LARGE_BYTES, LOGS).await {
        Ok(logs) => Some(logs).filter(|logs| !logs.is_empty()),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "logs that a crash left in small objects stay so for now");
            None
        }
    }
}

/// Neighbours that are worth being one object, at most [`TARGET_BYTES`] together.
fn groups(chunks: &[LogChunk]) -> Vec<&[LogChunk]> {
    let mut groups = Vec::new();
    let mut from = 0;
    let mut bytes = 0;
    for (at, chunk) in chunks.iter().enumerate() {
        if bytes + chunk.length > TARGET_BYTES && at > from {
            groups.push(&chunks[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += chunk.length;
    }
    groups.push(&chunks[from..]);
    let worth = |group: &&[LogChunk]| {
        let bytes: u64 = group.iter().map(|chunk| chunk.length).sum();
        group.len() > 1 && bytes / (group.len() as u64) < LARGE_BYTES
    };
    groups.retain(worth);
    groups
}

pub(crate) async fn compact(
    store: &dyn Store,
    blobs: &Blobs,
    attempt: AttemptId,
    page: u32,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut at = 0;
    loop {
        let chunks = store.log_chunks(attempt, at, page).await?;
        for group in groups(&chunks) {
            gather(store, blobs, attempt, group).await?;
        }
        match chunks.last() {
            Some(last) if chunks.len() == page as usize => at = last.offset + last.length,
            Some(_) | None => return Ok(()),
        }
    }
}

/// Makes one object of several.
async fn gather(
    store: &dyn Store,
    blobs: &Blobs,
    attempt: AttemptId,
    group: &[LogChunk],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let offset = group[0].offset;
    let mut upload = blobs.begin_log(attempt, &format!("{offset:014}-whole-{}", group.len())).await?;
    for chunk in group {
        upload.write(blobs.read(&chunk.object, 0, chunk.length).await?).await?;
    }
    let (length, sha256, object) = upload.finish().await?;
    let replaced = store.compact_log(attempt, &LogChunk { offset, length, sha256, object }).await?;
    // A reader that still has the old names asks for the new ones when it finds nothing.
    for object in replaced {
        blobs.delete(&object).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(lengths: &[u64]) -> Vec<LogChunk> {
        let mut offset = 0;
        let one = |length: &u64| {
            offset += length;
            LogChunk {
                offset: offset - length,
                length: *length,
                sha256: String::new(),
                object: String::new(),
            }
        };
        lengths.iter().map(one).collect()
    }

    #[test]
    fn small_neighbours_are_gathered_and_large_ones_left_alone() {
        let mib = 1 << 20;
        for (lengths, expected) in [
            (vec![], vec![]),
            (vec![10], vec![]),
            (vec![10, 20, 30], vec![3]),
            (vec![4 * mib; 40], vec![]),
            (vec![mib / 2; 40], vec![32, 8]),
        ] {
            let chunks = chunks(&lengths);
            let found: Vec<usize> = groups(&chunks).iter().map(|group| group.len()).collect();
            assert_eq!(found, expected);
        }
    }
}
