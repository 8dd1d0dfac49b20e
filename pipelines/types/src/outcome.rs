//! How things end, and whose fault it was. One enum everywhere: types, API, CLI, logs and docs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::size::ByteSize;
use crate::time::{HumanDuration, Millis};

/// How an attempt or a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// Every step that had to run ended with exit code 0.
    Passed,
    /// A step ended with another exit code, or by a signal (then the code is 128 + signal, as shells say it).
    Failed {
        /// Name of the step.
        step: String,
        /// Its exit code.
        exit_code: i32,
    },
    /// A time limit ran out.
    TimedOut {
        /// Which limit.
        limit: TimeLimit,
        /// Its length.
        after_ms: Millis,
    },
    /// The kernel killed a step because the attempt's memory limit was reached.
    OutOfMemory {
        /// Name of the step, where one was running.
        step: Option<String>,
        /// The limit.
        limit: ByteSize,
    },
    /// The attempt filled its workspace or its root beyond the limit, in bytes or in files.
    DiskQuota {
        /// Name of the step, where one was running.
        step: Option<String>,
        /// The limit.
        limit: ByteSize,
    },
    /// The attempt printed more than its log may hold.
    LogCap {
        /// Name of the step that was printing.
        step: Option<String>,
        /// The limit.
        limit: ByteSize,
    },
    /// Somebody stopped it, or a newer run replaced it.
    Cancelled {
        /// Who or what asked for it, as a clause: "by admin".
        by: String,
    },
    /// It never started, and that is no failure of its own.
    Skipped {
        /// Why, in one clause: "job `build` failed".
        reason: String,
    },
    /// The farm would not run it: the pipeline file, a policy or its image forbids it.
    Refused {
        /// Why, in one sentence with the remedy.
        reason: String,
    },
    /// The farm's fault. The only outcome that is tried again by itself, and it never turns a commit red.
    Infra {
        /// Which part of the farm failed.
        cause: InfraCause,
        /// What happened, in one sentence.
        detail: String,
    },
}

/// Which time limit ran out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum TimeLimit {
    /// The limit of one step.
    Step {
        /// Its name.
        step: String,
    },
    /// The limit of the whole job.
    Job,
    /// The limit of waiting for a worker.
    Queue,
}

/// Which part of the farm failed. Nothing that a job does from inside its container may appear here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InfraCause {
    /// The worker did not answer for longer than lease and grace.
    WorkerLost,
    /// The worker had no word from the coordinator for so long that the attempt stopped itself.
    SelfFenced,
    /// The container engine went away or refused a call.
    Engine,
    /// The image could not be had.
    Pull,
    /// The worker's own disk was full or failing.
    WorkerDisk,
    /// The commit could not be fetched or checked out.
    Source,
    /// The worker refused the attempt or broke the protocol.
    Worker,
    /// The attempt did not stop when told to. Its worker gets no others until nothing is left of it.
    StopIgnored,
}

/// Whose fault an outcome is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nobody's: it passed, was skipped, or somebody cancelled it.
    Nobody,
    /// The job's, or of what its author wrote.
    Job,
    /// The farm's.
    Farm,
}

/// How a run ended: the sum of its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every job passed or was skipped for a good reason.
    Passed,
    /// At least one job failed by its own fault.
    Failed,
    /// The farm would not run it as it is written.
    Refused,
    /// It was cancelled before it could fail.
    Cancelled,
    /// No job failed by its own fault, but the farm could not finish all of them.
    Infra,
}

impl Outcome {
    /// Which part of the farm failed, if that is how it ended.
    pub fn infra_cause(&self) -> Option<InfraCause> {
        match self {
            Outcome::Infra { cause, .. } => Some(*cause),
            Outcome::Passed
            | Outcome::Failed { .. }
            | Outcome::TimedOut { .. }
            | Outcome::OutOfMemory { .. }
            | Outcome::DiskQuota { .. }
            | Outcome::LogCap { .. }
            | Outcome::Cancelled { .. }
            | Outcome::Skipped { .. }
            | Outcome::Refused { .. } => None,
        }
    }

    /// Whether somebody stopped it.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Outcome::Cancelled { .. } => true,
            Outcome::Passed
            | Outcome::Failed { .. }
            | Outcome::TimedOut { .. }
            | Outcome::OutOfMemory { .. }
            | Outcome::DiskQuota { .. }
            | Outcome::LogCap { .. }
            | Outcome::Skipped { .. }
            | Outcome::Refused { .. }
            | Outcome::Infra { .. } => false,
        }
    }

    /// Whose fault this is. Only [`Fault::Farm`] is retried without being asked.
    pub fn fault(&self) -> Fault {
        match self {
            Outcome::Passed | Outcome::Cancelled { .. } | Outcome::Skipped { .. } => Fault::Nobody,
            Outcome::Failed { .. }
            | Outcome::OutOfMemory { .. }
            | Outcome::DiskQuota { .. }
            | Outcome::LogCap { .. }
            | Outcome::Refused { .. } => Fault::Job,
            // Waiting too long for a worker is not something that the job did.
            Outcome::TimedOut { limit: TimeLimit::Queue, .. } => Fault::Farm,
            Outcome::TimedOut { limit: TimeLimit::Job | TimeLimit::Step { .. }, .. } => Fault::Job,
            Outcome::Infra { .. } => Fault::Farm,
        }
    }

    /// The class as one word, the same in the API, the CLI and the docs.
    pub fn class(&self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Failed { .. } => "failed",
            Outcome::TimedOut { .. } => "timed out",
            Outcome::OutOfMemory { .. } => "out of memory",
            Outcome::DiskQuota { .. } => "disk quota",
            Outcome::LogCap { .. } => "log cap",
            Outcome::Cancelled { .. } => "cancelled",
            Outcome::Skipped { .. } => "skipped",
            Outcome::Refused { .. } => "refused",
            Outcome::Infra { .. } => "infra",
        }
    }
}

fn in_step(step: &Option<String>) -> String {
    step.as_ref().map(|name| format!(" in step `{name}`")).unwrap_or_default()
}

impl fmt::Display for Outcome {
    /// One sentence without a full stop, its class first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Passed => f.write_str("passed"),
            Outcome::Failed { step, exit_code } => {
                write!(f, "failed: step `{step}` ended with exit code {exit_code}")
            }
            Outcome::TimedOut { limit, after_ms } => {
                let after = HumanDuration(*after_ms);
                match limit {
                    TimeLimit::Step { step } => write!(f, "timed out: step `{step}` ran longer than {after}"),
                    TimeLimit::Job => write!(f, "timed out: the job ran longer than {after}"),
                    TimeLimit::Queue => write!(f, "timed out: no worker took the job within {after}"),
                }
            }
            Outcome::OutOfMemory { step, limit } => {
                write!(f, "out of memory{}: the limit is {limit} (resources.memory)", in_step(step))
            }
            Outcome::DiskQuota { step, limit } => {
                write!(f, "disk quota{}: the limit is {limit} (resources.disk)", in_step(step))
            }
            Outcome::LogCap { step, limit } => {
                write!(f, "log cap{}: the log may hold {limit}", in_step(step))
            }
            Outcome::Cancelled { by } => write!(f, "cancelled {by}"),
            Outcome::Skipped { reason } => write!(f, "skipped: {reason}"),
            Outcome::Refused { reason } => write!(f, "refused: {reason}"),
            Outcome::Infra { cause, detail } => write!(f, "infra ({cause}): {detail}"),
        }
    }
}

impl fmt::Display for InfraCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InfraCause::WorkerLost => "worker lost",
            InfraCause::SelfFenced => "self-fenced",
            InfraCause::Engine => "engine",
            InfraCause::Pull => "pull failed",
            InfraCause::WorkerDisk => "worker disk",
            InfraCause::Source => "source",
            InfraCause::Worker => "worker",
            InfraCause::StopIgnored => "stop ignored",
        })
    }
}

impl Verdict {
    /// The verdict as one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
            Verdict::Refused => "refused",
            Verdict::Cancelled => "cancelled",
            Verdict::Infra => "infra",
        }
    }

    /// The worst of several verdicts, of the runs of a commit or the jobs of a run; passed where there are none.
    ///
    /// A job's own failure outweighs everything, since it is what its author must mend; then a refusal, then
    /// a farm fault, then a cancellation.
    pub fn worst(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
        fn weight(verdict: Verdict) -> u8 {
            match verdict {
                Verdict::Passed => 0,
                Verdict::Cancelled => 1,
                Verdict::Infra => 2,
                Verdict::Refused => 3,
                Verdict::Failed => 4,
            }
        }
        verdicts.into_iter().max_by_key(|verdict| weight(*verdict)).unwrap_or(Verdict::Passed)
    }

    /// The verdict of a run from the outcomes of its jobs.
    pub fn of<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Verdict {
        let of_one = |outcome: &Outcome| match outcome {
            Outcome::Passed | Outcome::Skipped { .. } => Verdict::Passed,
            Outcome::Cancelled { .. } => Verdict::Cancelled,
            Outcome::Refused { .. } => Verdict::Refused,
            Outcome::Failed { .. }
            | Outcome::OutOfMemory { .. }
            | Outcome::DiskQuota { .. }
            | Outcome::LogCap { .. } => Verdict::Failed,
            Outcome::TimedOut { .. } if outcome.fault() == Fault::Farm => Verdict::Infra,
            Outcome::TimedOut { .. } => Verdict::Failed,
            Outcome::Infra { .. } => Verdict::Infra,
        };
        Verdict::worst(outcomes.into_iter().map(of_one))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_as_bad_as_its_worst_job() {
        let failed = Outcome::Failed { step: "unit".into(), exit_code: 2 };
        let infra = Outcome::Infra { cause: InfraCause::Engine, detail: String::new() };
        let skipped = Outcome::Skipped { reason: "job `build` failed".into() };
        assert_eq!(Verdict::of([&Outcome::Passed, &infra, &failed, &skipped]), Verdict::Failed);
        assert_eq!(Verdict::of([&infra, &skipped]), Verdict::Infra);
        assert_eq!(Verdict::of([&Outcome::Passed, &skipped]), Verdict::Passed);
        assert_eq!(Verdict::of([]), Verdict::Passed);
    }

    #[test]
    fn several_runs_are_as_bad_as_the_worst() {
        use Verdict::*;
        for (verdicts, expected) in [
            (&[][..], Passed),
            (&[Passed, Cancelled], Cancelled),
            (&[Cancelled, Infra, Passed], Infra),
            (&[Refused, Infra], Refused),
            (&[Refused, Failed, Passed], Failed),
        ] {
            assert_eq!(Verdict::worst(verdicts.iter().copied()), expected, "{verdicts:?}");
        }
    }

    #[test]
    fn waiting_too_long_is_the_farms_fault_and_running_too_long_the_jobs() {
        let timed_out = |limit| Outcome::TimedOut { limit, after_ms: Millis(1) };
        assert_eq!(timed_out(TimeLimit::Queue).fault(), Fault::Farm);
        assert_eq!(timed_out(TimeLimit::Job).fault(), Fault::Job);
    }
}
