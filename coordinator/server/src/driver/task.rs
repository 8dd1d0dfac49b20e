//! The driver's task: what it takes in, and how each input is decided.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use buildyard_scheduler::lifecycle::run::RunState;
use buildyard_scheduler::{Core, Input, Reply, Settings, State};
use buildyard_store::{AuditLine, Batch, Snapshot, Store, StoreError};
use buildyard_types::{Epoch, Millis, RunId, Timestamp, WorkerId};
use tokio::sync::{Notify, mpsc, watch};

use super::holds::{Holds, Reported, SyncAnswer};
use super::{Act, Answer, BATCH, Call, DriverEnd, DriverError, View};
use crate::app::closed;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::sentences::{Narrator, Scene};

/// While more calls wait than a turn takes, time stands still for so long at most.
const OVERDUE: Millis = Millis(1_000);

/// What the driver is made of.
pub(crate) struct DriverParts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) epoch: Epoch,
    pub(crate) settings: Settings,
    pub(crate) clock: Clock,
    pub(crate) calls: mpsc::Receiver<Call>,
    pub(crate) closing: watch::Receiver<bool>,
    /// Carries the sequence number of the newest event.
    pub(crate) events: watch::Sender<u64>,
    /// Told when there are received runs.
    pub(crate) received: Arc<Notify>,
    pub(crate) metrics: Arc<Metrics>,
}

/// The driver.
pub(crate) struct Driver {
    pub(super) parts: DriverParts,
    pub(super) core: Core,
    pub(super) narrator: Narrator,
    pub(super) holds: Holds,
    /// Received runs that nobody reads yet. A part of the state, so bounded by it.
    pub(super) received: BTreeSet<RunId>,
    /// The core knows more than the store, and the process ends before it could be rebuilt. Nothing may be
    /// decided on it.
    pub(super) core_is_void: bool,
}

/// An answer that waits for the commit.
pub(super) enum Pending {
    Reply(Answer, Reply),
    Sync { worker: WorkerId, reported: Reported, answer: SyncAnswer, reply: Reply },
    Look(View),
}

/// What one turn gathers.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) batch: Batch,
    pub(super) pending: Vec<Pending>,
    pub(super) news: BTreeSet<WorkerId>,
    taken: usize,
}

impl Driver {
    /// Reads the farm from the store.
    pub(crate) async fn load(parts: DriverParts) -> Result<Self, StoreError> {
        let snapshot = parts.store.load().await?;
        let core = Core::new(state_of(parts.epoch, &parts.settings, snapshot, parts.clock.now()));
        let mut driver = Self {
            parts,
            core,
            narrator: Narrator::default(),
            holds: Holds::default(),
            received: BTreeSet::new(),
            core_is_void: false,
        };
        driver.take_stock();
        Ok(driver)
    }

    /// Finds out anew what follows from the core's state.
    pub(super) fn take_stock(&mut self) {
        let state = self.core.state();
        self.narrator = Narrator::new(state.workers.values());
        let received = state.runs.values().filter(|run| matches!(run.state, RunState::Received));
        self.received = received.map(|run| run.id).collect();
        if !self.received.is_empty() {
            self.parts.received.notify_one();
        }
    }

    /// Runs until the process ends, or until another coordinator took over.
    pub(crate) async fn run(mut self) -> Result<(), DriverEnd> {
        let mut closing = self.parts.closing.clone();
        loop {
            let due = [self.core.next_wakeup(), self.holds.next_due()].into_iter().flatten().min();
            let first = tokio::select! {
                // A closed sender means that the process is gone as well.
                () = closed(&mut closing) => break,
                call = self.parts.calls.recv() => match call {
                    Some(call) => Some(call),
                    None => break,
                },
                () = sleep_until(self.parts.clock, due) => None,
            };
            self.turn(first).await?;
        }
        self.finish().await
    }

    /// What waits is still decided and committed, then everybody is told that it is over.
    async fn finish(mut self) -> Result<(), DriverEnd> {
        self.parts.calls.close();
        while let Ok(call) = self.parts.calls.try_recv() {
            if self.core_is_void {
                // A call that is dropped without an answer means that the process is ending.
                continue;
            }
            self.turn(Some(call)).await?;
        }
        self.holds.refuse_all(&DriverError::Stopping);
        Ok(())
    }

    /// Takes what waits, decides it, commits it, and then says what came of it.
    async fn turn(&mut self, first: Option<Call>) -> Result<(), DriverEnd> {
        let now = self.parts.clock.now();
        let mut turn = Turn::default();
        turn.batch.at = now;
        let mut next = first;
        while let Some(call) = next {
            self.take(&mut turn, call, now);
            next = if turn.taken < BATCH { self.parts.calls.try_recv().ok() } else { None };
        }
        // Time passes after what was said in it: a worker whose call waited in the queue is not lost.
        let patience = if turn.taken < BATCH { Millis(0) } else { OVERDUE };
        if self.core.next_wakeup().is_some_and(|due| due + patience <= now) {
            self.decide(&mut turn, Input::Tick, None, now);
        }
        match self.commit(&turn.batch).await {
            Ok(()) => self.publish(turn, now),
            Err(error) => self.refuse(turn, error).await?,
        }
        self.holds.release_due(self.parts.clock.now());
        Ok(())
    }

    fn take(&mut self, turn: &mut Turn, call: Call, now: Timestamp) {
        turn.taken += 1;
        match call {
            // Nobody waits for it any more, and whoever did was told that nothing was changed.
            Call::Decide { answer, .. } | Call::Grant { answer, .. } if !answer.take_up() => {}
            Call::Decide { input, tokens, act, answer } => {
                let reply = self.decide(turn, *input, act, now);
                if !matches!(reply, Reply::Rejected(_)) {
                    turn.batch.tokens.extend(tokens);
                }
                turn.pending.push(Pending::Reply(answer, reply));
            }
            Call::Grant { token, act, answer } => {
                turn.batch.tokens.push(token);
                turn.batch.audit.push(audit_line(act, &Reply::Done, now));
                turn.pending.push(Pending::Reply(answer, Reply::Done));
            }
            Call::Sync { worker, request, answer } => {
                let offer = request.offer.clone();
                let reported = Reported::from(request);
                let (session, sequence) = reported.order();
                let attempts = reported.attempts.clone();
                let input = Input::Sync { worker, session, sequence, offer, attempts };
                let reply = self.decide(turn, input, None, now);
                turn.pending.push(Pending::Sync { worker, reported, answer, reply });
            }
            // What would be seen may not be on record yet.
            Call::Look(view) => turn.pending.push(Pending::Look(view)),
            Call::TakeReceived { limit, answer } => {
                let runs: Vec<RunId> = self.received.iter().copied().take(limit).collect();
                // Whoever asked may be gone; then the runs stay where they are.
                if answer.send(runs.clone()).is_ok() {
                    runs.iter().for_each(|run| {
                        self.received.remove(run);
                    });
                }
            }
        }
    }

    /// Decides one input and adds what follows to the turn.
    fn decide(&mut self, turn: &mut Turn, input: Input, act: Option<Act>, now: Timestamp) -> Reply {
        let decision = self.core.decide(input, now);
        let scene = Scene { state: self.core.state(), settled: &decision.settled };
        let narrator = &mut self.narrator;
        turn.batch
            .events
            .extend(decision.records.iter().filter_map(|record| narrator.tell(&scene, record, now)));
        if let Some(act) = act
            && !decision.records.is_empty()
        {
            turn.batch.audit.push(audit_line(act, &decision.reply, now));
        }
        turn.batch.records.extend(decision.records);
        turn.news.extend(decision.news);
        decision.reply
    }
}

fn audit_line(act: Act, reply: &Reply, at: Timestamp) -> AuditLine {
    let made = match reply {
        Reply::Run(run) => Some(run.to_string()),
        Reply::Done | Reply::Sync { .. } | Reply::Rejected(_) => None,
    };
    let subject = act.subject.or(made).unwrap_or_default();
    AuditLine { at, actor: act.actor, act: act.act.to_owned(), subject }
}

/// The scheduler's state over what the store has.
pub(super) fn state_of(epoch: Epoch, settings: &Settings, snapshot: Snapshot, now: Timestamp) -> State {
    State::from_snapshot(epoch, settings.clone(), snapshot, now)
}

async fn sleep_until(clock: Clock, due: Option<Timestamp>) {
    match due {
        // One millisecond more: timers and the clock round in different directions.
        Some(due) => tokio::time::sleep_until(clock.instant(due) + Duration::from_millis(1)).await,
        None => std::future::pending().await,
    }
}
