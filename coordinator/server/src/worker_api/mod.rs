//! `/api/worker/v1`: what workers call. Everything that they send is hostile until checked; who they are comes
//! from the credential alone.

mod artifacts;
pub(crate) mod check;
mod enrol;
mod log;
mod source;
mod sync;

use axum::http::HeaderMap;
use buildyard_store::Fenced;
use buildyard_types::worker::FENCE_HEADER;
use buildyard_types::{AttemptId, Fence, WorkerId};

use crate::error::{ApiError, ApiResult, Code};
use crate::extract::header_text;
use crate::routes::Route;

/// Every route below `/api/worker/v1`.
pub(crate) fn routes() -> Vec<Route> {
    let groups = [enrol::routes(), sync::routes(), source::routes(), log::routes(), artifacts::routes()];
    groups.into_iter().flatten().collect()
}

/// Whose write it is, from credential, path and header.
fn fenced(worker: WorkerId, attempt: AttemptId, headers: &HeaderMap) -> ApiResult<Fenced> {
    let text = header_text(headers, FENCE_HEADER);
    let fence = text.and_then(|text| text.parse().ok()).map(Fence).ok_or_else(|| {
        ApiError::new(
            Code::BadRequest,
            format!("the header `{FENCE_HEADER}` has to carry the attempt's fence"),
        )
    })?;
    Ok(Fenced { worker, attempt, fence })
}
