//! The table of routes: the router and its OpenAPI description grow from the same rows.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_SECURITY_POLICY, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Method, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use futures_util::FutureExt;

use crate::app::App;
use crate::error::{ApiError, Code};

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Everybody who can connect.
    Anyone,
    /// An administrator's token.
    Admin,
    /// A worker's credential.
    Worker,
}

/// One row of the table.
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) who: Who,
    /// One sentence.
    pub(crate) summary: &'static str,
    /// Names of query parameters.
    pub(crate) query: &'static [&'static str],
    /// Name of the request's type, if it has a JSON body.
    pub(crate) takes: Option<&'static str>,
    /// Status of success, and the name of the answer's type or its media type.
    pub(crate) gives: (u16, &'static str),
    pub(crate) handler: MethodRouter<Arc<App>>,
}

impl Route {
    fn new(
        method: Method,
        path: &'static str,
        summary: &'static str,
        handler: MethodRouter<Arc<App>>,
    ) -> Self {
        let gives = (200, "application/json");
        Self { method, path, who: Who::Admin, summary, query: &[], takes: None, gives, handler }
    }

    pub(crate) fn get(path: &'static str, summary: &'static str, handler: MethodRouter<Arc<App>>) -> Self {
        Self::new(Method::GET, path, summary, handler)
    }

    pub(crate) fn post(path: &'static str, summary: &'static str, handler: MethodRouter<Arc<App>>) -> Self {
        Self::new(Method::POST, path, summary, handler)
    }

    pub(crate) fn put(path: &'static str, summary: &'static str, handler: MethodRouter<Arc<App>>) -> Self {
        Self::new(Method::PUT, path, summary, handler)
    }

    pub(crate) fn patch(path: &'static str, summary: &'static str, handler: MethodRouter<Arc<App>>) -> Self {
        Self::new(Method::PATCH, path, summary, handler)
    }

    pub(crate) fn delete(path: &'static str, summary: &'static str, handler: MethodRouter<Arc<App>>) -> Self {
        Self::new(Method::DELETE, path, summary, handler)
    }

    pub(crate) fn for_anyone(self) -> Self {
        Self { who: Who::Anyone, ..self }
    }

    pub(crate) fn for_workers(self) -> Self {
        Self { who: Who::Worker, ..self }
    }

    pub(crate) fn query(self, query: &'static [&'static str]) -> Self {
        Self { query, ..self }
    }

    pub(crate) fn takes(self, kind: &'static str) -> Self {
        Self { takes: Some(kind), ..self }
    }

    pub(crate) fn gives(self, status: u16, kind: &'static str) -> Self {
        Self { gives: (status, kind), ..self }
    }
}

/// Every route that is served.
pub(crate) fn all() -> Vec<Route> {
    let mut routes = crate::api::routes();
    routes.extend(crate::worker_api::routes());
    routes.push(
        Route::get("/api/v1/openapi.json", "This description.", axum::routing::get(crate::openapi::serve))
            .for_anyone(),
    );
    routes
}

/// The router.
pub(crate) fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for route in all() {
        router = router.route(route.path, route.handler);
    }
    router
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), around))
        .with_state(app)
}

async fn nothing_here(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(Code::NotFound, format!("there is nothing at {path}"))
        .hint("/api/v1/openapi.json lists what there is")
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(Code::MethodNotAllowed, format!("{method} is not served at {path}"))
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Around every request: an id, a log line, headers that keep browsers from guessing, and problems with the id
/// in them. A handler that panics costs its own request only.
async fn around(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = format!("req-{:016x}", rand::random::<u64>());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    app.metrics.requested();
    let began = app.clock.now();
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|_| {
        ApiError::new(Code::Internal, "a handler of the coordinator broke off").into_response()
    });
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        if error.code == Code::StaleFence {
            app.metrics.stale_write();
        }
        // The answer as the handler made it may carry headers of the framework, such as Allow.
        let made = response;
        response = error.response(Some(&id));
        for (name, value) in made.headers() {
            if !response.headers().contains_key(name) && name != axum::http::header::CONTENT_LENGTH {
                response.headers_mut().insert(name.clone(), value.clone());
            }
        }
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers
        .entry(CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox"));
    let took_ms = app.clock.now().since(began).0;
    tracing::debug!(request_id = id, %method, path, status = response.status().as_u16(), took_ms, "answered");
    response
}
