//! After the finish, many small objects of a log become few large ones.

use std::sync::Arc;

use buildyard_store::{LogChunk, Store};
use buildyard_types::AttemptId;
use tokio::sync::{mpsc, watch};

use crate::app::closed;
use crate::blobs::Blobs;
use crate::error::chain;

/// Logs that wait to be compacted. One more is not compacted: it stays readable as it is.
const QUEUE: usize = 1_024;
/// Objects of about this size are large enough to stay as they are.
const LARGE_BYTES: u64 = 1 << 20;
/// Most bytes that one object gathers: whoever wants the end of a log reads one object from its beginning.
const TARGET_BYTES: u64 = 16 << 20;
/// Most rows looked at in one go.
const PAGE: u32 = 4_096;

/// Takes attempts whose log is finished.
#[derive(Clone)]
pub(crate) struct CompactQueue(mpsc::Sender<AttemptId>);

impl CompactQueue {
    /// A queue and its end.
    pub(crate) fn new() -> (Self, mpsc::Receiver<AttemptId>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Asks for a log to be compacted some time.
    pub(crate) fn push(&self, attempt: AttemptId) {
        if self.0.try_send(attempt).is_err() {
            tracing::debug!(attempt_id = %attempt, "too many logs wait; this one stays in small objects");
        }
    }
}

/// Compacts one log after the other, so that it never takes more than one disk's worth of attention.
pub(crate) async fn compact_task(
    store: Arc<dyn Store>,
    blobs: Arc<Blobs>,
    mut queue: mpsc::Receiver<AttemptId>,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        let attempt = tokio::select! {
            () = closed(&mut closing) => return,
            attempt = queue.recv() => match attempt {
                Some(attempt) => attempt,
                None => return,
            },
        };
        if let Err(error) = compact(&*store, &blobs, attempt).await {
            tracing::warn!(attempt_id = %attempt, error = %chain(&*error), "the log stays in small objects");
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

async fn compact(
    store: &dyn Store,
    blobs: &Blobs,
    attempt: AttemptId,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let chunks = store.log_chunks(attempt, 0, PAGE).await?;
    for group in groups(&chunks) {
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
