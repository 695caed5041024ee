//! `POST /v1/character-packs/outfit-change`: a character of a picture in other clothes, by drawing over the picture.

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use super::cast::{Cast, CastRequest};
use super::recipe::Recipe;
use super::series::face_detail;
use super::templating::EDGES;
use super::{AcceptedBody, Kit, Pack};
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::Body;
use crate::http::guides::{Guides, LoraRequest, within};
use crate::http::rules::{Choices, Start, random_seed, resolution};
use crate::http::source::{self, Upload};
use crate::http::submit::{self, PriorityName};
use crate::http::words::join;
use crate::service::{ControlType, ModelDefaults};
use crate::task::{ControlSpec, ImageSpec, Inpaint, SourceSpec, TaskKind};

/// How large models draw over a picture.
const RECIPE: Recipe = Recipe { steps: 30, size: None };
/// Share of the schedule that runs where nothing is said.
const DENOISE: f64 = 0.4;
/// How strongly the picture's own edges count.
const POSE_STRENGTH: f64 = 0.8;

/// A picture whose character gets other clothes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http::v1) struct OutfitChangeRequest {
    /// The picture: an http(s) address, a data URL or base64.
    base_image_url: String,
    /// What the character shall wear.
    #[schema(examples("red dress, hat"))]
    new_outfit_prompt: String,
    /// A LoRA of the character, as GET /v1/loras lists them. Its trigger words go before the prompt.
    character_lora_id: Option<String>,
    /// Strength of that LoRA.
    #[schema(minimum = -10, maximum = 10, default = 1.0)]
    lora_strength: Option<f64>,
    /// Further LoRAs, applied after the character's.
    #[schema(max_items = 8)]
    loras: Option<Vec<LoraRequest>>,
    /// What the character looks like.
    character_prompt: Option<String>,
    /// How much of the picture changes: 0 nothing, 1 all.
    #[schema(minimum = 0, maximum = 1, default = 0.4)]
    denoise_strength: Option<f64>,
    /// Keep the picture's outlines, by a Canny ControlNet. Default: where there is one for the model.
    preserve_pose: Option<bool>,
    /// What to redraw: white redraws, black keeps. As large as the picture; given like it.
    mask: Option<String>,
    /// `anime`, `semi_realistic`, …
    art_style: Option<String>,
    /// `WIDTHxHEIGHT` in pixels, multiples of 8; as large as the picture if it is left out.
    resolution: Option<String>,
    /// Draw faces once more, larger. Default: where there is a face detector.
    apply_detailing: Option<bool>,
    /// How soon.
    priority: Option<PriorityName>,
    /// Seed of the picture; drawn at random if it is left out.
    #[schema(format = "uint64")]
    seed: Option<u64>,
    /// Whom to tell when the task is final.
    webhook_url: Option<String>,
    /// A model's id, as GET /v1/models lists them.
    model: Option<String>,
}

/// Draws a picture's character in other clothes.
#[utoipa::path(
    post,
    path = "/v1/character-packs/outfit-change",
    tag = "character packs",
    request_body = OutfitChangeRequest,
    responses((status = 200, body = AcceptedBody, description = "The task, which is stored and will be finished"))
)]
pub(in crate::http::v1) async fn outfit_change(
    State(app): State<App>,
    client: Client,
    body: Body<OutfitChangeRequest>,
) -> Result<Response, ApiError> {
    let Body { value: request, idempotency, .. } = body;
    let defaults = submit::defaults(&app, request.model.as_deref())?;
    let webhook_url = submit::webhook(&app, "webhook_url", request.webhook_url.clone())?;
    let denoise = request.denoise_strength.unwrap_or(DENOISE);
    within("denoise_strength", denoise, &(0.0..=1.0))?;
    let base = source::read(&app, "base_image_url", &request.base_image_url).await?;
    let mask = match &request.mask {
        Some(mask) => Some(source::read(&app, "mask", mask).await?),
        None => None,
    };
    let guides = app.guides(&defaults.model)?;
    let mut warnings = Vec::new();
    let spec = spec(&Kit::of(&app), &guides, defaults, &request, (&base, mask.as_ref()), &mut warnings)?;
    let uploads = [Some(base), mask].into_iter().flatten().map(|upload| upload.bytes).collect();
    let pack = Pack {
        kind: TaskKind::OutfitChange,
        priority: request.priority,
        images: vec![spec],
        webhook_url,
        bypass_bank: false,
        uploads,
        warnings,
    };
    pack.accept(&app, &client, idempotency).await
}

fn spec(
    kit: &Kit<'_>,
    guides: &Guides<'_>,
    defaults: ModelDefaults,
    request: &OutfitChangeRequest,
    (base, mask): (&Upload, Option<&Upload>),
    warnings: &mut Vec<String>,
) -> Result<ImageSpec, ApiError> {
    if request.new_outfit_prompt.trim().is_empty() {
        return Err(
            ApiError::invalid("new_outfit_prompt", "is empty").hint("say what the character shall wear")
        );
    }
    if let Some(mask) = mask
        && (mask.width, mask.height) != (base.width, base.height)
    {
        let message = format!(
            "is {}x{} pixels, and base_image_url is {}x{}",
            mask.width, mask.height, base.width, base.height
        );
        return Err(ApiError::invalid("mask", message).hint("make the mask as large as the picture"));
    }
    let who = CastRequest {
        lora: request.character_lora_id.as_deref(),
        strength: request.lora_strength,
        name: None,
        prompt: request.character_prompt.as_deref(),
        more: request.loras.as_deref().unwrap_or_default(),
    };
    let cast = Cast::new(guides, who)?;
    let style = kit.words.style(request.art_style.as_deref())?;
    let defaults = RECIPE.tune(defaults);
    let (width, height) = match request.resolution.as_deref() {
        Some(text) => resolution("resolution", text)?,
        None => kit.rules.fitting((base.width, base.height)),
    };
    let inpaint = mask.map(|mask| Inpaint { mask: Some(mask.id.clone()), fill_grow: None });
    let source = SourceSpec::Image { image: base.id.clone(), inpaint };
    let choices = Choices {
        prompt: join(&[&cast.prompt, &request.new_outfit_prompt, &style.tags]),
        negative_prompt: Some(join(&[&defaults.negative_prompt, &style.negative])),
        width: Some(width),
        height: Some(height),
        denoise: Some(request.denoise_strength.unwrap_or(DENOISE)),
        start: Some(Start { source, size: (base.width, base.height) }),
        ..Choices::default()
    };
    let names = [
        ("prompt", "new_outfit_prompt"),
        ("denoise", "denoise_strength"),
        ("width", "resolution"),
        ("height", "resolution"),
    ];
    let spec = kit.rules.resolve(defaults, choices).map_err(|error| error.renamed(&names))?;
    Ok(ImageSpec {
        seed: request.seed.unwrap_or_else(random_seed),
        loras: cast.loras,
        controls: outlines(guides, request.preserve_pose, base, warnings).into_iter().collect(),
        detail: face_detail(guides, request.apply_detailing, warnings),
        label: Some("outfit".to_owned()),
        ..spec
    })
}

/// The picture's own edges as a control.
fn outlines(
    guides: &Guides<'_>,
    wanted: Option<bool>,
    base: &Upload,
    warnings: &mut Vec<String>,
) -> Option<ControlSpec> {
    if wanted == Some(false) {
        return None;
    }
    let control = guides.control_for(ControlType::Canny);
    if wanted == Some(true) && control.is_none() {
        warnings.push("preserve_pose: left out, since no Canny ControlNet fits the model".into());
    }
    Some(ControlSpec {
        control: control?.id,
        image: base.id.clone(),
        preprocess: EDGES,
        strength: POSE_STRENGTH,
        start: 0.0,
        end: 1.0,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::testing::{Shelves, with};
    use super::*;
    use crate::http::extract::parse_json;
    use crate::task::BlobId;

    fn upload(name: &'static str, width: usize, height: usize) -> Upload {
        let bytes = Bytes::from_static(name.as_bytes());
        Upload { id: BlobId::of(&bytes), bytes, width, height, has_alpha: false }
    }

    fn outfit(
        shelves: &Shelves,
        rest: &str,
        base: (usize, usize),
        mask: Option<(usize, usize)>,
    ) -> Result<(ImageSpec, Vec<String>), ApiError> {
        let json = format!(r#"{{"base_image_url": "x", "new_outfit_prompt": "red dress"{rest}}}"#);
        let request = parse_json(json.as_bytes())?;
        let (base, mask) = (upload("base", base.0, base.1), mask.map(|(w, h)| upload("mask", w, h)));
        let mut warnings = Vec::new();
        let made = with(shelves, |kit, guides, defaults| {
            spec(kit, guides, defaults, &request, (&base, mask.as_ref()), &mut warnings)
        });
        made.map(|spec| (spec, warnings))
    }

    fn refused(rest: &str, mask: Option<(usize, usize)>) -> (String, String) {
        let error = outfit(&Shelves::full(), rest, (128, 128), mask).unwrap_err();
        assert_eq!(error.status().as_u16(), 422, "{error:?}");
        (error.detail().field.clone().unwrap(), error.detail().message.clone())
    }

    #[test]
    fn the_picture_is_drawn_over_in_its_own_size_with_its_outlines_kept() {
        let rest = r#", "character_lora_id": "mia", "seed": 7"#;
        let (spec, warnings) = outfit(&Shelves::full(), rest, (131, 99), None).unwrap();
        assert_eq!((spec.width, spec.height, spec.denoise, spec.seed), (128, 96, 0.4, 7));
        assert_eq!(spec.prompt, "mia_v2, red dress");
        assert_eq!(spec.source, SourceSpec::Image { image: BlobId::of(b"base"), inpaint: None });
        assert_eq!((spec.controls.len(), spec.controls[0].image.clone()), (1, BlobId::of(b"base")));
        assert_eq!((spec.loras.len(), warnings.len()), (1, 0));
    }

    #[test]
    fn a_pose_that_cannot_be_kept_is_a_warning_if_it_was_asked_for() {
        let (spec, warnings) =
            outfit(&Shelves::bare(), r#", "preserve_pose": true"#, (64, 64), None).unwrap();
        assert!(spec.controls.is_empty() && warnings[0].contains("preserve_pose"), "{warnings:?}");
        let (spec, _) = outfit(&Shelves::full(), r#", "preserve_pose": false"#, (64, 64), None).unwrap();
        assert!(spec.controls.is_empty());
    }

    #[test]
    fn a_mask_of_another_size_is_refused_with_both_sizes() {
        let (field, message) = refused("", Some((64, 128)));
        assert_eq!(field, "mask");
        assert!(message.contains("64x128") && message.contains("128x128"), "{message}");
        let (spec, _) = outfit(&Shelves::full(), "", (64, 64), Some((64, 64))).unwrap();
        let inpaint = Some(Inpaint { mask: Some(BlobId::of(b"mask")), fill_grow: None });
        assert_eq!(spec.source, SourceSpec::Image { image: BlobId::of(b"base"), inpaint });
    }

    #[test]
    fn a_picture_that_is_too_large_is_drawn_within_the_limits() {
        let (spec, _) = outfit(&Shelves::bare(), "", (8000, 4000), None).unwrap();
        assert!(
            spec.width * spec.height <= 2048 * 2048 && spec.width <= 4096,
            "{}x{}",
            spec.width,
            spec.height
        );
        assert!(spec.width > 2000 && spec.width.abs_diff(spec.height * 2) <= 16);
    }

    #[test]
    fn a_wrong_request_names_the_gateways_own_field() {
        assert_eq!(refused(r#", "denoise_strength": 7"#, None).0, "denoise_strength");
        assert_eq!(refused(r#", "resolution": "1x1""#, None).0, "resolution");
        assert_eq!(refused(r#", "character_lora_id": "old""#, None).0, "character_lora_id");
        let empty = r#"{"base_image_url": "x", "new_outfit_prompt": " "}"#;
        let request = parse_json(empty.as_bytes()).unwrap();
        let base = upload("base", 64, 64);
        let error = with(&Shelves::bare(), |kit, guides, defaults| {
            spec(kit, guides, defaults, &request, (&base, None), &mut Vec::new())
        });
        assert_eq!(error.unwrap_err().detail().field.as_deref(), Some("new_outfit_prompt"));
    }
}
