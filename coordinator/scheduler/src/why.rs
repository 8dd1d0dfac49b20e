//! Why a job does not run yet: the question that users ask.

use std::collections::BTreeMap;
use std::fmt;

use buildyard_types::worker::Capacity;
use buildyard_types::{JobId, Timestamp};

use crate::demand::{Demand, minus, room};
use crate::index::pool::Room;
use crate::lifecycle::job::{Job, JobState};
use crate::lifecycle::worker::Worker;
use crate::placement::{TakesNone, takes_work};
use crate::refusal::{Unmet, unmet};
use crate::state::State;

/// Jobs ahead are counted up to here.
pub const MOST_AHEAD: usize = 1_000;

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
    /// Workers match, but all of them are too small.
    NoneLargeEnough {
        /// The matching worker that lacks least.
        nearest: String,
        /// What that one lacks.
        lacking: Vec<String>,
    },
    /// Workers match, but none of them takes work.
    NoneAvailable {
        /// Matching workers that do not answer.
        away: Names,
        /// Matching workers that were cordoned.
        cordoned: Names,
        /// Matching workers that cannot work, each with its own sentence.
        unfit: Names,
    },
    /// Workers match and take work, but have no room.
    Busy {
        /// How many match and take work.
        workers: usize,
        /// What it needs, as a clause: "2 cpus, 2GiB memory, 10GiB disk".
        needs: String,
        /// The most that one of them has free, as a clause.
        free: String,
        /// Jobs of the same demand that are older; counted up to [`MOST_AHEAD`].
        ahead: usize,
    },
    /// Its turn comes with the next decision.
    Next,
}

/// The first few of some names, and how many more there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    first: Vec<String>,
    more: usize,
}

impl Names {
    /// Most names that are kept: a sentence stays one, however large the farm is.
    const MOST: usize = 5;

    fn push(&mut self, name: impl FnOnce() -> String) {
        if self.first.len() < Self::MOST {
            self.first.push(name());
        } else {
            self.more += 1;
        }
    }

    fn is_empty(&self) -> bool {
        self.first.is_empty()
    }
}

impl FromIterator<String> for Names {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        let mut kept = Self::default();
        names.into_iter().for_each(|name| kept.push(|| name));
        kept
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first.join(", "))?;
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

/// Why each of some jobs does not run yet. Those that are not waiting, or not known, are left out. The farm is
/// looked over once for all jobs of one demand.
pub(crate) fn why_each(state: &State, jobs: &[JobId], now: Timestamp) -> BTreeMap<JobId, WhyWaiting> {
    let mut by_demand: BTreeMap<Demand, WhyWaiting> = BTreeMap::new();
    let known = jobs.iter().filter_map(|job| state.jobs.get(job));
    known.filter_map(|job| Some((job.id, why(state, job, now, &mut by_demand)?))).collect()
}

fn why(
    state: &State,
    job: &Job,
    now: Timestamp,
    by_demand: &mut BTreeMap<Demand, WhyWaiting>,
) -> Option<WhyWaiting> {
    match &job.state {
        JobState::Waiting => Some(WhyWaiting::Needs { jobs: open_needs(state, job) }),
        JobState::Queued { not_before, .. } if *not_before > now => {
            Some(WhyWaiting::BackingOff { until: *not_before, now })
        }
        JobState::Queued { since, .. } => {
            let demand = Demand::of(&job.spec);
            let entry = by_demand.entry(demand.clone());
            let mut why = entry.or_insert_with(|| queued(state, &demand, now)).clone();
            if let WhyWaiting::Busy { ahead, .. } = &mut why {
                *ahead = state.index.queue.ahead(&demand, (*since, job.id), MOST_AHEAD);
            }
            Some(why)
        }
        JobState::Assigned { .. }
        | JobState::Running { .. }
        | JobState::Stopping { .. }
        | JobState::Finished { .. } => None,
    }
}

fn open_needs(state: &State, job: &Job) -> Vec<String> {
    let needs = job.needs.iter().filter_map(|need| state.jobs.get(need));
    needs.filter(|need| need.state.outcome().is_none()).map(|need| need.spec.name.clone()).collect()
}

/// Why a job of this demand is not on a worker; how many are ahead of it is left at none.
fn queued(state: &State, demand: &Demand, now: Timestamp) -> WhyWaiting {
    if state.workers.is_empty() {
        return WhyWaiting::NoWorkerJoined;
    }
    match unmet(state, demand) {
        Some(Unmet::Labels { nearest, missing }) => return WhyWaiting::NoneMatches { nearest, missing },
        Some(Unmet::Size { nearest, lacking }) => return WhyWaiting::NoneLargeEnough { nearest, lacking },
        None => {}
    }
    let (mut away, mut cordoned, mut unfit) = (Names::default(), Names::default(), Names::default());
    let mut takers: Vec<Capacity> = Vec::new();
    for worker in state.workers.values().filter(|worker| could_take(worker, demand)) {
        let name = || worker.name.clone();
        match takes_work(state, worker, now) {
            Ok(()) => takers.push(minus(worker.offer.capacity, state.used(worker.id))),
            Err(TakesNone::Away) => away.push(name),
            Err(TakesNone::Cordoned) => cordoned.push(name),
            Err(TakesNone::Unfit(reason)) => unfit.push(|| format!("{} ({reason})", worker.name)),
        }
    }
    let Some(most_free) = takers.iter().max_by_key(|free| Room::of(**free)) else {
        return WhyWaiting::NoneAvailable { away, cordoned, unfit };
    };
    if takers.iter().any(|free| demand.share.fits(free)) {
        return WhyWaiting::Next;
    }
    WhyWaiting::Busy {
        workers: takers.len(),
        needs: demand.share.to_string(),
        free: room(most_free),
        ahead: 0,
    }
}

fn could_take(worker: &Worker, demand: &Demand) -> bool {
    worker.satisfies(&demand.labels) && demand.share.fits(&worker.offer.capacity)
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
                write!(f, "no known worker matches; the nearest, {nearest}, lacks {}", missing.join(", "))
            }
            WhyWaiting::NoneLargeEnough { nearest, lacking } => {
                write!(
                    f,
                    "no matching worker is large enough; the nearest, {nearest}, lacks {}",
                    lacking.join(", ")
                )
            }
            WhyWaiting::NoneAvailable { away, cordoned, unfit } => {
                let said: Vec<String> = [("away", away), ("cordoned", cordoned), ("unfit", unfit)]
                    .into_iter()
                    .filter(|(_, names)| !names.is_empty())
                    .map(|(what, names)| format!("{what}: {names}"))
                    .collect();
                write!(f, "no matching worker takes work ({})", said.join("; "))
            }
            WhyWaiting::Busy { workers, needs, free, ahead } => {
                let busy = match workers {
                    1 => "the matching worker is busy".to_owned(),
                    many => format!("all {many} matching workers are busy"),
                };
                let ahead = match ahead {
                    0 => "it is next in line".to_owned(),
                    1 => "1 job is ahead of it".to_owned(),
                    &MOST_AHEAD => format!("{MOST_AHEAD} jobs or more are ahead of it"),
                    many => format!("{many} jobs are ahead of it"),
                };
                write!(f, "{busy}: it needs {needs}, the most that is free is {free}; {ahead}")
            }
            WhyWaiting::Next => f.write_str("is placed next"),
        }
    }
}
