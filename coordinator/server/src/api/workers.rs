//! Workers: list, show, invite, cordon, remove.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use buildyard_scheduler::Input;
use buildyard_store::{Token, TokenKind};
use buildyard_types::api::{InviteRequest, InviteResponse, WorkerView};
use buildyard_types::label::is_name;
use buildyard_types::{Millis, WorkerId};

use super::AppState;
use crate::app::{Admin, App, new_secret, secret_hash};
use crate::driver::Act;
use crate::error::{ApiError, ApiResult, Code};
use crate::extract::{self, Id};
use crate::routes::Route;
use crate::views::worker_view;

/// Long enough to walk to the other machine.
const INVITE_DEFAULT: Millis = Millis::from_mins(60);
const INVITE_LONGEST: Millis = Millis::from_mins(7 * 24 * 60);
const MAX_POOLS: usize = 32;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/api/v1/workers", "Every worker.", get(list)).gives(200, "WorkerView[]"),
        Route::post("/api/v1/workers/invite", "Make a one-time token for a new worker.", post(invite))
            .takes("InviteRequest")
            .gives(201, "InviteResponse"),
        Route::get("/api/v1/workers/{id}", "One worker.", get(show)).gives(200, "WorkerView"),
        Route::post("/api/v1/workers/{id}/cordon", "Give a worker no new attempts.", post(cordon))
            .gives(200, "WorkerView"),
        Route::post("/api/v1/workers/{id}/uncordon", "Give a worker attempts again.", post(uncordon))
            .gives(200, "WorkerView"),
        Route::delete("/api/v1/workers/{id}", "Remove a worker for good.", delete(remove)).gives(204, ""),
    ]
}

async fn list(State(app): AppState, _: Admin) -> ApiResult<Json<Vec<WorkerView>>> {
    let all = app.driver.look(|core, now| {
        core.state().workers.values().map(|worker| worker_view(core, worker, now)).collect()
    });
    Ok(Json(all.await?))
}

async fn view_of(app: &App, id: WorkerId) -> ApiResult<WorkerView> {
    let found = app
        .driver
        .look(move |core, now| core.state().workers.get(&id).map(|worker| worker_view(core, worker, now)));
    found.await?.ok_or_else(|| {
        ApiError::new(Code::WorkerNotFound, format!("there is no {id}"))
            .hint("`buildyard workers` lists them")
    })
}

async fn show(State(app): AppState, _: Admin, Id(id): Id<WorkerId>) -> ApiResult<Json<WorkerView>> {
    view_of(&app, id).await.map(Json)
}

async fn invite(
    State(app): AppState,
    admin: Admin,
    extract::Json(request): extract::Json<InviteRequest>,
) -> ApiResult<(StatusCode, Json<InviteResponse>)> {
    if let Some(pool) = request.pools.iter().find(|pool| !is_name(pool)) {
        let pool: String = pool.chars().take(100).collect();
        return Err(ApiError::new(Code::BadRequest, format!("`{pool}` cannot be the name of a pool")));
    }
    if request.pools.len() > MAX_POOLS {
        return Err(ApiError::new(
            Code::BadRequest,
            format!("a worker belongs to at most {MAX_POOLS} pools"),
        ));
    }
    let valid_ms = request.valid_ms.unwrap_or(INVITE_DEFAULT);
    if valid_ms > INVITE_LONGEST || valid_ms == Millis(0) {
        return Err(ApiError::new(Code::BadRequest, "an invitation is good for at most a week"));
    }
    let (secret, now) = (new_secret("byi"), app.clock.now());
    let token = Token {
        hash: secret_hash(&secret),
        name: format!("invitation by {}", admin.name),
        kind: TokenKind::Invite { pools: request.pools.into_iter().collect() },
        created_at: now,
        expires_at: Some(now + valid_ms),
    };
    let act = Act { actor: admin.name, act: "worker.invite", subject: Some(token.hash[..12].to_owned()) };
    app.driver.grant(token, act).await?;
    Ok((StatusCode::CREATED, Json(InviteResponse { token: secret, expires_at: now + valid_ms })))
}

async fn set_cordon(
    app: &App,
    admin: Admin,
    worker: WorkerId,
    cordoned: bool,
) -> ApiResult<Json<WorkerView>> {
    let act = if cordoned { "worker.cordon" } else { "worker.uncordon" };
    let act = Act { actor: admin.name, act, subject: Some(worker.to_string()) };
    app.driver.decide(Input::Cordon { worker, cordoned }, Vec::new(), Some(act)).await?;
    view_of(app, worker).await.map(Json).map_err(ApiError::after_a_change)
}

async fn cordon(State(app): AppState, admin: Admin, Id(id): Id<WorkerId>) -> ApiResult<Json<WorkerView>> {
    set_cordon(&app, admin, id, true).await
}

async fn uncordon(State(app): AppState, admin: Admin, Id(id): Id<WorkerId>) -> ApiResult<Json<WorkerView>> {
    set_cordon(&app, admin, id, false).await
}

async fn remove(State(app): AppState, admin: Admin, Id(worker): Id<WorkerId>) -> ApiResult<StatusCode> {
    let act = Act { actor: admin.name, act: "worker.remove", subject: Some(worker.to_string()) };
    app.driver.decide(Input::RemoveWorker { worker }, Vec::new(), Some(act)).await?;
    Ok(StatusCode::NO_CONTENT)
}
