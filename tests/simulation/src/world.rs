//! Fake time: everything that will happen, in order; and the network between coordinator and workers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use buildyard_scheduler::{Input, Reply};
use buildyard_types::worker::{EndReport, SyncRequest, SyncResponse};
use buildyard_types::{AttemptId, RunId, Timestamp};

use crate::audit::Audit;
use crate::coordinator::Coordinator;
use crate::host::Host;
use crate::people::People;
use crate::rng::Rng;
use crate::scenario::{Fault, Sabotage, Scenario};

/// Most events of one seed. More mean that coordinator and workers keep each other busy with nothing.
const MOST_STEPS: u64 = 400_000;

/// Something that will happen.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A worker's call arrives.
    CallArrives { host: usize, life: u64, request: SyncRequest },
    /// Its answer arrives.
    AnswerArrives { host: usize, life: u64, sequence: u64, answer: Box<Result<SyncResponse, String>> },
    /// Somebody's request arrives.
    RequestArrives { request: u64 },
    /// The answer arrives.
    RequestAnswered { request: u64, reply: Box<Reply> },
    /// Somebody asks again, having had no answer.
    AskAgain { request: u64 },
    /// The coordinator's next wake-up.
    CoordinatorWakes { life: u64 },
    /// A commit is durable.
    Committed { life: u64, batch: u64 },
    /// A held call has been held for long enough.
    HeldLongEnough { life: u64, host: usize, sequence: u64 },
    /// The file of a run was read.
    SourceRead { life: u64, run: RunId },
    /// The coordinator's process starts.
    CoordinatorStarts,
    /// A worker's process starts.
    WorkerStarts { host: usize },
    /// A worker's session wants a tick.
    SessionTick { host: usize, life: u64 },
    /// A call got no answer for long.
    CallTimesOut { host: usize, life: u64, sequence: u64 },
    /// An attempt's container is ready, or could not be made.
    Prepared { host: usize, life: u64, attempt: AttemptId, fails: bool },
    /// The steps of a container end by themselves.
    StepsEnd { host: usize, container: u64 },
    /// The steps of a container are killed.
    StepsKilled { host: usize, container: u64, why: Killed },
    /// Init looks whether it was renewed.
    InitLooks { host: usize, container: u64 },
    /// What an attempt left is sent to the coordinator.
    Upload { host: usize, life: u64, attempt: AttemptId, report: Box<EndReport> },
    /// What an attempt left on its host is removed.
    CleanUp { host: usize, life: u64, attempt: AttemptId },
    /// A container that the journal does not know is swept.
    Sweep { host: usize, container: u64 },
    /// Something goes wrong.
    Fault(Fault),
    /// A cut or slow network is as before.
    NetworkMended { host: Option<usize>, up: bool, down: bool },
    /// The network is as fast as before.
    NetworkFast,
    /// Commits are as fast as before.
    CommitsFast,
    /// The coordinator takes logs and artifacts again.
    RoomAgain,
    /// A host can work again.
    FitAgain { host: usize },
    /// From here on nothing goes wrong any more.
    FaultsEnd,
    /// A host that is dead for good is removed by an administrator.
    RemoveDead { host: usize },
}

/// Why steps were killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Killed {
    /// The worker was told to stop the attempt.
    Stopped,
    /// The worker or init fenced.
    Fenced,
    /// The host lost its power.
    PowerOff,
}

/// The network as it is now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Network {
    /// How many cuts are on the way up, and down, per host.
    pub(crate) cuts: BTreeMap<usize, (u32, u32)>,
    pub(crate) slow: Vec<u64>,
}

/// Everything.
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) scenario: Scenario,
    pub(crate) sabotage: Sabotage,
    pub(crate) faulty: bool,
    pub(crate) coordinator: Coordinator,
    pub(crate) hosts: Vec<Host>,
    pub(crate) people: People,
    pub(crate) network: Network,
    pub(crate) audit: Audit,
    pub(crate) steps: u64,
    order: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    next_event: u64,
    trace: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(seed: u64, sabotage: Sabotage, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let scenario = Scenario::draw(&mut rng.fork(), sabotage);
        let mut world = Self {
            now: 1_000_000,
            rng: rng.fork(),
            sabotage,
            faulty: true,
            coordinator: Coordinator::default(),
            hosts: scenario.hosts.iter().map(|plan| Host::new(plan.clone())).collect(),
            people: People::default(),
            network: Network::default(),
            audit: Audit::new(&scenario),
            steps: 0,
            order: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            trace: trace.then(Vec::new),
            scenario,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.at(0, Event::CoordinatorStarts);
        for host in 0..self.hosts.len() {
            let after = self.rng.between(0, 20_000);
            self.at(after, Event::WorkerStarts { host });
        }
        for (after, fault) in self.scenario.faults.clone() {
            self.at(after, Event::Fault(fault));
        }
        self.at(self.scenario.faults_end, Event::FaultsEnd);
        self.people_begin();
    }

    /// Lets everything happen. Gives the first thing that is wrong.
    pub(crate) fn play(&mut self) -> Result<(), String> {
        // Long enough for three attempts of everything, one after the other, at their limits.
        let patience = self.now + self.scenario.faults_end + 4 * 3_600_000;
        while let Some(Reverse((at, id))) = self.order.pop() {
            let Some(event) = self.events.remove(&id) else {
                continue;
            };
            self.now = at;
            self.steps += 1;
            self.note(|| format!("{event:?}"));
            self.happens(event);
            if let Some(broken) = self.audit.broken.first() {
                return Err(broken.clone());
            }
            if self.steps > MOST_STEPS {
                return Err("broken: coordinator and workers keep each other busy with nothing".into());
            }
            if !self.faulty && self.is_done() {
                return self.audit_the_end();
            }
            if at > patience {
                return Err(format!("broken: once faults stop, every job finishes: {}", self.unfinished()));
            }
        }
        Err("broken: nothing is left to happen, and not everything is finished".into())
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::CallArrives { host, life, request } => self.call_arrives(host, life, request),
            Event::AnswerArrives { host, life, sequence, answer } => {
                self.answer_arrives(host, life, sequence, *answer);
            }
            Event::RequestArrives { request } => self.request_arrives(request),
            Event::RequestAnswered { request, reply } => self.request_answered(request, *reply),
            Event::AskAgain { request } => self.ask(request),
            Event::CoordinatorWakes { life } => self.coordinator_wakes(life),
            Event::Committed { life, batch } => self.committed(life, batch),
            Event::HeldLongEnough { life, host, sequence } => self.held_long_enough(life, host, sequence),
            Event::SourceRead { life, run } => self.source_read(life, run),
            Event::CoordinatorStarts => self.coordinator_starts(),
            Event::WorkerStarts { host } => self.worker_starts(host),
            Event::SessionTick { host, life } => self.session_tick(host, life),
            Event::CallTimesOut { host, life, sequence } => self.call_times_out(host, life, sequence),
            Event::Prepared { host, life, attempt, fails } => self.prepared(host, life, attempt, fails),
            Event::StepsEnd { host, container } => self.steps_end(host, container),
            Event::StepsKilled { host, container, why } => self.steps_killed(host, container, why),
            Event::InitLooks { host, container } => self.init_looks(host, container),
            Event::Upload { host, life, attempt, report } => self.upload(host, life, attempt, *report),
            Event::CleanUp { host, life, attempt } => self.clean_up(host, life, attempt),
            Event::Sweep { host, container } => self.sweep(host, container),
            Event::Fault(fault) => self.fault(fault),
            Event::NetworkMended { host, up, down } => self.cut(host, up, down, false),
            Event::NetworkFast => {
                self.network.slow.pop();
            }
            Event::CommitsFast => self.coordinator.slow_commits = None,
            Event::RoomAgain => self.coordinator.full_disks -= 1,
            Event::FitAgain { host } => self.hosts[host].unfit = None,
            Event::FaultsEnd => self.faults_end(),
            Event::RemoveDead { host } => {
                let worker = self.hosts[host].worker(host);
                self.want(Input::RemoveWorker { worker });
            }
        }
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::CoordinatorDies { back_after, commit_survives } => {
                self.coordinator_dies(commit_survives);
                self.at(back_after, Event::CoordinatorStarts);
            }
            Fault::CommitFails => self.coordinator.next_commit_fails = true,
            Fault::SlowCommits { each, lasting } => {
                self.coordinator.slow_commits = Some(each);
                self.at(lasting, Event::CommitsFast);
            }
            Fault::WorkerDies { host, back_after, journal_lost, power_off } => {
                self.worker_dies(host, journal_lost, power_off);
                self.at(back_after, Event::WorkerStarts { host });
            }
            Fault::Cut { host, up, down, lasting } => {
                self.cut(host, up, down, true);
                self.at(lasting, Event::NetworkMended { host, up, down });
            }
            Fault::SlowNetwork { most, lasting } => {
                self.network.slow.push(most);
                self.at(lasting, Event::NetworkFast);
            }
            Fault::DiskFull { lasting } => {
                self.coordinator.full_disks += 1;
                self.at(lasting, Event::RoomAgain);
            }
            Fault::Cordon { host, lasting } => {
                let worker = self.hosts[host].worker(host);
                self.want(Input::Cordon { worker, cordoned: true });
                self.want_later(lasting, Input::Cordon { worker, cordoned: false });
            }
            Fault::Unfit { host, lasting } => {
                self.hosts[host].unfit = Some("the engine does not answer".into());
                self.at(lasting, Event::FitAgain { host });
            }
        }
    }

    /// Whatever is still wrong is mended now, or within the time that it was given.
    fn faults_end(&mut self) {
        self.faulty = false;
        self.coordinator.next_commit_fails = false;
        let cordons = |(_, fault): &(u64, Fault)| matches!(fault, Fault::Cordon { .. });
        if self.scenario.faults.iter().any(cordons) {
            // The requests may have overtaken each other.
            for host in 0..self.hosts.len() {
                let worker = self.hosts[host].worker(host);
                self.want_later(180_000, Input::Cordon { worker, cordoned: false });
            }
        }
        for host in 0..self.hosts.len() {
            if self.hosts[host].plan.dies {
                self.worker_dies(host, false, true);
                self.hosts[host].dead = true;
                self.at(60_000, Event::RemoveDead { host });
            }
        }
    }

    fn cut(&mut self, host: Option<usize>, up: bool, down: bool, begins: bool) {
        let change = |count: &mut u32, concerned: bool| match (concerned, begins) {
            (true, true) => *count += 1,
            (true, false) => *count -= 1,
            (false, true | false) => {}
        };
        for each in 0..self.hosts.len() {
            if host.is_none_or(|host| host == each) {
                let (ups, downs) = self.network.cuts.entry(each).or_default();
                change(ups, up);
                change(downs, down);
            }
        }
    }

    /// Whether a message gets through to the coordinator (or from it), as far as cuts go.
    pub(crate) fn connected(&self, host: usize) -> (bool, bool) {
        let (up, down) = self.network.cuts.get(&host).copied().unwrap_or_default();
        (up == 0, down == 0)
    }

    /// Sends a message: it is lost, or late, or arrives twice, in any order.
    pub(crate) fn send(&mut self, gets_through: bool, event: Event) {
        if !gets_through || (self.faulty && self.rng.percent(self.scenario.loss)) {
            self.note(|| format!("  lost: {event:?}"));
            return;
        }
        if self.faulty && self.rng.percent(self.scenario.repeat) {
            let delay = self.delay();
            self.at(delay, event.clone());
        }
        let delay = self.delay();
        self.at(delay, event);
    }

    fn delay(&mut self) -> u64 {
        match self.network.slow.last().copied() {
            Some(most) => self.rng.between(1, most),
            None => self.rng.between(1, 40),
        }
    }

    /// Something will happen after so long.
    pub(crate) fn at(&mut self, after: u64, event: Event) {
        self.order.push(Reverse((self.now + after, self.next_event)));
        self.events.insert(self.next_event, event);
        self.next_event += 1;
    }

    pub(crate) fn time(&self) -> Timestamp {
        Timestamp(self.now)
    }

    /// Keeps a line of the trace, when there is one.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.3} {}", (now - 1_000_000) as f64 / 1_000.0, line()));
        }
    }

    pub(crate) fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default()
    }
}
