//! Everything that ends a job from outside of it: limits, stops, the log's cap, and silence.

use buildyard_init::protocol::{EndWhy, InitState, StepHow, ToInit};

use crate::harness::{Container, Record, User, wait_for};

/// Prints that it is there, and then lives until it is killed.
const ENDLESS: &str = "trap '' TERM; echo there; while :; do sleep 0.01; done";
/// As [`ENDLESS`], and says a last word at TERM.
const POLITE: &str = "trap 'echo last word; exit 0' TERM; echo there; while :; do sleep 0.01; done";

fn is_there(record: &Record) -> bool {
    record.stdout.starts_with(b"there\n")
}

#[test]
fn the_limit_of_a_step_ends_it_by_term() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let mut job = container.job(&["true", POLITE, "echo not begun"]);
    job.steps[1].timeout_ms = Some(300);
    let record = container.run(&job);
    assert_eq!(record.stdout(), "there\nlast word\n");
    assert_eq!(record.hows(), [StepHow::Exit(0), StepHow::TimedOut]);
    assert_eq!(record.end().why, EndWhy::StepTimedOut { step: 1 });
}

#[test]
fn the_limit_of_the_job_ends_it_by_kill_after_the_grace() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let mut job = container.job(&["true", ENDLESS]);
    job.steps[1].timeout_ms = Some(600_000);
    (job.timeout_ms, job.grace_ms) = (300, 100);
    let record = container.run(&job);
    assert_eq!(record.hows(), [StepHow::Exit(0), StepHow::TimedOut]);
    assert_eq!(record.end().why, EndWhy::JobTimedOut);
}

#[test]
fn a_stop_gives_every_process_its_grace() {
    let Some(mut container) = Container::start(User::Build) else { return };
    // The shell ends at once; its child is not yet through with its own end.
    let script =
        "sh -c \"trap 'sleep 0.2; echo child; exit' TERM; echo there; while :; do sleep 0.01; done\"; true";
    let job = container.job(&[script]);
    let mut worker = container.accept();
    worker.begin(&job);
    let mut record = Record::default();
    worker.follow_until(&mut record, is_there);
    worker.send(&ToInit::Stop { cause: 7, grace_ms: 60_000 });
    worker.send(&ToInit::Stop { cause: 8, grace_ms: 0 });
    worker.follow(&mut record);
    assert_eq!(record.stdout(), "there\nchild\n");
    assert_eq!(record.hows(), [StepHow::Stopped]);
    assert_eq!(record.end().why, EndWhy::Stopped { cause: 7 }, "the first one counts");
    assert_eq!(container.exit_code(), 0);
}

#[test]
fn who_ignores_term_is_killed() {
    let Some(container) = Container::start(User::Build) else { return };
    let job = container.job(&[ENDLESS]);
    let mut worker = container.accept();
    worker.begin(&job);
    let mut record = Record::default();
    worker.follow_until(&mut record, is_there);
    worker.send(&ToInit::Stop { cause: 7, grace_ms: 50 });
    worker.follow(&mut record);
    assert_eq!(record.end().why, EndWhy::Stopped { cause: 7 });
}

#[test]
fn a_stop_before_the_job_is_an_end_too() {
    for (order, why) in [
        (ToInit::Stop { cause: 7, grace_ms: 0 }, EndWhy::Stopped { cause: 7 }),
        (ToInit::Fence, EndWhy::Fenced),
    ] {
        let Some(mut container) = Container::start(User::Build) else { return };
        let mut worker = container.accept();
        assert_eq!(worker.hello().state, InitState::Waiting);
        worker.send(&order);
        worker.send(&ToInit::Resume { next: 0 });
        let mut record = Record::default();
        worker.follow(&mut record);
        assert_eq!(record.end().why, why);
        assert_eq!(container.exit_code(), 0);
    }
}

#[test]
fn the_log_is_cut_at_its_cap_exactly() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let mut job = container.job(&["printf 12345", "cat /dev/zero", "echo not begun"]);
    job.log_cap_bytes = 300_005;
    let record = container.run(&job);
    assert_eq!(record.stdout.len(), 300_005);
    assert_eq!(record.hows(), [StepHow::Exit(0), StepHow::Stopped]);
    assert_eq!((record.end().why, record.end().log_bytes), (EndWhy::LogCap, 300_005));
}

#[test]
fn a_log_as_long_as_its_cap_is_whole() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let mut job = container.job(&["printf 12345", "printf 67890 >&2", "true"]);
    job.log_cap_bytes = 10;
    let record = container.run(&job);
    assert_eq!((record.stdout(), record.stderr()), ("12345", "67890"));
    assert_eq!(record.end().why, EndWhy::Completed);
}

#[test]
fn a_worker_that_falls_silent_fences_the_job() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let mut job = container.job(&[ENDLESS, "echo not begun"]);
    job.lease_ms = 300;
    let mut worker = container.accept();
    worker.begin(&job);
    let mut record = Record::default();
    worker.follow_until(&mut record, is_there);
    drop(worker);
    // Its processes are gone although nobody is there to ask for it, and init waits with what happened.
    let init = container.init_pid();
    let children = format!("/proc/{init}/task/{init}/children");
    wait_for("the end of all processes", || {
        std::fs::read_to_string(&children).expect("init lives").is_empty().then_some(())
    });
    container.listen_anew();
    let mut worker = container.accept();
    assert_eq!(worker.hello().job, "attempt-1");
    worker.send(&ToInit::Resume { next: record.next });
    worker.follow(&mut record);
    assert_eq!(record.hows(), [StepHow::Stopped]);
    assert_eq!(record.end().why, EndWhy::Fenced);
    assert_eq!(container.exit_code(), 0);
}

#[test]
fn a_worker_that_speaks_in_time_does_not() {
    let Some(container) = Container::start(User::Build) else { return };
    let mut job = container.job(&["for i in $(seq 20); do echo $i; sleep 0.1; done"]);
    job.lease_ms = 60_000;
    let mut worker = container.accept();
    worker.begin(&job);
    let mut record = Record::default();
    // Each line renews the lease, for far less than the job takes in all.
    while record.end.is_none() {
        assert!(worker.read(4096, &mut record));
        worker.send(&ToInit::KeepAlive { lease_ms: 1_500 });
        worker.ack(&record);
    }
    assert_eq!(record.end().why, EndWhy::Completed);
}

#[test]
fn a_fence_kills_without_grace() {
    let Some(container) = Container::start(User::Build) else { return };
    let mut job = container.job(&[POLITE]);
    job.grace_ms = 600_000;
    let mut worker = container.accept();
    worker.begin(&job);
    let mut record = Record::default();
    worker.follow_until(&mut record, is_there);
    worker.send(&ToInit::Fence);
    worker.follow(&mut record);
    assert_eq!(record.stdout(), "there\n");
    assert_eq!(record.end().why, EndWhy::Fenced);
}

#[test]
fn an_end_that_nobody_fetches_is_given_up() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let mut job = container.job(&["true"]);
    job.linger_ms = 50;
    let mut worker = container.accept();
    worker.send(&ToInit::Job(Box::new(job)));
    drop(worker);
    assert_eq!(container.exit_code(), buildyard_init::protocol::EXIT_ABANDONED);
}

#[test]
fn term_from_outside_ends_only_an_init_without_a_job() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let worker = container.accept();
    assert_eq!(worker.hello().state, InitState::Waiting);
    terminate(container.init_pid());
    assert_eq!(container.exit_code(), 0);

    let Some(mut container) = Container::start(User::Build) else { return };
    let job = container.job(&["echo there; until test -e go; do sleep 0.01; done"]);
    let mut worker = container.accept();
    worker.begin(&job);
    let mut record = Record::default();
    worker.follow_until(&mut record, is_there);
    terminate(container.init_pid());
    std::fs::write(container.workspace().join("go"), "").expect("written");
    worker.follow(&mut record);
    assert_eq!(record.end().why, EndWhy::Completed);
    assert_eq!(container.exit_code(), 0);
}

fn terminate(pid: i32) {
    // SAFETY: takes numbers; the process is the init of this test's own namespace.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
}
