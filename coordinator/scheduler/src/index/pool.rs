//! Workers by what they have free: who may be given work, and whose room grew.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_types::worker::Capacity;
use buildyard_types::{AttemptId, ByteSize, WorkerId};

use super::order::Order;
use crate::demand::{Share, minus, plus};
use crate::lifecycle::worker::Worker;

/// What a worker's attempts use of it. Attempts count until they are removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Holding {
    pub(crate) attempts: BTreeMap<AttemptId, Held>,
    pub(crate) used: Capacity,
}

/// One attempt as the pool sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) share: Share,
    pub(crate) life: Life,
}

/// How far an attempt is, as far as its worker's fitness goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Live,
    Ended,
    /// Ended because its worker did not stop it. Until it is gone, nobody knows what the worker obeys.
    StopIgnored,
}

impl Holding {
    /// Attempts that hold their jobs.
    pub(crate) fn live(&self) -> impl Iterator<Item = AttemptId> {
        self.attempts.iter().filter(|(_, held)| held.life == Life::Live).map(|(id, _)| *id)
    }

    /// Whether the worker did not do as it was told.
    pub(crate) fn disobeys(&self) -> bool {
        self.attempts.values().any(|held| held.life == Life::StopIgnored)
    }

    fn recount(&mut self) {
        self.used = self.attempts.values().fold(Capacity::default(), |used, held| plus(used, held.share));
    }
}

/// What a worker has free, most telling part first: workers are tried in this order, most room first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Room {
    cpu_millis: u64,
    memory: ByteSize,
    slots: u32,
    disk: ByteSize,
}

impl Room {
    pub(crate) fn of(free: Capacity) -> Self {
        Self { cpu_millis: free.cpu_millis, memory: free.memory, slots: free.slots, disk: free.disk }
    }

    pub(crate) fn capacity(self) -> Capacity {
        Capacity { slots: self.slots, cpu_millis: self.cpu_millis, memory: self.memory, disk: self.disk }
    }

    fn grew_from(self, before: Room) -> bool {
        self.cpu_millis > before.cpu_millis
            || self.memory > before.memory
            || self.slots > before.slots
            || self.disk > before.disk
    }
}

/// Every worker.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    holdings: BTreeMap<WorkerId, Holding>,
    /// Workers that answer. Told from outside, since it depends on the time.
    fresh: BTreeSet<WorkerId>,
    /// Workers in the order in which they are tried.
    order: Order,
    /// What workers have free that may be given work and have a free slot.
    rooms: BTreeMap<WorkerId, Room>,
    /// Workers of `rooms` that were given room, or something else to match, since the last placement.
    renewed: BTreeSet<WorkerId>,
}

impl Pool {
    /// What a worker holds.
    pub(crate) fn holding(&self, worker: WorkerId) -> Option<&Holding> {
        self.holdings.get(&worker)
    }

    /// The order in which workers are tried.
    pub(crate) fn order(&self) -> &Order {
        &self.order
    }

    /// What a worker has free, if it may be given work.
    pub(crate) fn room(&self, worker: WorkerId) -> Option<Room> {
        self.rooms.get(&worker).copied()
    }

    /// Those whose room grew since the last placement.
    pub(crate) fn renewed(&self) -> impl Iterator<Item = (Room, WorkerId)> {
        self.renewed.iter().filter_map(|worker| Some((self.room(*worker)?, *worker)))
    }

    /// Whether no room grew since the last placement.
    pub(crate) fn nothing_renewed(&self) -> bool {
        self.renewed.is_empty()
    }

    /// Every class was offered what grew.
    pub(crate) fn settle(&mut self) {
        self.renewed.clear();
    }

    /// An attempt is held, or moved on; `None`: nothing is left of it.
    pub(crate) fn hold(
        &mut self,
        known: Option<&Worker>,
        worker: WorkerId,
        attempt: AttemptId,
        held: Option<Held>,
    ) {
        let holding = self.holdings.entry(worker).or_default();
        match held {
            Some(held) => holding.attempts.insert(attempt, held),
            None => holding.attempts.remove(&attempt),
        };
        holding.recount();
        if holding.attempts.is_empty() {
            self.holdings.remove(&worker);
        }
        self.refresh(known, worker);
    }

    /// A worker answers, or does not any more.
    pub(crate) fn set_fresh(&mut self, known: Option<&Worker>, worker: WorkerId, fresh: bool) {
        let changed = if fresh { self.fresh.insert(worker) } else { self.fresh.remove(&worker) };
        if changed {
            self.refresh(known, worker);
        }
    }

    /// Something about a worker changed; `after` is `None` when it was removed.
    pub(crate) fn worker_changed(
        &mut self,
        before: Option<&Worker>,
        after: Option<&Worker>,
        worker: WorkerId,
    ) {
        let others = before.map(Worker::labels) != after.map(Worker::labels);
        if others || before.map(|before| &before.offer.images) != after.map(|after| &after.offer.images) {
            let room = self.room(worker);
            self.order.moved(worker, room, None);
            self.order.set(worker, after);
            self.order.moved(worker, None, room);
        }
        if after.is_none() {
            self.fresh.remove(&worker);
        }
        self.refresh(after, worker);
        // Other labels match other jobs, though the room is the same.
        if others && self.rooms.contains_key(&worker) {
            self.renewed.insert(worker);
        }
    }

    fn refresh(&mut self, known: Option<&Worker>, worker: WorkerId) {
        let before = self.rooms.get(&worker).copied();
        let after = known.and_then(|known| self.room_of(known));
        if before == after {
            return;
        }
        self.order.moved(worker, before, after);
        match after {
            Some(after) => {
                self.rooms.insert(worker, after);
                if before.is_none_or(|before| after.grew_from(before)) {
                    self.renewed.insert(worker);
                }
            }
            None => {
                self.rooms.remove(&worker);
                self.renewed.remove(&worker);
            }
        }
    }

    fn room_of(&self, worker: &Worker) -> Option<Room> {
        let holding = self.holdings.get(&worker.id);
        let disobeys = holding.is_some_and(Holding::disobeys);
        if worker.cordoned || worker.offer.unfit.is_some() || disobeys || !self.fresh.contains(&worker.id) {
            return None;
        }
        let used = holding.map(|holding| holding.used).unwrap_or_default();
        let free = minus(worker.offer.capacity, used);
        (free.slots > 0).then(|| Room::of(free))
    }

    /// The part in which this differs from a pool that was made from the state alone.
    pub(crate) fn differs_from(
        &self,
        mut built: Pool,
        workers: &BTreeMap<WorkerId, Worker>,
    ) -> Option<String> {
        for worker in &self.fresh {
            built.set_fresh(workers.get(worker), *worker, true);
        }
        let parts = [
            ("holdings", self.holdings == built.holdings),
            ("order", self.order.spelled_out() == built.order.spelled_out()),
            ("rooms", self.rooms == built.rooms),
            ("renewed", self.renewed.iter().all(|worker| self.rooms.contains_key(worker))),
        ];
        parts.iter().find(|(_, same)| !same).map(|(part, _)| format!("pool.{part}"))
    }
}
