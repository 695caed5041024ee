//! `POST /v1/character-packs/stickers`: a character in many expressions, cut out of its background.

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use utoipa::ToSchema;

use super::super::image_request::FormatName;
use super::cast::{Cast, CastRequest};
use super::recipe::Recipe;
use super::series::{Series, face_detail};
use super::templating::TemplateRequest;
use super::{AcceptedBody, Kit, Pack};
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::Body;
use crate::http::guides::{BackgroundName, Guides, LoraRequest};
use crate::http::submit::{self, PriorityName};
use crate::service::ModelDefaults;
use crate::task::{ImageFormat, ImageSpec, Owner, TaskKind};

/// How large models draw stickers.
const RECIPE: Recipe = Recipe { steps: 30, size: Some((768, 1152)) };
/// Colours that a background may have, in the order in which they are tried.
const BACKDROPS: [&str; 7] = ["green", "blue", "pink", "yellow", "purple", "orange", "grey"];

/// A character in many expressions, cut out.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http::v1) struct StickersRequest {
    /// A LoRA of the character, as GET /v1/loras lists them. Its trigger words go before the prompt.
    character_lora_id: Option<String>,
    /// Strength of that LoRA.
    #[schema(minimum = -10, maximum = 10, default = 1.0)]
    lora_strength: Option<f64>,
    /// Further LoRAs, applied after the character's.
    #[schema(max_items = 8)]
    loras: Option<Vec<LoraRequest>>,
    /// What the expression bank calls the character; the LoRA's name if it is left out.
    character_id: Option<String>,
    /// What the character looks like. May be left out with a LoRA.
    character_prompt: Option<String>,
    /// Names of expressions, or `all`.
    #[schema(min_items = 1, max_items = 24, examples(json!(["neutral_resting", "smile_gentle", "smirk_confident"])))]
    expression_tags: Vec<String>,
    /// `anime`, `semi_realistic`, …
    art_style: Option<String>,
    /// `WIDTHxHEIGHT` in pixels, multiples of 8; 768x1152 with large models, the model's own size with others, if it is left out.
    resolution: Option<String>,
    /// `png` or `webp`, which can be transparent.
    format: Option<FormatName>,
    /// How soon.
    priority: Option<PriorityName>,
    /// Seed of all its pictures; without one, a character keeps a seed of its own.
    #[schema(format = "uint64")]
    seed: Option<u64>,
    /// Draw anew what the expression bank has.
    #[schema(default = false)]
    bypass_cache: Option<bool>,
    /// Whom to tell when the task is final.
    webhook_url: Option<String>,
    /// A model's id, as GET /v1/models lists them.
    model: Option<String>,
    /// Follow a template picture of each expression, by a Canny ControlNet. Default: where there is a ControlNet for the
    /// model and a template for the expression.
    use_templates: Option<bool>,
    /// Which set of templates, as GET /v1/templates lists them.
    template_set: Option<String>,
    /// How strongly templates count.
    #[schema(minimum = 0, maximum = 10, default = 0.8)]
    template_strength: Option<f64>,
    /// Draw faces once more, larger. Default: where there is a face detector.
    apply_detailing: Option<bool>,
}

/// Draws a character in many expressions and makes the background transparent.
///
/// A background remover of the models folder does it; without one the character is drawn before a flat colour that it
/// does not have, which is keyed out. Pictures that the expression bank has are taken from there at once, unless `bypass_cache` is true.
#[utoipa::path(
    post,
    path = "/v1/character-packs/stickers",
    tag = "character packs",
    request_body = StickersRequest,
    responses((status = 200, body = AcceptedBody, description = "The task, which is stored and will be finished"))
)]
pub(in crate::http::v1) async fn stickers(
    State(app): State<App>,
    client: Client,
    body: Body<StickersRequest>,
) -> Result<Response, ApiError> {
    let Body { value: request, idempotency, .. } = body;
    let defaults = submit::defaults(&app, request.model.as_deref())?;
    let webhook_url = submit::webhook(&app, "webhook_url", request.webhook_url.clone())?;
    let guides = app.guides(&defaults.model)?;
    let mut warnings = Vec::new();
    let (images, uploads) = specs(&Kit::of(&app), &guides, defaults, &client.owner, &request, &mut warnings)?;
    app.check_templates(&uploads).await?;
    let pack = Pack {
        kind: TaskKind::Stickers,
        priority: request.priority,
        images,
        webhook_url,
        bypass_bank: request.bypass_cache == Some(true),
        uploads,
        warnings,
    };
    pack.accept(&app, &client, idempotency).await
}

fn specs(
    kit: &Kit<'_>,
    guides: &Guides<'_>,
    defaults: ModelDefaults,
    owner: &Owner,
    request: &StickersRequest,
    warnings: &mut Vec<String>,
) -> Result<(Vec<ImageSpec>, Vec<Bytes>), ApiError> {
    let who = CastRequest {
        lora: request.character_lora_id.as_deref(),
        strength: request.lora_strength,
        name: request.character_id.as_deref(),
        prompt: request.character_prompt.as_deref(),
        more: request.loras.as_deref().unwrap_or_default(),
    };
    let cast = Cast::of_someone(guides, who)?;
    let templates = TemplateRequest {
        wanted: request.use_templates,
        set: request.template_set.as_deref(),
        strength: request.template_strength,
    };
    let style = kit.words.style(request.art_style.as_deref())?;
    let format = match request.format.unwrap_or_default() {
        FormatName::Png => ImageFormat::Png,
        FormatName::Webp => ImageFormat::Webp { quality: None },
        FormatName::Jpeg => {
            return Err(ApiError::invalid("format", "cannot be jpeg, which has no transparency")
                .hint("choose png or webp"));
        }
    };
    let way = if guides.remover().is_some() { BackgroundName::Remove } else { BackgroundName::Key };
    let backdrop = format!("simple background, {} background", contrasting(&cast.prompt));
    let series = Series {
        words: kit.words,
        rules: kit.rules,
        owner,
        defaults: RECIPE.tune(defaults),
        cast: &cast,
        style: &style,
        backdrop: &backdrop,
        expressions: &request.expression_tags,
        resolution: request.resolution.as_deref(),
        templating: kit.templating(guides, templates)?,
        detail: face_detail(guides, request.apply_detailing, warnings),
        background: guides.background(way, format)?,
        format,
        seed: request.seed,
        bypass_bank: request.bypass_cache == Some(true),
    };
    series.specs()
}

/// A colour that the character's words do not name.
fn contrasting(prompt: &str) -> &'static str {
    let prompt = prompt.to_lowercase();
    BACKDROPS.into_iter().find(|colour| !prompt.contains(colour)).unwrap_or(BACKDROPS[0])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Shelves, field, with};
    use super::*;
    use crate::http::extract::parse_json;
    use crate::task::Background;

    fn stickers(shelves: &Shelves, json: &str) -> Result<Vec<ImageSpec>, ApiError> {
        let request = parse_json(json.as_bytes())?;
        let made = with(shelves, |kit, guides, defaults| {
            specs(kit, guides, defaults, &Owner::Anyone, &request, &mut Vec::new())
        });
        made.map(|(specs, _)| specs)
    }

    const ONE: &str = r#"{"character_prompt": "1girl, green hair, blue eyes", "expression_tags": ["sad"]}"#;

    #[test]
    fn a_sticker_stands_before_a_colour_that_its_character_does_not_have() {
        let specs = stickers(&Shelves::bare(), ONE).unwrap();
        assert!(specs[0].prompt.ends_with("simple background, pink background"), "{}", specs[0].prompt);
        assert_eq!((&specs[0].background, specs[0].format), (&Background::Key, ImageFormat::Png));
        assert_eq!(contrasting("green blue pink yellow purple orange grey"), "green");
    }

    #[test]
    fn a_remover_is_used_where_there_is_one() {
        let specs = stickers(&Shelves::full(), ONE).unwrap();
        assert_eq!(specs[0].background, Background::Remove { remover: "rmbg".into() });
        let keyed = stickers(&Shelves::bare(), ONE).unwrap();
        assert_ne!(specs[0].bank, keyed[0].bank);
    }

    #[test]
    fn a_jpeg_is_refused() {
        let webp = ONE.replace("\"expression", "\"format\": \"webp\", \"expression");
        let specs = stickers(&Shelves::bare(), &webp).unwrap();
        assert_eq!(specs[0].format, ImageFormat::Webp { quality: None });
        assert_eq!(field(stickers(&Shelves::bare(), &webp.replace("webp", "jpeg"))), "format");
    }
}
