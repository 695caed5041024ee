//! `/queue`, `/interrupt` and `/free`: what waits and runs, and ending it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::body::{Object, Raw};
use super::json_text;
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::workflow::ordered::Ordered;
use crate::workflow::python;

/// Lists the prompts that run and those that wait.
#[utoipa::path(
    get,
    path = "/queue",
    tag = super::TAG,
    responses((
        status = 200,
        body = Object,
        description = "`{\"queue_running\": […], \"queue_pending\": […]}` of `[number, id, prompt, extra_data, outputs]`"
    ))
)]
pub(super) async fn show(State(app): State<App>, client: Client) -> Result<Response, ApiError> {
    let (running, waiting) = app.comfy()?.server.queue(&client.owner);
    let text =
        format!(r#"{{"queue_running":[{}],"queue_pending":[{}]}}"#, joined(&running), joined(&waiting));
    Ok(json_text(StatusCode::OK, text))
}

fn joined(items: &[Arc<str>]) -> String {
    items.join(",")
}

/// Takes back prompts that wait: all of them (`clear`), or those of these ids (`delete`).
#[utoipa::path(
    post,
    path = "/queue",
    tag = super::TAG,
    request_body(content = Object, description = "`{\"clear\": true}` or `{\"delete\": [ids]}`"),
    responses((status = 200, description = "Done"))
)]
pub(super) async fn change(
    State(app): State<App>,
    client: Client,
    mut body: Object,
) -> Result<StatusCode, ApiError> {
    let server = &app.comfy()?.server;
    let ids = body.take_ids("delete")?;
    if body.is_true("clear") {
        server.clear_waiting(&client.owner).await;
    }
    server.delete_waiting(&client.owner, &ids).await;
    Ok(StatusCode::OK)
}

/// Interrupts the prompt of this `prompt_id`; without one, the prompt that began first.
#[utoipa::path(
    post,
    path = "/interrupt",
    tag = super::TAG,
    request_body(content = Object, description = "`{}` or `{\"prompt_id\": …}`; may be empty"),
    responses((status = 200, description = "Done, or nothing such runs"))
)]
pub(super) async fn interrupt(
    State(app): State<App>,
    client: Client,
    body: Raw,
) -> Result<Response, ApiError> {
    let server = &app.comfy()?.server;
    // What is no JSON counts as an empty object; `null` is what ComfyUI stumbles over, and nothing is interrupted.
    let id = match serde_json::from_slice(&body.bytes) {
        Ok(Ordered::Object(members)) => {
            members.get("prompt_id").filter(|id| python::truth(id)).map(python::str)
        }
        Err(_) => None,
        Ok(Ordered::Null) => return Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response()),
        Ok(_) => return Err(ApiError::malformed("the body is JSON, but no object")),
    };
    server.interrupt(&client.owner, id.as_deref());
    Ok(StatusCode::OK.into_response())
}

/// Frees memory: outputs of nodes that were kept (`free_memory`), and weights that nothing uses (`unload_models`).
#[utoipa::path(
    post,
    path = "/free",
    tag = super::TAG,
    request_body(content = Object, description = "`{\"unload_models\": true, \"free_memory\": true}`"),
    responses((status = 200, description = "Done"))
)]
pub(super) async fn free(State(app): State<App>, body: Object) -> Result<StatusCode, ApiError> {
    let cache = body.is_true("free_memory");
    let models = cache || body.is_true("unload_models");
    if models {
        app.comfy()?.server.free(models, cache).await;
    }
    Ok(StatusCode::OK)
}
