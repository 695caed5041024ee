//! `POST /v1/scenes/generate`: one picture of a scene.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use super::character_packs::{AcceptedBody, Pack, styled_spec};
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::Body;
use crate::http::rules::{Rules, random_seed};
use crate::http::submit::{self, PriorityName};
use crate::http::words::{Words, join};
use crate::service::ModelDefaults;
use crate::task::{ImageSpec, TaskKind};

/// A scene.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SceneRequest {
    /// What is to be seen.
    #[schema(examples("no humans, scenery, beach, ocean"))]
    scene_description: String,
    /// `anime`, `semi_realistic`, …
    art_style: Option<String>,
    /// `WIDTHxHEIGHT` in pixels, multiples of 8; the model's own size if it is left out.
    #[schema(examples("1920x1080"))]
    resolution: Option<String>,
    /// `low_angle`, `wide_shot`, …, or words of your own; `auto` adds nothing.
    camera_angle: Option<String>,
    /// `calm`, `dramatic`, …, or words of your own; `auto` adds nothing.
    mood: Option<String>,
    /// Whom to tell when the task is final.
    callback_webhook: Option<String>,
    /// How soon.
    priority: Option<PriorityName>,
    /// Seed of the picture.
    #[schema(format = "uint64")]
    seed: Option<u64>,
    /// A model's id, as GET /v1/models lists them.
    model: Option<String>,
}

/// Draws a scene.
#[utoipa::path(
    post,
    path = "/v1/scenes/generate",
    tag = "scenes",
    request_body = SceneRequest,
    responses((status = 200, body = AcceptedBody, description = "The task, which is stored and will be finished"))
)]
pub(super) async fn generate(
    State(app): State<App>,
    client: Client,
    body: Body<SceneRequest>,
) -> Result<Response, ApiError> {
    let Body { value: request, idempotency, .. } = body;
    let defaults = submit::defaults(&app, request.model.as_deref())?;
    let webhook_url = submit::webhook(&app, "callback_webhook", request.callback_webhook.clone())?;
    let pack = Pack {
        kind: TaskKind::Scene,
        priority: request.priority,
        images: vec![scene_spec(&app.words, &app.rules, defaults, &request)?],
        webhook_url,
        bypass_bank: false,
        uploads: Vec::new(),
        warnings: Vec::new(),
    };
    pack.accept(&app, &client, idempotency).await
}

fn scene_spec(
    words: &Words,
    rules: &Rules,
    defaults: ModelDefaults,
    request: &SceneRequest,
) -> Result<ImageSpec, ApiError> {
    if request.scene_description.trim().is_empty() {
        return Err(ApiError::invalid("scene_description", "is empty"));
    }
    let angle = words.camera_angle(request.camera_angle.as_deref())?;
    let mood = words.mood(request.mood.as_deref())?;
    let style = words.style(request.art_style.as_deref())?;
    let prompt = join(&[&request.scene_description, &angle, &mood, &style.tags]);
    let mut spec = styled_spec(rules, defaults, prompt, &style, request.resolution.as_deref())
        .map_err(|error| error.renamed(&[("prompt", "scene_description")]))?;
    spec.seed = request.seed.unwrap_or_else(random_seed);
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::extract::parse_json;
    use crate::http::rules::testing::{defaults, rules};

    fn scene(json: &str) -> Result<ImageSpec, ApiError> {
        scene_spec(&Words::embedded().unwrap(), &rules(), defaults(), &parse_json(json.as_bytes())?)
    }

    #[test]
    fn a_scene_is_description_angle_mood_and_style_in_this_order() {
        let spec = scene(
            r#"{"scene_description": "a tavern, indoors", "camera_angle": "low_angle", "mood": "calm",
                "art_style": "watercolor", "resolution": "1920x1080", "seed": 5}"#,
        )
        .unwrap();
        assert_eq!(
            spec.prompt,
            "a tavern, indoors, from below, low angle, calm, soft light, watercolor painting, soft edges"
        );
        assert_eq!((spec.width, spec.height, spec.seed), (1920, 1080, 5));
    }

    #[test]
    fn auto_leaves_the_description_as_it_is_and_the_size_to_the_model() {
        let spec = scene(
            r#"{"scene_description": "a beach", "camera_angle": "auto", "mood": "auto", "art_style": "auto"}"#,
        );
        let spec = spec.unwrap();
        assert_eq!((spec.prompt.as_str(), spec.width, spec.height), ("a beach", 128, 128));
    }

    #[test]
    fn a_wrong_scene_names_its_field() {
        let field = |json: &str| scene(json).unwrap_err().detail().field.clone().unwrap();
        assert_eq!(field(r#"{"scene_description": " "}"#), "scene_description");
        assert_eq!(field(r#"{"scene_description": "(a:inf)"}"#), "scene_description");
        assert_eq!(field(r#"{"scene_description": "a", "resolution": "big"}"#), "resolution");
        assert_eq!(field(r#"{"scene_description": "a", "webhook_url": "x"}"#), "webhook_url");
    }
}
