//! Random farms. After every input all invariants hold and the records alone lead to the same state: the fixture
//! checks that. Here the inputs are drawn, and placement is held against the plain rule.

use std::collections::BTreeSet;

use buildyard_scheduler::lifecycle::attempt::decided_end;
use buildyard_scheduler::placement::plan;
use buildyard_scheduler::{Input, Record, Settings};
use buildyard_types::outcome::InfraCause;
use buildyard_types::worker::{AttemptProgress, AttemptReport, Offer};
use buildyard_types::{Fence, JobId, JobSpec, Millis, Outcome, RunId, Timestamp, WorkerId};
use proptest::prelude::*;

use crate::farm::{Farm, capacity, failed, infra, labelled};

/// Something that happens. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Happening {
    Joins {
        labels: &'static str,
        slots: u32,
        cpus: u64,
    },
    Submits {
        jobs: Vec<(u8, u8, u8)>,
        key: Option<u8>,
    },
    /// A worker calls; each attempt that it was given is reported as the numbers say.
    Calls {
        worker: u8,
        says: Vec<u8>,
        restarted: bool,
        overtaken: bool,
    },
    Offers {
        worker: u8,
        slots: u32,
        image: bool,
        unfit: bool,
    },
    Cordons {
        worker: u8,
        cordoned: bool,
    },
    Removes {
        worker: u8,
    },
    CancelsRun {
        run: u8,
    },
    CancelsJob {
        run: u8,
        job: u8,
    },
    Passes {
        ms: u64,
    },
    Restarts,
}

const LABELS: [&str; 4] = ["", "gpu", "arch=arm64", "arch=arm64 gpu"];
const ASKED: [&str; 5] = ["", "", "gpu", "arch=arm64", "!gpu"];

fn joins() -> impl Strategy<Value = Happening> {
    (0usize..4, 1u32..4, 1u64..6).prop_map(|(labels, slots, cpus)| Happening::Joins {
        labels: LABELS[labels],
        slots,
        cpus,
    })
}

fn submits() -> impl Strategy<Value = Happening> {
    let jobs = proptest::collection::vec((any::<u8>(), any::<u8>(), any::<u8>()), 0..5);
    (jobs, proptest::option::of(0u8..4)).prop_map(|(jobs, key)| Happening::Submits { jobs, key })
}

fn calls() -> impl Strategy<Value = Happening> {
    let says = proptest::collection::vec(any::<u8>(), 0..6);
    let flags = (proptest::bool::weighted(0.05), proptest::bool::weighted(0.05));
    (any::<u8>(), says, flags).prop_map(|(worker, says, (restarted, overtaken))| Happening::Calls {
        worker,
        says,
        restarted,
        overtaken,
    })
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        1 => joins(),
        3 => submits(),
        10 => calls(),
        1 => (any::<u8>(), 0u32..4, any::<bool>(), any::<bool>())
            .prop_map(|(worker, slots, image, unfit)| Happening::Offers { worker, slots, image, unfit }),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(worker, cordoned)| Happening::Cordons { worker, cordoned }),
        1 => any::<u8>().prop_map(|worker| Happening::Removes { worker }),
        1 => any::<u8>().prop_map(|run| Happening::CancelsRun { run }),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(run, job)| Happening::CancelsJob { run, job }),
        4 => prop_oneof![1u64..2_000, 1_000u64..40_000].prop_map(|ms| Happening::Passes { ms }),
        1 => Just(Happening::Restarts),
    ];
    (joins(), proptest::collection::vec(one, 1..60)).prop_map(|(first, mut rest)| {
        rest.insert(0, first);
        rest
    })
}

fn settings() -> Settings {
    // Short limits, so that a few numbers meet them.
    Settings { prepare_limit_ms: Millis(50_000), limit_slack_ms: Millis(5_000), ..Settings::default() }
}

fn nth<T: Copy>(all: &[T], number: u8) -> Option<T> {
    all.get(usize::from(number) % all.len().max(1)).copied()
}

fn workers(farm: &Farm) -> Vec<WorkerId> {
    farm.core.state().workers.keys().copied().collect()
}

fn runs(farm: &Farm) -> Vec<RunId> {
    farm.core.state().runs.keys().copied().collect()
}

fn specs(jobs: &[(u8, u8, u8)]) -> Vec<JobSpec> {
    let spec = |(index, (labels, cpus, needs)): (usize, &(u8, u8, u8))| {
        let mut spec = labelled(&format!("job-{index}"), nth(&ASKED, *labels).unwrap_or(""));
        spec.resources.cpu_millis = 500 * (1 + u64::from(cpus % 4));
        spec.needs = (0..index)
            .filter(|need| *need < 8 && needs & (1 << need) != 0)
            .map(|need| format!("job-{need}"))
            .collect();
        spec.timeout_ms = Millis(20_000);
        spec.queue_timeout_ms = Millis(if *needs > 200 { 10_000 } else { 300_000 });
        spec
    };
    jobs.iter().enumerate().map(spec).collect()
}

fn progress(number: u8) -> Option<AttemptProgress> {
    let ended = |outcome: Outcome, removed| {
        Some(AttemptProgress::Ended { report: Box::new(decided_end(outcome)), removed })
    };
    match number % 12 {
        0 => Some(AttemptProgress::Preparing),
        1..=3 => Some(AttemptProgress::Running { for_ms: Millis(u64::from(number) * 10) }),
        4 => Some(AttemptProgress::Stopping),
        5 => ended(Outcome::Passed, false),
        6 | 7 => ended(Outcome::Passed, true),
        8 => ended(failed(), true),
        9 => ended(infra(InfraCause::Engine), true),
        10 => ended(Outcome::Skipped { reason: "nonsense".into() }, false),
        _ => None,
    }
}

fn happens(farm: &mut Farm, happening: Happening) {
    match happening {
        Happening::Joins { labels, slots, cpus } => {
            farm.worker_of(labels, capacity(slots, cpus));
        }
        Happening::Submits { jobs, key } => {
            let run = farm.submit_keyed(key.map(|key| format!("key-{key}")).as_deref());
            farm.compile(run, specs(&jobs));
        }
        Happening::Calls { worker, says, restarted, overtaken } => {
            let Some(worker) = nth(&workers(farm), worker) else { return };
            if restarted {
                farm.worker_restarts(worker);
            }
            let held: Vec<_> = farm.core.state().held(worker).map(|held| (held.id, held.fence)).collect();
            let report = |((attempt, fence), number): (_, &u8)| {
                let fence = if number % 31 == 30 { Fence(0) } else { fence };
                Some(AttemptReport { attempt, fence, state: progress(*number)? })
            };
            let reports: Vec<_> = held.into_iter().zip(&says).filter_map(report).collect();
            if overtaken {
                farm.sequences.insert(worker, (1, 0));
            }
            farm.call(worker, &reports);
        }
        Happening::Offers { worker, slots, image, unfit } => {
            let Some(worker) = nth(&workers(farm), worker) else { return };
            let offer = Offer {
                capacity: capacity(slots, 4),
                images: if image { vec!["debian:12".into()] } else { Vec::new() },
                unfit: unfit.then(|| "the disk is full".to_owned()),
                ..farm.core.state().workers[&worker].offer.clone()
            };
            let running = farm.running(worker);
            farm.call_offering(worker, offer, &running);
        }
        Happening::Cordons { worker, cordoned } => {
            let Some(worker) = nth(&workers(farm), worker) else { return };
            farm.decide(Input::Cordon { worker, cordoned });
        }
        Happening::Removes { worker } => {
            let Some(worker) = nth(&workers(farm), worker) else { return };
            farm.decide(Input::RemoveWorker { worker });
        }
        Happening::CancelsRun { run } => {
            let Some(run) = nth(&runs(farm), run) else { return };
            farm.decide(Input::CancelRun { run, by: "by admin".into() });
        }
        Happening::CancelsJob { run, job } => {
            let Some(run) = nth(&runs(farm), run) else { return };
            farm.decide(Input::CancelJob { job: run.job(u32::from(job % 5)), by: "by admin".into() });
        }
        Happening::Passes { ms } => farm.pass(ms),
        Happening::Restarts => farm.restart(),
    }
}

/// What the last decision placed.
fn placed(records: &[Record]) -> Vec<(JobId, WorkerId)> {
    let created = |record: &Record| match record {
        Record::AttemptCreated { attempt } => Some((attempt.id.job, attempt.worker)),
        _ => None,
    };
    records.iter().filter_map(created).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_invariants_hold_and_records_are_the_whole_change(all in happenings()) {
        let mut farm = Farm::with(settings());
        for happening in all {
            happens(&mut farm, happening);
        }
    }

    #[test]
    fn after_each_tick_nothing_is_left_that_the_plain_rule_would_place(all in happenings()) {
        let mut farm = Farm::with(settings());
        for happening in all {
            happens(&mut farm, happening);
            farm.pass(0);
            prop_assert_eq!(plan(farm.core.state(), Timestamp(farm.now)), []);
        }
    }

    #[test]
    fn the_indexes_place_exactly_what_the_plain_rule_places(all in happenings()) {
        let mut farm = Farm::with(settings());
        // At one moment all leases are fresh, so that the state before a decision, with the records that come
        // before its placements, is the state that it placed in.
        for happening in all {
            if matches!(happening, Happening::Passes { .. } | Happening::Restarts) {
                continue;
            }
            let mut before = farm.core.state().clone();
            let known: BTreeSet<WorkerId> = before.heard.keys().copied().collect();
            let joins = matches!(happening, Happening::Joins { .. } | Happening::Submits { .. });
            happens(&mut farm, happening);
            let records = farm.records().to_vec();
            let prefix = records.iter().take_while(|record| !matches!(record, Record::AttemptCreated { .. }));
            for record in prefix {
                before.apply(record);
            }
            if !joins && known.len() == before.workers.len() {
                prop_assert_eq!(placed(&records), plan(&before, Timestamp(farm.now)));
            }
        }
    }

    #[test]
    fn one_large_submission_is_placed_by_the_plain_rule(
        farms in proptest::collection::vec((0usize..4, 1u32..6, 1u64..9), 1..8),
        jobs in proptest::collection::vec((any::<u8>(), any::<u8>()), 1..40),
    ) {
        let mut farm = Farm::with(settings());
        for (labels, slots, cpus) in farms {
            farm.worker_of(LABELS[labels], capacity(slots, cpus));
        }
        let run = farm.submit();
        let mut before = farm.core.state().clone();
        farm.compile(run, specs(&jobs.iter().map(|(labels, cpus)| (*labels, *cpus, 0)).collect::<Vec<_>>()));
        for record in farm.records().iter().take(2) {
            before.apply(record);
        }
        prop_assert_eq!(placed(farm.records()), plan(&before, Timestamp(farm.now)));
    }
}
