//! The networks of attempts: none, egress, or the host's.

use std::net::SocketAddr;

use crate::engine::{ContainerNetwork, Engine, EngineError, Instance};

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
    /// A port of the bridge could not be cut off from its neighbours.
    #[error("the port `{port}` could not be isolated from its neighbours")]
    Isolate {
        /// Name of the interface.
        port: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Every candidate subnet is in use.
    #[error("no free subnet for the egress network in {tried}")]
    NoSubnet {
        /// Where was looked.
        tried: String,
    },
}

/// The bridge of one worker through which its attempts reach the world and nothing nearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressNetwork {
    name: String,
    bridge: String,
    blocked: Vec<SocketAddr>,
}

impl EgressNetwork {
    /// Makes the bridge and its rules, or finds them. `coordinator` lists the addresses of the coordinator, which
    /// attempts must not reach; any address of this host is closed to them anyway.
    pub async fn ensure(
        _engine: &dyn Engine,
        instance: &Instance,
        coordinator: &[SocketAddr],
    ) -> Result<Self, NetworkError> {
        let bridge = format!("byd-{}", instance.short());
        Ok(Self { name: bridge.clone(), bridge, blocked: coordinator.to_vec() })
    }

    /// Sets the rules again where something took them away. Cheap; call it every now and then.
    pub async fn ensure_rules(&self) -> Result<(), NetworkError> {
        unimplemented!("{} {:?}", self.bridge, self.blocked)
    }

    /// What a container of this network asks of the engine.
    pub fn container_network(&self) -> ContainerNetwork {
        ContainerNetwork::Named(self.name.clone())
    }

    /// Cuts the attempts on the bridge off from each other. Call it after a container on it was started and before
    /// the job is handed over.
    pub async fn isolate(&self) -> Result<(), NetworkError> {
        unimplemented!()
    }

    /// Removes the bridge and the rules of an instance, in whatever state they are.
    pub async fn remove(_engine: &dyn Engine, _instance: &Instance) -> Result<(), NetworkError> {
        unimplemented!()
    }
}
