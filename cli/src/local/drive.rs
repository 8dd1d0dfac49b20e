//! Carries out on this machine what the local farm orders.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use buildyard_types::worker::{AttemptOrder, EndReport};
use buildyard_types::{AttemptId, Timestamp};
use buildyard_worker::local::{Checkout, LocalJob, LocalRunner};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::farm::{End, LocalFarm};
use super::output::Output;
use crate::exit::{CliError, Result};
use crate::output::Ui;

/// How often the farm is looked at although nothing happened.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What jobs are carried out with.
pub(crate) struct Driver {
    /// The worker's executor.
    pub(crate) runner: Arc<LocalRunner>,
    /// What is built.
    pub(crate) checkout: Arc<Checkout>,
    /// How logs are shown.
    pub(crate) ui: Ui,
    /// Becomes true when the user wants it to end.
    pub(crate) interrupted: watch::Receiver<bool>,
    clock: Instant,
    reader_left: Arc<AtomicBool>,
}

impl Driver {
    /// A driver of this runner.
    pub(crate) fn new(
        runner: Arc<LocalRunner>,
        checkout: Arc<Checkout>,
        ui: Ui,
        interrupted: watch::Receiver<bool>,
    ) -> Self {
        let (clock, reader_left) = (Instant::now(), Arc::default());
        Self { runner, checkout, ui, interrupted, clock, reader_left }
    }

    /// Time as the scheduler wants it: from a clock that nobody sets. It begins late enough that nothing is
    /// before 1970.
    pub(crate) fn now(&self) -> Timestamp {
        let passed = self.clock.elapsed().as_millis();
        Timestamp(1_000_000_000).max(Timestamp(1_000_000_000 + u64::try_from(passed).unwrap_or(u64::MAX / 2)))
    }

    /// Drives a run to its end; nothing is left of any attempt then. Artifacts go below `out`; they are dropped
    /// where there is none.
    pub(crate) async fn run(
        &self,
        farm: &mut LocalFarm,
        out: Option<&Path>,
        prefix: impl Fn(&str) -> Option<String>,
    ) -> Result<End> {
        let mut interrupted = self.interrupted.clone();
        let mut tasks: JoinSet<(AttemptId, EndReport)> = JoinSet::new();
        let mut stops: BTreeMap<AttemptId, watch::Sender<bool>> = BTreeMap::new();
        let mut is_cancelled = false;
        loop {
            if !is_cancelled && (*interrupted.borrow() || self.reader_left.load(Ordering::Relaxed)) {
                is_cancelled = true;
                farm.cancel("by you", self.now());
            }
            let response = farm.sync(self.now());
            if let Some(end) = farm.end() {
                return Ok(end);
            }
            let is_busy = !response.run.is_empty() || !response.forget.is_empty();
            for stop in &response.stop {
                if let Some(sender) = stops.get(&stop.attempt) {
                    sender.send_replace(true);
                }
            }
            for order in response.run {
                let (sender, stop) = watch::channel(false);
                stops.insert(order.attempt, sender);
                tasks.spawn(self.attempt(order.clone(), out, prefix(&order.spec.name), stop));
            }
            if is_busy {
                continue;
            }
            tokio::select! {
                Some(ended) = tasks.join_next() => {
                    let broken = |error| CliError::farm("a job's task broke off").because(error);
                    let (attempt, report) = ended.map_err(broken)?;
                    stops.remove(&attempt);
                    farm.ended(attempt, report);
                }
                Ok(()) = interrupted.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn attempt(
        &self,
        order: AttemptOrder,
        out: Option<&Path>,
        prefix: Option<String>,
        mut stop: watch::Receiver<bool>,
    ) -> impl Future<Output = (AttemptId, EndReport)> + Send + use<> {
        let (runner, checkout) = (self.runner.clone(), self.checkout.clone());
        let mut output = Output::new(self.ui, prefix, self.reader_left.clone());
        let job = LocalJob {
            index: order.attempt.job.index.0,
            artifacts: out.map(|out| out.join(&order.spec.name)),
            spec: order.spec,
            pipeline: order.pipeline,
            log_cap: order.log_cap,
        };
        async move {
            let stop = async {
                if stop.wait_for(|stop| *stop).await.is_err() {
                    // Nobody can ask for it any more.
                    std::future::pending::<()>().await;
                }
            };
            let report = runner.run(&job, &checkout, &mut output, stop).await;
            output.finish();
            (order.attempt, report)
        }
    }
}
