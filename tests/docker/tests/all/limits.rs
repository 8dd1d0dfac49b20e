//! Ways of using too much, each of which ends at its limit and is told apart.

use buildyard_test_docker::Ground;
use buildyard_types::ByteSize;
use buildyard_types::job::{JobUser, NetworkMode};
use buildyard_worker::engine::contract::Host as _;
use buildyard_worker::workspace::{DiskWatch, RootUsage};

use crate::attempt::{Attempt, job};

#[tokio::test]
async fn a_fork_bomb_is_held() {
    let Some(ground) = Ground::find().await else { return };
    let script = "cd /workspace; for i in $(seq 300); do sleep 60 & done 2>err; \
        ls -d /proc/[0-9]* | wc -l >count; echo done >done";
    let attempt = Attempt::begin(&ground, &job(JobUser::Build, NetworkMode::None), script).await;
    let exit = attempt.end(&ground).await;
    assert!(!exit.oom_killed, "{exit:?}");
    assert!(attempt.file("err").contains("fork"), "{}", attempt.file("err"));
    attempt.remove(&ground).await;
}

#[tokio::test]
async fn a_child_without_memory_is_told_though_the_job_goes_on() {
    let Some(ground) = Ground::find().await else { return };
    let script = "tail /dev/zero; echo $? >/workspace/code; exit 0";
    let attempt = Attempt::begin(&ground, &job(JobUser::Build, NetworkMode::None), script).await;
    let exit = attempt.end(&ground).await;
    assert_eq!(attempt.file("code"), "137\n");
    // On cgroup v2 engines may keep this to the first process; where it is told, the code must be the job's own.
    assert_eq!(exit.code, 0);
    let info = ground.engine().info().await.expect("info");
    if info.cgroup_version == Some(1) {
        assert!(exit.oom_killed, "{exit:?}");
    }
    attempt.remove(&ground).await;
}

/// Looks until the watch says that it is too much, and gives the bytes that it had counted by then.
async fn until_over(attempt: &Attempt) -> u64 {
    let mut watch = DiskWatch::new(&attempt.details, &attempt.workspace);
    // Only bounds the test: a busy machine makes files slowly.
    let limit = std::time::Duration::from_secs(240);
    let looked = tokio::task::spawn_blocking(move || {
        let begin = std::time::Instant::now();
        while begin.elapsed() < limit {
            if let RootUsage::Over { bytes } = watch.look() {
                return Some(bytes);
            }
        }
        None
    });
    looked.await.expect("no panic").expect("it is noticed")
}

#[tokio::test]
async fn a_root_that_is_filled_is_noticed() {
    let Some(ground) = Ground::find().await else { return };
    for place in ["/var-of-a-job", "/etc/hosts"] {
        let mut job = job(JobUser::Root, NetworkMode::None);
        job.resources.disk = ByteSize::from_mib(16);
        let script = format!("dd if=/dev/zero of={place} bs=65536 count=400; sleep 600");
        let attempt = Attempt::begin(&ground, &job, &script).await;
        assert!(until_over(&attempt).await > job.resources.disk.0);
        attempt.remove(&ground).await;
    }
}

#[tokio::test]
async fn many_files_in_the_root_are_counted() {
    let Some(ground) = Ground::find().await else { return };
    let mut job = job(JobUser::Root, NetworkMode::None);
    job.resources.disk = ByteSize::from_mib(8);
    // One block each, and none at all: by their bytes the second lot would take no room.
    for content in ["echo x", ":"] {
        let script =
            format!("mkdir /many; cd /many; for i in $(seq 3000); do {content} >$i; done; sleep 600");
        let attempt = Attempt::begin(&ground, &job, &script).await;
        until_over(&attempt).await;
        attempt.remove(&ground).await;
    }
}
