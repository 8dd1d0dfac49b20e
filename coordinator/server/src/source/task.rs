//! Reads the pipeline files of received runs.
//!
//! It is told nothing but that there *are* received runs, and asks the driver which. So a run whose reading
//! was cut off by a crash, or by a store that was away, is found again in the same way as a new one.

use std::sync::Arc;
use std::time::Duration;

use buildyard_scheduler::{Compiled, Input};
use buildyard_types::RunId;
use buildyard_types::job::Diagnostic;
use buildyard_types::worker::SourceRef;
use tokio::sync::{Notify, Semaphore, watch};

use super::mirror::{FileAt, MirrorError, Mirrors};
use crate::app::closed;
use crate::driver::{DriverError, DriverHandle};
use crate::error::chain;

/// Runs read at one time: fetching is disk and one processor each.
const AT_ONCE: usize = 4;
/// Tries before the commit counts as not to be had, with a wait before each but the first.
const TRIES: u32 = 3;
const RETRY: Duration = Duration::from_millis(500);
/// First wait before a driver that gave no answer is asked again; doubled up to the last.
const ASK_FIRST: Duration = Duration::from_millis(100);
const ASK_LAST: Duration = Duration::from_secs(5);

/// Runs until the process ends.
pub(crate) async fn source_task(
    driver: DriverHandle,
    mirrors: Arc<Mirrors>,
    received: Arc<Notify>,
    mut closing: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match told(|| driver.take_received(1)).await {
            Ok(runs) if !runs.is_empty() => {
                let (driver, mirrors) = (driver.clone(), mirrors.clone());
                tokio::spawn(async move {
                    for run in runs {
                        work(&driver, &mirrors, run).await;
                    }
                    drop(permit);
                });
                continue;
            }
            Ok(_) => {}
            Err(_) => return,
        }
        drop(permit);
        tokio::select! {
            () = closed(&mut closing) => return,
            () = received.notified() => {}
        }
    }
}

/// Asks the driver until it answers. A run that was given out is named again by nobody before the next start, so
/// giving up would leave it received for as long. The error is a refusal, or the end of the process.
async fn told<T, F: Future<Output = Result<T, DriverError>>>(
    mut ask: impl FnMut() -> F,
) -> Result<T, DriverError> {
    let mut wait = ASK_FIRST;
    loop {
        match ask().await {
            Err(DriverError::Unavailable | DriverError::Busy | DriverError::Unknown) => {}
            told @ (Ok(_) | Err(DriverError::Rejected(_) | DriverError::Stopping)) => return told,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(ASK_LAST);
    }
}

async fn work(driver: &DriverHandle, mirrors: &Mirrors, run: RunId) {
    let known = told(|| {
        driver.look(move |core, _| {
            core.state().runs.get(&run).map(|known| (known.source.clone(), known.file.clone()))
        })
    });
    // If the driver does not know the run any more, there is nothing to read.
    let Ok(Some((source, file))) = known.await else { return };
    let result = read(mirrors, run, &source, &file).await;
    let input = Input::Compiled { run, result };
    // What was on record although its answer was lost is refused the second time, and that is fine.
    if let Err(error) = told(|| driver.decide(input.clone(), Vec::new(), None)).await {
        tracing::warn!(run_id = %run, error = %error, "what was read could not be handed over");
    }
}

/// What the file says, or why it says nothing.
async fn read(mirrors: &Mirrors, run: RunId, source: &SourceRef, file: &str) -> Compiled {
    let mut tries = 1;
    loop {
        match content(mirrors, run, source, file).await {
            Ok(FileAt::Missing) => return Compiled::Refused(vec![no_pipeline(file)]),
            Ok(FileAt::Content(bytes)) => return compile(file.to_owned(), bytes).await,
            Err(error) if tries < TRIES => {
                tracing::warn!(run_id = %run, error = %chain(&error), "the commit could not be read yet");
                tokio::time::sleep(RETRY * tries).await;
                tries += 1;
            }
            Err(error) => {
                let text = format!("commit {} could not be fetched: {}", source.commit, chain(&error));
                return Compiled::SourceFailed(text);
            }
        }
    }
}

async fn content(
    mirrors: &Mirrors,
    run: RunId,
    source: &SourceRef,
    file: &str,
) -> Result<FileAt, MirrorError> {
    mirrors.ensure(run, source).await?;
    mirrors.read(source, file).await
}

async fn compile(file: String, bytes: Vec<u8>) -> Compiled {
    // A hostile file may take a while within its limits; the runtime's threads are for those who wait.
    let name = file.clone();
    let compiled = tokio::task::spawn_blocking(move || buildyard_pipelines::compile(&file, &bytes)).await;
    match compiled {
        Ok(Ok(pipeline)) => Compiled::Pipeline(pipeline),
        Ok(Err(diagnostics)) => Compiled::Refused(diagnostics),
        Err(error) => {
            tracing::error!(error = %error, file = name, "the compiler failed");
            Compiled::SourceFailed(format!("the compiler failed on {name}; this is a fault of the farm"))
        }
    }
}

fn no_pipeline(file: &str) -> Diagnostic {
    Diagnostic {
        file: file.to_owned(),
        line: 0,
        column: 0,
        length: 0,
        source: String::new(),
        code: "no-pipeline".to_owned(),
        message: "the commit has no pipeline.toml and no .buildyard/*.toml".to_owned(),
        help: Some(
            "commit one: `[jobs.test]` with an `image` and a `run`; `buildyard check` reads it".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_gives_no_answer_is_asked_again() {
        let silences = [DriverError::Busy, DriverError::Unavailable, DriverError::Unknown].into_iter();
        let mut silences = silences.cycle().take(50);
        let answer = told(|| std::future::ready(silences.next().map_or(Ok("at last"), Err))).await;
        assert_eq!(answer, Ok("at last"));
        let answer = told(|| std::future::ready(Err::<(), _>(DriverError::Stopping))).await;
        assert_eq!(answer, Err(DriverError::Stopping));
    }
}
