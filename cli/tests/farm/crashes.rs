//! `kill -9` of one process at a time, while a job prints.

use crate::harness::{Farm, IMAGE, Role, wait_for};
use buildyard_types::Verdict;

const LINES: usize = 2_000_000;

/// Prints the numbers in twenty portions, so that there is a middle in which to kill.
fn counting_job() -> String {
    let portion = LINES / 20;
    format!(
        "name = \"count\"\n[jobs.count]\nimage = \"{IMAGE}\"\nnetwork = \"none\"\nrun = '''\n\
         for part in $(seq 0 19); do seq $((part * {portion} + 1)) $(((part + 1) * {portion})); sleep 0.5; done\n'''\n"
    )
}

fn assert_whole(log: &str) {
    let numbers: Vec<&str> =
        log.lines().filter(|line| line.bytes().all(|byte| byte.is_ascii_digit())).collect();
    let first_wrong = numbers.iter().zip(1usize..).find(|(line, number)| line.parse() != Ok(*number));
    assert_eq!(first_wrong, None, "a line is missing, doubled or out of order");
    assert_eq!(numbers.len(), LINES);
}

#[test]
fn killing_the_coordinator_then_the_worker_costs_a_running_job_nothing() {
    let Some(farm) = Farm::start() else { return };
    let run = farm.trigger(&farm.repository("count", &counting_job(), &[]));
    let printed = |farm: &Farm, portion: usize| {
        let view = farm.show(&run);
        let attempt = view.jobs.first()?.attempts.first()?;
        (attempt.log_length as usize > portion * LINES / 20 * 7).then_some(())
    };
    wait_for("the first lines", || printed(&farm, 2));
    farm.kill_and_await_another(Role::Coordinator);
    wait_for("more lines after the coordinator came back", || printed(&farm, 7));
    let peak_before = farm.peak_mib(Role::Worker);
    farm.kill_and_await_another(Role::Worker);

    let view = farm.finished(&run);
    assert_eq!(view.verdict, Some(Verdict::Passed), "{}", view.sentence);
    assert_eq!(view.jobs[0].attempts.len(), 1, "the same attempt went on");
    assert_whole(&farm.log(&view));
    let peak = peak_before.max(farm.peak_mib(Role::Worker));
    println!("worker's peak memory: {peak} MiB");
    assert!(peak <= 64, "the worker's memory rose to {peak} MiB");
}

#[test]
fn a_killed_coordinator_forgets_no_run_that_it_acknowledged() {
    let Some(farm) = Farm::start() else { return };
    let pipeline = format!(
        "name = \"short\"\n[jobs.one]\nimage = \"{IMAGE}\"\nnetwork = \"none\"\nrun = \"sleep 0.2; echo $BUILDYARD_RUN\"\n"
    );
    let repository = farm.repository("short", &pipeline, &[]);
    let mut acknowledged = Vec::new();
    for _ in 0..5 {
        acknowledged.push(farm.trigger(&repository));
        acknowledged.push(farm.trigger(&repository));
        farm.kill_and_await_another(Role::Coordinator);
        wait_for("an answer", || farm.run(&["status"]).status.success().then_some(()));
    }
    for run in acknowledged {
        let view = farm.finished(&run);
        assert_eq!(view.verdict, Some(Verdict::Passed), "{}: {}", view.id, view.sentence);
        assert_eq!(view.jobs[0].attempts.len(), 1, "workers go on while the coordinator is away");
    }
}
