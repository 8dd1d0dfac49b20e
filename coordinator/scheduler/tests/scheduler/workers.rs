//! Workers come and go.

use buildyard_scheduler::{Input, Rejection, Reply};
use buildyard_types::worker::{Capacity, Offer};
use buildyard_types::{Outcome, WorkerId};

use crate::farm::{Farm, job};

#[test]
fn enrolling_twice_changes_nothing() {
    let mut farm = Farm::new();
    let worker = farm.worker("gpu");
    let again =
        Input::Enrol { worker, name: "other".into(), pools: Default::default(), offer: Offer::default() };
    assert_eq!(farm.decide(again), Reply::Done);
    assert_eq!(farm.records(), []);
}

#[test]
fn what_a_worker_offers_is_recorded_when_it_changes() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    farm.sync(worker, &[]);
    assert_eq!(farm.records(), []);
    let offer =
        Offer { images: vec!["debian:12".into()], ..farm.core.state().workers[&worker].offer.clone() };
    farm.call_offering(worker, offer, &[]);
    assert_eq!(farm.records().len(), 1);
}

#[test]
fn a_worker_that_holds_attempts_is_not_removed() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    let busy = Reply::Rejected(Rejection::WorkerBusy { worker, attempts: 1 });
    assert_eq!(farm.decide(Input::RemoveWorker { worker }), busy);
    let ended = [farm.ended(run.job(0).attempt(1), Outcome::Passed, false)];
    farm.sync(worker, &ended);
    assert_eq!(farm.decide(Input::RemoveWorker { worker }), busy, "it is cleaning up");
    farm.sync(worker, &[]);
    assert_eq!(farm.decide(Input::RemoveWorker { worker }), Reply::Done);
    assert_eq!(farm.call(worker, &[]), Reply::Rejected(Rejection::NoWorker(worker)));
    assert_eq!(farm.core.used(worker), Capacity::default());
}

#[test]
fn a_lost_worker_is_removed_with_what_is_left_on_it() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    farm.decide(Input::CancelRun { run, by: "by admin".into() });
    assert!(matches!(
        farm.decide(Input::RemoveWorker { worker }),
        Reply::Rejected(Rejection::WorkerBusy { .. })
    ));
    farm.pass(25_000);
    assert_eq!(farm.core.held(worker), [run.job(0).attempt(1)], "it may come back and say what is left");
    assert_eq!(farm.decide(Input::RemoveWorker { worker }), Reply::Done);
    assert!(farm.core.state().runs.is_empty() && farm.core.state().attempts.is_empty());
    assert!(farm.last.as_ref().is_some_and(|decision| decision.news.contains(&worker)), "its held call ends");
}

#[test]
fn what_is_asked_of_nobody_is_rejected() {
    let mut farm = Farm::new();
    let worker = WorkerId(5);
    for input in [Input::Cordon { worker, cordoned: true }, Input::RemoveWorker { worker }] {
        assert_eq!(farm.decide(input), Reply::Rejected(Rejection::NoWorker(worker)));
    }
}

#[test]
fn a_call_is_held_for_a_third_of_the_lease_at_most() {
    let farm = Farm::new();
    assert_eq!(farm.core.hold_ms().0, 5_000);
}

#[test]
fn use_and_attempts_of_a_worker_are_known() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a"), job("b")]);
    assert_eq!(farm.core.used(worker).slots, 2);
    assert_eq!(farm.core.used(worker).cpu_millis, 2_000);
    assert_eq!(farm.core.held(worker), [run.job(0).attempt(1), run.job(1).attempt(1)]);
}
