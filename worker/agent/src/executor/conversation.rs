//! Follows one container: init's frames into the log, orders to init, until the job has ended one way or another.
//!
//! One loop waits for everything. Frames are taken in batches: all that were read are appended, then the log is
//! committed, then init hears that it may forget them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use buildyard_init::protocol::{Frame, FromInit, Hello, Job, ProtocolError, Stream, ToInit, VERSION};
use buildyard_types::job::NetworkMode;
use buildyard_types::log::{Record, RecordKind};
use buildyard_types::worker::AttemptOrder;
use buildyard_types::{Millis, Timestamp};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::files::Story;
use super::hint::LastWords;
use super::outcome::{self, Ending, Reason};
use super::prepare::{CONNECT_LIMIT, takes_job};
use super::{Assignment, Container, Executor, GRACE, LogSink, Orders, Supervisor, note};
use crate::channel::{Connection, Listener};
use crate::config::OnExit;
use crate::engine::Instance;
use crate::network::{Egress, HOLD_EVERY};
use crate::workspace::{DiskWatch, RootUsage, Workspace};

/// Time from a kill by init to one by the engine: init needs milliseconds for it.
const KILL_SLACK: Duration = Duration::from_secs(1);
/// Time for init to say how the job ended, after the grace.
const STOP_SLACK: Duration = Duration::from_secs(10);
/// Time in which init has to take a frame.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// Time between two tries to kill a container whose engine does not answer.
const KILL_AGAIN: Duration = Duration::from_secs(2);
/// Time for what a dead container left in the socket.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How often the disk is looked at.
const DISK_EVERY: Duration = Duration::from_secs(1);
/// Room in a log for the farm's own records behind the job's output.
const LOG_RESERVE_BYTES: u64 = 64 * 1024;
/// Broken connections after which init is given up. It is our own program: this many are no accident.
const MAX_BROKEN: u32 = 8;

/// Why the conversation is over.
pub(super) enum Left {
    /// The job ended, or its container did.
    Judged(Judged),
    /// Init waits for a job that an earlier process of this worker was about to give it, and did not.
    NotHanded,
    /// The worker ends first.
    Exit(OnExit),
}

/// What is to be judged.
pub(super) struct Judged {
    pub(super) ending: Ending,
    pub(super) story: Story,
    pub(super) reason: Option<Reason>,
    pub(super) fenced: bool,
    pub(super) oom_killed: bool,
    pub(super) disk_full: bool,
}

/// What is left of a conversation: init waits for its last acknowledgement.
pub(super) struct Ended {
    connection: Option<Connection>,
    next: u64,
    pub(super) words: LastWords,
    pub(super) workspace: Option<Workspace>,
}

impl Ended {
    /// Lets init go. It may be gone already.
    pub(super) async fn let_go(&mut self) {
        if let Some(connection) = &mut self.connection
            && connection.queue(&ToInit::Ack { next: self.next }).is_ok()
        {
            // The container is removed in any case.
            let _ = timeout(SEND_LIMIT, connection.flush()).await;
        }
    }
}

/// Something that the loop waits for.
enum Wake {
    Orders,
    Deadline,
    Disk(Reason),
    NetworkOpen,
    Read(io::Result<bool>),
    Connected(io::Result<Connection>),
    Ended(Ending),
}

/// Why a connection cannot go on.
enum Broken {
    /// Init will connect again.
    Closed,
    /// What it says cannot be read.
    Protocol(String),
    /// The log cannot be written.
    Log(io::Error),
}

impl From<ProtocolError> for Broken {
    fn from(error: ProtocolError) -> Self {
        Broken::Protocol(error.to_string())
    }
}

pub(super) struct Conversation<'c> {
    executor: &'c Executor,
    order: &'c AttemptOrder,
    log: &'c mut dyn LogSink,
    supervisor: &'c dyn Supervisor,
    orders: tokio::sync::watch::Receiver<Orders>,
    container: Container,
    connection: Option<Connection>,
    job: Option<Box<Job>>,
    story: Story,
    words: LastWords,
    /// The first frame that is not in the log. The log is behind by the frames that are not committed yet.
    next: u64,
    reason: Option<Reason>,
    grace: Millis,
    fenced: bool,
    broken: u32,
    /// When the container is killed over init's head.
    kill_at: Option<Instant>,
    overdue_at: Instant,
    connect_by: Option<Instant>,
    /// When a dead container's connection is given up.
    drain_by: Option<Instant>,
    last_kept_alive: Option<Timestamp>,
    told_started: bool,
    /// Init waits for a job, and there is none to give.
    not_handed: bool,
}

impl<'c> Conversation<'c> {
    pub(super) fn new(
        executor: &'c Executor,
        assignment: &'c mut Assignment<'_>,
        container: Container,
        job: Option<Box<Job>>,
        story: Story,
    ) -> Self {
        let order = assignment.order;
        let overdue = Duration::from(outcome::overdue_after(order, GRACE));
        let now = Instant::now();
        Self {
            executor,
            order,
            next: assignment.log.next(),
            log: &mut *assignment.log,
            supervisor: assignment.supervisor,
            orders: assignment.orders.clone(),
            container,
            connection: None,
            job,
            story,
            words: LastWords::default(),
            reason: None,
            grace: Millis(0),
            fenced: false,
            broken: 0,
            kill_at: None,
            // Beyond what a timer can count, there is no limit that matters.
            overdue_at: now.checked_add(overdue).unwrap_or(now + Duration::from_secs(1 << 30)),
            connect_by: Some(now + CONNECT_LIMIT),
            drain_by: None,
            last_kept_alive: None,
            told_started: false,
            not_handed: false,
        }
    }

    /// Follows the container to its end.
    pub(super) async fn run(&mut self) -> Left {
        let executor = self.executor;
        let id = self.container.details.id.clone();
        let mut waiting: Pin<Box<dyn Future<Output = Ending> + Send + '_>> = Box::pin(executor.wait(&id));
        let mut disk = Box::pin(watch_disk(self.disk_watch()));
        // A task of its own: what it does under the lock of all attempts goes on, whatever this loop waits for.
        let mut network = match self.order.spec.network {
            NetworkMode::Egress => {
                let watch = watch_network(executor.egress.clone(), executor.instance.clone());
                Some(AbortOnDropHandle::new(tokio::spawn(watch)))
            }
            NetworkMode::None | NetworkMode::Host => None,
        };
        let mut ended: Option<Ending> = None;
        self.orders.mark_changed();
        if !self.story.steps().is_empty() {
            self.tell_started().await;
        }
        loop {
            // What the container left in the socket is read before its end counts.
            if self.connection.is_none()
                && let Some(ending) = ended.take()
            {
                return Left::Judged(self.judged(ending));
            }
            if self.not_handed {
                return Left::NotHanded;
            }
            let deadline = self.deadline();
            let wake = tokio::select! {
                biased;
                changed = self.orders.changed() => match changed {
                    Ok(()) => Wake::Orders,
                    // Whoever gives orders is gone with the whole worker.
                    Err(_) => return Left::Exit(OnExit::Leave),
                },
                () = tokio::time::sleep_until(deadline) => Wake::Deadline,
                ending = &mut waiting, if ended.is_none() => Wake::Ended(ending),
                reason = &mut disk, if self.reason.is_none() => Wake::Disk(reason),
                () = open_network(&mut network), if self.reason.is_none() => Wake::NetworkOpen,
                read = fill(&mut self.connection) => Wake::Read(read),
                connected = accept(&mut self.container.listener, self.container.pid), if ended.is_none() => {
                    Wake::Connected(connected)
                }
            };
            match wake {
                Wake::Ended(ending) => {
                    ended = Some(ending);
                    self.kill_at = None;
                    self.drain_by = Some(Instant::now() + DRAIN_LIMIT);
                }
                Wake::Disk(reason) => self.stop(reason, Millis(0)),
                Wake::NetworkOpen => self.stop(Reason::Network, Millis(0)),
                Wake::Deadline => self.deadline_passed().await,
                Wake::Orders => {
                    if let Some(exit) = self.take_orders() {
                        return Left::Exit(exit);
                    }
                }
                Wake::Connected(Ok(connection)) => {
                    self.connect_by = None;
                    self.connection = Some(connection);
                    self.admit(false);
                }
                Wake::Connected(Err(error)) => {
                    tracing::warn!(attempt_id = %self.order.attempt, error = %error, "accepting a connection");
                    sleep(Duration::from_millis(100)).await;
                }
                Wake::Read(Ok(true)) => match self.take_frames().await {
                    Ok(None) => {}
                    Ok(Some(end)) => {
                        let ending = Ending::Told(end);
                        let oom_killed = self.oom_killed(&mut waiting).await;
                        return Left::Judged(Judged { oom_killed, ..self.judged(ending) });
                    }
                    Err(broken) => self.disconnected(broken),
                },
                Wake::Read(Ok(false) | Err(_)) => self.disconnected(Broken::Closed),
            }
            self.send().await;
        }
    }

    /// What is left when the job has ended.
    pub(super) fn into_ended(self) -> Ended {
        let strangers = self.container.listener.strangers();
        if strangers > 0 {
            tracing::warn!(attempt_id = %self.order.attempt, strangers, "processes of the job knocked at init's socket");
        }
        Ended {
            connection: self.connection,
            next: self.next,
            words: self.words,
            workspace: self.container.workspace,
        }
    }

    fn judged(&mut self, ending: Ending) -> Judged {
        let oom_killed = self.counted_oom_kills().unwrap_or(0) > 0 || ending.oom_killed();
        let ending = self.story.ending(ending);
        let step_full = self.story.steps().last().is_some_and(|step| step.disk_full);
        let usage = self.container.workspace.as_ref().and_then(|workspace| workspace.usage().ok().flatten());
        Judged {
            ending,
            story: std::mem::take(&mut self.story),
            reason: self.reason,
            fenced: self.fenced,
            oom_killed,
            disk_full: step_full || usage.is_some_and(|usage| usage.is_full()),
        }
    }

    fn counted_oom_kills(&self) -> Option<u64> {
        self.container.counters.as_ref().and_then(|counters| counters.oom_kills())
    }

    /// Whether the kernel killed a process. Where its counters cannot be read, the engine knows once the container
    /// has ended, for which init has to be let go first.
    async fn oom_killed(&mut self, waiting: &mut Pin<Box<dyn Future<Output = Ending> + Send + '_>>) -> bool {
        if let Some(kills) = self.counted_oom_kills() {
            return kills > 0;
        }
        if self.queue(&ToInit::Ack { next: self.next }).is_ok() {
            self.send().await;
        }
        match timeout(STOP_SLACK, waiting).await {
            Ok(ending) => ending.oom_killed(),
            Err(_) => false,
        }
    }

    fn disk_watch(&self) -> Option<DiskWatch> {
        let workspace = self.container.workspace.as_ref()?;
        Some(DiskWatch::new(&self.container.details, workspace))
    }

    async fn tell_started(&mut self) {
        if !self.told_started {
            self.told_started = true;
            self.supervisor.started().await;
        }
    }

    fn deadline(&self) -> Instant {
        let times = [self.kill_at, self.connect_by, self.drain_by, Some(self.overdue_at)];
        times.into_iter().flatten().min().unwrap_or(self.overdue_at)
    }

    async fn deadline_passed(&mut self) {
        let now = Instant::now();
        if self.overdue_at <= now {
            // Once: from here on `kill_at` counts.
            self.overdue_at = now + Duration::from_secs(1 << 30);
            self.stop(Reason::Overdue, Millis(0));
        }
        if self.drain_by.is_some_and(|drain_by| drain_by <= now) {
            self.drain_by = None;
            self.connection = None;
        }
        if self.connect_by.is_some_and(|connect_by| connect_by <= now) {
            self.connect_by = None;
            tracing::warn!(attempt_id = %self.order.attempt, "init does not connect; its container is killed");
            self.kill_at = Some(now);
        }
        if self.kill_at.is_some_and(|kill_at| kill_at <= now) {
            self.kill_at = Some(now + KILL_AGAIN);
            // One that does not run any more is fine; one whose engine is away is tried again.
            if let Err(error) = self.executor.engine.kill(&self.container.details.id).await {
                tracing::debug!(attempt_id = %self.order.attempt, error = %error, "killing a container");
            }
        }
    }

    /// Notes why the job has to end, and asks init for it. The first reason counts.
    fn stop(&mut self, reason: Reason, grace: Millis) {
        if self.reason.is_some() {
            return;
        }
        self.reason = Some(reason);
        self.grace = grace;
        let kill_at = Instant::now() + Duration::from(grace) + STOP_SLACK;
        self.kill_at = Some(self.kill_at.map_or(kill_at, |before| before.min(kill_at)));
        // Without a connection it goes with the next one.
        let _ = self.queue(&ToInit::Stop { cause: reason.code(), grace_ms: grace.0 });
    }

    fn take_orders(&mut self) -> Option<OnExit> {
        let orders = self.orders.borrow_and_update().clone();
        if orders.exit.is_some() {
            return orders.exit;
        }
        if let Some((_, grace)) = orders.stop {
            self.stop(Reason::Ordered, grace);
        }
        if orders.fenced && !self.fenced {
            self.fenced = true;
            let _ = self.queue(&ToInit::Fence);
            self.kill_at = Some(Instant::now() + KILL_SLACK);
        }
        if orders.until != self.last_kept_alive && !self.fenced {
            self.keep_alive(orders.until);
        }
        None
    }

    fn keep_alive(&mut self, until: Option<Timestamp>) {
        if let Some(until) = until {
            let _ = self.queue(&ToInit::KeepAlive { lease_ms: self.lease_ms(until) });
        }
        self.last_kept_alive = until;
    }

    fn lease_ms(&self, until: Timestamp) -> u64 {
        // The end of time is a lease without end.
        if until.0 == u64::MAX { u64::MAX } else { until.since(self.executor.clock.now()).0 }
    }

    fn queue(&mut self, frame: &ToInit) -> Result<(), ProtocolError> {
        match &mut self.connection {
            Some(connection) => connection.queue(frame),
            None => Ok(()),
        }
    }

    async fn send(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        match timeout(SEND_LIMIT, connection.flush()).await {
            Ok(Ok(())) => {}
            // What it had sent is still to be read, and the end of that says so again.
            Ok(Err(_)) => {}
            Err(_) => self.disconnected(Broken::Closed),
        }
    }

    /// Lets everyone connect, or root alone.
    fn admit(&self, everyone: bool) {
        if let Err(error) = self.container.listener.admit(everyone) {
            tracing::warn!(attempt_id = %self.order.attempt, error = %error, "the socket's permissions");
        }
    }

    fn disconnected(&mut self, broken: Broken) {
        self.connection = None;
        self.admit(true);
        match broken {
            Broken::Closed => {}
            Broken::Protocol(words) => {
                self.broken += 1;
                tracing::warn!(attempt_id = %self.order.attempt, error = %words, "a connection to init broke");
                if self.broken > MAX_BROKEN {
                    self.kill_at = Some(Instant::now());
                }
            }
            Broken::Log(error) => {
                tracing::error!(attempt_id = %self.order.attempt, error = %error, "the log cannot be written");
                self.reason = Some(Reason::WorkerDisk);
                self.kill_at = Some(Instant::now());
            }
        }
    }

    /// Takes every frame that was read. Gives the end, which is on record and not acknowledged yet.
    async fn take_frames(&mut self) -> Result<Option<buildyard_init::protocol::End>, Broken> {
        // Taken out, so that a frame can borrow from it while the rest of `self` changes.
        let Some(mut connection) = self.connection.take() else { return Ok(None) };
        let taken = self.take_from(&mut connection).await;
        self.connection = Some(connection);
        taken
    }

    async fn take_from(
        &mut self,
        connection: &mut Connection,
    ) -> Result<Option<buildyard_init::protocol::End>, Broken> {
        while let Some(frame) = connection.next_frame()? {
            match frame {
                FromInit::Hello(hello) => {
                    let answer = self.answer(&hello)?;
                    for frame in answer {
                        connection.queue(&frame)?;
                    }
                }
                // Sent again after a restart, and taken already.
                FromInit::Numbered { sequence, .. } if sequence < self.next => {}
                FromInit::Numbered { sequence, .. } if sequence > self.next => {
                    return Err(Broken::Protocol(format!("frame {sequence} came instead of {}", self.next)));
                }
                FromInit::Numbered { sequence, at_ms, frame } => {
                    let first = matches!(frame, Frame::StepStart { .. }) && !self.told_started;
                    if matches!(frame, Frame::End(_)) {
                        // What was printed is safe before the end is on record: a job whose last lines were lost
                        // with this worker's disk has not passed here.
                        self.log.commit(self.next).map_err(Broken::Log)?;
                    }
                    self.take_frame(sequence, at_ms, &frame).map_err(Broken::Log)?;
                    self.next = sequence + 1;
                    if let Frame::End(end) = frame {
                        return Ok(Some(end));
                    }
                    if first {
                        self.tell_started().await;
                    }
                }
            }
        }
        if self.log.next() < self.next {
            self.log.commit(self.next).map_err(Broken::Log)?;
            connection.queue(&ToInit::Ack { next: self.next })?;
        }
        if self.reason == Some(Reason::LogCap) && self.kill_at.is_none() {
            let reason = Reason::LogCap;
            connection.queue(&ToInit::Stop { cause: reason.code(), grace_ms: 0 })?;
            self.kill_at = Some(Instant::now() + STOP_SLACK);
        }
        Ok(None)
    }

    /// What init hears at the beginning of a connection.
    fn answer(&mut self, hello: &Hello) -> Result<Vec<ToInit>, Broken> {
        if hello.version != VERSION {
            return Err(Broken::Protocol(format!("init speaks version {} of the protocol", hello.version)));
        }
        let mut answer = Vec::new();
        let orders = self.orders.borrow().clone();
        if takes_job(hello.state) {
            let Some(job) = &self.job else {
                self.not_handed = true;
                return Ok(answer);
            };
            let lease_ms = self.lease_ms(orders.until.unwrap_or(Timestamp(0)));
            answer.push(ToInit::Job(Box::new(Job { lease_ms, ..(**job).clone() })));
        } else if let Some(until) = orders.until.filter(|_| !self.fenced) {
            answer.push(ToInit::KeepAlive { lease_ms: self.lease_ms(until) });
        }
        if hello.first_kept > self.next {
            let lost = hello.first_kept - self.next;
            let now = self.executor.clock.now();
            note(self.log, now, 0, &format!("{lost} pieces of the output were lost with the worker's disk"));
            self.next = hello.first_kept;
        }
        answer.push(ToInit::Resume { next: self.next });
        self.last_kept_alive = orders.until;
        if self.fenced {
            answer.push(ToInit::Fence);
        } else if let Some(reason) = self.reason {
            answer.push(ToInit::Stop { cause: reason.code(), grace_ms: self.grace.0 });
        }
        Ok(answer)
    }

    fn take_frame(&mut self, sequence: u64, at_ms: u64, frame: &Frame<'_>) -> io::Result<()> {
        let at = Timestamp(at_ms);
        match frame {
            Frame::Output { step, stream, bytes } => {
                let kind = match stream {
                    Stream::Stdout => RecordKind::Stdout,
                    Stream::Stderr => RecordKind::Stderr,
                };
                return self.take_output(&Record { kind, step: *step, at, payload: bytes });
            }
            Frame::StepStart { step } => {
                let name = self.order.spec.steps.get(usize::from(*step)).map(|step| step.name.as_str());
                let payload = name.unwrap_or_default().as_bytes();
                self.log.append(&Record { kind: RecordKind::StepStart, step: *step, at, payload })?;
            }
            Frame::StepEnd(end) => {
                let code = outcome::logged_code(end.how).to_string();
                let payload = code.as_bytes();
                self.log.append(&Record { kind: RecordKind::StepEnd, step: end.step, at, payload })?;
            }
            Frame::End(_) => {}
        }
        self.story.take(sequence, at_ms, frame)
    }

    /// Output counts with its headers, so that a job that prints single bytes cannot make its log a multiple of
    /// the cap.
    fn take_output(&mut self, record: &Record<'_>) -> io::Result<()> {
        self.words.take(record.step, record.payload);
        if self.reason == Some(Reason::LogCap) {
            return Ok(());
        }
        let cap = self.order.log_cap.0;
        let room = cap.saturating_sub(LOG_RESERVE_BYTES).max(cap / 2);
        let length = (record.payload.len() + buildyard_types::log::HEADER_BYTES) as u64;
        if self.log.length() + length > room {
            // The first reason counts; but nothing more goes into a log that is full.
            self.reason = Some(self.reason.unwrap_or(Reason::LogCap));
            return Ok(());
        }
        self.log.append(record)
    }
}

async fn fill(connection: &mut Option<Connection>) -> io::Result<bool> {
    match connection {
        Some(connection) => connection.fill().await,
        None => std::future::pending().await,
    }
}

async fn accept(listener: &mut Listener, pid: u32) -> io::Result<Connection> {
    listener.accept(pid).await
}

/// Returns when the job has a way outwards that cannot be kept closed towards the farm.
async fn open_network(watch: &mut Option<AbortOnDropHandle<()>>) {
    match watch {
        // One that broke off watches no more.
        Some(watch) => drop(watch.await),
        None => std::future::pending().await,
    }
}

async fn watch_network(egress: Arc<Egress>, instance: Instance) {
    loop {
        if let Err(error) = egress.hold(&instance).await {
            let error = outcome::in_one_sentence(&error);
            tracing::error!(error, "the network of jobs cannot be kept closed towards the farm");
            return;
        }
        sleep(HOLD_EVERY).await;
    }
}

/// Returns why, when the job has written more than it may, or than there is room for, where nothing else stops it.
async fn watch_disk(watch: Option<DiskWatch>) -> Reason {
    let Some(mut watch) = watch else { return std::future::pending().await };
    loop {
        sleep(DISK_EVERY).await;
        let looked = tokio::task::spawn_blocking(move || (watch.look(), watch)).await;
        match looked {
            Ok((RootUsage::Over { .. }, _)) => return Reason::Disk,
            Ok((RootUsage::HostFull, _)) => return Reason::HostFull,
            Ok((RootUsage::Within { .. }, again)) => watch = again,
            Err(error) => {
                tracing::error!(error = %error, "the disk is not watched any more");
                return std::future::pending().await;
            }
        }
    }
}
