//! What the coordinator tells people and programs: the JSON of `/api/v1`.
//!
//! These are views. The scheduler's own types are converted into them at the edge, so that either can change
//! without the other.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{AttemptId, Fence, JobId, RunId, WorkerId};
use crate::job::Diagnostic;
use crate::label::Labels;
use crate::outcome::{Outcome, Verdict};
use crate::time::{Millis, Timestamp};
use crate::worker::{ArtifactFile, Capacity, StepReport, Usage};

macro_rules! words {
    ($(#[doc = $what:literal])+ $name:ident { $(#[doc = $doc:literal] $word:ident = $text:literal,)+ }) => {
        $(#[doc = $what])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $(#[doc = $doc] #[serde(rename = $text)] $word,)+ }

        impl $name {
            /// The word as it stands in the JSON.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$word => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// Where a run is.
    RunState {
        /// On record; its file is not read yet.
        Received = "received",
        /// It will not be run as it is written.
        Refused = "refused",
        /// Somebody has to allow it.
        AwaitingApproval = "awaiting_approval",
        /// Its jobs wait and run.
        Active = "active",
        /// Nothing will happen to it any more.
        Finished = "finished",
    }
}

words! {
    /// Where a job is.
    JobState {
        /// A gate is closed.
        Waiting = "waiting",
        /// No worker has it.
        Queued = "queued",
        /// A worker prepares it.
        Assigned = "assigned",
        /// Its steps run.
        Running = "running",
        /// It was told to stop.
        Stopping = "stopping",
        /// It ended.
        Finished = "finished",
    }
}

words! {
    /// Where an attempt is.
    AttemptState {
        /// A worker prepares it.
        Assigned = "assigned",
        /// Its steps run.
        Running = "running",
        /// It was told to stop.
        Stopping = "stopping",
        /// It ended; something of it is still on its worker.
        Ended = "ended",
        /// Nothing of it is left.
        Removed = "removed",
    }
}

words! {
    /// Whether a worker answers. Computed, never stored.
    Liveness {
        /// Heard of within its lease.
        Fresh = "fresh",
        /// Not heard of for longer.
        Quiet = "quiet",
        /// Not heard of since the coordinator started, which is less than a lease ago.
        Unknown = "unknown",
    }
}

/// An error, after RFC 9457 (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable code that programs may match: `run-not-found`.
    #[serde(rename = "type")]
    pub code: String,
    /// Short and the same for every problem of this code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was attempted, on which id or path.
    pub detail: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Names this answer in the coordinator's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// Starts a run. Sending the same key again answers with the run that the first call made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerRequest {
    /// Path of a git repository on the coordinator's host.
    pub repository: String,
    /// Branch, tag or commit; the repository's HEAD by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The client's own key for this request, at most 64 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// The runs that a trigger made: one for each pipeline file, `pipeline.toml` first, the others by name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TriggerResponse {
    /// Never empty.
    pub runs: Vec<RunView>,
}

/// One execution of a pipeline.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunView {
    /// `run-42`
    pub id: RunId,
    /// The pipeline's name; the file's path until the file has been read.
    pub pipeline: String,
    /// The file that defined it, as a path in the repository.
    pub file: String,
    /// What people call the repository.
    pub repository: String,
    /// Full hexadecimal id.
    pub commit: String,
    /// The branch or tag that was asked for.
    pub ref_name: Option<String>,
    /// Where it is.
    pub state: RunState,
    /// Its verdict once finished or refused.
    pub verdict: Option<Verdict>,
    /// One sentence: what it is doing, or how it ended and whose fault it was.
    pub sentence: String,
    /// Why the file was refused; empty otherwise.
    pub diagnostics: Vec<Diagnostic>,
    /// How images were admitted: `open` until there is a gate.
    pub images: String,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Its jobs in file order; left out in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<JobView>,
}

/// A page of runs, newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunList {
    /// At most as many as were asked for.
    pub runs: Vec<RunView>,
    /// Hand this to `before` for the next page; absent on the last.
    pub next: Option<RunId>,
}

/// A node of a run's graph.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobView {
    /// `job-42-3`
    pub id: JobId,
    /// Its name in the file.
    pub name: String,
    /// Where it is.
    pub state: JobState,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// One sentence: why it waits, where it runs, how it ended.
    pub sentence: String,
    /// Names of the jobs it waits for.
    pub needs: Vec<String>,
    /// The image as the file names it.
    pub image: String,
    /// What it asks of its worker.
    pub labels: String,
    /// When the first attempt started its first step.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Its placements, oldest first.
    pub attempts: Vec<AttemptView>,
}

/// One placement of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttemptView {
    /// `att-42-3-1`
    pub id: AttemptId,
    /// Where it was placed.
    pub worker: WorkerId,
    /// That worker's name.
    pub worker_name: String,
    /// The fence it carries.
    pub fence: Fence,
    /// Where it is.
    pub state: AttemptState,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// When it was placed.
    pub placed_at: Timestamp,
    /// When its first step began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Its steps that began.
    pub steps: Vec<StepReport>,
    /// What it used.
    pub usage: Usage,
    /// Things worth knowing that changed nothing.
    pub notes: Vec<String>,
    /// Config digest of the image that ran.
    pub image_digest: Option<String>,
    /// Bytes of its log that are kept.
    pub log_length: u64,
    /// Whether the log is complete.
    pub log_finished: bool,
}

/// A host that runs attempts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerView {
    /// `wkr-…`
    pub id: WorkerId,
    /// The name that people see.
    pub name: String,
    /// Whether it answers.
    pub liveness: Liveness,
    /// When it was last heard of; absent if not since the coordinator started.
    pub last_heard_at: Option<Timestamp>,
    /// Whether it takes new attempts.
    pub cordoned: bool,
    /// Why it takes none at the moment.
    pub unfit: Option<String>,
    /// What it offers.
    pub labels: Labels,
    /// What attempts may use together.
    pub capacity: Capacity,
    /// What they use now.
    pub used: Capacity,
    /// Attempts it holds.
    pub attempts: Vec<AttemptId>,
    /// The images that its engine holds.
    pub images: Vec<String>,
    /// Version of its program.
    pub version: String,
}

/// An image that workers hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    /// As workers report it.
    pub name: String,
    /// How it was admitted: `open` until there is a gate.
    pub admission: String,
    /// Names of the workers that hold it.
    pub workers: Vec<String>,
}

/// Asks for a one-time token.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// Pools that the worker will belong to.
    #[serde(default)]
    pub pools: Vec<String>,
    /// How long the token can be used; an hour by default, a week at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_ms: Option<Millis>,
}

/// A one-time token. It is shown this once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InviteResponse {
    /// For `buildyard serve worker --token-file`.
    pub token: String,
    /// When it stops being good.
    pub expires_at: Timestamp,
}

/// Something that happened, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Grows by one with each event of the farm.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// Stable name of the kind: `job.finished`.
    pub kind: String,
    /// The run it belongs to.
    pub run: Option<RunId>,
    /// The job it belongs to.
    pub job: Option<JobId>,
    /// The worker it belongs to.
    pub worker: Option<WorkerId>,
    /// What happened.
    pub sentence: String,
}

/// An artifact that was kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArtifactView {
    /// The job that made it.
    pub job: JobId,
    /// That job's name.
    pub job_name: String,
    /// The attempt that made it.
    pub attempt: AttemptId,
    /// The artifact's name.
    pub name: String,
    /// Its files.
    pub files: Vec<ArtifactFile>,
    /// All of them together.
    pub size: u64,
    /// When it will be dropped.
    pub expires_at: Timestamp,
}

/// Why something is as it is: one sentence first, then the rest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explanation {
    /// What was asked about.
    pub subject: String,
    /// The answer in one sentence.
    pub sentence: String,
    /// Whose fault it is, where something failed: `job`, `farm` or `nobody`.
    pub fault: Option<crate::outcome::Fault>,
    /// The facts behind the sentence, most telling first.
    pub details: Vec<String>,
    /// What to do next; commands are written as they are typed.
    pub next: Vec<String>,
}

/// The farm at a glance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusView {
    /// Version of the coordinator.
    pub version: String,
    /// Starts of the coordinator on this database.
    pub epoch: u64,
    /// Time since the coordinator started.
    pub uptime_ms: Millis,
    /// Workers that were heard of within their lease.
    pub workers_fresh: u32,
    /// All that are known.
    pub workers_known: u32,
    /// Runs that are not finished.
    pub runs_active: u32,
    /// Jobs waiting for their gates.
    pub jobs_waiting: u32,
    /// Jobs waiting for a worker.
    pub jobs_queued: u32,
    /// Jobs on a worker.
    pub jobs_running: u32,
    /// Bytes free where the coordinator keeps its data.
    pub disk_free: u64,
    /// What needs attention, each in one sentence.
    pub warnings: Vec<String>,
}

/// One record of a log, as sent by server-sent events. The event's id is the offset behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// `stdout`, `stderr`, `step_start`, `step_end` or `note`.
    pub kind: String,
    /// The step, counted from 0.
    pub step: u16,
    /// When the worker saw it.
    pub at: Timestamp,
    /// Its text; bytes that are no UTF-8 are replaced. The raw log keeps them.
    pub text: String,
}
