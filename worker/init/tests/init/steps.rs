//! What a step finds, and how its end is told.

use buildyard_init::protocol::{EndWhy, Shell, SpawnFault, StepHow};

use crate::harness::{Container, User, step};

#[test]
fn steps_run_in_order_and_the_job_is_completed() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let job = container.job(&["echo one; echo two >&2", "echo three; id -u"]);
    let record = container.run(&job);
    assert_eq!(record.stdout(), "one\nthree\n1000\n");
    assert_eq!(record.stderr(), "two\n");
    assert_eq!(record.started, [0, 1]);
    assert_eq!(record.hows(), [StepHow::Exit(0), StepHow::Exit(0)]);
    let end = record.end();
    assert_eq!((end.why, end.log_bytes), (EndWhy::Completed, 19));
    assert!(end.usage.peak_rss_bytes > 0);
    assert!(end.disk.is_some_and(|disk| disk.free_bytes > 0 && !disk.looks_full()));
}

#[test]
fn a_step_dies_for_lack_of_memory_before_its_init() {
    for user in [User::Build, User::Root] {
        let Some(mut container) = Container::start(user) else { return };
        let job = container.job(&["cat /proc/self/oom_score_adj /proc/1/oom_score_adj"]);
        let record = container.run(&job);
        let scores: Vec<i32> = record.stdout().lines().map(|line| line.parse().expect("a number")).collect();
        assert_eq!(scores[0], 1_000, "{user:?}");
        assert!(scores[1] < 1_000, "{user:?}: {scores:?}");
    }
}

#[test]
fn a_job_without_steps_is_completed() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let job = container.job(&[]);
    let record = container.run(&job);
    assert_eq!((record.end().why, record.next), (EndWhy::Completed, 1));
}

#[test]
fn the_first_step_that_fails_ends_the_job() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let job = container.job(&["true", "false; echo not reached", "echo not begun"]);
    let record = container.run(&job);
    assert_eq!(record.hows(), [StepHow::Exit(0), StepHow::Exit(1)]);
    assert_eq!(record.stdout(), "");
    assert_eq!(record.end().why, EndWhy::StepFailed { step: 1 });
}

#[test]
fn exit_codes_and_signals_are_told_apart() {
    for (script, how) in [
        ("exit 42", StepHow::Exit(42)),
        ("exit 137", StepHow::Exit(137)),
        ("kill -9 $$", StepHow::Signal(9)),
        ("kill -TERM $$", StepHow::Signal(15)),
        ("sh -c 'kill -9 $$'", StepHow::Exit(137)),
    ] {
        let Some(mut container) = Container::start(User::Build) else { return };
        // The second command keeps the shell from becoming the first one.
        let job = container.job(&[&format!("{script}; exit $?")]);
        let record = container.run(&job);
        assert_eq!(record.hows(), [how], "{script}");
    }
}

#[test]
fn a_missing_shell_or_folder_is_named() {
    let Some(mut container) = Container::start_without_shell(User::Build) else { return };
    let job = container.job(&["true"]);
    let record = container.run(&job);
    let missing = |fault| StepHow::SpawnFailed { fault, errno: libc::ENOENT };
    assert_eq!(record.hows(), [missing(SpawnFault::Shell)]);
    assert_eq!(record.end().why, EndWhy::StepFailed { step: 0 });

    let Some(mut container) = Container::start(User::Build) else { return };
    let mut job = container.job(&["true"]);
    job.steps[0].dir = "no/such/folder".to_owned();
    assert_eq!(container.run(&job).hows(), [missing(SpawnFault::Dir)]);

    let Some(mut container) = Container::start(User::Build) else { return };
    let job = container.job(&["echo a zero \0 byte"]);
    let how = StepHow::SpawnFailed { fault: SpawnFault::Argument, errno: libc::EINVAL };
    assert_eq!(container.run(&job).hows(), [how]);

    let Some(mut container) = Container::start(User::Build) else { return };
    let mut job = container.job(&["true"]);
    job.env.push(("BIG".to_owned(), "x".repeat(200_000)));
    let how = StepHow::SpawnFailed { fault: SpawnFault::Argument, errno: libc::E2BIG };
    assert_eq!(container.run(&job).hows(), [how]);
}

#[test]
fn a_step_has_exactly_the_variables_of_its_job() {
    let Some(mut container) = Container::start(User::Build) else { return };
    // The shell adds `PWD` by itself.
    let script = "env -0 -u PWD -u OLDPWD | sort -z | tr '\\0' '\\n'; echo $0; cat; pwd";
    let mut job = container.job(&[script]);
    job.env.push(("BOTH".to_owned(), "job".to_owned()));
    job.steps[0].env =
        vec![("BOTH".to_owned(), "step".to_owned()), ("Q".to_owned(), "a 'b' $c\nd".to_owned())];
    job.steps[0].dir = "sub".to_owned();
    std::fs::create_dir(container.workspace().join("sub")).expect("made");
    let expected = format!(
        "BOTH=step\nPATH={}\nQ=a 'b' $c\nd\nsh\n{}/sub\n",
        job.env[0].1,
        container.workspace().display()
    );
    let record = container.run(&job);
    assert_eq!(record.stdout(), expected);
}

#[test]
fn bash_fails_with_the_first_of_a_pipe() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let mut job =
        container.job(&["false | true; echo sh goes on", "echo $0; false | true; echo not reached"]);
    job.steps[1].shell = Shell::Bash;
    let record = container.run(&job);
    assert_eq!(record.stdout(), "sh goes on\nbash\n");
    assert_eq!(record.end().why, EndWhy::StepFailed { step: 1 });
}

#[test]
fn a_script_longer_than_an_argument_runs_like_any_other() {
    for shell in [Shell::Sh, Shell::Bash] {
        let Some(mut container) = Container::start(User::Build) else { return };
        // Beside 300 KiB: its name, a descriptor of its own, standard input, and `set -e`.
        let mut script = "exec 9>&1; echo $0 >&9; cat\n".to_owned();
        while script.len() < 300 * 1024 {
            script.push_str(": 0123456789 0123456789 0123456789\n");
        }
        script.push_str("echo here\nfalse\necho not reached\n");
        let mut job = container.job(&[&script]);
        job.steps[0].shell = shell;
        let record = container.run(&job);
        let name = if shell == Shell::Sh { "sh" } else { "bash" };
        assert_eq!(record.stdout(), format!("{name}\nhere\n"));
        assert_eq!(record.stderr(), "");
        assert_eq!(record.hows(), [StepHow::Exit(1)]);
    }
}

#[test]
fn what_a_step_leaves_running_ends_with_it() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let leave = "
        sleep 1000 &
        (trap '' TERM HUP; setsid sh -c 'sleep 1001 & sleep 1002' & )
        echo left";
    // Only init, this shell and what it pipes into are there.
    let look = "ls -d /proc/[0-9]* | wc -l; grep -c sleep /proc/[0-9]*/comm | grep -c ':1$' || true";
    let job = container.job(&[leave, look]);
    let record = container.run(&job);
    assert_eq!(record.stdout(), "left\n4\n0\n", "{}", record.stderr());
    assert_eq!(record.end().why, EndWhy::Completed);
}

#[test]
fn orphans_are_reaped_while_a_step_runs() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let script = "
        for i in $(seq 300); do (sh -c 'exit 3' & ); done
        while grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | grep -q .; do sleep 0.01; done
        echo no zombie is left";
    let job = container.job(&[script]);
    let record = container.run(&job);
    assert_eq!(record.stdout(), "no zombie is left\n");
    assert_eq!(record.hows(), [StepHow::Exit(0)]);
}

#[test]
fn output_is_bytes() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let every_byte: Vec<u8> = (0..=255).collect();
    std::fs::write(container.workspace().join("bytes"), &every_byte).expect("written");
    let job = container.job(&["cat bytes bytes; cat bytes >&2"]);
    let record = container.run(&job);
    assert_eq!(record.stdout, [&every_byte[..], &every_byte[..]].concat());
    assert_eq!(record.stderr, every_byte);
}

#[test]
fn many_steps_go_through() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let mut job = container.job(&[]);
    job.steps = (0..500).map(|number| step(&format!("echo {number}"))).collect();
    let record = container.run(&job);
    assert_eq!(record.stdout(), (0..500).map(|number| format!("{number}\n")).collect::<String>());
    assert_eq!(record.end().why, EndWhy::Completed);
}

#[test]
fn a_full_workspace_is_seen() {
    for fill in ["cat /dev/zero >file || exit 1", "i=0; while touch file$i; do i=$((i + 1)); done; exit 1"] {
        let Some(mut container) = Container::start_with_small_workspace(User::Build) else { return };
        let job = container.job(&["echo some >file", fill]);
        let record = container.run(&job);
        assert_eq!(record.end().why, EndWhy::StepFailed { step: 1 }, "{fill}");
        let looks_full = |step: usize| record.ends[step].disk.expect("seen").looks_full();
        assert_eq!([looks_full(0), looks_full(1)], [false, true], "{fill}");
        assert!(record.end().disk.expect("seen").looks_full());
    }
}
