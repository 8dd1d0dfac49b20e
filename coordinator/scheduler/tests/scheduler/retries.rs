//! Farm faults are tried again; stops and limits end.

use buildyard_scheduler::lifecycle::job::JobState;
use buildyard_scheduler::{Input, Settings};
use buildyard_types::outcome::{InfraCause, TimeLimit};
use buildyard_types::worker::{AttemptProgress, StopCause};
use buildyard_types::{JobSpec, Millis, Outcome, Timestamp};

use crate::farm::{Farm, capacity, failed, infra, job};

#[test]
fn a_farm_fault_is_tried_again_on_another_worker() {
    let mut farm = Farm::new();
    let first = farm.worker_of("", capacity(8, 64));
    let run = farm.run(vec![job("a")]);
    let second = farm.worker_of("", capacity(1, 1));
    assert_eq!(farm.on(run.job(0)), Some(first));
    farm.finish(run.job(0), infra(InfraCause::Engine));
    assert_eq!(farm.is(run.job(0)), "queued");
    farm.pass(1_000);
    assert_eq!(farm.on(run.job(0)), Some(second), "though the first one has more room");
    farm.finish(run.job(0), infra(InfraCause::Pull));
    farm.pass(2_000);
    assert_eq!(farm.on(run.job(0)), Some(first), "both failed it: any will do");
    farm.finish(run.job(0), infra(InfraCause::Pull));
    assert_eq!(farm.outcome(run.job(0)), infra(InfraCause::Pull), "three attempts are enough");
}

#[test]
fn a_jobs_own_failure_is_final() {
    let mut farm = Farm::new();
    farm.worker("");
    let run = farm.run(vec![job("a"), job("b")]);
    farm.finish(run.job(0), failed());
    assert_eq!(farm.outcome(run.job(0)), failed());
}

#[test]
fn a_retry_goes_before_jobs_that_were_queued_after_its_first_placement() {
    let mut farm = Farm::new();
    farm.worker_of("", capacity(1, 8));
    let old = farm.run(vec![job("a")]);
    farm.now += 1_000;
    let young = farm.run(vec![job("b")]);
    farm.finish(old.job(0), infra(InfraCause::Engine));
    assert_eq!(farm.is(young.job(0)), "assigned", "the slot does not wait for the back-off");
    farm.pass(1_000);
    let younger = farm.run(vec![job("c")]);
    farm.finish(young.job(0), Outcome::Passed);
    assert_eq!((farm.is(old.job(0)), farm.is(younger.job(0))), ("assigned", "queued"));
}

#[test]
fn the_time_to_wait_for_a_worker_begins_anew_with_a_retry() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let spec = JobSpec { queue_timeout_ms: Millis(60_000), ..job("a") };
    let run = farm.run(vec![spec]);
    for _ in 0..10 {
        farm.pass(10_000);
        let running = farm.running(worker);
        farm.sync(worker, &running);
    }
    farm.decide(Input::Cordon { worker, cordoned: true });
    farm.finish(run.job(0), infra(InfraCause::Engine));
    farm.pass(60_000);
    assert_eq!(farm.is(run.job(0)), "queued", "it ran for longer than it may wait, and that does not count");
    farm.pass(1_000);
    assert!(matches!(farm.outcome(run.job(0)), Outcome::TimedOut { limit: TimeLimit::Queue, .. }));
}

#[test]
fn a_worker_that_does_not_keep_the_time_limit_is_told_to() {
    let mut farm = Farm::with(Settings { limit_slack_ms: Millis(60_000), ..Settings::default() });
    let worker = farm.worker("");
    let run = farm.run(vec![JobSpec { timeout_ms: Millis(30_000), ..job("a") }]);
    let attempt = run.job(0).attempt(1);
    farm.sync(worker, &[farm.runs(attempt, 0)]);
    for _ in 0..9 {
        farm.pass(10_000);
        let running = farm.running(worker);
        farm.sync(worker, &running);
    }
    assert_eq!(farm.is(run.job(0)), "stopping");
    let response = farm.sync(worker, &farm.running(worker));
    assert_eq!(response.stop[0].cause, StopCause::TimedOut { after_ms: Millis(30_000) });
    let limit = Outcome::TimedOut { limit: TimeLimit::Job, after_ms: Millis(30_000) };
    farm.finish(run.job(0), limit.clone());
    assert_eq!(farm.outcome(run.job(0)), limit);
}

#[test]
fn an_attempt_that_is_prepared_for_ever_is_stopped_and_tried_again() {
    let mut farm = Farm::with(Settings { prepare_limit_ms: Millis(10_000), ..Settings::default() });
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    let attempt = run.job(0).attempt(1);
    farm.sync(worker, &[farm.preparing(attempt)]);
    farm.pass(10_000);
    assert_eq!(farm.is(run.job(0)), "stopping");
    let response = farm.sync(worker, &[farm.preparing(attempt)]);
    assert_eq!(response.stop[0].cause, StopCause::Revoked);
    farm.finish(run.job(0), infra(InfraCause::Pull));
    assert_eq!(farm.is(run.job(0)), "queued");
}

#[test]
fn a_job_that_is_cancelled_while_it_is_stopped_for_another_reason_does_not_come_back() {
    let mut farm = Farm::with(Settings { prepare_limit_ms: Millis(10_000), ..Settings::default() });
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    let attempt = run.job(0).attempt(1);
    farm.sync(worker, &[farm.preparing(attempt)]);
    farm.pass(10_000);
    farm.decide(Input::CancelRun { run, by: "by admin".into() });
    farm.finish(run.job(0), infra(InfraCause::Pull));
    assert_eq!(farm.outcome(run.job(0)), Outcome::Cancelled { by: "by admin".into() });
}

#[test]
fn a_worker_that_ignores_a_stop_gets_nothing_until_it_is_rid_of_the_attempt() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    let attempt = run.job(0).attempt(1);
    farm.sync(worker, &[farm.runs(attempt, 0)]);
    farm.decide(Input::CancelJob { job: run.job(0), by: "by admin".into() });
    let deadline = match farm.state_of(run.job(0)) {
        JobState::Stopping { deadline, .. } => *deadline,
        other => panic!("{other:?}"),
    };
    assert_eq!(deadline, Timestamp(farm.now + 30_000));
    let stopping = [farm.report(attempt, AttemptProgress::Stopping)];
    for _ in 0..3 {
        farm.sync(worker, &stopping);
        farm.pass(10_000);
    }
    assert_eq!(farm.outcome(run.job(0)), Outcome::Cancelled { by: "by admin".into() });
    let report = farm.core.state().attempts[&attempt].state.report().map(|report| report.outcome.clone());
    assert!(matches!(report, Some(Outcome::Infra { cause: InfraCause::StopIgnored, .. })), "{report:?}");
    farm.sync(worker, &stopping);
    let next = farm.run(vec![job("b")]);
    assert_eq!(farm.is(next.job(0)), "queued");
    farm.sync(worker, &[]);
    assert_eq!(farm.is(next.job(0)), "assigned");
}

#[test]
fn a_stop_for_a_limit_that_is_ignored_is_a_fault_of_the_farm_and_is_not_tried_again() {
    let mut farm = Farm::with(Settings { prepare_limit_ms: Millis(10_000), ..Settings::default() });
    let worker = farm.worker("");
    let run = farm.run(vec![job("a"), job("b")]);
    let reports = [farm.preparing(run.job(0).attempt(1)), farm.runs(run.job(1).attempt(1), 0)];
    farm.sync(worker, &reports);
    for _ in 0..4 {
        farm.pass(10_000);
        farm.sync(worker, &reports);
    }
    let outcome = farm.outcome(run.job(0));
    assert!(matches!(outcome, Outcome::Infra { cause: InfraCause::StopIgnored, .. }), "{outcome}");
}
