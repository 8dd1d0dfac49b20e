//! Plays many seeds on all processors and prints one line: `simulation: 10000 seeds, N steps, 0 broken invariants`.
//!
//! `BUILDYARD_SIM_SEEDS` says how many (10,000), `BUILDYARD_SIM_FIRST` the first (1). `BUILDYARD_SIM_SEED=n` plays
//! one and prints its story.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use buildyard_test_simulation::scenario::Sabotage;
use buildyard_test_simulation::{Failure, play, play_traced};

/// Failing seeds that are told in full; of the others only the number.
const TOLD: usize = 1;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn main() -> ExitCode {
    if let Some(seed) = from_env("BUILDYARD_SIM_SEED") {
        return tell(seed);
    }
    let first = from_env("BUILDYARD_SIM_FIRST").unwrap_or(1);
    let seeds = from_env("BUILDYARD_SIM_SEEDS").unwrap_or(10_000);
    let (next, steps, attempts) = (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0));
    let one_thread = || {
        let mut failures: Vec<Box<Failure>> = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds {
                return failures;
            }
            match play(seed, Sabotage::Nothing) {
                Ok(told) => {
                    steps.fetch_add(told.steps, Ordering::Relaxed);
                    attempts.fetch_add(told.attempts, Ordering::Relaxed);
                }
                Err(failure) => failures.push(failure),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<Box<Failure>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(one_thread)).collect();
        handles.into_iter().flat_map(|handle| handle.join().expect("a player does not panic")).collect()
    });
    for failure in failures.iter().take(TOLD) {
        println!("{failure}");
    }
    for failure in failures.iter().skip(TOLD) {
        println!("seed {}: {}", failure.seed, failure.broken);
    }
    let (steps, attempts) = (steps.into_inner(), attempts.into_inner());
    println!("simulation: {attempts} attempts were made");
    println!("simulation: {seeds} seeds, {steps} steps, {} broken invariants", failures.len());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(seed: u64) -> ExitCode {
    let (trace, failure) = play_traced(seed, Sabotage::Nothing);
    match failure {
        Some(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
        None => {
            println!("{}\nseed {seed}: nothing broke", trace.join("\n"));
            ExitCode::SUCCESS
        }
    }
}
