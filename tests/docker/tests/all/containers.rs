//! Containers for the tests of this folder.

use std::collections::BTreeMap;

use buildyard_test_docker::{BUSYBOX, Ground};
use buildyard_types::ByteSize;
use buildyard_worker::engine::contract::Host as _;
use buildyard_worker::engine::{ContainerId, ContainerNetwork, ContainerSpec, Limits, Owner};

/// A container that runs a script as the ordinary user under ordinary limits.
pub(crate) async fn script(
    ground: &Ground,
    name: &str,
    network: ContainerNetwork,
    text: &str,
) -> ContainerSpec {
    let image = ground.engine().image(BUSYBOX).await.expect("the test image is there");
    ContainerSpec {
        name: format!("{}-{name}", ground.name().as_str()),
        labels: [ground.name().label()].into(),
        image: image.engine_ref,
        user: Owner { uid: 1000, gid: 1000 },
        entrypoint: ["/bin/sh", "-c", text].map(str::to_owned).into(),
        env: BTreeMap::new(),
        mounts: Vec::new(),
        network,
        hostname: name.to_owned(),
        limits: Limits { cpu_millis: 1_000, memory: ByteSize::from_mib(128), pids: 128 },
        capabilities: Default::default(),
        open_files: 1_024,
    }
}

/// Makes and starts it.
pub(crate) async fn start(ground: &Ground, spec: &ContainerSpec) -> ContainerId {
    let id = ground.engine().create(spec).await.expect("create");
    ground.engine().start(&id).await.expect("start");
    id
}

/// Waits for its end and says its exit code. It stays, to be looked at.
pub(crate) async fn end(ground: &Ground, id: &ContainerId) -> i64 {
    let wait = ground.engine().wait(id);
    let limit = std::time::Duration::from_secs(120);
    tokio::time::timeout(limit, wait).await.expect("the script ends").expect("wait").code
}

pub(crate) async fn remove(ground: &Ground, id: &ContainerId) {
    ground.engine().remove(id).await.expect("remove");
}
