//! `POST /v1/character-packs/full-body`: a character from head to foot in a pose, by up to three ControlNets at once.

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use darkroom_pipelines::preprocess::openpose::Pose;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::cast::{Cast, CastRequest};
use super::recipe::Recipe;
use super::series::face_detail;
use super::templating::EDGES;
use super::{AcceptedBody, Kit, Pack, styled_spec};
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::Body;
use crate::http::guides::{Guides, LoraRequest};
use crate::http::pose;
use crate::http::rules::random_seed;
use crate::http::source::{self, Upload};
use crate::http::submit::{self, PriorityName};
use crate::http::words::join;
use crate::service::{ControlType, ModelDefaults};
use crate::task::{BlobId, ControlSpec, ImageSpec, Preprocess, TaskKind};

/// How large models draw whole bodies.
const RECIPE: Recipe = Recipe { steps: 35, size: Some((1024, 1536)) };
/// How strongly skeleton, depth and edges count.
const STRENGTHS: [(ControlType, f64); 3] =
    [(ControlType::OpenPose, 0.8), (ControlType::Depth, 0.6), (ControlType::Canny, 0.4)];
/// How strongly a skeleton's edges count where no ControlNet reads skeletons.
const SKELETON_EDGES: f64 = 0.8;
/// What every such picture shows.
const FRAMING: &str = "full body";

/// A character from head to foot.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http::v1) struct FullBodyRequest {
    /// A LoRA of the character, as GET /v1/loras lists them. Its trigger words go before the prompt.
    character_lora_id: Option<String>,
    /// Strength of that LoRA.
    #[schema(minimum = -10, maximum = 10, default = 1.0)]
    lora_strength: Option<f64>,
    /// Further LoRAs, applied after the character's.
    #[schema(max_items = 8)]
    loras: Option<Vec<LoraRequest>>,
    /// What the character looks like, as for prototypes.
    #[schema(value_type = Option<Object>, example = json!({"gender": "female", "hair_color": "blonde"}))]
    character_design: Option<Map<String, Value>>,
    /// The same in words of a prompt, after the design's.
    character_prompt: Option<String>,
    /// How the character stands.
    pose_data: Option<PoseData>,
    /// What the character wears.
    #[schema(examples("red dress, hat"))]
    outfit_prompt: Option<String>,
    /// `anime`, `semi_realistic`, …
    art_style: Option<String>,
    /// `WIDTHxHEIGHT` in pixels, multiples of 8; 1024x1536 with large models, the model's own size with others, if it is
    /// left out.
    #[schema(examples("1024x1536"))]
    resolution: Option<String>,
    /// Draw faces once more, larger. Default: where there is a face detector.
    apply_detailing: Option<bool>,
    /// Not done yet: a warning says so.
    upscale_to_high_res: Option<bool>,
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

/// A pose.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http::v1) struct PoseData {
    /// Which of the other fields says it.
    source: PoseSource,
    /// With source `preset`: the pose's name, as GET /v1/poses lists them.
    pose_id: Option<String>,
    /// With source `custom_json` (and `custom_3d`): OpenPose's JSON, or joints by name as shares of the canvas.
    #[schema(value_type = Option<Object>, example = json!({"joints": {"nose": [0.5, 0.1], "neck": [0.5, 0.2]}}))]
    pose_json: Option<Value>,
    /// With source `custom_3d`: a picture of the pose, for depth and edges: base64, a data URL or an http(s) address. The
    /// other sources may have one, too.
    pose_image: Option<String>,
}

/// Where a pose comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::http::v1) enum PoseSource {
    /// A pose with a name.
    Preset,
    /// The client's own joints.
    CustomJson,
    /// A picture of a posed figure.
    #[serde(rename = "custom_3d")]
    Custom3d,
}

/// Draws a character from head to foot.
///
/// The pose steers every ControlNet of the models folder that fits the model: OpenPose by the skeleton, depth and edges
/// by the pose's picture. What is missing is left out, and `warnings` says so.
#[utoipa::path(
    post,
    path = "/v1/character-packs/full-body",
    tag = "character packs",
    request_body = FullBodyRequest,
    responses((status = 200, body = AcceptedBody, description = "The task, which is stored and will be finished"))
)]
pub(in crate::http::v1) async fn full_body(
    State(app): State<App>,
    client: Client,
    body: Body<FullBodyRequest>,
) -> Result<Response, ApiError> {
    let Body { value: request, idempotency, .. } = body;
    let defaults = submit::defaults(&app, request.model.as_deref())?;
    let webhook_url = submit::webhook(&app, "webhook_url", request.webhook_url.clone())?;
    let guides = app.guides(&defaults.model)?;
    let mut warnings = Vec::new();
    let mut spec = spec(&Kit::of(&app), &guides, defaults, &request, &mut warnings)?;
    let mut uploads = Vec::new();
    if let Some(data) = &request.pose_data {
        let pose = joints(&app, data)?;
        let picture = match &data.pose_image {
            Some(image) => Some(source::read(&app, "pose_data.pose_image", image).await?),
            None => None,
        };
        let skeleton = match pose {
            Some(pose) => {
                let (width, height) = (spec.width, spec.height);
                Some(app.picture_work(move || pose::skeleton(&pose, width, height)).await??)
            }
            None => None,
        };
        let most = app.config.limits.controls;
        spec.controls = controls(&guides, skeleton.as_ref(), picture.as_ref(), most, &mut warnings)?;
        let used = |bytes: &Bytes| {
            let id = BlobId::of(bytes);
            spec.controls.iter().any(|control| control.image == id)
        };
        uploads.extend(skeleton.into_iter().chain(picture.map(|picture| picture.bytes)).filter(used));
    }
    let pack = Pack {
        kind: TaskKind::FullBody,
        priority: request.priority,
        images: vec![spec],
        webhook_url,
        bypass_bank: false,
        uploads,
        warnings,
    };
    pack.accept(&app, &client, idempotency).await
}

/// The picture without its pose.
fn spec(
    kit: &Kit<'_>,
    guides: &Guides<'_>,
    defaults: ModelDefaults,
    request: &FullBodyRequest,
    warnings: &mut Vec<String>,
) -> Result<ImageSpec, ApiError> {
    let design = match &request.character_design {
        Some(design) if !design.is_empty() => kit.words.character(design)?,
        _ => String::new(),
    };
    let described = join(&[&design, request.character_prompt.as_deref().unwrap_or_default()]);
    let who = CastRequest {
        lora: request.character_lora_id.as_deref(),
        strength: request.lora_strength,
        name: None,
        prompt: Some(&described),
        more: request.loras.as_deref().unwrap_or_default(),
    };
    let names = [("prompt", "character_design"), ("character_prompt", "character_design")];
    let cast = Cast::of_someone(guides, who).map_err(|error| error.renamed(&names))?;
    let style = kit.words.style(request.art_style.as_deref())?;
    let outfit = request.outfit_prompt.as_deref().unwrap_or_default();
    let prompt = join(&[&cast.prompt, outfit, FRAMING, &style.tags]);
    let spec = styled_spec(kit.rules, RECIPE.tune(defaults), prompt, &style, request.resolution.as_deref())
        .map_err(|error| error.renamed(&names))?;
    if request.upscale_to_high_res == Some(true) {
        warnings.push("upscale_to_high_res: left out, since this server does not upscale yet".into());
    }
    Ok(ImageSpec {
        seed: request.seed.unwrap_or_else(random_seed),
        loras: cast.loras,
        detail: face_detail(guides, request.apply_detailing, warnings),
        label: Some("full_body".to_owned()),
        ..spec
    })
}

/// The joints that a pose has, where it has any.
fn joints(app: &App, data: &PoseData) -> Result<Option<Pose>, ApiError> {
    let invalid = |field: &str, message: &str| ApiError::invalid(format!("pose_data.{field}"), message);
    if data.pose_id.is_some() && data.source != PoseSource::Preset {
        return Err(invalid("pose_id", "means something only with source \"preset\""));
    }
    match (data.source, &data.pose_id, &data.pose_json) {
        (PoseSource::Preset, _, Some(_)) => {
            Err(invalid("pose_json", "means nothing with source \"preset\"")
                .hint("choose source custom_json"))
        }
        (PoseSource::Preset, Some(id), None) => app.poses.preset("pose_data.pose_id", id).cloned().map(Some),
        (PoseSource::Preset, None, None) => {
            Err(invalid("pose_id", "is missing").hint("GET /v1/poses lists the names"))
        }
        (PoseSource::CustomJson, _, None) => {
            Err(invalid("pose_json", "is missing").hint("give OpenPose's JSON, or joints by name"))
        }
        (PoseSource::Custom3d, _, None) if data.pose_image.is_none() => {
            Err(invalid("pose_image", "is missing").hint("give a picture of the posed figure"))
        }
        (PoseSource::Custom3d, _, None) => Ok(None),
        (_, _, Some(json)) => pose::of_json("pose_data.pose_json", json).map(Some),
    }
}

/// What the pose steers; what is left out is said.
fn controls(
    guides: &Guides<'_>,
    skeleton: Option<&Bytes>,
    picture: Option<&Upload>,
    most: usize,
    warnings: &mut Vec<String>,
) -> Result<Vec<ControlSpec>, ApiError> {
    let skeleton = skeleton.map(|bytes| BlobId::of(bytes));
    let picture = picture.map(|picture| picture.id.clone());
    let mut controls: Vec<ControlSpec> = Vec::new();
    let mut left_out = Vec::new();
    for (use_of, strength) in STRENGTHS {
        let none_fits = "no such ControlNet fits the model";
        let Some(control) = guides.control_for(use_of) else {
            left_out.push((use_of, none_fits));
            continue;
        };
        let steered_by = match use_of {
            ControlType::OpenPose => skeleton
                .clone()
                .map(|image| (image, Preprocess::None, strength))
                .ok_or("the pose has no joints"),
            ControlType::Depth if !guides.has_depth() => {
                Err("there is no depth network in the models folder")
            }
            ControlType::Depth => picture
                .clone()
                .map(|image| (image, Preprocess::Depth, strength))
                .ok_or("there is no pose_image to see it in"),
            ControlType::Canny => match (&picture, &skeleton) {
                (Some(image), _) => Ok((image.clone(), EDGES, strength)),
                // Better a pose by its outlines than none.
                (None, Some(image)) if controls.is_empty() => {
                    warnings.push(
                        "pose_data: no OpenPose ControlNet fits the model, so the skeleton's edges steer the Canny one"
                            .into(),
                    );
                    Ok((image.clone(), EDGES, SKELETON_EDGES))
                }
                _ => Err("there is no pose_image to see them in"),
            },
        };
        match steered_by {
            Ok(_) if controls.len() >= most => left_out.push((use_of, "limits.controls allows no more")),
            Ok((image, preprocess, strength)) => {
                controls.push(ControlSpec {
                    control: control.id,
                    image,
                    preprocess,
                    strength,
                    start: 0.0,
                    end: 1.0,
                });
            }
            Err(reason) => left_out.push((use_of, reason)),
        }
    }
    if controls.is_empty() {
        let reasons: Vec<String> =
            left_out.iter().map(|(use_of, reason)| format!("{}: {reason}", use_of.name())).collect();
        let message = format!("cannot be followed ({})", reasons.join("; "));
        return Err(ApiError::invalid("pose_data", message).hint(
            "put an OpenPose, depth or Canny ControlNet for this model into the models folder's controlnet/ \
             (GET /v1/controlnets lists what there is), or leave pose_data out",
        ));
    }
    let said =
        left_out.into_iter().map(|(use_of, reason)| format!("{}: left out, since {reason}", use_of.name()));
    warnings.extend(said);
    Ok(controls)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Shelves, field, with};
    use super::*;
    use crate::http::extract::parse_json;

    fn body_of(shelves: &Shelves, json: &str) -> Result<(ImageSpec, Vec<String>), ApiError> {
        let request = parse_json(json.as_bytes())?;
        let mut warnings = Vec::new();
        let made =
            with(shelves, |kit, guides, defaults| spec(kit, guides, defaults, &request, &mut warnings));
        made.map(|spec| (spec, warnings))
    }

    type Steered = (String, Preprocess, f64);

    fn steered(
        shelves: &Shelves,
        skeleton: bool,
        picture: bool,
        most: usize,
    ) -> Result<(Vec<Steered>, Vec<String>), ApiError> {
        let (bones, bytes) = (Bytes::from_static(b"bones"), Bytes::from_static(b"figure"));
        let upload = Upload { id: BlobId::of(&bytes), bytes, width: 64, height: 64, has_alpha: false };
        let mut warnings = Vec::new();
        let made = with(shelves, |_, guides, _| {
            controls(guides, skeleton.then_some(&bones), picture.then_some(&upload), most, &mut warnings)
        });
        let short = |control: ControlSpec| (control.control, control.preprocess, control.strength);
        made.map(|controls| (controls.into_iter().map(short).collect(), warnings))
    }

    #[test]
    fn a_body_is_character_outfit_framing_and_style_in_this_order() {
        let (spec, warnings) = body_of(
            &Shelves::full(),
            r#"{"character_lora_id": "mia", "character_design": {"hair_color": "red"}, "outfit_prompt": "blue coat",
                "art_style": "anime", "resolution": "64x96", "seed": 3, "upscale_to_high_res": true}"#,
        )
        .unwrap();
        assert_eq!(spec.prompt, "mia_v2, red hair, blue coat, full body, anime style");
        assert_eq!((spec.width, spec.height, spec.seed, spec.loras.len()), (64, 96, 3, 1));
        assert!(warnings[0].contains("upscale_to_high_res"), "{warnings:?}");
    }

    #[test]
    fn three_controlnets_are_steered_at_once_by_skeleton_and_picture() {
        let shelves = Shelves::full().and(ControlType::OpenPose).and(ControlType::Depth).with_depth();
        let (controls, warnings) = steered(&shelves, true, true, 4).unwrap();
        assert_eq!(
            controls,
            [
                ("openpose".into(), Preprocess::None, 0.8),
                ("depth".into(), Preprocess::Depth, 0.6),
                ("xl-canny".into(), EDGES, 0.4),
            ]
        );
        assert!(warnings.is_empty(), "{warnings:?}");
        let (controls, warnings) = steered(&shelves, true, true, 2).unwrap();
        assert_eq!((controls.len(), warnings.len()), (2, 1));
    }

    #[test]
    fn what_is_missing_is_left_out_and_said() {
        let (controls, warnings) =
            steered(&Shelves::full().and(ControlType::OpenPose), true, false, 4).unwrap();
        assert_eq!(controls, [("openpose".into(), Preprocess::None, 0.8)]);
        assert!(warnings[0].starts_with("depth: left out") && warnings[1].starts_with("canny: left out"));
        let (controls, warnings) = steered(&Shelves::full(), false, true, 4).unwrap();
        assert_eq!(controls, [("xl-canny".into(), EDGES, 0.4)]);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn without_an_openpose_controlnet_the_skeletons_edges_steer() {
        let (controls, warnings) = steered(&Shelves::full(), true, false, 4).unwrap();
        assert_eq!(controls, [("xl-canny".into(), EDGES, 0.8)]);
        assert!(warnings[0].contains("edges"), "{warnings:?}");
    }

    #[test]
    fn a_pose_that_nothing_can_follow_is_refused() {
        let error = steered(&Shelves::bare(), true, true, 4).unwrap_err();
        assert_eq!((error.status().as_u16(), error.detail().field.as_deref()), (422, Some("pose_data")));
        assert!(error.detail().hint.as_deref().unwrap().contains("controlnet/"));
    }

    #[test]
    fn a_wrong_request_names_the_gateways_own_field() {
        let of = |json: &str| field(body_of(&Shelves::full(), json));
        assert_eq!(of("{}"), "character_design");
        assert_eq!(of(r#"{"character_design": {"hair": {}}}"#), "character_design.hair");
        assert_eq!(of(r#"{"character_design": {"hat": "(x:nan)"}}"#), "character_design");
        assert_eq!(of(r#"{"character_lora_id": "old"}"#), "character_lora_id");
        assert_eq!(of(r#"{"character_prompt": "x", "pose_data": {"source": "mirror"}}"#), "pose_data.source");
        assert_eq!(of(r#"{"character_prompt": "x", "pose_data": {}}"#), "pose_data.source");
    }
}
