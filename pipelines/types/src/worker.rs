//! What a worker and the coordinator say to each other.
//!
//! The protocol is level-triggered: each `sync` says what the worker holds, and the answer says what it should
//! begin, stop and forget. Losing, repeating or reordering calls changes nothing. The coordinator never opens
//! a connection to a worker.
//!
//! | call | meaning |
//! |---|---|
//! | `POST /api/worker/v1/enrol` | a one-time token becomes an identity and a credential |
//! | `POST /api/worker/v1/sync` | held until there is something to do, for as long as the worker says, and for [`longest_hold`] at most |
//! | `GET  /api/worker/v1/source/{run}/…` | the run's commit, as git's smart HTTP protocol |
//! | `PATCH /api/worker/v1/attempts/{attempt}/log?offset=N` | log bytes; the answer is the length that is kept |
//! | `POST /api/worker/v1/attempts/{attempt}/log/finish` | size and hash of the whole log |
//! | `PUT  /api/worker/v1/attempts/{attempt}/blobs/{sha256}` | content of one artifact file |
//! | `PUT  /api/worker/v1/attempts/{attempt}/artifacts/{name}` | the list of an artifact's files |
//!
//! Calls below `attempts/` carry the header [`FENCE_HEADER`]; a stale fence is answered with 409 and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::{AttemptId, Fence, WorkerId};
use crate::job::JobSpec;

use crate::outcome::Outcome;
use crate::size::ByteSize;
use crate::time::Millis;

/// Version of this protocol. Coordinator and workers have to speak the same.
pub const PROTOCOL: u32 = 1;
/// Carries the fence of the attempt that a write speaks of.
pub const FENCE_HEADER: &str = "buildyard-fence";

/// The longest that a call is held under a lease, whatever the worker asks for: a third of it, at most 30 s.
pub fn longest_hold(lease_ms: Millis) -> Millis {
    Millis((lease_ms.0 / 3).min(30_000))
}

/// What a worker has to give. Facts are found by the worker; pools are not its to claim.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Offer {
    /// What the worker found out about its host: `os`, `arch`, `distro`, …
    pub facts: BTreeMap<String, String>,
    /// What attempts may use together.
    pub capacity: Capacity,
    /// Version of the worker program.
    pub version: String,
    /// Optional parts of the protocol that the worker speaks.
    pub capabilities: BTreeSet<String>,
    /// The images that its engine holds, by name; at most 500 of them.
    pub images: Vec<String>,
    /// Why the worker takes no attempts at the moment, in one sentence: engine away, disk low.
    pub unfit: Option<String>,
}

/// What the attempts of one worker may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// Attempts at one time.
    pub slots: u32,
    /// In thousandths of a processor.
    pub cpu_millis: u64,
    /// Memory.
    pub memory: ByteSize,
    /// Disk for workspaces and container roots.
    pub disk: ByteSize,
}

/// Asks for an identity.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// Version of the protocol that the worker speaks.
    pub protocol: u32,
    /// The one-time token of `buildyard workers invite`.
    pub token: String,
    /// The name that people will see; the host's name by default.
    pub name: String,
    /// What the worker has to give.
    pub offer: Offer,
}

/// An identity. The credential is shown this once; the coordinator keeps only its hash.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrolResponse {
    /// Who the worker is from now on.
    pub worker: WorkerId,
    /// Bearer token of all its later calls.
    pub credential: String,
}

/// One start of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId {
    /// Grows with each start.
    pub number: u64,
    /// Drawn at each start. Tells apart two workers that count on from one copied data folder.
    pub nonce: u64,
}

impl SessionId {
    /// Whether a call of `other` may follow one of this session: it is the same, or of a later start.
    pub fn admits(self, other: SessionId) -> bool {
        self == other || self.number < other.number
    }
}

/// What the worker holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRequest {
    /// Version of the protocol that the worker speaks.
    pub protocol: u32,
    /// The start that this call is of. A session that does not follow the last one is answered with 409: another
    /// one took over.
    pub session: SessionId,
    /// Grows with each call of a session. An older call is answered at once when a newer one arrives.
    pub sequence: u64,
    /// How long the call may be held. The worker cannot wait for its answer for longer than its lease bears.
    pub hold_ms: Millis,
    /// What the worker has to give now.
    pub offer: Offer,
    /// Every attempt that it has not been told to forget.
    pub attempts: Vec<AttemptReport>,
}

/// One attempt as its worker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptReport {
    /// Which.
    pub attempt: AttemptId,
    /// The fence it was ordered with.
    pub fence: Fence,
    /// How far it is.
    pub state: AttemptProgress,
}

/// How far an attempt is on its worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum AttemptProgress {
    /// Workspace, checkout, image and container are being made.
    Preparing,
    /// Its first step began.
    Running {
        /// How long ago, by the worker's monotonic clock.
        for_ms: Millis,
    },
    /// It was told to stop and has not ended.
    Stopping,
    /// Its steps have ended and nothing of it runs any more; the rest of its log and its artifacts are on their way
    /// to the coordinator. No limit of the job applies to that.
    Sending,
    /// It ended, and its log and artifacts are with the coordinator.
    Ended {
        /// How it ended.
        report: Box<EndReport>,
        /// Whether container, network, volumes and workspace are gone.
        removed: bool,
    },
}

/// How an attempt ended, as its worker saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndReport {
    /// The end.
    pub outcome: Outcome,
    /// The steps that began, in order.
    pub steps: Vec<StepReport>,
    /// What it used.
    pub usage: Usage,
    /// Things worth knowing that changed nothing: "a child was killed for lack of memory".
    pub notes: Vec<String>,
    /// The image that ran, by content: its config digest. `None` if none was started.
    pub image_digest: Option<String>,
}

/// How one step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepReport {
    /// Its name.
    pub name: String,
    /// Exit code; 128 + signal where a signal ended it; `None` where it was cut off.
    pub exit_code: Option<i32>,
    /// From its start to its end.
    pub duration_ms: Millis,
}

/// What an attempt used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time of all its steps.
    pub cpu_ms: Millis,
    /// Largest resident size of one process.
    pub peak_rss: ByteSize,
    /// Bytes of log, before any cap.
    pub log_bytes: u64,
    /// Time from the order to the first step, in parts: workspace, checkout, container.
    pub prepare_ms: Millis,
}

/// What the worker should do. Attempts that it holds and that are not named here go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncResponse {
    /// The worker's right to its attempts ends this long after it *sent* the call that this answers.
    pub lease_ms: Millis,
    /// Attempts to begin.
    pub run: Vec<AttemptOrder>,
    /// Attempts to end.
    pub stop: Vec<StopOrder>,
    /// Attempts whose end is on record: the worker may drop what it knows of them.
    pub forget: Vec<AttemptId>,
}

/// An attempt to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptOrder {
    /// Which.
    pub attempt: AttemptId,
    /// Goes with every write about it.
    pub fence: Fence,
    /// What to do.
    pub spec: JobSpec,
    /// What to check out.
    pub source: SourceRef,
    /// The pipeline's name, for `BUILDYARD_PIPELINE`.
    pub pipeline: String,
    /// Most bytes that the log may hold.
    pub log_cap: ByteSize,
}

/// A commit of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRef {
    /// What people call the repository: an URL or a path. Only shown, never opened by a worker.
    pub repository: String,
    /// Full hexadecimal id.
    pub commit: String,
    /// The branch or tag that was built: `refs/heads/main`. Data only.
    pub ref_name: Option<String>,
}

/// An attempt to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopOrder {
    /// Which.
    pub attempt: AttemptId,
    /// The fence it was ordered with.
    pub fence: Fence,
    /// Why.
    pub cause: StopCause,
    /// Time between TERM and KILL.
    pub grace_ms: Millis,
}

/// Why an attempt has to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum StopCause {
    /// Somebody asked for it.
    Cancelled {
        /// Who, as a clause: "by admin".
        by: String,
    },
    /// The job's time limit passed and the worker did not end it by itself.
    TimedOut {
        /// The limit.
        after_ms: Millis,
    },
    /// It is no longer the worker's: another attempt has taken its place. Its writes are refused.
    Revoked,
}

/// Answer to log bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLength {
    /// Bytes that the coordinator has, all of them synced. The next call starts here.
    pub length: u64,
}

/// The end of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFinish {
    /// Bytes of the whole log.
    pub length: u64,
    /// SHA-256 of the whole log, in hexadecimal.
    pub sha256: String,
}

/// The files of one artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactManifest {
    /// Sorted by path.
    pub files: Vec<ArtifactFile>,
    /// How long to keep them.
    pub keep_ms: Millis,
}

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactFile {
    /// Below the workspace, with `/`, without `.` or `..`.
    pub path: String,
    /// Its length.
    pub size: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
    /// Whether its owner may execute it.
    pub executable: bool,
}
