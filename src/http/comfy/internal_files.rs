//! `GET /internal/files/{type}`, which ComfyUI's own front end asks for choices that change.

use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Response;

use super::files::{Files, Refusal};
use super::{json, json_text};
use crate::workflow::FileType;

/// Lists the files of a folder, the newest first.
#[utoipa::path(
    get,
    path = "/internal/files/{type}",
    tag = super::TAG,
    params(("type" = String, Path, description = "`input`, `output` or `temp`")),
    responses(
        (status = 200, body = Vec<String>, description = "Their names"),
        (status = 400, body = Object, description = "There is no such folder")
    )
)]
pub(super) async fn list(files: Files, Path(kind): Path<String>) -> Result<Response, Refusal> {
    let Some(kind) = FileType::of_name(&kind) else {
        return Ok(json_text(StatusCode::BAD_REQUEST, r#"{"error": "Invalid directory type"}"#));
    };
    let names = files.work(move |folders| Ok(folders.list_newest(kind))).await?;
    Ok(json(&names))
}
