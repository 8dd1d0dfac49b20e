//! Looking for an attempt's container, and taking everything of an attempt away, confirmed.

use std::time::Duration;

use buildyard_types::AttemptId;
use tokio::time::sleep;

use super::Executor;
use super::outcome::{Ending, in_one_sentence};
use crate::backoff::Backoff;
use crate::engine::{ContainerDetails, ContainerId, ContainerState, Exit};

/// What became of a container.
pub(super) enum Found {
    /// It runs, with this first process.
    Running(ContainerDetails, u32),
    /// It does not.
    Ended(Ending),
}

/// Waiting times for an engine that is away: soon at first, since most restarts take a second or two.
fn engine_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(5))
}

impl Executor {
    /// Looks for the container of an attempt, and waits for an engine that is away.
    pub(super) async fn find(&self, attempt: AttemptId) -> Found {
        let name = ContainerId(self.container_name(attempt));
        let mut backoff = engine_backoff();
        loop {
            match self.engine.inspect(&name).await {
                Ok(details) => match details.state {
                    ContainerState::Running { pid, .. } => return Found::Running(details, pid),
                    ContainerState::Exited(exit) => return Found::Ended(self.silent(exit).await),
                    ContainerState::Created | ContainerState::Removing => {
                        return Found::Ended(Ending::Vanished);
                    }
                },
                Err(error) if error.is_not_found() => return Found::Ended(Ending::Vanished),
                Err(error) => {
                    tracing::warn!(attempt_id = %attempt, error = %in_one_sentence(&error), "looking for a container");
                    sleep(backoff.next()).await;
                }
            }
        }
    }

    /// Waits until a container has ended, also over restarts of the engine.
    pub(super) async fn wait(&self, container: &ContainerId) -> Ending {
        let mut backoff = engine_backoff();
        loop {
            match self.engine.wait(container).await {
                Ok(exit) => return self.silent(exit).await,
                Err(error) if error.is_not_found() => return Ending::Vanished,
                Err(error) => {
                    tracing::warn!(container = %container, error = %in_one_sentence(&error), "waiting for a container");
                    sleep(backoff.next()).await;
                }
            }
        }
    }

    async fn silent(&self, exit: Exit) -> Ending {
        let mut backoff = engine_backoff();
        let engine = loop {
            match self.engine.info().await {
                Ok(info) => break info,
                Err(error) => {
                    tracing::warn!(error = %in_one_sentence(&error), "asking the engine when it started");
                    sleep(backoff.next()).await;
                }
            }
        };
        let engine_restarted = match (engine.started, exit.started) {
            (Some(engine), Some(container)) => engine > container,
            (None, _) | (_, None) => false,
        };
        Ending::Silent { exit, engine_restarted }
    }

    /// Takes container, workspace and network leftovers of an attempt away, and returns when nothing is left.
    /// What will not go is tried again, for as long as the worker runs. The log stays.
    pub async fn remove(&self, attempt: AttemptId) {
        let name = ContainerId(self.container_name(attempt));
        let mut backoff = engine_backoff();
        // The container first: it holds the workspace, and on a full disk only its end makes room.
        while let Err(error) = self.engine.remove(&name).await {
            tracing::warn!(attempt_id = %attempt, error = %in_one_sentence(&error), "the container stays for now");
            sleep(backoff.next()).await;
        }
        self.holders.give_back(attempt);
        let mut backoff = engine_backoff();
        while let Err(error) = self.workspaces.remove(attempt).await {
            tracing::warn!(attempt_id = %attempt, error = %in_one_sentence(&error), "the workspace stays for now");
            sleep(backoff.next()).await;
        }
    }
}
