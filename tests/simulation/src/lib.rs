//! The farm in fake time: the real scheduler and the real worker sessions, with everything around them made up
//! from a seed: clocks, network, disks, containers, crashes, and people who want something.
//!
//! First things go wrong for a while, and nothing that matters may break; then nothing goes wrong any more, and
//! everything must finish. A seed repeats its story exactly: `BUILDYARD_SIM_SEED=n` plays one with all its events
//! printed. See `src/audit.rs` for what must hold, `src/scenario.rs` for what goes wrong.
//!
//! What it does not show: paused hosts (two containers may overlap then, by design), real disks and engines, and
//! anything that the shells around the two pure crates do wrong.

mod audit;
mod coordinator;
mod host;
mod people;
pub mod rng;
pub mod scenario;
mod store;
mod world;

use std::fmt;

use scenario::Sabotage;
use world::World;

/// What a seed came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
    /// Events that happened.
    pub steps: u64,
    /// Attempts that were made.
    pub attempts: u64,
    /// When it was over, in fake time.
    pub ended_at: u64,
}

/// A seed in which something broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub seed: u64,
    /// What broke.
    pub broken: String,
    /// All events up to there.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{}", self.broken)?;
        write!(f, "seed {}: play it again with BUILDYARD_SIM_SEED={}", self.seed, self.seed)
    }
}

/// Plays a seed. When something breaks, it is played once more with its trace.
pub fn play(seed: u64, sabotage: Sabotage) -> Result<Told, Box<Failure>> {
    let mut world = World::new(seed, sabotage, false);
    match world.play() {
        Ok(()) => Ok(told(&world)),
        Err(_) => Err(Box::new(play_traced(seed, sabotage).1.unwrap_or_else(|| Failure {
            seed,
            broken: "broken: the same seed told two stories".into(),
            trace: Vec::new(),
        }))),
    }
}

/// Plays a seed and gives all its events, and the failure if there is one.
pub fn play_traced(seed: u64, sabotage: Sabotage) -> (Vec<String>, Option<Failure>) {
    let mut world = World::new(seed, sabotage, true);
    let broken = world.play().err();
    let trace = world.take_trace();
    let failure = broken.map(|broken| Failure { seed, broken, trace: trace.clone() });
    (trace, failure)
}

fn told(world: &World) -> Told {
    Told { steps: world.steps, attempts: world.audit.attempts, ended_at: world.now }
}
