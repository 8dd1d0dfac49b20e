//! A one-time token becomes an identity and a credential.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use buildyard_scheduler::Input;
use buildyard_store::{InviteUse, Token, TokenKind};
use buildyard_types::WorkerId;
use buildyard_types::worker::{EnrolRequest, EnrolResponse};

use super::check;
use crate::api::AppState;
use crate::app::{new_secret, secret_hash};
use crate::driver::Act;
use crate::error::{ApiError, ApiResult, Code};
use crate::extract::Spoken;
use crate::routes::Route;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post("/api/worker/v1/enrol", "A one-time token becomes a worker's identity.", post(enrol))
            .for_anyone()
            .takes("EnrolRequest")
            .gives(201, "EnrolResponse"),
    ]
}

async fn enrol(
    State(app): AppState,
    Spoken(mut request): Spoken<EnrolRequest>,
) -> ApiResult<(StatusCode, Json<EnrolResponse>)> {
    check::worker_name(&request.name)?;
    check::offer(&mut request.offer)?;
    let now = app.clock.now();
    let hash = secret_hash(request.token.trim());
    let again = "`buildyard workers invite` makes another";
    let pools = match app.store.use_invite(&hash, now).await? {
        InviteUse::Accepted { pools } => pools,
        InviteUse::UsedBefore => {
            tracing::warn!(name = request.name, "an invitation was used a second time");
            return Err(ApiError::new(Code::InviteUsed, "this one-time token was used before").hint(again));
        }
        InviteUse::Expired => {
            return Err(ApiError::new(Code::InviteExpired, "this one-time token is too old").hint(again));
        }
        InviteUse::Unknown => {
            return Err(
                ApiError::new(Code::InviteUnknown, "this one-time token is not known here").hint(again)
            );
        }
    };
    let worker = WorkerId(rand::random());
    let credential = new_secret("byw");
    let token = Token {
        hash: secret_hash(&credential),
        name: worker.to_string(),
        kind: TokenKind::Worker(worker),
        created_at: now,
        expires_at: None,
    };
    let act = Act {
        actor: format!("invitation {}", &hash[..12]),
        act: "worker.enrol",
        subject: Some(worker.to_string()),
    };
    let input = Input::Enrol { worker, name: request.name, pools, offer: request.offer };
    app.driver.decide(input, vec![token], Some(act)).await.map_err(|error| {
        // The token is used up, whatever became of the rest: one more use must not be possible.
        ApiError::from(error).hint("the one-time token is spent; `buildyard workers invite` makes another")
    })?;
    Ok((StatusCode::CREATED, Json(EnrolResponse { worker, credential })))
}
