//! `/settings`: what people set in the front end, in one file of the user folder.

use std::path::Path as FilePath;

use axum::body::Bytes;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use serde_json::{Map, Serializer, Value as Json};

use super::files::{Files, Refusal, Refusals};
use super::json;
use super::userdata::{FOLDER, root};
use crate::workflow::Folders;
use crate::workflow::folders::{FileError, find_below, write_whole};

/// The file, as ComfyUI calls it.
const FILE: &str = "comfy.settings.json";
/// Most bytes of all settings, and of a request that changes them.
const MOST_BYTES: usize = 8 << 20;

/// Tells everything that is set.
#[utoipa::path(
    get,
    path = "/settings",
    tag = super::TAG,
    responses((status = 200, body = Object, description = "Names and values"))
)]
pub(super) async fn all(files: Files) -> Result<Response, Refusal> {
    let settings = files.work(read).await?;
    Ok(json(&settings))
}

/// Tells one setting; `null` if it is not set.
#[utoipa::path(
    get,
    path = "/settings/{id}",
    tag = super::TAG,
    params(("id" = String, Path, description = "Its name")),
    responses((status = 200, body = serde_json::Value, description = "Its value"), Refusals)
)]
pub(super) async fn one(files: Files, Path(id): Path<String>) -> Result<Response, Refusal> {
    let mut settings = files.work(read).await?;
    Ok(json(&settings.remove(&id).unwrap_or_default()))
}

/// Sets several; others stay.
#[utoipa::path(
    post,
    path = "/settings",
    tag = super::TAG,
    request_body(content = Object, description = "Names and values"),
    responses((status = 200, description = "Done"), Refusals)
)]
pub(super) async fn merge(files: Files, body: Bytes) -> Result<StatusCode, Refusal> {
    match parse(&body)? {
        Json::Object(new) => change(&files, |settings| settings.extend(new)).await,
        _ => Err(Refusal::bad("settings are an object of names and values")),
    }
}

/// Sets one.
#[utoipa::path(
    post,
    path = "/settings/{id}",
    tag = super::TAG,
    params(("id" = String, Path, description = "Its name")),
    request_body(content = serde_json::Value, description = "Its value: any JSON"),
    responses((status = 200, description = "Done"), Refusals)
)]
pub(super) async fn set(files: Files, Path(id): Path<String>, body: Bytes) -> Result<StatusCode, Refusal> {
    let value = parse(&body)?;
    change(&files, |settings| {
        settings.insert(id, value);
    })
    .await
}

fn parse(body: &[u8]) -> Result<Json, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::bad(format!("the body is no JSON: {error}")))
}

async fn change(
    files: &Files,
    change: impl FnOnce(&mut Map<String, Json>) + Send + 'static,
) -> Result<StatusCode, Refusal> {
    let _one_at_a_time = files.app.user_changes.lock().await;
    let work = move |folders: &Folders| {
        let mut settings = load(&folders.user);
        change(&mut settings);
        let mut bytes = Vec::new();
        let mut writer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"    "));
        settings.serialize(&mut writer).map_err(|error| Refusal::defect(&error))?;
        if bytes.len() > MOST_BYTES {
            let message = format!("all settings together may have {MOST_BYTES} bytes");
            return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        write_whole(&root(&folders.user)?.join(FILE), &bytes)?;
        Ok(StatusCode::OK)
    };
    files.work(work).await
}

/// What is set. Whoever asks has a folder from then on, as in ComfyUI: `GET /users` says so.
fn read(folders: &Folders) -> Result<Map<String, Json>, Refusal> {
    root(&folders.user)?;
    Ok(load(&folders.user))
}

/// What is set; nothing where there is no file, or none that reads.
fn load(user: &FilePath) -> Map<String, Json> {
    let file = match find_below(&user.join(FOLDER), FILE) {
        Ok(path) => std::fs::read(path),
        Err(FileError::Missing) => return Map::new(),
        Err(error) => {
            tracing::warn!(%error, "the settings of the front end cannot be read");
            return Map::new();
        }
    };
    match file.map_err(serde_json::Error::io).and_then(|bytes| serde_json::from_slice(&bytes)) {
        Ok(settings) => settings,
        Err(error) => {
            tracing::warn!(%error, "the settings of the front end cannot be read");
            Map::new()
        }
    }
}
