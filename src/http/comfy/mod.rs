//! ComfyUI's API: its routes and messages as its clients know them, each also under `/api`. Thin: what happens to a
//! prompt is the business of [`crate::comfy`].
//!
//! Where ComfyUI stumbles over a request (500) the answer is 400 here, in the shape of its other errors.

mod body;
mod files;
pub(super) mod frontend;
mod history;
mod information;
mod internal;
mod internal_files;
mod model_files;
mod prompt;
mod queue;
mod settings;
mod socket;
mod upload;
mod userdata;
mod users;
mod view;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::app::App;
use super::auth::Client;
use super::error::ApiError;
use crate::comfy::upstream::WithUpstream;
use crate::comfy::{Comfy, Rejected};
use crate::config::ServerConfig;
use crate::task::Owner;
use crate::workflow::Workflows;

/// What the description calls this dialect.
pub(super) const TAG: &str = "comfyui";
/// First parts of its routes' paths.
const ROUTES: [&str; 23] = [
    "embeddings",
    "experiment",
    "extensions",
    "features",
    "free",
    "history",
    "i18n",
    "internal",
    "interrupt",
    "models",
    "object_info",
    "prompt",
    "queue",
    "settings",
    "system_stats",
    "upload",
    "userdata",
    "users",
    "v2",
    "view",
    "view_metadata",
    "workflow_templates",
    "ws",
];

/// ComfyUI's server, where it is served.
#[derive(Clone)]
pub struct ComfyParts {
    /// Prompts and clients.
    pub server: Comfy,
    /// What prompts are made of.
    pub workflows: Arc<Workflows>,
    /// The ComfyUI that gets what Darkroom lacks nodes for.
    pub upstream: Option<Arc<WithUpstream>>,
}

/// Its routes. Those under `/api` are the same and are not described again.
pub(super) fn routes() -> OpenApiRouter<App> {
    let again: Router<App> = both().split_for_parts().0;
    both().merge(internal_routes()).nest("/api", OpenApiRouter::from(again))
}

fn both() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(prompt::create, prompt::show))
        .routes(routes!(queue::show, queue::change))
        .routes(routes!(queue::interrupt))
        .routes(routes!(queue::free))
        .routes(routes!(history::list, history::change))
        .routes(routes!(history::show))
        .routes(routes!(socket::open))
        .routes(routes!(information::nodes))
        .routes(routes!(information::node))
        .routes(routes!(information::system))
        .routes(routes!(information::features))
        .routes(routes!(information::extensions))
        .routes(routes!(information::templates))
        .routes(routes!(information::translations))
        .routes(routes!(model_files::embeddings))
        .routes(routes!(model_files::folders))
        .routes(routes!(model_files::files))
        .routes(routes!(model_files::folders_in_full))
        .routes(routes!(model_files::files_in_full))
        .routes(routes!(model_files::preview))
        .routes(routes!(model_files::metadata))
        .merge(file_routes())
}

/// What has to do with files.
fn file_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(upload::image))
        .routes(routes!(upload::mask))
        .routes(routes!(view::view))
        .routes(routes!(userdata::list))
        .routes(routes!(userdata::list_all))
        .routes(routes!(userdata::fetch, userdata::store, userdata::remove))
        .routes(routes!(userdata::rename))
        .routes(routes!(users::list, users::add))
        .routes(routes!(settings::all, settings::merge))
        .routes(routes!(settings::one, settings::set))
}

fn internal_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(internal::logs))
        .routes(routes!(internal::raw_logs))
        .routes(routes!(internal::subscribe))
        .routes(routes!(internal::folder_paths))
        .routes(routes!(internal_files::list))
}

/// Whether a path is one of this dialect's.
fn is_ours(path: &str) -> bool {
    let path = path.strip_prefix("/api/").or_else(|| path.strip_prefix('/')).unwrap_or(path);
    let first = path.split('/').next().unwrap_or_default();
    ROUTES.contains(&first)
}

/// The body of every refusal.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct ComfyErrorBody {
    /// What is wrong with the whole.
    error: ComfyError,
    /// What is wrong with nodes, by id.
    #[schema(value_type = Object)]
    node_errors: serde_json::Map<String, serde_json::Value>,
}

/// What is wrong.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
struct ComfyError {
    /// A word for programs.
    #[serde(rename = "type")]
    kind: String,
    /// A sentence for people.
    message: String,
    /// What exactly, and what to do.
    details: String,
    /// More for programs.
    #[schema(value_type = Object)]
    extra_info: serde_json::Map<String, serde_json::Value>,
}

impl ComfyErrorBody {
    fn new(error: &ApiError) -> Self {
        let detail = error.detail();
        let mut details = detail.hint.clone().unwrap_or_default();
        if let Some(id) = &detail.id {
            details = format!("id {id}");
        }
        let message = detail.message.clone();
        let error = ComfyError {
            kind: detail.kind.to_owned(),
            details: if details.is_empty() { message.clone() } else { details },
            message,
            extra_info: serde_json::Map::new(),
        };
        Self { error, node_errors: serde_json::Map::new() }
    }
}

/// JSON as ComfyUI labels it.
fn json_text(status: StatusCode, text: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static(JSON))], text.into()).into_response()
}

const JSON: &str = "application/json; charset=utf-8";

fn json(value: &impl Serialize) -> Response {
    // What is sent has nothing that JSON lacks.
    json_text(StatusCode::OK, serde_json::to_vec(value).unwrap_or_default())
}

fn rejection(rejected: &Rejected) -> Response {
    let Rejected { error, node_errors } = rejected;
    json_text(StatusCode::BAD_REQUEST, format!(r#"{{"error":{error},"node_errors":{node_errors}}}"#))
}

/// The outer layer: words refusals of this dialect's routes as ComfyUI does, wherever they came from.
pub(super) async fn reword(State(app): State<App>, request: Request, next: Next) -> Response {
    if app.comfy.is_none() || !is_ours(request.uri().path()) {
        return next.run(request).await;
    }
    let method = request.method().clone();
    let mut response = next.run(request).await;
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    let status = match error.status() {
        // There, what has no route of its own is a file of the front end, which is not there either.
        StatusCode::METHOD_NOT_ALLOWED if matches!(method, Method::GET | Method::HEAD) => {
            StatusCode::NOT_FOUND
        }
        StatusCode::METHOD_NOT_ALLOWED if method == Method::OPTIONS => return StatusCode::OK.into_response(),
        status => status,
    };
    let mut reworded =
        json_text(status, serde_json::to_vec(&ComfyErrorBody::new(&error)).unwrap_or_default());
    for (name, value) in response.headers() {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            reworded.headers_mut().append(name.clone(), value.clone());
        }
    }
    reworded.extensions_mut().insert(error);
    reworded
}

/// The inner layer: without keys, pages of other sites that a browser shows may not ask. Bodies are read whatever they
/// are labelled as, so the browser itself would not stop them.
pub(super) async fn same_origin(State(app): State<App>, request: Request, next: Next) -> Response {
    let anonymous = request.extensions().get::<Client>().is_none_or(|client| client.owner == Owner::Anyone);
    let asked = app.comfy.is_some() && is_ours(request.uri().path());
    if asked && anonymous && !origin_may_ask(&app.config.server, request.headers(), request.uri()) {
        return ApiError::forbidden("pages of this origin may not ask")
            .hint("server.cors_origins in the configuration names origins that may")
            .into_response();
    }
    next.run(request).await
}

fn origin_may_ask(server: &ServerConfig, headers: &HeaderMap, uri: &Uri) -> bool {
    if headers.contains_key(header::HOST) {
        return super::v1::origin_may_listen(server, headers);
    }
    // HTTP/2 says the host elsewhere.
    let mut headers = headers.clone();
    if let Some(host) = uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        headers.insert(header::HOST, host);
    }
    super::v1::origin_may_listen(server, &headers)
}

impl App {
    /// ComfyUI's server.
    fn comfy(&self) -> Result<&ComfyParts, ApiError> {
        self.comfy.as_ref().ok_or_else(|| ApiError::not_found("route", "of ComfyUI"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_this_dialect_are_told_from_others() {
        for path in ["/prompt", "/api/prompt", "/history/x", "/api/v2/userdata", "/ws", "/internal/logs"] {
            assert!(is_ours(path), "{path}");
        }
        for path in ["/", "/v1/queue", "/api/v1/models", "/metrics", "/promptx", "/api", "", "/assets/prompt"]
        {
            assert!(!is_ours(path), "{path}");
        }
    }

    #[test]
    fn a_refusal_has_comfyuis_shape() {
        let body = ComfyErrorBody::new(&ApiError::too_many("queue_full", "full", 5).hint("wait"));
        assert_eq!(
            serde_json::to_value(&body).unwrap(),
            serde_json::json!({
                "error": {"type": "queue_full", "message": "full", "details": "wait", "extra_info": {}},
                "node_errors": {},
            })
        );
    }
}
