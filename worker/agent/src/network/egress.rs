//! The way outwards of one worker, as its attempts use it: made when the first of them wants it, and closed towards the
//! farm again before each start and while they run, whatever a firewall or a clean-up of the host did meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::{EgressNetwork, NetworkError, bridge_of, rules, set_rules};
use crate::engine::{Engine, Instance};

/// How often the rules are set again while attempts run.
pub const HOLD_EVERY: Duration = Duration::from_secs(10);
/// Time for a name server to answer.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);
/// Addresses of one coordinator that are closed.
const MAX_ADDRESSES: usize = 64;

/// The egress network, with what is known of it.
#[derive(Debug)]
pub struct Egress {
    /// `host:port` of the coordinator, which attempts must not reach; `None` where there is none.
    coordinator: Option<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    network: Option<EgressNetwork>,
    /// Of the coordinator, as they were last known.
    addresses: Vec<SocketAddr>,
    /// When the rules were last set.
    set: Option<Instant>,
}

impl Egress {
    /// Nothing is made yet. `coordinator` is its URL.
    pub fn new(coordinator: Option<&str>) -> Self {
        Self { coordinator: coordinator.map(host_and_port), state: Mutex::default() }
    }

    /// The network, which is made where there is none. Its rules have yet to be set: see [`Egress::close`].
    pub async fn network(
        &self,
        engine: &dyn Engine,
        instance: &Instance,
    ) -> Result<EgressNetwork, NetworkError> {
        let mut state = self.state.lock().await;
        match &state.network {
            Some(network) => Ok(network.clone()),
            None => {
                let network = EgressNetwork::ensure(engine, instance).await?;
                state.network = Some(network.clone());
                Ok(network)
            }
        }
    }

    /// Sets the rules of the network, which need not be there yet. No job may be on it before they were.
    pub async fn close(&self, instance: &Instance) -> Result<(), NetworkError> {
        self.set(&mut *self.state.lock().await, instance).await
    }

    /// Sees to it that the rules were set within the last [`HOLD_EVERY`]. However many attempts ask, it is done once.
    /// Asks nothing of the engine, which may be away while jobs go on.
    pub async fn hold(&self, instance: &Instance) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        if state.set.is_some_and(|set| set.elapsed() < HOLD_EVERY) {
            return Ok(());
        }
        match self.set(&mut state, instance).await {
            // An earlier process of this worker knew the address, or the packet filter is busy; what was closed still is.
            Err(NetworkError::Coordinator { .. } | NetworkError::Filter { .. })
                if rules::are_set(&bridge_of(instance)).await? =>
            {
                state.set = Some(Instant::now());
                Ok(())
            }
            other => other,
        }
    }

    /// The engine does not know the network any more: the next attempt makes it anew.
    pub async fn forget(&self) {
        self.state.lock().await.network = None;
    }

    /// Whether a network was made.
    pub async fn is_made(&self) -> bool {
        self.state.lock().await.network.is_some()
    }

    async fn set(&self, state: &mut State, instance: &Instance) -> Result<(), NetworkError> {
        self.look_up(state).await?;
        state.set = None;
        set_rules(&bridge_of(instance), &state.addresses).await?;
        state.set = Some(Instant::now());
        Ok(())
    }

    /// Looks the coordinator up again, since its address can change. What was known stays good while no name server
    /// answers; as long as nothing is known, nothing is let out.
    async fn look_up(&self, state: &mut State) -> Result<(), NetworkError> {
        let Some(host) = &self.coordinator else { return Ok(()) };
        let why = match timeout(LOOKUP_LIMIT, tokio::net::lookup_host(host)).await {
            Ok(Ok(found)) => {
                let found: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
                if !found.is_empty() {
                    state.addresses = found;
                    return Ok(());
                }
                "it has no address".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", LOOKUP_LIMIT.as_secs()),
        };
        if state.addresses.is_empty() {
            return Err(NetworkError::Coordinator { host: host.clone(), why });
        }
        tracing::debug!(%host, why, "the coordinator's address is not looked up again");
        Ok(())
    }
}

fn host_and_port(url: &str) -> String {
    let host = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    if host.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn looked_up(coordinator: Option<&str>, known: &[SocketAddr]) -> Result<Vec<SocketAddr>, String> {
        let egress = Egress::new(coordinator);
        let mut state = egress.state.lock().await;
        state.addresses = known.to_vec();
        egress.look_up(&mut state).await.map_err(|error| error.to_string())?;
        Ok(state.addresses.clone())
    }

    #[tokio::test]
    async fn a_coordinator_without_a_port_listens_on_80() {
        for (url, address) in
            [("http://127.0.0.1", "127.0.0.1:80"), ("http://127.0.0.1:7317/", "127.0.0.1:7317")]
        {
            assert_eq!(looked_up(Some(url), &[]).await.unwrap(), [address.parse().unwrap()]);
        }
    }

    #[tokio::test]
    async fn nothing_is_let_out_while_the_coordinators_address_is_not_known() {
        // Too long for a name, so that no name server is asked.
        let nowhere = format!("http://{}.invalid:7317", "x".repeat(300));
        let refused = looked_up(Some(&nowhere), &[]).await.unwrap_err();
        assert!(refused.contains("the coordinator's address"), "{refused}");
        let known = ["203.0.113.7:7317".parse().unwrap()];
        assert_eq!(looked_up(Some(&nowhere), &known).await.unwrap(), known, "what was known stays good");
        assert_eq!(looked_up(None, &[]).await.unwrap(), [], "there is none");
    }
}
