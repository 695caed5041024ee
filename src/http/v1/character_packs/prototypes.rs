//! `POST /v1/character-packs/prototypes`: variants of a new character.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::super::images::variants;
use super::{AcceptedBody, Pack, styled_spec};
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::Body;
use crate::http::guides::LoraRequest;
use crate::http::rules::{Rules, random_seed};
use crate::http::submit::{self, PriorityName};
use crate::http::words::{Words, join};
use crate::service::ModelDefaults;
use crate::task::{ImageSpec, TaskKind};

/// Variants where none are asked for.
const VARIANTS: u32 = 4;

/// A new character.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http::v1) struct PrototypesRequest {
    /// What the character looks like: gender, age_appearance, face_shape, eye_size, eye_color, hair_length,
    /// hair_color, … Fields with other names are further tags, taken as they are.
    #[schema(value_type = Object, example = json!({"gender": "female", "hair_color": "blonde", "eye_color": "blue"}))]
    character_design: Map<String, Value>,
    /// `anime`, `semi_realistic`, …
    art_style: Option<String>,
    /// How many.
    #[schema(minimum = 1, default = 4)]
    variant_count: Option<u32>,
    /// `WIDTHxHEIGHT` in pixels, multiples of 8; the model's own size if it is left out.
    #[schema(examples("1536x1536"))]
    resolution: Option<String>,
    /// Whom to tell when the task is final.
    webhook_url: Option<String>,
    /// How soon.
    priority: Option<PriorityName>,
    /// Seed of the first variant; each next one is one higher.
    #[schema(format = "uint64")]
    seed: Option<u64>,
    /// A model's id, as GET /v1/models lists them.
    model: Option<String>,
    /// LoRAs, applied in this order.
    #[schema(max_items = 8)]
    loras: Option<Vec<LoraRequest>>,
}

/// Draws variants of a new character.
#[utoipa::path(
    post,
    path = "/v1/character-packs/prototypes",
    tag = "character packs",
    request_body = PrototypesRequest,
    responses((status = 200, body = AcceptedBody, description = "The task, which is stored and will be finished"))
)]
pub(in crate::http::v1) async fn prototypes(
    State(app): State<App>,
    client: Client,
    body: Body<PrototypesRequest>,
) -> Result<Response, ApiError> {
    let Body { value: request, idempotency, .. } = body;
    let defaults = submit::defaults(&app, request.model.as_deref())?;
    let webhook_url = submit::webhook(&app, "webhook_url", request.webhook_url.clone())?;
    let guides = app.guides(&defaults.model)?;
    let loras = guides.loras("loras", request.loras.as_deref().unwrap_or_default())?;
    let mut images = prototype_specs(&app.words, &app.rules, defaults, &request)?;
    images.iter_mut().for_each(|image| image.loras.clone_from(&loras));
    let pack = Pack {
        kind: TaskKind::Prototypes,
        priority: request.priority,
        images,
        webhook_url,
        bypass_bank: false,
        uploads: Vec::new(),
        warnings: Vec::new(),
    };
    pack.accept(&app, &client, idempotency).await
}

fn prototype_specs(
    words: &Words,
    rules: &Rules,
    defaults: ModelDefaults,
    request: &PrototypesRequest,
) -> Result<Vec<ImageSpec>, ApiError> {
    let count = request.variant_count.unwrap_or(VARIANTS) as usize;
    rules.check_count("variant_count", count)?;
    let character = words.character(&request.character_design)?;
    let style = words.style(request.art_style.as_deref())?;
    let prompt = join(&[&character, &style.tags]);
    let spec = styled_spec(rules, defaults, prompt, &style, request.resolution.as_deref())
        .map_err(|error| error.renamed(&[("prompt", "character_design")]))?;
    let mut images = variants(&spec, request.seed.unwrap_or_else(random_seed), count);
    for (index, image) in images.iter_mut().enumerate() {
        image.label = Some(format!("variant_{}", index + 1));
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::extract::parse_json;
    use crate::http::rules::testing::{defaults, rules};

    fn prototypes(json: &str) -> Result<Vec<ImageSpec>, ApiError> {
        let request = parse_json(json.as_bytes())?;
        prototype_specs(&Words::embedded().unwrap(), &rules(), defaults(), &request)
    }

    fn field(result: Result<Vec<ImageSpec>, ApiError>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.status().as_u16(), 422, "{error:?}");
        error.detail().field.clone().unwrap()
    }

    #[test]
    fn prototypes_are_variants_of_one_prompt_with_counting_seeds() {
        let specs = prototypes(
            r#"{"character_design": {"gender": "female", "hair_color": "blonde"}, "art_style": "anime",
                "resolution": "256x128", "seed": 10}"#,
        )
        .unwrap();
        assert_eq!(specs.iter().map(|spec| spec.seed).collect::<Vec<_>>(), [10, 11, 12, 13]);
        assert_eq!(specs[0].prompt, "1girl, blonde hair, anime style");
        assert_eq!(specs[0].negative_prompt, "photorealistic, 3d");
        assert_eq!((specs[0].width, specs[0].height), (256, 128));
        assert_eq!(specs[3].label.as_deref(), Some("variant_4"));
        assert!(specs[0].bank.is_none());
    }

    #[test]
    fn a_wrong_prototype_request_names_the_gateways_own_field() {
        assert_eq!(field(prototypes(r#"{"character_design": {}}"#)), "character_design");
        let design = r#""character_design": {"hair_color": "red"}"#;
        assert_eq!(field(prototypes(&format!("{{{design}, \"variant_count\": 0}}"))), "variant_count");
        assert_eq!(field(prototypes(&format!("{{{design}, \"resolution\": \"100x100\"}}"))), "resolution");
        assert_eq!(field(prototypes(&format!("{{{design}, \"resolution\": \"9999x16\"}}"))), "resolution");
        assert_eq!(field(prototypes(&format!("{{{design}, \"resolutoin\": \"9\"}}"))), "resolutoin");
        assert_eq!(field(prototypes(r#"{"character_design": {"hat": "(x:nan)"}}"#)), "character_design");
    }
}
