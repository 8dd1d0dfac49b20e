//! What workers say, and what is made of it.

use buildyard_scheduler::lifecycle::attempt::decided_end;
use buildyard_scheduler::{Input, Rejection, Reply};
use buildyard_types::outcome::{InfraCause, TimeLimit};
use buildyard_types::worker::{AttemptProgress, AttemptReport, EndReport, SessionId, StepReport, StopCause};
use buildyard_types::{Fence, Millis, Outcome, RunId, Timestamp, WorkerId};

use crate::farm::{Farm, failed, infra, job, step};

fn placed() -> (Farm, WorkerId, RunId) {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    (farm, worker, run)
}

fn idle(reply: &Reply) -> bool {
    match reply {
        Reply::Sync { idle, .. } => *idle,
        other => panic!("a call was answered with {other:?}"),
    }
}

#[test]
fn assigned_is_not_running_until_the_first_step_began() {
    let (mut farm, worker, run) = placed();
    let attempt = run.job(0).attempt(1);
    farm.sync(worker, &[farm.preparing(attempt)]);
    assert_eq!(farm.is(run.job(0)), "assigned");
    farm.now += 5_000;
    farm.sync(worker, &[farm.runs(attempt, 2_000)]);
    assert_eq!(farm.is(run.job(0)), "running");
    let started = farm.core.state().attempts[&attempt].started_at;
    assert_eq!(started, Some(Timestamp(farm.now - 2_000)));
}

#[test]
fn an_attempt_cannot_have_begun_before_it_was_placed() {
    let (mut farm, worker, run) = placed();
    let attempt = run.job(0).attempt(1);
    let placed_at = farm.core.state().attempts[&attempt].placed_at;
    farm.sync(worker, &[farm.runs(attempt, u64::MAX)]);
    assert_eq!(farm.core.state().attempts[&attempt].started_at, Some(placed_at));
}

#[test]
fn a_short_attempt_that_was_never_seen_running_has_a_start_all_the_same() {
    let (mut farm, worker, run) = placed();
    farm.now += 4_000;
    let attempt = run.job(0).attempt(1);
    let report = EndReport { steps: vec![step(100), step(200)], ..decided_end(Outcome::Passed) };
    let ended = AttemptProgress::Ended { report: Box::new(report), removed: false };
    farm.sync(worker, &[farm.report(attempt, ended)]);
    assert_eq!(farm.core.state().attempts[&attempt].started_at, Some(Timestamp(farm.now - 300)));
}

#[test]
fn an_order_is_repeated_until_the_worker_lists_it() {
    let (mut farm, worker, run) = placed();
    for _ in 0..3 {
        let response = farm.sync(worker, &[]);
        assert_eq!(response.run[0].attempt, run.job(0).attempt(1));
        assert_eq!(farm.records(), [], "the same attempt, the same fence");
    }
    let listed = [farm.preparing(run.job(0).attempt(1))];
    let reply = farm.call(worker, &listed);
    assert!(idle(&reply), "{reply:?}");
}

#[test]
fn a_stop_is_repeated_until_the_worker_stops() {
    let (mut farm, worker, run) = placed();
    let attempt = run.job(0).attempt(1);
    let running = [farm.runs(attempt, 0)];
    farm.sync(worker, &running);
    farm.decide(Input::CancelJob { job: run.job(0), by: "by admin".into() });
    assert!(farm.last.as_ref().is_some_and(|decision| decision.news.contains(&worker)));
    for _ in 0..2 {
        let response = farm.sync(worker, &running);
        assert_eq!(response.stop[0].cause, StopCause::Cancelled { by: "by admin".into() });
        assert_eq!(response.stop[0].grace_ms, Millis::from_secs(10));
    }
    let stopping = [farm.report(attempt, AttemptProgress::Stopping)];
    assert!(idle(&farm.call(worker, &stopping)), "it is at it");
}

#[test]
fn a_stop_of_what_the_worker_does_not_list_is_sent_too() {
    let (mut farm, worker, run) = placed();
    farm.decide(Input::CancelJob { job: run.job(0), by: "by admin".into() });
    let response = farm.sync(worker, &[]);
    assert_eq!((response.stop.len(), response.run.len()), (1, 0), "the order may be on its way");
    assert_eq!(farm.is(run.job(0)), "stopping");
}

#[test]
fn an_end_is_forgotten_by_the_worker_once_it_is_on_record() {
    let (mut farm, worker, run) = placed();
    let attempt = run.job(0).attempt(1);
    let ended = [farm.ended(attempt, Outcome::Passed, false)];
    let Reply::Sync { response, idle } = farm.call(worker, &ended) else { panic!("a call") };
    assert_eq!(response.forget, [attempt]);
    assert!(idle, "the worker is busy cleaning up: no reason to answer it again and again");
    let removed = [AttemptReport {
        state: AttemptProgress::Ended { report: Box::new(decided_end(Outcome::Passed)), removed: true },
        ..ended[0].clone()
    }];
    let Reply::Sync { response, idle } = farm.call(worker, &removed) else { panic!("a call") };
    assert_eq!((response.forget.as_slice(), idle), ([attempt].as_slice(), false));
}

#[test]
fn an_attempt_that_the_worker_forgot_after_its_end_is_gone() {
    let (mut farm, worker, run) = placed();
    let ended = [farm.ended(run.job(0).attempt(1), Outcome::Passed, false)];
    farm.sync(worker, &ended);
    assert_eq!(farm.core.state().runs.len(), 1);
    farm.sync(worker, &[]);
    assert!(farm.core.state().runs.is_empty());
}

#[test]
fn reports_of_unknown_attempts_and_stale_fences_are_answered_and_change_nothing() {
    let (mut farm, worker, run) = placed();
    let good = farm.preparing(run.job(0).attempt(1));
    let unknown = AttemptReport { attempt: RunId(77).job(0).attempt(1), ..good.clone() };
    let stale = AttemptReport { fence: Fence(0), ..good.clone() };
    let over = AttemptReport {
        attempt: RunId(77).job(1).attempt(1),
        state: AttemptProgress::Ended { report: Box::new(decided_end(failed())), removed: true },
        ..good
    };
    let response = farm.sync(worker, &[unknown.clone(), stale.clone(), over.clone()]);
    assert_eq!(farm.records(), []);
    let stopped: Vec<_> = response.stop.iter().map(|stop| (stop.attempt, stop.fence, &stop.cause)).collect();
    assert_eq!(
        stopped,
        [
            (stale.attempt, stale.fence, &StopCause::Revoked),
            (unknown.attempt, unknown.fence, &StopCause::Revoked)
        ]
    );
    assert_eq!(response.forget, [over.attempt]);
    assert!(response.run.is_empty(), "not before the older life of it is gone");
}

#[test]
fn a_worker_cannot_speak_for_another() {
    let (mut farm, worker, run) = placed();
    let thief = farm.worker("");
    let attempt = run.job(0).attempt(1);
    let claim = [farm.ended(attempt, failed(), true)];
    let response = farm.sync(thief, &claim);
    assert_eq!(farm.is(run.job(0)), "assigned");
    assert_eq!(response.forget, [attempt]);
    assert_eq!(farm.on(run.job(0)), Some(worker));
}

#[test]
fn an_older_session_is_rejected_and_a_newer_one_takes_over() {
    let (mut farm, worker, run) = placed();
    let running = [farm.runs(run.job(0).attempt(1), 0)];
    farm.sync(worker, &running);
    farm.worker_restarts(worker);
    farm.sync(worker, &running);
    farm.sequences.insert(worker, (1, 50));
    let rejected = farm.call(worker, &[]);
    assert_eq!(rejected, Reply::Rejected(Rejection::SessionTakenOver { worker, session: 1, by: 2 }));
    assert_eq!(farm.is(run.job(0)), "running", "it changed nothing");
}

/// A data folder that was copied counts on from the same number. Both were served: two containers of one job, under
/// one fence.
#[test]
fn of_two_workers_that_count_on_from_one_folder_the_later_comer_is_rejected() {
    let (mut farm, worker, run) = placed();
    let running = vec![farm.runs(run.job(0).attempt(1), 0)];
    farm.sync(worker, &running);
    let offer = farm.core.state().workers[&worker].offer.clone();
    let call = |nonce, sequence| Input::Sync {
        worker,
        session: SessionId { number: 1, nonce },
        sequence,
        offer: offer.clone(),
        attempts: running.clone(),
    };
    let rejected = farm.decide(call(7, 50));
    assert_eq!(rejected, Reply::Rejected(Rejection::SessionTakenOver { worker, session: 1, by: 1 }));
    assert!(matches!(farm.decide(call(0, 51)), Reply::Sync { .. }), "the first is served on");
}

#[test]
fn an_overtaken_call_is_answered_at_once_and_changes_nothing() {
    let (mut farm, worker, run) = placed();
    farm.sequences.insert(worker, (1, 9));
    let running = [farm.runs(run.job(0).attempt(1), 0)];
    farm.sync(worker, &running);
    for sequence in [9, 3] {
        farm.sequences.insert(worker, (1, sequence));
        let reply = farm.call(worker, &[]);
        assert!(!idle(&reply) && farm.records().is_empty(), "call {}", sequence + 1);
    }
    assert_eq!(farm.is(run.job(0)), "running", "an old call that does not list the attempt loses nothing");
}

#[test]
fn an_overtaken_call_does_not_renew_the_lease() {
    let (mut farm, worker, run) = placed();
    farm.sequences.insert(worker, (1, 9));
    let running = [farm.runs(run.job(0).attempt(1), 0)];
    farm.sync(worker, &running);
    farm.now += 24_000;
    farm.sequences.insert(worker, (1, 2));
    farm.call(worker, &running);
    farm.pass(1_000);
    assert_eq!(farm.is(run.job(0)), "queued");
}

#[test]
fn a_running_attempt_that_a_newer_session_does_not_know_is_lost_and_waits_until_its_container_is_dead() {
    let (mut farm, worker, run) = placed();
    farm.sync(worker, &[farm.runs(run.job(0).attempt(1), 0)]);
    farm.worker_restarts(worker);
    farm.sync(worker, &[]);
    assert_eq!(farm.is(run.job(0)), "queued");
    farm.pass(10_000);
    farm.sync(worker, &[]);
    farm.pass(14_999);
    farm.sync(worker, &[]);
    assert_eq!(farm.is(run.job(0)), "queued", "its init may have a lease yet");
    farm.pass(1);
    assert_eq!(farm.is(run.job(0)), "assigned");
}

#[test]
fn ends_that_cannot_be_are_a_fault_of_the_worker() {
    for claim in [
        Outcome::Skipped { reason: "I did not feel like it".into() },
        Outcome::TimedOut { limit: TimeLimit::Queue, after_ms: Millis(1) },
        Outcome::Cancelled { by: "by nobody".into() },
        Outcome::Failed { step: "test".into(), exit_code: 0 },
        infra(InfraCause::WorkerLost),
        infra(InfraCause::StopIgnored),
    ] {
        let (mut farm, worker, run) = placed();
        let attempt = run.job(0).attempt(1);
        let ended = [farm.ended(attempt, claim.clone(), false)];
        farm.sync(worker, &ended);
        assert_eq!(farm.is(run.job(0)), "queued", "{claim}");
        let report = farm.core.state().attempts[&attempt].state.report().map(|report| report.outcome.clone());
        assert!(
            matches!(report, Some(Outcome::Infra { cause: InfraCause::Worker, .. })),
            "{claim}: {report:?}"
        );
    }
}

#[test]
fn an_attempt_that_passed_has_no_step_that_failed() {
    for (code, state) in [(0, "finished"), (2, "queued")] {
        let mut farm = Farm::new();
        let worker = farm.worker("");
        let run = farm.run(vec![job("a"), job("b")]);
        let attempt = run.job(0).attempt(1);
        let steps = vec![step(10), StepReport { exit_code: Some(code), ..step(10) }];
        let report = Box::new(EndReport { steps, ..decided_end(Outcome::Passed) });
        let ended = farm.report(attempt, AttemptProgress::Ended { report, removed: true });
        farm.sync(worker, &[ended, farm.preparing(run.job(1).attempt(1))]);
        assert_eq!(farm.is(run.job(0)), state, "exit code {code}");
    }
}

#[test]
fn ends_that_a_worker_sees_are_believed() {
    let limit = buildyard_types::ByteSize(1);
    for claim in [
        Outcome::Passed,
        failed(),
        Outcome::TimedOut { limit: TimeLimit::Job, after_ms: Millis(1) },
        Outcome::OutOfMemory { step: None, limit },
        Outcome::DiskQuota { step: None, limit },
        Outcome::LogCap { step: None, limit },
        Outcome::Refused { reason: "the image has no shell".into() },
    ] {
        let (mut farm, worker, run) = placed();
        let ended = [farm.ended(run.job(0).attempt(1), claim.clone(), false)];
        farm.sync(worker, &ended);
        assert_eq!(farm.outcome(run.job(0)), claim);
    }
}

#[test]
fn the_first_end_counts() {
    let (mut farm, worker, run) = placed();
    let attempt = run.job(0).attempt(1);
    let first = [farm.ended(attempt, failed(), false)];
    farm.sync(worker, &first);
    let second = [farm.ended(attempt, Outcome::Passed, true)];
    farm.sync(worker, &second);
    assert_eq!(farm.outcome(run.job(0)), failed());
}

#[test]
fn a_worker_of_which_nothing_is_known_is_rejected() {
    let mut farm = Farm::new();
    let stranger = WorkerId(99);
    assert_eq!(farm.call(stranger, &[]), Reply::Rejected(Rejection::NoWorker(stranger)));
}

/// A coordinator whose disk was full took no artifacts: the job was stopped for its time limit although its steps
/// had passed, and then its worker for not obeying.
#[test]
fn no_limit_of_a_job_applies_while_its_attempt_only_sends() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a"), job("b"), job("c")]);
    let [a, b, c] = [0, 1, 2].map(|index| run.job(index).attempt(1));
    farm.sync(worker, &[farm.runs(a, 0), farm.runs(b, 0), farm.preparing(c)]);
    farm.decide(Input::CancelJob { job: run.job(1), by: "by admin".into() });
    let sending = [a, b, c].map(|attempt| farm.report(attempt, AttemptProgress::Sending));
    for _ in 0..600 {
        let response = farm.sync(worker, &sending);
        assert_eq!(response.stop, [], "nothing runs that could be stopped");
        farm.pass(10_000);
    }
    let are = [0, 1, 2].map(|index| farm.is(run.job(index)));
    assert_eq!(are, ["running", "stopping", "assigned"]);
    let ends = [a, b, c].map(|attempt| farm.ended(attempt, Outcome::Passed, true));
    farm.sync(worker, &ends);
    let outcomes = [0, 1, 2].map(|index| farm.outcome(run.job(index)));
    assert_eq!(outcomes, [Outcome::Passed, Outcome::Cancelled { by: "by admin".into() }, Outcome::Passed]);
}

#[test]
fn an_attempt_that_sends_for_ever_is_given_up_as_the_farms_fault() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    let attempt = run.job(0).attempt(1);
    farm.sync(worker, &[farm.runs(attempt, 0)]);
    let sending = [farm.report(attempt, AttemptProgress::Sending)];
    for _ in 0..6 * 360 {
        farm.sync(worker, &sending);
        farm.pass(10_000);
    }
    let response = farm.sync(worker, &sending);
    assert_eq!(response.stop.iter().map(|stop| &stop.cause).collect::<Vec<_>>(), [&StopCause::Revoked]);
    farm.sync(worker, &[farm.ended(attempt, infra(InfraCause::Worker), true)]);
    assert_eq!(farm.is(run.job(0)), "queued", "it is tried again");
}

#[test]
fn a_limit_counts_again_for_an_attempt_that_does_not_send_after_all() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    let attempt = run.job(0).attempt(1);
    farm.sync(worker, &[farm.runs(attempt, 0)]);
    farm.sync(worker, &[farm.report(attempt, AttemptProgress::Sending)]);
    for _ in 0..240 {
        farm.sync(worker, &[farm.runs(attempt, 0)]);
        farm.pass(10_000);
    }
    farm.sync(worker, &[farm.runs(attempt, 0)]);
    assert_eq!(farm.is(run.job(0)), "stopping");
}
