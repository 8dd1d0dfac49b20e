//! What a seed stands for: the farm, the work, and what goes wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_scheduler::Settings;
use buildyard_types::job::{CheckoutSpec, JobUser, NetworkMode, Pipeline, Resources, Shell, StepSpec};
use buildyard_types::outcome::InfraCause;
use buildyard_types::worker::{Capacity, Offer};
use buildyard_types::{ByteSize, JobSpec, Millis, Outcome};

use crate::rng::Rng;

/// How long a coordinator may be away, without a sign that it is, when no attempt is to be lost: the worker learns
/// of it by the limit of its call, half of the six seconds that it has.
const LONGEST_ABSENCE: u64 = 2_800;

/// Something in the farm that is made wrong on purpose, to see that the audit notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing: the farm as it is.
    Nothing,
    /// The coordinator adds no grace to a lease, and neither worker nor init fences.
    NobodyFences,
    /// Answers leave the coordinator before their records are committed.
    AnswerBeforeCommit,
    /// The store loses the end of every fifth job.
    ForgetfulStore,
    /// A worker's shell begins steps without asking its session whether it may.
    StartsUnasked,
    /// The coordinator hears no worker out after its restart: it calls all leases lost at once.
    NoTermAfterRestart,
    /// The coordinator holds calls as long as it likes, not as long as their workers can wait.
    HoldsTooLong,
    /// A worker does not say that an attempt has ended and is only sending.
    SendsUnsaid,
    /// The coordinator forgets what jobs need.
    DropsNeeds,
    /// It puts jobs that passed down as skipped.
    PutsDownSkipped,
    /// It puts jobs that passed down as cancelled.
    PutsDownCancelled,
    /// It puts jobs that passed down as failed by a part of the farm that did nothing wrong.
    PutsDownInfra,
}

impl Sabotage {
    /// What is put down in the place of a job that passed.
    pub(crate) fn false_end(self) -> Option<Outcome> {
        match self {
            Sabotage::PutsDownSkipped => Some(Outcome::Skipped { reason: "for fun".into() }),
            Sabotage::PutsDownCancelled => Some(Outcome::Cancelled { by: "by nobody".into() }),
            Sabotage::PutsDownInfra => {
                Some(Outcome::Infra { cause: InfraCause::Source, detail: "for fun".into() })
            }
            Sabotage::Nothing
            | Sabotage::NobodyFences
            | Sabotage::AnswerBeforeCommit
            | Sabotage::ForgetfulStore
            | Sabotage::StartsUnasked
            | Sabotage::NoTermAfterRestart
            | Sabotage::HoldsTooLong
            | Sabotage::SendsUnsaid
            | Sabotage::DropsNeeds => None,
        }
    }
}

/// What the steps of a job do when nobody disturbs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// They pass after so long.
    Pass(u64),
    /// They fail after so long, with this code.
    Fail(u64, i32),
    /// They reach the memory limit after so long.
    OutOfMemory(u64),
    /// They print for ever, and are cut at the log's cap after so long.
    Flood(u64),
    /// They never end by themselves.
    Forever,
}

/// A worker's host.
#[derive(Debug, Clone)]
pub struct HostPlan {
    /// What it offers.
    pub offer: Offer,
    /// Its pools.
    pub pools: BTreeSet<String>,
    /// Its clock runs ahead by this.
    pub clock_ahead: u64,
    /// Whether what its journal does not know is swept before its first call, or some time later.
    pub sweeps_late: bool,
    /// Whether it is dead for good when the faults end.
    pub dies: bool,
}

/// A pipeline that somebody submits.
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// When.
    pub submit_at: u64,
    /// What the file says.
    pub pipeline: Pipeline,
    /// What the jobs do, in file order.
    pub scripts: Vec<Script>,
    /// How long each job's container takes to obey a stop.
    pub obeys_after: Vec<u64>,
    /// When somebody cancels it: all of it, or one job.
    pub cancel: Option<(u64, Option<u32>)>,
    /// Whether its commit cannot be fetched.
    pub source_fails: bool,
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The coordinator's process dies and comes back.
    CoordinatorDies {
        /// After so long.
        back_after: u64,
        /// Whether a commit under way becomes durable all the same.
        commit_survives: bool,
    },
    /// The next commit fails.
    CommitFails,
    /// Commits take so long, for so long.
    SlowCommits {
        /// Each.
        each: u64,
        /// All together.
        lasting: u64,
    },
    /// A worker's process dies and comes back.
    WorkerDies {
        /// Which host.
        host: usize,
        /// After so long.
        back_after: u64,
        /// Whether its journal is gone.
        journal_lost: bool,
        /// Whether its containers die with it.
        power_off: bool,
    },
    /// Nothing reaches the coordinator from a host, or the host from the coordinator, or either.
    Cut {
        /// Which host; `None`: all.
        host: Option<usize>,
        /// Calls are lost.
        up: bool,
        /// Answers are lost.
        down: bool,
        /// For so long.
        lasting: u64,
    },
    /// Messages take up to so long.
    SlowNetwork {
        /// Each.
        most: u64,
        /// All together.
        lasting: u64,
    },
    /// The coordinator takes neither logs nor artifacts.
    DiskFull {
        /// For so long.
        lasting: u64,
    },
    /// Somebody cordons a host, and uncordons it later.
    Cordon {
        /// Which host.
        host: usize,
        /// For so long.
        lasting: u64,
    },
    /// A host says that it cannot work.
    Unfit {
        /// Which host.
        host: usize,
        /// For so long.
        lasting: u64,
    },
}

/// Everything that a seed stands for.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The farm's numbers.
    pub settings: Settings,
    /// Workers.
    pub hosts: Vec<HostPlan>,
    /// Work.
    pub runs: Vec<RunPlan>,
    /// What goes wrong, and when.
    pub faults: Vec<(u64, Fault)>,
    /// Until when.
    pub faults_end: u64,
    /// Messages that are lost, in a hundred.
    pub loss: u64,
    /// Messages that arrive twice, in a hundred.
    pub repeat: u64,
    /// Preparations that fail by the farm's fault, in a hundred, while faults last.
    pub prepare_fails: u64,
    /// Preparations that hang until they are stopped, in a hundred, while faults last.
    pub prepare_hangs: u64,
    /// Nothing goes wrong that may cost an attempt.
    pub calm: bool,
}

impl Scenario {
    /// Whether anything happens by which a part of the farm could fail an attempt.
    pub(crate) fn may_fail(&self, cause: InfraCause) -> bool {
        let powers_off =
            |(_, fault): &(u64, Fault)| matches!(fault, Fault::WorkerDies { power_off: true, .. });
        let dies = self.hosts.iter().any(|host| host.dies);
        match cause {
            // Silence, of the network or of either side; lost journals and preparations that hang.
            InfraCause::WorkerLost | InfraCause::SelfFenced | InfraCause::Worker => !self.is_calm(),
            InfraCause::Engine => dies || self.faults.iter().any(powers_off),
            InfraCause::Pull => self.prepare_fails > 0,
            // No disk of a worker and no checkout ever fails here.
            InfraCause::WorkerDisk | InfraCause::Source => false,
            InfraCause::StopIgnored => {
                let slow = |run: &RunPlan| run.obeys_after.iter().any(|after| *after > 10_000);
                !self.is_calm() || self.runs.iter().any(slow)
            }
        }
    }

    /// Whether nothing goes wrong that may cost an attempt.
    pub(crate) fn is_calm(&self) -> bool {
        let nobody_dies = self.hosts.iter().all(|host| !host.dies);
        let nothing = self.faults.is_empty() && self.loss == 0 && self.prepare_fails == 0 && nobody_dies;
        self.calm || nothing
    }

    /// The scenario of a seed.
    pub fn draw(rng: &mut Rng, sabotage: Sabotage) -> Self {
        let settings = Settings {
            grace_ms: Millis(if sabotage == Sabotage::NobodyFences { 0 } else { 10_000 }),
            // Short ones, so that they are met.
            prepare_limit_ms: Millis::from_secs(90),
            limit_slack_ms: Millis::from_secs(45),
            ..Settings::default()
        };
        let faults_end = rng.between(60_000, 240_000);
        let hosts: Vec<HostPlan> = (0..rng.between(2, 4)).map(|index| host(rng, index)).collect();
        let runs = (0..rng.between(2, 7)).map(|index| run(rng, index, faults_end)).collect();
        let faults = faults(rng, hosts.len(), faults_end);
        let trouble = *rng.pick(&[0, 1, 5, 15]);
        let scenario = Self {
            settings,
            hosts,
            runs,
            faults,
            faults_end,
            loss: *rng.pick(&[0, 1, 5, 20]),
            repeat: *rng.pick(&[0, 2, 10]),
            prepare_fails: trouble,
            prepare_hangs: trouble / 4,
            calm: false,
        };
        if rng.percent(20) { scenario.with_short_absences(rng) } else { scenario }
    }

    /// The same work on a farm whose coordinator is away now and then, or cut off from a host, or full, for as long
    /// as no attempt may notice.
    fn with_short_absences(self, rng: &mut Rng) -> Self {
        let mut faults = Vec::new();
        let mut at = 0;
        while at < self.faults_end {
            at += rng.between(20_000, 30_000);
            let lasting = rng.between(50, LONGEST_ABSENCE);
            let fault = if rng.percent(50) {
                Fault::CoordinatorDies { back_after: lasting, commit_survives: rng.percent(50) }
            } else {
                let host = rng.between(0, self.hosts.len() as u64 - 1) as usize;
                Fault::Cut { host: Some(host), up: true, down: true, lasting }
            };
            faults.push((at, fault));
        }
        if rng.percent(50) {
            // Longer than any limit of a job and its slack.
            let at = rng.between(0, self.faults_end);
            faults.push((at, Fault::DiskFull { lasting: 240_000 }));
        }
        let hosts = self.hosts.into_iter().map(|host| HostPlan { dies: false, ..host }).collect();
        Self { hosts, faults, loss: 0, prepare_fails: 0, prepare_hangs: 0, calm: true, ..self }
    }
}

fn host(rng: &mut Rng, index: u64) -> HostPlan {
    // The first host can take every job, so that a host which dies for good strands none.
    let general = index == 0;
    let arch = if general || rng.percent(70) { "amd64" } else { "arm64" };
    let slots = if general { 2 } else { rng.between(1, 3) as u32 };
    let cpus = if general { 4 } else { rng.between(1, 4) };
    let pools: &[&str] = if general || rng.percent(30) { &["big"] } else { &[] };
    let facts = [("os", "linux"), ("arch", arch)].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let images = if rng.percent(50) { vec!["c-toolchain:12".to_owned()] } else { Vec::new() };
    let capacity = Capacity {
        slots,
        cpu_millis: cpus * 1_000,
        memory: ByteSize::from_gib(8),
        disk: ByteSize::from_gib(100),
    };
    HostPlan {
        offer: Offer { facts: facts.into(), capacity, images, version: "0.1.0".into(), ..Offer::default() },
        pools: pools.iter().map(|pool| (*pool).to_owned()).collect(),
        clock_ahead: rng.between(0, 10_000_000),
        sweeps_late: rng.percent(50),
        dies: !general && rng.percent(10),
    }
}

fn run(rng: &mut Rng, index: u64, faults_end: u64) -> RunPlan {
    let jobs: Vec<JobSpec> = (0..rng.between(1, 5)).map(|job| spec(rng, job)).collect();
    let scripts = jobs.iter().map(|_| script(rng)).collect();
    let slow_to_obey =
        |rng: &mut Rng| if rng.percent(10) { rng.between(5_000, 120_000) } else { rng.between(0, 3_000) };
    let obeys_after = jobs.iter().map(|_| slow_to_obey(rng)).collect();
    let one_job = rng.percent(50).then(|| rng.between(0, jobs.len() as u64 - 1) as u32);
    let cancel = rng.percent(25).then(|| (rng.between(0, 60_000), one_job));
    RunPlan {
        submit_at: rng.between(0, faults_end),
        pipeline: Pipeline { name: format!("pipeline-{index}"), file: "pipeline.toml".into(), jobs },
        scripts,
        obeys_after,
        cancel,
        source_fails: rng.percent(3),
    }
}

fn script(rng: &mut Rng) -> Script {
    let length = if rng.percent(20) { rng.between(20_000, 90_000) } else { rng.between(10, 10_000) };
    match rng.between(0, 19) {
        0..=13 => Script::Pass(length),
        14..=16 => Script::Fail(length, *rng.pick(&[1, 2, 137])),
        17 => Script::OutOfMemory(length),
        18 => Script::Flood(length),
        _ => Script::Forever,
    }
}

fn spec(rng: &mut Rng, index: u64) -> JobSpec {
    let needs: Vec<String> =
        (0..index).filter(|_| rng.percent(35)).map(|need| format!("job-{need}")).collect();
    let labels = *rng.pick(&["", "os=linux", "os=linux", "arch=amd64", "big", "arch=amd64 && big"]);
    let step = StepSpec {
        name: "test".into(),
        run: "make test".into(),
        shell: Shell::Sh,
        dir: String::new(),
        env: BTreeMap::new(),
        timeout_ms: None,
    };
    JobSpec {
        name: format!("job-{index}"),
        image: (*rng.pick(&["c-toolchain:12", "debian:12"])).to_owned(),
        labels: labels.parse().expect("the expressions above are good"),
        needs,
        env: BTreeMap::new(),
        steps: vec![step],
        resources: Resources {
            cpu_millis: *rng.pick(&[500, 1_000, 2_000]),
            memory: ByteSize::from_gib(*rng.pick(&[1, 1, 4])),
            pids: 512,
            disk: ByteSize::from_gib(10),
        },
        timeout_ms: Millis(rng.between(15_000, 120_000)),
        queue_timeout_ms: if rng.percent(5) { Millis::from_secs(30) } else { Millis::from_mins(120) },
        artifacts: Vec::new(),
        network: NetworkMode::None,
        user: JobUser::Build,
        checkout: CheckoutSpec { depth: None, tags: false },
    }
}

fn faults(rng: &mut Rng, hosts: usize, faults_end: u64) -> Vec<(u64, Fault)> {
    let count = *rng.pick(&[0, 3, 8, 15]);
    let mut faults: Vec<(u64, Fault)> =
        (0..count).map(|_| (rng.between(0, faults_end), fault(rng, hosts))).collect();
    faults.sort_by_key(|(at, _)| *at);
    faults
}

fn fault(rng: &mut Rng, hosts: usize) -> Fault {
    let any_host = |rng: &mut Rng| rng.between(0, hosts as u64 - 1) as usize;
    // Around the times that matter: shorter than the margin, than the lease, than lease and grace, longer.
    let long = |rng: &mut Rng| match rng.between(0, 3) {
        0 => rng.between(100, 3_000),
        1 => rng.between(3_000, 15_000),
        2 => rng.between(10_000, 30_000),
        _ => rng.between(25_000, 90_000),
    };
    match rng.between(0, 12) {
        0 | 1 => Fault::CoordinatorDies { back_after: long(rng), commit_survives: rng.percent(50) },
        2 => Fault::CommitFails,
        3 => Fault::SlowCommits { each: rng.between(100, 8_000), lasting: long(rng) },
        4..=6 => Fault::WorkerDies {
            host: any_host(rng),
            back_after: long(rng),
            journal_lost: rng.percent(20),
            power_off: rng.percent(20),
        },
        7 | 8 => {
            let (up, down) = *rng.pick(&[(true, true), (true, true), (true, false), (false, true)]);
            let host = rng.percent(80).then(|| any_host(rng));
            Fault::Cut { host, up, down, lasting: long(rng) }
        }
        9 => Fault::SlowNetwork { most: rng.between(500, 20_000), lasting: long(rng) },
        10 => Fault::DiskFull { lasting: 2 * long(rng) },
        11 => Fault::Cordon { host: any_host(rng), lasting: long(rng) },
        _ => Fault::Unfit { host: any_host(rng), lasting: long(rng) },
    }
}
