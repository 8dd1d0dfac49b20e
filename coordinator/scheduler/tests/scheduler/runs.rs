//! Runs and their graphs: submitted, refused, gates, skipped, cancelled, over.

use buildyard_scheduler::lifecycle::run::RunState;
use buildyard_scheduler::{Compiled, Input, Record, Rejection, Reply, Settings};
use buildyard_types::outcome::{InfraCause, TimeLimit};
use buildyard_types::{Millis, Outcome, RunId, Verdict};

use crate::farm::{Farm, failed, infra, job, labelled, needing, sized};

fn cancelled() -> Outcome {
    Outcome::Cancelled { by: "by admin".into() }
}

fn cancel_run(farm: &mut Farm, run: RunId) -> Reply {
    farm.decide(Input::CancelRun { run, by: "by admin".into() })
}

fn verdict(farm: &Farm) -> Option<Verdict> {
    farm.records().iter().find_map(|record| match record {
        Record::RunChanged { state: RunState::Finished { verdict, .. }, .. } => Some(*verdict),
        _ => None,
    })
}

#[test]
fn the_same_key_means_the_same_run() {
    let mut farm = Farm::new();
    let first = farm.submit_keyed(Some("k"));
    assert_eq!(farm.submit_keyed(Some("k")), first);
    assert_eq!(farm.records(), []);
    assert_ne!(farm.submit_keyed(Some("other")), first);
    assert_ne!(farm.submit_keyed(None), farm.submit_keyed(None));
}

#[test]
fn a_key_is_remembered_after_its_run_is_over_and_after_a_restart() {
    let mut farm = Farm::new();
    let run = farm.submit_keyed(Some("k"));
    cancel_run(&mut farm, run);
    assert!(farm.core.state().runs.is_empty(), "the run is over and gone");
    farm.restart();
    assert_eq!(farm.submit_keyed(Some("k")), run);
}

#[test]
fn no_more_runs_are_accepted_than_the_limit() {
    let mut farm = Farm::with(Settings { max_runs: 1, ..Settings::default() });
    let run = farm.submit();
    let source = farm.core.state().runs[&run].source.clone();
    let again = Input::Submit { source, file: "f".into(), requested_by: "x".into(), key: None };
    assert_eq!(farm.decide(again), Reply::Rejected(Rejection::TooManyRuns { limit: 1 }));
    cancel_run(&mut farm, run);
    farm.submit();
}

#[test]
fn a_bad_file_refuses_the_run() {
    let mut farm = Farm::new();
    let run = farm.submit();
    farm.decide(Input::Compiled { run, result: Compiled::Refused(Vec::new()) });
    let refused =
        |record: &Record| matches!(record, Record::RunChanged { state: RunState::Refused { .. }, .. });
    assert!(farm.records().iter().any(refused));
    assert!(farm.core.state().runs.is_empty());
}

#[test]
fn a_source_that_cannot_be_read_is_the_farms_fault() {
    let mut farm = Farm::new();
    let run = farm.submit();
    farm.decide(Input::Compiled { run, result: Compiled::SourceFailed("no such commit".into()) });
    assert_eq!(verdict(&farm), Some(Verdict::Infra));
}

#[test]
fn compiling_twice_changes_nothing() {
    let mut farm = Farm::new();
    let run = farm.run(vec![job("a")]);
    assert_eq!(farm.compile(run, vec![job("a"), job("b")]), Reply::Done);
    assert_eq!(farm.records(), []);
}

#[test]
fn labels_that_no_known_worker_offers_are_refused_with_the_nearest() {
    let mut farm = Farm::new();
    farm.worker("arch=amd64");
    farm.worker("arch=arm64 gpu");
    farm.run(vec![job("good"), labelled("bad", "arch=arm64 && gpu && big")]);
    let found = farm.refused();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].code, "no-worker-matches");
    assert!(found[0].message.contains("`bad`"), "{}", found[0]);
    assert_eq!(found[0].help.as_deref(), Some("the nearest worker is worker-2; it lacks big"));
    assert_eq!((found[0].line, found[0].file.as_str()), (0, "pipeline.toml"));
}

#[test]
fn a_job_larger_than_every_matching_worker_is_refused() {
    let mut farm = Farm::new();
    farm.worker("arch=amd64");
    farm.run(vec![sized("huge", 9)]);
    let found = farm.refused();
    assert_eq!(found[0].code, "no-worker-large-enough");
    assert_eq!(
        found[0].help.as_deref(),
        Some("the nearest worker is worker-1; it lacks 9 cpus (has 8 cpus)")
    );
}

#[test]
fn cordoned_and_silent_workers_count_as_known() {
    let mut farm = Farm::new();
    let worker = farm.worker("gpu");
    farm.decide(Input::Cordon { worker, cordoned: true });
    farm.pass(60_000);
    let run = farm.run(vec![labelled("a", "gpu")]);
    assert_eq!(farm.is(run.job(0)), "queued");
}

#[test]
fn without_any_worker_nothing_is_refused() {
    let mut farm = Farm::new();
    let run = farm.run(vec![labelled("a", "gpu && moon=full")]);
    assert_eq!(farm.is(run.job(0)), "queued");
}

#[test]
fn needs_that_cannot_open_are_refused() {
    let mut farm = Farm::new();
    farm.run(vec![needing("a", &["b"]), needing("b", &["a"]), job("c")]);
    assert_eq!(farm.refused()[0].code, "needs-cycle");
    assert_eq!(farm.refused()[0].message, "the needs of a, b form a cycle");
    farm.run(vec![needing("a", &["ghost"])]);
    assert_eq!(farm.refused()[0].code, "unknown-need");
}

#[test]
fn a_gate_opens_when_all_needs_passed() {
    let mut farm = Farm::new();
    farm.worker("");
    let run = farm.run(vec![job("a"), job("b"), needing("c", &["a", "b"])]);
    let (a, b, c) = (run.job(0), run.job(1), run.job(2));
    farm.finish(a, Outcome::Passed);
    assert_eq!(farm.is(c), "waiting");
    farm.finish(b, Outcome::Passed);
    assert_eq!(farm.is(c), "assigned");
    farm.finish(c, Outcome::Passed);
    assert_eq!(verdict(&farm), Some(Verdict::Passed));
    assert!(farm.core.state().jobs.is_empty(), "what is over leaves nothing behind");
    let settled = &farm.last.as_ref().expect("a decision").settled;
    assert_eq!((settled[0].run.id, settled[0].jobs.len(), settled[0].attempts.len()), (run, 3, 3));
}

#[test]
fn what_waited_in_vain_is_skipped_and_says_for_whom() {
    let mut farm = Farm::new();
    farm.worker("");
    let run = farm.run(vec![job("a"), needing("b", &["a"]), needing("c", &["b"]), job("d")]);
    farm.finish(run.job(0), failed());
    assert_eq!(farm.outcome(run.job(1)), Outcome::Skipped { reason: "job `a` failed".into() });
    assert_eq!(farm.outcome(run.job(2)), Outcome::Skipped { reason: "job `b` was skipped".into() });
    assert_eq!(verdict(&farm), None, "d is still to come");
    farm.finish(run.job(3), Outcome::Passed);
    assert_eq!(verdict(&farm), Some(Verdict::Failed));
}

#[test]
fn a_run_without_jobs_is_over_at_once() {
    let mut farm = Farm::new();
    farm.run(Vec::new());
    assert_eq!(verdict(&farm), Some(Verdict::Passed));
}

#[test]
fn cancelling_a_received_run_ends_it_and_a_late_compilation_finds_it_over() {
    let mut farm = Farm::new();
    let run = farm.submit();
    assert_eq!(cancel_run(&mut farm, run), Reply::Done);
    assert_eq!(verdict(&farm), Some(Verdict::Cancelled));
    let late = farm.compile(run, vec![job("a")]);
    assert_eq!(late, Reply::Rejected(Rejection::AlreadyFinished("run-1".into())));
    assert!(farm.core.state().jobs.is_empty(), "a cancelled job never starts, even from Received");
}

#[test]
fn cancelling_ends_waiting_and_queued_jobs_and_stops_the_others() {
    let mut farm = Farm::new();
    let worker = farm.worker_of("", crate::farm::capacity(1, 8));
    let run = farm.run(vec![job("a"), job("b"), needing("c", &["a"])]);
    assert_eq!(
        (farm.is(run.job(0)), farm.is(run.job(1)), farm.is(run.job(2))),
        ("assigned", "queued", "waiting")
    );
    cancel_run(&mut farm, run);
    assert_eq!(farm.is(run.job(0)), "stopping");
    assert_eq!(farm.outcome(run.job(1)), cancelled());
    assert_eq!(farm.outcome(run.job(2)), cancelled(), "cancelled too, and not skipped");
    let attempt = run.job(0).attempt(1);
    let response = farm.sync(worker, &[farm.preparing(attempt)]);
    assert_eq!(response.stop[0].attempt, attempt);
    let reports = [farm.ended(attempt, cancelled(), true)];
    farm.sync(worker, &reports);
    assert_eq!(verdict(&farm), Some(Verdict::Cancelled));
}

#[test]
fn a_cancelled_job_is_not_tried_again_when_its_worker_is_lost() {
    let mut farm = Farm::new();
    farm.worker("");
    let run = farm.run(vec![job("a")]);
    farm.decide(Input::CancelJob { job: run.job(0), by: "by admin".into() });
    farm.pass(25_000);
    assert_eq!(farm.outcome(run.job(0)), cancelled());
}

#[test]
fn cancelling_one_job_skips_what_needs_it() {
    let mut farm = Farm::new();
    let run = farm.run(vec![job("a"), needing("b", &["a"]), job("c")]);
    assert_eq!(farm.decide(Input::CancelJob { job: run.job(0), by: "by admin".into() }), Reply::Done);
    assert_eq!(farm.outcome(run.job(1)), Outcome::Skipped { reason: "job `a` was cancelled".into() });
    assert_eq!(farm.is(run.job(2)), "queued");
}

#[test]
fn cancelling_what_is_over_or_never_was_is_rejected() {
    let mut farm = Farm::new();
    let run = farm.run(vec![job("a")]);
    assert_eq!(
        farm.decide(Input::CancelJob { job: run.job(7), by: "x".into() }),
        Reply::Rejected(Rejection::NoJob(run.job(7)))
    );
    cancel_run(&mut farm, run);
    let over = Rejection::AlreadyFinished("run-1".into());
    assert_eq!(cancel_run(&mut farm, run), Reply::Rejected(over));
    let over = Rejection::AlreadyFinished("job-1-0".into());
    assert_eq!(farm.decide(Input::CancelJob { job: run.job(0), by: "x".into() }), Reply::Rejected(over));
    assert_eq!(cancel_run(&mut farm, RunId(9)), Reply::Rejected(Rejection::NoRun(RunId(9))));
    assert_eq!(cancel_run(&mut farm, RunId(0)), Reply::Rejected(Rejection::NoRun(RunId(0))));
}

#[test]
fn a_job_that_no_worker_takes_in_time_times_out_as_the_farms_fault() {
    let mut farm = Farm::new();
    let spec = buildyard_types::JobSpec { queue_timeout_ms: Millis(60_000), ..job("a") };
    let run = farm.run(vec![spec]);
    farm.pass(59_999);
    assert_eq!(farm.is(run.job(0)), "queued");
    assert_eq!(farm.core.next_wakeup().map(|at| at.0), Some(farm.now + 1));
    farm.pass(1);
    let expected = Outcome::TimedOut { limit: TimeLimit::Queue, after_ms: Millis(60_000) };
    assert_eq!(farm.outcome(run.job(0)), expected);
    assert_eq!(verdict(&farm), Some(Verdict::Infra));
}

#[test]
fn a_run_that_the_farm_could_not_finish_is_infra() {
    let mut farm = Farm::with(Settings { max_attempts: 1, ..Settings::default() });
    farm.worker("");
    let run = farm.run(vec![job("a")]);
    farm.finish(run.job(0), infra(InfraCause::Engine));
    assert_eq!(verdict(&farm), Some(Verdict::Infra));
}
