//! A scheduler whose records are committed: what the store gives back is the state that it has.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_scheduler::input::Input;
use buildyard_scheduler::{Compiled, Core, Reply, Settings, State};
use buildyard_types::job::Pipeline;
use buildyard_types::outcome::InfraCause;
use buildyard_types::worker::{
    AttemptProgress, AttemptReport, Capacity, Offer, SessionId, SourceRef, SyncResponse,
};
use buildyard_types::{AttemptId, ByteSize, Epoch, Millis, Outcome, RunId, Timestamp, WorkerId};

use super::Maker;
use super::history::Dice;
use super::sample::*;
use crate::{Snapshot, Store};

const WORKERS: u64 = 3;

fn state_of(epoch: Epoch, snapshot: Snapshot, now: Timestamp) -> State {
    State::from_snapshot(epoch, Settings::default(), snapshot, now)
}

fn offer() -> Offer {
    let (memory, disk) = (ByteSize::from_gib(8), ByteSize::from_gib(100));
    let capacity = Capacity { slots: 2, cpu_millis: 8_000, memory, disk };
    Offer { capacity, version: "0.1.0".into(), ..Offer::default() }
}

/// A farm in small: what each worker holds, and how far it is with it.
struct Farm {
    dice: Dice,
    now: Timestamp,
    core: Core,
    held: BTreeMap<WorkerId, BTreeMap<AttemptId, AttemptReport>>,
    sequence: u64,
    runs: u64,
}

impl Farm {
    fn any_run(&mut self) -> RunId {
        RunId(self.dice.roll(self.runs as usize + 1) as u64)
    }

    fn any_worker(&mut self) -> WorkerId {
        WorkerId(self.dice.roll(WORKERS as usize) as u64)
    }

    fn compiled(&mut self) -> Compiled {
        match self.dice.roll(6) {
            0 => Compiled::Refused(Vec::new()),
            1 => Compiled::SourceFailed("the commit could not be fetched".into()),
            _ => {
                let count = 1 + self.dice.roll(4);
                let names: Vec<String> = (0..count).map(|index| format!("job {index}")).collect();
                let mut jobs: Vec<_> = names.iter().map(|name| spec(name)).collect();
                for (index, job) in jobs.iter_mut().enumerate().skip(1) {
                    if self.dice.roll(2) == 0 {
                        job.needs = vec![names[index - 1].clone()];
                    }
                }
                Compiled::Pipeline(Pipeline { name: "cjson".into(), file: "pipeline.toml".into(), jobs })
            }
        }
    }

    fn end(&mut self) -> Outcome {
        match self.dice.roll(4) {
            0 => Outcome::Failed { step: "make".into(), exit_code: 2 },
            1 => Outcome::Infra { cause: InfraCause::Engine, detail: "the engine went away".into() },
            _ => Outcome::Passed,
        }
    }

    /// Each attempt of a worker may come a little further.
    fn progress(&mut self, worker: WorkerId) -> Vec<AttemptReport> {
        let mut held = self.held.remove(&worker).unwrap_or_default();
        for report in held.values_mut() {
            if self.dice.roll(2) == 0 {
                continue;
            }
            report.state = match &report.state {
                AttemptProgress::Preparing => AttemptProgress::Running { for_ms: Millis(0) },
                AttemptProgress::Running { .. } | AttemptProgress::Stopping | AttemptProgress::Sending => {
                    let report = Box::new(super::sample::report(self.end()));
                    AttemptProgress::Ended { report, removed: self.dice.roll(2) == 0 }
                }
                AttemptProgress::Ended { report, .. } => {
                    AttemptProgress::Ended { report: report.clone(), removed: true }
                }
            };
        }
        let reports = held.values().cloned().collect();
        self.held.insert(worker, held);
        reports
    }

    fn obey(&mut self, worker: WorkerId, response: SyncResponse) {
        let held = self.held.entry(worker).or_default();
        for order in response.run {
            let state = AttemptProgress::Preparing;
            let report = AttemptReport { attempt: order.attempt, fence: order.fence, state };
            held.entry(order.attempt).or_insert(report);
        }
        for stop in response.stop {
            if let Some(report) = held.get_mut(&stop.attempt)
                && !matches!(report.state, AttemptProgress::Ended { .. })
            {
                report.state = AttemptProgress::Stopping;
            }
        }
        for attempt in response.forget {
            held.remove(&attempt);
        }
    }

    /// Something that may happen now, and the worker that waits for the answer.
    fn input(&mut self) -> (Input, Option<WorkerId>) {
        let by = "by admin".to_owned();
        let input = match self.dice.roll(12) {
            0 => Input::Tick,
            1 => {
                self.runs += 1;
                let commit = format!("{:040x}", self.runs);
                let source = SourceRef { repository: "/srv/git/cjson".into(), commit, ref_name: None };
                let key = (self.dice.roll(2) == 0).then(|| format!("key {}", self.dice.roll(9)));
                Input::Submit { source, file: "pipeline.toml".into(), requested_by: by, key }
            }
            2 | 3 => Input::Compiled { run: self.any_run(), result: self.compiled() },
            4 if self.dice.roll(3) == 0 => Input::CancelRun { run: self.any_run(), by },
            5 if self.dice.roll(3) == 0 => Input::CancelJob { job: self.any_run().job(0), by },
            6 if self.dice.roll(3) == 0 => {
                Input::Cordon { worker: self.any_worker(), cordoned: self.dice.roll(2) == 0 }
            }
            7 if self.dice.roll(9) == 0 => Input::RemoveWorker { worker: self.any_worker() },
            8 if self.dice.roll(3) == 0 => {
                let pools = BTreeSet::from(["linux".to_owned()]);
                Input::Enrol { worker: self.any_worker(), name: "anvil".into(), pools, offer: offer() }
            }
            _ => {
                self.sequence += 1;
                let (worker, sequence) = (self.any_worker(), self.sequence);
                let attempts = self.progress(worker);
                return (
                    Input::Sync {
                        worker,
                        session: SessionId { number: 1, nonce: 0 },
                        sequence,
                        offer: offer(),
                        attempts,
                    },
                    Some(worker),
                );
            }
        };
        (input, None)
    }

    async fn step(&mut self, store: &dyn Store) {
        // Now and then so long that leases run out.
        self.now = self.now + if self.dice.roll(30) == 0 { Millis(40_000) } else { Millis(500) };
        let (input, caller) = self.input();
        let decision = self.core.decide(input, self.now);
        let epoch = self.core.state().epoch;
        store.commit(epoch, &batch(decision.records)).await.unwrap();
        if let (Some(worker), Reply::Sync { response, .. }) = (caller, decision.reply) {
            self.obey(worker, response);
        }
    }
}

pub(super) async fn a_scheduler_finds_the_state_that_it_committed(maker: &dyn Maker) {
    let (mut compared, mut placed) = (0, 0);
    for seed in 0..6 {
        let mut store = maker.fresh().await;
        let now = Timestamp(1_000);
        let epoch = store.begin_epoch().await.unwrap();
        let core = Core::new(state_of(epoch, Snapshot::default(), now));
        let mut farm = Farm { dice: Dice(seed), now, core, held: BTreeMap::new(), sequence: 0, runs: 0 };
        for _ in 0..400 {
            farm.step(&*store).await;
            if farm.dice.roll(20) != 0 {
                continue;
            }
            let found = state_of(epoch, store.load().await.unwrap(), farm.now);
            assert_eq!(farm.core.state().differs_from(&found), None, "seed {seed}");
            compared += 1;
            // Sometimes another scheduler takes over from there.
            if farm.dice.roll(2) == 0 {
                store = maker.reopen(store).await;
                let epoch = store.begin_epoch().await.unwrap();
                farm.core = Core::new(state_of(epoch, store.load().await.unwrap(), farm.now));
            }
        }
        placed += store.load().await.unwrap().last_fence;
    }
    assert!(
        compared > 50 && placed > 50,
        "{compared} states compared, {placed} attempts: too little happened"
    );
}
