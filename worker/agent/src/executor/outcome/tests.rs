use super::*;
use crate::testing::{order, step};
use buildyard_init::protocol::Usage;
use buildyard_types::{ByteSize, RunId};

fn the_order() -> AttemptOrder {
    let mut order = order(RunId(1).job(0).attempt(1));
    order.spec.steps = vec![step("build", "make"), step("tests", "make check")];
    order.spec.steps[1].timeout_ms = Some(Millis(5_000));
    order.spec.resources.memory = ByteSize::from_mib(32);
    order
}

fn end(why: EndWhy) -> Ending {
    Ending::Told(End { why, usage: Usage::default(), log_bytes: 0, disk: None })
}

fn exit(code: i64, oom_killed: bool) -> Exit {
    Exit { code, oom_killed, error: None, started: None, finished: None }
}

fn silent(code: i64, oom_killed: bool, engine_restarted: bool) -> Ending {
    Ending::Silent { exit: exit(code, oom_killed), engine_restarted }
}

/// Judges an attempt whose first step passed and whose second ended like this.
fn check(ending: Ending, second: StepHow, change: impl FnOnce(&mut Seen<'_>)) -> (String, Vec<String>) {
    let order = the_order();
    let steps = [Some(StepHow::Exit(0)), Some(second)];
    let words = LastWords::default();
    let mut seen = Seen {
        order: &order,
        ending,
        steps: &steps,
        words: &words,
        oom_killed: false,
        disk_full: false,
        reason: None,
        stop: None,
        fenced: false,
    };
    change(&mut seen);
    let judgement = judge(&seen);
    (judgement.outcome.to_string(), judgement.notes)
}

#[test]
fn what_init_tells_becomes_an_outcome() {
    let nothing = |_: &mut Seen<'_>| {};
    let failed = || end(EndWhy::StepFailed { step: 1 });
    let rows = [
        (check(end(EndWhy::Completed), StepHow::Exit(0), nothing), "passed"),
        (check(failed(), StepHow::Exit(7), nothing), "failed: step `tests` ended with exit code 7"),
        (check(failed(), StepHow::Signal(11), nothing), "failed: step `tests` ended with exit code 139"),
        // A job that exits 137 by itself, or kills its own shell, has failed; the farm has not.
        (check(failed(), StepHow::Exit(137), nothing), "failed: step `tests` ended with exit code 137"),
        (check(failed(), StepHow::Signal(9), nothing), "failed: step `tests` ended with exit code 137"),
        (
            check(failed(), StepHow::Signal(9), |seen| seen.oom_killed = true),
            "out of memory in step `tests`: the limit is 32MiB (resources.memory)",
        ),
        (
            check(failed(), StepHow::Exit(137), |seen| seen.oom_killed = true),
            "out of memory in step `tests`: the limit is 32MiB (resources.memory)",
        ),
        (
            check(failed(), StepHow::Exit(1), |seen| seen.disk_full = true),
            "disk quota in step `tests`: the limit is 1GiB (resources.disk)",
        ),
        (
            check(end(EndWhy::JobTimedOut), StepHow::TimedOut, nothing),
            "timed out: the job ran longer than 30m",
        ),
        (
            check(end(EndWhy::StepTimedOut { step: 1 }), StepHow::TimedOut, nothing),
            "timed out: step `tests` ran longer than 5s",
        ),
        (
            check(end(EndWhy::LogCap), StepHow::Stopped, nothing),
            "log cap in step `tests`: the log may hold 64MiB",
        ),
        (
            check(end(EndWhy::Fenced), StepHow::Stopped, nothing),
            "infra (self-fenced): the worker had no word from the coordinator until its lease ran out",
        ),
    ];
    for ((outcome, notes), expected) in rows {
        assert_eq!(outcome, expected);
        assert!(notes.is_empty(), "{notes:?}");
    }
}

#[test]
fn what_the_worker_did_is_not_the_jobs_failure() {
    let by: &'static StopCause = Box::leak(Box::new(StopCause::Cancelled { by: "by admin".into() }));
    let stopped = |reason: Reason| end(EndWhy::Stopped { cause: reason.code() });
    let rows = [
        (
            check(stopped(Reason::Ordered), StepHow::Stopped, |seen| seen.stop = Some(by)),
            "cancelled by admin",
        ),
        (check(stopped(Reason::Ordered), StepHow::Stopped, |_| {}), "cancelled by the coordinator"),
        (
            check(stopped(Reason::Ordered), StepHow::Stopped, |seen| seen.stop = Some(&StopCause::Revoked)),
            "infra (worker): the attempt was given to another worker",
        ),
        (
            check(stopped(Reason::LogCap), StepHow::Stopped, |_| {}),
            "log cap in step `tests`: the log may hold 64MiB",
        ),
        (
            check(stopped(Reason::Disk), StepHow::Stopped, |_| {}),
            "disk quota in step `tests`: the limit is 1GiB (resources.disk)",
        ),
        (
            check(stopped(Reason::WorkerDisk), StepHow::Stopped, |_| {}),
            "infra (worker disk): the worker could not write the job's log to its disk",
        ),
        (check(stopped(Reason::Overdue), StepHow::Stopped, |_| {}), "timed out: the job ran longer than 30m"),
        (
            check(stopped(Reason::Network), StepHow::Stopped, |_| {}),
            "infra (worker): the rules that keep the job's network away from the farm were gone and could not be set again",
        ),
        // Killed over init's head: its exit code says nothing.
        (
            check(silent(137, false, false), StepHow::Stopped, |seen| {
                seen.reason = Some(Reason::Ordered);
                seen.stop = Some(by);
            }),
            "cancelled by admin",
        ),
        (
            check(silent(137, true, true), StepHow::Stopped, |seen| seen.fenced = true),
            "infra (self-fenced): the worker had no word from the coordinator until its lease ran out",
        ),
    ];
    for ((outcome, _), expected) in rows {
        assert_eq!(outcome, expected);
    }
    for reason in Reason::ALL {
        assert_eq!(Reason::from_code(reason.code()), Some(reason));
    }
    assert_eq!(Reason::from_code(0), None);
}

#[test]
fn a_container_that_ends_without_a_word_is_told_apart() {
    let nothing = |_: &mut Seen<'_>| {};
    let rows = [
        (
            check(silent(137, false, true), StepHow::Stopped, nothing),
            "infra (engine): the container engine was restarted and the container did not survive it",
        ),
        (
            check(silent(137, true, false), StepHow::Stopped, nothing),
            "out of memory in step `tests`: the limit is 32MiB (resources.memory)",
        ),
        (
            check(silent(137, false, false), StepHow::Stopped, |seen| seen.oom_killed = true),
            "out of memory in step `tests`: the limit is 32MiB (resources.memory)",
        ),
        (
            check(silent(137, false, false), StepHow::Stopped, nothing),
            "infra (engine): the container was killed from outside the farm",
        ),
        (
            check(silent(3, false, false), StepHow::Stopped, nothing),
            "infra (engine): the container ended with exit code 3 before its job did",
        ),
        (
            check(Ending::Vanished, StepHow::Stopped, nothing),
            "infra (engine): the container was removed while its job ran",
        ),
    ];
    for ((outcome, _), expected) in rows {
        assert_eq!(outcome, expected);
    }
}

#[test]
fn a_step_that_did_not_start_is_the_files_or_the_images_matter() {
    let spawn = |fault, errno| {
        check(end(EndWhy::StepFailed { step: 1 }), StepHow::SpawnFailed { fault, errno }, |_| {})
    };
    let (outcome, _) = spawn(SpawnFault::Shell, 2);
    let expected =
        "refused: the image `c-toolchain:12` has no /bin/sh, which steps need; use an image with a shell";
    assert_eq!(outcome, expected);
    for (fault, errno, says) in [
        (SpawnFault::Dir, 2, "could not start in folder"),
        (SpawnFault::Argument, 7, "cannot be handed to a shell"),
        (SpawnFault::Process, 11, "no process of its own (limit 256)"),
        (SpawnFault::Shell, 12, "could not be started"),
    ] {
        let (outcome, notes) = spawn(fault, errno);
        assert_eq!(outcome, "failed: step `tests` ended with exit code 126");
        assert!(notes.len() == 1 && notes[0].contains(says), "{notes:?}");
    }
}

#[test]
fn lack_of_memory_that_changed_nothing_is_a_note() {
    let (outcome, notes) = check(end(EndWhy::Completed), StepHow::Exit(0), |seen| seen.oom_killed = true);
    assert_eq!(outcome, "passed");
    assert!(notes[0].contains("lack of memory (limit 32MiB)"), "{notes:?}");
    let failed = end(EndWhy::StepFailed { step: 1 });
    let (outcome, notes) = check(failed, StepHow::Exit(2), |seen| seen.oom_killed = true);
    assert_eq!(outcome, "failed: step `tests` ended with exit code 2");
    assert!(notes[0].contains("lack of memory (limit 32MiB)"), "{notes:?}");
}

#[test]
fn what_never_ran_names_its_cause() {
    let order = the_order();
    let image = || "c-toolchain:12".to_owned();
    let message = || "manifest unknown".to_owned();
    let engine = |source| PrepareError::Image(ImageError::Engine { image: image(), source });
    let git = SourceError::Git { doing: "fetch the commit", message: "not our ref".into() };
    let rows = [
        (
            PrepareError::Refused(Refusal::NoShell { image: image() }),
            "refused: the image `c-toolchain:12` has no /bin/sh, which steps need; use an image with a shell",
        ),
        (
            engine(EngineError::ImageUnknown { image: image(), message: message() }),
            "refused: the image `c-toolchain:12` does not exist or may not be pulled: manifest unknown",
        ),
        (
            engine(EngineError::PullFailed { image: image(), message: message() }),
            "infra (pull failed): the image `c-toolchain:12` could not be pulled: manifest unknown",
        ),
        (
            PrepareError::Source(git),
            "infra (source): the commit could not be checked out: could not fetch the commit: not our ref",
        ),
        (PrepareError::TooLarge, "disk quota: the limit is 1GiB (resources.disk)"),
        (
            PrepareError::Engine(EngineError::CannotStart { message: "no space".into() }),
            "infra (engine): the container could not be started: no space",
        ),
        (
            PrepareError::Engine(EngineError::Refused {
                call: "create container x".into(),
                message: "invalid mount config for type \"bind\": bind source path does not exist: /d/passwd"
                    .into(),
            }),
            "infra (worker disk): the engine refused to create container x: invalid mount config for type \"bind\": \
             bind source path does not exist: /d/passwd",
        ),
    ];
    for (error, expected) in rows {
        assert_eq!(not_prepared(&order, &error).to_string(), expected);
    }
}
