//! A container as an attempt gets it: image facts, profile and workspace together, with a script in the place of init.

use std::sync::Arc;

use buildyard_test_docker::{BUSYBOX, Ground, NOSHELL};
use buildyard_types::job::{CheckoutSpec, JobUser, NetworkMode, Resources};
use buildyard_types::{AttemptId, ByteSize, JobSpec, LabelExpr, Millis, RunId};
use buildyard_worker::engine::contract::Host as _;
use buildyard_worker::engine::{ContainerDetails, ContainerId, ContainerNetwork, Exit};
use buildyard_worker::image::{ImageFacts, Images};
use buildyard_worker::profile::{self, Parts, Policy};
use buildyard_worker::workspace::{DiskCap, Workspace, Workspaces};

use crate::containers::remove;

/// An attempt that runs, or ran.
pub(crate) struct Attempt {
    pub(crate) id: ContainerId,
    pub(crate) details: ContainerDetails,
    pub(crate) workspace: Workspace,
    disk: Disk,
}

/// The data folder of a worker with the workspace of one attempt in it. A test that fails leaves no mount behind.
struct Disk {
    workspaces: Workspaces,
    data: tempfile::TempDir,
}

fn attempt_id() -> AttemptId {
    RunId(1).job(0).attempt(1)
}

impl Drop for Disk {
    fn drop(&mut self) {
        let workspaces = self.workspaces.clone();
        // A runtime of its own on a thread of its own: the test's may be in the middle of a panic.
        let removed = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(workspaces.remove(attempt_id()))
        });
        removed.join().expect("no panic").expect("a workspace can be removed");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        assert!(!mounts.contains(self.data.path().to_str().expect("text")), "a mount is left");
    }
}

pub(crate) fn job(user: JobUser, network: NetworkMode) -> JobSpec {
    JobSpec {
        name: "unit".into(),
        image: BUSYBOX.into(),
        labels: LabelExpr::Any,
        needs: Vec::new(),
        env: Default::default(),
        steps: Vec::new(),
        resources: Resources {
            cpu_millis: 1_000,
            memory: ByteSize::from_mib(64),
            pids: 64,
            disk: ByteSize::from_mib(64),
        },
        timeout_ms: Millis::from_mins(5),
        queue_timeout_ms: Millis::from_mins(5),
        artifacts: Vec::new(),
        network,
        user,
        checkout: CheckoutSpec { depth: None, tags: false },
    }
}

pub(crate) async fn facts(ground: &Ground, data: &tempfile::TempDir, image: &str) -> Arc<ImageFacts> {
    let images = Images::open(data.path(), ground.name()).expect("a folder");
    let found = images.find(ground.engine(), image).await.expect("the test image is there");
    images.facts(ground.engine(), &found).await.expect("facts")
}

impl Attempt {
    /// Begins an attempt whose first process is the script.
    pub(crate) async fn begin(ground: &Ground, job: &JobSpec, script: &str) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(data.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))
            .expect("chmod");
        let facts = facts(ground, &data, &job.image).await;
        let policy = Policy { allow_root: true, allow_host_network: true };
        let host = ground.engine().info().await.expect("info");
        let profile = profile::judge(job, &facts, &host.arch, &policy).expect("allowed");
        let workspaces = Workspaces::open(data.path()).await.expect("workspaces");
        let disk = Disk { workspaces, data };
        let made = disk.workspaces.make(attempt_id(), profile.owner, job.resources.disk).await;
        let workspace = made.expect("a workspace can be made");
        let parts = Parts {
            instance: &ground.name(),
            name: format!("{}-attempt", ground.name().as_str()),
            resources: &job.resources,
            entrypoint: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            mounts: workspace.mounts(),
            egress: ContainerNetwork::None,
        };
        let spec = profile::container(&profile, &facts, parts);
        let id = ground.engine().create(&spec).await.expect("create");
        let details = ground.engine().start(&id).await.expect("start");
        Self { id, details, workspace, disk }
    }

    pub(crate) async fn end(&self, ground: &Ground) -> Exit {
        let limit = std::time::Duration::from_secs(120);
        tokio::time::timeout(limit, ground.engine().wait(&self.id)).await.expect("it ends").expect("wait")
    }

    /// What the script wrote to a file of its workspace.
    pub(crate) fn file(&self, name: &str) -> String {
        let path = self.workspace.workspace().join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub(crate) async fn remove(self, ground: &Ground) {
        remove(ground, &self.id).await;
        drop(self.disk);
    }
}

#[tokio::test]
async fn a_job_finds_what_the_contract_promises() {
    let Some(ground) = Ground::find().await else { return };
    let script = "exec >/workspace/out 2>&1; id -u; id -g; id -un; pwd; cat /etc/passwd | head -2 | tail -1; \
        touch /workspace/a /home/build/b /tmp/c && echo writable; \
        echo x >>/etc/passwd || echo accounts closed; printf '#!/bin/sh\\necho runs' >/tmp/x; chmod +x /tmp/x; /tmp/x; \
        ulimit -c; test $(ulimit -n) -ge 1024 && echo files; cat /proc/1/oom_score_adj; ls -A /home/build /tmp";
    let attempt = Attempt::begin(&ground, &job(JobUser::Build, NetworkMode::None), script).await;
    assert_eq!(attempt.end(&ground).await.code, 0);
    let out = attempt.file("out");
    // The image's own user of that uid, with the home that every job has.
    let expected = "1000\n1000\nnode\n/\nnode:x:1000:1000::/home/build:/bin/sh\nwritable\n\
        /bin/sh: can't create /etc/passwd: Permission denied\naccounts closed\nruns\n0\nfiles\n500\n\
        /home/build:\nb\n\n/tmp:\nc\nx\n";
    assert_eq!(out, expected);
    assert!(attempt.details.upper_dir.is_some(), "this engine says where writes go: {:?}", attempt.details);
    attempt.remove(&ground).await;
}

#[tokio::test]
async fn root_may_give_files_away_and_become_others() {
    let Some(ground) = Ground::find().await else { return };
    let script = "exec >/workspace/out 2>&1; id -u; touch /workspace/a; chown 33:33 /workspace/a; stat -c %u /workspace/a; \
        echo 'new:x:77:77::/:/bin/sh' >>/etc/passwd && su new -c 'id -u'; mkdir -p /usr/local/x && echo installed";
    let attempt = Attempt::begin(&ground, &job(JobUser::Root, NetworkMode::None), script).await;
    assert_eq!(attempt.end(&ground).await.code, 0, "{}", attempt.file("out"));
    assert_eq!(attempt.file("out"), "0\n33\n77\ninstalled\n");
    attempt.remove(&ground).await;
}

#[tokio::test]
async fn an_image_without_a_shell_is_known_for_it() {
    let Some(ground) = Ground::find().await else { return };
    let data = tempfile::tempdir().expect("a folder");
    let without = facts(&ground, &data, NOSHELL).await;
    let with = facts(&ground, &data, BUSYBOX).await;
    assert_eq!((without.has_shell, with.has_shell), (false, true));
    let job = job(JobUser::Build, NetworkMode::None);
    let refusal = profile::judge(&job, &without, &without.arch, &Policy::default()).expect_err("no shell");
    assert!(refusal.to_string().contains("/bin/sh"), "{refusal}");
}

#[tokio::test]
async fn the_cap_holds_in_the_container() {
    let Some(ground) = Ground::find().await else { return };
    let script = "dd if=/dev/zero of=/workspace/big bs=65536 count=2000 2>/workspace/err; echo $? >/home/build/code; true";
    let attempt = Attempt::begin(&ground, &job(JobUser::Build, NetworkMode::None), script).await;
    if attempt.workspace.cap() == DiskCap::Watched {
        buildyard_test_docker::skipped("no loop mounts here");
    } else {
        assert_eq!(attempt.end(&ground).await.code, 0);
        let usage = attempt.workspace.usage().expect("usage").expect("known");
        assert!(usage.is_full(), "{usage:?}");
        let length = std::fs::metadata(attempt.workspace.workspace().join("big")).expect("written").len();
        assert!(length < 64 << 20, "{length}");
    }
    attempt.remove(&ground).await;
}
