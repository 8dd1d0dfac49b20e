//! Network namespaces that are there before a job wants one.
//!
//! About half of what a start costs the engine is the network: it makes a namespace and has a program of its own set it
//! up. A container that joins the namespace of another costs none of that. So containers that only hold a namespace
//! ("holders") are made ahead, each is lent to one attempt at a time, and the attempt's container joins it. What was
//! measured is in `docs/decisions/0004-network-holders.md`.
//!
//! Why an attempt finds nothing of the one before it: no job has the right to change its namespace (no `NET_ADMIN`, no
//! namespaces of its own), its processes and with them its sockets end with its container, and what the kernel keeps
//! beyond that, such as connections in `TIME_WAIT` that would keep a port busy for a minute, is looked for before a
//! holder is lent again: one that holds any socket more than at its beginning is thrown away. Jobs of root get a network
//! of their own, since a holder's `/etc/hosts` is root's to write.
//!
//! At most so many as [`Holders::new`] was told, each unused one for [`IDLE_LIMIT`], none for longer than [`AGE_LIMIT`]; a
//! worker that ends takes them along, and the next start sweeps what a killed one left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use buildyard_types::{AttemptId, ByteSize};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::engine::{
    ContainerId, ContainerNetwork, ContainerSpec, Engine, EngineError, Instance, Limits, Mount, Owner,
};
use crate::init_binary::IN_CONTAINER;

/// How long a holder waits for an attempt. It keeps the image that it was made of from being removed.
pub const IDLE_LIMIT: Duration = Duration::from_secs(15 * 60);
/// How long one serves at all: what the engine gave it, such as the host's name servers, may change.
pub const AGE_LIMIT: Duration = Duration::from_secs(60 * 60);
/// How often is looked for holders that waited too long.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Nobody: the user of a process that only waits.
const NOBODY: Owner = Owner { uid: 65_534, gid: 65_534 };
/// What a holder may use. The engine's own program runs in these limits first and needs nearly all of it.
const LIMITS: Limits = Limits { cpu_millis: 1_000, memory: ByteSize::from_mib(32), pids: 64 };
/// Most bytes of one of the kernel's lists of sockets that are read. A list that is longer tells enough.
const MAX_LIST_BYTES: u64 = 256 * 1024;

/// What a holder is to be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The network that its namespace is on.
    pub network: ContainerNetwork,
    /// Any image: nothing of it is run.
    pub image: String,
}

/// The sockets of the namespace of a process: [`sockets`].
pub type Sockets = fn(u32) -> io::Result<BTreeSet<String>>;

/// All holders of a worker.
pub struct Holders {
    engine: Arc<dyn Engine>,
    instance: Instance,
    init: PathBuf,
    most: usize,
    sockets: Sockets,
    state: Mutex<State>,
    /// Holders that are being made or taken away.
    work: TaskTracker,
}

#[derive(Default)]
struct State {
    idle: Vec<Holder>,
    lent: BTreeMap<AttemptId, Lent>,
    /// Holders that are being made.
    coming: usize,
    closed: bool,
}

struct Holder {
    name: String,
    made_as: Wanted,
    pid: u32,
    /// The sockets that it had when it was made: those of the engine's resolver.
    at_first: BTreeSet<String>,
    made_at: Instant,
    idle_since: Instant,
}

enum Lent {
    Ours(Holder),
    /// Lent by an earlier process of this worker.
    Adopted(String),
}

impl Lent {
    fn name(&self) -> &str {
        match self {
            Lent::Ours(holder) => &holder.name,
            Lent::Adopted(name) => name,
        }
    }
}

impl Holders {
    /// Keeps at most so many; none at all with 0.
    pub fn new(
        engine: Arc<dyn Engine>,
        instance: Instance,
        init: PathBuf,
        most: usize,
        sockets: Sockets,
    ) -> Arc<Self> {
        let (state, work) = (Mutex::default(), TaskTracker::new());
        let holders = Arc::new(Self { engine, instance, init, most, sockets, state, work });
        let watched = Arc::downgrade(&holders);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let Some(holders) = watched.upgrade() else { return };
                holders.drop_idle(Instant::now());
            }
        });
        holders
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock only means that another thread panicked between two changes of a list.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an attempt's container joins instead of that network; `None` if there is no holder for it.
    pub fn lend(&self, attempt: AttemptId, network: &ContainerNetwork) -> Option<ContainerNetwork> {
        let mut state = self.state();
        // The one that was used last: the others may become superfluous.
        let found = state.idle.iter().rposition(|holder| holder.made_as.network == *network)?;
        let holder = state.idle.remove(found);
        let joined = ContainerNetwork::Of(ContainerId(holder.name.clone()));
        state.lent.insert(attempt, Lent::Ours(holder));
        Some(joined)
    }

    /// How many wait for an attempt.
    pub fn idle(&self) -> usize {
        self.state().idle.len()
    }

    /// The name of the holder that an attempt has.
    pub fn lent_to(&self, attempt: AttemptId) -> Option<String> {
        self.state().lent.get(&attempt).map(|lent| lent.name().to_owned())
    }

    /// An attempt that an earlier process of this worker began has this one.
    pub fn adopt(&self, attempt: AttemptId, name: String) {
        self.state().lent.insert(attempt, Lent::Adopted(name));
    }

    /// Takes an attempt's holder back, if it has one. Its container must be gone.
    pub fn give_back(self: &Arc<Self>, attempt: AttemptId) {
        let Some(lent) = self.state().lent.remove(&attempt) else { return };
        match lent {
            Lent::Adopted(name) => self.throw_away(name),
            Lent::Ours(holder) => {
                // One that is old has the name servers of when it was made.
                let fresh = holder.made_at.elapsed() < AGE_LIMIT;
                let clean = fresh && (self.sockets)(holder.pid).is_ok_and(|now| now == holder.at_first);
                let mut state = self.state();
                if clean && !state.closed {
                    state.idle.push(Holder { idle_since: Instant::now(), ..holder });
                    return;
                }
                drop(state);
                self.throw_away(holder.name);
                self.make(holder.made_as);
            }
        }
    }

    /// Throws an attempt's holder away: its container could not join it.
    pub fn give_up(self: &Arc<Self>, attempt: AttemptId) {
        if let Some(lent) = self.state().lent.remove(&attempt) {
            self.throw_away(lent.name().to_owned());
        }
    }

    /// Makes one for a later attempt, beside whatever else goes on, unless there are enough.
    pub fn make(self: &Arc<Self>, wanted: Wanted) {
        {
            let mut state = self.state();
            if state.closed || state.idle.len() + state.lent.len() + state.coming >= self.most {
                return;
            }
            state.coming += 1;
        }
        let holders = self.clone();
        self.work.spawn(async move {
            let name = format!("buildyard-{}-net-{:08x}", holders.instance.short(), rand::random::<u32>());
            let made = holders.make_named(&name, wanted).await;
            let superfluous = {
                let mut state = holders.state();
                state.coming -= 1;
                match made {
                    Ok(holder) if !state.closed => {
                        state.idle.push(holder);
                        None
                    }
                    Ok(_) => Some(name),
                    Err(error) => {
                        tracing::warn!(error = %error, "no network namespace is made ahead");
                        Some(name)
                    }
                }
            };
            if let Some(name) = superfluous {
                holders.remove(&name).await;
            }
        });
    }

    async fn make_named(&self, name: &str, wanted: Wanted) -> Result<Holder, EngineError> {
        let spec = ContainerSpec {
            name: name.to_owned(),
            labels: [self.instance.label()].into(),
            image: wanted.image.clone(),
            user: NOBODY,
            entrypoint: vec![IN_CONTAINER.to_owned(), "hold".to_owned()],
            env: BTreeMap::new(),
            mounts: vec![Mount {
                source: self.init.clone(),
                target: IN_CONTAINER.to_owned(),
                read_only: true,
            }],
            network: wanted.network.clone(),
            hostname: "buildyard".to_owned(),
            limits: LIMITS,
            capabilities: BTreeSet::new(),
            open_files: 64,
        };
        let id = self.engine.create(&spec).await?;
        let pid = self.engine.start(&id).await?.pid().unwrap_or(0);
        let at_first = (self.sockets)(pid).map_err(|source| EngineError::Refused {
            call: "hold a network namespace".to_owned(),
            message: format!("its sockets cannot be listed: {source}"),
        })?;
        let now = Instant::now();
        Ok(Holder { name: name.to_owned(), made_as: wanted, pid, at_first, made_at: now, idle_since: now })
    }

    fn throw_away(self: &Arc<Self>, name: String) {
        let holders = self.clone();
        self.work.spawn(async move { holders.remove(&name).await });
    }

    async fn remove(&self, name: &str) {
        // One that stays carries the worker's label: the next start sweeps it.
        if let Err(error) = self.engine.remove(&ContainerId(name.to_owned())).await {
            tracing::warn!(container = name, error = %error, "a holder of a network namespace stays for now");
        }
    }

    fn drop_idle(self: &Arc<Self>, now: Instant) {
        let waited_too_long = |holder: &mut Holder| now.duration_since(holder.idle_since) >= IDLE_LIMIT;
        let dropped: Vec<Holder> = self.state().idle.extract_if(.., waited_too_long).collect();
        for holder in dropped {
            self.throw_away(holder.name);
        }
    }

    /// Takes away all that are not lent, and from now on each that comes back; none is made any more. Returns when
    /// they are gone.
    pub async fn close(self: &Arc<Self>) {
        let idle = {
            let mut state = self.state();
            state.closed = true;
            std::mem::take(&mut state.idle)
        };
        for holder in idle {
            self.throw_away(holder.name);
        }
        self.work.close();
        self.work.wait().await;
    }
}

/// The sockets of the namespace of a process, as the kernel lists them: those that belong to no process any more and only
/// wait for late packets among them.
pub fn sockets(pid: u32) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for list in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6", "unix"] {
        let mut text = String::new();
        match File::open(format!("/proc/{pid}/net/{list}")) {
            Ok(file) => file.take(MAX_LIST_BYTES).read_to_string(&mut text)?,
            // A kernel without IPv6. A process that is gone has no list at all.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !matches!(list, "tcp" | "unix") => {
                continue;
            }
            Err(error) => return Err(error),
        };
        found.extend(text.lines().skip(1).map(|line| format!("{list} {}", identity(list, line))));
    }
    Ok(found)
}

/// What tells a socket from others of its list; queues and timers change.
fn identity(list: &str, line: &str) -> String {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let field = |index: usize| fields.get(index).copied().unwrap_or_default();
    match list {
        "unix" => field(6).to_owned(),
        _ => format!("{} {} {}", field(1), field(2), field(9)),
    }
}

#[cfg(test)]
mod tests;
