//! `serve worker`: holds a conversation with the coordinator and carries out what comes of it.
//!
//! One task owns the [`Session`] and is woken by a closed list of things: answers of the coordinator, news of
//! attempts, a change of what the host offers, the lease's end, and the order to end. Each attempt is a task of its
//! own that is told by a [`watch`] and reports through a bounded channel.
//!
//! A worker that ends leaves its attempts running, or stops them ([`OnExit`]); one that is killed leaves them too.
//! Either way the next start finds them in the journal.

mod attempt;
mod calls;
mod offer;
#[cfg(test)]
mod over_http;
mod start;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use buildyard_session::{Action, CallTerms, Event, Session};
use buildyard_types::worker::{AttemptOrder, Offer, PROTOCOL, SessionId, SyncRequest};
use buildyard_types::{AttemptId, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::client::{Client, ClientError};
use crate::clock::Clock;
use crate::config::{OnExit, WorkerConfig};
use crate::data::DataError;
use crate::executor::Orders;
use crate::journal::JournalError;
use attempt::{Shared, Stage};
use calls::{Answer, Calls};

/// News that may wait for the loop. More of them make the attempts wait.
const NEWS: usize = 256;
/// Time for attempts to come to a halt when the worker leaves them.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);
/// Time for containers and workspaces to go when the worker stops them.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// Why a worker ended, or never began.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It was not started by root.
    #[error(
        "a worker needs root: it mounts workspaces and becomes the users of jobs; start it with sudo or by systemd"
    )]
    NotRoot,
    /// The users of jobs cannot reach their workspaces.
    #[error(
        "the users of jobs cannot pass through {folder}, where this worker keeps their workspaces; allow it with \
         `chmod o+x {folder}` or choose another --data-dir", folder = .0.display()
    )]
    Closed(std::path::PathBuf),
    /// Its data directory cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Its journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It has not joined the farm and nothing was given to join with.
    #[error(
        "this worker has not joined the farm; hand it the one-time token of `buildyard workers invite` with --token-file"
    )]
    NotEnrolled,
    /// The token was not taken.
    #[error("the worker could not join the farm")]
    Enrol(#[source] ClientError),
    /// There is no container engine.
    #[error(
        "no container engine answers; is it running? (systemctl start docker, or apt-get install docker.io)"
    )]
    NoEngine(#[source] crate::engine::EngineError),
    /// A part of the worker could not be set up.
    #[error("could not {doing}")]
    Setup {
        /// What was attempted.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The coordinator does not know this worker any more.
    #[error(
        "the coordinator no longer takes this worker's credential; remove its identity.json and invite it again"
    )]
    Credential(#[source] ClientError),
    /// Another process with the same credential took over.
    #[error("another worker with the same identity took over; each worker needs a data directory of its own")]
    TakenOver(#[source] ClientError),
    /// The coordinator and this worker do not understand each other.
    #[error("the coordinator does not accept this worker's calls")]
    Refused(#[source] ClientError),
}

/// News of an attempt.
#[derive(Debug)]
enum News {
    /// Something that the session has to know.
    Event(Event),
    /// The attempt asks whether its steps may begin.
    MayStart(AttemptId, oneshot::Sender<bool>),
}

/// An attempt as the loop sees it.
struct Held {
    orders: watch::Sender<Orders>,
    task: JoinHandle<()>,
}

struct Daemon {
    session: Session,
    id: SessionId,
    sequence: u64,
    clock: Clock,
    client: Client,
    shared: Arc<Shared>,
    held: BTreeMap<AttemptId, Held>,
    calls: Calls,
    offer: watch::Receiver<Offer>,
    news: mpsc::Receiver<News>,
}

/// Runs a worker until `shutdown` completes or the coordinator turns it away.
pub async fn serve(
    config: WorkerConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), WorkerError> {
    let mut shutdown = std::pin::pin!(shutdown);
    let started = tokio::select! {
        started = start::start(&config) => started?,
        () = &mut shutdown => return Ok(()),
    };
    carry_on(config.on_exit, started, shutdown).await
}

/// Everything behind the start.
async fn carry_on(
    on_exit: OnExit,
    started: start::Started,
    shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), WorkerError> {
    let start::Started { data, id, client, executor, journal, mirrors, offer, .. } = started;
    let entries: Vec<_> = journal.entries().cloned().collect();
    let (sender, news) = mpsc::channel(NEWS);
    let clock = executor.clock;
    let instance = executor.instance.clone();
    let engine = executor.engine.clone();
    let holders = executor.holders.clone();
    let shared = Arc::new(Shared::new(executor, client.clone(), mirrors, journal, sender));
    let mut daemon = Daemon {
        session: Session::adopt(entries.iter().cloned()),
        id,
        sequence: 0,
        clock,
        client,
        shared,
        held: BTreeMap::new(),
        calls: Calls::default(),
        offer,
        news,
    };
    for entry in entries {
        let stage = match entry.ended {
            Some(_) => Stage::Reported,
            None => Stage::Adopted,
        };
        daemon.begin(entry.order, stage);
    }
    tracing::info!(session = id.number, attempts = daemon.held.len(), "the worker is ready");
    let ended = daemon.run(shutdown).await;
    let exit = match &ended {
        Ok(()) => on_exit,
        // Nobody asked for an end. What runs may be taken up by the next start, as with a newer version, and what
        // is not, stops itself at the end of its lease.
        Err(_) => OnExit::Leave,
    };
    daemon.leave(exit).await;
    holders.close().await;
    if exit == OnExit::Stop
        && let Err(error) = crate::network::EgressNetwork::remove(&*engine, &instance).await
    {
        tracing::warn!(error = %error, "the egress network stays");
    }
    // Only now another worker may take the directory.
    drop(data);
    ended
}

impl Daemon {
    async fn run(&mut self, mut shutdown: Pin<&mut impl Future<Output = ()>>) -> Result<(), WorkerError> {
        loop {
            if self.calls.wants_one() {
                self.call();
            }
            let wakeup = self.session.next_wakeup().map(|at| self.instant(at));
            let retry = self.calls.retry_at();
            tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                Some(news) = self.news.recv() => match news {
                    News::Event(event) => self.take(event),
                    News::MayStart(attempt, reply) => {
                        // Who asked may be gone.
                        let _ = reply.send(self.session.may_start(attempt, self.clock.now()));
                    }
                },
                answer = self.calls.next() => answer.map_or(Ok(()), |answer| self.answered(answer))?,
                Ok(()) = self.offer.changed() => self.calls.call_soon(),
                () = until(wakeup) => self.take(Event::Tick),
                () = until(retry) => self.calls.retry(),
            }
        }
    }

    fn instant(&self, at: Timestamp) -> Instant {
        Instant::now() + Duration::from(at.since(self.clock.now()))
    }

    /// Says what the worker holds, in a call of its own.
    fn call(&mut self) {
        self.sequence += 1;
        let now = self.clock.now();
        let CallTerms { hold_ms, limit_ms } = self.session.call_terms(now);
        let request = SyncRequest {
            protocol: PROTOCOL,
            session: self.id,
            sequence: self.sequence,
            hold_ms,
            offer: self.offer.borrow_and_update().clone(),
            attempts: self.session.report(now),
        };
        self.calls.send(self.client.clone(), request, limit_ms.into(), now);
    }

    fn answered(&mut self, answer: Answer) -> Result<(), WorkerError> {
        let Answer { sent, result } = answer;
        match result {
            Ok(response) => {
                self.take(Event::Answered { sent, response });
                Ok(())
            }
            Err(error) => {
                self.calls.failed(&worth_another(error)?);
                Ok(())
            }
        }
    }

    fn take(&mut self, event: Event) {
        for action in self.session.on(event, self.clock.now()) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Begin { order } => {
                tracing::info!(attempt_id = %order.attempt, job = %order.spec.name, "beginning an attempt");
                self.begin(order, Stage::Ordered);
            }
            Action::Stop { attempt, cause, grace_ms } => {
                tracing::info!(attempt_id = %attempt, ?cause, "stopping an attempt");
                self.tell(attempt, |orders| orders.stop = Some((cause, grace_ms)));
            }
            Action::KeepAlive { attempt, until } => self.tell(attempt, |orders| orders.until = Some(until)),
            Action::Fence { attempt } => {
                tracing::warn!(attempt_id = %attempt, "the lease runs out; killing an attempt");
                self.tell(attempt, |orders| orders.fenced = true);
            }
            Action::Forget { attempt } => self.tell(attempt, |orders| orders.forget = true),
            Action::SyncNow => self.calls.call_soon(),
        }
    }

    fn tell(&mut self, attempt: AttemptId, change: impl FnOnce(&mut Orders)) {
        // One that was told to stop before it was begun has no task.
        if let Some(held) = self.held.get(&attempt) {
            held.orders.send_modify(change);
        }
    }

    fn begin(&mut self, order: AttemptOrder, stage: Stage) {
        let attempt = order.attempt;
        let (orders, told) = watch::channel(Orders::default());
        // An attempt that was forgotten and comes again, as after a restored backup: one after the other.
        let before = self.held.remove(&attempt).map(|held| held.task);
        let task = tokio::spawn(attempt::follow(self.shared.clone(), order, stage, told, before));
        self.held.insert(attempt, Held { orders, task });
        self.held.retain(|id, held| *id == attempt || !held.task.is_finished());
    }

    /// Brings the attempts to a halt.
    async fn leave(mut self, exit: OnExit) {
        // What attempts still say is of no use, but they must not wait for somebody to hear it.
        self.news.close();
        for held in self.held.values() {
            held.orders.send_modify(|orders| orders.exit = Some(exit));
        }
        let limit = match exit {
            OnExit::Leave => LEAVE_LIMIT,
            OnExit::Stop => STOP_LIMIT,
        };
        let deadline = Instant::now() + limit;
        for (attempt, held) in self.held {
            if tokio::time::timeout_at(deadline, held.task).await.is_err() {
                tracing::warn!(attempt_id = %attempt, "left as it is; the next start goes on with it");
            }
        }
    }
}

/// The error of a call, if another call may fare better: a proxy in between, a report that is too large until some
/// of it is on record, an answer that was cut. Else why the worker is turned away.
fn worth_another(error: ClientError) -> Result<ClientError, WorkerError> {
    match &error {
        ClientError::Unauthorized { .. } => Err(WorkerError::Credential(error)),
        ClientError::Conflict { code, .. } if code == "session-taken-over" => {
            Err(WorkerError::TakenOver(error))
        }
        ClientError::Refused { code, .. } if code == "protocol-unsupported" => {
            Err(WorkerError::Refused(error))
        }
        ClientError::Unreachable { .. }
        | ClientError::Unavailable { .. }
        | ClientError::Conflict { .. }
        | ClientError::Refused { .. }
        | ClientError::Answer { .. }
        | ClientError::File { .. } => Ok(error),
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str) -> ClientError {
        ClientError::Refused { doing: "sync", status, code: code.into(), detail: String::new() }
    }

    fn conflict(code: &str) -> ClientError {
        ClientError::Conflict { doing: "sync", code: code.into(), detail: String::new() }
    }

    /// A proxy's 404, a report that was too large for once, and half an answer ended the worker, and with it
    /// everything that it ran.
    #[test]
    fn a_worker_ends_only_when_it_is_turned_away_by_name() {
        let unreadable = ClientError::Answer { doing: "sync", reason: "it ends too soon".into() };
        let later = [refused(404, ""), refused(413, "body-too-large"), conflict("conflict"), unreadable];
        for error in later {
            let said = error.to_string();
            assert!(worth_another(error).is_ok(), "{said}");
        }
        let unauthorized = ClientError::Unauthorized { doing: "sync", detail: String::new() };
        assert!(matches!(worth_another(unauthorized), Err(WorkerError::Credential(_))));
        let taken_over = worth_another(conflict("session-taken-over"));
        assert!(matches!(taken_over, Err(WorkerError::TakenOver(_))));
        let unspoken = worth_another(refused(400, "protocol-unsupported"));
        assert!(matches!(unspoken, Err(WorkerError::Refused(_))));
    }
}
