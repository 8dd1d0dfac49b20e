//! One attempt as a task: journal, executor, upload, removal, in this order and each safe to repeat.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use buildyard_session::Event;
use buildyard_types::log::Record;
use buildyard_types::outcome::InfraCause;
use buildyard_types::worker::{AttemptOrder, EndReport, StopCause, Usage};
use buildyard_types::{AttemptId, Outcome};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::News;
use crate::backoff::Backoff;
use crate::client::{AttemptClient, Client};
use crate::config::OnExit;
use crate::engine::Owner;
use crate::executor::outcome::{in_one_sentence, worker_disk};
use crate::executor::{Assignment, Executor, Finished, LogSink, Orders, Source, Supervisor};
use crate::journal::{Journal, JournalError};
use crate::source::{self, Checkout, Mirror, Mirrors, Origin, Remote, SourceError};
use crate::spool::Spool;
use crate::upload::{SpoolEnd, UploadError, upload};

/// How long the commit is asked for again: longer than a coordinator takes to come back, and a supervisor to start it.
const FETCH_PATIENCE: Duration = Duration::from_secs(30);

/// What all attempts of a worker use.
pub(super) struct Shared {
    executor: Executor,
    client: Client,
    mirrors: Mirrors,
    journal: Mutex<Journal>,
    news: mpsc::Sender<News>,
}

/// How far an attempt had come when its task begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It was just ordered.
    Ordered,
    /// An earlier process of this worker had begun it.
    Adopted,
    /// Its log and artifacts are with the coordinator already.
    Reported,
}

/// What became of the work on an attempt.
enum Worked {
    Ended(Box<EndReport>),
    /// The worker ends.
    Left(OnExit),
}

impl Shared {
    pub(super) fn new(
        executor: Executor,
        client: Client,
        mirrors: Mirrors,
        journal: Journal,
        news: mpsc::Sender<News>,
    ) -> Self {
        Self { executor, client, mirrors, journal: Mutex::new(journal), news }
    }

    /// Writes to the journal on a thread that may block.
    async fn journal(
        self: &Arc<Self>,
        write: impl FnOnce(&mut Journal) -> Result<(), JournalError> + Send + 'static,
    ) -> Result<(), JournalError> {
        let shared = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            // A poisoned journal is as its last whole write left it.
            write(&mut shared.journal.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match written.await {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    async fn tell(&self, event: Event) {
        // Nobody hears it when the worker ends; the journal knows.
        let _ = self.news.send(News::Event(event)).await;
    }
}

/// Follows an attempt until it is forgotten, or the worker ends.
pub(super) async fn follow(
    shared: Arc<Shared>,
    order: AttemptOrder,
    stage: Stage,
    mut orders: watch::Receiver<Orders>,
    before: Option<JoinHandle<()>>,
) {
    if let Some(before) = before {
        // Whether it panicked was reported then.
        let _ = before.await;
    }
    let attempt = order.attempt;
    let worked = match stage {
        Stage::Reported => None,
        Stage::Ordered => {
            let entry = order.clone();
            match shared.journal(move |journal| journal.begin(&entry)).await {
                Ok(()) => Some(guarded(attempt, shared.clone().work(order, orders.clone())).await),
                Err(error) => {
                    tracing::error!(attempt_id = %attempt, error = %in_one_sentence(&error), "not begun");
                    let outcome = worker_disk(&in_one_sentence(&error));
                    Some(Worked::Ended(Box::new(report(outcome))))
                }
            }
        }
        Stage::Adopted => Some(guarded(attempt, shared.clone().work(order, orders.clone())).await),
    };
    match worked {
        Some(Worked::Left(exit)) => return shared.leave(attempt, exit).await,
        Some(Worked::Ended(mut report)) => {
            // It speaks of the job's files, and goes into every call until the coordinator has it on record.
            report.cut_down();
            tracing::info!(attempt_id = %attempt, outcome = %report.outcome, "an attempt ended");
            let on_record = (*report).clone();
            shared.tell(Event::Ended { attempt, report: *report }).await;
            // Behind the news: a crash in between sends log and artifacts again, which changes nothing.
            if let Err(error) = shared.journal(move |journal| journal.end(attempt, &on_record)).await {
                tracing::warn!(attempt_id = %attempt, error = %in_one_sentence(&error), "the end is not in the journal");
            }
        }
        None => {}
    }
    tokio::select! {
        () = shared.executor.remove(attempt) => {}
        exit = exit_of(&mut orders) => return shared.leave(attempt, exit).await,
    }
    shared.tell(Event::Removed { attempt }).await;
    let forgotten = orders.wait_for(|orders| orders.forget || orders.exit.is_some()).await;
    if forgotten.is_ok_and(|orders| orders.forget) {
        shared.forget(attempt).await;
    }
}

/// Works on an attempt in a task of its own, so that a mistake of ours is an end like any other: nothing of the
/// attempt would be removed otherwise, and its lease would be renewed for ever.
async fn guarded(attempt: AttemptId, work: impl Future<Output = Worked> + Send + 'static) -> Worked {
    let worked = AbortOnDropHandle::new(tokio::spawn(work)).await;
    match worked.map_err(JoinError::try_into_panic) {
        Ok(worked) => worked,
        Err(Ok(_)) => {
            tracing::error!(attempt_id = %attempt, "the worker's own program failed at an attempt");
            let detail = "the worker's own program failed at the attempt; its log says where".to_owned();
            Worked::Ended(Box::new(report(Outcome::Infra { cause: InfraCause::Worker, detail })))
        }
        // The whole program ends.
        Err(Err(_)) => std::future::pending().await,
    }
}

async fn exit_of(orders: &mut watch::Receiver<Orders>) -> OnExit {
    match orders.wait_for(|orders| orders.exit.is_some()).await {
        Ok(orders) => orders.exit.unwrap_or_default(),
        Err(_) => OnExit::Leave,
    }
}

fn report(outcome: Outcome) -> EndReport {
    EndReport { outcome, steps: Vec::new(), usage: Usage::default(), notes: Vec::new(), image_digest: None }
}

impl Shared {
    /// Carries an attempt out as far as it has to be, and sends its log meanwhile.
    async fn work(self: Arc<Self>, order: AttemptOrder, orders: watch::Receiver<Orders>) -> Worked {
        let files = self.executor.files(order.attempt);
        let opened = std::fs::create_dir_all(files.folder()).and_then(|()| Spool::open(files.folder()));
        let opened = opened.and_then(|spool| Ok((spool.reader()?, spool)));
        let (reader, spool) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let outcome = worker_disk(&format!("the log's spool cannot be used: {error}"));
                return Worked::Ended(Box::new(report(outcome)));
            }
        };
        let resumed = spool.length() > 0;
        let (end, good) = watch::channel(SpoolEnd { length: spool.length(), closed: false });
        let client = self.client.attempt(order.attempt, order.fence);
        let store = client.clone();
        // A task of its own: hashing and sending go on beside taking frames.
        let sending = tokio::spawn(async move { upload(&store, &reader, good, resumed).await });
        let sending = AbortOnDropHandle::new(sending);
        let mut log = SpoolLog { spool, end };
        match self.carry_out(&order, orders.clone(), &mut log, &client).await {
            Finished::Left(exit) => Worked::Left(exit),
            Finished::Report(report) => {
                self.tell(Event::Judged { attempt: order.attempt }).await;
                log.end.send_modify(|end| end.closed = true);
                self.send_rest(order.attempt, *report, sending, orders).await
            }
        }
    }

    /// Goes on from wherever an earlier process of this worker had come to.
    async fn carry_out(
        self: &Arc<Self>,
        order: &AttemptOrder,
        orders: watch::Receiver<Orders>,
        log: &mut SpoolLog,
        client: &AttemptClient,
    ) -> Finished {
        let files = self.executor.files(order.attempt);
        let place = Place { shared: self, order, mirror: AsyncMutex::new(None) };
        let mut assignment =
            Assignment { order, source: &place, log, artifacts: client, supervisor: &place, orders };
        let known = files.ended().and_then(|ended| Ok((ended, files.handed()?)));
        match known {
            Ok((Some(report), _)) => {
                Finished::Report(Box::new(self.executor.finish(&mut assignment, report).await))
            }
            Ok((None, Some(handed))) => self.executor.resume(assignment, handed).await,
            Ok((None, None)) => self.executor.run(assignment).await,
            Err(error) => {
                let outcome = worker_disk(&format!("the attempt's files cannot be read: {error}"));
                Finished::Report(Box::new(report(outcome)))
            }
        }
    }

    /// Waits until the coordinator has the whole log, or will not have it.
    async fn send_rest(
        &self,
        attempt: AttemptId,
        mut report: EndReport,
        sending: AbortOnDropHandle<Result<buildyard_types::worker::LogFinish, UploadError>>,
        mut orders: watch::Receiver<Orders>,
    ) -> Worked {
        let over = orders.wait_for(|orders| {
            let revoked = matches!(&orders.stop, Some((StopCause::Revoked, _)));
            revoked || orders.exit.is_some()
        });
        let sent = tokio::select! {
            sent = sending => Some(sent),
            _ = over => None,
        };
        match sent {
            Some(Ok(Ok(_))) => {}
            Some(Ok(Err(error))) => {
                let sentence = format!("the log is incomplete: {}", in_one_sentence(&error));
                tracing::warn!(attempt_id = %attempt, "{sentence}");
                report.notes.insert(0, sentence);
            }
            Some(Err(error)) => report.notes.insert(0, format!("the log is incomplete: {error}")),
            None => {
                if let Some(exit) = orders.borrow().exit {
                    return Worked::Left(exit);
                }
            }
        }
        Worked::Ended(Box::new(report))
    }

    /// The worker ends: what is stopped with it says so at the next start.
    async fn leave(self: &Arc<Self>, attempt: AttemptId, exit: OnExit) {
        match exit {
            OnExit::Leave => {}
            OnExit::Stop => {
                let files = self.executor.files(attempt);
                if let Ok(None) = files.ended() {
                    let cause = InfraCause::Worker;
                    let detail = "the worker was shut down while the job ran".to_owned();
                    if let Err(error) = files.end(&report(Outcome::Infra { cause, detail })) {
                        tracing::warn!(attempt_id = %attempt, error = %error, "the end is not noted");
                    }
                }
                self.executor.remove(attempt).await;
            }
        }
    }

    async fn forget(self: &Arc<Self>, attempt: AttemptId) {
        let files = self.executor.files(attempt);
        // The files first: without its entry in the journal nobody would know whose they are.
        let removed = tokio::task::spawn_blocking(move || files.remove()).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(attempt_id = %attempt, error = %error, "the files of an attempt stay");
        }
        if let Err(error) = self.journal(move |journal| journal.forget(attempt)).await {
            tracing::warn!(attempt_id = %attempt, error = %in_one_sentence(&error), "not forgotten in the journal");
        }
    }
}

/// The spool as the executor's log.
struct SpoolLog {
    spool: Spool,
    end: watch::Sender<SpoolEnd>,
}

impl LogSink for SpoolLog {
    fn append(&mut self, record: &Record<'_>) -> std::io::Result<()> {
        self.spool.append(record)
    }

    fn commit(&mut self, next: u64) -> std::io::Result<()> {
        let length = self.spool.commit(next)?;
        self.end.send_if_modified(|end| {
            let changed = end.length != length;
            end.length = length;
            changed
        });
        Ok(())
    }

    fn next(&self) -> u64 {
        self.spool.sequence()
    }

    fn length(&self) -> u64 {
        self.spool.pending_length()
    }
}

/// Where an attempt stands in the farm: its commit comes from the coordinator, its questions go to the session.
struct Place<'p> {
    shared: &'p Arc<Shared>,
    order: &'p AttemptOrder,
    mirror: AsyncMutex<Option<Mirror>>,
}

impl Place<'_> {
    async fn obtain(&self) -> Result<Mirror, SourceError> {
        let run = self.order.attempt.run();
        let (url, authorization) = (self.shared.client.source_url(run), self.shared.client.authorization());
        let run = run.to_string();
        let repository = &self.order.source.repository;
        let remote = Remote { repository, url: &url, authorization: &authorization, run: &run };
        self.shared.mirrors.obtain(remote, &self.order.source.commit, self.order.spec.checkout.tags).await
    }

    async fn check_out(&self, mirror: &Mirror, workspace: &Path, owner: Owner) -> Result<(), SourceError> {
        let checkout = Checkout { source: &self.order.source, spec: &self.order.spec.checkout, owner };
        source::check_out(Origin::mirror(mirror.git_dir()), workspace, checkout).await
    }
}

#[async_trait]
impl Source for Place<'_> {
    async fn fetch(&self) -> Result<(), SourceError> {
        let give_up = Instant::now() + FETCH_PATIENCE;
        let mut backoff = Backoff::default();
        loop {
            match self.obtain().await {
                Ok(mirror) => {
                    *self.mirror.lock().await = Some(mirror);
                    return Ok(());
                }
                // A coordinator that is being restarted costs an attempt some seconds and nothing else.
                Err(error @ SourceError::Git { .. }) if Instant::now() < give_up => {
                    tracing::warn!(attempt_id = %self.order.attempt, error = %error, "fetching the commit again");
                    sleep(backoff.next()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn fill(&self, workspace: &Path, owner: Owner) -> Result<(), SourceError> {
        let Some(mirror) = self.mirror.lock().await.take() else {
            return Err(SourceError::Git {
                doing: "check out the commit",
                message: "it was not fetched".into(),
            });
        };
        match self.check_out(&mirror, workspace, owner).await {
            Ok(()) => Ok(()),
            // The mirror's side failed: it is damaged, and the next try fetches it anew.
            Err(error @ SourceError::Git { doing: source::PACK, .. }) => {
                tracing::warn!(error = %error, "a mirror is dropped");
                self.shared.mirrors.drop_mirror(mirror).await?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Supervisor for Place<'_> {
    async fn may_start(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        let asked = self.shared.news.send(News::MayStart(self.order.attempt, reply)).await;
        asked.is_ok() && answer.await.unwrap_or(false)
    }

    async fn started(&self) {
        self.shared.tell(Event::Started { attempt: self.order.attempt }).await;
    }

    async fn judged(&self) {
        self.shared.tell(Event::Judged { attempt: self.order.attempt }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was held for ever: its slot was lost, and its lease renewed with every call.
    #[tokio::test]
    async fn an_attempt_at_which_the_worker_panics_ends_as_the_workers_fault() {
        let attempt = buildyard_types::RunId(1).job(0).attempt(1);
        let worked = guarded(attempt, async { panic!("on purpose") }).await;
        let Worked::Ended(report) = worked else { panic!("it has not ended") };
        assert!(matches!(report.outcome, Outcome::Infra { cause: InfraCause::Worker, .. }));
    }
}
