//! Why a job waits, in one sentence.

use buildyard_scheduler::{Input, WhyWaiting};
use buildyard_types::outcome::InfraCause;
use buildyard_types::worker::Offer;
use buildyard_types::{JobId, Timestamp};

use crate::farm::{Farm, capacity, infra, job, labelled, needing, sized};

fn why(farm: &Farm, job: JobId) -> String {
    farm.core.why(job, Timestamp(farm.now)).map_or_else(|| "-".to_owned(), |why| why.to_string())
}

#[test]
fn it_waits_for_jobs() {
    let mut farm = Farm::new();
    let run = farm.run(vec![job("a"), job("b"), needing("c", &["a", "b"])]);
    assert_eq!(why(&farm, run.job(2)), "waits for a, b");
}

#[test]
fn there_are_no_workers() {
    let mut farm = Farm::new();
    let run = farm.run(vec![job("a")]);
    assert_eq!(why(&farm, run.job(0)), "no worker has joined yet");
}

#[test]
fn nobody_offers_what_it_asks_any_more() {
    let mut farm = Farm::new();
    let run = farm.run(vec![labelled("a", "arch=arm64 && big"), sized("b", 99)]);
    farm.worker("arch=arm64");
    assert_eq!(why(&farm, run.job(0)), "no known worker matches; the nearest, worker-1, lacks big");
    assert_eq!(
        why(&farm, run.job(1)),
        "no matching worker is large enough; the nearest, worker-1, lacks 99 cpus (has 8 cpus)"
    );
}

#[test]
fn those_who_match_take_no_work() {
    let mut farm = Farm::new();
    let cordoned = farm.worker("gpu");
    farm.decide(Input::Cordon { worker: cordoned, cordoned: true });
    let unfit = farm.worker("gpu");
    let offer = Offer {
        unfit: Some("the engine does not answer".into()),
        ..farm.core.state().workers[&unfit].offer.clone()
    };
    farm.call_offering(unfit, offer, &[]);
    farm.silent_worker("gpu", capacity(1, 1));
    farm.worker("");
    let run = farm.run(vec![labelled("a", "gpu")]);
    assert_eq!(
        why(&farm, run.job(0)),
        "no matching worker takes work (away: worker-3; cordoned: worker-1; \
         unfit: worker-2 (the engine does not answer))"
    );
}

#[test]
fn those_who_match_are_busy() {
    let mut farm = Farm::new();
    farm.worker_of("", capacity(1, 4));
    let run = farm.run(vec![job("a"), job("b"), job("c")]);
    assert_eq!(why(&farm, run.job(0)), "-", "it is on a worker");
    assert_eq!(
        why(&farm, run.job(2)),
        "the matching worker is busy: it needs 1 cpu, 1GiB memory, 1GiB disk, \
         the most that is free is no slot, 3 cpus, 15GiB memory, 99GiB disk; 1 job is ahead of it"
    );
    assert!(why(&farm, run.job(1)).ends_with("it is next in line"));
}

#[test]
fn it_backs_off() {
    let mut farm = Farm::new();
    farm.worker("");
    let run = farm.run(vec![job("a")]);
    farm.finish(run.job(0), infra(InfraCause::Engine));
    assert_eq!(why(&farm, run.job(0)), "is tried again in 1.0s after a fault of the farm");
}

#[test]
fn of_what_is_not_known_nothing_is_said() {
    let farm = Farm::new();
    assert_eq!(farm.core.why(buildyard_types::RunId(3).job(1), Timestamp(0)), None);
}

#[test]
fn many_jobs_are_explained_as_each_alone() {
    let mut farm = Farm::new();
    farm.worker_of("gpu", capacity(1, 4));
    let jobs = vec![job("a"), job("b"), job("c"), needing("d", &["c"]), labelled("e", "gpu"), sized("f", 3)];
    let run = farm.run(jobs);
    let jobs: Vec<JobId> = (0..6).map(|index| run.job(index)).collect();
    let each = farm.core.why_each(&jobs, Timestamp(farm.now));
    assert_eq!(each.len(), 5, "{each:?}");
    for job in jobs {
        assert_eq!(each.get(&job), farm.core.why(job, Timestamp(farm.now)).as_ref(), "{job}");
    }
}

#[test]
fn a_long_list_of_names_is_cut() {
    let away = (1..=7).map(|number| format!("worker-{number}")).collect();
    let (cordoned, unfit) = Default::default();
    let why = WhyWaiting::NoneAvailable { away, cordoned, unfit };
    assert_eq!(
        why.to_string(),
        "no matching worker takes work (away: worker-1, worker-2, worker-3, worker-4, worker-5 and 2 more)"
    );
}
