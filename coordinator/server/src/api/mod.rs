//! `/api/v1`, for people and their programs.

mod artifacts;
mod events;
mod explain;
mod jobs;
mod logs;
mod runs;
mod status;
mod tar;
mod workers;

use std::sync::Arc;

use buildyard_types::{JobId, RunId};

use crate::app::App;
use crate::error::{ApiError, ApiResult, Code};
use crate::routes::Route;
use crate::views::{Live, Whole};

/// Every route below `/api/v1`, and those beside it that tell about the process.
pub(crate) fn routes() -> Vec<Route> {
    let groups = [
        status::routes(),
        runs::routes(),
        jobs::routes(),
        logs::routes(),
        artifacts::routes(),
        events::routes(),
        explain::routes(),
        workers::routes(),
    ];
    groups.into_iter().flatten().collect()
}

/// A run with everything that belongs to it.
async fn whole_run(app: &App, run: RunId) -> ApiResult<Whole> {
    let found = app.store.run(run).await?.ok_or_else(|| no_run(run))?;
    Ok(Whole { run: found, jobs: app.store.jobs(run).await?, attempts: app.store.attempts(run).await? })
}

fn no_run(run: RunId) -> ApiError {
    ApiError::new(Code::RunNotFound, format!("there is no {run}"))
        .hint("`buildyard runs` lists them; old ones are dropped after retention.runs")
}

/// A run of which one job is meant.
async fn whole_with(app: &App, job: JobId) -> ApiResult<Whole> {
    let missing = |_| ApiError::new(Code::JobNotFound, format!("there is no {job}"));
    let whole = whole_run(app, job.run).await.map_err(|error| match error.code {
        Code::RunNotFound => missing(()),
        _ => error,
    })?;
    if whole.job(job).is_none() { Err(missing(())) } else { Ok(whole) }
}

/// What the scheduler knows beyond the store. If it does not answer, views do without.
async fn live(app: &App, whole: &Whole, jobs: Vec<JobId>) -> Live {
    let workers = whole.workers();
    app.driver.look(move |core, now| Live::of(core, now, &jobs, &workers)).await.unwrap_or_default()
}

pub(crate) type AppState = axum::extract::State<Arc<App>>;
