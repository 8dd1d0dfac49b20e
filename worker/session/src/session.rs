//! Every attempt of one worker.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_types::outcome::InfraCause;
use buildyard_types::worker::{
    AttemptOrder, AttemptProgress, AttemptReport, EndReport, StopCause, StopOrder, SyncResponse, Usage,
    longest_hold,
};
use buildyard_types::{AttemptId, Fence, Millis, Outcome, Timestamp};

use crate::event::{Action, Event, Held, JournalEntry};

/// The attempts of one worker, and until when it has a right to them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Session {
    attempts: BTreeMap<AttemptId, (Fence, Held)>,
    /// End of the lease, and end less margin. Only grows.
    lease: Option<Lease>,
    /// Attempts that were fenced. They are not kept alive again, whatever the coordinator says later.
    fenced: BTreeSet<AttemptId>,
    /// The greatest fence that was forgotten. Orders at or below it are repetitions: fences grow, and every
    /// answer carries all orders that are open.
    forgotten: Option<Fence>,
}

/// Time for an answer before the length of a lease is known.
const FIRST_SLACK: Millis = Millis(10_000);
/// Shortest time for an answer beyond the hold.
const LEAST_SLACK: Millis = Millis(500);

/// How a call is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallTerms {
    /// How long the coordinator may hold it.
    pub hold_ms: Millis,
    /// When it is given up, counted from its sending.
    pub limit_ms: Millis,
}

/// The right of the attempts to go on.
///
/// In fifths of the lease, which counts from when a call was sent (the coordinator's counts from when it arrived,
/// which is later): the last is the margin, in which init kills the steps. The first is how long a call is held
/// while attempts go on, and so is the second, for the next call is sent when that one is answered. Two fifths,
/// 6 s of 15 s, are left if that one gets no answer: the time in which to reach the coordinator again, at whatever
/// moment it went away. See [`Session::call_terms`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Lease {
    until: Timestamp,
    fence_at: Timestamp,
    fifth: Millis,
}

impl Lease {
    fn of(sent: Timestamp, lease_ms: Millis) -> Self {
        let fifth = Millis(lease_ms.0 / 5);
        let until = sent + lease_ms;
        Self { until, fence_at: until - fifth, fifth }
    }

    fn length(&self) -> Millis {
        Millis(self.fifth.0 * 5)
    }
}

impl Session {
    /// Takes up what the journal holds. Entries without an end are being re-adopted: they count as preparing
    /// until the shell says otherwise.
    pub fn adopt(entries: impl IntoIterator<Item = JournalEntry>) -> Self {
        let held = |entry: JournalEntry| {
            let held = match entry.ended {
                None => Held::Preparing,
                Some(report) => Held::Ended { report: Box::new(report), removed: false, on_record: false },
            };
            (entry.order.attempt, (entry.order.fence, held))
        };
        Self { attempts: entries.into_iter().map(held).collect(), ..Self::default() }
    }

    /// Takes note of an event and says what to do about it, in this order.
    pub fn on(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        // Before anything else: init has stopped the steps by now, so an answer that comes this late cannot
        // bring them back.
        self.fence_if_due(now, &mut actions);
        match event {
            Event::Answered { sent, response } => self.answered(sent, response, now, &mut actions),
            Event::Started { attempt } => self.started(attempt, now, &mut actions),
            Event::Judged { attempt } => self.judged(attempt, &mut actions),
            Event::Ended { attempt, report } => self.ended(attempt, report, &mut actions),
            Event::Removed { attempt } => self.removed(attempt, &mut actions),
            Event::Tick => {}
        }
        actions
    }

    /// What to tell the coordinator.
    pub fn report(&self, now: Timestamp) -> Vec<AttemptReport> {
        let progress = |held: &Held| match held {
            Held::Preparing => AttemptProgress::Preparing,
            Held::Running { since } => AttemptProgress::Running { for_ms: now.since(*since) },
            Held::Stopping { .. } => AttemptProgress::Stopping,
            Held::Sending => AttemptProgress::Sending,
            Held::Ended { report, removed, .. } => {
                AttemptProgress::Ended { report: report.clone(), removed: *removed }
            }
        };
        let report = |(attempt, (fence, held)): (&AttemptId, &(Fence, Held))| AttemptReport {
            attempt: *attempt,
            fence: *fence,
            state: progress(held),
        };
        self.attempts.iter().map(report).collect()
    }

    /// Every attempt that is held.
    pub fn attempts(&self) -> &BTreeMap<AttemptId, (Fence, Held)> {
        &self.attempts
    }

    /// When the lease of the attempts ends; `None` before the first answer.
    pub fn lease_until(&self) -> Option<Timestamp> {
        self.lease.map(|lease| lease.until)
    }

    /// When the steps of all attempts are stopped if no answer comes before: the lease less its margin. `None`
    /// before the first answer.
    pub fn fence_at(&self) -> Option<Timestamp> {
        self.lease.map(|lease| lease.fence_at)
    }

    /// The next moment at which the session wants [`Event::Tick`]: when the lease is about to end.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        let lease = self.lease?;
        self.needs_lease().then_some(lease.fence_at)
    }

    /// Whether something would be killed at the end of the lease.
    fn needs_lease(&self) -> bool {
        let unfenced = |(attempt, (_, held)): (&AttemptId, &(Fence, Held))| {
            is_live(held) && !self.fenced.contains(attempt)
        };
        self.attempts.iter().any(unfenced)
    }

    /// How long a call that is sent now may be held, and when it is given up.
    ///
    /// A call that is held eats the lease that it is to renew. While attempts go on it is held for a fifth of the
    /// lease at most, and never into the last two fifths before the fence: a call that comes so late, as after one
    /// that was lost, is to be answered at once. Half of what the hold leaves is for its answer and the other half
    /// for the calls behind it, so that one that is lost without a sign leaves time for more.
    pub fn call_terms(&self, now: Timestamp) -> CallTerms {
        let (hold_ms, slack) = match (self.lease, self.needs_lease()) {
            // To learn of the lease: attempts of an earlier life wait for one, and the coordinator gives up a
            // worker whose first answer was lost before this worker knows when.
            (None, true | false) => (Millis(0), FIRST_SLACK),
            (Some(lease), true) => {
                let left = lease.fence_at.since(now);
                let spare = Millis(left.0.saturating_sub(2 * lease.fifth.0));
                let hold_ms = spare.min(lease.fifth);
                let half = Millis((left.0 - hold_ms.0) / 2);
                (hold_ms, half.max(Millis(lease.fifth.0 / 2)))
            }
            // Nothing but time can be lost.
            (Some(lease), false) => {
                let hold_ms = longest_hold(lease.length());
                (hold_ms, hold_ms)
            }
        };
        CallTerms { hold_ms, limit_ms: Millis(hold_ms.0 + slack.max(LEAST_SLACK).0) }
    }

    /// Whether the steps of an attempt may begin now: it is preparing, and its lease is live. The shell asks
    /// right before it hands the job to init, also after a restart.
    pub fn may_start(&self, attempt: AttemptId, now: Timestamp) -> bool {
        let preparing = match self.attempts.get(&attempt) {
            Some((_, Held::Preparing)) => true,
            Some((_, Held::Running { .. } | Held::Stopping { .. } | Held::Sending | Held::Ended { .. }))
            | None => false,
        };
        preparing && self.fence_at().is_some_and(|fence_at| now < fence_at)
    }

    fn fence_if_due(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(lease) = self.lease else {
            // Nothing was answered since the start: what runs was begun by an earlier life of this worker, and
            // its init knows how long it may.
            return;
        };
        if now < lease.fence_at {
            return;
        }
        for (attempt, (_, held)) in &mut self.attempts {
            if is_live(held) && self.fenced.insert(*attempt) {
                actions.push(Action::Fence { attempt: *attempt });
                match held {
                    Held::Preparing | Held::Running { .. } => {
                        *held = Held::Stopping { cause: StopCause::Revoked };
                    }
                    Held::Stopping { .. } | Held::Sending | Held::Ended { .. } => {}
                }
            }
        }
    }

    fn answered(
        &mut self,
        sent: Timestamp,
        response: SyncResponse,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let granted = Lease::of(sent, response.lease_ms);
        let renewed = self.lease.is_none_or(|lease| lease < granted);
        if renewed {
            self.lease = Some(granted);
        }
        let mut news = false;
        for order in response.stop {
            news |= self.stop(order, actions);
        }
        for attempt in response.forget {
            self.on_record(attempt, actions);
        }
        let mut orders = response.run;
        // In the order in which they were given, or an order could fall below a fence that is forgotten.
        orders.sort_by_key(|order| order.fence);
        // The order's own lease, not a later one: the coordinator may have given up waiting since.
        let mut begun = false;
        if now < granted.fence_at {
            for order in orders {
                begun |= self.begin(order, actions);
            }
        }
        news |= begun;
        // An answer may bring an order and no longer lease, when two calls were sent at one time: what is begun
        // has to hear of the lease all the same.
        if renewed || begun {
            self.keep_alive(actions);
        }
        if news {
            actions.push(Action::SyncNow);
        }
    }

    /// Says whether the coordinator should hear of it at once.
    fn stop(&mut self, order: StopOrder, actions: &mut Vec<Action>) -> bool {
        let StopOrder { attempt, fence, cause, grace_ms } = order;
        match self.attempts.get_mut(&attempt) {
            Some((held_fence, held)) if *held_fence == fence => match held {
                Held::Preparing | Held::Running { .. } => {
                    *held = Held::Stopping { cause: cause.clone() };
                    actions.push(Action::Stop { attempt, cause, grace_ms });
                    true
                }
                // There is nothing left to stop but the sending of what nobody will take.
                Held::Sending if cause == StopCause::Revoked => {
                    *held = Held::Stopping { cause: cause.clone() };
                    actions.push(Action::Stop { attempt, cause, grace_ms });
                    true
                }
                Held::Sending | Held::Stopping { .. } | Held::Ended { .. } => false,
            },
            // Held under another fence: the coordinator has that from the report, and speaks of it by itself.
            Some(_) => false,
            None => {
                // The order may still be on its way. It must find the attempt over.
                let report = Box::new(never_began(&cause));
                self.attempts
                    .insert(attempt, (fence, Held::Ended { report, removed: true, on_record: false }));
                true
            }
        }
    }

    /// Says whether the coordinator should hear of it at once.
    fn begin(&mut self, order: AttemptOrder, actions: &mut Vec<Action>) -> bool {
        let attempt = order.attempt;
        match self.attempts.get_mut(&attempt) {
            Some((fence, held)) => {
                let older = *fence < order.fence;
                match held {
                    // An older life of the same attempt, as after the coordinator's store was restored from a
                    // backup: it has to go first, and the order comes again.
                    Held::Preparing | Held::Running { .. } | Held::Sending if older => {
                        let cause = StopCause::Revoked;
                        *held = Held::Stopping { cause: cause.clone() };
                        actions.push(Action::Stop { attempt, cause, grace_ms: Millis(0) });
                        true
                    }
                    Held::Preparing
                    | Held::Running { .. }
                    | Held::Stopping { .. }
                    | Held::Sending
                    | Held::Ended { .. } => false,
                }
            }
            None if self.forgotten.is_some_and(|forgotten| order.fence <= forgotten) => false,
            None => {
                self.attempts.insert(attempt, (order.fence, Held::Preparing));
                actions.push(Action::Begin { order });
                true
            }
        }
    }

    /// The end of an attempt is on record.
    fn on_record(&mut self, attempt: AttemptId, actions: &mut Vec<Action>) {
        if let Some((_, Held::Ended { removed, on_record, .. })) = self.attempts.get_mut(&attempt) {
            *on_record = true;
            if *removed {
                self.drop_attempt(attempt, actions);
            }
        }
    }

    fn drop_attempt(&mut self, attempt: AttemptId, actions: &mut Vec<Action>) {
        if let Some((fence, _)) = self.attempts.remove(&attempt) {
            self.forgotten = self.forgotten.max(Some(fence));
            self.fenced.remove(&attempt);
            actions.push(Action::Forget { attempt });
        }
    }

    fn keep_alive(&self, actions: &mut Vec<Action>) {
        let Some(Lease { fence_at: until, .. }) = self.lease else {
            return;
        };
        for (attempt, (_, held)) in &self.attempts {
            let wanted = match held {
                Held::Preparing | Held::Running { .. } => true,
                Held::Stopping { cause: StopCause::Cancelled { .. } | StopCause::TimedOut { .. } } => true,
                // Its place may be taken already.
                Held::Stopping { cause: StopCause::Revoked } => false,
                Held::Sending | Held::Ended { .. } => false,
            };
            if wanted && !self.fenced.contains(attempt) {
                actions.push(Action::KeepAlive { attempt: *attempt, until });
            }
        }
    }

    fn started(&mut self, attempt: AttemptId, now: Timestamp, actions: &mut Vec<Action>) {
        if let Some((_, held @ Held::Preparing)) = self.attempts.get_mut(&attempt) {
            *held = Held::Running { since: now };
            actions.push(Action::SyncNow);
        }
    }

    fn judged(&mut self, attempt: AttemptId, actions: &mut Vec<Action>) {
        let fenced = self.fenced.contains(&attempt);
        let Some((_, held)) = self.attempts.get_mut(&attempt) else {
            return;
        };
        match held {
            Held::Preparing | Held::Running { .. } => {}
            Held::Stopping { cause: StopCause::Cancelled { .. } | StopCause::TimedOut { .. } } if !fenced => {
            }
            // Its place may be taken: what it has to send is refused.
            Held::Stopping { .. } => return,
            Held::Sending | Held::Ended { .. } => return,
        }
        *held = Held::Sending;
        actions.push(Action::SyncNow);
    }

    fn ended(&mut self, attempt: AttemptId, report: EndReport, actions: &mut Vec<Action>) {
        let fenced = self.fenced.contains(&attempt);
        let Some((_, held)) = self.attempts.get_mut(&attempt) else {
            return;
        };
        match held {
            Held::Preparing | Held::Running { .. } | Held::Stopping { .. } | Held::Sending => {
                let report = Box::new(if fenced { after_fence(report) } else { report });
                *held = Held::Ended { report, removed: false, on_record: false };
                actions.push(Action::SyncNow);
            }
            Held::Ended { .. } => {}
        }
    }

    fn removed(&mut self, attempt: AttemptId, actions: &mut Vec<Action>) {
        let Some((_, held)) = self.attempts.get_mut(&attempt) else {
            return;
        };
        match held {
            Held::Ended { removed, on_record, .. } if !*removed => {
                *removed = true;
                if *on_record {
                    self.drop_attempt(attempt, actions);
                }
                // The coordinator counts its share of this worker until it hears that it is gone.
                actions.push(Action::SyncNow);
            }
            Held::Ended { .. }
            | Held::Preparing
            | Held::Running { .. }
            | Held::Stopping { .. }
            | Held::Sending => {}
        }
    }
}

/// Whether something of it may run.
fn is_live(held: &Held) -> bool {
    match held {
        Held::Preparing | Held::Running { .. } | Held::Stopping { .. } => true,
        Held::Sending | Held::Ended { .. } => false,
    }
}

/// The end of an attempt that was told to stop and is not held: it was never begun, or the journal is lost. Only a
/// cancel is a reason in itself; what else the coordinator supposes of it, this worker cannot confirm.
fn never_began(cause: &StopCause) -> EndReport {
    let outcome = match cause {
        StopCause::Cancelled { by } => Outcome::Cancelled { by: by.clone() },
        StopCause::TimedOut { .. } | StopCause::Revoked => Outcome::Infra {
            cause: InfraCause::Worker,
            detail: "the worker was told to stop the attempt and does not hold it".to_owned(),
        },
    };
    EndReport { outcome, steps: Vec::new(), usage: Usage::default(), notes: Vec::new(), image_digest: None }
}

/// A fenced attempt was killed by the farm. Whatever that made its steps look like is not the job's failure; what
/// had passed before it, has passed.
fn after_fence(report: EndReport) -> EndReport {
    let outcome = match report.outcome {
        Outcome::Passed => Outcome::Passed,
        Outcome::Failed { .. }
        | Outcome::TimedOut { .. }
        | Outcome::OutOfMemory { .. }
        | Outcome::DiskQuota { .. }
        | Outcome::LogCap { .. }
        | Outcome::Cancelled { .. }
        | Outcome::Skipped { .. }
        | Outcome::Refused { .. }
        | Outcome::Infra { .. } => Outcome::Infra {
            cause: InfraCause::SelfFenced,
            detail: "the worker had no word from the coordinator until its lease ran out".to_owned(),
        },
    };
    EndReport { outcome, ..report }
}
