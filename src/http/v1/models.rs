//! `/v1/models`: what is on disk and what is on a device. The list is one that OpenAI's clients read, too.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::Name;
use crate::http::submit::model_not_found;
use crate::service::{ModelDefaults, ModelInfo, Residency, ServiceError};

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ModelListBody {
    /// Always `list`.
    object: &'static str,
    /// The models.
    pub(in crate::http) data: Vec<ModelBody>,
}

/// A model.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct ModelBody {
    /// Its id, as requests name it.
    pub(in crate::http) id: String,
    /// Always `model`.
    object: &'static str,
    /// When this server started, seconds since 1970: files say nothing of when a model was made.
    created: i64,
    /// Always `darkroom`.
    owned_by: &'static str,
    /// `sdxl`, `sd15`, …
    pub(in crate::http) family: String,
    /// Bytes of its files.
    bytes: u64,
    /// Side that it was made for, pixels.
    native_side: usize,
    /// Whether requests without a model get it.
    pub(in crate::http) is_default: bool,
    /// `on_disk`, `loading`, `resident` or `failed`.
    pub(in crate::http) state: &'static str,
    /// Bytes on the device.
    resident_bytes: u64,
    /// Whether it is never evicted.
    pinned: bool,
    /// What requests that leave a setting open get.
    defaults: DefaultsBody,
    /// Why it could not be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Settings that suit a model.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct DefaultsBody {
    /// Pixels in a row.
    width: usize,
    /// Rows.
    height: usize,
    /// Sampling steps.
    steps: usize,
    /// Classifier-free guidance scale.
    cfg: f64,
    /// ComfyUI's name of the sampler.
    sampler: String,
    /// ComfyUI's name of the scheduler.
    scheduler: String,
    /// Negative prompt.
    negative_prompt: String,
}

impl From<ModelDefaults> for DefaultsBody {
    fn from(defaults: ModelDefaults) -> Self {
        let ModelDefaults { width, height, steps, cfg, sampler, scheduler, negative_prompt, .. } = defaults;
        Self { width, height, steps, cfg, sampler, scheduler, negative_prompt }
    }
}

impl ModelBody {
    fn new(info: ModelInfo, created: i64) -> Self {
        let (state, resident_bytes, error) = match info.residency {
            Residency::OnDisk => ("on_disk", 0, None),
            Residency::Loading => ("loading", 0, None),
            Residency::Resident { bytes } => ("resident", bytes, None),
            Residency::Failed { message } => ("failed", 0, Some(message)),
        };
        Self {
            id: info.id,
            object: "model",
            created,
            owned_by: "darkroom",
            family: info.family,
            bytes: info.bytes,
            native_side: info.native_side,
            is_default: info.is_default,
            state,
            resident_bytes,
            pinned: info.pinned,
            defaults: DefaultsBody::from(info.defaults),
            error,
        }
    }
}

/// All models, as every dialect's list begins.
pub(in crate::http) fn models(app: &App) -> Vec<ModelBody> {
    let created = app.started.as_second();
    app.service.models().into_iter().map(|info| ModelBody::new(info, created)).collect()
}

/// Lists models: on disk, on their way to a device, on a device.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "models",
    responses((status = 200, body = ModelListBody, description = "All models"))
)]
pub(super) async fn list(State(app): State<App>, _client: Client) -> Json<ModelListBody> {
    Json(ModelListBody { object: "list", data: models(&app) })
}

/// Shows a model.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "models",
    params(("id" = String, Path, description = "The model's id")),
    responses((status = 200, body = ModelBody, description = "The model"))
)]
pub(super) async fn show(
    State(app): State<App>,
    _client: Client,
    Name(id): Name,
) -> Result<Json<ModelBody>, ApiError> {
    let found = models(&app).into_iter().find(|model| model.id == id);
    found.map(Json).ok_or_else(|| model_not_found(&app, "model", &id))
}

/// Brings a model onto the device, and answers when it is there. Needs an admin's key where keys exist.
#[utoipa::path(
    post,
    path = "/v1/models/{id}/load",
    tag = "models",
    params(("id" = String, Path, description = "The model's id")),
    responses((status = 200, body = ModelBody, description = "The model, on the device"))
)]
pub(super) async fn load(
    State(app): State<App>,
    _client: Client,
    Name(id): Name,
) -> Result<Json<ModelBody>, ApiError> {
    let result = app.service.load_model(&id).await;
    changed(&app, result)
}

/// Takes a model off the device. Needs an admin's key where keys exist.
#[utoipa::path(
    post,
    path = "/v1/models/{id}/unload",
    tag = "models",
    params(("id" = String, Path, description = "The model's id")),
    responses(
        (status = 200, body = ModelBody, description = "The model, on disk"),
        (status = 409, body = crate::http::error::ErrorBody, description = "Pictures use it now")
    )
)]
pub(super) async fn unload(
    State(app): State<App>,
    _client: Client,
    Name(id): Name,
) -> Result<Json<ModelBody>, ApiError> {
    let result = app.service.unload_model(&id).await;
    changed(&app, result)
}

fn changed(app: &App, result: Result<ModelInfo, ServiceError>) -> Result<Json<ModelBody>, ApiError> {
    match result {
        Ok(info) => Ok(Json(ModelBody::new(info, app.started.as_second()))),
        Err(ServiceError::NotFound { what, id }) => Err(model_not_found(app, what, &id)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_openais_fields_and_our_own() {
        let info = ModelInfo {
            id: "tiny-sdxl".into(),
            family: "sdxl".into(),
            bytes: 10,
            native_side: 128,
            is_default: true,
            residency: Residency::Resident { bytes: 20 },
            pinned: false,
            defaults: ModelDefaults {
                model: "tiny-sdxl".into(),
                width: 128,
                height: 128,
                steps: 20,
                cfg: 7.0,
                sampler: "euler".into(),
                scheduler: "normal".into(),
                negative_prompt: String::new(),
                kind: darkroom_models::checkpoint::ModelKind::Sdxl,
            },
        };
        let body = serde_json::to_value(ModelBody::new(info, 5)).unwrap();
        assert_eq!((body["object"].as_str(), body["created"].as_i64()), (Some("model"), Some(5)));
        assert_eq!((body["owned_by"].as_str(), body["id"].as_str()), (Some("darkroom"), Some("tiny-sdxl")));
        assert_eq!((body["state"].as_str(), body["resident_bytes"].as_u64()), (Some("resident"), Some(20)));
        assert!(body.get("error").is_none());
    }
}
