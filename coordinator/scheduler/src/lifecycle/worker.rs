//! A worker as the scheduler knows it. Liveness is computed from the last call and the time, never stored.

use std::collections::BTreeSet;

use buildyard_types::worker::{Offer, SessionId};
use buildyard_types::{LabelExpr, Labels, Millis, Timestamp, WorkerId};
use serde::{Deserialize, Serialize};

/// A host that runs attempts: what is on record of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Who.
    pub id: WorkerId,
    /// The name that people see.
    pub name: String,
    /// Granted at its invitation.
    pub pools: BTreeSet<String>,
    /// What it last said it offers. Recorded when it changes.
    pub offer: Offer,
    /// Whether it gets no new attempts.
    pub cordoned: bool,
    /// When it joined.
    pub enrolled_at: Timestamp,
}

impl Worker {
    /// Facts and pools together.
    pub fn labels(&self) -> Labels {
        Labels { facts: self.offer.facts.clone(), pools: self.pools.clone() }
    }

    /// Whether it offers what an expression asks: `labels().satisfy(…)` without making the labels, since
    /// placement asks this of many workers.
    pub fn satisfies(&self, expr: &LabelExpr) -> bool {
        expr.holds(&self.offer.facts, &self.pools)
    }
}

/// What is known of a worker in this process only: it is not committed and starts empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// When its last call arrived.
    pub at: Timestamp,
    /// The session of that call.
    pub session: SessionId,
    /// The number of that call in its session.
    pub sequence: u64,
}

impl Heard {
    /// Whether a call is newer than the last one. Calls that were overtaken on their way are not.
    pub fn is_before(&self, session: SessionId, sequence: u64) -> bool {
        (self.session, self.sequence) < (session, sequence)
    }
}

/// Whether a worker answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// Heard of within the lease.
    Fresh,
    /// Not heard of for longer than the lease.
    Quiet,
    /// Not heard of since the coordinator started, and that is less than a lease ago. Unknown is not dead.
    Unknown,
}

impl Liveness {
    /// Computed from the last call, never stored. `listening_since` is when this process began to listen: a
    /// worker that it has not heard of has a full lease from there before anybody calls it quiet.
    pub fn of(heard: Option<&Heard>, listening_since: Timestamp, lease: Millis, now: Timestamp) -> Self {
        match heard {
            Some(heard) if now < heard.at + lease => Liveness::Fresh,
            Some(_) => Liveness::Quiet,
            None if now < listening_since + lease => Liveness::Unknown,
            None => Liveness::Quiet,
        }
    }

    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Liveness::Fresh => "fresh",
            Liveness::Quiet => "quiet",
            Liveness::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u64) -> SessionId {
        SessionId { number, nonce: 0 }
    }

    #[test]
    fn liveness_is_computed_from_the_last_call() {
        let heard = Heard { at: Timestamp(100), session: session(1), sequence: 1 };
        for (heard, now, expected) in [
            (Some(&heard), 100, Liveness::Fresh),
            (Some(&heard), 114, Liveness::Fresh),
            (Some(&heard), 115, Liveness::Quiet),
            (None, 100, Liveness::Unknown),
            (None, 104, Liveness::Unknown),
            (None, 105, Liveness::Quiet),
        ] {
            let found = Liveness::of(heard, Timestamp(90), Millis(15), Timestamp(now));
            assert_eq!(found, expected, "{heard:?} at {now}");
        }
    }

    #[test]
    fn calls_are_ordered_by_session_then_by_number() {
        let heard = Heard { at: Timestamp(0), session: session(4), sequence: 9 };
        for (number, sequence, newer) in
            [(4, 10, true), (4, 9, false), (4, 8, false), (5, 1, true), (3, 99, false)]
        {
            assert_eq!(heard.is_before(session(number), sequence), newer, "{number}/{sequence}");
        }
    }
}
