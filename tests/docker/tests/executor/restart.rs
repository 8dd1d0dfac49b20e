//! A worker that dies, and containers that die without one.

use buildyard_types::Outcome;

use crate::farm::{Farm, farm};

const COUNTING: &str = "i=0; while [ $i -lt 60000 ]; do echo $i; i=$((i+1)); done; exit 5";

#[tokio::test]
async fn a_restarted_worker_misses_and_doubles_no_line() {
    let farm = farm!(COUNTING);
    farm.killed_after(2_000, false).await;
    for kill in 1..=6 {
        farm.killed_after(2_000 + kill * 8_000, true).await;
    }
    let report = farm.resume().await;
    assert_eq!(report.outcome, Outcome::Failed { step: "first".into(), exit_code: 5 });
    let output = farm.output();
    let expected: String = (0..60_000).map(|number| format!("{number}\n")).collect();
    assert!(output == expected, "{} bytes of {}", output.len(), expected.len());
}

#[tokio::test]
async fn a_job_that_ended_while_no_worker_ran_waits_for_one() {
    let farm = farm!("echo one; sleep 0.5; echo two; exit 6");
    farm.killed_after(1, false).await;
    // Its init has ended the job and waits: only then the state is what this test is about.
    tokio::time::timeout(std::time::Duration::from_secs(30), async {
        while farm.engine().inspect(&farm.container()).await.is_ok() && processes(&farm).await > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the job ends");
    let report = farm.resume().await;
    assert_eq!(report.outcome, Outcome::Failed { step: "first".into(), exit_code: 6 });
    assert_eq!(farm.output(), "one\ntwo\n");
}

/// Processes of the container.
async fn processes(farm: &Farm) -> usize {
    use buildyard_worker::engine::ContainerState;
    let details = farm.engine().inspect(&farm.container()).await.expect("it exists");
    let ContainerState::Running { pid, .. } = details.state else { return 0 };
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = cgroup.lines().find_map(|line| line.split_once("pids:").or_else(|| line.split_once("0::")));
    let path = path.map(|(_, path)| path.trim_start_matches('/').to_owned()).unwrap_or_default();
    for root in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"] {
        if let Ok(text) = std::fs::read_to_string(format!("{root}/{path}/cgroup.procs")) {
            return text.lines().count();
        }
    }
    panic!("no cgroup of pid {pid}: {cgroup}");
}

#[tokio::test]
async fn a_container_killed_from_outside_is_no_failure_of_its_job() {
    let farm = farm!("echo ready; sleep 600");
    let kill = async {
        farm.when_printed("ready").await;
        farm.engine().kill(&farm.container()).await.unwrap();
    };
    let report = farm.run_beside(kill).await;
    assert_eq!(report.outcome.to_string(), "infra (engine): the container was killed from outside the farm");
    assert_eq!(farm.output(), "ready\n");
}

#[tokio::test]
async fn a_container_removed_while_no_worker_ran_is_no_failure_of_its_job() {
    let farm = farm!("echo ready; sleep 600");
    farm.killed_after(1, false).await;
    farm.engine().remove(&farm.container()).await.unwrap();
    let report = farm.resume().await;
    assert_eq!(report.outcome.to_string(), "infra (engine): the container was removed while its job ran");
}
