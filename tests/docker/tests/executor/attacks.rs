//! A job that tries to be believed as the farm: none of it may change steps, verdict, or what is in the log.

use buildyard_types::Outcome;
use buildyard_types::log::RecordKind;

use crate::farm::Farm;

macro_rules! farm {
    ($script:expr) => {
        match Farm::new($script).await {
            Some(farm) => farm,
            None => return,
        }
    };
}

/// Every attack tells whether it seemed to work; the report tells whether it did.
const ATTACKS: &str = r#"
ls -l /.buildyard /.buildyard/ctl 2>&1 || true
# Process 1: signals, memory, descriptors, environment.
for signal in TERM KILL STOP INT HUP USR1 SEGV; do kill -$signal 1 2>/dev/null; done
( echo x > /proc/1/mem ) 2>/dev/null && echo EFFECT: wrote memory
( cat /proc/1/mem ) >/dev/null 2>&1 && echo EFFECT: read memory
( ls /proc/1/fd ) >/dev/null 2>&1 && echo EFFECT: listed descriptors
for fd in 0 1 2 3 4 5 6 7 8 9; do
  ( printf 'forged' > /proc/1/fd/$fd ) 2>/dev/null && echo "EFFECT: wrote to descriptor $fd"
done
( cat /proc/1/environ ) >/dev/null 2>&1 && echo EFFECT: read environment
( ls /proc/1/root/ ) >/dev/null 2>&1 && echo EFFECT: entered its root
# The socket: a connection of one's own, and frames on it. A hello, then an end that says completed.
if command -v nc >/dev/null; then
  printf '\037\0\0\0\001\001\0\001\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' | nc -w 1 local:/.buildyard/ctl/ctl.sock 2>/dev/null
fi
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

async fn attack(farm: Farm) {
    let report = farm.run().await;
    let output = farm.output();
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
    attack(farm!(ATTACKS)).await;
}

#[tokio::test]
async fn uid_0_cannot_pass_for_the_farm() {
    attack(farm!(ATTACKS).as_root()).await;
}

/// A flood of connections by the job keeps neither init nor the worker from each other.
#[tokio::test]
async fn a_crowd_at_the_socket_holds_nothing_up() {
    let script = r#"
      for i in 1 2 3 4 5 6 7 8; do
        ( while :; do nc -w 1 local:/.buildyard/ctl/ctl.sock </dev/null >/dev/null 2>&1; done ) &
      done
      i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done
    "#;
    let farm = farm!(script);
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed);
    assert_eq!(farm.output().lines().count(), 20_000);
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
