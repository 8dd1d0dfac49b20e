//! When something is due though no input arrives.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_types::{JobId, Timestamp, WorkerId};

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// Something of a job: back-off over, waited too long, ran too long, did not stop.
    Job(JobId),
    /// Something of a worker: quiet, lost.
    Worker(WorkerId),
}

/// At most one moment for each thing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Timers {
    order: BTreeSet<(Timestamp, Due)>,
    at: BTreeMap<Due, Timestamp>,
}

impl Timers {
    /// Puts the moment of `due` in the place of the one before.
    pub(crate) fn set(&mut self, due: Due, at: Option<Timestamp>) {
        let before = match at {
            Some(at) => self.at.insert(due, at),
            None => self.at.remove(&due),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, due));
        }
        if let Some(at) = at {
            self.order.insert((at, due));
        }
    }

    /// The earliest moment.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes out the earliest thing that is due.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Option<Due> {
        let (at, due) = *self.order.first()?;
        if at > now {
            return None;
        }
        self.set(due, None);
        Some(due)
    }

    /// Whether exactly these moments are set for jobs.
    pub(crate) fn are_of_jobs(&self, expected: &BTreeMap<JobId, Timestamp>) -> bool {
        let job = |(due, at): (&Due, &Timestamp)| match due {
            Due::Job(job) => Some((*job, *at)),
            Due::Worker(_) => None,
        };
        let set: BTreeMap<JobId, Timestamp> = self.at.iter().filter_map(job).collect();
        set == *expected && self.order.len() == self.at.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_has_one_moment_and_the_earliest_comes_first() {
        let (a, b) = (Due::Worker(WorkerId(1)), Due::Worker(WorkerId(2)));
        let mut timers = Timers::default();
        timers.set(a, Some(Timestamp(10)));
        timers.set(b, Some(Timestamp(20)));
        timers.set(a, Some(Timestamp(30)));
        assert_eq!(timers.next(), Some(Timestamp(20)));
        assert_eq!(timers.take_due(Timestamp(19)), None);
        assert_eq!(timers.take_due(Timestamp(30)), Some(b));
        assert_eq!(timers.take_due(Timestamp(30)), Some(a));
        assert_eq!(timers, Timers::default());
    }

    #[test]
    fn setting_the_same_moment_again_changes_nothing() {
        let mut timers = Timers::default();
        timers.set(Due::Worker(WorkerId(1)), Some(Timestamp(5)));
        let before = timers.clone();
        timers.set(Due::Worker(WorkerId(1)), Some(Timestamp(5)));
        assert_eq!(timers, before);
        timers.set(Due::Worker(WorkerId(1)), None);
        assert_eq!(timers, Timers::default());
    }
}
