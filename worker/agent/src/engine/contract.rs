//! The behaviours that every engine must show: Docker's and the fake's, by the same functions.
//!
//! Each function takes a [`Host`] and panics where the engine behaves otherwise. [`engine_contract!`](crate::engine_contract)
//! makes a test of each. They keep the fake honest: what a worker's tests learn from it holds on Docker too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use buildyard_types::ByteSize;

use super::{
    ContainerId, ContainerNetwork, ContainerSpec, ContainerState, Engine, EngineError, FileContent, Instance,
    Limits, Mount, NetworkSpec, Owner,
};

/// Programs that the suite starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Runs until it is killed.
    Sleeps,
    /// Ends with code 7.
    ExitsWith7,
    /// Uses more memory than it may.
    EatsMemory,
    /// Is not in the image.
    Missing,
}

/// An engine to hold to the contract.
///
/// Its image has `/bin/busybox` of a few bytes or more, `/bin/sh` as a file or a link, and `/etc/passwd` with root.
pub trait Host: Send + Sync {
    /// The engine.
    fn engine(&self) -> &dyn Engine;
    /// Whose containers the suite's are. One per host, so that several suites can run beside each other.
    fn instance(&self) -> &Instance;
    /// Name of the image.
    fn image(&self) -> &str;
    /// How a program is called.
    fn command(&self, program: Program) -> Vec<String>;
}

/// How long the suite waits for what must happen. Only a broken engine takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing happened for {} s", PATIENCE.as_secs()),
    }
}

async fn spec(host: &dyn Host, name: &str, program: Program) -> ContainerSpec {
    let image = host.engine().image(host.image()).await.expect("the suite's image is there");
    ContainerSpec {
        name: format!("{}-{name}", host.instance().as_str()),
        labels: [host.instance().label()].into(),
        image: image.engine_ref,
        user: Owner { uid: 1000, gid: 1000 },
        entrypoint: host.command(program),
        env: BTreeMap::new(),
        mounts: Vec::new(),
        network: ContainerNetwork::None,
        hostname: name.to_owned(),
        limits: Limits { cpu_millis: 500, memory: ByteSize::from_mib(64), pids: 32 },
        capabilities: BTreeSet::new(),
        open_files: 1_024,
    }
}

async fn create(host: &dyn Host, name: &str, program: Program) -> ContainerId {
    let spec = spec(host, name, program).await;
    host.engine().create(&spec).await.expect("a container can be made")
}

pub(super) async fn started(host: &dyn Host, name: &str, program: Program) -> ContainerId {
    let id = create(host, name, program).await;
    host.engine().start(&id).await.expect("a container can be started");
    id
}

async fn remove(host: &dyn Host, id: &ContainerId) {
    soon("removal", host.engine().remove(id)).await.expect("a container can be removed");
}

/// It answers, and says what it is.
pub async fn it_answers_and_describes_itself(host: &dyn Host) {
    host.engine().ping().await.expect("the engine answers");
    let info = host.engine().info().await.expect("the engine describes itself");
    assert!(
        !info.version.is_empty() && !info.arch.is_empty() && info.cpus > 0 && info.memory.0 > 0,
        "{info:?}"
    );
}

/// An image is found by name and by its ref, and says what it holds.
pub async fn an_image_is_found_by_name_and_by_content(host: &dyn Host) {
    let by_name = host.engine().image(host.image()).await.expect("by name");
    let by_ref = host.engine().image(&by_name.engine_ref).await.expect("by ref");
    assert_eq!(by_name, by_ref);
    assert!(by_name.env.contains_key("PATH"), "{by_name:?}");
    assert!(by_name.names.iter().any(|name| name == host.image()), "{by_name:?}");
    let listed = host.engine().images().await.expect("images can be listed");
    assert!(listed.iter().any(|name| name == host.image()), "{listed:?}");
}

/// An image that is not there is missing, which is no trouble of the engine's.
pub async fn an_unknown_image_is_missing(host: &dyn Host) {
    let found = host.engine().image("buildyard-test/never-made:1").await;
    assert!(matches!(found, Err(EngineError::ImageMissing { .. })), "{found:?}");
    let mut spec = spec(host, "unknown-image", Program::Sleeps).await;
    spec.image = format!("sha256:{}", "0".repeat(64));
    let made = host.engine().create(&spec).await;
    assert!(matches!(made, Err(EngineError::ImageMissing { .. })), "{made:?}");
}

/// What cannot be a name never reaches a registry or a path.
pub async fn a_text_that_is_no_image_name_is_refused(host: &dyn Host) {
    for name in ["", "a b", "../x", "a?b", "-", "x:y:z z"] {
        let found = host.engine().image(name).await.map(drop);
        let expected =
            matches!(found, Err(EngineError::BadImageName { .. } | EngineError::ImageMissing { .. }))
                || matches!(found, Err(EngineError::Refused { .. }));
        assert!(expected, "{name}: {found:?}");
    }
    for name in ["", "a b", "../x", "a?b"] {
        let pulled = host.engine().pull(name).await;
        assert!(matches!(pulled, Err(EngineError::BadImageName { .. })), "{name}: {pulled:?}");
    }
}

/// A container is created, runs, ends with its code, and is gone.
pub async fn a_container_lives_and_ends(host: &dyn Host) {
    let engine = host.engine();
    let id = create(host, "life", Program::ExitsWith7).await;
    let made = engine.inspect(&id).await.expect("made");
    assert_eq!(made.state, ContainerState::Created);
    assert_eq!(made.labels.get(super::WORKER_LABEL).map(String::as_str), Some(host.instance().as_str()));
    assert_eq!(made.name, format!("{}-life", host.instance().as_str()));

    engine.start(&id).await.expect("start");
    let exit = soon("exit", engine.wait(&id)).await.expect("wait");
    assert_eq!((exit.code, exit.oom_killed), (7, false));
    assert_eq!(engine.inspect(&id).await.expect("ended").state, ContainerState::Exited(exit.clone()));
    assert_eq!(engine.wait(&id).await.expect("waiting again answers again"), exit);

    remove(host, &id).await;
    let gone = engine.inspect(&id).await;
    assert!(gone.as_ref().is_err_and(EngineError::is_not_found), "{gone:?}");
}

/// A running container says its pid, and starting it again changes nothing.
pub async fn starting_twice_is_starting_once(host: &dyn Host) {
    let id = create(host, "twice", Program::Sleeps).await;
    let first = host.engine().start(&id).await.expect("start");
    let pid = first.pid().expect("it runs");
    assert!(pid > 0);
    let second = host.engine().start(&id).await.expect("start again");
    assert_eq!(second.pid(), Some(pid));
    remove(host, &id).await;
}

/// A name is taken until its container is gone.
pub async fn a_name_is_taken_once(host: &dyn Host) {
    let first = create(host, "name", Program::Sleeps).await;
    let again = spec(host, "name", Program::Sleeps).await;
    let second = host.engine().create(&again).await;
    assert!(matches!(second, Err(EngineError::Conflict { .. })), "{second:?}");
    remove(host, &first).await;
    let third = host.engine().create(&again).await.expect("the name is free again");
    remove(host, &third).await;
}

/// A mount whose source is not there is refused, and nothing is made in its place.
pub async fn a_mount_needs_its_source(host: &dyn Host) {
    let source = PathBuf::from("/nonexistent/buildyard/mount");
    let mut spec = spec(host, "mount", Program::Sleeps).await;
    spec.mounts = vec![Mount { source: source.clone(), target: "/x".to_owned(), read_only: true }];
    let made = host.engine().create(&spec).await;
    assert!(matches!(made, Err(EngineError::Refused { .. })), "{made:?}");
    assert!(!source.exists());
}

/// A program that is not in the image cannot be started, and the container stays removable.
pub async fn a_missing_program_cannot_be_started(host: &dyn Host) {
    let id = create(host, "missing", Program::Missing).await;
    let found = host.engine().start(&id).await;
    assert!(matches!(found, Err(EngineError::CannotStart { .. })), "{found:?}");
    let state = host.engine().inspect(&id).await.expect("it is still there").state;
    assert!(!matches!(state, ContainerState::Running { .. }), "{state:?}");
    remove(host, &id).await;
}

/// Waiting for what was never started, or never was, ends at once.
pub async fn waiting_needs_something_to_wait_for(host: &dyn Host) {
    let id = create(host, "wait", Program::Sleeps).await;
    let waited = soon("wait", host.engine().wait(&id)).await;
    assert!(matches!(waited, Err(EngineError::Conflict { .. })), "{waited:?}");
    remove(host, &id).await;
    let waited = soon("wait", host.engine().wait(&id)).await;
    assert!(waited.as_ref().is_err_and(EngineError::is_not_found), "{waited:?}");
}

/// A kill ends the container with 137; a second one is told that there is nothing to kill.
pub async fn a_kill_ends_it_for_all_who_wait(host: &dyn Host) {
    let engine = host.engine();
    let id = started(host, "kill", Program::Sleeps).await;
    let kill = async {
        engine.kill(&id).await.expect("kill");
    };
    let (one, two, ()) =
        soon("kill", async { futures_util::join!(engine.wait(&id), engine.wait(&id), kill) }).await;
    for exit in [one.expect("wait"), two.expect("wait")] {
        assert_eq!((exit.code, exit.oom_killed), (137, false));
    }
    let again = engine.kill(&id).await;
    assert!(matches!(again, Err(EngineError::Conflict { .. })), "{again:?}");
    remove(host, &id).await;
    let gone = engine.kill(&id).await;
    assert!(gone.as_ref().is_err_and(EngineError::is_not_found), "{gone:?}");
}

/// Memory that runs out is told apart from other deaths.
pub async fn lack_of_memory_is_told(host: &dyn Host) {
    let mut spec = spec(host, "memory", Program::EatsMemory).await;
    spec.limits.memory = ByteSize::from_mib(16);
    let id = host.engine().create(&spec).await.expect("create");
    host.engine().start(&id).await.expect("start");
    let exit = soon("exit", host.engine().wait(&id)).await.expect("wait");
    assert!(exit.oom_killed, "{exit:?}");
    assert_eq!(exit.code, 137);
    remove(host, &id).await;
}

/// Removal takes running containers, by id or name, as often as one likes and from several sides at once.
pub async fn removal_is_idempotent(host: &dyn Host) {
    let engine = host.engine();
    let id = started(host, "remove", Program::Sleeps).await;
    let by_name = ContainerId(format!("{}-remove", host.instance().as_str()));
    let (one, two) =
        soon("removal", async { futures_util::join!(engine.remove(&id), engine.remove(&by_name)) }).await;
    one.expect("by id");
    two.expect("by name");
    remove(host, &id).await;
    remove(host, &ContainerId("buildyard-never-made".to_owned())).await;
    assert!(engine.inspect(&id).await.is_err_and(|error| error.is_not_found()));
}

/// The list holds what carries the worker's label, in every state, and nothing else.
pub async fn the_list_holds_what_is_ours(host: &dyn Host) {
    let other = Instance::new(&format!("{}-other", host.instance().as_str()));
    let idle = create(host, "idle", Program::Sleeps).await;
    let runs = started(host, "runs", Program::Sleeps).await;
    let mut foreign = spec(host, "foreign", Program::Sleeps).await;
    foreign.labels = [other.label()].into();
    let foreign = host.engine().create(&foreign).await.expect("create");

    let ours = host.engine().containers(host.instance()).await.expect("list");
    let find = |id: &ContainerId| ours.iter().find(|found| found.id == *id);
    assert_eq!(find(&idle).map(|found| found.running), Some(false));
    assert_eq!(find(&runs).map(|found| found.running), Some(true));
    assert_eq!(find(&foreign), None);
    let theirs = host.engine().containers(&other).await.expect("list");
    assert_eq!(theirs.iter().map(|found| &found.id).collect::<Vec<_>>(), [&foreign]);
    for id in [idle, runs, foreign] {
        remove(host, &id).await;
    }
}

/// Files are read through links and within bounds, from a container that was never started.
pub async fn files_are_read_within_bounds(host: &dyn Host) {
    let engine = host.engine();
    let id = create(host, "files", Program::Sleeps).await;
    let read = async |path: &str, max| engine.read_file(&id, path, max).await.expect("read");
    match read("/etc/passwd", 65_536).await {
        FileContent::Bytes(bytes) => assert!(bytes.starts_with(b"root:"), "{bytes:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(read("/etc/passwd", 3).await, FileContent::TooLong);
    assert_eq!(read("/etc", 65_536).await, FileContent::NotAFile);
    assert_eq!(read("/etc/nothing", 65_536).await, FileContent::Missing);
    assert_eq!(read("/no/such/folder", 65_536).await, FileContent::Missing);
    let shell = read("/bin/sh", 64 << 20).await;
    assert!(matches!(&shell, FileContent::Bytes(bytes) if !bytes.is_empty()), "links are followed");
    remove(host, &id).await;
    let gone = engine.read_file(&id, "/etc/passwd", 10).await;
    assert!(gone.as_ref().is_err_and(EngineError::is_not_found), "{gone:?}");
}

fn network(host: &dyn Host, name: &str, third: u8) -> NetworkSpec {
    NetworkSpec {
        name: format!("{}-{name}", host.instance().as_str()),
        bridge: format!("byt{third}-{}", host.instance().short()),
        // Benchmarking addresses (RFC 2544): nobody's network.
        subnet: format!("198.19.{third}.0/28"),
        gateway: format!("198.19.{third}.1"),
        labels: [host.instance().label()].into(),
    }
}

/// Networks are made once, listed, used, and removed when nobody uses them.
pub async fn networks_are_made_used_and_removed(host: &dyn Host) {
    let engine = host.engine();
    let spec_of = network(host, "net", 201);
    engine.create_network(&spec_of).await.expect("create");
    let again = engine.create_network(&spec_of).await;
    assert!(matches!(again, Err(EngineError::Conflict { .. })), "{again:?}");
    let overlapping =
        NetworkSpec { name: format!("{}-2", spec_of.name), bridge: "byt-overlap".into(), ..spec_of.clone() };
    let second = engine.create_network(&overlapping).await;
    assert!(matches!(second, Err(EngineError::Conflict { .. })), "{second:?}");

    let listed = engine.networks().await.expect("list");
    let found = listed.iter().find(|found| found.name == spec_of.name).expect("it is listed");
    assert_eq!(found.subnets, std::slice::from_ref(&spec_of.subnet));
    assert_eq!(found.bridge.as_ref(), Some(&spec_of.bridge));
    assert_eq!(found.labels, spec_of.labels);

    let mut user = spec(host, "net-user", Program::Sleeps).await;
    user.network = ContainerNetwork::Named(spec_of.name.clone());
    let id = engine.create(&user).await.expect("create");
    engine.start(&id).await.expect("start");
    let in_use = engine.remove_network(&spec_of.name).await;
    assert!(matches!(in_use, Err(EngineError::Conflict { .. })), "{in_use:?}");
    remove(host, &id).await;
    engine.remove_network(&spec_of.name).await.expect("remove");
    engine.remove_network(&spec_of.name).await.expect("removing again is fine");
}

/// A container whose network went away cannot be started, and it is the network that is not found.
pub async fn a_network_that_is_gone_is_not_found(host: &dyn Host) {
    let mut user = spec(host, "net-gone", Program::Sleeps).await;
    user.network = ContainerNetwork::Named(format!("{}-never-made", host.instance().as_str()));
    let result = match host.engine().create(&user).await {
        // Engines since 26 look at creation.
        Err(error) => Err(error),
        Ok(id) => {
            let result = host.engine().start(&id).await;
            remove(host, &id).await;
            result
        }
    };
    let named = |what: &String| what.contains("network");
    assert!(matches!(&result, Err(EngineError::NotFound { what }) if named(what)), "{result:?}");
}

/// A container joins the network of another that runs, and cannot start when that one is not there or has ended.
pub async fn a_network_of_another_container_is_joined_while_it_runs(host: &dyn Host) {
    let engine = host.engine();
    let holder = started(host, "holder", Program::Sleeps).await;
    let mut joining = spec(host, "joins", Program::Sleeps).await;
    joining.network = ContainerNetwork::Of(holder.clone());
    let id = engine.create(&joining).await.expect("create");
    engine.start(&id).await.expect("start");
    remove(host, &id).await;

    let id = engine.create(&joining).await.expect("create");
    engine.kill(&holder).await.expect("kill");
    soon("its end", engine.wait(&holder)).await.expect("wait");
    let ended = engine.start(&id).await;
    assert!(ended.is_err(), "{ended:?}");
    remove(host, &id).await;
    remove(host, &holder).await;
}

/// More starts at one time than the engine is handed all come through.
pub async fn many_starts_all_come_through(host: &dyn Host) {
    let engine = host.engine();
    let mut ids = Vec::new();
    for number in 0..8 {
        ids.push(create(host, &format!("many-{number}"), Program::ExitsWith7).await);
    }
    let all = ids.iter().map(|id| async {
        engine.start(id).await.expect("start");
        engine.wait(id).await.expect("wait").code
    });
    let codes = soon("eight ends", futures_util::future::join_all(all)).await;
    assert_eq!(codes, [7; 8]);
    for id in &ids {
        remove(host, id).await;
    }
}

/// Makes a test of each behaviour. `$host` is an expression that gives an `Option` of something that is a
/// [`Host`]; `None` skips, and whoever gives it says why.
#[macro_export]
macro_rules! engine_contract {
    ($host:expr) => {
        $crate::engine_contract!($host;
            it_answers_and_describes_itself, an_image_is_found_by_name_and_by_content, an_unknown_image_is_missing,
            a_text_that_is_no_image_name_is_refused, a_container_lives_and_ends, starting_twice_is_starting_once,
            a_name_is_taken_once, a_mount_needs_its_source, a_missing_program_cannot_be_started,
            waiting_needs_something_to_wait_for, a_kill_ends_it_for_all_who_wait, lack_of_memory_is_told,
            removal_is_idempotent, the_list_holds_what_is_ours, files_are_read_within_bounds,
            networks_are_made_used_and_removed, a_network_that_is_gone_is_not_found, many_starts_all_come_through,
            a_network_of_another_container_is_joined_while_it_runs,
        );
    };
    ($host:expr; $($behaviour:ident),+ $(,)?) => {$(
        #[tokio::test]
        async fn $behaviour() {
            if let Some(host) = $host {
                $crate::engine::contract::$behaviour(&host).await;
            }
        }
    )+};
}
