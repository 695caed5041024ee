//! `GET /v1/poses`: the poses that have names, and their skeletons.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::templates::png;
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::Name;
use crate::http::pose;

/// Width and height of the skeletons that are shown, pixels.
const SHOWN: (usize, usize) = (256, 384);

/// The poses that have names.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct PoseListBody {
    /// By name.
    poses: Vec<PoseBody>,
}

/// A pose.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct PoseBody {
    /// What `pose_id` calls it.
    id: String,
    /// What it shows, in a few words.
    about: String,
    /// Other words for it that requests may use.
    synonyms: Vec<String>,
    /// Where its skeleton is, below the server's address.
    url: String,
}

/// Lists the poses that have names.
#[utoipa::path(
    get,
    path = "/v1/poses",
    tag = "character packs",
    responses((status = 200, body = PoseListBody, description = "All poses"))
)]
pub(super) async fn list(State(app): State<App>, _client: Client) -> Json<PoseListBody> {
    let poses = app.poses.list().map(|(id, about, also)| PoseBody {
        id: id.to_owned(),
        about: about.to_owned(),
        synonyms: also.to_vec(),
        url: format!("/v1/poses/{id}.png"),
    });
    Json(PoseListBody { poses: poses.collect() })
}

/// Sends a pose's skeleton.
#[utoipa::path(
    get,
    path = "/v1/poses/{file}",
    tag = "character packs",
    params(("file" = String, Path, description = "The pose and `.png`: `standing_neutral.png`")),
    responses(
        (status = 200, content_type = "image/png", body = String, description = "The picture"),
        (status = 304, description = "The client has it already")
    )
)]
pub(super) async fn picture(
    State(app): State<App>,
    _client: Client,
    Name(file): Name,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let missing = || ApiError::not_found("pose", &file).hint("GET /v1/poses lists all");
    let id = file.strip_suffix(".png").ok_or_else(missing)?;
    let pose = app.poses.preset("file", id).map_err(|_| missing())?.clone();
    let skeleton = app.picture_work(move || pose::skeleton(&pose, SHOWN.0, SHOWN.1)).await??;
    Ok(png(&headers, skeleton.to_vec()))
}
