//! The coordinator's shell in fake time: it gathers inputs, decides them as one batch, commits, and only then
//! answers. It dies at any point of that.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_scheduler::lifecycle::job::JobState;
use buildyard_scheduler::lifecycle::run::RunState;
use buildyard_scheduler::{Compiled, Core, Input, Record, Reply, State};
use buildyard_types::worker::{AttemptReport, SyncRequest, SyncResponse};
use buildyard_types::{Epoch, Millis, Outcome, RunId, Timestamp, WorkerId};

use crate::host::host_of;
use crate::scenario::Sabotage;
use crate::store::Store;
use crate::world::{Event, World};

/// Most inputs of one batch.
const MOST_INPUTS: usize = 64;

/// Store and process.
#[derive(Debug, Default)]
pub(crate) struct Coordinator {
    pub(crate) store: Store,
    pub(crate) process: Option<Process>,
    pub(crate) next_commit_fails: bool,
    pub(crate) slow_commits: Option<u64>,
    /// How many faults keep it from taking logs and artifacts.
    pub(crate) full_disks: u32,
    lives: u64,
}

/// What a crash loses.
#[derive(Debug)]
pub(crate) struct Process {
    life: u64,
    pub(crate) core: Core,
    inbox: Vec<(Input, Origin)>,
    batch: Option<Batch>,
    batches: u64,
    held: BTreeMap<usize, Call>,
    wakes_at: Option<Timestamp>,
}

/// Who waits for the answer to an input.
#[derive(Debug, Clone)]
enum Origin {
    Worker(Call),
    Somebody { request: u64 },
    Nobody,
}

/// A worker's call.
#[derive(Debug, Clone)]
struct Call {
    host: usize,
    life: u64,
    sequence: u64,
    hold_ms: Millis,
    reported: Vec<AttemptReport>,
}

/// Decided, and on its way to the disk.
#[derive(Debug)]
struct Batch {
    number: u64,
    records: Vec<Record>,
    replies: Vec<(Origin, Reply)>,
    news: BTreeSet<WorkerId>,
}

impl World {
    pub(crate) fn coordinator_starts(&mut self) {
        if self.coordinator.process.is_some() {
            return;
        }
        self.coordinator.lives += 1;
        let core = self.core_from_store();
        let life = self.coordinator.lives;
        self.coordinator.process = Some(Process {
            life,
            core,
            inbox: Vec::new(),
            batch: None,
            batches: 0,
            held: BTreeMap::new(),
            wakes_at: None,
        });
        self.read_sources(life);
        self.wake_in_time();
    }

    fn core_from_store(&mut self) -> Core {
        let no_term = self.sabotage == Sabotage::NoTermAfterRestart;
        let since = if no_term { Timestamp(0) } else { self.time() };
        let (epoch, settings) = (Epoch(self.coordinator.lives), self.scenario.settings.clone());
        let state = State::from_snapshot(epoch, settings, self.coordinator.store.load(), since);
        self.audit.reloaded(&state);
        self.audit.listens(self.now);
        Core::new(state)
    }

    /// Runs whose file was not read before the crash.
    fn read_sources(&mut self, life: u64) {
        let runs = self.coordinator.store.runs.values();
        let unread: Vec<RunId> =
            runs.filter(|run| run.state == RunState::Received).map(|run| run.id).collect();
        for run in unread {
            self.source_is_read(life, run);
        }
    }

    fn source_is_read(&mut self, life: u64, run: RunId) {
        let after = self.rng.between(10, 3_000);
        self.at(after, Event::SourceRead { life, run });
    }

    pub(crate) fn coordinator_dies(&mut self, commit_survives: bool) {
        let Some(process) = self.coordinator.process.take() else {
            return;
        };
        if let Some(batch) = process.batch
            && commit_survives
        {
            self.note(|| "  the commit under way is durable".into());
            self.commit(&batch.records);
        }
    }

    pub(crate) fn call_arrives(&mut self, host: usize, life: u64, request: SyncRequest) {
        let (sequence, hold_ms) = (request.sequence, request.hold_ms);
        let call = Call { host, life, sequence, hold_ms, reported: request.attempts.clone() };
        let input = Input::Sync {
            worker: self.hosts[host].worker(host),
            session: request.session,
            sequence: request.sequence,
            offer: request.offer,
            attempts: request.attempts,
        };
        self.input(input, Origin::Worker(call));
    }

    pub(crate) fn request_arrives(&mut self, request: u64) {
        if let Some(input) = self.people.input(request) {
            self.input(input, Origin::Somebody { request });
        }
    }

    pub(crate) fn source_read(&mut self, life: u64, run: RunId) {
        if !self.is_life(life) {
            return;
        }
        let Some(plan) = self.people.plan_of(&self.coordinator.store, run, &self.scenario) else {
            return;
        };
        let result = if plan.source_fails {
            Compiled::SourceFailed("the commit could not be fetched".into())
        } else {
            let mut pipeline = plan.pipeline.clone();
            if self.sabotage == Sabotage::DropsNeeds {
                pipeline.jobs.iter_mut().for_each(|job| job.needs.clear());
            }
            Compiled::Pipeline(pipeline)
        };
        self.input(Input::Compiled { run, result }, Origin::Nobody);
    }

    pub(crate) fn coordinator_wakes(&mut self, life: u64) {
        if self.is_life(life) {
            if let Some(process) = &mut self.coordinator.process {
                process.wakes_at = None;
            }
            self.begin_batch();
            self.wake_in_time();
        }
    }

    fn is_life(&self, life: u64) -> bool {
        self.coordinator.process.as_ref().is_some_and(|process| process.life == life)
    }

    fn input(&mut self, input: Input, origin: Origin) {
        if let Some(process) = &mut self.coordinator.process {
            process.inbox.push((input, origin));
            self.begin_batch();
        }
    }

    /// Decides what has come in, unless a commit is under way.
    fn begin_batch(&mut self) {
        let now = self.time();
        let Some(process) = &mut self.coordinator.process else {
            return;
        };
        let due = process.core.next_wakeup().is_some_and(|at| at <= now);
        if process.batch.is_some() || (process.inbox.is_empty() && !due) {
            return;
        }
        let taken = process.inbox.len().min(MOST_INPUTS);
        let mut inputs: Vec<(Input, Origin)> = process.inbox.drain(..taken).collect();
        if due {
            inputs.push((Input::Tick, Origin::Nobody));
        }
        process.batches += 1;
        let mut batch = Batch {
            number: process.batches,
            records: Vec::new(),
            replies: Vec::new(),
            news: BTreeSet::new(),
        };
        for (input, origin) in inputs {
            let decision = process.core.decide(input, now);
            batch.records.extend(decision.records);
            batch.news.extend(decision.news);
            batch.replies.push((origin, decision.reply));
        }
        let (life, number) = (process.life, batch.number);
        if self.sabotage == Sabotage::AnswerBeforeCommit {
            let replies = std::mem::take(&mut batch.replies);
            self.answer_all(replies);
        }
        // A batch without records has nothing to wait for.
        let takes = match (batch.records.is_empty(), self.coordinator.slow_commits) {
            (true, _) => 0,
            (false, Some(each)) => self.rng.between(0, each),
            (false, None) => self.rng.between(1, 15),
        };
        if let Some(process) = &mut self.coordinator.process {
            process.batch = Some(batch);
        }
        self.at(takes, Event::Committed { life, batch: number });
    }

    pub(crate) fn committed(&mut self, life: u64, number: u64) {
        if !self.is_life(life) {
            return;
        }
        let Some(process) = &mut self.coordinator.process else {
            return;
        };
        let Some(batch) = process.batch.take_if(|batch| batch.number == number) else {
            return;
        };
        if !batch.records.is_empty() && std::mem::take(&mut self.coordinator.next_commit_fails) {
            self.note(|| "  the commit failed".into());
            // The core knows more than the store: it is made anew, and nobody is answered.
            let core = self.core_from_store();
            if let Some(process) = &mut self.coordinator.process {
                process.core = core;
                process.held.clear();
            }
            self.read_sources(life);
        } else {
            self.commit(&batch.records);
            self.compare_with_store();
            self.new_runs(life, &batch.records);
            self.answer_all(batch.replies);
            self.tell_news(batch.news);
        }
        self.begin_batch();
        self.wake_in_time();
    }

    fn commit(&mut self, records: &[Record]) {
        for record in records {
            let record = &self.falsified(record);
            self.note(|| format!("  commit {record:?}"));
            self.audit.committed(record, self.now);
            self.coordinator.store.commit(record);
            if self.sabotage == Sabotage::ForgetfulStore {
                self.forget_an_end(record);
            }
        }
        self.audit.after_commit();
    }

    /// The record, or one that puts a false end down.
    fn falsified(&self, record: &Record) -> Record {
        let mut record = record.clone();
        if let Record::JobChanged { state: JobState::Finished { outcome, .. }, .. } = &mut record
            && *outcome == Outcome::Passed
            && let Some(end) = self.sabotage.false_end()
        {
            *outcome = end;
        }
        record
    }

    fn forget_an_end(&mut self, record: &Record) {
        if let Record::JobChanged { job, .. } = record
            && self.coordinator.store.jobs.len().is_multiple_of(5)
            && let Some(job) = self.coordinator.store.jobs.get_mut(job)
            && job.state.outcome().is_some()
        {
            job.state = JobState::Waiting;
        }
    }

    /// What was decided is exactly what was committed.
    fn compare_with_store(&mut self) {
        if let Some(process) = &self.coordinator.process {
            self.audit.same_as_committed(process.core.state());
        }
    }

    fn new_runs(&mut self, life: u64, records: &[Record]) {
        for record in records {
            if let Record::RunCreated { run } = record {
                self.source_is_read(life, run.id);
            }
        }
    }

    fn answer_all(&mut self, replies: Vec<(Origin, Reply)>) {
        for (origin, reply) in replies {
            match (origin, reply) {
                (Origin::Nobody, _) => {}
                (Origin::Somebody { request }, reply) => {
                    self.send(true, Event::RequestAnswered { request, reply: Box::new(reply) });
                }
                (Origin::Worker(call), Reply::Sync { response, idle }) => self.answer(call, response, idle),
                (Origin::Worker(call), Reply::Rejected(rejection)) => {
                    self.answer_call(&call, Err(rejection.to_string()));
                }
                (Origin::Worker(_), Reply::Done | Reply::Run(_)) => {
                    self.audit
                        .broken
                        .push("broken: a call of a worker was answered with something else".into());
                }
            }
        }
    }

    fn answer(&mut self, call: Call, response: SyncResponse, idle: bool) {
        let Some(process) = &mut self.coordinator.process else {
            return;
        };
        let is_newest = process.held.get(&call.host).is_none_or(|held| held.sequence <= call.sequence);
        if is_newest && let Some(older) = process.held.remove(&call.host) {
            let answer = process.core.answer(host_of(older.host), &older.reported);
            self.answer_call(&older, Ok(answer.response));
        }
        if idle && is_newest {
            self.hold(call);
        } else {
            self.answer_call(&call, Ok(response));
        }
    }

    fn hold(&mut self, call: Call) {
        let Some(process) = &mut self.coordinator.process else {
            return;
        };
        let (life, host, sequence) = (process.life, call.host, call.sequence);
        let longest = process.core.hold_ms();
        let too_long = self.sabotage == Sabotage::HoldsTooLong;
        let for_ms = if too_long { longest.0 } else { longest.min(call.hold_ms).0 };
        process.held.insert(host, call);
        self.at(for_ms, Event::HeldLongEnough { life, host, sequence });
    }

    /// Held calls of workers whose desired state changed.
    fn tell_news(&mut self, news: BTreeSet<WorkerId>) {
        for host in 0..self.hosts.len() {
            if news.contains(&host_of(host)) {
                self.answer_held(host, false);
            }
        }
    }

    pub(crate) fn held_long_enough(&mut self, life: u64, host: usize, sequence: u64) {
        let Some(process) = &self.coordinator.process else {
            return;
        };
        let same = process.held.get(&host).is_some_and(|held| held.sequence == sequence);
        // While a commit is under way the core knows things that must not leave yet; the call waits a moment.
        if process.life == life && same && process.batch.is_some() {
            self.at(20, Event::HeldLongEnough { life, host, sequence });
        } else if process.life == life && same {
            self.answer_held(host, true);
        }
    }

    fn answer_held(&mut self, host: usize, though_idle: bool) {
        let Some(process) = &mut self.coordinator.process else {
            return;
        };
        let Some(call) = process.held.get(&host) else {
            return;
        };
        let answer = process.core.answer(host_of(host), &call.reported);
        if (!answer.idle || though_idle)
            && let Some(call) = process.held.remove(&host)
        {
            self.answer_call(&call, Ok(answer.response));
        }
    }

    fn answer_call(&mut self, call: &Call, answer: Result<SyncResponse, String>) {
        let (_, down) = self.connected(call.host);
        let (host, life, sequence) = (call.host, call.life, call.sequence);
        self.send(down, Event::AnswerArrives { host, life, sequence, answer: Box::new(answer) });
    }

    fn wake_in_time(&mut self) {
        let now = self.time();
        let Some(process) = &mut self.coordinator.process else {
            return;
        };
        let Some(at) = process.core.next_wakeup() else {
            return;
        };
        if process.wakes_at.is_some_and(|wakes_at| wakes_at <= at) || process.batch.is_some() {
            return;
        }
        process.wakes_at = Some(at.max(now));
        let life = process.life;
        self.at(at.since(now).0, Event::CoordinatorWakes { life });
    }
}
