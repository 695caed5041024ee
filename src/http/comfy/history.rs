//! `/history`: prompts that have ended. Answers are sent entry by entry: the whole history may be larger than anyone
//! would want in memory.

use std::io;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;

use super::body::Object;
use super::json_text;
use crate::comfy::{Comfy, Found};
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::{Name, Params};

/// Answers up to so many bytes are sent in one piece.
const AT_ONCE: usize = 4 << 20;

/// Which part of the history.
#[derive(Debug, Deserialize)]
pub(super) struct Part {
    max_items: Option<i64>,
    offset: Option<i64>,
}

/// Lists prompts that have ended, the oldest first.
#[utoipa::path(
    get,
    path = "/history",
    tag = super::TAG,
    params(
        ("max_items" = Option<i64>, Query, description = "Most of them; the last ones unless `offset` says otherwise"),
        ("offset" = Option<i64>, Query, description = "Number of the first one")
    ),
    responses((
        status = 200,
        body = Object,
        description = "`{id: {\"prompt\", \"outputs\", \"status\", \"meta\"}}`"
    ))
)]
pub(super) async fn list(
    State(app): State<App>,
    client: Client,
    Params(part): Params<Part>,
) -> Result<Response, ApiError> {
    let server = &app.comfy()?.server;
    let found = server.history(&client.owner, part.max_items, part.offset.unwrap_or(-1));
    Ok(sent(server.clone(), found))
}

/// Shows a prompt that has ended; an empty object if there is none such.
#[utoipa::path(
    get,
    path = "/history/{prompt_id}",
    tag = super::TAG,
    params(("prompt_id" = String, Path, description = "The prompt's id")),
    responses((status = 200, body = Object, description = "As `/history`, with one entry or none"))
)]
pub(super) async fn show(
    State(app): State<App>,
    client: Client,
    Name(id): Name,
) -> Result<Response, ApiError> {
    let server = &app.comfy()?.server;
    let found = server.find(&client.owner, &id);
    Ok(sent(server.clone(), found.into_iter().collect()))
}

/// Forgets prompts that have ended: all of them (`clear`), or those of these ids (`delete`).
#[utoipa::path(
    post,
    path = "/history",
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
        server.clear_ended(&client.owner).await;
    }
    server.delete_ended(&client.owner, &ids).await;
    Ok(StatusCode::OK)
}

fn sent(server: Comfy, found: Vec<Found>) -> Response {
    let sizes = found.iter().map(|found| found.in_memory().map(Bytes::len));
    if sizes.sum::<Option<usize>>().is_some_and(|bytes| bytes <= AT_ONCE) {
        let mut text = Vec::new();
        for (index, found) in found.iter().enumerate() {
            write(&mut text, index == 0, found, found.in_memory().map_or(&b"{}"[..], |entry| entry));
        }
        text.extend_from_slice(end(found.is_empty()));
        return json_text(StatusCode::OK, text);
    }
    let start = (server, found.into_iter(), true);
    let entries = stream::unfold(Some(start), |state| async move {
        let (server, mut found, mut first) = state?;
        loop {
            let Some(next) = found.next() else {
                return Some((Ok(Bytes::from_static(end(first))), None));
            };
            match server.entry(&next).await {
                Ok(Some(entry)) => {
                    let mut text = Vec::new();
                    write(&mut text, first, &next, &entry);
                    first = false;
                    return Some((Ok(Bytes::from(text)), Some((server, found, first))));
                }
                // It was deleted meanwhile.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the history cannot be read");
                    return Some((Err(io::Error::other(error)), None));
                }
            }
        }
    });
    json_text(StatusCode::OK, Body::from_stream(entries))
}

fn write(text: &mut Vec<u8>, first: bool, found: &Found, entry: &[u8]) {
    let id = serde_json::to_string(&*found.id).unwrap_or_default();
    text.reserve(entry.len() + id.len() + 2);
    text.push(if first { b'{' } else { b',' });
    text.extend_from_slice(id.as_bytes());
    text.push(b':');
    text.extend_from_slice(entry);
}

fn end(empty: bool) -> &'static [u8] {
    if empty { b"{}" } else { b"}" }
}
