//! Silence: fresh, quiet, lost, and what a restart of the coordinator means.

use buildyard_scheduler::Input;
use buildyard_scheduler::lifecycle::worker::Liveness;
use buildyard_types::outcome::InfraCause;
use buildyard_types::worker::{AttemptProgress, StopCause};
use buildyard_types::{Outcome, Timestamp};

use crate::farm::{Farm, job};

#[test]
fn a_silent_worker_gets_nothing_new_after_its_lease() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    farm.pass(15_000);
    assert_eq!(farm.core.liveness(worker, Timestamp(farm.now)), Some(Liveness::Quiet));
    let run = farm.run(vec![job("a")]);
    assert_eq!(farm.is(run.job(0)), "queued");
    farm.sync(worker, &[]);
    assert_eq!(farm.is(run.job(0)), "assigned", "it is back");
}

#[test]
fn a_lost_workers_jobs_run_elsewhere_after_lease_and_grace() {
    let mut farm = Farm::new();
    let first = farm.worker("");
    let run = farm.run(vec![job("a")]);
    farm.sync(first, &farm.running(first));
    let second = farm.worker("");
    for _ in 0..4 {
        farm.pass(6_000);
        farm.sync(second, &[]);
    }
    assert_eq!(farm.on(run.job(0)), Some(first), "24 s are not lease and grace");
    farm.pass(1_000);
    assert_eq!(farm.on(run.job(0)), Some(second));
    let lost = farm.core.state().attempts[&run.job(0).attempt(1)].clone();
    let outcome = lost.state.report().map(|report| report.outcome.clone());
    assert!(matches!(outcome, Some(Outcome::Infra { cause: InfraCause::WorkerLost, .. })), "{outcome:?}");
}

#[test]
fn a_worker_that_comes_back_too_late_is_told_to_revoke_and_changes_nothing() {
    let mut farm = Farm::new();
    let first = farm.worker("");
    let run = farm.run(vec![job("a")]);
    let attempt = run.job(0).attempt(1);
    let running = [farm.runs(attempt, 100)];
    farm.sync(first, &running);
    farm.pass(25_000);
    assert_eq!(farm.is(run.job(0)), "queued");
    let response = farm.sync(first, &running);
    assert_eq!((response.stop[0].attempt, &response.stop[0].cause), (attempt, &StopCause::Revoked));
    assert_eq!(farm.is(run.job(0)), "assigned", "it gets a new attempt of its own");
    let late = [farm.ended(attempt, Outcome::Passed, true), farm.preparing(run.job(0).attempt(2))];
    let response = farm.sync(first, &late);
    assert_eq!(response.forget, [attempt]);
    assert_eq!(farm.is(run.job(0)), "assigned", "a late report changes nothing");
}

#[test]
fn after_a_restart_every_lease_gets_a_full_fresh_term() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    farm.sync(worker, &farm.running(worker));
    farm.now += 600_000;
    farm.restart();
    assert_eq!(
        farm.core.liveness(worker, Timestamp(farm.now)),
        Some(Liveness::Unknown),
        "unknown is not dead"
    );
    farm.pass(24_999);
    assert_eq!(farm.is(run.job(0)), "running");
    let reports = farm.running(worker);
    farm.sync(worker, &reports);
    farm.pass(10_000);
    assert_eq!(farm.is(run.job(0)), "running");
    assert_eq!(farm.core.state().attempts.len(), 1, "the same attempt goes on");
}

#[test]
fn after_a_restart_a_worker_that_stays_away_is_lost_in_the_end() {
    let mut farm = Farm::new();
    farm.worker("");
    let run = farm.run(vec![job("a")]);
    farm.restart();
    assert_eq!(farm.core.next_wakeup().map(|at| at.0), Some(farm.now + 25_000));
    farm.pass(25_000);
    assert_eq!(farm.is(run.job(0)), "queued");
}

#[test]
fn calls_that_waited_for_a_slow_commit_are_heard_before_anybody_is_lost() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    let running = farm.running(worker);
    farm.sync(worker, &running);
    farm.now += 40_000;
    // The driver decides the calls that it has, and only then looks at the time.
    farm.sync(worker, &running);
    farm.decide(Input::Tick);
    assert_eq!(farm.is(run.job(0)), "running");
}

#[test]
fn a_worker_that_was_never_heard_of_gets_nothing() {
    let mut farm = Farm::new();
    let worker = farm.silent_worker("", crate::farm::capacity(1, 1));
    let run = farm.run(vec![job("a")]);
    assert_eq!(farm.is(run.job(0)), "queued");
    farm.sync(worker, &[]);
    assert_eq!(farm.is(run.job(0)), "assigned");
}

#[test]
fn what_a_lost_worker_still_holds_counts_when_it_is_back() {
    let mut farm = Farm::new();
    let worker = farm.worker_of("", crate::farm::capacity(1, 8));
    let run = farm.run(vec![job("a")]);
    let attempt = run.job(0).attempt(1);
    farm.sync(worker, &[farm.runs(attempt, 0)]);
    farm.pass(25_000);
    let stopping = [farm.report(attempt, AttemptProgress::Stopping)];
    farm.sync(worker, &stopping);
    assert_eq!(farm.is(run.job(0)), "queued", "its only slot is taken by what is left");
    farm.sync(worker, &[]);
    assert_eq!(farm.is(run.job(0)), "assigned", "not listed any more: it is gone");
}

/// The deadline passed while no coordinator listened: at its first tick it called the stop ignored, and the report
/// that the worker had waited to make was refused.
#[test]
fn after_a_restart_a_stop_has_its_whole_time_again() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    let attempt = run.job(0).attempt(1);
    farm.sync(worker, &farm.running(worker));
    farm.decide(Input::CancelJob { job: run.job(0), by: "by admin".into() });
    farm.now += 60_000;
    farm.restart();
    farm.pass(20_000);
    let response = farm.sync(worker, &[farm.runs(attempt, 90_000)]);
    assert_eq!(response.stop.len(), 1, "it may not have been told before");
    farm.pass(9_999);
    assert_eq!(farm.is(run.job(0)), "stopping");
    let response = farm.sync(worker, &[farm.ended(attempt, Outcome::Passed, true)]);
    assert_eq!(response.forget, [attempt]);
    assert_eq!(farm.outcome(run.job(0)), Outcome::Cancelled { by: "by admin".into() });
}

#[test]
fn after_a_restart_a_stop_that_stays_without_answer_is_ignored_in_the_end() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    let attempt = run.job(0).attempt(1);
    farm.sync(worker, &farm.running(worker));
    farm.decide(Input::CancelJob { job: run.job(0), by: "by admin".into() });
    farm.restart();
    for _ in 0..3 {
        farm.pass(10_000);
        farm.sync(worker, &[farm.report(attempt, AttemptProgress::Stopping)]);
    }
    let end = farm.core.state().attempts[&attempt].state.report().map(|report| report.outcome.clone());
    assert!(matches!(end, Some(Outcome::Infra { cause: InfraCause::StopIgnored, .. })), "{end:?}");
}

/// A coordinator that was down for two hours ended every queued job before a worker could call.
#[test]
fn after_a_restart_queued_jobs_wait_for_workers_as_long_as_at_first() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    farm.pass(60_000);
    let run = farm.run(vec![job("a")]);
    farm.now += 2 * 3_600_000;
    farm.restart();
    farm.pass(10_000);
    assert_eq!(farm.is(run.job(0)), "queued");
    farm.sync(worker, &[]);
    assert_eq!(farm.is(run.job(0)), "assigned");
}

#[test]
fn after_a_restart_a_worker_can_say_what_became_of_attempts_whose_limits_passed() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a"), job("b")]);
    let (a, b) = (run.job(0).attempt(1), run.job(1).attempt(1));
    farm.sync(worker, &[farm.preparing(a), farm.runs(b, 0)]);
    farm.now += 2 * 3_600_000;
    farm.restart();
    farm.pass(24_999);
    assert_eq!((farm.is(run.job(0)), farm.is(run.job(1))), ("assigned", "running"));
    farm.sync(worker, &[farm.ended(a, Outcome::Passed, true), farm.ended(b, Outcome::Passed, true)]);
    assert_eq!(farm.outcome(run.job(0)), Outcome::Passed);
    assert_eq!(farm.outcome(run.job(1)), Outcome::Passed);
}
