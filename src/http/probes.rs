//! What machines ask a server: whether it lives, whether it serves, and how it does.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::app::App;
use super::error::{ApiError, ErrorBody};
use crate::service::{ModelInfo, Readiness, Residency};

/// Prometheus' text format.
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Its routes.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(ready)).routes(routes!(metrics))
}

/// A living server.
#[derive(Debug, Serialize, ToSchema)]
struct HealthBody {
    /// Always `ok`.
    status: &'static str,
    /// Darkroom's version.
    version: &'static str,
    /// What draws.
    models: HealthModels,
}

/// What draws.
#[derive(Debug, Serialize, ToSchema)]
struct HealthModels {
    /// The default model; null if there is none.
    image: Option<HealthModel>,
}

/// The default model.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
struct HealthModel {
    /// Its id.
    name: String,
    /// `sdxl`, `sd15`, …
    #[serde(rename = "type")]
    kind: String,
    /// What networks run on.
    framework: &'static str,
    /// `cpu`.
    device: String,
    /// Whether it is on the device.
    initialized: bool,
}

/// A serving server.
#[derive(Debug, Serialize, ToSchema)]
struct ReadyBody {
    /// Always `ready`.
    status: &'static str,
}

/// Says that the server lives.
#[utoipa::path(
    get,
    path = "/health",
    tag = "server",
    security(()),
    responses((status = 200, body = HealthBody, description = "It lives"))
)]
async fn health(State(app): State<App>) -> Json<HealthBody> {
    let device = app.service.devices().first().map(|device| device.name.to_string()).unwrap_or_default();
    Json(HealthBody {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        models: HealthModels { image: default_model(app.service.models(), device) },
    })
}

fn default_model(models: Vec<ModelInfo>, device: String) -> Option<HealthModel> {
    let model = models.into_iter().find(|model| model.is_default)?;
    Some(HealthModel {
        name: model.id,
        kind: model.family,
        framework: "candle",
        device,
        initialized: matches!(model.residency, Residency::Resident { .. }),
    })
}

/// Says whether the server takes tasks.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "server",
    security(()),
    responses(
        (status = 200, body = ReadyBody, description = "It takes tasks"),
        (status = 503, body = ErrorBody, description = "It does not, and why")
    )
)]
async fn ready(State(app): State<App>) -> Result<Json<ReadyBody>, ApiError> {
    readiness(app.service.readiness()).map(|()| Json(ReadyBody { status: "ready" }))
}

fn readiness(readiness: Readiness) -> Result<(), ApiError> {
    let (kind, message) = match readiness {
        Readiness::Ready => return Ok(()),
        Readiness::Loading => ("loading", "models are being loaded"),
        Readiness::Draining => ("draining", "the server is stopping"),
        Readiness::StorageUnavailable => ("storage_unavailable", "tasks cannot be stored now"),
    };
    Err(ApiError::unavailable(kind, message, 5))
}

/// Tells how the server does, for Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "server",
    responses((status = 200, content_type = "application/openmetrics-text", body = String, description = "Metrics"))
)]
async fn metrics(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, METRICS)], app.service.metrics_text())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::ModelDefaults;

    #[test]
    fn a_server_that_is_not_ready_says_why() {
        assert_eq!(readiness(Readiness::Ready), Ok(()));
        for (state, kind) in [
            (Readiness::Loading, "loading"),
            (Readiness::Draining, "draining"),
            (Readiness::StorageUnavailable, "storage_unavailable"),
        ] {
            let error = readiness(state).unwrap_err();
            assert_eq!((error.status().as_u16(), error.detail().kind), (503, kind));
            assert!(error.into_response().headers().contains_key("retry-after"));
        }
    }

    #[test]
    fn health_shows_the_default_model() {
        let model = |id: &str, is_default| ModelInfo {
            id: id.into(),
            family: "sdxl".into(),
            bytes: 1,
            native_side: 128,
            is_default,
            residency: Residency::OnDisk,
            pinned: false,
            defaults: ModelDefaults {
                model: id.into(),
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
        let shown = default_model(vec![model("a", false), model("b", true)], "cpu".into()).unwrap();
        assert_eq!((shown.name.as_str(), shown.device.as_str(), shown.initialized), ("b", "cpu", false));
        assert_eq!(default_model(vec![model("a", false)], "cpu".into()), None);
    }
}
