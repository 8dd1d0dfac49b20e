//! About the process and the farm as a whole.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use buildyard_scheduler::Core;
use buildyard_scheduler::lifecycle::job::JobState;
use buildyard_scheduler::lifecycle::worker::Liveness;
use buildyard_types::Timestamp;
use buildyard_types::api::{ImageView, StatusView};
use serde::Serialize;

use super::AppState;
use crate::app::{Admin, App};
use crate::error::{ApiError, ApiResult, Code};
use crate::metrics::{Figure, render};
use crate::routes::Route;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/healthz", "Whether the process lives.", get(healthz))
            .for_anyone()
            .gives(200, "text/plain"),
        Route::get("/readyz", "Whether store, driver and disk can take work.", get(readyz))
            .for_anyone()
            .gives(200, "text/plain"),
        Route::get("/version", "Version of the program and of its protocols.", get(version))
            .for_anyone()
            .gives(200, "VersionView"),
        Route::get("/metrics", "Figures for Prometheus.", get(metrics)).for_anyone().gives(200, "text/plain"),
        Route::get("/api/v1/status", "The farm at a glance.", get(status)).gives(200, "StatusView"),
        Route::get("/api/v1/images", "The images that workers hold.", get(images)).gives(200, "ImageView[]"),
    ]
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(app): AppState) -> ApiResult<&'static str> {
    app.store.ping().await?;
    app.driver.look(|_, _| ()).await?;
    match app.disk_low() {
        Some(why) => Err(ApiError::new(Code::Unavailable, why).hint("free space; new runs are refused")),
        None => Ok("ready\n"),
    }
}

#[derive(Serialize)]
struct VersionView {
    version: &'static str,
    worker_protocol: u32,
    api: &'static str,
}

async fn version() -> Json<VersionView> {
    let worker_protocol = buildyard_types::worker::PROTOCOL;
    Json(VersionView { version: env!("CARGO_PKG_VERSION"), worker_protocol, api: "v1" })
}

/// The farm in numbers.
#[derive(Debug, Clone, Default)]
struct Counts {
    workers: [u32; 3],
    unfit: Vec<String>,
    runs: u32,
    /// In the order of [`STATES`].
    jobs: [u32; 6],
    held: usize,
}

const STATES: [&str; 6] = ["waiting", "queued", "assigned", "running", "stopping", "finished"];
const LIVENESS: [Liveness; 3] = [Liveness::Fresh, Liveness::Quiet, Liveness::Unknown];

impl Counts {
    fn of(core: &Core, now: Timestamp, held: usize) -> Self {
        let state = core.state();
        let mut counts = Self { held, ..Self::default() };
        for worker in state.workers.values() {
            let liveness = core.liveness(worker.id, now).unwrap_or(Liveness::Unknown);
            let place = LIVENESS.iter().position(|known| *known == liveness).unwrap_or(2);
            counts.workers[place] += 1;
            if let Some(why) = &worker.offer.unfit {
                counts.unfit.push(format!("worker {} takes no attempts: {why}", worker.name));
            }
        }
        counts.runs = state.runs.values().filter(|run| !run.state.is_final()).count() as u32;
        for job in state.jobs.values() {
            counts.jobs[place(&job.state)] += 1;
        }
        counts
    }
}

fn place(state: &JobState) -> usize {
    match state {
        JobState::Waiting => 0,
        JobState::Queued { .. } => 1,
        JobState::Assigned { .. } => 2,
        JobState::Running { .. } => 3,
        JobState::Stopping { .. } => 4,
        JobState::Finished { .. } => 5,
    }
}

async fn status(State(app): AppState, _: Admin) -> ApiResult<Json<StatusView>> {
    let counts = app.driver.look_held(Counts::of).await?;
    let space =
        app.dir.disk_space().map_err(|error| ApiError::internal("cannot measure the disk", &error))?;
    let [fresh, quiet, unknown] = counts.workers;
    let [waiting, queued, assigned, running, stopping, _] = counts.jobs;
    let mut warnings: Vec<String> = app.disk_low().into_iter().collect();
    warnings.extend(crate::retention::doubt(&app, app.clock.now()));
    warnings.extend(counts.unfit);
    if fresh + quiet + unknown == 0 {
        warnings.push("no worker has joined: `buildyard workers invite` makes a token for one".to_owned());
    } else if fresh == 0 {
        warnings.push("no worker answers".to_owned());
    } else if quiet > 0 {
        warnings.push(format!("{quiet} of {} workers do not answer", fresh + quiet + unknown));
    }
    Ok(Json(StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: app.epoch.0,
        uptime_ms: app.clock.now().since(app.started),
        workers_fresh: fresh,
        workers_known: fresh + quiet + unknown,
        runs_active: counts.runs,
        jobs_waiting: waiting,
        jobs_queued: queued,
        jobs_running: assigned + running + stopping,
        disk_free: space.free.0,
        warnings,
    }))
}

async fn images(State(app): AppState, _: Admin) -> ApiResult<Json<Vec<ImageView>>> {
    let found = app
        .driver
        .look(|core, _| {
            let mut found = std::collections::BTreeMap::<String, Vec<String>>::new();
            for worker in core.state().workers.values() {
                for image in &worker.offer.images {
                    found.entry(image.clone()).or_default().push(worker.name.clone());
                }
            }
            found
        })
        .await?;
    let view = |(name, workers)| ImageView { name, admission: "open".to_owned(), workers };
    Ok(Json(found.into_iter().map(view).collect()))
}

async fn metrics(State(app): AppState) -> ApiResult<Response> {
    let counts = app.driver.look_held(Counts::of).await?;
    let text = render(&figures(&app, &counts));
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

fn figures(app: &App, counts: &Counts) -> Vec<Figure<'static>> {
    let gauge = |name, help, values| Figure { name, help, kind: "gauge", values };
    let one = |value: f64| vec![(String::new(), value)];
    let labelled = |label: &str, names: &[&str], values: &[u32]| {
        let pair = |(name, value): (&&str, &u32)| (format!("{{{label}=\"{name}\"}}"), f64::from(*value));
        names.iter().zip(values).map(pair).collect::<Vec<_>>()
    };
    let liveness = LIVENESS.map(Liveness::as_str);
    let streams = app.config.limits.streams as usize - app.streams.available_permits();
    let free = app.dir.disk_space().map(|space| space.free.0 as f64).unwrap_or(f64::NAN);
    let mut figures = vec![
        gauge("buildyard_runs_active", "Runs that are not finished.", one(f64::from(counts.runs))),
        gauge("buildyard_jobs", "Jobs of runs in memory.", labelled("state", &STATES, &counts.jobs)),
        gauge("buildyard_workers", "Known workers.", labelled("liveness", &liveness, &counts.workers)),
        gauge("buildyard_held_syncs", "Calls of workers that wait for news.", one(counts.held as f64)),
        gauge("buildyard_streams", "Open event and log streams.", one(streams as f64)),
        gauge("buildyard_disk_free_bytes", "Free space of the data folder.", one(free)),
        gauge("buildyard_epoch", "Starts of the coordinator.", one(app.epoch.0 as f64)),
    ];
    figures.extend(app.metrics.figures());
    figures
}
