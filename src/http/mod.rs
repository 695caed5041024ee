//! HTTP: parses and checks requests, maps each dialect to [`service::Submission`](crate::service::Submission), and
//! sends back what the service says. Thin: no tensors and no SQL. Sits above `service`; the socket side (TLS, limits
//! of connections) is in `listen`.
//!
//! Layers, from the outside: what is counted; request id, log line and panics; headers for browsers; OpenAI's and ComfyUI's
//! wording of errors; CORS;
//! who asks and how often; the handlers.

mod addresses;
mod app;
mod auth;
mod bank;
mod comfy;
mod description;
mod error;
mod extract;
mod guides;
pub mod listen;
mod observe;
mod openai;
mod outcome;
mod page_files;
mod pose;
mod probes;
mod range;
mod rules;
mod simple;
mod source;
mod speed;
mod submit;
mod task_json;
mod v1;
mod words;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use comfy::frontend::Frontend;

use crate::config::{Config, ServerConfig};
use crate::service::{Service, TaskView};

pub use app::SetupError;
pub use comfy::ComfyParts;
pub use comfy::frontend::FrontendError;
pub use words::WordsError;

/// All routes of a server. `shutdown` ends event streams and WebSockets: cancel it when running tasks have been
/// given their time to finish. Without `comfy`, ComfyUI's routes are not there.
///
/// # Errors
/// An origin in the configuration that is none; word lists that cannot be read.
pub fn router(
    service: Service,
    config: Arc<Config>,
    shutdown: CancellationToken,
    comfy: Option<ComfyParts>,
) -> Result<Router, SetupError> {
    let cors = observe::cors(&config.server.cors_origins)?;
    let app = app::App::new(service, config, shutdown, comfy)?;
    let (routes, document) = description::routes(app.comfy.is_some()).split_for_parts();
    let pages = description::pages(&description::complete(document))?;
    let frontend = match &app.config.comfy.frontend {
        Some(folder) if app.comfy.is_some() => Some(Frontend::open(folder)?),
        _ => None,
    };
    Ok(routes
        .merge(pages)
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), comfy::same_origin))
        .layer(from_fn_with_state(app.clone(), auth::authenticate))
        .layer(from_fn_with_state(frontend, comfy::frontend::serve))
        .layer(cors)
        .layer(from_fn(openai::reword))
        .layer(from_fn_with_state(app.clone(), comfy::reword))
        .layer(from_fn(observe::harden))
        .layer(from_fn(observe::observe))
        .layer(from_fn_with_state(app.clone(), observe::count))
        .with_state(app))
}

/// What webhooks say about a task: what `GET /v1/tasks/{id}` answers.
pub fn webhook_body(view: &TaskView, config: &ServerConfig) -> Bytes {
    let addresses = addresses::Addresses::new(config, &HeaderMap::new());
    let body = task_json::TaskBody::new(view, &addresses);
    // Numbers, texts and lists: nothing in it that JSON lacks.
    serde_json::to_vec(&body).unwrap_or_default().into()
}

async fn unknown_route(uri: Uri) -> error::ApiError {
    error::ApiError::not_found("route", uri.path())
        .hint("GET /openapi.json describes all routes, /docs shows them")
}

async fn wrong_method(method: Method, uri: Uri) -> error::ApiError {
    let message = format!("{} does not answer to {method}", error::shown(uri.path()));
    error::ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        .hint("the header Allow names the methods that it answers to")
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(request: Request<Body>) -> (u16, axum::http::HeaderMap, serde_json::Value) {
        let router: Router = Router::new()
            .route("/known", get(|| async { "x" }))
            .fallback(unknown_route)
            .method_not_allowed_fallback(wrong_method);
        let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn an_unknown_route_and_a_wrong_method_are_refused_in_json() {
        let (status, _, body) = ask(Request::get("/nowhere").body(Body::empty()).unwrap()).await;
        assert_eq!((status, body["error"]["type"].as_str()), (404, Some("not_found")));
        let (status, headers, body) = ask(Request::post("/known").body(Body::empty()).unwrap()).await;
        assert_eq!((status, body["error"]["type"].as_str()), (405, Some("method_not_allowed")));
        assert_eq!(headers["allow"], "GET,HEAD");
    }
}
