//! The order in which workers are tried: by kind, then by image, most room first.
//!
//! Workers that offer the same labels are one kind. A farm of thousands has a few dozen, so that matching looks at
//! kinds, and within a kind at the first few workers. Image names are replaced by numbers: a worker may hold
//! hundreds, and each change of its room moves it in the order of every one of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use buildyard_types::{LabelExpr, Labels, WorkerId};

use super::pool::Room;
use crate::lifecycle::worker::Worker;

type ByRoom = BTreeSet<(Reverse<Room>, WorkerId)>;

/// What makes a kind: facts and pools.
type Traits = (BTreeMap<String, String>, BTreeSet<String>);

/// Every known worker. Those that may be given work have a room.
#[derive(Debug, Clone, Default)]
pub(crate) struct Order {
    kinds: BTreeMap<Arc<Traits>, Kind>,
    members: BTreeMap<WorkerId, Member>,
    numbers: BTreeMap<String, u32>,
    /// Name of each number, and how many workers hold it. With the last one it goes.
    images: BTreeMap<u32, (String, usize)>,
    next: u32,
}

/// Workers with the same labels.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kind {
    labels: Labels,
    members: usize,
    by_room: ByRoom,
    by_image: BTreeMap<u32, ByRoom>,
}

#[derive(Debug, Clone)]
struct Member {
    traits: Arc<Traits>,
    images: BTreeSet<u32>,
}

impl Kind {
    /// Those that may be given work, most room first.
    pub(crate) fn by_room(&self) -> impl Iterator<Item = (Room, WorkerId)> {
        self.by_room.iter().map(|(Reverse(room), worker)| (*room, *worker))
    }

    /// Those of them that hold an image.
    pub(crate) fn holders(&self, image: Option<ImageNumber>) -> impl Iterator<Item = (Room, WorkerId)> {
        let found = image.and_then(|ImageNumber(number)| self.by_image.get(&number));
        found.into_iter().flatten().map(|(Reverse(room), worker)| (*room, *worker))
    }
}

/// An image that some worker holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageNumber(u32);

impl Order {
    /// Labels or images of a worker changed, or it joined or left. It has no room while this is told.
    pub(crate) fn set(&mut self, worker: WorkerId, known: Option<&Worker>) {
        let after = known.map(|known| self.enter(known));
        let before = match after {
            Some(after) => self.members.insert(worker, after),
            None => self.members.remove(&worker),
        };
        if let Some(before) = before {
            self.leave(&before);
        }
    }

    fn enter(&mut self, known: &Worker) -> Member {
        let traits = (known.offer.facts.clone(), known.pools.clone());
        let traits = match self.kinds.get_key_value(&traits) {
            Some((same, _)) => same.clone(),
            None => Arc::new(traits),
        };
        let kind = self.kinds.entry(traits.clone()).or_default();
        kind.members += 1;
        kind.labels = known.labels();
        let names: BTreeSet<&String> = known.offer.images.iter().collect();
        let images = names.into_iter().map(|name| self.hold(name)).collect();
        Member { traits, images }
    }

    fn hold(&mut self, name: &str) -> u32 {
        let number = match self.numbers.get(name) {
            Some(number) => *number,
            None => {
                self.next = self.next.wrapping_add(1);
                self.numbers.insert(name.to_owned(), self.next);
                self.next
            }
        };
        self.images.entry(number).or_insert_with(|| (name.to_owned(), 0)).1 += 1;
        number
    }

    fn leave(&mut self, member: &Member) {
        if let Some(kind) = self.kinds.get_mut(&member.traits) {
            kind.members = kind.members.saturating_sub(1);
            if kind.members == 0 {
                self.kinds.remove(&member.traits);
            }
        }
        for number in &member.images {
            let Some((name, holders)) = self.images.get_mut(number) else {
                continue;
            };
            *holders = holders.saturating_sub(1);
            if *holders == 0 {
                self.numbers.remove(name);
                self.images.remove(number);
            }
        }
    }

    /// The room of a worker changed; `None`: it may be given no work.
    pub(crate) fn moved(&mut self, worker: WorkerId, before: Option<Room>, after: Option<Room>) {
        let Some(member) = self.members.get(&worker) else {
            return;
        };
        let Some(kind) = self.kinds.get_mut(&member.traits) else {
            return;
        };
        let change = |order: &mut ByRoom| {
            if let Some(before) = before {
                order.remove(&(Reverse(before), worker));
            }
            if let Some(after) = after {
                order.insert((Reverse(after), worker));
            }
        };
        change(&mut kind.by_room);
        for number in &member.images {
            let order = kind.by_image.entry(*number).or_default();
            change(order);
            if order.is_empty() {
                kind.by_image.remove(number);
            }
        }
    }

    /// The kinds that offer what an expression asks.
    pub(crate) fn matching(&self, labels: &LabelExpr) -> Vec<&Kind> {
        self.kinds.values().filter(|kind| kind.labels.satisfy(labels)).collect()
    }

    /// The number of an image; `None` when no worker holds it.
    pub(crate) fn number(&self, image: &str) -> Option<ImageNumber> {
        self.numbers.get(image).copied().map(ImageNumber)
    }

    /// Whether a worker holds an image.
    pub(crate) fn holds(&self, worker: WorkerId, image: Option<ImageNumber>) -> bool {
        let held = self.members.get(&worker).map(|member| &member.images);
        image.is_some_and(|ImageNumber(number)| held.is_some_and(|held| held.contains(&number)))
    }

    /// Everything with images by name, for comparison: their numbers differ with history.
    pub(crate) fn spelled_out(&self) -> impl PartialEq {
        let spell = |kind: &Kind| {
            let name = |(number, order): (&u32, &ByRoom)| (self.images.get(number).cloned(), order.clone());
            let by_image: BTreeMap<_, _> = kind.by_image.iter().map(name).collect();
            (kind.members, kind.by_room.clone(), by_image)
        };
        let kinds: BTreeMap<_, _> =
            self.kinds.iter().map(|(traits, kind)| (traits.clone(), spell(kind))).collect();
        let members: BTreeMap<_, _> =
            self.members.iter().map(|(worker, member)| (*worker, member.traits.clone())).collect();
        (kinds, members, self.numbers.len(), self.images.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildyard_types::Timestamp;
    use buildyard_types::worker::{Capacity, Offer};

    fn worker(id: u64, pool: &str, images: &[&str]) -> Worker {
        let images = images.iter().map(|image| (*image).to_owned()).collect();
        Worker {
            id: WorkerId(id),
            name: String::new(),
            pools: [pool.to_owned()].into(),
            offer: Offer { images, ..Offer::default() },
            cordoned: false,
            enrolled_at: Timestamp(0),
        }
    }

    fn room(cpus: u64) -> Option<Room> {
        Some(Room::of(Capacity { slots: 1, cpu_millis: cpus, ..Capacity::default() }))
    }

    fn holders(order: &Order, labels: &str, image: &str) -> Vec<Vec<u64>> {
        let labels = labels.parse().unwrap();
        let image = order.number(image);
        let of_kind = |kind: &&Kind| kind.holders(image).map(|(_, worker)| worker.0).collect();
        order.matching(&labels).iter().map(of_kind).collect()
    }

    #[test]
    fn holders_come_by_kind_and_most_room_first() {
        let mut order = Order::default();
        for (id, pool, cpus) in [(1, "x", 1), (2, "x", 2), (3, "y", 3)] {
            order.set(WorkerId(id), Some(&worker(id, pool, &["a"])));
            order.moved(WorkerId(id), None, room(cpus));
        }
        assert_eq!(holders(&order, "", "a"), [vec![2, 1], vec![3]]);
        assert_eq!(holders(&order, "y", "a"), [vec![3]]);
        assert_eq!(holders(&order, "y", "b"), [vec![]]);
        order.moved(WorkerId(2), room(2), None);
        assert_eq!(holders(&order, "x", "a"), [vec![1]]);
        assert!(order.holds(WorkerId(2), order.number("a")) && !order.holds(WorkerId(2), order.number("b")));
    }

    #[test]
    fn what_nobody_is_or_holds_any_more_leaves_nothing() {
        let mut order = Order::default();
        order.set(WorkerId(1), Some(&worker(1, "x", &["a", "a"])));
        order.moved(WorkerId(1), None, room(1));
        order.moved(WorkerId(1), room(1), None);
        order.set(WorkerId(1), Some(&worker(1, "y", &["b"])));
        assert_eq!((order.kinds.len(), order.images.len()), (1, 1));
        order.set(WorkerId(1), None);
        assert!(order.kinds.is_empty() && order.members.is_empty());
        assert!(order.numbers.is_empty() && order.images.is_empty());
    }
}
