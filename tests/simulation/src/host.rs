//! A worker's host in fake time: the worker's shell around the real session, its journal, its containers.
//!
//! Containers outlive the worker's process. Each has an init that stops its steps when nobody renewed it.

use std::collections::BTreeMap;

use buildyard_scheduler::Input;
use buildyard_session::{Action, CallTerms, Event as Said, Held, JournalEntry, Session};
use buildyard_types::outcome::{InfraCause, TimeLimit};
use buildyard_types::worker::{
    EndReport, Offer, PROTOCOL, SessionId, StepReport, StopCause, SyncRequest, SyncResponse, Usage,
};
use buildyard_types::{AttemptId, ByteSize, Fence, Millis, Outcome, Timestamp, WorkerId};

use crate::scenario::{HostPlan, Sabotage, Script};
use crate::world::{Event, Killed, World};

/// Longest that killing the steps takes. Less than margin and grace.
const KILLING_TAKES: u64 = 1_500;

/// A host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) plan: HostPlan,
    pub(crate) enrolled: bool,
    pub(crate) dead: bool,
    pub(crate) unfit: Option<String>,
    journal: BTreeMap<AttemptId, JournalEntry>,
    pub(crate) containers: BTreeMap<u64, Container>,
    process: Option<Process>,
    lives: u64,
    asked_to_enrol: bool,
}

/// What a crash of the worker loses.
#[derive(Debug)]
struct Process {
    life: u64,
    session: Session,
    sequence: u64,
    /// Calls that may still be answered, and when they were sent.
    calls: BTreeMap<u64, Timestamp>,
    /// What each attempt was told of its lease: all that its container hears of it.
    until: BTreeMap<AttemptId, Timestamp>,
    ticks_at: Option<Timestamp>,
}

/// An attempt's container.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) attempt: AttemptId,
    fence: Fence,
    script: Script,
    started: u64,
    /// When init stops the steps if it hears nothing newer.
    renewed_until: u64,
    /// How the steps ended, once they did.
    ended: Option<Outcome>,
    stopped_for: Option<StopCause>,
}

/// The worker of a host.
pub(crate) fn host_of(host: usize) -> WorkerId {
    WorkerId(1_000 + host as u64)
}

impl Host {
    pub(crate) fn new(plan: HostPlan) -> Self {
        Self {
            plan,
            enrolled: false,
            dead: false,
            unfit: None,
            journal: BTreeMap::new(),
            containers: BTreeMap::new(),
            process: None,
            lives: 0,
            asked_to_enrol: false,
        }
    }

    pub(crate) fn worker(&self, host: usize) -> WorkerId {
        host_of(host)
    }

    /// Whether nothing is left of any attempt.
    pub(crate) fn is_clean(&self) -> bool {
        self.dead || (self.journal.is_empty() && self.containers.is_empty())
    }

    fn local(&self, now: u64) -> Timestamp {
        Timestamp(now + self.plan.clock_ahead)
    }

    fn offer(&self) -> Offer {
        Offer { unfit: self.unfit.clone(), ..self.plan.offer.clone() }
    }

    fn container_of(&self, attempt: AttemptId) -> Option<u64> {
        self.containers.iter().find(|(_, container)| container.attempt == attempt).map(|(id, _)| *id)
    }
}

impl World {
    pub(crate) fn worker_starts(&mut self, host: usize) {
        let this = &mut self.hosts[host];
        if this.process.is_some() || this.dead {
            return;
        }
        this.lives += 1;
        let life = this.lives;
        let session = Session::adopt(this.journal.values().cloned());
        this.process = Some(Process {
            life,
            session,
            sequence: 0,
            calls: BTreeMap::new(),
            until: BTreeMap::new(),
            ticks_at: None,
        });
        self.sweep_unknown(host);
        self.adopt(host, life);
        if self.hosts[host].enrolled {
            self.call(host);
        } else if !std::mem::replace(&mut self.hosts[host].asked_to_enrol, true) {
            let plan = self.hosts[host].plan.clone();
            let (worker, name) = (host_of(host), format!("worker-{host}"));
            self.want(Input::Enrol { worker, name, pools: plan.pools, offer: plan.offer });
        }
    }

    fn sweep_unknown(&mut self, host: usize) {
        let this = &self.hosts[host];
        let unknown: Vec<u64> = this
            .containers
            .iter()
            .filter(|(_, container)| !this.journal.contains_key(&container.attempt))
            .map(|(id, _)| *id)
            .collect();
        for container in unknown {
            if self.hosts[host].plan.sweeps_late {
                let later = self.rng.between(0, 8_000);
                self.at(later, Event::Sweep { host, container });
            } else {
                self.sweep(host, container);
            }
        }
    }

    pub(crate) fn sweep(&mut self, host: usize, container: u64) {
        if let Some(swept) = self.hosts[host].containers.remove(&container) {
            self.audit.container_gone(&swept, container, self.now);
        }
    }

    /// What the journal knows goes on where it stood.
    fn adopt(&mut self, host: usize, life: u64) {
        let entries: Vec<JournalEntry> = self.hosts[host].journal.values().cloned().collect();
        for entry in entries {
            let attempt = entry.order.attempt;
            if entry.ended.is_some() {
                let after = self.rng.between(1, 500);
                self.at(after, Event::CleanUp { host, life, attempt });
                continue;
            }
            let container = self.hosts[host].container_of(attempt);
            match container.and_then(|id| self.hosts[host].containers.get(&id)) {
                Some(Container { ended: None, .. }) => self.tell(host, Said::Started { attempt }),
                Some(Container { ended: Some(outcome), .. }) => {
                    let report = report(outcome.clone());
                    self.tell(host, Said::Started { attempt });
                    self.upload_soon(host, life, attempt, report);
                }
                // It died while the attempt was prepared: that begins anew.
                None => self.prepare(host, life, attempt),
            }
        }
    }

    pub(crate) fn worker_dies(&mut self, host: usize, journal_lost: bool, power_off: bool) {
        let this = &mut self.hosts[host];
        this.process = None;
        if journal_lost {
            this.journal.clear();
        }
        if power_off {
            let containers: Vec<u64> = this.containers.keys().copied().collect();
            for container in containers {
                self.steps_killed(host, container, Killed::PowerOff);
            }
        }
    }

    /// Calls the coordinator: this is what the worker holds.
    pub(crate) fn call(&mut self, host: usize) {
        let now = self.now;
        let this = &mut self.hosts[host];
        let (local, offer) = (this.local(now), this.offer());
        let session = SessionId { number: this.lives, nonce: this.lives };
        let enrolled = this.enrolled;
        let Some(process) = this.process.as_mut().filter(|_| enrolled) else {
            return;
        };
        process.sequence += 1;
        process.calls.insert(process.sequence, local);
        // Older ones will not be waited for. A few are kept, since their answers may arrive all the same.
        while process.calls.len() > 4 {
            process.calls.pop_first();
        }
        let (life, sequence) = (process.life, process.sequence);
        let CallTerms { hold_ms, limit_ms } = process.session.call_terms(local);
        let attempts = process.session.report(local);
        let request = SyncRequest { protocol: PROTOCOL, session, sequence, hold_ms, offer, attempts };
        let (up, _) = self.connected(host);
        self.send(up, Event::CallArrives { host, life, request });
        self.at(limit_ms.0, Event::CallTimesOut { host, life, sequence });
    }

    pub(crate) fn call_times_out(&mut self, host: usize, life: u64, sequence: u64) {
        let newest = |process: &Process| process.life == life && process.sequence == sequence;
        if self.hosts[host].process.as_ref().is_some_and(newest) {
            self.call(host);
        }
    }

    pub(crate) fn answer_arrives(
        &mut self,
        host: usize,
        life: u64,
        sequence: u64,
        answer: Result<SyncResponse, String>,
    ) {
        let Some(process) = self.hosts[host].process.as_mut().filter(|process| process.life == life) else {
            return;
        };
        // An answer that arrives twice finds its call again: the session has to stand that.
        let Some(sent) = process.calls.get(&sequence).copied() else {
            return;
        };
        let newest = process.sequence == sequence;
        match answer {
            Ok(response) => {
                self.tell(host, Said::Answered { sent, response });
                let still_newest = |process: &Process| process.sequence == sequence;
                if newest && self.hosts[host].process.as_ref().is_some_and(still_newest) {
                    self.call(host);
                }
            }
            Err(reason) => self.note(|| format!("  rejected: {reason}")),
        }
    }

    pub(crate) fn session_tick(&mut self, host: usize, life: u64) {
        if let Some(process) = self.process_of(host, life) {
            process.ticks_at = None;
            self.tell(host, Said::Tick);
        }
    }

    fn process_of(&mut self, host: usize, life: u64) -> Option<&mut Process> {
        self.hosts[host].process.as_mut().filter(|process| process.life == life)
    }

    /// Tells the session, and does what it says.
    fn tell(&mut self, host: usize, said: Said) {
        let this = &mut self.hosts[host];
        let local = this.local(self.now);
        let Some(process) = &mut this.process else {
            return;
        };
        let actions = process.session.on(said, local);
        let life = process.life;
        for action in actions {
            self.note(|| format!("  host {host}: {action:?}"));
            self.act(host, life, action);
        }
        self.tick_in_time(host);
    }

    fn tick_in_time(&mut self, host: usize) {
        let this = &mut self.hosts[host];
        let local = this.local(self.now);
        let Some(process) = &mut this.process else {
            return;
        };
        let Some(at) = process.session.next_wakeup() else {
            return;
        };
        if process.ticks_at.is_none_or(|ticks_at| at < ticks_at) {
            process.ticks_at = Some(at);
            let life = process.life;
            self.at(at.since(local).0, Event::SessionTick { host, life });
        }
    }

    fn act(&mut self, host: usize, life: u64, action: Action) {
        match action {
            Action::Begin { order } => {
                let attempt = order.attempt;
                self.hosts[host].journal.insert(attempt, JournalEntry { order, ended: None });
                if let Some(leftover) = self.hosts[host].container_of(attempt) {
                    self.sweep(host, leftover);
                }
                self.prepare(host, life, attempt);
            }
            Action::Stop { attempt, cause, .. } => self.stop(host, life, attempt, cause),
            Action::KeepAlive { attempt, until } => self.keep_alive(host, attempt, until),
            Action::Fence { attempt } => self.fence(host, life, attempt),
            Action::Forget { attempt } => {
                if let Some(process) = &mut self.hosts[host].process {
                    process.until.remove(&attempt);
                }
                self.hosts[host].journal.remove(&attempt);
            }
            Action::SyncNow => self.call(host),
        }
    }

    fn prepare(&mut self, host: usize, life: u64, attempt: AttemptId) {
        if self.faulty && self.rng.percent(self.scenario.prepare_hangs) {
            return;
        }
        let fails = self.faulty && self.rng.percent(self.scenario.prepare_fails);
        let takes =
            if self.rng.percent(5) { self.rng.between(3_000, 40_000) } else { self.rng.between(20, 2_000) };
        self.at(takes, Event::Prepared { host, life, attempt, fails });
    }

    pub(crate) fn prepared(&mut self, host: usize, life: u64, attempt: AttemptId, fails: bool) {
        let local = self.hosts[host].local(self.now);
        let unasked = self.sabotage == Sabotage::StartsUnasked;
        let Some(process) = self.process_of(host, life) else {
            return;
        };
        let (fence, preparing) = match process.session.attempts().get(&attempt) {
            Some((fence, Held::Preparing)) => (*fence, true),
            Some((
                fence,
                Held::Running { .. } | Held::Stopping { .. } | Held::Sending | Held::Ended { .. },
            )) => (*fence, false),
            None => return,
        };
        if !preparing && !unasked {
            return;
        }
        let may_start = process.session.may_start(attempt, local) || unasked;
        let renewed_until = process.until.get(&attempt).copied().unwrap_or(Timestamp(0));
        if fails {
            let outcome = Outcome::Infra { cause: InfraCause::Pull, detail: "the registry is away".into() };
            self.upload_soon(host, life, attempt, report(outcome));
        } else if may_start {
            self.container_starts(host, attempt, fence, renewed_until);
            self.tell(host, Said::Started { attempt });
        } else {
            // No lease since the worker came back: nobody may have told it yet that its time is over.
            self.at(200, Event::Prepared { host, life, attempt, fails });
        }
    }

    fn container_starts(&mut self, host: usize, attempt: AttemptId, fence: Fence, until: Timestamp) {
        let Some(plan) = self.people.plan_of(&self.coordinator.store, attempt.run(), &self.scenario) else {
            return;
        };
        let index = attempt.job.index.0 as usize;
        let (script, limit) = (plan.scripts[index], plan.pipeline.jobs[index].timeout_ms.0);
        // A worker that is slow to obey does not keep the time limit either: the coordinator has to.
        let keeps_limit = plan.obeys_after[index] < 5_000;
        let renewed_until = until.0.saturating_sub(self.hosts[host].plan.clock_ahead);
        let id = self.audit.next_container();
        let started = self.now;
        let container =
            Container { attempt, fence, script, started, renewed_until, ended: None, stopped_for: None };
        self.note(|| format!("  host {host}: container {id} starts for {attempt}"));
        self.audit.container_starts(&container, id, host, started);
        self.hosts[host].containers.insert(id, container);
        let ends_after = match script.length() {
            Some(length) if length <= limit => Some(length),
            Some(_) | None if keeps_limit => Some(limit),
            Some(length) => Some(length),
            None => None,
        };
        if let Some(after) = ends_after {
            self.at(after, Event::StepsEnd { host, container: id });
        }
        self.at(renewed_until.saturating_sub(started), Event::InitLooks { host, container: id });
    }

    fn keep_alive(&mut self, host: usize, attempt: AttemptId, until: Timestamp) {
        if let Some(process) = &mut self.hosts[host].process {
            process.until.insert(attempt, until);
        }
        let renewed_until = until.0 - self.hosts[host].plan.clock_ahead;
        let Some(id) = self.hosts[host].container_of(attempt) else {
            return;
        };
        if let Some(container) = self.hosts[host].containers.get_mut(&id) {
            container.renewed_until = container.renewed_until.max(renewed_until);
            let after = container.renewed_until.saturating_sub(self.now);
            self.at(after, Event::InitLooks { host, container: id });
        }
    }

    pub(crate) fn init_looks(&mut self, host: usize, container: u64) {
        let due = |container: &Container| container.ended.is_none() && container.renewed_until <= self.now;
        if self.hosts[host].containers.get(&container).is_some_and(due) {
            self.kill(host, container);
        }
    }

    fn fence(&mut self, host: usize, life: u64, attempt: AttemptId) {
        match self.hosts[host].container_of(attempt) {
            Some(container) => self.kill(host, container),
            None => self.upload_soon(host, life, attempt, report(fenced())),
        }
    }

    fn kill(&mut self, host: usize, container: u64) {
        if self.sabotage != Sabotage::NobodyFences {
            let takes = self.rng.between(0, KILLING_TAKES);
            self.at(takes, Event::StepsKilled { host, container, why: Killed::Fenced });
        }
    }

    fn stop(&mut self, host: usize, life: u64, attempt: AttemptId, cause: StopCause) {
        let Some(id) = self.hosts[host].container_of(attempt) else {
            // Its preparation is given up.
            let outcome = stopped(Some(&cause));
            self.upload_soon(host, life, attempt, report(outcome));
            return;
        };
        let index = attempt.job.index.0 as usize;
        let plan = self.people.plan_of(&self.coordinator.store, attempt.run(), &self.scenario);
        let obeys_after = plan.map_or(0, |plan| plan.obeys_after[index]);
        if let Some(container) = self.hosts[host].containers.get_mut(&id) {
            container.stopped_for = Some(cause);
        }
        self.at(obeys_after, Event::StepsKilled { host, container: id, why: Killed::Stopped });
    }

    pub(crate) fn steps_end(&mut self, host: usize, container: u64) {
        let Some(found) = self.hosts[host].containers.get(&container) else {
            return;
        };
        let index = found.attempt.job.index.0 as usize;
        let plan = self.people.plan_of(&self.coordinator.store, found.attempt.run(), &self.scenario);
        let limit = plan.map_or(Millis(0), |plan| plan.pipeline.jobs[index].timeout_ms);
        let ran = self.now - found.started;
        let outcome = found.script.outcome(ran, limit);
        self.steps_over(host, container, outcome);
    }

    pub(crate) fn steps_killed(&mut self, host: usize, container: u64, why: Killed) {
        let Some(found) = self.hosts[host].containers.get(&container) else {
            return;
        };
        let outcome = match why {
            Killed::Stopped => stopped(found.stopped_for.as_ref()),
            Killed::Fenced => fenced(),
            Killed::PowerOff => {
                Outcome::Infra { cause: InfraCause::Engine, detail: "the host lost its power".into() }
            }
        };
        self.steps_over(host, container, outcome);
    }

    fn steps_over(&mut self, host: usize, id: u64, outcome: Outcome) {
        let Some(container) = self.hosts[host].containers.get_mut(&id) else {
            return;
        };
        if container.ended.is_some() {
            return;
        }
        container.ended = Some(outcome.clone());
        let (attempt, fence) = (container.attempt, container.fence);
        let container = container.clone();
        self.audit.container_gone(&container, id, self.now);
        self.note(|| format!("  host {host}: container {id} of {attempt} ended: {outcome}"));
        let Some(process) = &self.hosts[host].process else {
            return;
        };
        // A container of an attempt that the worker does not hold waits for the sweep.
        if process.session.attempts().get(&attempt).is_some_and(|(held, _)| *held == fence) {
            self.upload_soon(host, process.life, attempt, report(outcome));
        }
    }

    fn upload_soon(&mut self, host: usize, life: u64, attempt: AttemptId, report: EndReport) {
        if self.sabotage != Sabotage::SendsUnsaid {
            self.tell(host, Said::Judged { attempt });
        }
        let after = self.rng.between(5, 500);
        self.at(after, Event::Upload { host, life, attempt, report: Box::new(report) });
    }

    /// Log and artifacts go to the coordinator before the end is reported.
    pub(crate) fn upload(&mut self, host: usize, life: u64, attempt: AttemptId, report: EndReport) {
        let takes = self.coordinator.process.is_some() && self.coordinator.full_disks == 0;
        let reached = self.connected(host) == (true, true) && takes;
        let Some(process) = self.process_of(host, life) else {
            return;
        };
        let waits = match process.session.attempts().get(&attempt) {
            Some((_, Held::Preparing | Held::Running { .. } | Held::Stopping { .. } | Held::Sending)) => true,
            Some((_, Held::Ended { .. })) | None => false,
        };
        if !waits {
            return;
        }
        if !reached {
            self.at(500, Event::Upload { host, life, attempt, report: Box::new(report) });
            return;
        }
        self.tell(host, Said::Ended { attempt, report });
        let this = &mut self.hosts[host];
        let held = this.process.as_ref().and_then(|process| process.session.attempts().get(&attempt));
        if let (Some((_, Held::Ended { report, .. })), Some(entry)) = (held, this.journal.get_mut(&attempt)) {
            entry.ended = Some((**report).clone());
        }
        let after = self.rng.between(5, 1_500);
        self.at(after, Event::CleanUp { host, life, attempt });
    }

    pub(crate) fn clean_up(&mut self, host: usize, life: u64, attempt: AttemptId) {
        if self.process_of(host, life).is_none() {
            return;
        }
        if let Some(container) = self.hosts[host].container_of(attempt) {
            self.sweep(host, container);
        }
        self.tell(host, Said::Removed { attempt });
    }
}

impl Script {
    /// After how long the steps end by themselves.
    fn length(self) -> Option<u64> {
        match self {
            Script::Pass(length)
            | Script::Fail(length, _)
            | Script::OutOfMemory(length)
            | Script::Flood(length) => Some(length),
            Script::Forever => None,
        }
    }

    /// How the steps ended after so long, undisturbed.
    fn outcome(self, ran: u64, limit: Millis) -> Outcome {
        let step = Some("test".to_owned());
        match self {
            _ if self.length().is_none_or(|length| ran < length) => {
                Outcome::TimedOut { limit: TimeLimit::Job, after_ms: limit }
            }
            Script::Pass(_) => Outcome::Passed,
            Script::Fail(_, exit_code) => Outcome::Failed { step: "test".into(), exit_code },
            Script::OutOfMemory(_) => Outcome::OutOfMemory { step, limit: ByteSize::from_gib(1) },
            Script::Flood(_) => Outcome::LogCap { step, limit: ByteSize::from_mib(512) },
            Script::Forever => Outcome::TimedOut { limit: TimeLimit::Job, after_ms: limit },
        }
    }

    /// Whether a job with this script may end so, whatever goes wrong with the farm.
    pub(crate) fn allows(self, outcome: &Outcome, limit: Millis) -> bool {
        let in_time = self.length().is_some_and(|length| length <= limit.0);
        match (self, outcome) {
            (Script::Pass(_), Outcome::Passed)
            | (Script::OutOfMemory(_), Outcome::OutOfMemory { .. })
            | (Script::Flood(_), Outcome::LogCap { .. }) => true,
            (Script::Fail(_, code), Outcome::Failed { exit_code, .. }) => code == *exit_code,
            (_, Outcome::TimedOut { limit: TimeLimit::Job, .. }) => !in_time,
            (_, _) => false,
        }
    }
}

fn report(outcome: Outcome) -> EndReport {
    let step = StepReport { name: "test".into(), exit_code: None, duration_ms: Millis(1) };
    EndReport { outcome, steps: vec![step], usage: Usage::default(), notes: Vec::new(), image_digest: None }
}

fn fenced() -> Outcome {
    Outcome::Infra { cause: InfraCause::SelfFenced, detail: "nobody renewed it".into() }
}

/// What a worker makes of steps that it was told to kill.
fn stopped(cause: Option<&StopCause>) -> Outcome {
    match cause {
        Some(StopCause::Cancelled { by }) => Outcome::Cancelled { by: by.clone() },
        Some(StopCause::TimedOut { after_ms }) => {
            Outcome::TimedOut { limit: TimeLimit::Job, after_ms: *after_ms }
        }
        Some(StopCause::Revoked) | None => {
            Outcome::Infra { cause: InfraCause::Worker, detail: "the attempt was revoked".into() }
        }
    }
}
