//! Between our values and bollard's.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummaryStateEnum,
    HealthConfig, HostConfig, HostConfigLogConfig, ImageInspect, Ipam, IpamConfig, Mount as Bind, MountType,
    Network, NetworkCreateRequest, ResourcesUlimits, SystemInfo, SystemInfoCgroupVersionEnum, SystemVersion,
};
use buildyard_types::{ByteSize, Timestamp};

use super::super::{
    ContainerDetails, ContainerId, ContainerNetwork, ContainerSpec, ContainerState, ContainerSummary,
    EngineInfo, Exit, ImageInfo, NetworkInfo, NetworkSpec,
};

/// Jobs are the first to die when the host's memory runs out, before engine and worker.
const OOM_SCORE_ADJ: i64 = 500;
/// The window in which processor time is counted out.
const CPU_PERIOD_US: i64 = 100_000;

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Processor time per window. The kernel takes no less than a millisecond of it.
fn cpu_quota(cpu_millis: u64) -> i64 {
    signed(cpu_millis).saturating_mul(CPU_PERIOD_US / 1_000).max(1_000)
}

pub(super) fn create_body(spec: &ContainerSpec) -> ContainerCreateBody {
    let own_hostname = match &spec.network {
        ContainerNetwork::None | ContainerNetwork::Named(_) => true,
        ContainerNetwork::Of(_) | ContainerNetwork::Host => false,
    };
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        user: Some(format!("{}:{}", spec.user.uid, spec.user.gid)),
        entrypoint: Some(spec.entrypoint.clone()),
        // Without a command of its own the image's would be appended to the entrypoint.
        cmd: Some(Vec::new()),
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        hostname: own_hostname.then(|| spec.hostname.clone()),
        labels: Some(spec.labels.clone().into_iter().collect()),
        working_dir: Some("/".to_owned()),
        // An image's health check would run its own processes beside the job's.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        host_config: Some(host_config(spec)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(spec: &ContainerSpec) -> HostConfig {
    let limits = &spec.limits;
    HostConfig {
        mounts: Some(spec.mounts.iter().map(bind).collect()),
        network_mode: Some(match &spec.network {
            ContainerNetwork::None => "none".to_owned(),
            ContainerNetwork::Named(name) => name.clone(),
            ContainerNetwork::Of(container) => format!("container:{}", container.0),
            ContainerNetwork::Host => "host".to_owned(),
        }),
        cpu_period: Some(CPU_PERIOD_US),
        cpu_quota: Some(cpu_quota(limits.cpu_millis)),
        memory: Some(signed(limits.memory.0)),
        memory_swap: Some(signed(limits.memory.0)),
        pids_limit: Some(signed(limits.pids)),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(spec.capabilities.iter().map(|capability| capability.as_str().to_owned()).collect()),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        privileged: Some(false),
        // "private", or another container could be told to join it.
        ipc_mode: Some("private".to_owned()),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        init: Some(false),
        auto_remove: Some(false),
        oom_score_adj: Some(OOM_SCORE_ADJ),
        ulimits: Some(vec![ulimit("nofile", spec.open_files.min(most_open_files())), ulimit("core", 0)]),
        ..HostConfig::default()
    }
}

fn bind(mount: &super::super::Mount) -> Bind {
    Bind {
        typ: Some(MountType::BIND),
        source: Some(mount.source.to_string_lossy().into_owned()),
        target: Some(mount.target.clone()),
        read_only: Some(mount.read_only),
        ..Bind::default()
    }
}

/// What the kernel lets this process have at most. An engine in a container of its own, or under a small limit, can give
/// no more than that, and refuses the start if it is asked to.
fn most_open_files() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

fn ulimit(name: &str, value: u64) -> ResourcesUlimits {
    let value = Some(signed(value));
    ResourcesUlimits { name: Some(name.to_owned()), soft: value, hard: value }
}

/// The engine writes year 1 where something has not happened.
fn time(text: Option<String>) -> Option<Timestamp> {
    let moment: jiff::Timestamp = text?.parse().ok()?;
    u64::try_from(moment.as_millisecond()).ok().map(Timestamp)
}

fn state(found: bollard::models::ContainerState) -> ContainerState {
    let started = time(found.started_at);
    let exit = |code: Option<i64>| {
        ContainerState::Exited(Exit {
            code: code.unwrap_or(-1),
            oom_killed: found.oom_killed.unwrap_or(false),
            error: found.error.clone().filter(|text| !text.is_empty()),
            started,
            finished: time(found.finished_at.clone()),
        })
    };
    match found.status.unwrap_or(ContainerStateStatusEnum::EMPTY) {
        ContainerStateStatusEnum::CREATED => ContainerState::Created,
        ContainerStateStatusEnum::RUNNING
        | ContainerStateStatusEnum::PAUSED
        | ContainerStateStatusEnum::STOPPING
        | ContainerStateStatusEnum::RESTARTING => {
            let pid = found.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
            ContainerState::Running { pid, started }
        }
        ContainerStateStatusEnum::REMOVING => ContainerState::Removing,
        ContainerStateStatusEnum::EXITED
        | ContainerStateStatusEnum::DEAD
        | ContainerStateStatusEnum::EMPTY => exit(found.exit_code),
    }
}

pub(super) fn details(asked: &ContainerId, found: ContainerInspectResponse) -> ContainerDetails {
    let volumes = found.mounts.into_iter().flatten().filter(|mount| mount.typ.as_deref() == Some("volume"));
    let hosts = found.hosts_path.as_deref().map(Path::new).and_then(Path::parent).map(Path::to_owned);
    let layers = found.graph_driver.map(|driver| driver.data).unwrap_or_default();
    ContainerDetails {
        id: found.id.map_or_else(|| asked.clone(), ContainerId),
        name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        labels: found.config.and_then(|config| config.labels).unwrap_or_default().into_iter().collect(),
        state: state(found.state.unwrap_or_default()),
        upper_dir: layers.get("UpperDir").map(PathBuf::from),
        other_dirs: volumes
            .filter_map(|mount| mount.source.map(PathBuf::from))
            // Never the root of the file system, whatever the engine says.
            .chain(hosts)
            .filter(|path| path.components().count() > 2)
            .collect(),
    }
}

pub(super) fn summary(found: bollard::models::ContainerSummary) -> Option<ContainerSummary> {
    let name = found.names.into_iter().flatten().next().unwrap_or_default();
    let running = match found.state.unwrap_or(ContainerSummaryStateEnum::EMPTY) {
        ContainerSummaryStateEnum::RUNNING
        | ContainerSummaryStateEnum::PAUSED
        | ContainerSummaryStateEnum::RESTARTING
        | ContainerSummaryStateEnum::STOPPING => true,
        ContainerSummaryStateEnum::EMPTY
        | ContainerSummaryStateEnum::CREATED
        | ContainerSummaryStateEnum::EXITED
        | ContainerSummaryStateEnum::REMOVING
        | ContainerSummaryStateEnum::DEAD => false,
    };
    Some(ContainerSummary {
        id: ContainerId(found.id?),
        name: name.trim_start_matches('/').to_owned(),
        labels: found.labels.unwrap_or_default().into_iter().collect(),
        running,
    })
}

/// `containerd` stores hold manifests, and their id of an image is a manifest's digest.
pub(super) fn has_containerd_images(info: &SystemInfo) -> bool {
    let status = info.driver_status.iter().flatten();
    status.flatten().any(|text| text.starts_with("io.containerd.snapshotter"))
}

pub(super) fn image_info(asked: &str, found: ImageInspect, containerd: bool) -> ImageInfo {
    let id = found.id.unwrap_or_else(|| asked.to_owned());
    let config = found.config.unwrap_or_default();
    let pair = |text: String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    ImageInfo {
        config_digest: (!containerd).then(|| id.clone()),
        engine_ref: id,
        manifest_digests: found.repo_digests.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        env: config.env.unwrap_or_default().into_iter().filter_map(pair).collect(),
        os: found.os.unwrap_or_default(),
        arch: found.architecture.unwrap_or_default(),
        size: ByteSize(found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0)),
        diff_ids: found.root_fs.and_then(|root| root.layers).unwrap_or_default(),
        names: found.repo_tags.unwrap_or_default(),
    }
}

pub(super) fn engine_info(
    version: SystemVersion,
    info: SystemInfo,
    api: String,
    started: Option<Timestamp>,
) -> EngineInfo {
    let components = version.components.unwrap_or_default();
    let runc = components.into_iter().find(|part| part.name == "runc").map(|part| {
        // Distributions tell their corrections only in what they call the commit.
        match part
            .details
            .and_then(|details| details.get("GitCommit").cloned())
            .filter(|text| !text.is_empty())
        {
            Some(commit) => format!("{} ({commit})", part.version),
            None => part.version,
        }
    });
    let limits = [
        ("memory", info.memory_limit),
        ("swap", info.swap_limit),
        ("pids", info.pids_limit),
        ("cpu", info.cpu_cfs_quota),
    ];
    let count = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
    EngineInfo {
        version: version.version.unwrap_or_default(),
        api,
        arch: version.arch.unwrap_or_default(),
        runc,
        containerd_images: has_containerd_images(&info),
        storage_driver: info.driver.unwrap_or_default(),
        data_root: PathBuf::from(info.docker_root_dir.unwrap_or_default()),
        live_restore: info.live_restore_enabled.unwrap_or(false),
        cgroup_version: info.cgroup_version.and_then(|version| match version {
            SystemInfoCgroupVersionEnum::_1 => Some(1),
            SystemInfoCgroupVersionEnum::_2 => Some(2),
            SystemInfoCgroupVersionEnum::EMPTY => None,
        }),
        userns_remap: info.security_options.iter().flatten().any(|option| option.contains("name=userns")),
        cpus: count(info.ncpu),
        memory: ByteSize(count(info.mem_total)),
        missing_limits: limits.iter().filter(|(_, can)| *can == Some(false)).map(|(name, _)| *name).collect(),
        started,
    }
}

pub(super) fn network_body(spec: &NetworkSpec) -> NetworkCreateRequest {
    let options = [
        ("com.docker.network.bridge.name", spec.bridge.as_str()),
        ("com.docker.network.bridge.enable_icc", "false"),
    ];
    let config = IpamConfig {
        subnet: Some(spec.subnet.clone()),
        gateway: Some(spec.gateway.clone()),
        ..IpamConfig::default()
    };
    NetworkCreateRequest {
        name: spec.name.clone(),
        driver: Some("bridge".to_owned()),
        enable_ipv6: Some(false),
        ipam: Some(Ipam { driver: None, config: Some(vec![config]), options: None }),
        options: Some(options.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
        labels: Some(spec.labels.clone().into_iter().collect()),
        ..NetworkCreateRequest::default()
    }
}

pub(super) fn network_info(found: Network) -> Option<NetworkInfo> {
    let config = found.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    let options: HashMap<String, String> = found.options.unwrap_or_default();
    let labels: BTreeMap<String, String> = found.labels.unwrap_or_default().into_iter().collect();
    Some(NetworkInfo {
        id: found.id?,
        name: found.name?,
        subnets: config.into_iter().filter_map(|part| part.subnet).collect(),
        bridge: options.get("com.docker.network.bridge.name").cloned(),
        labels,
    })
}
