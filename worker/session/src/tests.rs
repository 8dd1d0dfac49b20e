//! The session, event by event, and under random ones.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_types::job::{CheckoutSpec, JobUser, NetworkMode, Resources};
use buildyard_types::outcome::InfraCause;
use buildyard_types::worker::{
    AttemptOrder, AttemptProgress, EndReport, SourceRef, StopCause, StopOrder, SyncResponse, Usage,
};
use buildyard_types::{AttemptId, ByteSize, Fence, JobSpec, Millis, Outcome, RunId, Timestamp};
use proptest::prelude::*;

use crate::{Action, Event, Held, JournalEntry, Session};

const LEASE: Millis = Millis(15_000);

fn attempt(number: u64) -> AttemptId {
    RunId(number).job(0).attempt(1)
}

fn order(number: u64, fence: u64) -> AttemptOrder {
    AttemptOrder {
        attempt: attempt(number),
        fence: Fence(fence),
        spec: spec(),
        source: SourceRef { repository: "r".into(), commit: "c".into(), ref_name: None },
        pipeline: "cjson".into(),
        log_cap: ByteSize::from_mib(1),
    }
}

fn spec() -> JobSpec {
    JobSpec {
        name: "test".into(),
        image: "debian:12".into(),
        labels: "".parse().expect("an empty expression"),
        needs: Vec::new(),
        env: BTreeMap::new(),
        steps: Vec::new(),
        resources: Resources { cpu_millis: 1, memory: ByteSize(1), pids: 1, disk: ByteSize(1) },
        timeout_ms: Millis(1),
        queue_timeout_ms: Millis(1),
        artifacts: Vec::new(),
        network: NetworkMode::None,
        user: JobUser::Build,
        checkout: CheckoutSpec { depth: None, tags: false },
    }
}

fn nothing() -> SyncResponse {
    SyncResponse { lease_ms: LEASE, run: Vec::new(), stop: Vec::new(), forget: Vec::new() }
}

fn run(orders: &[AttemptOrder]) -> SyncResponse {
    SyncResponse { run: orders.to_vec(), ..nothing() }
}

fn stop(number: u64, fence: u64, cause: StopCause) -> SyncResponse {
    let order = StopOrder { attempt: attempt(number), fence: Fence(fence), cause, grace_ms: Millis(10) };
    SyncResponse { stop: vec![order], ..nothing() }
}

fn forget(number: u64) -> SyncResponse {
    SyncResponse { forget: vec![attempt(number)], ..nothing() }
}

fn answered(sent: u64, response: SyncResponse) -> Event {
    Event::Answered { sent: Timestamp(sent), response }
}

fn report(outcome: Outcome) -> EndReport {
    EndReport { outcome, steps: Vec::new(), usage: Usage::default(), notes: Vec::new(), image_digest: None }
}

fn ended(number: u64, outcome: Outcome) -> Event {
    Event::Ended { attempt: attempt(number), report: report(outcome) }
}

fn cancel() -> StopCause {
    StopCause::Cancelled { by: "by admin".into() }
}

fn begun(actions: &[Action]) -> Vec<AttemptId> {
    let begun = |action: &Action| match action {
        Action::Begin { order } => Some(order.attempt),
        _ => None,
    };
    actions.iter().filter_map(begun).collect()
}

fn kept_alive(actions: &[Action]) -> Vec<(AttemptId, u64)> {
    let kept = |action: &Action| match action {
        Action::KeepAlive { attempt, until } => Some((*attempt, until.0)),
        _ => None,
    };
    actions.iter().filter_map(kept).collect()
}

/// A session that runs attempt 1 since 100.
fn running() -> Session {
    let mut session = Session::default();
    session.on(answered(0, run(&[order(1, 5)])), Timestamp(50));
    session.on(Event::Started { attempt: attempt(1) }, Timestamp(100));
    session
}

fn outcome_of(session: &Session, number: u64) -> Outcome {
    match session.attempts().get(&attempt(number)) {
        Some((_, Held::Ended { report, .. })) => report.outcome.clone(),
        other => panic!("attempt {number} is {other:?}"),
    }
}

#[test]
fn an_order_is_begun_once() {
    let mut session = Session::default();
    let first = session.on(answered(0, run(&[order(1, 5)])), Timestamp(10));
    assert_eq!(begun(&first), [attempt(1)]);
    assert_eq!(first.last(), Some(&Action::SyncNow));
    for now in [11, 12] {
        let again = session.on(answered(now, run(&[order(1, 5)])), Timestamp(now));
        assert_eq!(begun(&again), []);
        assert!(!again.contains(&Action::SyncNow), "no news, no call");
    }
}

/// A call that is held for as long as it may, and answered with nothing. Gives when it is answered.
fn held(session: &mut Session, sent: u64) -> u64 {
    let answered_at = sent + session.call_terms(Timestamp(sent)).hold_ms.0;
    session.on(answered(sent, nothing()), Timestamp(answered_at));
    answered_at
}

/// The lease counts from a call's sending, so each hold eats of it. With holds of a third of it, 2 s were left in
/// the worst case, and a quiet attempt was killed by a coordinator that was away for one.
#[test]
fn a_coordinator_may_be_away_for_two_fifths_of_the_lease_at_any_moment() {
    let mut session = running();
    let mut sent = 100;
    for round in 0..20 {
        let hold_ms = session.call_terms(Timestamp(sent)).hold_ms.0;
        // It dies at the last moment of this hold. What is left is the time in which it may come back.
        let fence_at = session.fence_at().expect("it was answered before").0;
        assert!(fence_at - (sent + hold_ms) >= 6_000, "round {round}: {fence_at} from {sent} + {hold_ms}");
        assert!(hold_ms >= 2_900, "round {round}: calls do not rest");
        sent = held(&mut session, sent);
    }
}

#[test]
fn a_coordinator_that_is_back_from_the_second_hold_finds_every_attempt() {
    let mut session = running();
    let second = held(&mut session, 100);
    let away = second + session.call_terms(Timestamp(second)).hold_ms.0 - 1;
    let back = away + 5_900;
    assert_eq!(session.on(Event::Tick, Timestamp(back)), []);
    assert_eq!(session.call_terms(Timestamp(back)).hold_ms, Millis(0), "it is answered at once");
    let actions = session.on(answered(back, nothing()), Timestamp(back + 10));
    assert_eq!(kept_alive(&actions), [(attempt(1), back + 12_000)]);
}

#[test]
fn a_call_that_is_lost_without_a_sign_leaves_time_for_two_more() {
    let mut session = running();
    let mut sent = held(&mut session, 100);
    let fence_at = session.fence_at().expect("it was answered").0;
    for _ in 0..2 {
        sent += session.call_terms(Timestamp(sent)).limit_ms.0;
    }
    assert!(sent + 1_000 <= fence_at, "{sent} of {fence_at}");
}

#[test]
fn a_call_rests_longest_when_nothing_can_be_lost_and_not_at_all_before_the_first_answer() {
    let mut session = Session::default();
    let terms = |session: &Session, now| session.call_terms(Timestamp(now));
    assert_eq!((terms(&session, 0).hold_ms, terms(&session, 0).limit_ms), (Millis(0), Millis(10_000)));
    session.on(answered(0, nothing()), Timestamp(10));
    assert_eq!((terms(&session, 10).hold_ms, terms(&session, 10).limit_ms), (Millis(5_000), Millis(10_000)));
    session.on(answered(10, run(&[order(1, 5)])), Timestamp(5_010));
    assert_eq!(terms(&session, 5_010).hold_ms, Millis(1_000), "the order's lease is as old as its call");
    session.on(Event::Tick, Timestamp(12_010));
    assert_eq!(terms(&session, 12_010).hold_ms, Millis(5_000), "all were killed");
}

/// Two calls that were sent in one millisecond give equal leases. The order came with the second answer and its
/// container was never told of a lease, so its init stopped it as it began.
#[test]
fn what_is_begun_hears_of_the_lease_though_the_answer_does_not_lengthen_it() {
    for sent in [0, 7] {
        let mut session = Session::default();
        session.on(answered(7, nothing()), Timestamp(20));
        let actions = session.on(answered(sent, run(&[order(1, 5)])), Timestamp(21));
        assert_eq!(kept_alive(&actions), [(attempt(1), 12_007)], "sent at {sent}");
    }
}

fn judged(number: u64) -> Event {
    Event::Judged { attempt: attempt(number) }
}

#[test]
fn an_attempt_that_only_sends_needs_no_lease_and_ends_as_it_ended() {
    let mut session = running();
    assert_eq!(session.on(judged(1), Timestamp(200)), [Action::SyncNow]);
    assert_eq!(session.report(Timestamp(300))[0].state, AttemptProgress::Sending);
    assert_eq!(session.on(judged(1), Timestamp(300)), [], "once");
    assert_eq!(session.next_wakeup(), None);
    assert_eq!(session.on(Event::Tick, Timestamp(60_000)), [], "nothing is left to kill");
    let failed = Outcome::Failed { step: "test".into(), exit_code: 2 };
    session.on(ended(1, failed.clone()), Timestamp(70_000));
    assert_eq!(outcome_of(&session, 1), failed);
}

#[test]
fn sending_is_given_up_for_a_revoked_attempt_alone() {
    let mut session = running();
    session.on(judged(1), Timestamp(200));
    assert_eq!(session.on(answered(250, stop(1, 5, cancel())), Timestamp(260)).len(), 0);
    let revoked = session.on(answered(300, stop(1, 5, StopCause::Revoked)), Timestamp(310));
    assert!(revoked.iter().any(|action| matches!(action, Action::Stop { .. })), "{revoked:?}");
    assert_eq!(session.report(Timestamp(320))[0].state, AttemptProgress::Stopping);
    assert_eq!(session.on(judged(1), Timestamp(330)), [], "it stays revoked");
}

#[test]
fn a_cancelled_attempt_sends_what_it_printed() {
    let mut session = running();
    session.on(answered(200, stop(1, 5, cancel())), Timestamp(210));
    session.on(judged(1), Timestamp(300));
    assert_eq!(session.report(Timestamp(310))[0].state, AttemptProgress::Sending);
}

#[test]
fn an_order_that_comes_again_after_it_was_forgotten_is_old_news() {
    let mut session = running();
    session.on(ended(1, Outcome::Passed), Timestamp(200));
    session.on(Event::Removed { attempt: attempt(1) }, Timestamp(210));
    session.on(answered(220, forget(1)), Timestamp(230));
    assert!(session.attempts().is_empty());
    assert_eq!(begun(&session.on(answered(0, run(&[order(1, 5)])), Timestamp(240))), []);
    assert_eq!(begun(&session.on(answered(240, run(&[order(2, 6)])), Timestamp(250))), [attempt(2)]);
}

#[test]
fn orders_are_begun_in_the_order_of_their_fences() {
    let mut session = Session::default();
    let actions = session.on(answered(0, run(&[order(2, 9), order(1, 5)])), Timestamp(10));
    assert_eq!(begun(&actions), [attempt(1), attempt(2)]);
}

#[test]
fn an_order_whose_lease_is_over_is_not_begun() {
    let mut session = Session::default();
    assert_eq!(begun(&session.on(answered(0, run(&[order(1, 5)])), Timestamp(12_000))), []);
    // Nor when a later answer has renewed the lease meanwhile: this order's own time is over.
    session.on(answered(11_000, nothing()), Timestamp(12_100));
    assert_eq!(begun(&session.on(answered(0, run(&[order(1, 5)])), Timestamp(12_200))), []);
    assert_eq!(begun(&session.on(answered(11_000, run(&[order(1, 5)])), Timestamp(12_300))), [attempt(1)]);
}

#[test]
fn an_attempt_under_a_newer_fence_waits_until_the_older_life_is_gone() {
    let mut session = running();
    let actions = session.on(answered(200, run(&[order(1, 9)])), Timestamp(210));
    assert_eq!(begun(&actions), []);
    let revoke = Action::Stop { attempt: attempt(1), cause: StopCause::Revoked, grace_ms: Millis(0) };
    assert!(actions.contains(&revoke));
    session.on(ended(1, Outcome::Passed), Timestamp(300));
    session.on(Event::Removed { attempt: attempt(1) }, Timestamp(310));
    session.on(answered(320, forget(1)), Timestamp(330));
    assert_eq!(begun(&session.on(answered(340, run(&[order(1, 9)])), Timestamp(350))), [attempt(1)]);
}

#[test]
fn a_stop_is_obeyed_once() {
    let mut session = running();
    let actions = session.on(answered(200, stop(1, 5, cancel())), Timestamp(210));
    assert!(actions.contains(&Action::Stop { attempt: attempt(1), cause: cancel(), grace_ms: Millis(10) }));
    assert_eq!(session.report(Timestamp(220))[0].state, AttemptProgress::Stopping);
    let again = session.on(answered(230, stop(1, 5, cancel())), Timestamp(240));
    assert!(!again.iter().any(|action| matches!(action, Action::Stop { .. })));
}

#[test]
fn a_stop_that_overtakes_its_order_is_remembered_and_reported() {
    let mut session = Session::default();
    let actions = session.on(answered(100, stop(1, 5, cancel())), Timestamp(110));
    assert_eq!(actions, [Action::SyncNow]);
    assert_eq!(outcome_of(&session, 1), Outcome::Cancelled { by: "by admin".into() });
    assert_eq!(begun(&session.on(answered(0, run(&[order(1, 5)])), Timestamp(120))), []);
    let reported = session.report(Timestamp(130));
    assert!(matches!(reported[0].state, AttemptProgress::Ended { removed: true, .. }));
    assert_eq!(
        session.on(answered(140, forget(1)), Timestamp(150))[0],
        Action::Forget { attempt: attempt(1) }
    );
    assert_eq!(begun(&session.on(answered(0, run(&[order(1, 5)])), Timestamp(160))), []);
}

/// Found by the simulation: the journal was lost, the coordinator supposed that the time limit had passed, and
/// the worker confirmed what it could not know.
#[test]
fn a_worker_does_not_confirm_a_time_limit_of_an_attempt_that_it_does_not_hold() {
    let mut session = Session::default();
    session.on(answered(0, stop(1, 5, StopCause::TimedOut { after_ms: Millis(7) })), Timestamp(1));
    assert!(matches!(outcome_of(&session, 1), Outcome::Infra { cause: InfraCause::Worker, .. }));
}

#[test]
fn a_stop_under_another_fence_is_not_for_this_life() {
    let mut session = running();
    session.on(answered(200, stop(1, 4, StopCause::Revoked)), Timestamp(210));
    assert!(matches!(session.attempts()[&attempt(1)].1, Held::Running { .. }));
}

#[test]
fn the_lease_counts_from_when_the_call_was_sent() {
    let mut session = running();
    session.on(answered(1_000, nothing()), Timestamp(4_000));
    assert_eq!(session.lease_until(), Some(Timestamp(16_000)));
    assert_eq!(session.fence_at(), Some(Timestamp(13_000)));
    session.on(answered(500, nothing()), Timestamp(4_100));
    assert_eq!(session.lease_until(), Some(Timestamp(16_000)), "an older answer takes nothing away");
}

#[test]
fn every_renewal_is_handed_to_what_runs() {
    let mut session = running();
    let actions = session.on(answered(1_000, run(&[order(2, 6)])), Timestamp(1_010));
    assert_eq!(kept_alive(&actions), [(attempt(1), 13_000), (attempt(2), 13_000)]);
    session.on(answered(2_000, stop(1, 5, cancel())), Timestamp(2_010));
    session.on(answered(3_000, stop(2, 6, StopCause::Revoked)), Timestamp(3_010));
    let actions = session.on(answered(4_000, nothing()), Timestamp(4_010));
    assert_eq!(kept_alive(&actions), [(attempt(1), 16_000)], "what is revoked is not kept alive");
    let actions = session.on(answered(3_500, nothing()), Timestamp(4_020));
    assert_eq!(kept_alive(&actions), [], "nothing was renewed");
}

#[test]
fn silence_fences_before_the_lease_ends() {
    let mut session = running();
    assert_eq!(session.next_wakeup(), Some(Timestamp(12_000)));
    assert_eq!(session.on(Event::Tick, Timestamp(11_999)), []);
    assert_eq!(session.on(Event::Tick, Timestamp(12_000)), [Action::Fence { attempt: attempt(1) }]);
    assert_eq!(session.on(Event::Tick, Timestamp(12_001)), [], "once");
    assert_eq!(session.next_wakeup(), None);
}

#[test]
fn an_answer_that_comes_after_the_fence_does_not_bring_the_steps_back() {
    let mut session = running();
    let actions = session.on(answered(10_000, nothing()), Timestamp(12_500));
    assert_eq!(actions, [Action::Fence { attempt: attempt(1) }]);
    session.on(ended(1, Outcome::Failed { step: "test".into(), exit_code: 137 }), Timestamp(12_600));
    assert!(
        matches!(outcome_of(&session, 1), Outcome::Infra { cause: InfraCause::SelfFenced, .. }),
        "what the fence killed did not fail"
    );
}

#[test]
fn what_had_passed_before_the_fence_has_passed() {
    let mut session = running();
    session.on(Event::Tick, Timestamp(12_000));
    session.on(ended(1, Outcome::Passed), Timestamp(12_100));
    assert_eq!(outcome_of(&session, 1), Outcome::Passed);
}

#[test]
fn an_attempt_that_is_stopping_is_fenced_as_well() {
    let mut session = running();
    session.on(answered(100, stop(1, 5, cancel())), Timestamp(110));
    let actions = session.on(Event::Tick, Timestamp(12_100));
    assert_eq!(actions, [Action::Fence { attempt: attempt(1) }]);
    assert!(matches!(&session.attempts()[&attempt(1)].1, Held::Stopping { cause } if *cause == cancel()));
}

#[test]
fn an_end_is_kept_until_it_is_on_record_and_everything_is_gone() {
    let mut session = running();
    assert_eq!(session.on(ended(1, Outcome::Passed), Timestamp(200)), [Action::SyncNow]);
    session.on(answered(210, forget(1)), Timestamp(220));
    assert_eq!(session.attempts().len(), 1, "it is being removed");
    let actions = session.on(Event::Removed { attempt: attempt(1) }, Timestamp(230));
    assert_eq!(actions, [Action::Forget { attempt: attempt(1) }, Action::SyncNow]);
    assert!(session.attempts().is_empty());
}

#[test]
fn a_removed_attempt_waits_for_the_record() {
    let mut session = running();
    session.on(ended(1, Outcome::Passed), Timestamp(200));
    assert_eq!(session.on(Event::Removed { attempt: attempt(1) }, Timestamp(210)), [Action::SyncNow]);
    assert_eq!(session.on(Event::Removed { attempt: attempt(1) }, Timestamp(211)), [], "no news");
    let actions = session.on(answered(220, forget(1)), Timestamp(230));
    assert_eq!(actions, [Action::Forget { attempt: attempt(1) }]);
}

#[test]
fn what_runs_is_not_forgotten() {
    let mut session = running();
    session.on(answered(200, forget(1)), Timestamp(210));
    session.on(Event::Removed { attempt: attempt(1) }, Timestamp(220));
    assert!(matches!(session.attempts()[&attempt(1)].1, Held::Running { .. }));
}

#[test]
fn the_first_end_counts() {
    let mut session = running();
    session.on(ended(1, Outcome::Passed), Timestamp(200));
    assert_eq!(session.on(ended(1, Outcome::Refused { reason: "x".into() }), Timestamp(210)), []);
    assert_eq!(outcome_of(&session, 1), Outcome::Passed);
}

#[test]
fn the_report_says_what_is_held() {
    let mut session = running();
    session.on(answered(1_000, run(&[order(2, 6)])), Timestamp(1_010));
    let report = session.report(Timestamp(2_100));
    assert_eq!((report[0].attempt, report[0].fence), (attempt(1), Fence(5)));
    assert_eq!(report[0].state, AttemptProgress::Running { for_ms: Millis(2_000) });
    assert_eq!(report[1].state, AttemptProgress::Preparing);
}

#[test]
fn a_journal_is_adopted() {
    let over = Some(report(Outcome::Passed));
    let entries =
        [JournalEntry { order: order(1, 5), ended: None }, JournalEntry { order: order(2, 6), ended: over }];
    let mut session = Session::adopt(entries);
    assert_eq!(session.report(Timestamp(0))[0].state, AttemptProgress::Preparing);
    assert!(matches!(session.report(Timestamp(0))[1].state, AttemptProgress::Ended { removed: false, .. }));
    assert_eq!((session.lease_until(), session.next_wakeup()), (None, None));
    assert_eq!(session.on(Event::Tick, Timestamp(u64::MAX)), [], "its init knows how long it may");
    assert!(!session.may_start(attempt(1), Timestamp(0)), "nobody has said yet that it still may");
    let actions = session.on(answered(10, run(&[order(1, 5)])), Timestamp(20));
    assert_eq!((begun(&actions), kept_alive(&actions)), (vec![], vec![(attempt(1), 12_010)]));
    assert!(session.may_start(attempt(1), Timestamp(20)));
    session.on(Event::Started { attempt: attempt(1) }, Timestamp(30));
    assert!(matches!(session.attempts()[&attempt(1)].1, Held::Running { .. }));
}

#[test]
fn steps_may_begin_only_while_preparing_under_a_lease() {
    let mut session = Session::default();
    session.on(answered(0, run(&[order(1, 5), order(2, 6)])), Timestamp(10));
    assert!(session.may_start(attempt(1), Timestamp(11_999)));
    assert!(!session.may_start(attempt(1), Timestamp(12_000)));
    assert!(!session.may_start(attempt(3), Timestamp(10)));
    session.on(answered(20, stop(2, 6, cancel())), Timestamp(30));
    assert!(!session.may_start(attempt(2), Timestamp(40)));
}

#[derive(Debug, Clone)]
enum Happening {
    Answer { sent_ago: u64, run: Vec<u64>, stop: Vec<(u64, bool)>, forget: Vec<u64> },
    Started(u64),
    Ended(u64),
    Removed(u64),
    Waits(u64),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let which = || proptest::collection::vec(1u64..5, 0..3);
    let stops = proptest::collection::vec((1u64..5, any::<bool>()), 0..2);
    let one = prop_oneof![
        4 => (0u64..16_000, which(), stops, which())
            .prop_map(|(sent_ago, run, stop, forget)| Happening::Answer { sent_ago, run, stop, forget }),
        2 => (1u64..5).prop_map(Happening::Started),
        2 => (1u64..5).prop_map(Happening::Ended),
        2 => (1u64..5).prop_map(Happening::Removed),
        2 => (1u64..9_000).prop_map(Happening::Waits),
    ];
    proptest::collection::vec(one, 1..80)
}

fn event(happening: Happening, now: u64) -> Event {
    match happening {
        Happening::Answer { sent_ago, run, stop, forget } => {
            let stops = stop.into_iter().map(|(number, revoked)| StopOrder {
                attempt: attempt(number),
                fence: Fence(number),
                cause: if revoked { StopCause::Revoked } else { cancel() },
                grace_ms: Millis(10),
            });
            let response = SyncResponse {
                lease_ms: LEASE,
                run: run.into_iter().map(|number| order(number, number)).collect(),
                stop: stops.collect(),
                forget: forget.into_iter().map(attempt).collect(),
            };
            answered(now.saturating_sub(sent_ago), response)
        }
        Happening::Started(number) => Event::Started { attempt: attempt(number) },
        Happening::Ended(number) => ended(number, Outcome::Passed),
        Happening::Removed(number) => Event::Removed { attempt: attempt(number) },
        Happening::Waits(_) => Event::Tick,
    }
}

proptest! {
    #[test]
    fn whatever_comes_an_attempt_is_begun_once_and_never_outlives_its_lease(all in happenings()) {
        let mut session = Session::default();
        let mut now = 100_000;
        let (mut begun, mut fenced) = (BTreeSet::new(), BTreeSet::new());
        for happening in all {
            if let Happening::Waits(ms) = &happening {
                now += ms;
            }
            for action in session.on(event(happening, now), Timestamp(now)) {
                match action {
                    Action::Begin { order } => {
                        prop_assert!(begun.insert(order.attempt), "{} is begun twice", order.attempt);
                        prop_assert!(session.fence_at().is_some_and(|at| now < at.0), "begun without a lease");
                    }
                    Action::Fence { attempt } => {
                        prop_assert!(fenced.insert(attempt), "{attempt} is fenced twice");
                    }
                    Action::KeepAlive { attempt, until } => {
                        prop_assert!(!fenced.contains(&attempt), "{attempt} is kept alive after its fence");
                        prop_assert_eq!(Some(until), session.fence_at());
                    }
                    Action::Forget { attempt } => {
                        prop_assert!(!session.attempts().contains_key(&attempt));
                    }
                    Action::Stop { attempt, .. } => {
                        prop_assert!(begun.contains(&attempt), "{attempt} is stopped and was never begun");
                    }
                    Action::SyncNow => {}
                }
            }
            for (attempt, (_, held)) in session.attempts() {
                let unfenced = matches!(held, Held::Preparing | Held::Running { .. });
                let in_time = session.fence_at().is_some_and(|at| now < at.0);
                prop_assert!(!unfenced || in_time, "{attempt} goes on without a lease");
            }
            prop_assert_eq!(session.report(Timestamp(now)).len(), session.attempts().len());
        }
    }
}
