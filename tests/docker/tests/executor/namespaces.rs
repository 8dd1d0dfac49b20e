//! Attempts in network namespaces that were made ahead.

use std::sync::atomic::Ordering;

use buildyard_types::Outcome;

use crate::farm::{Farm, farm};
use crate::outwards::{KNOCKS, service};

/// What can be seen of a namespace.
const NAMESPACE: &str = "readlink /proc/self/ns/net; ip -o addr | sed 's/ *valid_lft.*//'; cat /etc/hosts";

async fn run(farm: &Farm) -> String {
    let report = farm.run().await;
    assert_eq!(report.outcome, Outcome::Passed, "{}", farm.output());
    farm.output()
}

#[tokio::test]
async fn one_that_is_clean_is_used_again_and_nothing_of_it_is_seen_in_it() {
    let mut farm = farm!(NAMESPACE).with_holders();
    // It finds none, and has one made.
    run(&farm).await;
    assert_eq!(farm.joined(), None);
    farm.when_held().await;
    farm.next_attempt();
    let first = run(&farm).await;
    let holder = farm.joined();
    assert_eq!(farm.containers().await, holder.iter().cloned().collect::<Vec<_>>(), "it stays");
    farm.next_attempt();
    let second = run(&farm).await;
    assert_eq!(first, second);
    assert_eq!(farm.joined(), holder);
    assert!(first.contains("127.0.0.1/8"), "{first}");
    farm.close_holders().await;
    assert_eq!(farm.containers().await, [""; 0]);
}

/// A connection that was closed keeps its port busy for a minute, in which nobody else may be given the namespace.
#[tokio::test]
async fn one_in_which_a_connection_lingers_is_not_lent_again() {
    // Until one is in TIME_WAIT: whether it comes to that depends on who closes first.
    let script = "grep -c ' 06 ' /proc/net/tcp || true
        until grep -q ' 06 ' /proc/net/tcp; do
            nc -l -p 7000 </dev/null & sleep 0.2; echo hello | nc -w 1 127.0.0.1 7000 || true; wait
        done";
    let mut farm = farm!(script).with_holders();
    run(&farm).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        farm.when_held().await;
        farm.next_attempt();
        seen.push(run(&farm).await.lines().next().unwrap().to_owned());
        assert!(farm.joined().is_some());
    }
    // Not by the namespaces' names, which the kernel gives again.
    assert_eq!(seen, ["0"; 3], "connections that linger at the beginning of each");
    farm.close_holders().await;
    assert_eq!(farm.containers().await, [""; 0]);
}

#[tokio::test]
async fn with_a_way_outwards_it_is_closed_to_the_host() {
    let (accepted, port) = service();
    let mut farm = farm!(&format!("touch go; ip -o -4 addr show eth0; cat /etc/resolv.conf; {KNOCKS}"))
        .outwards()
        .file("port", port)
        .with_holders();
    run(&farm).await;
    farm.when_held().await;
    farm.next_attempt();
    let output = run(&farm).await;
    assert!(farm.joined().is_some());
    assert!(output.contains("198.19.") && output.contains("nameserver"), "{output}");
    assert!(output.contains("shut"), "{output}");
    assert_eq!(accepted.load(Ordering::SeqCst), 0, "the host was reached");
    farm.close_holders().await;
    farm.remove_network().await;
    assert_eq!(farm.containers().await, [""; 0]);
}
