//! The networks of attempts: none, egress, or the host's.
//!
//! Egress is one bridge per worker. What an attempt on it must not reach, and what keeps it from that:
//!
//! | place | kept out by |
//! |---|---|
//! | the host, on every address it has, and ports that it forwards | the packet filter, before routing and translation |
//! | neighbours on the same bridge | the ports of the bridge are isolated; Docker's own rule beside it |
//! | containers on other bridges | Docker's isolation between bridges |
//! | link-local and metadata addresses | the packet filter |
//! | the coordinator, on whatever host | the packet filter, by address and port |
//! | all of it by IPv6 | the bridge speaks none |
//!
//! The rules sit in a chain of their own in the `raw` table: it is passed before any other, so that no rule of a host's
//! firewall comes before them and no forwarded port has been translated yet. Names are resolved all the same: Docker's
//! resolver is inside the container, and the name servers of the host stay open on port 53 wherever they are.
//!
//! Others change a host's firewall too, and a reload of theirs takes our rules along. So they are set before each start
//! and every few seconds while jobs run; where that fails nothing is started and what runs is stopped: see [`Egress`].

mod egress;
pub mod holders;
mod rules;
mod subnet;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::engine::{ContainerNetwork, Engine, EngineError, Instance, NetworkInfo, NetworkSpec};
pub use egress::{Egress, HOLD_EVERY};
pub use holders::Holders;
use rules::Rules;

/// Subnets that are tried before giving up.
const MAX_SUBNETS: usize = 64;

/// Why the egress network could not be made, closed or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The engine would not do its part.
    #[error("the egress network could not be set up")]
    Engine(#[from] EngineError),
    /// A rule of the packet filter could not be set.
    #[error("the packet filter refused `{command}`: {message}")]
    Filter {
        /// The command.
        command: String,
        /// What it said.
        message: String,
    },
    /// It is not known what to close.
    #[error(
        "the coordinator's address `{host}` is not known, so that jobs could not be kept from it; no job gets a network: \
         {why}"
    )]
    Coordinator {
        /// Host and port.
        host: String,
        /// What the look-up said.
        why: String,
    },
    /// A port of the bridge could not be cut off from its neighbours.
    #[error("`{port}` could not be cut off from its neighbours")]
    Isolate {
        /// Name of the interface.
        port: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The bridge could not be kept from speaking IPv6.
    #[error("IPv6 could not be turned off for the bridge at {path}")]
    Ipv6 {
        /// The kernel's switch.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Every candidate subnet is in use.
    #[error("no free subnet for the egress network among {tried} of 198.19.0.0/16")]
    NoSubnet {
        /// How many were tried.
        tried: usize,
    },
    /// Another network has our name.
    #[error(
        "a network `{name}` is there that this worker did not make; remove it with `docker network rm {name}`"
    )]
    Foreign {
        /// The name.
        name: String,
    },
}

/// The bridge of one worker through which its attempts reach the world and nothing nearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressNetwork {
    bridge: String,
    subnet: String,
}

/// Name of the bridge and of the engine's network.
fn bridge_of(instance: &Instance) -> String {
    format!("byd-{}", instance.short())
}

impl EgressNetwork {
    /// Makes the bridge, or finds it. Its rules are not set by that.
    pub async fn ensure(engine: &dyn Engine, instance: &Instance) -> Result<Self, NetworkError> {
        let bridge = bridge_of(instance);
        let networks = engine.networks().await?;
        let subnet = match networks.iter().find(|network| network.name == bridge) {
            Some(found) => known_subnet(found, instance)?,
            None => create(engine, instance, &networks).await?,
        };
        Ok(Self { bridge, subnet })
    }

    /// Sets the rules, whatever is left of earlier ones. Safe while attempts run. `coordinator` lists the addresses of
    /// the coordinator; any address of this host is closed anyway.
    pub async fn set_rules(&self, coordinator: &[SocketAddr]) -> Result<(), NetworkError> {
        set_rules(&self.bridge, coordinator).await
    }

    /// Whether rules are set.
    pub async fn is_closed(&self) -> Result<bool, NetworkError> {
        rules::are_set(&self.bridge).await
    }

    /// What a container of this network asks of the engine.
    pub fn container_network(&self) -> ContainerNetwork {
        ContainerNetwork::Named(self.bridge.clone())
    }

    /// The same, before the network is there.
    pub fn container_network_of(instance: &Instance) -> ContainerNetwork {
        ContainerNetwork::Named(bridge_of(instance))
    }

    /// Its subnet: `198.19.7.0/24`.
    pub fn subnet(&self) -> &str {
        &self.subnet
    }

    /// Cuts the attempts on the bridge off from each other. Call it after a container on it was started and before the
    /// job is handed over. Takes microseconds.
    pub async fn isolate(&self) -> Result<(), NetworkError> {
        let ports = Path::new("/sys/class/net").join(&self.bridge).join("brif");
        let fail = |port: &str, source| NetworkError::Isolate { port: port.to_owned(), source };
        let entries = std::fs::read_dir(&ports).map_err(|source| fail(&self.bridge, source))?;
        for entry in entries.flatten() {
            let port = entry.file_name().to_string_lossy().into_owned();
            match isolate_port(&entry.path()) {
                Ok(()) => {}
                // Its container ended meanwhile.
                Err(error) if !entry.path().exists() => drop(error),
                // Kernels before 4.18: then Docker's own rule has to do, if bridged packets pass the filter at all.
                Err(error)
                    if error.kind() == std::io::ErrorKind::NotFound && bridged_packets_are_filtered() => {}
                Err(error) => return Err(fail(&port, error)),
            }
        }
        Ok(())
    }

    /// Removes the bridge and the rules of an instance, in whatever state they are. Its containers must be gone.
    pub async fn remove(engine: &dyn Engine, instance: &Instance) -> Result<(), NetworkError> {
        let bridge = bridge_of(instance);
        engine.remove_network(&bridge).await?;
        rules::remove(&bridge).await
    }
}

async fn set_rules(bridge: &str, coordinator: &[SocketAddr]) -> Result<(), NetworkError> {
    let rules =
        Rules { bridge: bridge.to_owned(), coordinator: coordinator.to_vec(), resolvers: rules::resolvers() };
    rules.set().await?;
    turn_off_ipv6(bridge)
}

fn isolate_port(port: &Path) -> std::io::Result<()> {
    let switch = port.join("isolated");
    std::fs::write(&switch, "1")?;
    match std::fs::read_to_string(&switch)?.trim() {
        "1" => Ok(()),
        other => Err(std::io::Error::other(format!("the kernel says `{other}` after it was told `1`"))),
    }
}

fn bridged_packets_are_filtered() -> bool {
    std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables")
        .is_ok_and(|text| text.trim() == "1")
}

fn turn_off_ipv6(bridge: &str) -> Result<(), NetworkError> {
    let path = Path::new("/proc/sys/net/ipv6/conf").join(bridge).join("disable_ipv6");
    match std::fs::write(&path, "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| NetworkError::Ipv6 { path, source }),
    }
}

/// The subnet of a network that an earlier start made.
fn known_subnet(found: &NetworkInfo, instance: &Instance) -> Result<String, NetworkError> {
    let (key, value) = instance.label();
    let ours = found.labels.get(&key) == Some(&value) && found.bridge.as_ref() == Some(&found.name);
    match found.subnets.first() {
        Some(subnet) if ours => Ok(subnet.clone()),
        Some(_) | None => Err(NetworkError::Foreign { name: found.name.clone() }),
    }
}

/// Makes the network on the first subnet that nobody uses.
async fn create(
    engine: &dyn Engine,
    instance: &Instance,
    networks: &[NetworkInfo],
) -> Result<String, NetworkError> {
    let taken: Vec<String> =
        networks.iter().flat_map(|network| network.subnets.clone()).chain(subnet::routed()).collect();
    let mut tried = 0;
    for third in
        subnet::candidates(instance).filter(|third| subnet::is_free(*third, &taken)).take(MAX_SUBNETS)
    {
        tried += 1;
        let spec = NetworkSpec {
            name: bridge_of(instance),
            bridge: bridge_of(instance),
            subnet: format!("{}/24", Ipv4Addr::new(198, 19, third, 0)),
            gateway: Ipv4Addr::new(198, 19, third, 1).to_string(),
            labels: [instance.label()].into(),
        };
        match engine.create_network(&spec).await {
            Ok(()) => return Ok(spec.subnet),
            // Somebody took it between the look and the leap.
            Err(EngineError::Conflict { .. }) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(NetworkError::NoSubnet { tried })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::scripted::{Program, ScriptedEngine};

    #[tokio::test]
    async fn a_network_is_made_once_and_beside_those_that_are_there() {
        let engine = ScriptedEngine::new(|_| Program::Runs);
        let instance = Instance::new("wkr-1");
        let first = create(&engine, &instance, &[]).await.expect("made");
        let found = engine.networks().await.expect("list");
        assert_eq!(known_subnet(&found[0], &instance).expect("ours"), first);
        assert!(matches!(
            known_subnet(&found[0], &Instance::new("wkr-2")),
            Err(NetworkError::Foreign { .. })
        ));
        let second = create(&engine, &Instance::new("wkr-2"), &found).await.expect("made");
        assert_ne!(first, second);
    }

    #[test]
    fn names_fit_an_interface() {
        let name = bridge_of(&Instance::new(&"x".repeat(500)));
        assert!(name.len() <= 15 && name.starts_with("byd-"), "{name}");
    }
}
