//! The rules of what a job may do in its container, and what it finds there. Pure: values in, values out.
//!
//! [`judge`] says whether this worker's policy allows a job, [`container`] writes down its container, and
//! [`environment`] its variables. What the variables mean is in `docs/execution-contract.md`; a test holds that page
//! against [`VARIABLES`].

use std::collections::{BTreeMap, BTreeSet};

use buildyard_types::JobSpec;
use buildyard_types::job::{JobUser, NetworkMode, Resources};
use buildyard_types::worker::AttemptOrder;

use crate::engine::{Capability, ContainerNetwork, ContainerSpec, Instance, Limits, Mount, Owner};
use crate::image::ImageFacts;
use crate::workspace::{HOME, WORKSPACE};

/// What the owner of this worker allows beyond the ordinary. The default allows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Whether jobs may run as uid 0 of their container.
    pub allow_root: bool,
    /// Whether jobs may share the network of the host.
    pub allow_host_network: bool,
}

/// Why this worker will not run a job: one sentence that says how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Root is asked for and not allowed.
    #[error(
        "the job asks for `user = \"root\"`, which this worker's policy does not allow; leave it out, or let the \
         worker's owner set `policy.allow_root`"
    )]
    Root,
    /// The host's network is asked for and not allowed.
    #[error(
        "the job asks for `network = \"host\"`, which this worker's policy does not allow; use \"egress\" or \
         \"none\", or let the worker's owner set `policy.allow_host_network`"
    )]
    HostNetwork,
    /// The image was built for another kind of machine.
    #[error(
        "the image `{image}` is made for {image_arch} and this worker is {host_arch}; ask for `arch={image_arch}`"
    )]
    Architecture {
        /// As the job names it.
        image: String,
        /// What the image says.
        image_arch: String,
        /// What the engine says.
        host_arch: String,
    },
    /// There is no shell to run steps with.
    #[error("the image `{image}` has no /bin/sh, which steps need; use an image with a shell")]
    NoShell {
        /// As the job names it.
        image: String,
    },
}

/// As whom and with which rights a job runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// User and group of every process of the job.
    pub owner: Owner,
    /// That user's name.
    pub user_name: String,
    /// What it gets back of the dropped capabilities.
    pub capabilities: BTreeSet<Capability>,
    /// Which network it sees.
    pub network: NetworkMode,
}

/// What apt, su and the like need of root, and nothing that reaches beyond the container.
const ROOT_CAPABILITIES: [Capability; 6] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Setuid,
    Capability::Setgid,
    Capability::Kill,
];

/// Whether and how the job may run here. The coordinator refuses the same things earlier; the worker asks its own
/// policy all the same, since it has only the coordinator's word for what was checked.
pub fn judge(
    job: &JobSpec,
    image: &ImageFacts,
    host_arch: &str,
    policy: &Policy,
) -> Result<Profile, Refusal> {
    if image.arch != host_arch {
        return Err(Refusal::Architecture {
            image: job.image.clone(),
            image_arch: image.arch.clone(),
            host_arch: host_arch.to_owned(),
        });
    }
    if !image.has_shell {
        return Err(Refusal::NoShell { image: job.image.clone() });
    }
    let allowed = match job.network {
        NetworkMode::None | NetworkMode::Egress => true,
        NetworkMode::Host => policy.allow_host_network,
    };
    if !allowed {
        return Err(Refusal::HostNetwork);
    }
    match job.user {
        JobUser::Build => Ok(Profile {
            owner: image.owner,
            user_name: image.user_name.clone(),
            capabilities: BTreeSet::new(),
            network: job.network,
        }),
        JobUser::Root if !policy.allow_root => Err(Refusal::Root),
        JobUser::Root => Ok(Profile {
            owner: Owner { uid: 0, gid: 0 },
            user_name: "root".to_owned(),
            capabilities: ROOT_CAPABILITIES.into(),
            network: job.network,
        }),
    }
}

/// What a container is made of beside its profile.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    /// Which worker it belongs to.
    pub instance: &'a Instance,
    /// Its name: the attempt's id and whatever makes it unique.
    pub name: String,
    /// What the job may use.
    pub resources: &'a Resources,
    /// init and its arguments.
    pub entrypoint: Vec<String>,
    /// Workspace, init and the folder of its socket.
    pub mounts: Vec<Mount>,
    /// The worker's egress network.
    pub egress: ContainerNetwork,
}

/// Open files of each process: enough for linkers and browsers, and few enough that one job cannot use up the host's.
const OPEN_FILES: u64 = 65_536;

/// The container of a job.
pub fn container(profile: &Profile, image: &ImageFacts, parts: Parts<'_>) -> ContainerSpec {
    let mut mounts = parts.mounts;
    if profile.owner.uid != 0 {
        // Root must be able to add users; everyone else needs an entry of their own and no way to change it.
        for (source, target) in [(&image.passwd, "/etc/passwd"), (&image.group, "/etc/group")] {
            mounts.push(Mount { source: source.clone(), target: target.to_owned(), read_only: true });
        }
    }
    ContainerSpec {
        hostname: parts.name.clone(),
        name: parts.name,
        labels: [parts.instance.label()].into(),
        image: image.engine_ref.clone(),
        user: profile.owner,
        entrypoint: parts.entrypoint,
        // Variables go to the steps through init, so that none is to be read in the engine's records.
        env: BTreeMap::new(),
        mounts,
        network: match profile.network {
            NetworkMode::None => ContainerNetwork::None,
            NetworkMode::Egress => parts.egress,
            NetworkMode::Host => ContainerNetwork::Host,
        },
        limits: limits(parts.resources),
        capabilities: profile.capabilities.clone(),
        open_files: OPEN_FILES,
    }
}

/// The limits of a job's container.
pub fn limits(resources: &Resources) -> Limits {
    Limits { cpu_millis: resources.cpu_millis, memory: resources.memory, pids: resources.pids }
}

/// Which of several values of a variable a step sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precedence {
    /// The image's, where it has one; a job may set another.
    ImageFirst,
    /// The farm's instead of the image's; a job may set another.
    FarmFirst,
    /// The farm's, always: a fact that no pipeline file can change.
    Fixed,
}

/// One variable that steps find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Whose value counts.
    pub precedence: Precedence,
    /// What it holds, for the documentation.
    pub meaning: &'static str,
}

const fn variable(name: &'static str, precedence: Precedence, meaning: &'static str) -> Variable {
    Variable { name, precedence, meaning }
}

/// Every variable of the execution contract, in the order of its page.
pub const VARIABLES: [Variable; 23] = [
    variable("CI", Precedence::Fixed, "`true`"),
    variable("HOME", Precedence::FarmFirst, "`/home/build`: empty, writable, gone after the job"),
    variable(
        "USER",
        Precedence::FarmFirst,
        "name of the user that the job runs as, `build` unless the image names one",
    ),
    variable("LOGNAME", Precedence::FarmFirst, "the same as `USER`"),
    variable("SHELL", Precedence::FarmFirst, "`/bin/sh`"),
    variable("PATH", Precedence::ImageFirst, "the image's, else the usual six folders"),
    variable("LANG", Precedence::ImageFirst, "the image's, else `C.UTF-8`"),
    variable("TZ", Precedence::ImageFirst, "the image's, else `UTC`"),
    variable("BUILDYARD", Precedence::Fixed, "`true`"),
    variable("BUILDYARD_RUN", Precedence::Fixed, "id of the run: `run-42`"),
    variable("BUILDYARD_JOB", Precedence::Fixed, "id of the job: `job-42-3`"),
    variable("BUILDYARD_JOB_NAME", Precedence::Fixed, "name of the job in the pipeline file"),
    variable("BUILDYARD_ATTEMPT", Precedence::Fixed, "id of the attempt: `att-42-3-1`"),
    variable("BUILDYARD_ATTEMPT_NUMBER", Precedence::Fixed, "which attempt at the job it is, from 1"),
    variable("BUILDYARD_PIPELINE", Precedence::Fixed, "name of the pipeline"),
    variable("BUILDYARD_REPOSITORY", Precedence::Fixed, "the repository, as people call it"),
    variable("BUILDYARD_COMMIT", Precedence::Fixed, "full id of the commit"),
    variable("BUILDYARD_REF", Precedence::Fixed, "the ref that was built, `refs/heads/main`; empty if none"),
    variable("BUILDYARD_BRANCH", Precedence::Fixed, "the branch of that ref; empty if it is none"),
    variable("BUILDYARD_TAG", Precedence::Fixed, "the tag of that ref; empty if it is none"),
    variable("BUILDYARD_WORKSPACE", Precedence::Fixed, "`/workspace`: the checkout, and where steps start"),
    variable(
        "BUILDYARD_CPUS",
        Precedence::Fixed,
        "processors of the job, rounded up: a good value for `make -j`",
    ),
    variable("BUILDYARD_MEMORY_BYTES", Precedence::Fixed, "the job's memory limit"),
];

/// Where programs are looked for when the image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The farm's value of each variable, in the order of [`VARIABLES`].
fn farm_values(order: &AttemptOrder, profile: &Profile) -> [String; VARIABLES.len()] {
    let source = &order.source;
    let ref_name = source.ref_name.clone().unwrap_or_default();
    let below = |prefix: &str| ref_name.strip_prefix(prefix).unwrap_or_default().to_owned();
    let (branch, tag) = (below("refs/heads/"), below("refs/tags/"));
    [
        "true".to_owned(),
        HOME.to_owned(),
        profile.user_name.clone(),
        profile.user_name.clone(),
        "/bin/sh".to_owned(),
        DEFAULT_PATH.to_owned(),
        "C.UTF-8".to_owned(),
        "UTC".to_owned(),
        "true".to_owned(),
        order.attempt.run().to_string(),
        order.attempt.job.to_string(),
        order.spec.name.clone(),
        order.attempt.to_string(),
        order.attempt.number.0.to_string(),
        order.pipeline.clone(),
        source.repository.clone(),
        source.commit.clone(),
        ref_name,
        branch,
        tag,
        WORKSPACE.to_owned(),
        order.spec.resources.cpu_millis.div_ceil(1_000).max(1).to_string(),
        order.spec.resources.memory.0.to_string(),
    ]
}

/// All variables of a step: the image's, the contract's, the job's and the step's own, the later winning but for
/// the farm's facts.
pub fn environment(
    order: &AttemptOrder,
    step_env: &BTreeMap<String, String>,
    image: &ImageFacts,
    profile: &Profile,
) -> BTreeMap<String, String> {
    let mut env = image.env.clone();
    let farm = farm_values(order, profile);
    for (variable, value) in VARIABLES.iter().zip(&farm) {
        match variable.precedence {
            Precedence::ImageFirst => {
                env.entry(variable.name.to_owned()).or_insert_with(|| value.clone());
            }
            Precedence::FarmFirst => {
                env.insert(variable.name.to_owned(), value.clone());
            }
            Precedence::Fixed => {}
        }
    }
    for (name, value) in order.spec.env.iter().chain(step_env) {
        env.insert(name.clone(), value.clone());
    }
    for (variable, value) in VARIABLES.iter().zip(farm) {
        match variable.precedence {
            Precedence::Fixed => {
                env.insert(variable.name.to_owned(), value);
            }
            Precedence::ImageFirst | Precedence::FarmFirst => {}
        }
    }
    env
}

#[cfg(test)]
mod tests;
