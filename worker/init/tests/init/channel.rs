//! Lost connections, restarted workers, slow workers: nothing is lost, doubled, or kept without bound.

use buildyard_init::protocol::{EndWhy, InitState, ToInit, WINDOW_BYTES};

use crate::harness::{Container, Record, User, wait_for};

/// Small numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}

fn assert_numbered(output: &[u8], count: u64) {
    let mut expected = 1;
    for line in str::from_utf8(output).expect("text").lines() {
        assert_eq!(line.parse(), Ok(expected), "line {expected}");
        expected += 1;
    }
    assert_eq!(expected, count + 1);
}

#[test]
fn two_million_lines_outlive_every_lost_connection() {
    const LINES: u64 = 2_000_000;
    let Some(mut container) = Container::start(User::Build) else { return };
    let job = container.job(&[&format!("seq {LINES}")]);
    let mut record = Record::default();
    let mut dice = Dice(2);
    let mut worker = container.accept();
    worker.send(&ToInit::Job(Box::new(job)));
    let mut connections = 0;
    loop {
        connections += 1;
        worker.send(&ToInit::Resume { next: record.next });
        // Cut after some bytes, in the midst of frames, with some of what came acknowledged or none.
        for _ in 0..1 + dice.below(12) {
            if record.end.is_some() || !worker.read(1 + dice.below(100_000) as usize, &mut record) {
                break;
            }
            if dice.below(3) == 0 {
                worker.ack(&record);
            }
        }
        if record.end.is_some() {
            break;
        }
        drop(worker);
        if dice.below(4) == 0 {
            container.listen_anew();
        }
        worker = container.accept();
        assert!(worker.hello().first_kept <= record.next && record.next <= worker.hello().next);
    }
    worker.ack(&record);
    assert_eq!(container.exit_code(), 0);
    assert!(connections > 10, "{connections} connections");
    assert_numbered(&record.stdout, LINES);
    assert_eq!(record.end().why, EndWhy::Completed);
    println!("init channel: {LINES} lines over {connections} connections, 0 lost, 0 doubled");
}

#[test]
fn a_step_waits_for_a_slow_worker_and_init_stays_small() {
    const BYTES: usize = 64 << 20;
    let Some(container) = Container::start(User::Build) else { return };
    let job = container.job(&[&format!("head -c {BYTES} /dev/zero; echo end >&2")]);
    let mut worker = container.accept();
    worker.begin(&job);
    let mut record = Record::default();
    // Reads all that comes and acknowledges none of it.
    worker.read_until_silent(&mut record);
    let unacknowledged = record.stdout.len();
    assert!(unacknowledged <= WINDOW_BYTES, "{unacknowledged} bytes came without an acknowledgement");
    assert!(unacknowledged > WINDOW_BYTES / 2, "the window is used: {unacknowledged} bytes");
    assert!(record.stderr.is_empty(), "the step still writes");
    worker.ack(&record);
    let mut peak_kib = 0;
    while record.end.is_none() {
        assert!(worker.read(1 << 20, &mut record));
        if record.end.is_none() {
            peak_kib = container.status("VmHWM:").max(peak_kib);
        }
        worker.ack(&record);
    }
    assert_eq!(record.stdout.len(), BYTES);
    assert!(record.stdout.iter().all(|byte| *byte == 0));
    assert_eq!(record.end().why, EndWhy::Completed);
    assert!(peak_kib <= 16 * 1024, "init used {peak_kib} KiB");
    println!("init memory: {peak_kib} KiB at most with {} MiB of output", BYTES >> 20);
}

#[test]
fn a_step_outlives_a_worker_that_is_away() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let job = container.job(&["for i in $(seq 2000); do echo $i; done; touch done"]);
    let mut worker = container.accept();
    worker.begin(&job);
    drop(worker);
    wait_for("the step's end", || container.workspace().join("done").exists().then_some(()));
    container.listen_anew();
    let mut worker = container.accept();
    let mut record = Record::default();
    worker.send(&ToInit::Resume { next: 0 });
    worker.follow(&mut record);
    assert_numbered(&record.stdout, 2000);
}

#[test]
fn the_end_is_sent_until_it_is_acknowledged() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let job = container.job(&["echo once"]);
    let mut worker = container.accept();
    worker.send(&ToInit::Job(Box::new(job)));
    for round in 0..3 {
        worker.send(&ToInit::Resume { next: 0 });
        let mut record = Record::default();
        while record.end.is_none() {
            assert!(worker.read(4096, &mut record));
        }
        assert_eq!((record.stdout(), record.end().why), ("once\n", EndWhy::Completed), "round {round}");
        drop(worker);
        worker = container.accept();
        assert_eq!(worker.hello().state, InitState::Done);
        assert_eq!((worker.hello().first_kept, worker.hello().next), (0, record.next));
    }
    // A worker that has it all says so and needs nothing more.
    let next = worker.hello().next;
    worker.send(&ToInit::Resume { next });
    assert_eq!(container.exit_code(), 0);
}

#[test]
fn a_job_that_is_sent_again_changes_nothing() {
    let Some(container) = Container::start(User::Build) else { return };
    let job = container.job(&["echo begun; until test -e go; do sleep 0.01; done"]);
    let mut other = container.job(&["echo another"]);
    other.key = "attempt-2".to_owned();
    let mut worker = container.accept();
    worker.begin(&job);
    worker.send(&ToInit::Job(Box::new(job.clone())));
    let mut record = Record::default();
    worker.follow_until(&mut record, |record| record.stdout == b"begun\n");
    drop(worker);
    let mut worker = container.accept();
    assert_eq!((worker.hello().state, worker.hello().job.as_str()), (InitState::Running, "attempt-1"));
    worker.send(&ToInit::Job(Box::new(job)));
    worker.send(&ToInit::Job(Box::new(other)));
    worker.send(&ToInit::Resume { next: record.next });
    std::fs::write(container.workspace().join("go"), "").expect("written");
    worker.follow(&mut record);
    assert_eq!((record.stdout(), record.started.len()), ("begun\n", 1));
}

#[test]
fn a_worker_that_makes_no_sense_is_left_and_costs_nothing() {
    let Some(mut container) = Container::start(User::Build) else { return };
    let job = container.job(&["seq 1000; until test -e go; do sleep 0.01; done"]);
    let mut worker = container.accept();
    worker.begin(&job);
    let mut record = Record::default();
    worker.follow_until(&mut record, |record| record.stdout.ends_with(b"\n1000\n"));
    for nonsense in [
        vec![0xff; 64],
        vec![0, 0, 0, 0],
        vec![1, 0, 0, 0, 99],
        encoded(&ToInit::Resume { next: record.next + 1 }),
        encoded(&ToInit::Ack { next: u64::MAX }),
        [ToInit::Resume { next: 0 }, ToInit::Resume { next: 0 }].iter().flat_map(encoded).collect(),
    ] {
        drop(worker);
        worker = container.accept();
        assert_eq!(worker.hello().next, record.next);
        worker.send_raw(&nonsense);
        assert!(worker.is_closed_by_init(), "{nonsense:?}");
    }
    worker = container.accept();
    worker.send(&ToInit::Resume { next: record.next });
    std::fs::write(container.workspace().join("go"), "").expect("written");
    worker.follow(&mut record);
    assert_numbered(&record.stdout, 1000);
    assert_eq!(container.exit_code(), 0);
}

fn encoded(frame: &ToInit) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes).expect("fits");
    bytes
}

#[test]
fn a_first_byte_does_not_wait_for_more() {
    let Some(container) = Container::start(User::Build) else { return };
    let job = container.job(&["printf x; until test -e go; do sleep 0.01; done; printf y"]);
    let mut worker = container.accept();
    worker.begin(&job);
    let mut record = Record::default();
    // The step goes on only once its one byte is here.
    worker.follow_until(&mut record, |record| record.stdout == b"x");
    std::fs::write(container.workspace().join("go"), "").expect("written");
    worker.follow(&mut record);
    assert_eq!(record.stdout(), "xy");
}

#[test]
fn init_does_nothing_unless_it_is_process_1() {
    let init = env!("CARGO_BIN_EXE_buildyard-init");
    for arguments in [vec!["/nowhere"], vec![], vec!["/nowhere", "more"]] {
        let output = std::process::Command::new(init).args(arguments).output().expect("starts");
        assert_eq!(output.status.code(), Some(buildyard_init::protocol::EXIT_USAGE));
        assert!(!output.stderr.is_empty());
    }
}
