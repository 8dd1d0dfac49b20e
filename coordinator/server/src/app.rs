//! What every handler may use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use buildyard_store::{Store, Token, TokenKind};
use buildyard_types::{ByteSize, Epoch, Timestamp, WorkerId};
use rand::RngCore;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::blobs::{Blobs, hex, sha256_hex};
use crate::clock::Clock;
use crate::config::CoordinatorConfig;
use crate::data_dir::{DataDir, DiskSpace};
use crate::driver::DriverHandle;
use crate::error::{ApiError, ApiResult, Code};
use crate::logs::{LogReader, LogSignals, LogWriter};
use crate::metrics::Metrics;
use crate::source::Mirrors;
use crate::turns::Turns;

/// Git transfers to workers at one time, and to one of them; each is a process that packs objects.
const TRANSFERS: (usize, usize) = (16, 8);
/// Contents of artifacts received at one time, and from one worker: each holds a megabyte.
const UPLOADS: (usize, usize) = (32, 8);
/// Logs are taken down to this part of the free space that new work needs: what runs already is to end well.
const LOGS_PART: u64 = 4;

/// The coordinator as handlers see it.
pub(crate) struct App {
    pub(crate) config: CoordinatorConfig,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) driver: DriverHandle,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) logs: LogWriter,
    pub(crate) mirrors: Arc<Mirrors>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) epoch: Epoch,
    pub(crate) started: Timestamp,
    /// The newest event that was on record at the start.
    pub(crate) newest_at_start: Option<Timestamp>,
    pub(crate) dir: Arc<DataDir>,
    /// True from the moment at which the process begins to end.
    pub(crate) closing: watch::Receiver<bool>,
    /// Sequence number of the newest event.
    pub(crate) events: watch::Receiver<u64>,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) transfers: Turns,
    pub(crate) uploads: Turns,
    /// Bytes that uploads under way still have to bring.
    pub(crate) promised: Arc<AtomicU64>,
}

/// A worker's git asks once, and its attempt is over when it is refused: it waits nearly as long as the worker lets a
/// fetch take.
const TRANSFER_WAIT: Duration = Duration::from_secs(14 * 60);
/// Uploads are asked for again.
const UPLOAD_WAIT: Duration = Duration::from_secs(60);

/// Bounds on work that handlers start.
pub(crate) fn bounds(config: &CoordinatorConfig) -> (Arc<Semaphore>, Turns, Turns) {
    let streams = Semaphore::new(config.limits.streams as usize);
    let transfers = Turns::new("git transfers", TRANSFERS.0, TRANSFERS.1, TRANSFER_WAIT);
    (Arc::new(streams), transfers, Turns::new("uploads", UPLOADS.0, UPLOADS.1, UPLOAD_WAIT))
}

/// Room on the disk for an upload. What has arrived is no promise any more: it is seen in the free space.
pub(crate) struct Promise {
    promised: Arc<AtomicU64>,
    left: u64,
}

impl Promise {
    /// So many bytes have arrived.
    pub(crate) fn keep(&mut self, bytes: u64) {
        let kept = bytes.min(self.left);
        self.left -= kept;
        self.promised.fetch_sub(kept, Ordering::Relaxed);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.promised.fetch_sub(self.left, Ordering::Relaxed);
    }
}

impl App {
    pub(crate) fn signals(&self) -> &LogSignals {
        &self.logs.signals
    }

    pub(crate) fn log_reader(&self, attempt: buildyard_types::AttemptId, from: u64) -> LogReader {
        LogReader::new(self.store.clone(), self.blobs.clone(), attempt, from)
    }

    /// The right to keep a stream open.
    pub(crate) fn stream_permit(&self) -> ApiResult<OwnedSemaphorePermit> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            let open = self.config.limits.streams;
            ApiError::new(Code::TooManyStreams, format!("{open} streams are open"))
                .hint("raise limits.streams, or read without `follow`")
                .retry_after(10)
        })
    }

    /// Why the disk is too full for new work, if it is.
    pub(crate) fn disk_low(&self) -> Option<String> {
        self.lacks_room(0, 1)
    }

    /// Why the disk is too full for logs of what runs already.
    pub(crate) fn disk_full(&self) -> Option<String> {
        self.lacks_room(0, LOGS_PART)
    }

    /// Promises room for an upload, so that uploads at once do not count on the same free space.
    pub(crate) fn promise(&self, bytes: u64) -> ApiResult<Promise> {
        let before = self.promised.fetch_add(bytes, Ordering::Relaxed);
        let promise = Promise { promised: self.promised.clone(), left: bytes };
        match self.lacks_room(before.saturating_add(bytes), 1) {
            None => Ok(promise),
            Some(why) => Err(disk_low(why)),
        }
    }

    /// Why there is not this part of the least free space beyond what is promised.
    fn lacks_room(&self, promised: u64, part: u64) -> Option<String> {
        let seen = match self.dir.disk_space() {
            Ok(seen) => seen,
            Err(error) => return Some(crate::error::chain(&error)),
        };
        let least = ByteSize(self.least_free(seen).0 / part);
        (seen.free.0.saturating_sub(promised) < least.0).then(|| {
            let dir = self.config.data_dir.display();
            let promised = match promised {
                0 => String::new(),
                some => format!(" ({} of them promised to uploads)", mib(ByteSize(some))),
            };
            format!("{} are free at {dir}{promised}; {} are needed", mib(seen.free), mib(least))
        })
    }

    /// Free space below which nothing new is accepted.
    pub(crate) fn least_free(&self, seen: DiskSpace) -> ByteSize {
        let retention = &self.config.retention;
        let share = seen.total.0 / 100 * u64::from(retention.disk_free_min_percent);
        // On a small file system one GiB may be more than there is; the share decides there.
        let absolute = retention.disk_free_min.0.min(seen.total.0 / 2);
        ByteSize(absolute.max(share))
    }
}

/// Waits until the process begins to end. A sender that is gone means the same.
pub(crate) async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Waiting helps: retention drops what is old, and people are told.
pub(crate) fn disk_low(why: String) -> ApiError {
    ApiError::new(Code::DiskLow, why).retry_after(30)
}

fn mib(size: ByteSize) -> String {
    format!("{} MiB", size.0 >> 20)
}

/// A new secret of 256 bits; the prefix tells people what it is for, and scanners that it is one.
pub(crate) fn new_secret(prefix: &str) -> String {
    let mut random = [0_u8; 32];
    rand::rng().fill_bytes(&mut random);
    format!("{prefix}-{}", hex(&random))
}

/// How a secret is kept and looked up. It is random and long, so a plain hash is enough.
pub(crate) fn secret_hash(secret: &str) -> String {
    sha256_hex(secret.as_bytes())
}

/// The token that came with the request.
async fn token_of(parts: &Parts, app: &App) -> ApiResult<Token> {
    let missing = || {
        ApiError::new(Code::Unauthorized, "the request carries no bearer token")
            .hint("send `Authorization: Bearer …`; the administrator's token is in the coordinator's folder")
    };
    let header = parts.headers.get(AUTHORIZATION).ok_or_else(missing)?;
    let secret = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).ok_or_else(missing)?;
    // Looked up by its hash: no comparison here whose time could tell something.
    let found = app.store.token(&secret_hash(secret.trim())).await?;
    let good = |token: &Token| token.expires_at.is_none_or(|end| app.clock.now() < end);
    found
        .filter(good)
        .ok_or_else(|| ApiError::new(Code::Unauthorized, "the token is not known here, or too old"))
}

/// An administrator's request.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    /// The token's name, for the audit.
    pub(crate) name: String,
}

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let token = token_of(parts, app).await?;
        match token.kind {
            TokenKind::Admin => Ok(Self { name: token.name }),
            TokenKind::Worker(_) | TokenKind::Invite { .. } => {
                Err(ApiError::new(Code::Forbidden, "a worker's credential is good for its own calls only"))
            }
        }
    }
}

/// A worker's request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FromWorker(pub(crate) WorkerId);

impl FromRequestParts<Arc<App>> for FromWorker {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        match token_of(parts, app).await?.kind {
            TokenKind::Worker(worker) => Ok(Self(worker)),
            TokenKind::Admin | TokenKind::Invite { .. } => {
                Err(ApiError::new(Code::Forbidden, "only workers may call this, with their own credential"))
            }
        }
    }
}
