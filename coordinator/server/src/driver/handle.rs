//! What others hold of the driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use buildyard_scheduler::{Core, Input, Reply};
use buildyard_store::Token;
use buildyard_types::worker::{SyncRequest, SyncResponse};
use buildyard_types::{RunId, Timestamp, WorkerId};
use tokio::sync::{mpsc, oneshot};

use super::{Call, DriverError};

/// Longest wait to be let into the queue and for a commit, together: a proxy before us would give up soon after.
/// Beyond it a call that was not taken up never will be; what became of one that was is not known.
const PATIENCE: Duration = Duration::from_secs(30);

/// The act of a person or of an administrator's token, for the audit.
#[derive(Debug, Clone)]
pub(crate) struct Act {
    /// The token's name.
    pub(crate) actor: String,
    /// What: `run.cancel`.
    pub(crate) act: &'static str,
    /// On what; the run that was made, if that is not known before.
    pub(crate) subject: Option<String>,
}

/// Where a change is answered. Either the driver takes the call up or its caller gives it up, never both: so who
/// gave up in time knows that nothing was changed.
pub(crate) struct Answer {
    sender: oneshot::Sender<Result<Reply, DriverError>>,
    settled: Arc<AtomicBool>,
}

impl Answer {
    /// Takes the call up; false if nobody waits for it any more.
    pub(super) fn take_up(&self) -> bool {
        !self.sender.is_closed() && !self.settled.swap(true, Ordering::Relaxed)
    }

    /// Tells the caller, who may be gone.
    pub(super) fn tell(self, reply: Result<Reply, DriverError>) {
        drop(self.sender.send(reply));
    }
}

/// Sends calls to the driver. Cheap to clone.
#[derive(Clone)]
pub(crate) struct DriverHandle {
    calls: mpsc::Sender<Call>,
    patience: Duration,
}

impl DriverHandle {
    pub(crate) fn new(calls: mpsc::Sender<Call>) -> Self {
        Self { calls, patience: PATIENCE }
    }

    /// The same with another patience.
    #[cfg(test)]
    pub(crate) fn patient(&self, patience: Duration) -> Self {
        Self { calls: self.calls.clone(), patience }
    }

    /// Asks for a change.
    async fn change(&self, call: impl FnOnce(Answer) -> Call) -> Result<Reply, DriverError> {
        let settled = Arc::new(AtomicBool::new(false));
        let told = self.ask(|sender| call(Answer { sender, settled: settled.clone() })).await;
        match told {
            Ok(told) => told,
            // Still in the queue, and given up with this.
            Err(error) if !settled.swap(true, Ordering::Relaxed) => Err(error),
            Err(_) => Err(DriverError::Unknown),
        }
    }

    async fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T, DriverError> {
        let (answer, receiver) = oneshot::channel();
        let call = call(answer);
        let told = async {
            self.calls.send(call).await.map_err(|_| DriverError::Stopping)?;
            receiver.await.map_err(|_| self.silence())
        };
        tokio::time::timeout(self.patience, told).await.map_err(|_| DriverError::Busy)?
    }

    /// Has an input decided and committed.
    pub(crate) async fn decide(
        &self,
        input: Input,
        tokens: Vec<Token>,
        act: Option<Act>,
    ) -> Result<Reply, DriverError> {
        match self.change(|answer| Call::Decide { input: Box::new(input), tokens, act, answer }).await? {
            Reply::Rejected(why) => Err(DriverError::Rejected(why)),
            reply @ (Reply::Done | Reply::Run(_) | Reply::Sync { .. }) => Ok(reply),
        }
    }

    /// Makes a credential good.
    pub(crate) async fn grant(&self, token: Token, act: Act) -> Result<(), DriverError> {
        self.change(|answer| Call::Grant { token, act, answer }).await?;
        Ok(())
    }

    /// Hands in what a worker says. Waits as long as the call is held.
    pub(crate) async fn sync(
        &self,
        worker: WorkerId,
        request: SyncRequest,
    ) -> Result<SyncResponse, DriverError> {
        let (answer, receiver) = oneshot::channel();
        let call = Call::Sync { worker, request, answer };
        let sent = tokio::time::timeout(self.patience, self.calls.send(call)).await;
        sent.map_err(|_| DriverError::Busy)?.map_err(|_| DriverError::Stopping)?;
        receiver.await.map_err(|_| self.silence())?
    }

    /// Why a call was dropped without an answer.
    fn silence(&self) -> DriverError {
        if self.calls.is_closed() { DriverError::Stopping } else { DriverError::Unavailable }
    }

    /// Looks at the farm. The closure runs in the driver's task, so it must be short.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        view: impl FnOnce(&Core, Timestamp) -> T + Send + 'static,
    ) -> Result<T, DriverError> {
        self.look_held(move |core, now, _| view(core, now)).await
    }

    /// Looks at the farm and at how many calls of workers are held.
    pub(crate) async fn look_held<T: Send + 'static>(
        &self,
        view: impl FnOnce(&Core, Timestamp, usize) -> T + Send + 'static,
    ) -> Result<T, DriverError> {
        self.ask(|answer: oneshot::Sender<T>| {
            Call::Look(Box::new(move |core, now, held| {
                // Whoever asked may have gone away meanwhile.
                let _ = answer.send(view(core, now, held));
            }))
        })
        .await
    }

    /// Received runs without source work, at most so many.
    pub(crate) async fn take_received(&self, limit: usize) -> Result<Vec<RunId>, DriverError> {
        self.ask(|answer| Call::TakeReceived { limit, answer }).await
    }
}
