//! The farm under faults, seed by seed; and proof that the audit notices a farm that is wrong.

use buildyard_test_simulation::scenario::Sabotage;
use buildyard_test_simulation::{Failure, play, play_traced};

fn seeds() -> std::ops::RangeInclusive<u64> {
    let read = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match read("BUILDYARD_SIM_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=read("BUILDYARD_SIM_SEEDS").unwrap_or(500),
    }
}

#[test]
fn nothing_breaks_whatever_goes_wrong_and_everything_finishes_afterwards() {
    let (mut steps, mut attempts) = (0, 0);
    for seed in seeds() {
        match play(seed, Sabotage::Nothing) {
            Ok(told) => {
                steps += told.steps;
                attempts += told.attempts;
            }
            Err(failure) => panic!("{failure}"),
        }
    }
    println!(
        "simulation: {} seeds, {steps} steps, {attempts} attempts, 0 broken invariants",
        seeds().count()
    );
    assert!(attempts > 0, "a simulation in which no attempt is made shows nothing");
}

#[test]
fn a_seed_tells_the_same_story_again() {
    for seed in 1..=5 {
        let (first, second) = (play_traced(seed, Sabotage::Nothing), play_traced(seed, Sabotage::Nothing));
        assert_eq!(first, second);
        assert!(first.0.len() > 100, "a story of {} events", first.0.len());
    }
}

/// The first of many seeds in which a sabotaged farm is caught.
fn caught(sabotage: Sabotage, truth: &str) -> Box<Failure> {
    let mut others = Vec::new();
    for seed in 1..=400 {
        match play(seed, sabotage) {
            Ok(_) => {}
            Err(failure) if failure.broken.contains(truth) => return failure,
            Err(failure) => others.push(failure.broken),
        }
    }
    panic!("{sabotage:?} was never caught as `{truth}`; instead: {others:?}");
}

#[test]
fn a_farm_that_does_not_fence_is_caught() {
    let failure = caught(Sabotage::NobodyFences, "two containers of one job never overlap");
    assert!(failure.to_string().contains(&format!("BUILDYARD_SIM_SEED={}", failure.seed)));
    assert!(
        failure.trace.iter().any(|line| line.contains("starts for")),
        "the trace tells how it came about"
    );
}

#[test]
fn a_coordinator_that_answers_before_it_commits_is_caught() {
    caught(Sabotage::AnswerBeforeCommit, "what is acknowledged is committed");
}

#[test]
fn a_store_that_forgets_is_caught() {
    caught(Sabotage::ForgetfulStore, "reloading gives the same state");
}

#[test]
fn a_worker_that_starts_steps_without_asking_is_caught() {
    caught(Sabotage::StartsUnasked, "a finished job never starts, cancelled or not");
}

#[test]
fn a_coordinator_that_forgets_what_jobs_need_is_caught() {
    caught(Sabotage::DropsNeeds, "a job starts only after all that it needs passed");
}

#[test]
fn a_coordinator_that_puts_false_ends_down_is_caught() {
    for sabotage in [Sabotage::PutsDownSkipped, Sabotage::PutsDownCancelled] {
        caught(sabotage, "the verdict is the true one");
    }
    caught(Sabotage::PutsDownInfra, "the farm fails only by what went wrong with it");
}

#[test]
fn a_worker_that_does_not_say_that_it_only_sends_is_caught() {
    caught(Sabotage::SendsUnsaid, "the verdict is the true one");
}

#[test]
fn a_coordinator_that_holds_calls_too_long_is_caught() {
    caught(Sabotage::HoldsTooLong, "the farm fails only by what went wrong with it");
}

#[test]
fn a_coordinator_that_gives_no_fresh_term_after_its_restart_is_caught() {
    caught(Sabotage::NoTermAfterRestart, "time in which no coordinator listened is held against nobody");
}
