//! How an attempt ended, from what was seen of it. Pure: values in, values out.
//!
//! What a job can bring about from inside its container never becomes [`Outcome::Infra`]. And what the farm did to
//! it never becomes a failure of the job.

use buildyard_init::protocol::{End, EndWhy, SpawnFault, StepHow};
use buildyard_types::job::Shell;
use buildyard_types::outcome::{InfraCause, TimeLimit};
use buildyard_types::worker::{AttemptOrder, StopCause};
use buildyard_types::{Millis, Outcome};

use super::hint::LastWords;
use crate::artifacts::ArtifactError;
use crate::client::ClientError;
use crate::engine::{EngineError, Exit};
use crate::image::ImageError;
use crate::network::NetworkError;
use crate::profile::Refusal;
use crate::source::SourceError;
use crate::workspace::WorkspaceError;

/// Exit code of a step that could not be started, after the shells' "found, but cannot be executed".
const CANNOT_START: i32 = 126;
/// What a shell reports, and a container too, when SIGKILL ended it.
const KILLED: i64 = 137;
/// `ENOENT` and `EACCES`: there is no such program, or none that may be run.
const NO_PROGRAM: [i32; 2] = [2, 13];

/// Why the worker told an attempt to end. Travels through init as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The coordinator asked for it.
    Ordered,
    /// The log reached its cap.
    LogCap,
    /// What the job wrote outside its workspace reached the disk limit.
    Disk,
    /// The worker's own disk failed.
    WorkerDisk,
    /// The worker's disk ran out of room, and the job was within its limit.
    HostFull,
    /// init did not end the job at its time limit.
    Overdue,
    /// The job's network could not be kept closed towards the farm.
    Network,
}

impl Reason {
    const ALL: [Reason; 7] = [
        Reason::Ordered,
        Reason::LogCap,
        Reason::Disk,
        Reason::WorkerDisk,
        Reason::Overdue,
        Reason::Network,
        Reason::HostFull,
    ];

    /// The number in init's frames.
    pub fn code(self) -> u8 {
        match self {
            Reason::Ordered => 1,
            Reason::LogCap => 2,
            Reason::Disk => 3,
            Reason::WorkerDisk => 4,
            Reason::Overdue => 5,
            Reason::Network => 6,
            Reason::HostFull => 7,
        }
    }

    /// What a number means.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }
}

/// How the container of an attempt was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Its init said how the job ended.
    Told(End),
    /// It ended without that word.
    Silent {
        /// How.
        exit: Exit,
        /// Whether the engine was started anew since the container was.
        engine_restarted: bool,
    },
    /// The engine no longer knows it.
    Vanished,
}

impl Ending {
    /// Whether the engine saw the kernel kill one of its processes for lack of memory.
    pub(super) fn oom_killed(&self) -> bool {
        match self {
            Ending::Silent { exit, .. } => exit.oom_killed,
            Ending::Told(_) | Ending::Vanished => false,
        }
    }
}

/// What was seen of an attempt that ran.
#[derive(Debug, Clone)]
pub struct Seen<'s> {
    /// What was ordered.
    pub order: &'s AttemptOrder,
    /// How its container was left.
    pub ending: Ending,
    /// How each step ended; `None` for one that has not.
    pub steps: &'s [Option<StepHow>],
    /// What the last of them printed at its end.
    pub words: &'s LastWords,
    /// Whether the kernel killed one of its processes for lack of memory.
    pub oom_killed: bool,
    /// Whether its workspace was full at some time of the step that ended it.
    pub disk_full: bool,
    /// Why the worker told it to end, if it did.
    pub reason: Option<Reason>,
    /// What the coordinator ordered about it.
    pub stop: Option<&'s StopCause>,
    /// Whether the worker killed it because its lease ran out.
    pub fenced: bool,
}

/// An outcome, and things worth knowing beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// How it ended.
    pub outcome: Outcome,
    /// Sentences for people.
    pub notes: Vec<String>,
}

impl From<Outcome> for Judgement {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, notes: Vec::new() }
    }
}

/// Judges an attempt whose container ran.
pub fn judge(seen: &Seen<'_>) -> Judgement {
    match &seen.ending {
        Ending::Told(end) => told(seen, end),
        Ending::Silent { exit, engine_restarted } => silent(seen, exit, *engine_restarted).into(),
        Ending::Vanished => by_worker(seen)
            .unwrap_or_else(|| {
                infra(InfraCause::Engine, "the container was removed while its job ran".to_owned())
            })
            .into(),
    }
}

fn infra(cause: InfraCause, detail: String) -> Outcome {
    Outcome::Infra { cause, detail }
}

/// The worker's own disk was full or failing.
pub fn worker_disk(detail: &str) -> Outcome {
    infra(InfraCause::WorkerDisk, detail.to_owned())
}

/// The outcome of an attempt whose worker heard nothing from the coordinator for too long.
pub fn self_fenced() -> Outcome {
    infra(
        InfraCause::SelfFenced,
        "the worker had no word from the coordinator until its lease ran out".to_owned(),
    )
}

impl Seen<'_> {
    fn step_name(&self, index: usize) -> String {
        let step = self.order.spec.steps.get(index);
        step.map_or_else(|| format!("step {}", index + 1), |step| step.name.clone())
    }

    /// The step that ran last.
    fn last_step(&self) -> Option<String> {
        self.steps.len().checked_sub(1).map(|index| self.step_name(index))
    }

    fn out_of_memory(&self, step: Option<String>) -> Outcome {
        Outcome::OutOfMemory { step, limit: self.order.spec.resources.memory }
    }

    fn disk_quota(&self, step: Option<String>) -> Outcome {
        Outcome::DiskQuota { step, limit: self.order.spec.resources.disk }
    }

    fn job_timed_out(&self) -> Outcome {
        Outcome::TimedOut { limit: TimeLimit::Job, after_ms: self.order.spec.timeout_ms }
    }
}

fn told(seen: &Seen<'_>, end: &End) -> Judgement {
    match end.why {
        EndWhy::Completed => {
            let memory = seen.order.spec.resources.memory;
            let notes = seen.oom_killed.then(|| {
                format!("a process was killed for lack of memory (limit {memory}), but every step passed")
            });
            Judgement { outcome: Outcome::Passed, notes: notes.into_iter().collect() }
        }
        EndWhy::StepFailed { step } => step_failed(seen, usize::from(step)),
        EndWhy::JobTimedOut => seen.job_timed_out().into(),
        EndWhy::StepTimedOut { step } => {
            let index = usize::from(step);
            let limit = seen.order.spec.steps.get(index).and_then(|step| step.timeout_ms);
            let limit = limit.unwrap_or(seen.order.spec.timeout_ms);
            let step = seen.step_name(index);
            Outcome::TimedOut { limit: TimeLimit::Step { step }, after_ms: limit }.into()
        }
        EndWhy::Stopped { cause } => {
            let reason = Reason::from_code(cause).or(seen.reason);
            by_reason(seen, reason.unwrap_or(Reason::Ordered)).into()
        }
        EndWhy::LogCap => Outcome::LogCap { step: seen.last_step(), limit: seen.order.log_cap }.into(),
        EndWhy::Fenced => self_fenced().into(),
    }
}

fn step_failed(seen: &Seen<'_>, index: usize) -> Judgement {
    let step = seen.step_name(index);
    let exit_code = match seen.steps.get(index).copied().flatten() {
        Some(StepHow::SpawnFailed { fault, errno }) => return not_started(seen, index, fault, errno),
        Some(StepHow::Exit(code)) => code,
        Some(StepHow::Signal(signal)) => 128 + signal,
        // Cut off by init, which then would have said so; or its end was lost with a worker.
        Some(StepHow::TimedOut | StepHow::Stopped) | None => KILLED as i32,
    };
    if seen.oom_killed && i64::from(exit_code) == KILLED {
        return seen.out_of_memory(Some(step)).into();
    }
    if seen.disk_full {
        return seen.disk_quota(Some(step)).into();
    }
    let memory = seen.order.spec.resources.memory;
    let note = || format!("a process of step `{step}` was killed for lack of memory (limit {memory})");
    let hint = seen.words.hint(index, exit_code, seen.order.spec.user);
    let notes = seen.oom_killed.then(note).into_iter().chain(hint).collect();
    Judgement { outcome: Outcome::Failed { step, exit_code }, notes }
}

fn not_started(seen: &Seen<'_>, index: usize, fault: SpawnFault, errno: i32) -> Judgement {
    let step = seen.step_name(index);
    let spec = seen.order.spec.steps.get(index);
    let words = std::io::Error::from_raw_os_error(errno);
    let failed = |note: String| Judgement {
        outcome: Outcome::Failed { step: step.clone(), exit_code: CANNOT_START },
        notes: vec![note],
    };
    match fault {
        SpawnFault::Shell if NO_PROGRAM.contains(&errno) => {
            let image = &seen.order.spec.image;
            let reason = match spec.map(|spec| spec.shell) {
                Some(Shell::Bash) => format!(
                    "the image `{image}` has no bash, which step `{step}` asks for; use `shell = \"sh\"` or an image \
                     with bash"
                ),
                Some(Shell::Sh) | None => {
                    format!("the image `{image}` has no /bin/sh, which steps need; use an image with a shell")
                }
            };
            Outcome::Refused { reason }.into()
        }
        SpawnFault::Shell => failed(format!("the shell of step `{step}` could not be started: {words}")),
        SpawnFault::Dir => {
            let dir = spec.map(|spec| spec.dir.clone()).unwrap_or_default();
            failed(format!("step `{step}` could not start in folder `{dir}`: {words}"))
        }
        SpawnFault::Argument => {
            failed(format!("script or variables of step `{step}` cannot be handed to a shell: {words}"))
        }
        // The job's earlier steps can bring this about: all its processes count against one limit.
        SpawnFault::Process => {
            let pids = seen.order.spec.resources.pids;
            failed(format!("step `{step}` got no process of its own (limit {pids}): {words}"))
        }
    }
}

/// What the worker itself did to the attempt, which outweighs how its container looked afterwards.
fn by_worker(seen: &Seen<'_>) -> Option<Outcome> {
    if seen.fenced {
        return Some(self_fenced());
    }
    seen.reason.map(|reason| by_reason(seen, reason))
}

fn by_reason(seen: &Seen<'_>, reason: Reason) -> Outcome {
    match reason {
        Reason::Ordered => stopped(seen.stop),
        Reason::LogCap => Outcome::LogCap { step: seen.last_step(), limit: seen.order.log_cap },
        Reason::Disk => seen.disk_quota(seen.last_step()),
        Reason::WorkerDisk => {
            infra(InfraCause::WorkerDisk, "the worker could not write the job's log to its disk".to_owned())
        }
        Reason::HostFull => infra(
            InfraCause::WorkerDisk,
            "the worker's disk ran out of room while the job was within its limit".to_owned(),
        ),
        Reason::Overdue => seen.job_timed_out(),
        Reason::Network => infra(
            InfraCause::Worker,
            "the rules that keep the job's network away from the farm were gone and could not be set again"
                .to_owned(),
        ),
    }
}

/// The outcome of an attempt that was told to end.
pub fn stopped(stop: Option<&StopCause>) -> Outcome {
    match stop {
        Some(StopCause::Cancelled { by }) => Outcome::Cancelled { by: by.clone() },
        Some(StopCause::TimedOut { after_ms }) => {
            Outcome::TimedOut { limit: TimeLimit::Job, after_ms: *after_ms }
        }
        Some(StopCause::Revoked) => {
            infra(InfraCause::Worker, "the attempt was given to another worker".to_owned())
        }
        // A worker that was restarted meanwhile; the coordinator knows who asked.
        None => Outcome::Cancelled { by: "by the coordinator".to_owned() },
    }
}

/// The container ended and its init had not said how the job ended.
fn silent(seen: &Seen<'_>, exit: &Exit, engine_restarted: bool) -> Outcome {
    if let Some(outcome) = by_worker(seen) {
        return outcome;
    }
    // The kernel may choose init itself when the job fills its memory. That is the job's doing, also when the
    // engine was restarted later.
    if exit.oom_killed || seen.oom_killed {
        return seen.out_of_memory(seen.last_step());
    }
    let code = exit.code;
    let detail = if engine_restarted {
        "the container engine was restarted and the container did not survive it".to_owned()
    } else if code == KILLED {
        "the container was killed from outside the farm".to_owned()
    } else {
        let words = exit.error.as_deref().filter(|words| !words.is_empty());
        let words = words.map(|words| format!(": {words}")).unwrap_or_default();
        format!("the container ended with exit code {code} before its job did{words}")
    };
    infra(InfraCause::Engine, detail)
}

/// Why an attempt did not come as far as its first step.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The policy of this worker, or the image, forbids it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The image could not be had or looked at.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There is no workspace.
    #[error("the workspace could not be made")]
    Workspace(#[from] WorkspaceError),
    /// The commit is not in the workspace.
    #[error("the commit could not be checked out")]
    Source(#[source] SourceError),
    /// The commit does not fit into the workspace.
    #[error("the commit does not fit into the workspace")]
    TooLarge,
    /// The network could not be set up.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The container was not made or started.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A file of the attempt could not be made.
    #[error("could not {doing} {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Init did not answer, or not as it should.
    #[error("{0}")]
    Init(String),
    /// It was told to end before its first step.
    #[error("the attempt was told to end before its first step")]
    Stopped,
    /// A mistake of ours.
    #[error("the worker's own program failed while it prepared the attempt; its log says where")]
    Panicked,
}

/// A failure with everything beneath it, in one sentence.
pub fn in_one_sentence(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some errors repeat what is beneath them.
        if !sentence.contains(&text) {
            sentence.push_str(": ");
            sentence.push_str(&text);
        }
        cause = error.source();
    }
    sentence
}

/// Judges an attempt that never came to its first step.
pub fn not_prepared(order: &AttemptOrder, error: &PrepareError) -> Outcome {
    let detail = in_one_sentence(error);
    match error {
        PrepareError::Refused(refusal) => Outcome::Refused { reason: refusal.to_string() },
        PrepareError::Image(ImageError::Engine { source, .. }) => engine_outcome(order, source, &detail),
        PrepareError::Image(ImageError::Store { .. }) => infra(InfraCause::WorkerDisk, detail),
        PrepareError::Workspace(_) | PrepareError::Io { .. } => infra(InfraCause::WorkerDisk, detail),
        PrepareError::Source(_) => infra(InfraCause::Source, detail),
        PrepareError::TooLarge => Outcome::DiskQuota { step: None, limit: order.spec.resources.disk },
        PrepareError::Network(_) | PrepareError::Init(_) => infra(InfraCause::Engine, detail),
        PrepareError::Stopped | PrepareError::Panicked => infra(InfraCause::Worker, detail),
        PrepareError::Engine(error) => engine_outcome(order, error, &detail),
    }
}

fn engine_outcome(order: &AttemptOrder, error: &EngineError, detail: &str) -> Outcome {
    let image = &order.spec.image;
    match error {
        EngineError::ImageUnknown { message, .. } => Outcome::Refused {
            reason: format!("the image `{image}` does not exist or may not be pulled: {}", message.trim()),
        },
        EngineError::BadImageName { reason, .. } => {
            Outcome::Refused { reason: format!("`{image}` is not the name of an image: {reason}") }
        }
        // Everything that is mounted is the worker's own.
        EngineError::Refused { message, .. } if message.contains("bind source path does not exist") => {
            infra(InfraCause::WorkerDisk, detail.to_owned())
        }
        EngineError::Refused { .. } => {
            Outcome::Refused { reason: format!("the container engine will not run this job: {error}") }
        }
        EngineError::PullFailed { .. } | EngineError::ImageMissing { .. } => {
            infra(InfraCause::Pull, error.to_string())
        }
        EngineError::NotFound { .. }
        | EngineError::Conflict { .. }
        | EngineError::CannotStart { .. }
        | EngineError::Failed { .. }
        | EngineError::Unavailable { .. }
        | EngineError::Timeout { .. } => infra(InfraCause::Engine, detail.to_owned()),
    }
}

/// The outcome of a job that passed and whose artifacts were not kept.
pub fn without_artifacts(error: &ArtifactError) -> Outcome {
    let failed = || Outcome::Failed { step: super::ARTIFACTS_STEP.to_owned(), exit_code: 1 };
    let detail = in_one_sentence(error);
    match error {
        ArtifactError::Job(_) | ArtifactError::Pattern { .. } => failed(),
        // The workspace is the worker's to keep readable, whatever the job left in it.
        ArtifactError::Io { .. } => infra(InfraCause::WorkerDisk, detail),
        ArtifactError::Store { source, .. } => match source {
            // 413: the coordinator takes less than this worker would have sent.
            ClientError::Refused { status: 413, .. } => failed(),
            ClientError::Unreachable { .. }
            | ClientError::Unavailable { .. }
            | ClientError::Unauthorized { .. }
            | ClientError::Conflict { .. }
            | ClientError::Refused { .. }
            | ClientError::Answer { .. }
            | ClientError::File { .. } => infra(InfraCause::Worker, detail),
        },
    }
}

/// What a step's end looks like in a report: `None` where it was cut off.
pub fn exit_code(how: StepHow) -> Option<i32> {
    match how {
        StepHow::Exit(code) => Some(code),
        StepHow::Signal(signal) => Some(128 + signal),
        StepHow::SpawnFailed { .. } => Some(CANNOT_START),
        StepHow::TimedOut | StepHow::Stopped => None,
    }
}

/// The exit code in the log, where a step that was cut off counts as killed.
pub fn logged_code(how: StepHow) -> i32 {
    exit_code(how).unwrap_or(KILLED as i32)
}

/// How long a job may take in all, before the worker ends it over init's head.
pub fn overdue_after(order: &AttemptOrder, grace: Millis) -> Millis {
    const SLACK: Millis = Millis(30_000);
    Millis(order.spec.timeout_ms.0.saturating_add(grace.0).saturating_add(SLACK.0))
}

#[cfg(test)]
mod tests;
