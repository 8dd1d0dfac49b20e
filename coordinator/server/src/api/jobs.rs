//! Jobs and attempts: show, cancel.

use axum::Json;
use axum::extract::State;
use axum::routing::{get, post};
use buildyard_scheduler::Input;
use buildyard_types::api::{AttemptView, JobView};
use buildyard_types::{AttemptId, JobId};

use super::{AppState, live, whole_with};
use crate::app::{Admin, App};
use crate::driver::Act;
use crate::error::{ApiError, ApiResult, Code};
use crate::extract::Id;
use crate::routes::Route;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/api/v1/jobs/{id}", "One job with its attempts.", get(show)).gives(200, "JobView"),
        Route::post("/api/v1/jobs/{id}/cancel", "End a job.", post(cancel)).gives(200, "JobView"),
        Route::get("/api/v1/attempts/{id}", "One attempt.", get(attempt)).gives(200, "AttemptView"),
    ]
}

async fn view_of(app: &App, id: JobId) -> ApiResult<JobView> {
    let whole = whole_with(app, id).await?;
    let live = live(app, &whole, vec![id]).await;
    let job = whole.job(id).ok_or_else(|| ApiError::new(Code::JobNotFound, format!("there is no {id}")))?;
    Ok(whole.job_view(job, &live))
}

async fn show(State(app): AppState, _: Admin, Id(job): Id<JobId>) -> ApiResult<Json<JobView>> {
    view_of(&app, job).await.map(Json)
}

async fn cancel(State(app): AppState, admin: Admin, Id(job): Id<JobId>) -> ApiResult<Json<JobView>> {
    // Old jobs are known to the store only.
    let known = view_of(&app, job).await?;
    if known.outcome.is_some() {
        return Err(ApiError::new(Code::AlreadyFinished, format!("{job} is finished already")));
    }
    let by = format!("by {}", admin.name);
    let act = Act { actor: admin.name, act: "job.cancel", subject: Some(job.to_string()) };
    app.driver.decide(Input::CancelJob { job, by }, Vec::new(), Some(act)).await?;
    view_of(&app, job).await.map(Json).map_err(ApiError::after_a_change)
}

async fn attempt(State(app): AppState, _: Admin, Id(attempt): Id<AttemptId>) -> ApiResult<Json<AttemptView>> {
    let missing = || ApiError::new(Code::AttemptNotFound, format!("there is no {attempt}"));
    let job = view_of(&app, attempt.job).await.map_err(|error| match error.code {
        Code::JobNotFound => missing(),
        _ => error,
    })?;
    job.attempts.into_iter().find(|known| known.id == attempt).map(Json).ok_or_else(missing)
}
