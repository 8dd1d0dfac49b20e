//! What this host has to give, looked at again every few seconds.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use buildyard_types::worker::{Capacity, Offer};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::config::CapacitySettings;
use crate::engine::{Engine, EngineInfo};
use crate::executor::outcome::in_one_sentence;
use crate::host;

/// Time between two looks at the host.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The host as a worker offers it.
#[derive(Debug)]
pub(super) struct Host {
    /// What its owner says of it.
    pub(super) capacity: CapacitySettings,
    /// Where the worker keeps its data.
    pub(super) data: PathBuf,
}

impl Host {
    /// Looks at everything, for the first time.
    pub(super) async fn look(&self, engine: &dyn Engine, info: &EngineInfo) -> Offer {
        let capacity = host::capacity(info, &self.data, &self.capacity).unwrap_or_else(|error| {
            tracing::warn!(%error, "the disk cannot be looked at, so none is offered");
            Capacity::default()
        });
        let offer = Offer {
            facts: host::facts(info),
            capacity,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: BTreeSet::new(),
            images: Vec::new(),
            unfit: None,
        };
        self.look_again(engine, info, offer).await
    }

    /// Looks at what changes: images, the engine's health, room on the disks. Facts and capacity stay as they were
    /// found; an offer that changed with every file that comes and goes would be put on record each time.
    async fn look_again(&self, engine: &dyn Engine, info: &EngineInfo, last: Offer) -> Offer {
        let unfit = host::unfit(engine, Some(info), &self.data).await;
        match engine.images().await {
            Ok(images) => Offer { images, unfit, ..last },
            Err(error) => {
                tracing::debug!(error = %in_one_sentence(&error), "the images cannot be listed");
                Offer { unfit, ..last }
            }
        }
    }

    /// Looks again and again, for as long as somebody listens.
    pub(super) async fn watch(self, engine: Arc<dyn Engine>, info: EngineInfo, offer: watch::Sender<Offer>) {
        while !offer.is_closed() {
            sleep(LOOK_EVERY).await;
            let last = offer.borrow().clone();
            let now = self.look_again(&*engine, &info, last).await;
            offer.send_if_modified(|offer| {
                let changed = *offer != now;
                *offer = now;
                changed
            });
        }
    }
}
