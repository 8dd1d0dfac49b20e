//! Commit first, then speak; and what happens when a commit fails.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use buildyard_scheduler::lifecycle::worker::Heard;
use buildyard_scheduler::{Core, Record, Reply};
use buildyard_store::{Batch, Snapshot, StoreError};
use buildyard_types::worker::SyncResponse;
use buildyard_types::{Millis, Timestamp, WorkerId};

use super::holds::{Hold, Reported};
use super::task::{Driver, Pending, Turn, state_of};
use super::{Call, DriverEnd, DriverError};
use crate::error::chain;

/// First wait before the store is asked again; doubled up to the last.
const REBUILD_FIRST: Duration = Duration::from_millis(100);
const REBUILD_LAST: Duration = Duration::from_secs(5);
/// A worker whose call could not be committed is held for this long, so that it does not call in a circle.
const BARE_HOLD: Millis = Millis(1_000);

/// Whether there is nothing to commit.
fn is_silent(batch: &Batch) -> bool {
    let Batch { at: _, records, events, tokens, audit } = batch;
    records.is_empty() && events.is_empty() && tokens.is_empty() && audit.is_empty()
}

/// Whether the process has to end for it: going on would risk two schedulers, or acknowledging what is lost.
fn fatal(error: &StoreError) -> Option<fn(StoreError) -> DriverEnd> {
    match error {
        StoreError::EpochOver { .. } => Some(DriverEnd::EpochOver),
        StoreError::Damaged { .. } | StoreError::Unavailable { retry: false, .. } => {
            Some(DriverEnd::StoreLost)
        }
        StoreError::Unavailable { retry: true, .. } | StoreError::Stale { .. } | StoreError::Conflict(_) => {
            None
        }
    }
}

impl Driver {
    /// Commits what the turn gathered.
    pub(super) async fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if is_silent(batch) {
            return Ok(());
        }
        let began = Instant::now();
        let events = self.parts.store.commit(self.parts.epoch, batch).await?;
        self.parts.metrics.committed(batch.records.len(), began.elapsed());
        for event in &events {
            tracing::info!(
                event = event.kind,
                run_id = event.run.map(tracing::field::display),
                job_id = event.job.map(tracing::field::display),
                worker_id = event.worker.map(tracing::field::display),
                "{}",
                event.sentence
            );
        }
        if let Some(last) = events.last() {
            self.parts.events.send_replace(last.sequence);
        }
        Ok(())
    }

    /// Says what came of the turn. Everything of it is on record now.
    pub(super) fn publish(&mut self, turn: Turn, now: Timestamp) {
        let mut received = false;
        for record in &turn.batch.records {
            if let Record::RunCreated { run } = record {
                received |= self.received.insert(run.id);
            }
        }
        if received {
            self.parts.received.notify_one();
        }
        for pending in turn.pending {
            match pending {
                // Whoever asked may be gone; the deed is on record all the same.
                Pending::Reply(answer, reply) => answer.tell(Ok(reply)),
                Pending::Sync { worker, reported, answer, reply: Reply::Rejected(why) } => {
                    drop((worker, reported));
                    drop(answer.send(Err(DriverError::Rejected(why))));
                }
                Pending::Sync { worker, reported, answer, reply: _ } => {
                    // Asked anew, since later inputs of the turn may have changed what it should do.
                    let told = self.core.answer(worker, &reported.attempts);
                    let newer =
                        self.holds.reported(worker).is_some_and(|held| held.order() > reported.order());
                    if told.idle && !newer {
                        let until = now + self.core.hold_ms().min(reported.hold_ms);
                        self.holds.hold(worker, Hold { reported, idle: told.response, until, answer });
                    } else {
                        drop(answer.send(Ok(told.response)));
                    }
                }
                Pending::Look(view) => view(&self.core, now, self.holds.len()),
            }
        }
        for worker in turn.news {
            let Some(reported) = self.holds.reported(worker) else { continue };
            let told = self.core.answer(worker, &reported.attempts);
            if !told.idle
                && let Some(hold) = self.holds.take(worker)
            {
                drop(hold.answer.send(Ok(told.response)));
            }
        }
    }

    /// Nothing of the turn happened: its callers are told so, and the core is read anew.
    ///
    /// A worker's call is different. Its lease is no record (liveness is never stored), so it is renewed
    /// although the store is away: otherwise a locked database would cost running builds. It is told nothing
    /// else, and hears it after a moment.
    pub(super) async fn refuse(&mut self, turn: Turn, error: StoreError) -> Result<(), DriverEnd> {
        if let Some(end) = fatal(&error) {
            self.holds.refuse_all(&DriverError::Stopping);
            if matches!(error, StoreError::EpochOver { .. }) {
                // Refused as a whole. After any other end nobody knows whether the commit reached the disk.
                for pending in turn.pending {
                    if let Pending::Reply(answer, _) = pending {
                        answer.tell(Err(DriverError::Stopping));
                    }
                }
            }
            return Err(end(error));
        }
        tracing::error!(error = %chain(&error), "a commit failed; the farm is read anew from the store");
        self.parts.metrics.commit_failed();
        let mut looks = Vec::new();
        for pending in turn.pending {
            match pending {
                Pending::Reply(answer, _) => answer.tell(Err(DriverError::Unavailable)),
                Pending::Sync { worker, reported, answer, reply: _ } => {
                    let until = self.parts.clock.now() + BARE_HOLD.min(reported.hold_ms);
                    self.holds.hold(worker, Hold { reported, idle: self.renewal(), until, answer });
                }
                Pending::Look(view) => looks.push(view),
            }
        }
        self.rebuild().await?;
        if self.core_is_void {
            return Ok(());
        }
        let now = self.parts.clock.now();
        looks.into_iter().for_each(|view| view(&self.core, now, self.holds.len()));
        Ok(())
    }

    /// An answer that renews the lease and says nothing else.
    fn renewal(&self) -> SyncResponse {
        let lease_ms = self.parts.settings.lease_ms;
        SyncResponse { lease_ms, run: Vec::new(), stop: Vec::new(), forget: Vec::new() }
    }

    /// Reads the farm from the store until that succeeds. Who asks meanwhile is told to come again.
    async fn rebuild(&mut self) -> Result<(), DriverEnd> {
        let mut wait = REBUILD_FIRST;
        let mut heard = self.core.state().heard.clone();
        loop {
            match self.parts.store.load().await {
                Ok(snapshot) => {
                    self.core = self.core_again(snapshot, heard);
                    self.take_stock();
                    return Ok(());
                }
                Err(error) => match fatal(&error) {
                    Some(end) => return Err(end(error)),
                    None => tracing::warn!(error = %chain(&error), "the store still does not answer"),
                },
            }
            if *self.parts.closing.borrow() {
                self.core_is_void = true;
                return Ok(());
            }
            self.wait_refusing(wait, &mut heard).await;
            wait = (wait * 2).min(REBUILD_LAST);
        }
    }

    /// The core over what the store has, with what this process knows of its workers' calls.
    fn core_again(&self, snapshot: Snapshot, heard: BTreeMap<WorkerId, Heard>) -> Core {
        let now = self.parts.clock.now();
        let mut state = state_of(self.parts.epoch, &self.parts.settings, snapshot, now);
        // A worker that was removed in the batch that failed is still there; one that joined is not.
        state.heard = heard.into_iter().filter(|(worker, _)| state.workers.contains_key(worker)).collect();
        // Whoever could not be heard while the store was away gets a full fresh term: `listening_since`
        // is now, as after a start.
        Core::new(state)
    }

    /// Waits, and refuses whoever calls meanwhile. Calls of workers count as heard.
    async fn wait_refusing(&mut self, wait: Duration, heard: &mut BTreeMap<WorkerId, Heard>) {
        let over = tokio::time::sleep(wait);
        tokio::pin!(over);
        loop {
            let call = tokio::select! {
                () = &mut over => return,
                call = self.parts.calls.recv() => call,
            };
            let now = self.parts.clock.now();
            self.holds.release_due(now);
            match call {
                None => return,
                Some(Call::Decide { answer, .. } | Call::Grant { answer, .. }) => {
                    answer.tell(Err(DriverError::Unavailable));
                }
                Some(Call::Sync { worker, request, answer }) => {
                    let reported = Reported::from(request);
                    let (session, sequence) = reported.order();
                    let follows = |last: &Heard| {
                        last.session.admits(session) && (last.session, last.sequence) <= reported.order()
                    };
                    if heard.get(&worker).is_none_or(follows) {
                        heard.insert(worker, Heard { at: now, session, sequence });
                    }
                    let until = now + BARE_HOLD.min(reported.hold_ms);
                    self.holds.hold(worker, Hold { reported, idle: self.renewal(), until, answer });
                }
                // Dropping the closure tells the caller that there is no answer.
                Some(Call::Look(view)) => drop(view),
                Some(Call::TakeReceived { answer, .. }) => drop(answer.send(Vec::new())),
            }
        }
    }
}
