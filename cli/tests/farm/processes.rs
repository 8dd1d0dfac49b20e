//! `up` supervises processes: killing one restarts that one and no other.

use crate::harness::{Farm, Role, said, wait_for};
use buildyard_types::api::JobState;

#[test]
fn killing_one_process_restarts_that_one() {
    let Some(farm) = Farm::start() else { return };
    for (killed, other) in [(Role::Coordinator, Role::Worker), (Role::Worker, Role::Coordinator)] {
        let untouched = farm.pid(other);
        farm.kill_and_await_another(killed);
        assert_eq!(farm.pid(other), untouched, "{other:?} was restarted with {killed:?}");
        wait_for("an answer", || farm.run(&["status"]).status.success().then_some(()));
    }
}

#[test]
fn a_second_farm_on_the_same_data_is_refused_and_down_can_be_repeated() {
    let Some(farm) = Farm::start() else { return };
    let second = farm.run(&["up", "--listen", "127.0.0.1:0"]);
    assert!(second.status.success(), "up on a running farm says that it runs: {}", said(&second));
    assert!(farm.run(&["down"]).status.success());
    let again = farm.run(&["down"]);
    assert!(again.status.success(), "nothing to end is no error: {}", said(&again));
}

#[test]
fn a_farm_goes_down_while_somebody_follows_a_log() {
    let Some(farm) = Farm::start() else { return };
    let image = crate::harness::IMAGE;
    let pipeline = format!(
        "name = \"long\"\n[jobs.long]\nimage = \"{image}\"\nnetwork = \"none\"\nrun = \"echo on; sleep 600\"\n"
    );
    let run = farm.trigger(&farm.repository("long", &pipeline, &[]));
    wait_for("the job to run", || (farm.show(&run).jobs.first()?.state == JobState::Running).then_some(()));
    let mut follower = farm
        .command(&["logs", &run.id.to_string(), "-f"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("a follower");
    let down = farm.run(&["down"]);
    assert!(down.status.success(), "{}", said(&down));
    let _ = follower.kill();
    let _ = follower.wait();
}
