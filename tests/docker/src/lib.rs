//! Ground for tests on a real Docker Engine: an engine, test images, and a check that nothing is left behind.
//!
//! Without an engine the tests skip and say so; with `BUILDYARD_REQUIRE_ENGINE` set they fail.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use buildyard_worker::engine::contract::{Host, Program};
use buildyard_worker::engine::docker::{DEFAULT_SOCKET, DockerEngine};
use buildyard_worker::engine::{Engine, Instance};
use buildyard_worker::network::EgressNetwork;
use tokio::sync::OnceCell;

/// Busybox under all its names, with users root and node (uid 1000).
pub const BUSYBOX: &str = "buildyard-test/busybox:1";
/// The same without any shell.
pub const NOSHELL: &str = "buildyard-test/noshell:1";

/// The engine of this machine and a name of one's own on it. When it is dropped, whatever carries that name is
/// removed, and the test fails if there was anything.
pub struct Ground {
    engine: Arc<DockerEngine>,
    instance: Instance,
}

impl Ground {
    /// Ground for one test; `None` and a notice where there is no engine.
    pub async fn find() -> Option<Self> {
        static IMAGES: OnceCell<()> = OnceCell::const_new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let engine = DockerEngine::new(Path::new(DEFAULT_SOCKET));
        if let Err(error) = engine.ping().await {
            skipped(&format!("{error}; start Docker to run this test"));
            return None;
        }
        IMAGES.get_or_init(|| make_images(&engine)).await;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let instance = Instance::new(&format!("byd-test-{}-{count}", std::process::id()));
        Some(Self { engine: Arc::new(engine), instance })
    }

    /// The engine.
    pub fn docker(&self) -> Arc<DockerEngine> {
        Arc::clone(&self.engine)
    }

    /// The label of everything that the test makes.
    pub fn name(&self) -> Instance {
        self.instance.clone()
    }
}

/// Says that a test cannot run here. Where everything is to be run, that is a failure.
pub fn skipped(why: &str) {
    assert!(std::env::var_os("BUILDYARD_REQUIRE_ENGINE").is_none(), "not run: {why}");
    eprintln!("skipped: {why}");
}

/// Makes the test images unless they are there.
async fn make_images(engine: &DockerEngine) {
    if engine.image(BUSYBOX).await.is_ok() && engine.image(NOSHELL).await.is_ok() {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/make-test-images");
    let status =
        tokio::process::Command::new(script).status().await.expect("the script is part of the repository");
    assert!(status.success(), "scripts/make-test-images: {status}");
}

impl Host for Ground {
    fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    fn instance(&self) -> &Instance {
        &self.instance
    }

    fn image(&self) -> &str {
        BUSYBOX
    }

    fn command(&self, program: Program) -> Vec<String> {
        let words: &[&str] = match program {
            Program::Sleeps => &["/bin/sleep", "3600"],
            Program::ExitsWith7 => &["/bin/sh", "-c", "exit 7"],
            // The first process itself has to grow, so that it is the one that is killed.
            Program::EatsMemory => &["/bin/tail", "/dev/zero"],
            Program::Missing => &["/bin/nothing-of-that-name"],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let instance = self.instance.clone();
        // A runtime of its own on a thread of its own: the test's may be in the middle of a panic.
        let swept = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(sweep(&instance))
        });
        let left = swept.join().expect("the sweep does not panic").expect("the engine can be swept");
        if !std::thread::panicking() {
            assert!(left.is_empty(), "the test left behind: {left:?}");
        }
    }
}

/// Removes what carries the label and says what that was.
async fn sweep(instance: &Instance) -> anyhow::Result<Vec<String>> {
    let engine = DockerEngine::new(Path::new(DEFAULT_SOCKET));
    let mut left = Vec::new();
    let other = Instance::new(&format!("{}-other", instance.as_str()));
    for label in [instance, &other] {
        for container in engine.containers(label).await? {
            engine.remove(&container.id).await?;
            left.push(format!("container {}", container.name));
        }
    }
    let (key, value) = instance.label();
    for network in engine.networks().await? {
        if network.labels.get(&key) == Some(&value) {
            engine.remove_network(&network.name).await?;
            left.push(format!("network {}", network.name));
        }
    }
    // Rules without a bridge; the tests of the network look for them by themselves.
    EgressNetwork::remove(&engine, instance).await?;
    Ok(left)
}
