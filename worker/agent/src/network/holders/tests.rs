use std::sync::atomic::{AtomicU64, Ordering};

use buildyard_types::RunId;

use super::*;
use crate::engine::scripted::{Program, ScriptedEngine, ScriptedImage};

fn attempt(job: u32) -> AttemptId {
    RunId(1).job(job).attempt(1)
}

fn wanted() -> Wanted {
    Wanted { network: ContainerNetwork::None, image: "debian:12".into() }
}

fn no_sockets(_: u32) -> io::Result<BTreeSet<String>> {
    Ok(BTreeSet::new())
}

/// Another one at each look.
fn more_and_more_sockets(_: u32) -> io::Result<BTreeSet<String>> {
    static LOOKS: AtomicU64 = AtomicU64::new(0);
    Ok([LOOKS.fetch_add(1, Ordering::Relaxed).to_string()].into())
}

struct Case {
    _temp: tempfile::TempDir,
    engine: ScriptedEngine,
    holders: Arc<Holders>,
}

impl Case {
    fn new(most: usize, sockets: Sockets) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let init = temp.path().join("init");
        std::fs::write(&init, "").unwrap();
        let engine = ScriptedEngine::new(|_| Program::Runs);
        engine.hold_image(ScriptedImage::plain("debian:12"));
        let holders = Holders::new(Arc::new(engine.clone()), Instance::new("test"), init, most, sockets);
        Self { _temp: temp, engine, holders }
    }

    async fn names(&self) -> BTreeSet<String> {
        let found = self.engine.containers(&Instance::new("test")).await.unwrap();
        found.into_iter().map(|container| container.name).collect()
    }

    /// Waits until nothing is being made or taken away.
    async fn settled(&self) {
        self.holders.work.close();
        self.holders.work.wait().await;
        self.holders.work.reopen();
    }
}

#[tokio::test]
async fn one_that_is_left_as_it_was_is_lent_again() {
    let case = Case::new(4, no_sockets);
    assert_eq!(case.holders.lend(attempt(0), &ContainerNetwork::None), None);
    case.holders.make(wanted());
    case.settled().await;
    let first = case.holders.lend(attempt(0), &ContainerNetwork::None).expect("there is one");
    assert_eq!(case.holders.lend(attempt(1), &ContainerNetwork::None), None, "to one at a time");
    case.holders.give_back(attempt(0));
    let other = ContainerNetwork::Named("byd-1".into());
    assert_eq!(case.holders.lend(attempt(1), &other), None, "it is on another network");
    assert_eq!(case.holders.lend(attempt(1), &ContainerNetwork::None), Some(first));
    assert_eq!(case.holders.lent_to(attempt(1)), case.names().await.into_iter().next());
}

#[tokio::test]
async fn one_that_holds_a_socket_more_is_thrown_away_and_another_made() {
    let case = Case::new(4, more_and_more_sockets);
    case.holders.make(wanted());
    case.settled().await;
    let before = case.names().await;
    case.holders.lend(attempt(0), &ContainerNetwork::None).expect("there is one");
    case.holders.give_back(attempt(0));
    case.settled().await;
    let after = case.names().await;
    assert_eq!((before.len(), after.len()), (1, 1));
    assert!(before.is_disjoint(&after), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_served_for_long_is_replaced() {
    let case = Case::new(4, no_sockets);
    case.holders.make(wanted());
    case.settled().await;
    let before = case.names().await;
    case.holders.lend(attempt(0), &ContainerNetwork::None).expect("there is one");
    tokio::time::sleep(AGE_LIMIT).await;
    case.holders.give_back(attempt(0));
    case.settled().await;
    let after = case.names().await;
    assert!(after.len() == 1 && before.is_disjoint(&after), "{after:?}");
}

#[tokio::test]
async fn they_are_bounded_in_number() {
    let case = Case::new(3, no_sockets);
    for _ in 0..20 {
        case.holders.make(wanted());
    }
    case.settled().await;
    assert_eq!(case.names().await.len(), 3);
    let none = Case::new(0, no_sockets);
    none.holders.make(wanted());
    none.settled().await;
    assert_eq!(none.names().await.len(), 0);
}

#[tokio::test]
async fn nothing_is_left_when_the_worker_ends() {
    let case = Case::new(4, no_sockets);
    for _ in 0..3 {
        case.holders.make(wanted());
    }
    case.settled().await;
    case.holders.lend(attempt(0), &ContainerNetwork::None).expect("there is one");
    case.holders.close().await;
    assert_eq!(
        case.names().await,
        case.holders.lent_to(attempt(0)).into_iter().collect(),
        "its attempt goes on"
    );
    case.holders.make(wanted());
    case.holders.give_back(attempt(0));
    case.holders.close().await;
    assert!(case.names().await.is_empty());
}

#[tokio::test]
async fn one_of_an_earlier_process_goes_with_its_attempt() {
    let case = Case::new(4, no_sockets);
    case.holders.make(wanted());
    case.settled().await;
    let name = case.names().await.into_iter().next().unwrap();
    let successor =
        Holders::new(Arc::new(case.engine.clone()), Instance::new("test"), "init".into(), 4, no_sockets);
    successor.adopt(attempt(7), name.clone());
    assert_eq!(successor.lent_to(attempt(7)), Some(name));
    successor.give_back(attempt(7));
    successor.close().await;
    assert!(case.names().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_nobody_wants_goes_after_a_while() {
    let case = Case::new(4, no_sockets);
    case.holders.make(wanted());
    case.settled().await;
    tokio::time::sleep(IDLE_LIMIT - LOOK_EVERY).await;
    assert_eq!(case.names().await.len(), 1);
    tokio::time::sleep(LOOK_EVERY * 3).await;
    case.settled().await;
    assert!(case.names().await.is_empty());
}

#[test]
fn the_kernel_lists_the_sockets_of_a_namespace() {
    let before = sockets(std::process::id()).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!(":{:04X}", listener.local_addr().unwrap().port());
    let now = sockets(std::process::id()).unwrap();
    let added: Vec<_> = now.difference(&before).filter(|socket| socket.contains(&port)).collect();
    assert_eq!(added.len(), 1, "{added:?}");
    assert!(sockets(u32::MAX).is_err(), "of a process that is gone nothing is known");
}
