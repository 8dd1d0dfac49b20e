//! Which job goes where.

use buildyard_scheduler::Input;
use buildyard_types::worker::Offer;
use buildyard_types::{ByteSize, JobSpec};

use crate::farm::{Farm, capacity, job, labelled, sized};

#[test]
fn labels_are_respected() {
    let mut farm = Farm::new();
    let plain = farm.worker("");
    let gpu = farm.worker("gpu");
    let run = farm.run(vec![labelled("a", "gpu"), labelled("b", "!gpu"), labelled("c", "os=linux && gpu")]);
    assert_eq!(farm.on(run.job(0)), Some(gpu));
    assert_eq!(farm.on(run.job(1)), Some(plain));
    assert_eq!(farm.on(run.job(2)), Some(gpu));
}

#[test]
fn older_jobs_go_first() {
    let mut farm = Farm::new();
    let first = farm.run(vec![job("a")]);
    farm.now += 10;
    let second = farm.run(vec![job("b")]);
    farm.worker_of("", capacity(1, 8));
    assert_eq!((farm.is(first.job(0)), farm.is(second.job(0))), ("assigned", "queued"));
}

#[test]
fn a_small_job_goes_past_a_large_one_that_does_not_fit() {
    let mut farm = Farm::new();
    let worker = farm.worker_of("", capacity(4, 4));
    let filling = farm.run(vec![sized("filling", 2)]);
    let large = farm.run(vec![sized("large", 4)]);
    let small = farm.run(vec![sized("small", 2)]);
    assert_eq!((farm.is(filling.job(0)), farm.is(large.job(0))), ("assigned", "queued"));
    assert_eq!(farm.on(small.job(0)), Some(worker));
}

#[test]
fn every_kind_of_room_counts() {
    for (what, spec) in [
        ("cpu", sized("x", 5)),
        ("memory", resources(job("x"), ByteSize::from_gib(9), ByteSize(0))),
        ("disk", resources(job("x"), ByteSize(0), ByteSize::from_gib(51))),
    ] {
        let mut farm = Farm::new();
        farm.worker_of("", capacity(4, 8));
        let first = farm.run(vec![spec.clone()]);
        let second = farm.run(vec![spec]);
        assert_eq!((farm.is(first.job(0)), farm.is(second.job(0))), ("assigned", "queued"), "{what}");
    }
}

fn resources(spec: JobSpec, memory: ByteSize, disk: ByteSize) -> JobSpec {
    let resources = buildyard_types::job::Resources { memory, disk, ..spec.resources.clone() };
    JobSpec { resources, ..spec }
}

#[test]
fn slots_are_counted() {
    let mut farm = Farm::new();
    farm.worker_of("", capacity(2, 64));
    let run = farm.run(vec![job("a"), job("b"), job("c")]);
    let placed = (0..3).filter(|index| farm.is(run.job(*index)) == "assigned").count();
    assert_eq!(placed, 2);
}

#[test]
fn capacity_returns_when_attempts_are_removed_and_not_before() {
    let mut farm = Farm::new();
    let worker = farm.worker_of("", capacity(1, 8));
    let run = farm.run(vec![job("a"), job("b")]);
    let attempt = run.job(0).attempt(1);
    let ended = [farm.ended(attempt, buildyard_types::Outcome::Passed, false)];
    farm.sync(worker, &ended);
    assert_eq!(farm.is(run.job(0)), "finished");
    assert_eq!(farm.is(run.job(1)), "queued", "its leftovers are still there");
    let removed = [farm.ended(attempt, buildyard_types::Outcome::Passed, true)];
    farm.sync(worker, &removed);
    assert_eq!(farm.is(run.job(1)), "assigned");
}

#[test]
fn who_holds_the_image_is_preferred_to_who_has_more_room() {
    let mut farm = Farm::new();
    let small = farm.worker_of("", capacity(1, 2));
    farm.worker_of("", capacity(8, 32));
    let holds = Offer { images: vec!["debian:12".into()], ..farm.core.state().workers[&small].offer.clone() };
    farm.call_offering(small, holds, &[]);
    let run = farm.run(vec![job("a"), job("b")]);
    assert_eq!(farm.on(run.job(0)), Some(small));
    assert_ne!(farm.on(run.job(1)), Some(small), "it is full");
}

#[test]
fn who_has_most_room_is_preferred_among_equals() {
    let mut farm = Farm::new();
    farm.worker_of("", capacity(4, 4));
    let roomy = farm.worker_of("", capacity(4, 16));
    let run = farm.run(vec![job("a")]);
    assert_eq!(farm.on(run.job(0)), Some(roomy));
}

#[test]
fn cordoned_and_unfit_workers_get_nothing_until_they_are_back() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    farm.decide(Input::Cordon { worker, cordoned: true });
    let run = farm.run(vec![job("a")]);
    assert_eq!(farm.is(run.job(0)), "queued");
    let fit = farm.core.state().workers[&worker].offer.clone();
    let unfit = Offer { unfit: Some("the disk is full".into()), ..fit.clone() };
    farm.call_offering(worker, unfit, &[]);
    farm.decide(Input::Cordon { worker, cordoned: false });
    assert_eq!(farm.is(run.job(0)), "queued");
    farm.call_offering(worker, fit, &[]);
    assert_eq!(farm.is(run.job(0)), "assigned");
}

#[test]
fn a_label_that_a_worker_begins_to_offer_lets_jobs_in() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let away = farm.silent_worker("distro=debian", capacity(1, 1));
    let run = farm.run(vec![labelled("a", "distro=debian")]);
    assert_eq!(farm.is(run.job(0)), "queued", "who offers it is away: {away}");
    let mut offer = farm.core.state().workers[&worker].offer.clone();
    offer.facts.insert("distro".into(), "debian".into());
    farm.call_offering(worker, offer, &[]);
    assert_eq!(farm.on(run.job(0)), Some(worker));
}

#[test]
fn a_worker_that_shrinks_keeps_what_it_has_and_gets_nothing_new() {
    let mut farm = Farm::new();
    let worker = farm.worker_of("", capacity(4, 4));
    let run = farm.run(vec![job("a"), job("b")]);
    let smaller = Offer { capacity: capacity(1, 1), ..farm.core.state().workers[&worker].offer.clone() };
    let running = farm.running(worker);
    farm.call_offering(worker, smaller, &running);
    let later = farm.run(vec![job("c")]);
    assert_eq!((farm.is(run.job(1)), farm.is(later.job(0))), ("running", "queued"));
}

#[test]
fn placing_again_changes_nothing() {
    let mut farm = Farm::new();
    farm.worker_of("", capacity(2, 8));
    farm.run(vec![job("a"), job("b"), job("c")]);
    farm.decide(Input::Tick);
    assert_eq!(farm.records(), []);
}

#[test]
fn an_order_carries_what_the_worker_needs() {
    let mut farm = Farm::new();
    let worker = farm.worker("");
    let run = farm.run(vec![job("a")]);
    assert!(farm.last.as_ref().is_some_and(|decision| decision.news.contains(&worker)));
    let answer = farm.core.answer(worker, &[]);
    let order = &answer.response.run[0];
    assert!(!answer.idle);
    assert_eq!((order.attempt, order.pipeline.as_str()), (run.job(0).attempt(1), "cjson"));
    assert_eq!(order.fence, farm.core.state().attempts[&order.attempt].fence);
    assert_eq!(order.log_cap, farm.core.state().settings.log_cap);
    assert_eq!(order.source, farm.core.state().runs[&run].source);
}
