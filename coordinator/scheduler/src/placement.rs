//! Which queued job goes to which worker.
//!
//! [`plan`] is the rule: a function of the whole state, looking at everything. [`next`] gives the same placements
//! one by one from the indexes, looking only at what changed since the last time; property tests hold the two
//! against each other.
//!
//! The rule: jobs in order of their age; each goes to the best worker that matches its labels, takes work and has
//! room. Best is who did not fail this job before, then who holds its image, then who has most room.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use buildyard_types::worker::Capacity;
use buildyard_types::{JobId, Timestamp, WorkerId};

use crate::demand::{Demand, minus, plus};
use crate::index::pool::Room;
use crate::index::queue::{Head, Place};
use crate::lifecycle::job::{Job, JobState};
use crate::lifecycle::worker::{Liveness, Worker};
use crate::state::State;

/// How good a worker is for a job; greater is better.
type Rank = (bool, bool, Room, Reverse<WorkerId>);

/// What the choice between workers that fit depends on, beside their room.
struct Wish<'s> {
    demand: &'s Demand,
    image: &'s str,
    /// Workers of earlier attempts: after a farm fault another one is preferred.
    tried: BTreeSet<WorkerId>,
}

impl<'s> Wish<'s> {
    fn of(state: &State, job: &'s Job, demand: &'s Demand) -> Self {
        let tried = state.attempts_at(job.id).map(|attempt| attempt.worker).collect();
        Self { demand, image: &job.spec.image, tried }
    }

    fn rank(&self, worker: WorkerId, holds_image: bool, room: Room) -> Rank {
        (!self.tried.contains(&worker), holds_image, room, Reverse(worker))
    }
}

/// Everything that can be placed now, by the plain rule, in the order in which it is placed.
pub fn plan(state: &State, now: Timestamp) -> Vec<(JobId, WorkerId)> {
    let mut free: BTreeMap<WorkerId, Capacity> = state
        .workers
        .values()
        .filter(|worker| takes_work(state, worker, now).is_ok())
        .map(|worker| (worker.id, minus(worker.offer.capacity, state.used(worker.id))))
        .collect();
    let mut placed = Vec::new();
    for job in ready_jobs(state, now) {
        let demand = Demand::of(&job.spec);
        let wish = Wish::of(state, job, &demand);
        let best = free
            .iter()
            .filter(|(id, free)| {
                demand.share.fits(free) && state.workers[*id].labels().satisfy(&demand.labels)
            })
            .map(|(id, free)| {
                let holds = state.workers[id].offer.images.iter().any(|image| image == wish.image);
                wish.rank(*id, holds, Room::of(*free))
            })
            .max();
        if let Some((_, _, room, Reverse(worker))) = best {
            free.insert(worker, minus(room.capacity(), plus(Capacity::default(), demand.share)));
            placed.push((job.id, worker));
        }
    }
    placed
}

fn ready_jobs(state: &State, now: Timestamp) -> Vec<&Job> {
    let since = |job: &Job| match &job.state {
        JobState::Queued { since, not_before } if *not_before <= now => Some(*since),
        JobState::Queued { .. }
        | JobState::Waiting
        | JobState::Assigned { .. }
        | JobState::Running { .. }
        | JobState::Stopping { .. }
        | JobState::Finished { .. } => None,
    };
    let mut ready: Vec<(Place, &Job)> =
        state.jobs.values().filter_map(|job| Some(((since(job)?, job.id), job))).collect();
    ready.sort_by_key(|(place, _)| *place);
    ready.into_iter().map(|(_, job)| job).collect()
}

/// Why a worker takes no work, whatever its room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakesNone {
    /// It does not answer.
    Away,
    /// Somebody cordoned it.
    Cordoned,
    /// It says so itself, or it did not stop what it was told to stop.
    Unfit(String),
}

/// Whether a worker may be given work now.
pub fn takes_work(state: &State, worker: &Worker, now: Timestamp) -> Result<(), TakesNone> {
    match state.liveness(worker.id, now) {
        Some(Liveness::Fresh) => {}
        Some(Liveness::Quiet | Liveness::Unknown) | None => return Err(TakesNone::Away),
    }
    if worker.cordoned {
        return Err(TakesNone::Cordoned);
    }
    if let Some(reason) = &worker.offer.unfit {
        return Err(TakesNone::Unfit(reason.clone()));
    }
    if state.index.pool.holding(worker.id).is_some_and(|holding| holding.disobeys()) {
        return Err(TakesNone::Unfit("it holds an attempt that it did not stop".to_owned()));
    }
    Ok(())
}

/// The next placement, from the indexes. `cursor` is where the pass stands; a pass begins with `None` and is over
/// when nothing is given any more.
pub(crate) fn next(state: &mut State, cursor: &mut Option<Place>) -> Option<(JobId, WorkerId)> {
    loop {
        // Without renewed workers a blocked class is still blocked.
        let blocked_too = !state.index.pool.nothing_renewed();
        let Some(head) = state.index.queue.next_head(*cursor, blocked_too) else {
            state.index.pool.settle();
            return None;
        };
        if let Some(worker) = best_for(state, &head) {
            return Some((head.place.1, worker));
        }
        if !head.blocked {
            state.index.queue.block(&head);
        }
        *cursor = Some(head.place);
    }
}

fn best_for(state: &State, head: &Head) -> Option<WorkerId> {
    let job = state.jobs.get(&head.place.1)?;
    let wish = Wish::of(state, job, &head.demand);
    let best = if head.blocked {
        // Whoever was not renewed had no room for this class the last time, and has no more now.
        best_of(state, &wish, state.index.pool.renewed())
    } else {
        best_in_pool(state, &wish)
    };
    best.map(|(_, _, _, Reverse(worker))| worker)
}

/// The best of all workers, looking at few of them: the first of each matching kind.
fn best_in_pool(state: &State, wish: &Wish<'_>) -> Option<Rank> {
    let pool = &state.index.pool;
    let (kinds, image) = (pool.order().matching(&wish.demand.labels), pool.order().number(wish.image));
    let untried = |(_, worker): &(Room, WorkerId)| !wish.tried.contains(worker);
    let fits = |(room, _): &(Room, WorkerId)| wish.demand.share.fits(&room.capacity());
    let rank = |holds: bool| move |(room, worker): (Room, WorkerId)| wish.rank(worker, holds, room);
    let holders = kinds.iter().filter_map(|kind| kind.holders(image).filter(untried).find(fits));
    let anybody = kinds.iter().filter_map(|kind| kind.by_room().filter(untried).find(fits));
    holders.map(rank(true)).max().or_else(|| anybody.map(rank(false)).max()).or_else(|| {
        let tried = wish.tried.iter().filter_map(|worker| Some((pool.room(*worker)?, *worker)));
        best_of(state, wish, tried)
    })
}

/// The best of some workers.
fn best_of(state: &State, wish: &Wish<'_>, workers: impl Iterator<Item = (Room, WorkerId)>) -> Option<Rank> {
    let order = state.index.pool.order();
    let image = order.number(wish.image);
    let will_do = |(room, worker): &(Room, WorkerId)| {
        let matches = |known: &Worker| known.satisfies(&wish.demand.labels);
        wish.demand.share.fits(&room.capacity()) && state.workers.get(worker).is_some_and(matches)
    };
    let rank = |(room, worker)| wish.rank(worker, order.holds(worker, image), room);
    workers.filter(will_do).map(rank).max()
}
