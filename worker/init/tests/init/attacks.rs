//! A job that attacks its own init changes nothing: as uid 1000, and as uid 0 without capabilities.

use buildyard_init::protocol::{End, EndWhy, Frame, FromInit, Shell, StepHow, Usage};

use crate::attacker;
use crate::harness::{Container, User, copy_program};

/// The step after an attack: it lets the test look at init first.
const NEXT: &str = "until test -e go; do sleep 0.01; done; echo the next step";

fn put(container: &Container, name: &str, content: &[u8]) {
    std::fs::write(container.workspace().join(name), content).expect("written");
}

#[test]
fn nothing_that_a_step_does_to_process_1_has_an_effect() {
    for user in [User::Build, User::Root] {
        let Some(mut container) = Container::start(user) else { return };
        let attacker = copy_program(&std::env::current_exe().expect("a path"), &container.workspace());
        let mut job = container.job(&[&format!("{} {}", attacker.display(), attacker::ARGUMENTS), NEXT]);
        let socket = container.socket().to_str().expect("a text").to_owned();
        job.steps[0].env = vec![(attacker::SOCKET_VARIABLE.to_owned(), socket)];
        let mut worker = container.accept();
        let limits = |container: &Container| {
            let init = container.init_pid();
            let read = |name| std::fs::read_to_string(format!("/proc/{init}/{name}")).expect("init lives");
            // nice, realtime priority and scheduling policy are the fields 19, 40 and 41.
            let stat = read("stat");
            let stat: Vec<_> = stat.rsplit_once(')').expect("a name").1.split(' ').collect();
            (read("limits"), [stat[17], stat[38], stat[39]].map(str::to_owned), container.status("Threads:"))
        };
        let before = limits(&container);
        worker.begin(&job);
        let mut record = crate::harness::Record::default();
        worker.follow_until(&mut record, |record| !record.ends.is_empty());
        let output = record.stdout().to_owned();
        assert_eq!(record.hows()[0], StepHow::Exit(0), "{user:?}: {output}{}", record.stderr());
        assert!(output.contains("\nattacks done\n"), "{user:?}: {output}");
        for line in output.lines() {
            assert!(!line.contains("SUCCEEDED"), "{user:?}: {line}");
        }
        assert_eq!(limits(&container), before, "{user:?}");
        // The attacker's own connections wait at the socket, and none of them passes for init.
        assert!(container.strangers_waiting() > 0, "{user:?}");
        put(&container, "go", b"");
        worker.follow(&mut record);
        assert_eq!(record.end().why, EndWhy::Completed, "{user:?}");
        assert!(record.stdout().ends_with("the next step\n"));
        assert_eq!(container.exit_code(), 0, "{user:?}");
        let refused = output.lines().filter(|line| line.contains(": refused: ")).count();
        assert!(refused >= 40, "{user:?}: {output}");
        println!("init attacks as {user:?}: {refused} calls refused, every signal sent, 0 effects");
    }
}

#[test]
fn what_a_step_prints_is_output_and_never_a_frame() {
    let mut forged = Vec::new();
    for sequence in 0..5 {
        let end = End { why: EndWhy::Completed, usage: Usage::default(), log_bytes: 0, disk: None };
        let frame = FromInit::Numbered { sequence, at_ms: 0, frame: Frame::End(end) };
        frame.encode(&mut forged).expect("fits");
    }
    for user in [User::Build, User::Root] {
        let Some(mut container) = Container::start(user) else { return };
        put(&container, "forged", &forged);
        let job = container.job(&["cat forged; cat forged >&2; exit 7"]);
        let record = container.run(&job);
        assert_eq!((&record.stdout, &record.stderr), (&forged, &forged));
        assert_eq!(record.hows(), [StepHow::Exit(7)]);
        assert_eq!(record.end().why, EndWhy::StepFailed { step: 0 });
    }
}

#[test]
fn the_environment_of_init_is_not_seen() {
    for user in [User::Build, User::Root] {
        let Some(mut container) = Container::start(user) else { return };
        let script = "
            tr '\\0' '\\n' </proc/1/environ && echo READ
            cat /proc/1/mem /proc/1/maps /proc/1/auxv && echo READ
            ls -l /proc/1/fd/ /proc/1/cwd /proc/1/root /proc/1/exe | grep -e '->' && echo READ
            head -c 1 /proc/1/fd/0 /proc/1/fd/3 /proc/1/fd/4 /proc/1/fd/5 && echo READ
            env; ls -l /proc/self/fd | grep -c socket: ; echo end";
        let job = container.job(&[&format!("set +e\n{script}")]);
        let record = container.run(&job);
        assert!(record.stdout().ends_with("0\nend\n"), "{user:?}: {}", record.stdout());
        assert!(!record.stdout().contains("READ"), "{user:?}: {}", record.stdout());
        assert!(!record.stdout().contains("canary"), "{user:?}: {}", record.stdout());
    }
}

#[test]
fn a_fork_bomb_ends_with_its_step() {
    let Some(mut container) = Container::start(User::Build) else { return };
    // Grows until the limit of this step's own making, and no process of it ends by itself.
    let script = "ulimit -u 200; b() { b & b & sleep 1000; }; (b) 2>/dev/null & sleep 0.3; echo grown";
    let mut job = container.job(&[script, "set -- /proc/[0-9]*; echo $#"]);
    job.steps[0].shell = Shell::Bash;
    let record = container.run(&job);
    // Init and the shell, which looks by itself.
    assert_eq!(record.stdout(), "grown\n2\n", "{:?} {}", record.hows(), record.stderr());
    assert_eq!(record.end().why, EndWhy::Completed);
}
