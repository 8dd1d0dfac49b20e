//! A farm for one test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use buildyard_types::api::{RunView, TriggerResponse};

/// The image of `scripts/make-test-images`: a static busybox and nothing else.
pub(crate) const IMAGE: &str = "buildyard-test/busybox:1";

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A running farm. Dropping it ends it and checks that nothing is left.
pub(crate) struct Farm {
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// A process of the farm.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    Coordinator,
    Worker,
}

impl Role {
    fn marker(self) -> &'static str {
        match self {
            Role::Coordinator => "serve\0coordinator",
            Role::Worker => "serve\0worker",
        }
    }
}

fn engine_has_the_image() -> bool {
    let mut docker = Command::new("docker");
    docker.args(["image", "inspect", IMAGE]).stdout(Stdio::null()).stderr(Stdio::null());
    docker.status().is_ok_and(|status| status.success())
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

impl Farm {
    /// Starts a farm; `None`, with a notice, where this host cannot run one.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with("")
    }

    /// Starts a farm whose coordinator reads this configuration.
    pub(crate) fn start_with(coordinator_toml: &str) -> Option<Self> {
        if !is_root() || !engine_has_the_image() {
            let why = format!("needs root, Docker and the image {IMAGE} (scripts/setup)");
            assert!(std::env::var_os("BUILDYARD_REQUIRE_ENGINE").is_none(), "not run: {why}");
            println!("skipped: {why}");
            return None;
        }
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let farm = Self { folder: tempfile::tempdir().expect("a temporary folder"), _alone: alone };
        let config = farm.path("coordinator.toml");
        std::fs::write(&config, coordinator_toml).expect("the configuration is written");
        let up = ["up", "--listen", "127.0.0.1:0", "--coordinator-config"];
        let output = farm.command(&up).arg(&config).output().expect("buildyard starts");
        assert!(output.status.success(), "up: {}", said(&output));
        Some(farm)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path("farm")
    }

    /// A command of the binary that finds this farm and no other configuration.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_buildyard"));
        command.args(arguments).env("BUILDYARD_DATA_DIR", self.data_dir()).stdin(Stdio::null());
        command.env("XDG_CONFIG_HOME", self.path("config")).current_dir(self.folder.path());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("buildyard starts")
    }

    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, arguments: &[&str]) -> T {
        let output = self.command(arguments).args(["--output", "json"]).output().expect("buildyard starts");
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", said(&output)))
    }

    /// A committed repository with this pipeline file and these other files.
    pub(crate) fn repository(&self, name: &str, pipeline: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir_all(&folder).expect("a folder for the repository");
        std::fs::write(folder.join("pipeline.toml"), pipeline).expect("a pipeline file");
        for (path, text) in files {
            std::fs::write(folder.join(path), text).expect("a file");
        }
        git(&folder, &["init", "--quiet", "--initial-branch=main"]);
        git(&folder, &["add", "--all"]);
        git(&folder, &["commit", "--quiet", "--message=first"]);
        folder
    }

    /// Triggers a repository's HEAD without waiting for its end.
    pub(crate) fn trigger(&self, repository: &Path) -> RunView {
        let path = repository.to_str().expect("a temporary path is UTF-8");
        let mut made: TriggerResponse = self.json(&["trigger", path]);
        made.runs.remove(0)
    }

    pub(crate) fn show(&self, run: &RunView) -> RunView {
        self.json(&["runs", "show", &run.id.to_string()])
    }

    /// Triggers and waits for the end.
    pub(crate) fn verdict_of(&self, repository: &Path) -> RunView {
        let run = self.trigger(repository);
        self.finished(&run)
    }

    pub(crate) fn finished(&self, run: &RunView) -> RunView {
        let output = self.run(&["watch", &run.id.to_string(), "--timeout", "10m"]);
        let view = self.show(run);
        assert!(view.verdict.is_some(), "watch ended before the run: {}", said(&output));
        view
    }

    /// The log of a run's first job, as text.
    pub(crate) fn log(&self, run: &RunView) -> String {
        let job = run.jobs.first().expect("the run has a job").id.to_string();
        let output = self.run(&["logs", &job]);
        assert!(output.status.success(), "logs: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The process of this farm in a role.
    pub(crate) fn pid(&self, role: Role) -> Option<u32> {
        let data = self.data_dir().display().to_string();
        let mut found = std::fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).into_owned();
            (command.contains(role.marker()) && command.contains(&data)).then_some(pid)
        });
        found.next()
    }

    /// Kills a process of this farm as `kill -9` does, and waits until another has taken its place.
    pub(crate) fn kill_and_await_another(&self, role: Role) {
        let old = wait_for("the process", || self.pid(role));
        let status = Command::new("kill").args(["-9", &old.to_string()]).status().expect("kill runs");
        assert!(status.success(), "kill -9 {old}");
        wait_for("another process in its place", || self.pid(role).filter(|pid| *pid != old));
    }

    /// The highest resident size that a process has reached, in MiB.
    pub(crate) fn peak_mib(&self, role: Role) -> u64 {
        let pid = self.pid(role).expect("the process lives");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number");
        kib / 1024
    }

    /// Ends the farm and says what is left of it on this host: nothing, it is hoped.
    fn end(&self) -> Vec<String> {
        let down = self.run(&["down"]);
        let data = self.data_dir().display().to_string();
        let mut left = Vec::new();
        if !down.status.success() {
            left.push(format!("down failed: {}", said(&down)));
        }
        left.extend(
            [Role::Coordinator, Role::Worker]
                .iter()
                .filter_map(|role| self.pid(*role))
                .map(|pid| format!("process {pid}")),
        );
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        left.extend(mounts.lines().filter(|line| line.contains(&data)).map(str::to_owned));
        let instance = std::fs::read_to_string(self.data_dir().join("worker/instance")).unwrap_or_default();
        for (kind, arguments) in [("container", &["ps", "-aq"][..]), ("network", &["network", "ls", "-q"])] {
            let filter = format!("label=buildyard.worker={}", instance.trim());
            let output = Command::new("docker")
                .args(arguments)
                .args(["--filter", &filter])
                .output()
                .expect("docker runs");
            let ids = String::from_utf8_lossy(&output.stdout);
            left.extend(ids.lines().map(|id| format!("{kind} {id}")));
        }
        left
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["coordinator.log", "worker.log", "supervisor.log"] {
                let text =
                    std::fs::read_to_string(self.data_dir().join("log").join(name)).unwrap_or_default();
                let lines: Vec<_> = text.lines().collect();
                println!("--- {name}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
        }
        let left = self.end();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}

/// What a command printed, for a failing test's message.
pub(crate) fn said(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub(crate) fn git(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(["-c", "user.name=test", "-c", "user.email=test@example.invalid"]);
    let output = command.args(arguments).output().expect("git runs");
    assert!(output.status.success(), "git {arguments:?}: {}", said(&output));
}

/// Waits for a condition; two minutes mean that it will not come.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
