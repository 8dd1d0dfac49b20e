//! The executor against the scripted engine and an init that is played by the test.
//!
//! Each test is one way of ending. They make real workspaces, which takes root; without it they say so and stop.

mod harness;

use std::time::Duration;

use buildyard_init::protocol::{EndWhy, SpawnFault, StepHow, ToInit};
use buildyard_types::job::ArtifactSpec;
use buildyard_types::worker::StopCause;
use buildyard_types::{ByteSize, Millis, Outcome, Timestamp};

use super::*;
use crate::engine::ContainerId;
use crate::engine::scripted::{CallKind, Fault, ScriptedImage};
use harness::{Act, Farm, end, line, step_end, step_start};

fn passing() -> Vec<Act> {
    vec![
        step_start(0),
        line("hello\n"),
        line("world\n"),
        step_end(0, StepHow::Exit(0)),
        end(EndWhy::Completed),
    ]
}

/// A script that ends with the step ending like this.
fn ending(how: StepHow, why: EndWhy) -> Vec<Act> {
    vec![step_start(0), line("hello\n"), step_end(0, how), end(why)]
}

macro_rules! farm {
    ($script:expr) => {
        match Farm::new($script).await {
            Some(farm) => farm,
            None => {
                crate::testing::skipped("making workspaces takes root");
                return;
            }
        }
    };
}

#[tokio::test]
async fn who_installs_packages_without_being_root_is_told_how() {
    let why = "E: Could not open lock file /var/lib/dpkg/lock-frontend - open (13: Permission denied)\n";
    let end = end(EndWhy::StepFailed { step: 0 });
    let farm = farm!(vec![step_start(0), line(why), step_end(0, StepHow::Exit(100)), end]);
    let report = farm.run().await;
    assert!(matches!(report.outcome, Outcome::Failed { exit_code: 100, .. }), "{}", report.outcome);
    assert!(report.notes.iter().any(|note| note.contains("does not run as root")), "{:?}", report.notes);
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_passing_job_leaves_its_log_and_then_nothing() {
    let farm = farm!(passing());
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed);
    assert_eq!(farm.output(), "hello\nworld\n");
    assert_eq!(report.steps.len(), 1);
    assert_eq!((report.steps[0].name.as_str(), report.steps[0].exit_code), ("tests", Some(0)));
    assert!(report.image_digest.is_some());
    assert_eq!(farm.started(), 1);
    assert_eq!(farm.init_acknowledged(), 5, "init may go");
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn what_init_says_is_the_outcome() {
    for (how, why, expected) in [
        (StepHow::Exit(3), EndWhy::StepFailed { step: 0 }, "failed: step `tests` ended with exit code 3"),
        (StepHow::Signal(9), EndWhy::StepFailed { step: 0 }, "failed: step `tests` ended with exit code 137"),
        (StepHow::TimedOut, EndWhy::JobTimedOut, "timed out: the job ran longer than 30m"),
        (StepHow::Stopped, EndWhy::LogCap, "log cap in step `tests`: the log may hold 64MiB"),
        (
            StepHow::SpawnFailed { fault: SpawnFault::Shell, errno: 2 },
            EndWhy::StepFailed { step: 0 },
            "refused: the image `c-toolchain:12` has no /bin/sh, which steps need; use an image with a shell",
        ),
    ] {
        let farm = farm!(ending(how, why));
        let report = farm.run().await;
        assert_eq!(report.outcome.to_string(), expected);
        let notes = farm.notes();
        assert_eq!(notes.last().map(String::as_str), Some(expected), "the log says it too");
        farm.assert_nothing_left().await;
    }
}

#[tokio::test]
async fn memory_is_asked_of_the_engine_where_the_kernel_does_not_tell() {
    let mut script = ending(StepHow::Signal(9), EndWhy::StepFailed { step: 0 });
    script.push(Act::OutOfMemory);
    let farm = farm!(script);
    let report = farm.run().await;
    assert_eq!(report.outcome.class(), "out of memory");
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_cancelled_job_gets_its_grace_and_says_who() {
    let farm = farm!(vec![
        step_start(0),
        line("working\n"),
        Act::AwaitStop,
        step_end(0, StepHow::Stopped),
        Act::EndStopped
    ]);
    let orders = farm.orders();
    let cause = StopCause::Cancelled { by: "by admin".into() };
    let cancel = async {
        farm.when_started().await;
        orders.send_modify(|orders| orders.stop = Some((cause, Millis(2_500))));
    };
    let report = farm.run_beside(cancel).await;
    assert_eq!(report.outcome, Outcome::Cancelled { by: "by admin".into() });
    let stop = farm.told().into_iter().find(|frame| matches!(frame, ToInit::Stop { .. }));
    assert_eq!(stop, Some(ToInit::Stop { cause: outcome::Reason::Ordered.code(), grace_ms: 2_500 }));
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn an_init_that_does_not_stop_is_killed_by_the_engine() {
    let farm = farm!(vec![step_start(0), Act::AwaitStop, Act::Sleep]);
    let orders = farm.orders();
    let cancel = async {
        farm.when_started().await;
        tokio::time::pause();
        let cause = StopCause::Cancelled { by: "by admin".into() };
        orders.send_modify(|orders| orders.stop = Some((cause, Millis(2_000))));
    };
    let report = farm.run_beside(cancel).await;
    assert_eq!(report.outcome, Outcome::Cancelled { by: "by admin".into() });
    assert_eq!(farm.calls(CallKind::Kill), 1);
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_fenced_attempt_is_dead_whether_init_helps_or_not() {
    let farm = farm!(vec![step_start(0), Act::AwaitFence, Act::Sleep]);
    let orders = farm.orders();
    let fence = async {
        farm.when_started().await;
        tokio::time::pause();
        orders.send_modify(|orders| orders.fenced = true);
    };
    let report = farm.run_beside(fence).await;
    assert_eq!(report.outcome, outcome::self_fenced());
    assert!(farm.told().contains(&ToInit::Fence));
    assert_eq!(farm.calls(CallKind::Kill), 1);
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn leases_reach_init() {
    let farm = farm!(vec![
        step_start(0),
        Act::AwaitKeepAlive,
        step_end(0, StepHow::Exit(0)),
        end(EndWhy::Completed)
    ]);
    let orders = farm.orders();
    let until = farm.now() + Millis(50_000);
    let renew = async {
        farm.when_started().await;
        orders.send_modify(|orders| orders.until = Some(until));
    };
    let report = farm.run_beside(renew).await;
    assert_eq!(report.outcome, Outcome::Passed);
    let leases = farm.told().into_iter().filter_map(|frame| match frame {
        ToInit::KeepAlive { lease_ms } => Some(lease_ms),
        ToInit::Job(job) => Some(job.lease_ms),
        ToInit::Resume { .. } | ToInit::Ack { .. } | ToInit::Stop { .. } | ToInit::Fence => None,
    });
    let leases: Vec<u64> = leases.collect();
    assert!(leases.len() == 2 && leases[0] <= 15_000 && leases[1] > 15_000, "{leases:?}");
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_container_that_dies_silently_is_not_the_jobs_failure() {
    for (last, expected) in [
        (Act::Die(137), "infra (engine): the container was killed from outside the farm"),
        (Act::Die(3), "infra (engine): the container ended with exit code 3 before its job did"),
        (Act::OutOfMemory, "out of memory in step `tests`: the limit is 512MiB (resources.memory)"),
    ] {
        let farm = farm!(vec![step_start(0), line("some\n"), last]);
        let report = farm.run().await;
        assert_eq!(report.outcome.to_string(), expected);
        assert_eq!(farm.output(), "some\n", "what it had printed is kept");
        assert_eq!(report.steps[0].exit_code, None);
        farm.assert_nothing_left().await;
    }
}

#[tokio::test]
async fn an_engine_that_goes_away_costs_nothing_while_init_speaks() {
    let farm = farm!(vec![
        step_start(0),
        Act::EngineAway,
        line("still here\n"),
        Act::EngineBack,
        step_end(0, StepHow::Exit(0)),
        end(EndWhy::Completed)
    ]);
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed);
    assert_eq!(farm.output(), "still here\n");
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_lost_connection_loses_and_doubles_no_line() {
    let mut script = vec![step_start(0)];
    let mut expected = String::new();
    for number in 0..300 {
        script.push(line(&format!("line {number}\n")));
        expected.push_str(&format!("line {number}\n"));
        if number % 50 == 25 {
            script.push(Act::Reconnect);
        }
    }
    script.extend([step_end(0, StepHow::Exit(0)), end(EndWhy::Completed)]);
    let farm = farm!(script);
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed);
    assert_eq!(farm.output(), expected);
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_restarted_worker_goes_on_with_the_same_attempt() {
    let mut script = vec![step_start(0)];
    let mut expected = String::new();
    for number in 0..200 {
        script.push(line(&format!("line {number}\n")));
        expected.push_str(&format!("line {number}\n"));
        if number % 20 == 10 {
            script.push(Act::Gate);
        }
    }
    script.extend([step_end(0, StepHow::Exit(7)), end(EndWhy::StepFailed { step: 0 })]);
    let farm = farm!(script);
    // Killed at its first frames, and after each gate again.
    farm.run_until_gate().await;
    for _ in 1..10 {
        farm.resume_until_gate().await;
    }
    let report = farm.resume().await;
    assert_eq!(report.outcome.to_string(), "failed: step `tests` ended with exit code 7");
    assert_eq!(farm.output(), expected);
    assert_eq!(report.steps[0].exit_code, Some(7));
    assert!(report.image_digest.is_some());
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_container_that_died_while_no_worker_ran_is_judged_at_the_restart() {
    for (act, expected) in [
        (Some(137), "infra (engine): the container was killed from outside the farm"),
        (None, "infra (engine): the container was removed while its job ran"),
    ] {
        let farm = farm!(vec![step_start(0), line("some\n"), Act::Gate, Act::Sleep]);
        farm.run_until_gate().await;
        match act {
            Some(code) => farm.kill_container(code),
            None => farm.remove_container().await,
        }
        let report = farm.resume().await;
        assert_eq!(report.outcome.to_string(), expected);
        assert_eq!(farm.output(), "some\n");
        farm.assert_nothing_left().await;
    }
}

#[tokio::test]
async fn inits_last_word_counts_though_init_is_gone_since() {
    let farm =
        farm!(vec![step_start(0), line("some\n"), step_end(0, StepHow::Exit(0)), Act::Gate, Act::Sleep]);
    farm.run_until_gate().await;
    farm.leave_end_taken(3, EndWhy::Completed);
    farm.kill_container(0);
    let report = farm.resume().await;
    assert_eq!(report.outcome, Outcome::Passed);
    assert_eq!(farm.output(), "some\n");
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_job_that_was_not_handed_over_after_all_is_begun_anew() {
    let farm = farm!(passing());
    farm.leave_not_handed().await;
    let report = farm.resume().await;
    assert_eq!(report.outcome, Outcome::Passed);
    assert_eq!(farm.output(), "hello\nworld\n");
    assert_eq!(farm.calls(CallKind::Start), 2, "the container that waited is not used again");
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn the_log_is_safe_up_to_the_end_before_the_end_is_judged() {
    let mut farm = farm!(passing());
    farm.fail_log_from(4);
    let report = farm.run().await;
    assert_eq!(report.outcome.class(), "infra", "{}", report.outcome);
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn the_log_is_cut_at_its_cap_by_the_worker_too() {
    let mut script = vec![step_start(0)];
    // Single bytes: sixteen times as long in the log as init counts them.
    script.extend((0..40_000).map(|_| line("x")));
    script.extend([Act::AwaitStop, step_end(0, StepHow::Stopped), Act::EndStopped]);
    let mut farm = farm!(script);
    farm.order.log_cap = ByteSize(256 * 1024);
    let report = farm.run().await;
    assert_eq!(report.outcome.to_string(), "log cap in step `tests`: the log may hold 256KiB");
    assert!(farm.log_length() <= 256 * 1024, "{}", farm.log_length());
    assert!(farm.log_length() >= 128 * 1024, "{}", farm.log_length());
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_written_is_the_workers_fault() {
    let mut farm = farm!(vec![step_start(0), line("x"), Act::AwaitConnectionEnd, Act::Sleep]);
    farm.fail_log();
    let report = farm.run().await;
    assert_eq!(report.outcome.class(), "infra");
    assert!(report.outcome.to_string().contains("worker disk"), "{}", report.outcome);
    assert_eq!(farm.calls(CallKind::Kill), 1);
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn steps_begin_only_with_a_live_lease() {
    let farm = farm!(passing());
    farm.forbid_start();
    let orders = farm.orders();
    let later = async {
        farm.when_asked().await;
        assert!(farm.told().is_empty(), "the job stays here");
        farm.allow_start();
        orders.send_modify(|orders| orders.until = Some(Timestamp(u64::MAX)));
    };
    let report = farm.run_beside(later).await;
    assert_eq!(report.outcome, Outcome::Passed);
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_stop_during_the_preparation_leaves_nothing() {
    for kind in [CallKind::Image, CallKind::Create, CallKind::ReadFile, CallKind::Start] {
        let farm = farm!(passing());
        farm.engine.script(kind, Fault::Slow(Duration::from_millis(300)));
        let orders = farm.orders();
        let cancel = async {
            farm.when_called(kind).await;
            let cause = StopCause::Cancelled { by: "by admin".into() };
            orders.send_modify(|orders| orders.stop = Some((cause, Millis(0))));
        };
        let report = farm.run_beside(cancel).await;
        assert_eq!(report.outcome, Outcome::Cancelled { by: "by admin".into() }, "{kind:?}");
        assert_eq!(farm.started(), 0);
        farm.assert_nothing_left().await;
    }
}

#[tokio::test]
async fn what_cannot_be_prepared_is_named() {
    for (change, expected) in [
        (
            Box::new(|farm: &mut Farm| farm.order.spec.image = "nowhere:1".into()) as Box<dyn Fn(&mut Farm)>,
            "`nowhere:1`",
        ),
        (
            Box::new(|farm: &mut Farm| farm.order.spec.image = "UPPER CASE".into()),
            "is not the name of an image",
        ),
        (
            Box::new(|farm: &mut Farm| {
                let mut image = ScriptedImage::plain("bare:1");
                image.files.clear();
                farm.engine.hold_image(image);
                farm.order.spec.image = "bare:1".into();
            }),
            "refused: the image `bare:1` has no /bin/sh",
        ),
        (
            Box::new(|farm: &mut Farm| farm.order.spec.user = buildyard_types::job::JobUser::Root),
            "refused: the job asks for `user = \"root\"`",
        ),
        (
            Box::new(|farm: &mut Farm| {
                farm.engine.script(CallKind::Start, Fault::CannotStart("no space left".into()));
            }),
            "no space left",
        ),
        (
            Box::new(|farm: &mut Farm| farm.fail_source()),
            "infra (source): the commit could not be checked out",
        ),
    ] {
        let mut farm = farm!(passing());
        change(&mut farm);
        let report = farm.run().await;
        let sentence = report.outcome.to_string();
        assert!(sentence.contains(expected), "{sentence} should contain {expected}");
        assert!(report.steps.is_empty() && report.outcome != Outcome::Passed);
        assert_eq!(farm.started(), 0);
        farm.assert_nothing_left().await;
    }
}

fn artifact(path: &str, required: bool) -> ArtifactSpec {
    ArtifactSpec { name: "bin".into(), paths: vec![path.into()], required, keep_ms: Millis(1) }
}

#[tokio::test]
async fn artifacts_of_a_passed_job_are_kept() {
    let mut farm = farm!(passing());
    farm.order.spec.artifacts = vec![artifact("from-source", true)];
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed);
    assert_eq!(farm.kept(), ["from-source"]);
    farm.assert_nothing_left().await;

    let mut farm = farm!(ending(StepHow::Exit(1), EndWhy::StepFailed { step: 0 }));
    farm.order.spec.artifacts = vec![artifact("from-source", true)];
    farm.run().await;
    assert!(farm.kept().is_empty(), "a failed job keeps nothing");
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_missing_artifact_fails_the_job_that_requires_it() {
    let mut farm = farm!(passing());
    farm.order.spec.artifacts = vec![artifact("out/**", true)];
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Failed { step: ARTIFACTS_STEP.into(), exit_code: 1 });
    assert_eq!(report.notes, ["artifact `bin`: no file matches out/**"]);
    assert!(farm.notes().iter().any(|note| note.contains("no file matches out/**")));
    farm.assert_nothing_left().await;

    let mut farm = farm!(passing());
    farm.order.spec.artifacts = vec![artifact("out/**", false)];
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed);
    assert_eq!(report.notes.len(), 1);
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_worker_that_ends_leaves_the_attempt_running() {
    let farm = farm!(vec![step_start(0), Act::Sleep]);
    let orders = farm.orders();
    let exit = async {
        farm.when_started().await;
        orders.send_modify(|orders| orders.exit = Some(OnExit::Leave));
    };
    assert_eq!(farm.finish_beside(exit).await, Finished::Left(OnExit::Leave));
    assert_eq!(farm.engine.container_names().len(), 1);
    assert_eq!(farm.calls(CallKind::Kill), 0);
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn an_attempt_is_begun_anew_over_what_an_earlier_try_left() {
    let farm = farm!(passing());
    let name = farm.executor.container_name(farm.order.attempt);
    farm.leave_half_made(&name).await;
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed);
    farm.assert_nothing_left().await;
}

/// Runs once, which finds no namespace made ahead and leaves one for the next.
async fn held(mut farm: Farm) -> Farm {
    farm.hold(2);
    assert_eq!(farm.run().await.outcome, Outcome::Passed);
    assert!(!farm.has_joined());
    farm.executor.remove(farm.order.attempt).await;
    farm.when_held().await;
    farm.next_attempt();
    farm
}

#[tokio::test]
async fn the_next_attempt_joins_a_namespace_that_was_made_ahead() {
    let mut farm = held(farm!(passing())).await;
    for _ in 0..2 {
        assert_eq!(farm.run().await.outcome, Outcome::Passed);
        assert!(farm.has_joined());
        farm.executor.remove(farm.order.attempt).await;
        assert_eq!(farm.executor.holders.idle(), 1, "it is lent again");
        farm.next_attempt();
    }
    farm.executor.holders.close().await;
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_job_of_root_gets_a_namespace_of_its_own() {
    let mut farm = held(farm!(passing())).await;
    farm.order.spec.user = buildyard_types::job::JobUser::Root;
    farm.executor.policy.allow_root = true;
    assert_eq!(farm.run().await.outcome, Outcome::Passed);
    assert!(!farm.has_joined());
    farm.executor.holders.close().await;
    farm.assert_nothing_left().await;
}

#[tokio::test]
async fn a_namespace_that_cannot_be_joined_is_replaced_by_one_of_its_own() {
    let farm = held(farm!(passing())).await;
    for holder in farm.engine.container_names() {
        farm.engine.end(&ContainerId(holder), 137, false);
    }
    assert_eq!(farm.run().await.outcome, Outcome::Passed);
    assert!(!farm.has_joined());
    farm.executor.holders.close().await;
    farm.assert_nothing_left().await;
}
