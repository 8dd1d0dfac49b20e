//! A worker as the scheduler knows it. Liveness is computed from the last call and the time, never stored.

use std::collections::BTreeSet;

use buildyard_types::worker::Offer;
use buildyard_types::{Labels, Timestamp, WorkerId};
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
}

/// What is known of a worker in this process only: it is not committed and starts empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// When its last call arrived.
    pub at: Timestamp,
    /// The session of that call.
    pub session: u64,
    /// The number of that call in its session.
    pub sequence: u64,
}

/// Whether a worker answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// Heard of within the lease.
    Fresh,
    /// Not heard of for longer than the lease.
    Quiet,
    /// Not heard of since the coordinator started. Unknown is not dead.
    Unknown,
}

impl Liveness {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Liveness::Fresh => "fresh",
            Liveness::Quiet => "quiet",
            Liveness::Unknown => "unknown",
        }
    }
}
