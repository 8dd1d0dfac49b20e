//! A farm of one worker in memory, and an init that follows a script.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use buildyard_init::protocol::{
    End, EndWhy, Frame, FromInit, Hello, InitState, SOCKET_NAME, StepEnd, StepHow, Stream, ToInit, Usage,
    VERSION,
};
use buildyard_types::log::{Record, RecordKind, read_record};
use buildyard_types::worker::{ArtifactManifest, AttemptOrder, EndReport};
use buildyard_types::{Millis, RunId, Timestamp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};

use super::super::*;
use crate::client::ClientError;
use crate::engine::scripted::{CallKind, Program, Running, ScriptedEngine, ScriptedImage};
use crate::engine::{ContainerId, ContainerSpec, Engine as _, Mount};
use crate::spool::Spool;

/// What the played init does next.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Act {
    /// Says a numbered frame.
    Say(Said),
    /// Waits until it was told to stop.
    AwaitStop,
    /// Waits until it was told to kill everything.
    AwaitFence,
    /// Waits for a lease.
    AwaitKeepAlive,
    /// Waits until the worker closed the connection.
    AwaitConnectionEnd,
    /// Says the end with the cause that it was told.
    EndStopped,
    /// Loses its connection in the middle of everything, and connects again.
    Reconnect,
    /// Waits until the test goes on; says that it is there.
    Gate,
    /// The engine does not answer any more.
    EngineAway,
    /// It answers again.
    EngineBack,
    /// The container ends with this code.
    Die(i64),
    /// The kernel kills the container for lack of memory.
    OutOfMemory,
    /// Nothing more, for ever.
    Sleep,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Said {
    Line(String),
    StepStart(u16),
    StepEnd(u16, StepHow),
    End(EndWhy),
}

pub(super) fn line(text: &str) -> Act {
    Act::Say(Said::Line(text.to_owned()))
}

pub(super) fn step_start(step: u16) -> Act {
    Act::Say(Said::StepStart(step))
}

pub(super) fn step_end(step: u16, how: StepHow) -> Act {
    Act::Say(Said::StepEnd(step, how))
}

pub(super) fn end(why: EndWhy) -> Act {
    Act::Say(Said::End(why))
}

fn encode(sequence: u64, said: &Said) -> Vec<u8> {
    let usage = Usage { cpu_ms: 5, peak_rss_bytes: 4_096 };
    let frame = match said {
        Said::Line(text) => Frame::Output { step: 0, stream: Stream::Stdout, bytes: text.as_bytes() },
        Said::StepStart(step) => Frame::StepStart { step: *step },
        Said::StepEnd(step, how) => Frame::StepEnd(StepEnd { step: *step, how: *how, usage, disk: None }),
        Said::End(why) => Frame::End(End { why: *why, usage, log_bytes: 7, disk: None }),
    };
    let mut bytes = Vec::new();
    FromInit::Numbered { sequence, at_ms: 1_000_000 + sequence, frame }.encode(&mut bytes).unwrap();
    bytes
}

/// What init and test know of each other.
#[derive(Default)]
pub(super) struct Shared {
    told: Mutex<Vec<ToInit>>,
    acknowledged: AtomicU64,
    at_gate: Notify,
    open_gate: Notify,
    started: AtomicU32,
    when_started: Notify,
    may_start: AtomicBool,
    asked: Notify,
    kept: Mutex<Vec<String>>,
}

/// The played init.
struct Init {
    running: Running,
    engine: ScriptedEngine,
    shared: Arc<Shared>,
    socket: PathBuf,
    stream: Option<UnixStream>,
    state: InitState,
    /// Every frame that was made. A real init drops what is acknowledged.
    frames: Vec<Vec<u8>>,
    /// The first one that the worker has not seen on this connection.
    sent: u64,
    inbox: Vec<u8>,
    stop_cause: Option<u8>,
    fenced: bool,
    leases: u32,
}

impl Init {
    async fn play(mut self, mut script: VecDeque<Act>) {
        self.connect().await;
        while let Some(act) = script.pop_front() {
            self.act(act).await;
        }
        // The end was said: it goes with the last acknowledgement.
        while self.shared.acknowledged.load(Ordering::SeqCst) < self.frames.len() as u64 {
            self.hear().await;
        }
        self.running.exit(0);
    }

    async fn act(&mut self, act: Act) {
        match act {
            Act::Say(said) => self.say(&said).await,
            Act::AwaitStop => {
                while self.stop_cause.is_none() {
                    self.hear().await;
                }
            }
            Act::AwaitFence => {
                while !self.fenced {
                    self.hear().await;
                }
            }
            Act::AwaitKeepAlive => {
                while self.leases == 0 {
                    self.hear().await;
                }
            }
            Act::AwaitConnectionEnd => {
                let stream = self.stream.as_mut().unwrap();
                let mut bytes = [0; 4_096];
                while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
            }
            Act::EndStopped => {
                let cause = self.stop_cause.unwrap();
                self.say(&Said::End(EndWhy::Stopped { cause })).await;
            }
            Act::Reconnect => {
                self.stream = None;
                self.connect().await;
            }
            Act::Gate => {
                // Everything up to here is with the worker, and half a frame of what comes.
                while self.shared.acknowledged.load(Ordering::SeqCst) < self.frames.len() as u64 {
                    self.hear().await;
                }
                let torn = encode(self.frames.len() as u64, &Said::Line("torn".into()));
                let _ = self.stream.as_mut().unwrap().write_all(&torn[..10]).await;
                self.shared.at_gate.notify_one();
                self.shared.open_gate.notified().await;
                self.stream = None;
                self.connect().await;
            }
            Act::EngineAway => self.engine.go_away(),
            Act::EngineBack => self.engine.come_back(),
            Act::Die(code) => {
                self.flush_slowly().await;
                self.stream = None;
                self.running.exit(code);
                std::future::pending::<()>().await;
            }
            Act::OutOfMemory => {
                self.flush_slowly().await;
                self.stream = None;
                self.running.out_of_memory();
                std::future::pending::<()>().await;
            }
            Act::Sleep => std::future::pending().await,
        }
    }

    /// What was said has reached the worker.
    async fn flush_slowly(&mut self) {
        while self.shared.acknowledged.load(Ordering::SeqCst) < self.frames.len() as u64 {
            self.hear().await;
        }
    }

    async fn say(&mut self, said: &Said) {
        if let Said::End(_) = said {
            self.state = InitState::Done;
        }
        self.frames.push(encode(self.frames.len() as u64, said));
        self.send_rest().await;
    }

    async fn send_rest(&mut self) {
        while (self.sent as usize) < self.frames.len() {
            let frame = self.frames[self.sent as usize].clone();
            let Some(stream) = &mut self.stream else { return };
            if stream.write_all(&frame).await.is_err() {
                self.connect_later().await;
                continue;
            }
            self.sent += 1;
        }
    }

    async fn connect_later(&mut self) {
        self.stream = None;
        Box::pin(self.connect()).await;
    }

    async fn connect(&mut self) {
        loop {
            let Ok(mut stream) = UnixStream::connect(&self.socket).await else {
                tokio::task::yield_now().await;
                continue;
            };
            let first_kept = self.shared.acknowledged.load(Ordering::SeqCst);
            let job = String::new();
            let next = self.frames.len() as u64;
            let hello = Hello { version: VERSION, state: self.state, job, first_kept, next };
            let mut bytes = Vec::new();
            FromInit::Hello(hello).encode(&mut bytes).unwrap();
            if stream.write_all(&bytes).await.is_err() {
                continue;
            }
            self.stream = Some(stream);
            self.inbox.clear();
            // Until it is answered; an unanswered one is a worker that died meanwhile.
            self.sent = u64::MAX;
            while self.sent == u64::MAX && self.read().await {}
            if self.sent != u64::MAX {
                return;
            }
        }
    }

    /// Hears one thing, over a new connection if it must.
    async fn hear(&mut self) {
        if !self.read().await {
            self.connect_later().await;
            self.send_rest().await;
        }
    }

    /// Reads what there is. `false`: the connection is gone.
    async fn read(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        match stream.read_buf(&mut self.inbox).await {
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
        while let Some((frame, length)) = ToInit::decode(&self.inbox).unwrap() {
            self.inbox.drain(..length);
            self.take(&frame);
            self.shared.told.lock().unwrap().push(frame);
        }
        true
    }

    fn take(&mut self, frame: &ToInit) {
        match frame {
            ToInit::Job(_) => self.state = InitState::Running,
            ToInit::Resume { next } => self.sent = *next,
            ToInit::Ack { next } => {
                self.shared.acknowledged.fetch_max(*next, Ordering::SeqCst);
            }
            ToInit::KeepAlive { .. } => self.leases += 1,
            ToInit::Stop { cause, .. } => self.stop_cause = Some(*cause),
            ToInit::Fence => self.fenced = true,
        }
    }
}

/// The test as the attempt's supervisor, source and store.
struct Played(Arc<Shared>, Arc<AtomicBool>);

#[async_trait]
impl Supervisor for Played {
    async fn may_start(&self) -> bool {
        self.0.asked.notify_one();
        self.0.may_start.load(Ordering::SeqCst)
    }

    async fn started(&self) {
        self.0.started.fetch_add(1, Ordering::SeqCst);
        self.0.when_started.notify_one();
    }
}

#[async_trait]
impl Source for Played {
    async fn fetch(&self) -> Result<(), SourceError> {
        if self.1.load(Ordering::SeqCst) {
            return Err(SourceError::Git { doing: "fetch the commit", message: "not our ref".into() });
        }
        Ok(())
    }

    async fn fill(&self, workspace: &Path, _: Owner) -> Result<(), SourceError> {
        std::fs::write(workspace.join("from-source"), "text").unwrap();
        Ok(())
    }
}

#[async_trait]
impl ArtifactStore for Played {
    async fn put_blob(&self, _: &str, _: u64, _: std::fs::File) -> Result<(), ClientError> {
        Ok(())
    }

    async fn put_manifest(&self, _: &str, manifest: &ArtifactManifest) -> Result<(), ClientError> {
        let paths = manifest.files.iter().map(|file| file.path.clone());
        self.0.kept.lock().unwrap().extend(paths);
        Ok(())
    }
}

/// A spool that can be made to fail.
struct Log {
    spool: Spool,
    /// The first of init's frames that it does not take.
    fails_from: u64,
}

impl LogSink for Log {
    fn append(&mut self, record: &Record<'_>) -> io::Result<()> {
        self.spool.append(record)
    }

    fn commit(&mut self, next: u64) -> io::Result<()> {
        if next >= self.fails_from {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.spool.commit(next).map(drop)
    }

    fn next(&self) -> u64 {
        self.spool.sequence()
    }

    fn length(&self) -> u64 {
        self.spool.pending_length()
    }
}

pub(super) struct Farm {
    temp: tempfile::TempDir,
    pub(super) engine: ScriptedEngine,
    pub(super) executor: Executor,
    pub(super) order: AttemptOrder,
    shared: Arc<Shared>,
    orders: watch::Sender<Orders>,
    source_fails: Arc<AtomicBool>,
    log_fails_from: u64,
}

fn control_folder(spec: &ContainerSpec) -> PathBuf {
    spec.mounts.iter().find(|mount| mount.target.ends_with("/ctl")).unwrap().source.clone()
}

impl Farm {
    /// A farm whose containers follow the script. `None` without root.
    pub(super) async fn new(script: Vec<Act>) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let temp = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared { may_start: AtomicBool::new(true), ..Shared::default() });
        let slot: Arc<Mutex<Option<ScriptedEngine>>> = Arc::default();
        let (inner, for_init) = (slot.clone(), shared.clone());
        let engine = ScriptedEngine::new(move |spec| {
            if spec.entrypoint.get(1).is_some_and(|argument| argument == "hold") {
                return Program::Runs;
            }
            let (inner, shared, script) = (inner.clone(), for_init.clone(), script.clone());
            Program::Played(Arc::new(move |running: Running| {
                let init = Init {
                    socket: control_folder(&running.spec).join(SOCKET_NAME),
                    running,
                    engine: inner.lock().unwrap().clone().unwrap(),
                    shared: shared.clone(),
                    stream: None,
                    state: InitState::Waiting,
                    frames: Vec::new(),
                    sent: 0,
                    inbox: Vec::new(),
                    stop_cause: None,
                    fenced: false,
                    leases: 0,
                };
                tokio::spawn(init.play(script.clone().into()));
            }))
        });
        *slot.lock().unwrap() = Some(engine.clone());
        engine.set_pid(std::process::id());
        engine.hold_image(ScriptedImage::plain("c-toolchain:12"));
        let instance = Instance::new("test");
        std::fs::write(temp.path().join("init"), "played").unwrap();
        let executor = Executor {
            engine: Arc::new(engine.clone()),
            instance: instance.clone(),
            images: Images::open(temp.path(), instance).unwrap(),
            workspaces: Workspaces::open(temp.path()).await.unwrap(),
            egress: Arc::new(crate::network::Egress::new(None)),
            holders: Holders::new(
                Arc::new(engine.clone()),
                Instance::new("test"),
                temp.path().join("init"),
                0,
                |_| Ok(Default::default()),
            ),
            host_arch: "amd64".into(),
            policy: Policy::default(),
            init: temp.path().join("init"),
            artifacts: ArtifactLimits::default(),
            clock: Clock::start(),
            // The first process is this test: the counters of its own cgroup say nothing.
            counters: |_| None,
            attempts: temp.path().join("attempts"),
        };
        let until = Some(executor.clock.now() + Millis(15_000));
        let orders = watch::Sender::new(Orders { until, ..Orders::default() });
        let mut order = crate::testing::order(RunId(1).job(0).attempt(1));
        order.spec.resources.disk = buildyard_types::ByteSize::from_mib(64);
        let source_fails = Arc::default();
        Some(Self { temp, engine, executor, order, shared, orders, source_fails, log_fails_from: u64::MAX })
    }

    pub(super) fn orders(&self) -> watch::Sender<Orders> {
        self.orders.clone()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.executor.clock.now()
    }

    fn log(&self) -> Log {
        let files = self.executor.files(self.order.attempt);
        std::fs::create_dir_all(files.folder()).unwrap();
        Log { spool: Spool::open(files.folder()).unwrap(), fails_from: self.log_fails_from }
    }

    async fn carry_out(&self, resumed: bool) -> Finished {
        let played = Played(self.shared.clone(), self.source_fails.clone());
        let mut log = self.log();
        let assignment = Assignment {
            order: &self.order,
            source: &played,
            log: &mut log,
            artifacts: &played,
            supervisor: &played,
            orders: self.orders.subscribe(),
        };
        if resumed {
            let handed = self.executor.files(self.order.attempt).handed().unwrap().unwrap();
            self.executor.resume(assignment, handed).await
        } else {
            self.executor.run(assignment).await
        }
    }

    pub(super) async fn run(&self) -> EndReport {
        self.run_beside(async {}).await
    }

    pub(super) async fn run_beside(&self, other: impl Future<Output = ()>) -> EndReport {
        match self.finish_beside(other).await {
            Finished::Report(report) => *report,
            Finished::Left(exit) => panic!("left: {exit:?}"),
        }
    }

    pub(super) async fn finish_beside(&self, other: impl Future<Output = ()>) -> Finished {
        let other = async {
            other.await;
            std::future::pending().await
        };
        tokio::select! {
            finished = self.carry_out(false) => finished,
            never = other => never,
        }
    }

    pub(super) async fn resume(&self) -> EndReport {
        match self.carry_out(true).await {
            Finished::Report(report) => *report,
            Finished::Left(exit) => panic!("left: {exit:?}"),
        }
    }

    /// Runs until init stands at a gate, and then drops everything, as a kill does.
    pub(super) async fn run_until_gate(&self) {
        self.until_gate(false).await;
    }

    pub(super) async fn resume_until_gate(&self) {
        self.until_gate(true).await;
    }

    async fn until_gate(&self, resumed: bool) {
        tokio::select! {
            finished = self.carry_out(resumed) => panic!("{finished:?}"),
            () = self.shared.at_gate.notified() => {}
        }
        self.shared.open_gate.notify_one();
    }

    pub(super) fn kill_container(&self, code: i64) {
        let name = self.executor.container_name(self.order.attempt);
        self.engine.end(&ContainerId(name), code, false);
    }

    pub(super) async fn remove_container(&self) {
        let name = self.executor.container_name(self.order.attempt);
        self.engine.remove(&ContainerId(name)).await.unwrap();
    }

    /// An earlier process noted that it hands the job over, and was killed before it did.
    pub(super) async fn leave_not_handed(&self) {
        let name = self.executor.container_name(self.order.attempt);
        self.leave_half_made(&name).await;
        self.engine.start(&ContainerId(name)).await.unwrap();
        self.executor.files(self.order.attempt).hand(&Handed::default()).unwrap();
    }

    /// An earlier process wrote init's end down, and was killed before it judged it.
    pub(super) fn leave_end_taken(&self, sequence: u64, why: EndWhy) {
        let mut story = Story::open(&self.executor.files(self.order.attempt)).unwrap();
        let end = End { why, usage: Default::default(), log_bytes: 0, disk: None };
        story.take(sequence, 1, &Frame::End(end)).unwrap();
    }

    /// An earlier try got as far as a container.
    pub(super) async fn leave_half_made(&self, name: &str) {
        let files = self.executor.files(self.order.attempt);
        files.begin().unwrap();
        let control = Mount { source: files.control(), target: "/.buildyard/ctl".into(), read_only: true };
        let spec = ContainerSpec {
            name: name.to_owned(),
            labels: [self.executor.instance.label()].into(),
            image: "c-toolchain:12".into(),
            user: Owner { uid: 1, gid: 1 },
            entrypoint: Vec::new(),
            env: Default::default(),
            mounts: vec![control],
            network: crate::engine::ContainerNetwork::None,
            hostname: "x".into(),
            limits: crate::engine::Limits { cpu_millis: 1, memory: ByteSize::from_mib(6), pids: 1 },
            capabilities: Default::default(),
            open_files: 1,
        };
        self.engine.create(&spec).await.unwrap();
    }

    /// Lets the worker make so many network namespaces ahead.
    pub(super) fn hold(&mut self, most: usize) {
        let Executor { engine, instance, init, .. } = &self.executor;
        let (engine, instance, init) = (engine.clone(), instance.clone(), init.clone());
        self.executor.holders = Holders::new(engine, instance, init, most, |_| Ok(Default::default()));
    }

    /// The next attempt at the same job. The one before is removed.
    pub(super) fn next_attempt(&mut self) {
        self.executor.files(self.order.attempt).remove().unwrap();
        self.order.attempt.number.0 += 1;
        self.shared.acknowledged.store(0, Ordering::SeqCst);
    }

    /// Waits until a network namespace is there for the next attempt.
    pub(super) async fn when_held(&self) {
        while self.executor.holders.idle() == 0 {
            tokio::task::yield_now().await;
        }
    }

    /// Whether the attempt joined one.
    pub(super) fn has_joined(&self) -> bool {
        let handed = self.executor.files(self.order.attempt).handed().unwrap().unwrap();
        handed.holder.is_some()
    }

    pub(super) fn fail_log(&mut self) {
        self.fail_log_from(0);
    }

    pub(super) fn fail_log_from(&mut self, frame: u64) {
        self.log_fails_from = frame;
    }

    pub(super) fn fail_source(&self) {
        self.source_fails.store(true, Ordering::SeqCst);
    }

    pub(super) fn forbid_start(&self) {
        self.shared.may_start.store(false, Ordering::SeqCst);
    }

    pub(super) fn allow_start(&self) {
        self.shared.may_start.store(true, Ordering::SeqCst);
    }

    pub(super) async fn when_asked(&self) {
        self.shared.asked.notified().await;
    }

    pub(super) async fn when_started(&self) {
        self.shared.when_started.notified().await;
    }

    pub(super) async fn when_called(&self, kind: CallKind) {
        while self.calls(kind) == 0 {
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn calls(&self, kind: CallKind) -> usize {
        self.engine.calls().iter().filter(|call| call.kind == kind).count()
    }

    pub(super) fn started(&self) -> u32 {
        self.shared.started.load(Ordering::SeqCst)
    }

    pub(super) fn told(&self) -> Vec<ToInit> {
        self.shared.told.lock().unwrap().clone()
    }

    pub(super) fn init_acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    pub(super) fn kept(&self) -> Vec<String> {
        self.shared.kept.lock().unwrap().clone()
    }

    fn records(&self) -> Vec<(RecordKind, String)> {
        let files = self.executor.files(self.order.attempt);
        let bytes = std::fs::read(files.folder().join("spool")).unwrap();
        let mut rest = &bytes[..];
        let mut found = Vec::new();
        while let Some((record, length)) = read_record(rest).unwrap() {
            found.push((record.kind, String::from_utf8(record.payload.to_vec()).unwrap()));
            rest = &rest[length..];
        }
        assert!(rest.is_empty(), "whole records only");
        found
    }

    pub(super) fn output(&self) -> String {
        let output = self.records().into_iter().filter(|(kind, _)| *kind == RecordKind::Stdout);
        output.map(|(_, text)| text).collect()
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let notes = self.records().into_iter().filter(|(kind, _)| *kind == RecordKind::Note);
        notes.map(|(_, text)| text).collect()
    }

    pub(super) fn log_length(&self) -> u64 {
        let files = self.executor.files(self.order.attempt);
        std::fs::metadata(files.folder().join("spool")).unwrap().len()
    }

    /// Removes the attempt and looks for what may be left.
    pub(super) async fn assert_nothing_left(&self) {
        self.executor.remove(self.order.attempt).await;
        assert_eq!(self.engine.container_names(), Vec::<String>::new());
        let folder = self.executor.files(self.order.attempt).folder().to_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(folder.to_str().unwrap()), "no mount");
        self.executor.files(self.order.attempt).remove().unwrap();
        let left: Vec<_> = std::fs::read_dir(self.temp.path().join("attempts")).unwrap().collect();
        assert!(left.iter().all(|entry| !entry.as_ref().unwrap().path().ends_with("att-1-0-1")));
    }
}
