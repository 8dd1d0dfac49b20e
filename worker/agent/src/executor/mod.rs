//! Carries out one attempt: from an order to a report, and from there to nothing left.
//!
//! The same code serves the farm and `buildyard run`; what differs is handed in: where the commit comes from
//! ([`Source`]), where the log goes ([`LogSink`]), where artifacts go, and who gives orders ([`Supervisor`], [`Orders`]).
//!
//! | part | does |
//! |---|---|
//! | `prepare` | image, workspace, checkout, container, as much at once as possible |
//! | `conversation` | init's frames into the log, orders to init, the end |
//! | `outcome` | what that end means; pure |
//! | `hint` | what a failed step's last words say about mending it; pure |
//! | `files` | what a restarted worker needs to go on |
//! | `remove` | container, workspace and files away, confirmed |

mod conversation;
pub mod files;
pub mod hint;
pub mod outcome;
mod prepare;
mod remove;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use buildyard_init::protocol::Job;
use buildyard_types::log::{Record, RecordKind};
use buildyard_types::worker::{AttemptOrder, EndReport, StopCause, Usage};
use buildyard_types::{AttemptId, ByteSize, Millis, Outcome, Timestamp};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::artifacts::{self, ArtifactLimits};
use crate::cgroup::MemoryCounters;
use crate::channel::Listener;
use crate::client::ArtifactStore;
use crate::clock::Clock;
use crate::config::OnExit;
use crate::engine::{ContainerDetails, Engine, Instance, Owner};
use crate::image::Images;
use crate::network::{Egress, Holders};
use crate::profile::Policy;
use crate::source::SourceError;
use crate::workspace::{Workspace, Workspaces};
use conversation::{Conversation, Ended, Judged, Left};
use files::{AttemptFiles, Handed, Story};
use outcome::{Ending, Judgement, PrepareError, Seen, in_one_sentence, not_prepared, worker_disk};
use prepare::Ready;
use remove::Found;

/// Time between TERM and KILL when a time limit passes.
pub const GRACE: Millis = Millis(10_000);
/// Name of the step under which missing artifacts fail a job.
pub const ARTIFACTS_STEP: &str = "artifacts";

/// Where a commit comes from.
#[async_trait]
pub trait Source: Send + Sync {
    /// Gets it near, while the workspace is being made.
    async fn fetch(&self) -> Result<(), SourceError>;
    /// Fills an empty folder of that owner with it.
    async fn fill(&self, workspace: &Path, owner: Owner) -> Result<(), SourceError>;
}

/// Where the log of an attempt goes. One task writes.
pub trait LogSink: Send + Sync {
    /// Adds a record. It counts from the next commit on.
    fn append(&mut self, record: &Record<'_>) -> io::Result<()>;
    /// Everything added so far is safe, and with it init's frames below `next`.
    fn commit(&mut self, next: u64) -> io::Result<()>;
    /// The first of init's frames that is not safe yet.
    fn next(&self) -> u64;
    /// Bytes of all records, the last ones included.
    fn length(&self) -> u64;
}

/// Who gives an attempt its orders, and hears of it.
#[async_trait]
pub trait Supervisor: Send + Sync {
    /// Whether its steps may begin now.
    async fn may_start(&self) -> bool;
    /// Its first step began.
    async fn started(&self);
    /// Its end is judged; only sending is left to do.
    async fn judged(&self) {}
}

/// What an attempt is told. Only the newest state counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Orders {
    /// Until when the worker may speak for it; nothing before the first answer of the coordinator.
    pub until: Option<Timestamp>,
    /// End it, for this cause, with this grace.
    pub stop: Option<(StopCause, Millis)>,
    /// The lease ran out: kill it.
    pub fenced: bool,
    /// The worker ends.
    pub exit: Option<OnExit>,
    /// Its end is on record and nothing of it is left: drop its log.
    pub forget: bool,
}

impl Orders {
    /// Whether it has to end, now or soon.
    fn ends_it(&self) -> bool {
        self.stop.is_some() || self.fenced || self.exit.is_some()
    }
}

/// What attempts are carried out with.
pub struct Executor {
    /// The container engine.
    pub engine: Arc<dyn Engine>,
    /// Whose the containers are.
    pub instance: Instance,
    /// What is known of images.
    pub images: Images,
    /// Where workspaces are made.
    pub workspaces: Workspaces,
    /// The way outwards, made when the first job wants it.
    pub egress: Arc<Egress>,
    /// Network namespaces that were made ahead.
    pub holders: Arc<Holders>,
    /// Architecture of the engine.
    pub host_arch: String,
    /// What jobs may do beyond the ordinary.
    pub policy: Policy,
    /// The program of process 1, on the host.
    pub init: PathBuf,
    /// How much an attempt may keep.
    pub artifacts: ArtifactLimits,
    /// The clock.
    pub clock: Clock,
    /// Finds the kernel's counters of a container by its first process: [`MemoryCounters::of`].
    pub counters: fn(u32) -> Option<MemoryCounters>,
    /// The folder of all attempts.
    pub attempts: PathBuf,
}

/// One attempt to carry out.
pub struct Assignment<'a> {
    /// What to do.
    pub order: &'a AttemptOrder,
    /// Where the commit comes from.
    pub source: &'a dyn Source,
    /// Where the log goes.
    pub log: &'a mut dyn LogSink,
    /// Where artifacts go.
    pub artifacts: &'a dyn ArtifactStore,
    /// Who hears of it.
    pub supervisor: &'a dyn Supervisor,
    /// What it is told.
    pub orders: watch::Receiver<Orders>,
}

/// How far an attempt came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// It ended. Its container and workspace are still there.
    Report(Box<EndReport>),
    /// The worker ends; the attempt goes on without it, or is left as it is.
    Left(OnExit),
}

/// A container that runs init, with everything around it.
struct Container {
    details: ContainerDetails,
    pid: u32,
    listener: Listener,
    counters: Option<MemoryCounters>,
    workspace: Option<Workspace>,
}

impl Executor {
    /// Begins an attempt and follows it to its end. What an earlier try left is removed first.
    pub async fn run(&self, mut assignment: Assignment<'_>) -> Finished {
        loop {
            if let Some(finished) = self.try_run(&mut assignment).await {
                return finished;
            }
        }
    }

    /// `None`: init does not have the job, so nothing was begun.
    async fn try_run(&self, assignment: &mut Assignment<'_>) -> Option<Finished> {
        let attempt = assignment.order.attempt;
        let files = self.files(attempt);
        let began = self.clock.now();
        let unbroken = TaskTracker::new();
        let mut told = assignment.orders.clone();
        let ready = tokio::select! {
            ready = self.prepare(assignment, &files, &unbroken) => ready,
            _ = told.wait_for(Orders::ends_it) => Err(PrepareError::Stopped),
        };
        // What was asked of the kernel or the engine may still come into being; only then it can be removed.
        unbroken.close();
        unbroken.wait().await;
        let mut handed = Handed::default();
        let ready = match ready {
            Ok(ready) => {
                handed.image_digest = ready.image_digest.clone();
                handed.prepare_ms = self.clock.now().since(began);
                handed.holder = self.holders.lent_to(attempt);
                self.wait_for_start(assignment, &files, &handed).await.map(|()| ready)
            }
            Err(error) => Err(error),
        };
        match ready {
            Ok(Ready { container, job, missed, .. }) => {
                let finished = self.follow(assignment, container, Some(job), handed).await;
                // What this one did without, the next need not. Only now: it must not cost this one its start.
                missed.into_iter().for_each(|wanted| self.holders.make(wanted));
                finished
            }
            Err(error) => Some(self.not_begun(assignment, &error, &handed)),
        }
    }

    /// An attempt whose job was never handed over.
    fn not_begun(&self, assignment: &mut Assignment<'_>, error: &PrepareError, handed: &Handed) -> Finished {
        let orders = assignment.orders.borrow().clone();
        if let Some(exit) = orders.exit {
            return Finished::Left(exit);
        }
        let outcome = match error {
            PrepareError::Stopped => ended_early(&orders),
            error => not_prepared(assignment.order, error),
        };
        self.without_story(assignment, outcome, handed)
    }

    /// The report of an attempt of whose steps nothing is known.
    fn without_story(&self, assignment: &mut Assignment<'_>, outcome: Outcome, handed: &Handed) -> Finished {
        let judgement = Judgement::from(outcome);
        let now = self.clock.now();
        note_outcome(assignment.log, now, 0, &judgement);
        Finished::Report(Box::new(report(assignment.order, &Story::default(), judgement, handed, now)))
    }

    /// Goes on with an attempt whose job an earlier process of this worker had handed over, or was about to.
    pub async fn resume(&self, mut assignment: Assignment<'_>, handed: Handed) -> Finished {
        let attempt = assignment.order.attempt;
        let workspace = match self.workspaces.adopt(attempt, assignment.order.spec.resources.disk).await {
            Ok(workspace) => workspace,
            Err(error) => {
                tracing::warn!(attempt_id = %attempt, error = %in_one_sentence(&error), "no workspace to adopt");
                None
            }
        };
        let mut told = assignment.orders.clone();
        let found = tokio::select! {
            found = self.find(attempt) => found,
            told = told.wait_for(|orders| orders.exit.is_some()) => {
                let exit = told.ok().and_then(|orders| orders.exit);
                return Finished::Left(exit.unwrap_or_default());
            }
        };
        let ending = match found {
            Found::Running(details, pid) => match Listener::bind(&self.files(attempt).control()) {
                Ok(listener) => {
                    let counters = (self.counters)(pid);
                    let container = Container { details, pid, listener, counters, workspace };
                    return match self.follow(&mut assignment, container, None, handed).await {
                        Some(finished) => finished,
                        None => self.run(assignment).await,
                    };
                }
                Err(error) => {
                    tracing::error!(attempt_id = %attempt, error = %error, "the channel cannot be opened again");
                    Ending::Vanished
                }
            },
            Found::Ended(ending) => ending,
        };
        let story = Story::open(&self.files(attempt)).unwrap_or_default();
        let oom_killed = ending.oom_killed();
        let ending = story.ending(ending);
        let end = Judged { ending, story, reason: None, fenced: false, oom_killed, disk_full: false };
        let report = self.settle(&mut assignment, end, &handed, None).await;
        Finished::Report(Box::new(report))
    }

    /// Does what is left to do for an attempt that an earlier process of this worker had judged.
    pub async fn finish(&self, assignment: &mut Assignment<'_>, report: EndReport) -> EndReport {
        let disk = assignment.order.spec.resources.disk;
        let workspace = self.workspaces.adopt(assignment.order.attempt, disk).await;
        let workspace = workspace.unwrap_or_else(|error| {
            tracing::warn!(error = %in_one_sentence(&error), "no workspace to adopt");
            None
        });
        self.keep_artifacts(assignment, report, workspace.as_ref()).await
    }

    /// Follows a container to the end of its job. `None`: there is no job to give, and init still waits for one.
    async fn follow(
        &self,
        assignment: &mut Assignment<'_>,
        container: Container,
        job: Option<Box<Job>>,
        handed: Handed,
    ) -> Option<Finished> {
        let story = match Story::open(&self.files(assignment.order.attempt)) {
            Ok(story) => story,
            Err(error) => {
                let outcome = worker_disk(&format!("the attempt's files cannot be read: {error}"));
                return Some(self.without_story(assignment, outcome, &handed));
            }
        };
        let mut conversation = Conversation::new(self, assignment, container, job, story);
        let end = match conversation.run().await {
            Left::Exit(exit) => return Some(Finished::Left(exit)),
            Left::NotHanded => return None,
            Left::Judged(end) => end,
        };
        let ended = conversation.into_ended();
        let report = self.settle(assignment, end, &handed, Some(ended)).await;
        Some(Finished::Report(Box::new(report)))
    }

    /// Judges, notes the end, lets init go, and keeps the artifacts.
    async fn settle(
        &self,
        assignment: &mut Assignment<'_>,
        end: Judged,
        handed: &Handed,
        mut ended: Option<Ended>,
    ) -> EndReport {
        let order = assignment.order;
        let orders = assignment.orders.borrow().clone();
        let Judged { ending, story, reason, fenced, oom_killed, disk_full } = end;
        let hows = story.hows();
        let stop = orders.stop.as_ref().map(|(cause, _)| cause);
        let words = ended.as_mut().map(|ended| std::mem::take(&mut ended.words)).unwrap_or_default();
        let seen =
            Seen { order, ending, steps: &hows, words: &words, oom_killed, disk_full, reason, stop, fenced };
        let judgement = outcome::judge(&seen);
        let now = self.clock.now();
        let step = story.steps().len().saturating_sub(1) as u16;
        note_outcome(assignment.log, now, step, &judgement);
        let report = report(order, &story, judgement, handed, now);
        if let Err(error) = self.files(order.attempt).end(&report) {
            tracing::warn!(attempt_id = %order.attempt, error = %error, "the end is not noted");
        }
        if let Some(ended) = &mut ended {
            ended.let_go().await;
        }
        let workspace = ended.and_then(|ended| ended.workspace);
        self.keep_artifacts(assignment, report, workspace.as_ref()).await
    }

    /// Collects and hands over what a passed job wants kept.
    async fn keep_artifacts(
        &self,
        assignment: &mut Assignment<'_>,
        mut report: EndReport,
        workspace: Option<&Workspace>,
    ) -> EndReport {
        let order = assignment.order;
        if report.outcome != Outcome::Passed || order.spec.artifacts.is_empty() {
            return report;
        }
        let Some(workspace) = workspace else {
            report.outcome = worker_disk("the workspace was lost before its artifacts were kept");
            return report;
        };
        assignment.supervisor.judged().await;
        let mut told = assignment.orders.clone();
        let (folder, store) = (workspace.workspace(), assignment.artifacts);
        let kept = tokio::select! {
            kept = artifacts::keep_all(&folder, &order.spec.artifacts, self.artifacts, store) => kept,
            // A coordinator that is away is waited for, but nobody waits for a revoked attempt.
            _ = told.wait_for(|orders| revoked(orders) || orders.exit.is_some()) => Ok(Vec::new()),
        };
        match kept {
            Ok(notes) => report.notes.extend(notes),
            Err(error) => {
                let sentence = in_one_sentence(&error);
                report.outcome = outcome::without_artifacts(&error);
                let step = order.spec.steps.len() as u16;
                note(assignment.log, self.clock.now(), step, &sentence);
                note(assignment.log, self.clock.now(), step, &report.outcome.to_string());
                report.notes.push(sentence);
            }
        }
        report
    }

    /// The files of an attempt.
    pub fn files(&self, attempt: AttemptId) -> AttemptFiles {
        AttemptFiles::new(self.attempts.join(attempt.to_string()))
    }

    /// The name of an attempt's container.
    pub fn container_name(&self, attempt: AttemptId) -> String {
        format!("buildyard-{}-{attempt}", self.instance.short())
    }
}

/// Whether nobody will take the attempt's results any more.
fn revoked(orders: &Orders) -> bool {
    match &orders.stop {
        Some((StopCause::Revoked, _)) => true,
        Some((StopCause::Cancelled { .. } | StopCause::TimedOut { .. }, _)) | None => false,
    }
}

fn ended_early(orders: &Orders) -> Outcome {
    if orders.fenced {
        outcome::self_fenced()
    } else {
        outcome::stopped(orders.stop.as_ref().map(|(cause, _)| cause))
    }
}

/// Adds a sentence of the farm's own to the log. A log that cannot be written is noticed where it matters.
fn note(log: &mut dyn LogSink, at: Timestamp, step: u16, text: &str) {
    let next = log.next();
    let record = Record { kind: RecordKind::Note, step, at, payload: text.as_bytes() };
    if let Err(error) = log.append(&record).and_then(|()| log.commit(next)) {
        tracing::warn!(error = %error, "a note is missing in the log");
    }
}

fn note_outcome(log: &mut dyn LogSink, at: Timestamp, step: u16, judgement: &Judgement) {
    for text in &judgement.notes {
        note(log, at, step, text);
    }
    if judgement.outcome != Outcome::Passed {
        note(log, at, step, &judgement.outcome.to_string());
    }
}

fn report(
    order: &AttemptOrder,
    story: &Story,
    judgement: Judgement,
    handed: &Handed,
    now: Timestamp,
) -> EndReport {
    let (usage, log_bytes) = story.end().map_or((Default::default(), 0), |end| (end.usage, end.log_bytes));
    let usage = Usage {
        cpu_ms: Millis(usage.cpu_ms),
        peak_rss: ByteSize(usage.peak_rss_bytes),
        log_bytes,
        prepare_ms: handed.prepare_ms,
    };
    EndReport {
        outcome: judgement.outcome,
        steps: story.reports(order, now),
        usage,
        notes: judgement.notes,
        image_digest: handed.image_digest.clone(),
    }
}
