//! Why a job does not run yet: the question that users ask.

use std::fmt;

use buildyard_types::Timestamp;

/// Why a job was not placed. Displays as one sentence without a full stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyWaiting {
    /// Jobs that it needs are not finished.
    Needs {
        /// Their names.
        jobs: Vec<String>,
    },
    /// A farm fault ended its last attempt; it is tried again at `until`.
    BackingOff {
        /// When.
        until: Timestamp,
        /// When that was asked.
        now: Timestamp,
    },
    /// There are no workers yet.
    NoWorkerJoined,
    /// No known worker offers what it asks.
    NoneMatches {
        /// The worker that lacks least.
        nearest: String,
        /// What that one lacks.
        missing: Vec<String>,
    },
    /// Workers match, but none of them takes work.
    NoneAvailable {
        /// Matching workers that do not answer.
        away: Vec<String>,
        /// Matching workers that were cordoned.
        cordoned: Vec<String>,
        /// Matching workers that cannot work, each with its own sentence.
        unfit: Vec<String>,
    },
    /// Workers match and take work, but have no room.
    Busy {
        /// How many match and take work.
        workers: usize,
        /// What it needs, as a clause: "2 cpus, 2GiB memory, 10GiB disk".
        needs: String,
        /// The most that one of them has free, as a clause.
        free: String,
        /// Jobs of the same demand that are older.
        ahead: usize,
    },
    /// Its turn comes with the next decision.
    Next,
}

impl fmt::Display for WhyWaiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WhyWaiting::Needs { jobs } => write!(f, "waits for {}", jobs.join(", ")),
            WhyWaiting::BackingOff { until, now } => {
                write!(f, "is tried again in {} after a fault of the farm", until.since(*now))
            }
            WhyWaiting::NoWorkerJoined => f.write_str("no worker has joined yet"),
            WhyWaiting::NoneMatches { nearest, missing } => {
                write!(f, "no worker matches; the nearest, {nearest}, lacks {}", missing.join(", "))
            }
            WhyWaiting::NoneAvailable { away, cordoned, unfit } => {
                write!(f, "no matching worker takes work: {}", parts(away, cordoned, unfit))
            }
            WhyWaiting::Busy { workers, needs, free, ahead } => {
                write!(
                    f,
                    "all {workers} matching workers are busy: needs {needs}; most free: {free}; {ahead} jobs ahead"
                )
            }
            WhyWaiting::Next => f.write_str("is placed next"),
        }
    }
}

fn parts(away: &[String], cordoned: &[String], unfit: &[String]) -> String {
    let named = [("away", away), ("cordoned", cordoned), ("unfit", unfit)];
    let said = named.iter().filter(|(_, names)| !names.is_empty());
    said.map(|(what, names)| format!("{} {what}", names.join(", "))).collect::<Vec<_>>().join("; ")
}
