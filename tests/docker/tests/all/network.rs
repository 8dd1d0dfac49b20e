//! What an attempt can reach: listeners in every forbidden place count who comes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use buildyard_test_docker::Ground;
use buildyard_worker::engine::contract::Host as _;
use buildyard_worker::engine::{ContainerId, ContainerNetwork, FileContent, Mount};
use buildyard_worker::network::EgressNetwork;

use crate::containers::{end, remove, script, start};

/// Runs a command of the system and says whether it was content.
fn run(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words).output().expect("the program is there");
    if !output.status.success() {
        eprintln!("{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

/// A listener that counts who connects.
#[derive(Clone)]
struct Counter {
    address: SocketAddr,
    accepted: Arc<AtomicU32>,
}

impl Counter {
    fn on(listener: TcpListener) -> Self {
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        let counter = Self { address, accepted: Arc::default() };
        let accepted = Arc::clone(&counter.accepted);
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                accepted.fetch_add(1, Ordering::SeqCst);
            }
        });
        counter
    }

    fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// Another machine beside this one: a network namespace with an address of the world (TEST-NET-3) and a stand-in for
/// the metadata address, both reached through this host's routes.
struct World {
    name: String,
}

const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// On this host itself, as some clouds do it for containers.
const LOCAL_METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 170, 2);

impl World {
    /// `None` and a notice where namespaces cannot be made.
    fn make() -> Option<Self> {
        let world = Self { name: format!("bydt{}", std::process::id()) };
        let name = &world.name;
        let made = run(&format!("ip netns add {name}"))
            && run(&format!("ip link add {name} type veth peer name w0 netns {name}"))
            && run(&format!("ip addr add 203.0.113.1/24 dev {name}"))
            && run(&format!("ip addr add {LOCAL_METADATA}/32 dev {name}"))
            && run(&format!("ip link set {name} up"))
            && run(&format!("ip netns exec {name} ip addr add {WORLD}/24 dev w0"))
            && run(&format!("ip netns exec {name} ip addr add {METADATA}/32 dev w0"))
            && run(&format!("ip netns exec {name} ip link set w0 up"))
            && run(&format!("ip netns exec {name} ip route add default via 203.0.113.1"))
            && run(&format!("ip route add {METADATA}/32 dev {name}"));
        if !made {
            buildyard_test_docker::skipped("no network namespaces here");
            return None;
        }
        Some(world)
    }

    fn listen(&self, address: Ipv4Addr) -> Counter {
        let file =
            std::fs::File::open(format!("/var/run/netns/{}", self.name)).expect("the namespace is there");
        // Only the thread that makes the socket moves; the socket stays where it was made.
        let bound = std::thread::spawn(move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind).expect("setns");
            TcpListener::bind((address, 0)).expect("bind")
        });
        Counter::on(bound.join().expect("no panic"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        run(&format!("ip link del {}", self.name));
        run(&format!("ip netns del {}", self.name));
    }
}

/// First address of an interface.
fn address_of(interface: &str) -> Option<Ipv4Addr> {
    let output = Command::new("ip").args(["-4", "-o", "addr", "show", "dev", interface]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().find_map(|word| word.split_once('/')?.0.parse().ok())
}

/// The interface of the default route.
fn uplink() -> Option<String> {
    let output = Command::new("ip").args(["-4", "route", "show", "default"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().skip_while(|word| *word != "dev").nth(1).map(str::to_owned)
}

/// The egress network with its rules.
async fn closed(ground: &Ground, coordinator: &[SocketAddr]) -> EgressNetwork {
    let egress = EgressNetwork::ensure(ground.engine(), &ground.name()).await.expect("egress");
    egress.set_rules(coordinator).await.expect("rules");
    egress
}

/// Starts a container, isolates its port, and only then lets it knock at each address once: as an attempt is handed its
/// job.
async fn knock(
    ground: &Ground,
    network: ContainerNetwork,
    places: &[SocketAddr],
    isolate: Option<&EgressNetwork>,
) {
    let one =
        |place: &SocketAddr| format!("nc -w 2 {} {} </dev/null >/dev/null 2>&1;", place.ip(), place.port());
    let knocks: String = places.iter().map(one).collect();
    let text = format!("while ! [ -e /gate/open ]; do sleep 0.02; done; {knocks} true");
    let gate = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(gate.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
    let mut spec = script(ground, "knocks", network, &text).await;
    spec.mounts = vec![Mount { source: gate.path().to_owned(), target: "/gate".into(), read_only: true }];
    let id = start(ground, &spec).await;
    if let Some(egress) = isolate {
        egress.isolate().await.expect("isolate");
    }
    std::fs::write(gate.path().join("open"), "").expect("open the gate");
    assert_eq!(end(ground, &id).await, 0);
    remove(ground, &id).await;
}

/// A neighbour that writes down who comes.
async fn neighbour(ground: &Ground, name: &str, network: ContainerNetwork) -> (ContainerId, SocketAddr) {
    let text =
        "echo >/tmp/ready; while true; do nc -l -p 9000 -w 60 -e /bin/sh -c 'echo x >>/tmp/visits'; done";
    let spec = script(ground, name, network, text).await;
    let id = start(ground, &spec).await;
    while ground.engine().read_file(&id, "/tmp/ready", 100).await.expect("read") == FileContent::Missing {
        tokio::task::yield_now().await;
    }
    let output = Command::new("docker")
        .args(["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", &id.0])
        .output()
        .expect("docker");
    let address: Ipv4Addr = String::from_utf8_lossy(&output.stdout).trim().parse().expect("an address");
    (id, (address, 9000).into())
}

async fn visits(ground: &Ground, id: &ContainerId) -> usize {
    match ground.engine().read_file(id, "/tmp/visits", 1_000).await.expect("read") {
        FileContent::Bytes(bytes) => bytes.len() / 2,
        FileContent::Missing => 0,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_reaches_the_world_at_most() {
    let Some(ground) = Ground::find().await else { return };
    let Some(world) = World::make() else { return };
    let (open, coordinator) = (world.listen(WORLD), world.listen(WORLD));
    let metadata = world.listen(METADATA);
    let host = Counter::on(TcpListener::bind("0.0.0.0:0").expect("bind"));
    let docker = ground.docker();
    let egress = closed(&ground, &[coordinator.address]).await;
    let again = closed(&ground, &[coordinator.address]).await;
    assert_eq!(egress, again, "it is found, not made twice");

    let (beside, beside_address) = neighbour(&ground, "beside", egress.container_network()).await;
    let (other, other_address) = neighbour(&ground, "other", ContainerNetwork::Named("bridge".into())).await;
    egress.isolate().await.expect("isolate");
    let port = host.address.port();
    let gateway = egress.subnet().replace(".0/24", ".1").parse().expect("an address");
    let of_host = [
        Some(gateway),
        uplink().and_then(|name| address_of(&name)),
        address_of("docker0"),
        Some(LOCAL_METADATA),
    ];
    let mut places: Vec<SocketAddr> =
        of_host.into_iter().flatten().map(|address| (address, port).into()).collect();
    places.extend([open.address, coordinator.address, metadata.address, beside_address, other_address]);

    let modes = [
        (ContainerNetwork::None, false, false),
        (egress.container_network(), true, false),
        // The control: the same knocks reach all that is listened to, so that a zero above means something.
        (ContainerNetwork::Host, true, true),
    ];
    for (network, reaches_world, reaches_all) in modes {
        let before = [&open, &coordinator, &metadata, &host].map(Counter::accepted);
        let visits_before = visits(&ground, &beside).await + visits(&ground, &other).await;
        knock(&ground, network.clone(), &places, Some(&egress)).await;
        let after = [&open, &coordinator, &metadata, &host].map(Counter::accepted);
        let accepted: Vec<u32> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        let visited = visits(&ground, &beside).await + visits(&ground, &other).await - visits_before;
        assert_eq!(accepted[0], u32::from(reaches_world), "{network:?}: the world");
        assert_eq!(accepted[1..3], [u32::from(reaches_all); 2], "{network:?}: coordinator and metadata");
        let of_host = places.len() as u32 - 5;
        assert_eq!(accepted[3], if reaches_all { of_host } else { 0 }, "{network:?}: the host");
        // Not even the host has an answer from the one beside: answers to the host are closed too.
        assert_eq!(visited, usize::from(reaches_all), "{network:?}: neighbours");
        println!(
            "{network:?}: {} places, world {}, forbidden {:?} and {visited}",
            places.len(),
            accepted[0],
            &accepted[1..]
        );
    }
    remove(&ground, &beside).await;
    remove(&ground, &other).await;
    EgressNetwork::remove(&*docker, &ground.name()).await.expect("remove");
    EgressNetwork::remove(&*docker, &ground.name()).await.expect("removing again is fine");
    assert_no_rules(&ground);
}

fn assert_no_rules(ground: &Ground) {
    let output = Command::new("iptables-save").output().expect("iptables-save");
    let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
    let name = format!("byd-{}", ground.name().short());
    assert!(!text.contains(&name), "rules of {name} are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn isolation_holds_without_dockers_own_rule() {
    let Some(ground) = Ground::find().await else { return };
    let docker = ground.docker();
    let egress = closed(&ground, &[]).await;
    let bridge = format!("byd-{}", ground.name().short());
    // Whoever changes the host's firewall may do this.
    assert!(run(&format!("iptables -w 10 -I FORWARD -i {bridge} -o {bridge} -j ACCEPT")));
    let (beside, address) = neighbour(&ground, "beside", egress.container_network()).await;

    let mut seen = Vec::new();
    for isolated in [false, true] {
        let before = visits(&ground, &beside).await;
        knock(&ground, egress.container_network(), &[address], isolated.then_some(&egress)).await;
        seen.push(visits(&ground, &beside).await - before);
    }
    assert!(run(&format!("iptables -w 10 -D FORWARD -i {bridge} -o {bridge} -j ACCEPT")));
    assert_eq!(seen, [1, 0], "reached before, and not after, the ports were isolated");
    remove(&ground, &beside).await;
    EgressNetwork::remove(&*docker, &ground.name()).await.expect("remove");
    assert_no_rules(&ground);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_come_back_and_names_resolve() {
    let Some(ground) = Ground::find().await else { return };
    let docker = ground.docker();
    let egress = closed(&ground, &[]).await;
    let bridge = format!("byd-{}", ground.name().short());
    let chain = bridge.to_uppercase();
    assert!(egress.is_closed().await.expect("a look"));
    // As a firewall does that is reloaded.
    assert!(run(&format!("iptables -w 10 -t raw -D PREROUTING -i {bridge} -j {chain}")));
    assert!(run(&format!("iptables -w 10 -t raw -F {chain}")));
    assert!(!egress.is_closed().await.expect("a look"));
    let host = Counter::on(TcpListener::bind("0.0.0.0:0").expect("bind"));
    let gateway: Ipv4Addr = egress.subnet().replace(".0/24", ".1").parse().expect("an address");
    let place = (gateway, host.address.port()).into();
    for (set_again, expected) in [(false, 1), (true, 1)] {
        if set_again {
            egress.set_rules(&[]).await.expect("rules");
            egress.set_rules(&[]).await.expect("and again");
        }
        knock(&ground, egress.container_network(), &[place], Some(&egress)).await;
        assert_eq!(host.accepted(), expected, "reached while there were no rules, and not since");
    }
    let output = Command::new("iptables-save").args(["-t", "raw"]).output().expect("iptables-save");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text.matches(&format!("-A PREROUTING -i {bridge} ")).count(), 1, "{text}");

    // Docker's resolver knows the container itself, which shows that it answers.
    let spec = script(&ground, "asks", egress.container_network(), "nslookup $(hostname)").await;
    let id = start(&ground, &spec).await;
    assert_eq!(end(&ground, &id).await, 0, "the resolver answers");
    remove(&ground, &id).await;
    EgressNetwork::remove(&*docker, &ground.name()).await.expect("remove");
    assert_no_rules(&ground);
}
