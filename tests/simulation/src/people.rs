//! Who asks something of the coordinator and is not a worker: they ask until they are answered.

use std::collections::BTreeMap;

use buildyard_scheduler::{Input, Reply};
use buildyard_types::worker::SourceRef;
use buildyard_types::{RunId, WorkerId};

use crate::scenario::{RunPlan, Scenario};
use crate::store::Store;
use crate::world::{Event, World};

/// Everything that somebody wants or wanted.
#[derive(Debug, Default)]
pub(crate) struct People {
    requests: BTreeMap<u64, Request>,
    next: u64,
    /// Runs that the coordinator acknowledged, by plan.
    pub(crate) acknowledged: BTreeMap<usize, RunId>,
}

#[derive(Debug)]
struct Request {
    input: Input,
    plan: Option<usize>,
    done: bool,
}

impl People {
    pub(crate) fn input(&self, request: u64) -> Option<Input> {
        self.requests.get(&request).map(|request| request.input.clone())
    }

    pub(crate) fn all_answered(&self) -> bool {
        self.requests.values().all(|request| request.done)
    }

    /// The plan behind a run.
    pub(crate) fn plan_of<'s>(
        &self,
        store: &Store,
        run: RunId,
        scenario: &'s Scenario,
    ) -> Option<&'s RunPlan> {
        plan_of(store, run).and_then(|plan| scenario.runs.get(plan))
    }
}

/// The plan's number travels as the commit.
pub(crate) fn plan_of(store: &Store, run: RunId) -> Option<usize> {
    store.runs.get(&run)?.source.commit.parse().ok()
}

impl World {
    pub(crate) fn people_begin(&mut self) {
        for plan in 0..self.scenario.runs.len() {
            let source = SourceRef {
                repository: "https://forge.example/cjson".into(),
                commit: plan.to_string(),
                ref_name: None,
            };
            let input = Input::Submit {
                source,
                file: "pipeline.toml".into(),
                requested_by: "triggered by admin".into(),
                key: Some(format!("key-{plan}")),
            };
            let after = self.scenario.runs[plan].submit_at;
            self.request(after, input, Some(plan));
        }
    }

    /// Somebody wants this, now.
    pub(crate) fn want(&mut self, input: Input) {
        self.request(0, input, None);
    }

    /// Somebody will want this.
    pub(crate) fn want_later(&mut self, after: u64, input: Input) {
        self.request(after, input, None);
    }

    fn request(&mut self, after: u64, input: Input, plan: Option<usize>) {
        let request = self.people.next;
        self.people.next += 1;
        self.people.requests.insert(request, Request { input, plan, done: false });
        self.at(after, Event::AskAgain { request });
    }

    pub(crate) fn ask(&mut self, request: u64) {
        if self.people.requests.get(&request).is_some_and(|request| !request.done) {
            self.send(true, Event::RequestArrives { request });
            let again = self.rng.between(1_000, 5_000);
            self.at(again, Event::AskAgain { request });
        }
    }

    pub(crate) fn request_answered(&mut self, id: u64, reply: Reply) {
        let Some(request) = self.people.requests.get_mut(&id) else {
            return;
        };
        // A host that is still busy has to be asked again.
        if matches!(&reply, Reply::Rejected(buildyard_scheduler::Rejection::WorkerBusy { .. })) {
            return;
        }
        let first = !std::mem::replace(&mut request.done, true);
        let (input, plan) = (request.input.clone(), request.plan);
        match (input, reply) {
            (Input::Submit { .. }, Reply::Run(run)) => self.acknowledged(plan, run, first),
            (Input::Enrol { worker, .. }, Reply::Done) => self.enrolled(worker),
            (_, _) => {}
        }
    }

    fn acknowledged(&mut self, plan: Option<usize>, run: RunId, first: bool) {
        let Some(plan) = plan else {
            return;
        };
        if let Some(before) = self.people.acknowledged.insert(plan, run)
            && before != run
        {
            self.audit.broken.push(format!("broken: one key is one run: {before} and {run}"));
        }
        if !self.coordinator.store.runs.contains_key(&run) {
            self.audit.broken.push(format!("broken: what is acknowledged is committed: {run}"));
        }
        if first && let Some((after, job)) = self.scenario.runs[plan].cancel {
            let by = "by admin".to_owned();
            let input = match job {
                Some(index) => Input::CancelJob { job: run.job(index), by },
                None => Input::CancelRun { run, by },
            };
            self.want_later(after, input);
        }
    }

    fn enrolled(&mut self, worker: WorkerId) {
        for host in 0..self.hosts.len() {
            if self.hosts[host].worker(host) == worker && !self.hosts[host].enrolled {
                self.hosts[host].enrolled = true;
                self.call(host);
            }
        }
    }
}
