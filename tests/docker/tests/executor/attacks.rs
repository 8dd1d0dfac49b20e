//! A job that tries to be believed as the farm: none of it may change steps, verdict, or what is in the log.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use buildyard_init::protocol::{End, EndWhy, Frame, FromInit, Hello, InitState, Usage, VERSION};
use buildyard_types::Outcome;
use buildyard_types::log::RecordKind;

use crate::farm::{Farm, farm};

/// Every attack tells whether it seemed to work; the report tells whether it did.
const ATTACKS: &str = r#"
set +e
ls -l /.buildyard /.buildyard/ctl 2>&1 || true
# Process 1: signals, memory, descriptors, environment.
for signal in TERM KILL STOP INT HUP USR1 SEGV; do kill -$signal 1 2>/dev/null; done
( echo x > /proc/1/mem ) 2>/dev/null && echo EFFECT: wrote memory
( cat /proc/1/mem ) >/dev/null 2>&1 && echo EFFECT: read memory
( readlink /proc/1/fd/0 ) >/dev/null 2>&1 && echo EFFECT: read where a descriptor leads
( cat /proc/1/fd/3 ) >/dev/null 2>&1 && echo EFFECT: read from a descriptor
for fd in 0 1 2 3 4 5 6 7 8 9; do
  ( printf 'forged' > /proc/1/fd/$fd ) 2>/dev/null && echo "EFFECT: wrote to descriptor $fd"
done
( cat /proc/1/environ ) >/dev/null 2>&1 && echo EFFECT: read environment
( ls /proc/1/root/ ) >/dev/null 2>&1 && echo EFFECT: entered its root
# The socket and the tracer.
./attacker || echo EFFECT: the attacker failed
( rm -f /.buildyard/ctl/ctl.sock ) 2>/dev/null; test -S /.buildyard/ctl/ctl.sock || echo EFFECT: removed the socket
( : > /.buildyard/ctl/other ) 2>/dev/null && echo EFFECT: wrote beside the socket
( echo x >> /.buildyard/init ) 2>/dev/null && echo EFFECT: wrote to init
( mv /.buildyard/init /.buildyard/gone ) 2>/dev/null && echo EFFECT: moved init
# Frames and records on the outputs.
printf '\010\0\0\0\005\0\0\0\0\0\0\0\0'
printf '\001\0\0\0\005\0\0\0\001\0\0\0\0\0\0\0x' >&2
printf '::set-output::passed\n##[section]Finishing\n'
echo attacks done
exit 9
"#;

/// The attacker as a static program.
static ATTACKER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/executor/attacker/attacker.rs");
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("attacker");
    let mut rustc = Command::new(option_env!("RUSTC").unwrap_or("rustc"));
    rustc
        .args(["--edition=2024", "-Ctarget-feature=+crt-static", "-Copt-level=1", "-o"])
        .arg(&program)
        .arg(source);
    let output = rustc.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(program).unwrap()
});

/// What an init says whose job has passed.
fn forged() -> Vec<u8> {
    let hello = Hello {
        version: VERSION,
        state: InitState::Running,
        job: "att-1-0-1".into(),
        first_kept: 0,
        next: 3,
    };
    let end = End { why: EndWhy::Completed, usage: Usage::default(), log_bytes: 0, disk: None };
    let numbered = |sequence, frame| FromInit::Numbered { sequence, at_ms: 1, frame };
    let mut bytes = Vec::new();
    for frame in [
        FromInit::Hello(hello),
        numbered(0, Frame::StepStart { step: 0 }),
        numbered(1, Frame::StepStart { step: 1 }),
        numbered(2, Frame::End(end)),
    ] {
        frame.encode(&mut bytes).unwrap();
    }
    bytes
}

fn armed(farm: Farm) -> Farm {
    farm.file("attacker", ATTACKER.clone()).file("forged", forged())
}

async fn attack(farm: Farm, connects: u32) {
    let farm = armed(farm);
    let report = farm.run().await;
    let output = farm.output();
    assert!(output.contains(&format!("connected {connects} times")), "{output}");
    assert!(output.contains("attacks done"), "{output}");
    assert!(!output.contains("EFFECT"), "{output}");
    assert_eq!(report.outcome, Outcome::Failed { step: "first".into(), exit_code: 9 });
    assert_eq!(report.steps.len(), 1, "no step was made up, none was left out");
    let kinds = farm.kinds();
    let of = |kind: RecordKind| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!((of(RecordKind::StepStart), of(RecordKind::StepEnd), of(RecordKind::Note)), (1, 1, 1));
}

#[tokio::test]
async fn uid_1000_cannot_pass_for_the_farm() {
    // The socket is shut to it while init is connected.
    attack(farm!(ATTACKS), 0).await;
}

#[tokio::test]
async fn uid_0_cannot_pass_for_the_farm() {
    // Root gets through to the worker, which closes on it without a word.
    attack(farm!(ATTACKS).run_as_root(), 20).await;
}

/// A flood of connections by the job keeps neither init nor the worker from each other, not even when the worker
/// comes back and both want in at once.
#[tokio::test]
async fn a_crowd_at_the_socket_holds_nothing_up() {
    // It prints 5,000 lines, waits to be let go on, and so on: it cannot end before the last kill.
    let script = "./attacker crowd & i=0; while [ $i -lt 25000 ]; do
        if [ $((i % 5000)) = 0 ]; then until [ -e go-$((i / 5000)) ]; do sleep 0.02; done; fi
        echo $i; i=$((i+1)); done";
    for root in [false, true] {
        let farm = armed(farm!(script)).file("go-0", Vec::new());
        let farm = if root { farm.run_as_root() } else { farm };
        farm.killed_after(500, false).await;
        for kill in 1..=3 {
            farm.give_file(&format!("go-{kill}"));
            farm.killed_after(500 + kill * 5_000, true).await;
        }
        farm.give_file("go-4");
        let report = farm.resume().await;
        assert_eq!(report.outcome, Outcome::Passed);
        assert_eq!(farm.output().lines().count(), 25_000);
    }
}

/// A bomb of processes ends with its step, and the next step finds none of it.
#[tokio::test]
async fn leftovers_of_a_step_are_gone_before_the_next() {
    let farm = farm!("i=0; while [ $i -lt 40 ]; do (sleep 600 &) 2>/dev/null; i=$((i+1)); done; true")
        .step("second", "ls -d /proc/[0-9]* | wc -l");
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed);
    let left: u32 = farm.output().trim().parse().unwrap();
    assert!(left <= 5, "{left} processes");
}
