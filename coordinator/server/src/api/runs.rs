//! Runs: trigger, list, show, cancel.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use buildyard_scheduler::{Input, Reply};
use buildyard_store::RunQuery;
use buildyard_types::RunId;
use buildyard_types::api::{RunList, RunView, TriggerRequest, TriggerResponse};
use buildyard_types::worker::SourceRef;
use serde::Deserialize;

use super::{AppState, live, whole_run};
use crate::app::{Admin, App};
use crate::driver::Act;
use crate::error::{ApiError, ApiResult, Code, chain};
use crate::extract::{self, Id, Query};
use crate::routes::Route;
use crate::source::resolve::{self, ResolveError, Resolved};
use crate::views::run_view;

/// Runs on a page when nobody says how many.
const PAGE: u32 = 20;
const MAX_PAGE: u32 = 200;
/// Longest key of a requester.
const MAX_KEY_BYTES: usize = 64;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/api/v1/runs", "Start a run of each pipeline file of a commit.", post(trigger))
            .takes("TriggerRequest")
            .gives(201, "TriggerResponse"),
        Route::get("/api/v1/runs", "Runs, newest first.", get(list))
            .query(&["before", "limit", "repository", "commit"])
            .gives(200, "RunList"),
        Route::get("/api/v1/runs/{id}", "One run with its jobs and attempts.", get(show))
            .gives(200, "RunView"),
        Route::post("/api/v1/runs/{id}/cancel", "End a run.", post(cancel)).gives(200, "RunView"),
    ]
}

async fn trigger(
    State(app): AppState,
    admin: Admin,
    extract::Json(request): extract::Json<TriggerRequest>,
) -> ApiResult<(StatusCode, Json<TriggerResponse>)> {
    if let Some(why) = app.disk_low() {
        return Err(ApiError::new(Code::DiskLow, why)
            .hint("free space or shorten retention")
            .retry_after(60));
    }
    check_key(request.key.as_deref())?;
    let made_before = runs_of_key(&app, request.key.as_deref()).await?;
    let resolved = match made_before.first() {
        None => {
            let revision = request.revision.as_deref().unwrap_or("HEAD");
            resolve::resolve(app.mirrors.git(), &request.repository, revision).await?
        }
        Some((_, source)) => match again(&app, source).await {
            Some(resolved) => resolved,
            // The repository went away meanwhile; what was made is still the answer.
            None => return Ok((StatusCode::CREATED, Json(views(&app, made_before).await?))),
        },
    };
    let mut runs = Vec::new();
    // One after the other, so that numbers follow the order of the names.
    for file in &resolved.files {
        let made = submit(&app, &admin, &resolved, file, request.key.as_deref()).await;
        runs.push(made.map_err(|error| if runs.is_empty() { error } else { error.after_a_change() })?);
    }
    let found = runs.into_iter().map(|run| (run, source_of(&resolved))).collect();
    Ok((StatusCode::CREATED, Json(views(&app, found).await.map_err(ApiError::after_a_change)?)))
}

fn check_key(key: Option<&str>) -> ApiResult<()> {
    let Some(key) = key else { return Ok(()) };
    if key.is_empty() || key.len() > MAX_KEY_BYTES || key.contains(|c: char| c.is_control()) {
        let detail = format!("`key` has to be 1 to {MAX_KEY_BYTES} bytes without control characters");
        return Err(ApiError::new(Code::BadRequest, detail));
    }
    Ok(())
}

/// The key of one file's run. The line end cannot be in the requester's part.
fn file_key(key: &str, file: &str) -> String {
    format!("{key}\n{file}")
}

/// The runs that a key made before.
async fn runs_of_key(app: &App, key: Option<&str>) -> ApiResult<Vec<(RunId, SourceRef)>> {
    let Some(key) = key else { return Ok(Vec::new()) };
    let prefix = file_key(key, "");
    let runs = app
        .driver
        .look(move |core, _| {
            let keys = core.state().keys.range(prefix.clone()..);
            let ours = keys.take_while(|(known, _)| known.starts_with(&prefix));
            ours.map(|(_, run)| *run).collect::<Vec<_>>()
        })
        .await?;
    let mut found = Vec::new();
    for run in runs {
        if let Some(run) = app.store.run(run).await? {
            found.push((run.id, run.source));
        }
    }
    Ok(found)
}

/// The same commit as before, whatever the branch is now: a crash may have come between two files.
async fn again(app: &App, source: &SourceRef) -> Option<Resolved> {
    let path = std::path::Path::new(&source.repository);
    let files = resolve::pipeline_files(app.mirrors.git(), path, &source.commit).await.ok()?;
    let SourceRef { repository, commit, ref_name } = source.clone();
    Some(Resolved { repository, commit, ref_name, files })
}

fn source_of(resolved: &Resolved) -> SourceRef {
    SourceRef {
        repository: resolved.repository.clone(),
        commit: resolved.commit.clone(),
        ref_name: resolved.ref_name.clone(),
    }
}

async fn submit(
    app: &App,
    admin: &Admin,
    resolved: &Resolved,
    file: &str,
    key: Option<&str>,
) -> ApiResult<RunId> {
    let input = Input::Submit {
        source: source_of(resolved),
        file: file.to_owned(),
        requested_by: format!("triggered by {}", admin.name),
        key: key.map(|key| file_key(key, file)),
    };
    let act = Act { actor: admin.name.clone(), act: "run.create", subject: None };
    match app.driver.decide(input, Vec::new(), Some(act)).await? {
        Reply::Run(run) => Ok(run),
        Reply::Done | Reply::Sync { .. } | Reply::Rejected(_) => {
            Err(ApiError::new(Code::Internal, "the scheduler did not make a run"))
        }
    }
}

async fn views(app: &Arc<App>, runs: Vec<(RunId, SourceRef)>) -> ApiResult<TriggerResponse> {
    let mut views = Vec::new();
    for (run, _) in runs {
        views.push(view_of(app, run).await?);
    }
    Ok(TriggerResponse { runs: views })
}

impl From<ResolveError> for ApiError {
    fn from(error: ResolveError) -> Self {
        let text = chain(&error);
        match error {
            ResolveError::Repository { .. } => ApiError::new(Code::BadRepository, text).hint(
                "name the top folder of a git repository on the coordinator's host by its absolute path",
            ),
            ResolveError::Revision { .. } => ApiError::new(Code::BadRevision, text)
                .hint("`git branch -a` and `git log` show what there is"),
            ResolveError::TooMany { .. } => ApiError::new(Code::BadRevision, text),
            ResolveError::Git { .. } => ApiError::new(Code::BadRepository, text)
                .hint("see whether git reads the repository: git -C PATH rev-parse HEAD"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    before: Option<String>,
    limit: Option<u32>,
    repository: Option<String>,
    commit: Option<String>,
}

async fn list(State(app): AppState, _: Admin, Query(asked): Query<ListQuery>) -> ApiResult<Json<RunList>> {
    let limit = asked.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
    let query = RunQuery {
        before: asked.before.as_deref().map(str::parse).transpose()?,
        repository: asked.repository,
        commit: asked.commit,
        limit,
    };
    let found = app.store.runs(&query).await?;
    let next = if found.len() == limit as usize { found.last().map(|run| run.id) } else { None };
    let mut runs = Vec::with_capacity(found.len());
    for run in &found {
        runs.push(run_view(run, &app.store.jobs(run.id).await?));
    }
    Ok(Json(RunList { runs, next }))
}

async fn view_of(app: &App, run: RunId) -> ApiResult<RunView> {
    let whole = whole_run(app, run).await?;
    Ok(whole.view(&live(app, &whole, whole.waiting()).await))
}

async fn show(State(app): AppState, _: Admin, Id(run): Id<RunId>) -> ApiResult<Json<RunView>> {
    view_of(&app, run).await.map(Json)
}

async fn cancel(State(app): AppState, admin: Admin, Id(run): Id<RunId>) -> ApiResult<Json<RunView>> {
    // Old runs are known to the store only.
    let known = whole_run(&app, run).await?.run;
    if known.state.is_final() {
        return Err(ApiError::new(Code::AlreadyFinished, format!("{run} is finished already")));
    }
    let by = format!("by {}", admin.name);
    let act = Act { actor: admin.name, act: "run.cancel", subject: Some(run.to_string()) };
    app.driver.decide(Input::CancelRun { run, by }, Vec::new(), Some(act)).await?;
    view_of(&app, run).await.map(Json).map_err(ApiError::after_a_change)
}
