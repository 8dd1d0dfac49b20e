//! Queued jobs by class: jobs with equal demands are one class, and only the oldest of each is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use buildyard_types::{JobId, Timestamp};

use crate::demand::Demand;

/// The place of a job in the order: age, then id.
pub(crate) type Place = (Timestamp, JobId);

/// Jobs with equal demands that may be placed.
#[derive(Debug, Clone, Default)]
struct Class {
    ready: BTreeSet<Place>,
    /// No worker had room for this demand when it was last looked for. Room only grows on workers that the
    /// pool calls renewed, so the others need not be looked at again.
    blocked: bool,
}

/// Every queued job.
#[derive(Debug, Clone, Default)]
pub(crate) struct Queue {
    classes: BTreeMap<Arc<Demand>, Class>,
    /// The oldest job of each class.
    heads: BTreeMap<Place, Arc<Demand>>,
    /// Those of classes that are not blocked.
    open: BTreeSet<Place>,
    /// Jobs that back off. They enter their class when their time comes.
    delayed: BTreeSet<JobId>,
}

/// The oldest job of a class.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) place: Place,
    pub(crate) demand: Arc<Demand>,
    pub(crate) blocked: bool,
}

impl Queue {
    /// A job that may be placed.
    pub(crate) fn insert(&mut self, place: Place, demand: Demand) {
        let demand = match self.classes.get_key_value(&demand) {
            Some((known, _)) => known.clone(),
            None => Arc::new(demand),
        };
        let class = self.classes.entry(demand.clone()).or_default();
        let before = class.ready.first().copied();
        class.ready.insert(place);
        self.rehead(&demand, before);
    }

    /// A job that left the queue.
    pub(crate) fn remove(&mut self, place: Place, demand: &Demand) {
        let Some((demand, _)) = self.classes.get_key_value(demand) else {
            return;
        };
        let demand = demand.clone();
        let class = self.classes.get_mut(&demand).expect("it was found in the line above");
        let before = class.ready.first().copied();
        class.ready.remove(&place);
        self.rehead(&demand, before);
    }

    /// A job that backs off, or does not any more. Says whether that is a change.
    pub(crate) fn delay(&mut self, job: JobId, delayed: bool) -> bool {
        if delayed { self.delayed.insert(job) } else { self.delayed.remove(&job) }
    }

    /// Whether a job backs off.
    pub(crate) fn is_delayed(&self, job: JobId) -> bool {
        self.delayed.contains(&job)
    }

    /// Nobody had room for a class.
    pub(crate) fn block(&mut self, head: &Head) {
        if let Some(class) = self.classes.get_mut(&head.demand) {
            class.blocked = true;
        }
        self.open.remove(&head.place);
    }

    /// The oldest head behind `after`; of all classes, or of those that are not blocked.
    pub(crate) fn next_head(&self, after: Option<Place>, blocked_too: bool) -> Option<Head> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let place = if blocked_too {
            *self.heads.range((from, Unbounded)).next()?.0
        } else {
            *self.open.range((from, Unbounded)).next()?
        };
        let demand = self.heads.get(&place)?.clone();
        Some(Head { place, demand, blocked: !self.open.contains(&place) })
    }

    /// How many jobs of a class are older than a place; counts no further than `most`.
    pub(crate) fn ahead(&self, demand: &Demand, place: Place, most: usize) -> usize {
        self.classes.get(demand).map_or(0, |class| class.ready.range(..place).take(most).count())
    }

    /// What is wrong with the queue, given every queued job with its place and demand.
    pub(crate) fn differs_from(&self, queued: &BTreeMap<Place, Demand>) -> Option<String> {
        let mut left = queued.clone();
        for (demand, class) in &self.classes {
            for place in &class.ready {
                if left.remove(place).as_ref() != Some(&**demand) {
                    return Some(format!("queue: {} is in a class that is not its own", place.1));
                }
            }
            let head = class.ready.first();
            let listed = head.is_some_and(|head| self.heads.get(head) == Some(demand));
            let open = head.is_some_and(|head| self.open.contains(head));
            if !listed || open == class.blocked {
                return Some("queue: the head of a class is not where it belongs".to_owned());
            }
        }
        let stray = left.keys().find(|(_, job)| !self.delayed.contains(job));
        if let Some((_, job)) = stray {
            return Some(format!("queue: {job} is in no class"));
        }
        let sizes = (self.heads.len(), self.delayed.len());
        (sizes != (self.classes.len(), left.len()))
            .then(|| "queue: it holds jobs that are not queued".to_owned())
    }

    fn rehead(&mut self, demand: &Arc<Demand>, before: Option<Place>) {
        let class = &self.classes[demand];
        let (after, blocked) = (class.ready.first().copied(), class.blocked);
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.heads.remove(&before);
            self.open.remove(&before);
        }
        match after {
            Some(after) => {
                self.heads.insert(after, demand.clone());
                if !blocked {
                    self.open.insert(after);
                }
            }
            None => {
                self.classes.remove(demand);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildyard_types::{ByteSize, LabelExpr, RunId};

    use crate::demand::Share;

    fn demand(cpus: u64) -> Demand {
        let share = Share { cpu_millis: cpus * 1_000, memory: ByteSize(0), disk: ByteSize(0) };
        Demand { labels: LabelExpr::Any, share }
    }

    fn place(at: u64, run: u64) -> Place {
        (Timestamp(at), RunId(run).job(0))
    }

    #[test]
    fn heads_come_oldest_first_and_one_for_each_class() {
        let mut queue = Queue::default();
        queue.insert(place(5, 1), demand(1));
        queue.insert(place(3, 2), demand(1));
        queue.insert(place(4, 3), demand(2));
        let first = queue.next_head(None, false).expect("three jobs");
        assert_eq!(first.place, place(3, 2));
        let second = queue.next_head(Some(first.place), false).expect("two classes");
        assert_eq!((second.place, &*second.demand), (place(4, 3), &demand(2)));
        assert!(queue.next_head(Some(second.place), false).is_none());
        queue.remove(place(3, 2), &demand(1));
        let heads: Vec<Place> = queue.heads.keys().copied().collect();
        assert_eq!(heads, [place(4, 3), place(5, 1)]);
    }

    #[test]
    fn a_blocked_class_stays_blocked_until_it_is_empty() {
        let mut queue = Queue::default();
        queue.insert(place(1, 1), demand(1));
        let head = queue.next_head(None, false).expect("one job");
        queue.block(&head);
        queue.insert(place(0, 2), demand(1));
        assert!(queue.next_head(None, false).is_none());
        assert!(queue.next_head(None, true).is_some_and(|head| head.blocked && head.place == place(0, 2)));
        queue.remove(place(0, 2), &demand(1));
        queue.remove(place(1, 1), &demand(1));
        assert!(queue.next_head(None, true).is_none() && queue.classes.is_empty());
        queue.insert(place(2, 3), demand(1));
        assert!(queue.next_head(None, false).is_some());
    }
}
