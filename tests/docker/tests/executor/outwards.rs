//! Jobs with a way outwards, on a host where others change the firewall and clean up.

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use buildyard_types::Outcome;

use crate::farm::Farm;

/// Knocks at the host once it is let go on.
pub(crate) const KNOCKS: &str = "until [ -e go ]; do sleep 0.02; done
    gateway=$(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p')
    echo at $gateway; nc -w 2 $gateway $(cat port) </dev/null && echo reached || echo shut";

/// A service of this host that counts who comes, and its port as a file for the job.
pub(crate) fn service() -> (Arc<AtomicU32>, Vec<u8>) {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string().into_bytes();
    let accepted: Arc<AtomicU32> = Arc::default();
    let count = accepted.clone();
    // It ends with the test's process.
    std::thread::spawn(move || {
        while listener.accept().is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (accepted, port)
}

fn iptables(arguments: &str) -> bool {
    let arguments = arguments.split_whitespace();
    Command::new("iptables")
        .args(["-w", "10", "-t", "raw"])
        .args(arguments)
        .output()
        .unwrap()
        .status
        .success()
}

/// What a reload of the host's firewall leaves of the rules: nothing.
fn flush(bridge: &str) {
    let chain = bridge.to_uppercase();
    assert!(iptables(&format!("-D PREROUTING -i {bridge} -j {chain}")));
    assert!(iptables(&format!("-F {chain}")) && iptables(&format!("-X {chain}")));
}

#[tokio::test]
async fn rules_that_a_firewall_took_away_are_back_under_a_running_job_and_before_the_next() {
    let Some(farm) = Farm::new(KNOCKS).await else { return };
    let (accepted, port) = service();
    let mut farm = farm.outwards().file("port", port);
    let bridge = farm.bridge();
    let chain = bridge.to_uppercase();
    let report = farm
        .run_beside(async {
            farm.when_started().await;
            flush(&bridge);
            while !iptables(&format!("-C PREROUTING -i {bridge} -j {chain}")) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            farm.give_file("go");
        })
        .await;
    assert_eq!(report.outcome, Outcome::Passed, "{}", farm.output());
    assert!(farm.output().contains("at 198.19.") && farm.output().contains("shut"), "{}", farm.output());

    flush(&bridge);
    farm.next_attempt();
    let farm = farm.file("go", Vec::new());
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed, "{}", farm.output());
    assert!(farm.output().contains("shut"), "{}", farm.output());
    assert_eq!(accepted.load(Ordering::SeqCst), 0, "the host was reached");
    farm.remove_network().await;
}

#[tokio::test]
async fn a_network_that_somebody_cleaned_up_is_made_anew() {
    let Some(farm) = Farm::new("ip route").await else { return };
    let mut farm = farm.outwards();
    assert_eq!(farm.run().await.outcome, Outcome::Passed);
    farm.engine().remove_network(&farm.bridge()).await.unwrap();
    farm.next_attempt();
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed, "{}", farm.output());
    assert!(farm.output().contains("default via"), "{}", farm.output());
    farm.remove_network().await;
}

#[tokio::test]
async fn no_job_gets_out_while_it_is_not_known_what_to_close() {
    let Some(farm) = Farm::new("echo began").await else { return };
    let mut farm = farm.outwards();
    farm.lose_the_coordinator();
    let report = farm.run().await;
    let outcome = report.outcome.to_string();
    assert!(outcome.starts_with("infra") && outcome.contains("the coordinator's address"), "{outcome}");
    assert!(!farm.output().contains("began"), "{}", farm.output());
    farm.remove_network().await;
}

/// What an earlier process of the worker closed stays closed, and what runs behind it goes on.
#[tokio::test]
async fn a_job_goes_on_behind_rules_of_before_a_restart() {
    let Some(farm) = Farm::new("until [ -e go ]; do echo waits; sleep 0.02; done").await else { return };
    let mut farm = farm.outwards();
    farm.killed_after(1, false).await;
    farm.lose_the_coordinator();
    farm.killed_after(100, true).await;
    farm.give_file("go");
    assert_eq!(farm.resume().await.outcome, Outcome::Passed, "{}", farm.output());
    farm.remove_network().await;
}
