//! A worker's executor without a coordinator: orders come from the test, the log stays in memory.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use buildyard_test_docker::{BUSYBOX, Ground};
use buildyard_types::job::{CheckoutSpec, JobUser, NetworkMode, Resources, Shell, StepSpec};
use buildyard_types::log::{HEADER_BYTES, Record, RecordKind};
use buildyard_types::worker::{ArtifactManifest, AttemptOrder, EndReport, SourceRef};
use buildyard_types::{ByteSize, Fence, JobSpec, LabelExpr, Millis, RunId, Timestamp};
use buildyard_worker::artifacts::ArtifactLimits;
use buildyard_worker::cgroup::MemoryCounters;
use buildyard_worker::client::{ArtifactStore, ClientError};
use buildyard_worker::clock::Clock;
use buildyard_worker::engine::contract::Host as _;
use buildyard_worker::engine::{ContainerId, Owner};
use buildyard_worker::executor::{Assignment, Executor, Finished, LogSink, Orders, Source, Supervisor};
use buildyard_worker::image::Images;
use buildyard_worker::init_binary;
use buildyard_worker::network::{Egress, EgressNetwork, Holders, holders};
use buildyard_worker::profile::Policy;
use buildyard_worker::source::SourceError;
use buildyard_worker::workspace::Workspaces;
use tokio::sync::{Notify, watch};

/// A worker whose job is this script; without an engine or root, the end of the test.
macro_rules! farm {
    ($script:expr) => {
        match $crate::farm::Farm::new($script).await {
            Some(farm) => farm,
            None => return,
        }
    };
}
pub(crate) use farm;

/// What the job printed, and how far init's frames are taken. Outlives a restart of the worker.
#[derive(Default)]
pub(crate) struct Log {
    records: Vec<(RecordKind, Vec<u8>)>,
    next: u64,
    length: u64,
    /// What is committed survives the worker; the rest does not.
    committed: usize,
    arrived: Arc<Notify>,
}

#[derive(Clone, Default)]
pub(crate) struct SharedLog(Arc<Mutex<Log>>);

impl LogSink for SharedLog {
    fn append(&mut self, record: &Record<'_>) -> io::Result<()> {
        let mut log = self.0.lock().unwrap();
        log.length += (HEADER_BYTES + record.payload.len()) as u64;
        log.records.push((record.kind, record.payload.to_vec()));
        Ok(())
    }

    fn commit(&mut self, next: u64) -> io::Result<()> {
        let mut log = self.0.lock().unwrap();
        log.next = next;
        log.committed = log.records.len();
        log.arrived.notify_one();
        Ok(())
    }

    fn next(&self) -> u64 {
        self.0.lock().unwrap().next
    }

    fn length(&self) -> u64 {
        self.0.lock().unwrap().length
    }
}

#[derive(Default)]
struct Place {
    /// Files that the job finds, all of them executable.
    files: Vec<(String, Vec<u8>)>,
    started: Notify,
}

#[async_trait]
impl Supervisor for Place {
    async fn may_start(&self) -> bool {
        true
    }

    async fn started(&self) {
        self.started.notify_one();
    }
}

#[async_trait]
impl Source for Place {
    async fn fetch(&self) -> Result<(), SourceError> {
        Ok(())
    }

    async fn fill(&self, workspace: &Path, _: Owner) -> Result<(), SourceError> {
        for (name, content) in &self.files {
            let path = workspace.join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Ok(())
    }
}

#[async_trait]
impl ArtifactStore for Place {
    async fn put_blob(&self, _: &str, _: u64, _: std::fs::File) -> Result<(), ClientError> {
        Ok(())
    }

    async fn put_manifest(&self, _: &str, _: &ArtifactManifest) -> Result<(), ClientError> {
        Ok(())
    }
}

pub(crate) struct Farm {
    pub(crate) order: AttemptOrder,
    executor: Executor,
    log: SharedLog,
    orders: watch::Sender<Orders>,
    place: Place,
    data: tempfile::TempDir,
    // Last: it looks for what is left when everything else is gone.
    ground: Ground,
}

impl Farm {
    /// A worker whose job is this script. `None` without an engine or without root.
    pub(crate) async fn new(script: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            buildyard_test_docker::skipped("a worker needs root");
            return None;
        }
        let ground = Ground::find().await?;
        let data = tempfile::tempdir().unwrap();
        std::fs::set_permissions(data.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let info = ground.engine().info().await.unwrap();
        let init = init_binary::write_to(data.path()).unwrap();
        let holders = Holders::new(ground.docker(), ground.name(), init.clone(), 0, holders::sockets);
        let executor = Executor {
            holders,
            engine: ground.docker(),
            instance: ground.name(),
            images: Images::open(data.path(), ground.name()).unwrap(),
            workspaces: Workspaces::open(data.path()).await.unwrap(),
            egress: Arc::new(Egress::new(None)),
            host_arch: info.arch,
            policy: Policy { allow_root: true, allow_host_network: false },
            init,
            artifacts: ArtifactLimits::default(),
            clock: Clock::start(),
            counters: MemoryCounters::of,
            attempts: data.path().join("attempts"),
        };
        let orders = watch::Sender::new(Orders { until: Some(Timestamp(u64::MAX)), ..Orders::default() });
        let place = Place::default();
        Some(Self { order: order(script), executor, log: SharedLog::default(), orders, place, data, ground })
    }

    pub(crate) fn step(mut self, name: &str, script: &str) -> Self {
        self.order.spec.steps.push(step(name, script));
        self
    }

    pub(crate) fn file(mut self, name: &str, content: Vec<u8>) -> Self {
        self.place.files.push((name.to_owned(), content));
        self
    }

    pub(crate) fn run_as_root(mut self) -> Self {
        self.order.spec.user = JobUser::Root;
        self
    }

    /// Lets the job reach the world.
    pub(crate) fn outwards(mut self) -> Self {
        self.order.spec.network = NetworkMode::Egress;
        self
    }

    /// Its name, which is that of its bridge too.
    pub(crate) fn bridge(&self) -> String {
        format!("byd-{}", self.ground.name().short())
    }

    /// From now on no name server knows the coordinator's address.
    pub(crate) fn lose_the_coordinator(&mut self) {
        // Too long for a name, so that none is asked.
        self.executor.egress =
            Arc::new(Egress::new(Some(&format!("http://{}.invalid:7317", "x".repeat(300)))));
    }

    /// Takes it away, rules and all.
    pub(crate) async fn remove_network(&self) {
        EgressNetwork::remove(self.engine(), &self.ground.name()).await.unwrap();
    }

    /// Lets the worker make network namespaces ahead.
    pub(crate) fn with_holders(mut self) -> Self {
        let Executor { engine, instance, init, .. } = &self.executor;
        let (engine, instance, init) = (engine.clone(), instance.clone(), init.clone());
        self.executor.holders = Holders::new(engine, instance, init, 2, holders::sockets);
        self
    }

    /// Takes them away.
    pub(crate) async fn close_holders(&self) {
        self.executor.holders.close().await;
    }

    /// The containers of this worker, by name.
    pub(crate) async fn containers(&self) -> Vec<String> {
        let found = self.engine().containers(&self.ground.name()).await.unwrap();
        found.into_iter().map(|container| container.name).collect()
    }

    /// The holder whose namespace the attempt joined.
    pub(crate) fn joined(&self) -> Option<String> {
        self.executor.files(self.order.attempt).handed().unwrap().unwrap().holder
    }

    /// Waits until one is there.
    pub(crate) async fn when_held(&self) {
        while self.executor.holders.idle() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// The next attempt at the same job.
    pub(crate) fn next_attempt(&mut self) {
        self.order.attempt.number.0 += 1;
        self.log = SharedLog::default();
    }

    /// Puts an empty file beside the running job.
    pub(crate) fn give_file(&self, name: &str) {
        let attempt = self.executor.attempts.join(self.order.attempt.to_string());
        std::fs::write(attempt.join("disk/workspace").join(name), "").unwrap();
    }

    async fn carry_out(&self, resumed: bool) -> Finished {
        let mut log = self.log.clone();
        let assignment = Assignment {
            order: &self.order,
            source: &self.place,
            log: &mut log,
            artifacts: &self.place,
            supervisor: &self.place,
            orders: self.orders.subscribe(),
        };
        if resumed {
            let handed = self.executor.files(self.order.attempt).handed().unwrap().unwrap();
            self.executor.resume(assignment, handed).await
        } else {
            self.executor.run(assignment).await
        }
    }

    /// Runs the job to its end, removes it, and gives its report.
    pub(crate) async fn run(&self) -> EndReport {
        self.run_beside(async {}).await
    }

    pub(crate) async fn run_beside(&self, other: impl Future<Output = ()>) -> EndReport {
        self.finish(false, other).await
    }

    pub(crate) async fn resume(&self) -> EndReport {
        self.finish(true, async {}).await
    }

    async fn finish(&self, resumed: bool, other: impl Future<Output = ()>) -> EndReport {
        let other = async {
            other.await;
            std::future::pending().await
        };
        let finished = tokio::select! {
            finished = self.carry_out(resumed) => finished,
            never = other => never,
        };
        self.executor.remove(self.order.attempt).await;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.data.path().to_str().unwrap()), "a mount is left");
        match finished {
            Finished::Report(report) => *report,
            Finished::Left(exit) => panic!("left: {exit:?}"),
        }
    }

    /// Runs, or goes on, until so many lines were printed, and then drops everything, as a kill does.
    pub(crate) async fn killed_after(&self, lines: usize, resumed: bool) {
        let arrived = self.log.0.lock().unwrap().arrived.clone();
        let enough = async {
            while self.lines() < lines {
                arrived.notified().await;
            }
        };
        tokio::select! {
            finished = self.carry_out(resumed) => panic!("ended too early: {finished:?}"),
            () = enough => {}
        }
        let mut log = self.log.0.lock().unwrap();
        let committed = log.committed;
        log.records.truncate(committed);
    }

    fn lines(&self) -> usize {
        let log = self.log.0.lock().unwrap();
        log.records[..log.committed]
            .iter()
            .flat_map(|(_, bytes)| bytes)
            .filter(|byte| **byte == b'\n')
            .count()
    }

    pub(crate) async fn when_started(&self) {
        self.place.started.notified().await;
    }

    /// Waits until the job printed this.
    pub(crate) async fn when_printed(&self, text: &str) {
        let arrived = self.log.0.lock().unwrap().arrived.clone();
        while !self.output().contains(text) {
            arrived.notified().await;
        }
    }

    pub(crate) fn tell(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.send_modify(change);
    }

    pub(crate) fn container(&self) -> ContainerId {
        ContainerId(self.executor.container_name(self.order.attempt))
    }

    pub(crate) fn engine(&self) -> &dyn buildyard_worker::engine::Engine {
        self.ground.engine()
    }

    /// What the job printed, both streams in the order of arrival.
    pub(crate) fn output(&self) -> String {
        let log = self.log.0.lock().unwrap();
        let printed = log.records.iter().filter(|(kind, _)| match kind {
            RecordKind::Stdout | RecordKind::Stderr => true,
            RecordKind::StepStart | RecordKind::StepEnd | RecordKind::Note => false,
        });
        let bytes: Vec<u8> = printed.flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn kinds(&self) -> Vec<RecordKind> {
        self.log.0.lock().unwrap().records.iter().map(|(kind, _)| *kind).collect()
    }

    pub(crate) fn log_length(&self) -> u64 {
        self.log.length()
    }
}

pub(crate) fn step(name: &str, script: &str) -> StepSpec {
    StepSpec {
        name: name.into(),
        run: script.into(),
        shell: Shell::Sh,
        dir: String::new(),
        env: Default::default(),
        timeout_ms: None,
    }
}

fn order(script: &str) -> AttemptOrder {
    let spec = JobSpec {
        name: "unit".into(),
        image: BUSYBOX.into(),
        labels: LabelExpr::Any,
        needs: Vec::new(),
        env: Default::default(),
        steps: vec![step("first", script)],
        resources: Resources {
            cpu_millis: 1_000,
            memory: ByteSize::from_mib(64),
            pids: 64,
            disk: ByteSize::from_mib(64),
        },
        timeout_ms: Millis::from_mins(5),
        queue_timeout_ms: Millis::from_mins(5),
        artifacts: Vec::new(),
        network: NetworkMode::None,
        user: JobUser::Build,
        checkout: CheckoutSpec { depth: None, tags: false },
    };
    AttemptOrder {
        attempt: RunId(1).job(0).attempt(1),
        fence: Fence(1),
        spec,
        source: SourceRef {
            repository: "/srv/git/app".into(),
            commit: "5e1c309dae7f45e0f39b1bf3ac3cd9db12e7d689".into(),
            ref_name: None,
        },
        pipeline: "app".into(),
        log_cap: ByteSize::from_mib(64),
    }
}
