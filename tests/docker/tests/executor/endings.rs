//! Each way of ending, told apart.

use buildyard_test_docker::NOSHELL;
use buildyard_types::job::{ArtifactSpec, Shell};
use buildyard_types::worker::StopCause;
use buildyard_types::{ByteSize, Millis, Outcome};

use crate::farm::farm;

#[tokio::test]
async fn a_job_passes_in_the_place_that_it_was_promised() {
    let script = "id -u; pwd; echo $HOME; echo $CI; echo err >&2; touch file \"$HOME/file\" /tmp/file; cat </dev/stdin";
    let farm = farm!(script).step("second", "test -e file && echo still here");
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed);
    let output = farm.output();
    for line in ["1000\n", "/workspace\n", "/home/build\n", "true\n", "err\n", "still here\n"] {
        assert!(output.contains(line), "{line:?} in {output:?}");
    }
    let names: Vec<_> = report.steps.iter().map(|step| (step.name.as_str(), step.exit_code)).collect();
    assert_eq!(names, [("first", Some(0)), ("second", Some(0))]);
    assert!(report.image_digest.is_some() && report.usage.log_bytes == output.len() as u64);
}

#[tokio::test]
async fn a_failing_step_ends_the_job_with_its_code() {
    let farm = farm!("echo one").step("tests", "echo two; exit 7").step("never", "echo three");
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Failed { step: "tests".into(), exit_code: 7 });
    assert_eq!(report.steps.len(), 2);
    assert_eq!(farm.output(), "one\ntwo\n");
}

/// What looks like the farm's trouble and is the job's own doing.
#[tokio::test]
async fn a_job_that_kills_itself_has_failed() {
    for (script, exit_code) in [
        ("exit 137", 137),
        ("kill -9 $$", 137),
        ("sleep 600 & kill -9 -1; exit 4", 4),
        ("kill -9 1; exit 5", 5),
    ] {
        let farm = farm!(script);
        let report = farm.run().await;
        assert_eq!(report.outcome, Outcome::Failed { step: "first".into(), exit_code }, "{script}");
    }
}

#[tokio::test]
async fn lack_of_memory_is_told_from_failure() {
    let farm = farm!("exec tail /dev/zero");
    let report = farm.run().await;
    assert_eq!(report.outcome.class(), "out of memory", "{}", report.outcome);

    // A child is killed and its parent copes: passed, with a note.
    let farm = farm!("tail /dev/zero || echo survived");
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed);
    assert_eq!(farm.output().lines().last(), Some("survived"));
    assert!(report.notes.iter().any(|note| note.contains("lack of memory")), "{:?}", report.notes);
}

#[tokio::test]
async fn time_limits_are_told_apart() {
    let mut farm = farm!("echo begun; sleep 600");
    farm.order.spec.timeout_ms = Millis(700);
    let report = farm.run().await;
    assert_eq!(report.outcome.to_string(), "timed out: the job ran longer than 700ms");
    assert_eq!(report.steps[0].exit_code, None);

    let mut farm = farm!("sleep 600");
    farm.order.spec.steps[0].timeout_ms = Some(Millis(700));
    let report = farm.run().await;
    assert_eq!(report.outcome.to_string(), "timed out: step `first` ran longer than 700ms");
}

#[tokio::test]
async fn a_cancelled_job_may_clean_up_in_its_grace() {
    let farm = farm!("trap 'echo cleaned; exit 3' TERM; echo ready; while :; do sleep 0.1; done");
    let cancel = async {
        farm.when_printed("ready").await;
        let cause = StopCause::Cancelled { by: "by admin".into() };
        farm.tell(|orders| orders.stop = Some((cause, Millis(20_000))));
    };
    let report = farm.run_beside(cancel).await;
    assert_eq!(report.outcome, Outcome::Cancelled { by: "by admin".into() });
    assert!(farm.output().contains("cleaned"));
}

#[tokio::test]
async fn a_job_that_ignores_term_is_killed_after_its_grace() {
    let farm = farm!(
        "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & echo ready; while :; do sleep 1; done"
    );
    let cancel = async {
        farm.when_printed("ready").await;
        let cause = StopCause::Cancelled { by: "by admin".into() };
        farm.tell(|orders| orders.stop = Some((cause, Millis(500))));
    };
    let report = farm.run_beside(cancel).await;
    assert_eq!(report.outcome, Outcome::Cancelled { by: "by admin".into() });
}

#[tokio::test]
async fn a_fenced_job_is_the_farms_matter() {
    let farm = farm!("echo ready; sleep 600");
    let fence = async {
        farm.when_started().await;
        farm.tell(|orders| orders.fenced = true);
    };
    let report = farm.run_beside(fence).await;
    assert_eq!(report.outcome.class(), "infra");
    assert!(report.outcome.to_string().contains("self-fenced"));
}

#[tokio::test]
async fn a_full_workspace_is_told_from_failure() {
    for script in [
        "dd if=/dev/zero of=big bs=1M count=200",
        "dd if=/dev/zero of=\"$HOME/big\" bs=1M count=200",
        "dd if=/dev/zero of=/tmp/big bs=1M count=200",
        "i=0; while :; do mkdir d$i; j=0; while [ $j -lt 100 ]; do : > d$i/$j; j=$((j+1)); done; i=$((i+1)); done",
    ] {
        let mut farm = farm!(script);
        farm.order.spec.resources.disk = ByteSize::from_mib(16);
        let report = farm.run().await;
        assert_eq!(report.outcome.class(), "disk quota", "{script}: {} {}", report.outcome, farm.output());
    }
}

#[tokio::test]
async fn an_endless_log_is_cut_at_its_cap() {
    let mut farm = farm!("yes 'some text that never ends'");
    farm.order.log_cap = ByteSize::from_mib(4);
    let report = farm.run().await;
    assert_eq!(report.outcome.to_string(), "log cap in step `first`: the log may hold 4MiB");
    let length = farm.log_length();
    assert!((3 << 20..=4 << 20).contains(&length), "{length}");
}

#[tokio::test]
async fn what_an_image_lacks_is_named() {
    let mut farm = farm!("true");
    farm.order.spec.image = NOSHELL.into();
    let report = farm.run().await;
    let expected =
        format!("refused: the image `{NOSHELL}` has no /bin/sh, which steps need; use an image with a shell");
    assert_eq!(report.outcome.to_string(), expected);

    let mut farm = farm!("true");
    farm.order.spec.steps[0].shell = Shell::Bash;
    let report = farm.run().await;
    assert!(
        report.outcome.to_string().contains("has no bash, which step `first` asks for"),
        "{}",
        report.outcome
    );

    let mut farm = farm!("true");
    farm.order.spec.image = "127.0.0.1:9/nowhere:1".into();
    let report = farm.run().await;
    let sentence = report.outcome.to_string();
    assert!(sentence.contains("`127.0.0.1:9/nowhere:1`"), "{sentence}");
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_named() {
    let mut farm = farm!("true");
    farm.order.spec.steps[0].dir = "no/such".into();
    let report = farm.run().await;
    assert_eq!(report.outcome.class(), "failed");
    assert!(report.notes.iter().any(|note| note.contains("`no/such`")), "{:?}", report.notes);
}

#[tokio::test]
async fn a_required_artifact_has_to_be_there() {
    let artifact = |path: &str| ArtifactSpec {
        name: "bin".into(),
        paths: vec![path.into()],
        required: true,
        keep_ms: Millis(1),
    };
    let mut farm = farm!("mkdir out; echo x > out/a");
    farm.order.spec.artifacts = vec![artifact("out/**")];
    assert_eq!(farm.run().await.outcome, Outcome::Passed);
    let mut farm = farm!("ln -s /etc/passwd link");
    farm.order.spec.artifacts = vec![artifact("link")];
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Failed { step: "artifacts".into(), exit_code: 1 });
}

#[tokio::test]
async fn two_hundred_thousand_lines_arrive_in_order() {
    let farm = farm!("i=0; while [ $i -lt 200000 ]; do echo $i; i=$((i+1)); done");
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed);
    let output = farm.output();
    let mut lines = output.lines();
    for number in 0..200_000 {
        assert_eq!(lines.next(), Some(number.to_string().as_str()));
    }
    assert_eq!(lines.next(), None);
}
