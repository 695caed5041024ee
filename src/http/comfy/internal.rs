//! `/internal`: what ComfyUI's own front end asks beside its API: the log, and where folders are.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::body::Object;
use super::json as json_answer;
use super::model_files::places;
use crate::comfy::logs::{Entry, since};
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::workflow::Folders;
use crate::workflow::ordered::Ordered;

/// Between two looks for new lines.
const LOOK: Duration = Duration::from_millis(500);

/// A terminal's size.
#[derive(Debug, Clone, Copy, Serialize)]
struct Size {
    cols: u32,
    rows: u32,
}

/// The log has no terminal; ComfyUI falls back to this.
const SIZE: Size = Size { cols: 80, rows: 24 };

/// Lines as subscribers are told them.
#[derive(Debug, Serialize)]
struct Lines {
    entries: Vec<Entry>,
    size: Option<Size>,
}

/// Shows the last lines of the log as one text.
#[utoipa::path(
    get,
    path = "/internal/logs",
    tag = super::TAG,
    responses((status = 200, body = String, content_type = "application/json", description = "The lines"))
)]
pub(super) async fn logs() -> Response {
    let text: String = since(0).0.iter().map(|entry| format!("{} - {}", entry.t, entry.m)).collect();
    json_answer(&text)
}

/// Shows the last lines of the log one by one.
#[utoipa::path(
    get,
    path = "/internal/logs/raw",
    tag = super::TAG,
    responses((status = 200, body = Object, description = "`{\"entries\": [{\"t\", \"m\"}], \"size\"}`"))
)]
pub(super) async fn raw_logs() -> Response {
    json_answer(&Lines { entries: since(0).0, size: Some(SIZE) })
}

/// Tells a client new lines of the log over its WebSocket, or ends that.
#[utoipa::path(
    patch,
    path = "/internal/logs/subscribe",
    tag = super::TAG,
    request_body(content = Object, description = "`{\"clientId\": …, \"enabled\": true}`"),
    responses((status = 200, description = "Done"))
)]
pub(super) async fn subscribe(
    State(app): State<App>,
    client: Client,
    mut body: Object,
) -> Result<StatusCode, ApiError> {
    let comfy = app.comfy()?;
    let enabled = body.is_true("enabled");
    let Some(Ordered::String(id)) = body.take("clientId") else {
        return Err(ApiError::malformed("clientId is missing, or no text").field("clientId"));
    };
    let Some(subscription) = comfy.server.subscribe_to_logs(&client.owner, &id, enabled) else {
        return Ok(StatusCode::OK);
    };
    let (server, shutdown) = (comfy.server.clone(), app.shutdown.clone());
    tokio::spawn(async move {
        let (_, mut told) = since(0);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = subscription.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let (entries, count) = since(told);
            told = count;
            if !entries.is_empty() && !server.send_logs(&client.owner, &id, &Lines { entries, size: None }) {
                server.subscribe_to_logs(&client.owner, &id, false);
                return;
            }
        }
    });
    Ok(StatusCode::OK)
}

/// Lists where the folders of models are.
#[utoipa::path(
    get,
    path = "/internal/folder_paths",
    tag = super::TAG,
    responses((status = 200, body = Object, description = "Places by name of the folder"))
)]
pub(super) async fn folder_paths(State(app): State<App>) -> Result<Response, ApiError> {
    let folders = &app.comfy()?.workflows.folders;
    let all: Map<String, Value> =
        Folders::model_folders().map(|name| (name.to_owned(), json!(places(folders, name)))).collect();
    Ok(json_answer(&all))
}
