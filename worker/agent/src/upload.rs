//! Sends an attempt's spool to the coordinator while it grows, and closes the log at its end.
//!
//! The coordinator's answer says how many bytes it keeps; sending goes on from there, so a lost answer, a
//! repeated call or a restart on either side changes nothing. One chunk is in memory at a time.

use std::io;
use std::time::Duration;

use buildyard_types::log::whole_prefix;
use buildyard_types::worker::LogFinish;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::backoff::Backoff;
use crate::client::{ClientError, LogStore};
use crate::spool::SpoolReader;

/// Most bytes in one call.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Bytes wait so long for company behind a pause, so that a person who follows a log sees its next line at once.
pub const GATHER_FIRST: Duration = Duration::from_millis(5);
/// Bytes of a log that goes on and on wait so long: ten calls a second for each attempt are enough.
pub const GATHER_MOST: Duration = Duration::from_millis(100);

/// How far the spool is good, and whether more will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpoolEnd {
    /// Bytes that may be sent.
    pub length: u64,
    /// Whether that is all of them.
    pub closed: bool,
}

/// Why a log did not reach the coordinator whole.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The coordinator will not take it: the attempt is no longer the worker's, or what it keeps contradicts
    /// the spool.
    #[error("the log was refused")]
    Refused(#[source] ClientError),
    /// The spool could not be read.
    #[error("the log spool could not be read")]
    Spool(#[source] io::Error),
    /// The coordinator has more than the spool holds: this host lost power and the end of the spool with it.
    #[error("the coordinator keeps {kept} bytes of the log, the spool holds only {held}")]
    Shortened {
        /// What the coordinator keeps.
        kept: u64,
        /// What the spool holds.
        held: u64,
    },
}

/// Sends everything and closes the log. Temporary failures are waited out for ever: who gives the attempt up
/// drops the future. With `resumed`, the coordinator is asked first what it keeps already.
pub async fn upload(
    store: &dyn LogStore,
    spool: &SpoolReader,
    mut end: watch::Receiver<SpoolEnd>,
    resumed: bool,
) -> Result<LogFinish, UploadError> {
    let mut upload = Upload { store, spool, sent: 0, hashed: 0, hash: Sha256::new(), buffer: Vec::new() };
    if resumed {
        let held = end.borrow().length;
        upload.sent = upload.append(Bytes::new(), held).await?;
    }
    let mut last_sent = Instant::now();
    let mut gather = GATHER_FIRST;
    loop {
        let now = *end.borrow_and_update();
        let waiting = now.length.saturating_sub(upload.sent);
        if waiting == 0 && now.closed {
            return upload.finish(now.length).await;
        }
        if waiting == 0 {
            // The writer is gone without closing: it was dropped with its task, and so will this be.
            if end.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            continue;
        }
        if last_sent.elapsed() > 2 * GATHER_MOST {
            gather = GATHER_FIRST;
        }
        let gather_until = last_sent + gather;
        let full = waiting >= CHUNK_BYTES as u64;
        if upload.sent > 0 && !full && !now.closed && Instant::now() < gather_until {
            tokio::select! {
                () = sleep_until(gather_until) => {}
                changed = end.changed() => if changed.is_err() { sleep_until(gather_until).await },
            }
            continue;
        }
        upload.send(now.length).await?;
        last_sent = Instant::now();
        gather = (gather * 2).min(GATHER_MOST);
    }
}

struct Upload<'u> {
    store: &'u dyn LogStore,
    spool: &'u SpoolReader,
    /// Bytes that the coordinator keeps, as far as is known.
    sent: u64,
    /// Bytes that went into the hash. Never less than `sent`, except after a restart.
    hashed: u64,
    hash: Sha256,
    buffer: Vec<u8>,
}

impl Upload<'_> {
    async fn send(&mut self, length: u64) -> Result<(), UploadError> {
        let count = (length - self.sent).min(CHUNK_BYTES as u64) as usize;
        self.spool.read(self.sent, count, &mut self.buffer).map_err(UploadError::Spool)?;
        // The coordinator takes whole records only. The longest is far shorter than a chunk.
        let whole = whole_prefix(&self.buffer);
        if whole == 0 && count > 0 {
            return Err(UploadError::Spool(io::ErrorKind::InvalidData.into()));
        }
        self.buffer.truncate(whole);
        if self.sent <= self.hashed {
            // A coordinator that lost its last bytes gets them again; they are in the hash already.
            let known = ((self.hashed - self.sent) as usize).min(self.buffer.len());
            self.hash.update(&self.buffer[known..]);
            self.hashed += (self.buffer.len() - known) as u64;
        }
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        self.sent = self.append(bytes.clone(), length).await?;
        // One buffer serves all chunks, unless the client still holds it.
        self.buffer = Vec::from(bytes);
        Ok(())
    }

    async fn append(&self, bytes: Bytes, held: u64) -> Result<u64, UploadError> {
        let mut backoff = Backoff::default();
        loop {
            match self.store.append(self.sent, bytes.clone()).await {
                Ok(kept) if kept > held => return Err(UploadError::Shortened { kept, held }),
                Ok(kept) => return Ok(kept),
                Err(error) if error.is_temporary() => {
                    tracing::debug!(error = %error, "log bytes wait for the coordinator");
                    sleep(backoff.next()).await;
                }
                Err(error) => return Err(UploadError::Refused(error)),
            }
        }
    }

    /// Brings the hash up to the end of what an earlier process of this worker had sent.
    async fn hash_rest(&mut self, length: u64) -> Result<(), UploadError> {
        while self.hashed < length {
            let count = (length - self.hashed).min(CHUNK_BYTES as u64) as usize;
            self.spool.read(self.hashed, count, &mut self.buffer).map_err(UploadError::Spool)?;
            if self.buffer.is_empty() {
                return Err(UploadError::Spool(io::ErrorKind::UnexpectedEof.into()));
            }
            self.hash.update(&self.buffer);
            self.hashed += self.buffer.len() as u64;
            // Half a gibibyte takes seconds, in which leases have to be renewed.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn finish(mut self, length: u64) -> Result<LogFinish, UploadError> {
        self.hash_rest(length).await?;
        let finish = LogFinish { length, sha256: format!("{:x}", self.hash.clone().finalize()) };
        let mut backoff = Backoff::default();
        loop {
            match self.store.finish(&finish).await {
                Ok(()) => return Ok(finish),
                Err(error) if error.is_temporary() => sleep(backoff.next()).await,
                Err(error) => return Err(UploadError::Refused(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::Spool;
    use async_trait::async_trait;
    use buildyard_types::Timestamp;
    use buildyard_types::log::{Record, RecordKind};
    use std::sync::Mutex;

    /// Keeps a log as the coordinator does, and fails as it is told to.
    #[derive(Default)]
    struct Kept {
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        bytes: Vec<u8>,
        calls: Vec<(u64, usize)>,
        finished: Option<LogFinish>,
        /// Calls that are carried out, but whose answer is lost.
        lost_answers: u32,
        /// Calls that fail before anything is done.
        failing: u32,
        stale: bool,
    }

    fn away() -> ClientError {
        ClientError::Unavailable { doing: "send log bytes", detail: "away".into() }
    }

    #[async_trait]
    impl LogStore for Kept {
        async fn append(&self, offset: u64, bytes: Bytes) -> Result<u64, ClientError> {
            let mut state = self.state.lock().unwrap();
            state.calls.push((offset, bytes.len()));
            assert_eq!(whole_prefix(&bytes), bytes.len(), "the coordinator refuses a cut record");
            if state.stale {
                return Err(ClientError::Conflict {
                    doing: "send",
                    code: "stale".into(),
                    detail: String::new(),
                });
            }
            if state.failing > 0 {
                state.failing -= 1;
                return Err(away());
            }
            if offset == state.bytes.len() as u64 {
                state.bytes.extend_from_slice(&bytes);
            }
            if state.lost_answers > 0 {
                state.lost_answers -= 1;
                return Err(away());
            }
            Ok(state.bytes.len() as u64)
        }

        async fn finish(&self, finish: &LogFinish) -> Result<(), ClientError> {
            let mut state = self.state.lock().unwrap();
            if state.failing > 0 {
                state.failing -= 1;
                return Err(away());
            }
            state.finished = Some(finish.clone());
            Ok(())
        }
    }

    struct Case {
        _temp: tempfile::TempDir,
        spool: Spool,
        reader: SpoolReader,
        end: watch::Sender<SpoolEnd>,
        kept: Kept,
    }

    impl Case {
        fn new() -> Self {
            let temp = tempfile::tempdir().unwrap();
            let spool = Spool::open(temp.path()).unwrap();
            let reader = spool.reader().unwrap();
            Self {
                _temp: temp,
                spool,
                reader,
                end: watch::channel(SpoolEnd::default()).0,
                kept: Kept::default(),
            }
        }

        fn print(&mut self, count: usize) {
            let payload = vec![b'x'; count];
            let record = Record { kind: RecordKind::Stdout, step: 0, at: Timestamp(1), payload: &payload };
            self.spool.append(&record).unwrap();
            let length = self.spool.commit(1).unwrap();
            self.end.send_modify(|end| end.length = length);
        }

        fn close(&self) {
            self.end.send_modify(|end| end.closed = true);
        }

        fn all(&self) -> Vec<u8> {
            let mut bytes = Vec::new();
            self.reader.read(0, self.spool.length() as usize, &mut bytes).unwrap();
            bytes
        }

        async fn upload(&self, resumed: bool) -> Result<LogFinish, UploadError> {
            upload(&self.kept, &self.reader, self.end.subscribe(), resumed).await
        }

        fn assert_whole(&self, finish: LogFinish) {
            let state = self.kept.state.lock().unwrap();
            assert_eq!(state.bytes, self.all());
            assert_eq!(finish.length, state.bytes.len() as u64);
            assert_eq!(finish.sha256, format!("{:x}", Sha256::digest(&state.bytes)));
            assert_eq!(state.finished.as_ref(), Some(&finish));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_log_goes_in_chunks_and_is_closed_with_its_hash() {
        let mut case = Case::new();
        case.print(2 * CHUNK_BYTES + 17);
        case.close();
        let finish = case.upload(false).await.unwrap();
        case.assert_whole(finish);
        let calls = case.kept.state.lock().unwrap().calls.clone();
        assert_eq!(calls.len(), 3);
        assert!(calls.iter().all(|(_, length)| *length <= CHUNK_BYTES));
    }

    #[tokio::test(start_paused = true)]
    async fn lost_answers_and_an_absent_coordinator_double_and_lose_nothing() {
        let mut case = Case::new();
        case.print(CHUNK_BYTES + 100);
        case.close();
        {
            let mut state = case.kept.state.lock().unwrap();
            (state.failing, state.lost_answers) = (3, 2);
        }
        let finish = case.upload(false).await.unwrap();
        case.assert_whole(finish);
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_log_is_closed_too() {
        let case = Case::new();
        case.close();
        let finish = case.upload(false).await.unwrap();
        assert_eq!(finish.length, 0);
        case.assert_whole(finish);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_bytes_go_at_once_and_later_ones_in_company() {
        let mut case = Case::new();
        case.print(5);
        let length = case.spool.length();
        let (first, rest) = {
            let mut sending = std::pin::pin!(upload(&case.kept, &case.reader, case.end.subscribe(), false));
            // Not a moment of the paused clock passes.
            let polled = futures_util::poll!(sending.as_mut());
            assert!(polled.is_pending());
            let first = case.kept.state.lock().unwrap().calls.clone();
            for _ in 0..20 {
                let record = Record { kind: RecordKind::Stdout, step: 0, at: Timestamp(1), payload: b"more" };
                case.spool.append(&record).unwrap();
                let length = case.spool.commit(1).unwrap();
                case.end.send_modify(|end| end.length = length);
                assert!(futures_util::poll!(sending.as_mut()).is_pending());
            }
            tokio::time::advance(GATHER_FIRST * 2).await;
            assert!(futures_util::poll!(sending.as_mut()).is_pending());
            (first, case.kept.state.lock().unwrap().calls[1..].to_vec())
        };
        assert_eq!(first, [(0, length as usize)]);
        assert_eq!(rest, [(length, (case.spool.length() - length) as usize)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_steady_log_goes_in_ten_calls_a_second() {
        let mut case = Case::new();
        case.print(5);
        {
            let mut sending = std::pin::pin!(upload(&case.kept, &case.reader, case.end.subscribe(), false));
            for _ in 0..6_000 {
                let record = Record { kind: RecordKind::Stdout, step: 0, at: Timestamp(1), payload: b"more" };
                case.spool.append(&record).unwrap();
                let length = case.spool.commit(1).unwrap();
                case.end.send_modify(|end| end.length = length);
                assert!(futures_util::poll!(sending.as_mut()).is_pending());
                tokio::time::advance(Duration::from_millis(10)).await;
            }
        }
        let calls = case.kept.state.lock().unwrap().calls.len();
        assert!((500..=610).contains(&calls), "{calls} calls in a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn a_resumed_upload_sends_only_what_is_missing_and_hashes_all() {
        let mut case = Case::new();
        // With its header the first record takes 2,000 bytes.
        case.print(1_984);
        case.print(3_000);
        let half = case.all()[..2_000].to_vec();
        case.kept.state.lock().unwrap().bytes = half;
        case.close();
        let finish = case.upload(true).await.unwrap();
        case.assert_whole(finish);
        let sent: usize = case.kept.state.lock().unwrap().calls.iter().map(|(_, length)| length).sum();
        assert_eq!(sent as u64, case.spool.length() - 2_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stale_fence_ends_it() {
        let mut case = Case::new();
        case.print(5);
        case.kept.state.lock().unwrap().stale = true;
        let error = case.upload(false).await.unwrap_err();
        assert!(matches!(error, UploadError::Refused(ClientError::Conflict { .. })), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_spool_that_lost_its_end_in_a_power_cut_is_named() {
        let mut case = Case::new();
        case.print(5);
        case.kept.state.lock().unwrap().bytes = vec![0; 500];
        case.close();
        let error = case.upload(true).await.unwrap_err();
        assert!(matches!(error, UploadError::Shortened { kept: 500, .. }), "{error}");
    }
}
