//! `POST /v1/character-packs/…`: variants of a new character, and a character in many expressions.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::images::{mark_replay, variants};
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::bank::{Character, PackIdentity};
use crate::http::error::ApiError;
use crate::http::extract::Body;
use crate::http::rules::{Choices, Rules, random_seed, resolution};
use crate::http::submit::{self, Job, PriorityName};
use crate::http::words::{Style, Words, join};
use crate::service::{ModelDefaults, Submission, Submitted, TaskView};
use crate::task::{ImageSpec, Owner, TaskKind};

/// Most expressions of one pack.
const EXPRESSIONS: usize = 24;
/// Variants where none are asked for.
const VARIANTS: u32 = 4;
/// Longest name of a character, characters.
const NAME_CHARACTERS: usize = 128;

/// A new character.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PrototypesRequest {
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
}

/// A character in many expressions.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpressionsRequest {
    /// The character's name. It is a name only: LoRAs are not loaded, so `character_prompt` says what it looks like.
    character_lora_id: Option<String>,
    /// Names of expressions, or `all`.
    #[schema(min_items = 1, max_items = 24, examples(json!(["neutral_resting", "smile_gentle", "smirk_confident"])))]
    expression_tags: Vec<String>,
    /// `anime`, `semi_realistic`, …
    art_style: Option<String>,
    /// `WIDTHxHEIGHT` in pixels, multiples of 8; the model's own size if it is left out.
    resolution: Option<String>,
    /// How soon.
    priority: Option<PriorityName>,
    /// What the character looks like.
    character_prompt: Option<String>,
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
}

/// An accepted pack or scene.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct AcceptedBody {
    /// The task's id.
    pub(super) task_id: String,
    /// `queued`; `completed` if the expression bank had all pictures.
    pub(super) status: &'static str,
    /// Seconds until it is done, rounded up; null while nothing was measured yet.
    pub(super) estimated_time_seconds: Option<u64>,
    /// Whom the server will tell.
    pub(super) webhook_url: Option<String>,
    /// How many expressions the pack has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expression_count: Option<usize>,
}

impl AcceptedBody {
    pub(super) fn new(view: &TaskView) -> Self {
        let seconds = if view.task.status.is_final() { Some(0.0) } else { view.eta_seconds };
        Self {
            task_id: view.task.id.to_string(),
            status: view.task.status.name(),
            estimated_time_seconds: seconds.map(|seconds| seconds.max(0.0).ceil() as u64),
            webhook_url: view.task.webhook_url.clone(),
            expression_count: (view.task.kind == TaskKind::Expressions).then_some(view.task.images.len()),
        }
    }

    pub(super) fn answer(submitted: &Submitted) -> Response {
        let mut response = Json(Self::new(&submitted.view)).into_response();
        mark_replay(&mut response, submitted.created);
        response
    }
}

/// Draws variants of a new character.
#[utoipa::path(
    post,
    path = "/v1/character-packs/prototypes",
    tag = "character packs",
    request_body = PrototypesRequest,
    responses((status = 200, body = AcceptedBody, description = "The task, which is stored and will be finished"))
)]
pub(super) async fn prototypes(
    State(app): State<App>,
    client: Client,
    body: Body<PrototypesRequest>,
) -> Result<Response, ApiError> {
    let Body { value: request, idempotency, .. } = body;
    let defaults = submit::defaults(&app, request.model.as_deref())?;
    let webhook_url = submit::webhook(&app, "webhook_url", request.webhook_url.clone())?;
    let priority = request.priority.unwrap_or_default().into();
    let images = prototype_specs(&app.words, &app.rules, defaults, &request)?;
    let submission = Submission {
        kind: TaskKind::Prototypes,
        priority,
        images,
        webhook_url,
        bypass_bank: false,
        idempotency: None,
    };
    let submitted = Job { submission, uploads: Vec::new() }.submit(&app, &client, idempotency).await?;
    Ok(AcceptedBody::answer(&submitted))
}

/// Draws a character in many expressions.
///
/// Pictures that the expression bank has are taken from there at once, unless `bypass_cache` is true.
#[utoipa::path(
    post,
    path = "/v1/character-packs/expressions",
    tag = "character packs",
    request_body = ExpressionsRequest,
    responses((status = 200, body = AcceptedBody, description = "The task, which is stored and will be finished"))
)]
pub(super) async fn expressions(
    State(app): State<App>,
    client: Client,
    body: Body<ExpressionsRequest>,
) -> Result<Response, ApiError> {
    let Body { value: request, idempotency, .. } = body;
    let defaults = submit::defaults(&app, request.model.as_deref())?;
    let webhook_url = submit::webhook(&app, "webhook_url", request.webhook_url.clone())?;
    let submission = Submission {
        kind: TaskKind::Expressions,
        priority: request.priority.unwrap_or_default().into(),
        images: expression_specs(&app.words, &app.rules, &defaults, &client.owner, &request)?,
        webhook_url,
        bypass_bank: request.bypass_cache == Some(true),
        idempotency: None,
    };
    let submitted = Job { submission, uploads: Vec::new() }.submit(&app, &client, idempotency).await?;
    Ok(AcceptedBody::answer(&submitted))
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

fn expression_specs(
    words: &Words,
    rules: &Rules,
    defaults: &ModelDefaults,
    owner: &Owner,
    request: &ExpressionsRequest,
) -> Result<Vec<ImageSpec>, ApiError> {
    let given = request.expression_tags.len();
    if given > EXPRESSIONS {
        return Err(ApiError::invalid(
            "expression_tags",
            format!("has {given} entries; {EXPRESSIONS} is the most"),
        ));
    }
    let expressions = words.expressions(&request.expression_tags)?;
    rules.check_count("expression_tags", expressions.len())?;
    let (name, character) = character(request)?;
    let style = words.style(request.art_style.as_deref())?;
    let renamed = |error: ApiError| error.renamed(&[("prompt", "character_prompt")]);
    let mut specs = Vec::with_capacity(expressions.len());
    for expression in expressions {
        let prompt = join(&[character, &expression.tags, &style.tags]);
        let mut spec = styled_spec(rules, defaults.clone(), prompt, &style, request.resolution.as_deref())
            .map_err(renamed)?;
        let pack =
            Character { owner, name: &name, prompt: character, style: &style.tags, seed: request.seed };
        let identity = PackIdentity::new(pack, &spec);
        let (place, kept_seed) = (identity.place(&expression.tags), identity.seed());
        spec.seed = request.seed.unwrap_or(kept_seed);
        spec.bank = Some(place);
        spec.label = Some(expression.name.clone());
        specs.push(spec);
    }
    // Whoever wants them drawn anew wants others than the bank has; one seed keeps them one character.
    if request.bypass_cache == Some(true) && request.seed.is_none() {
        let seed = random_seed();
        specs.iter_mut().for_each(|spec| spec.seed = seed);
    }
    Ok(specs)
}

/// A character's name and prompt.
fn character(request: &ExpressionsRequest) -> Result<(String, &str), ApiError> {
    let prompt = request.character_prompt.as_deref().map(str::trim).filter(|prompt| !prompt.is_empty());
    let Some(prompt) = prompt else {
        return Err(ApiError::invalid("character_prompt", "is missing").hint(
            "LoRAs are not supported yet, so character_lora_id is only a name: describe the character in \
             character_prompt",
        ));
    };
    let name = match request.character_lora_id.as_deref().map(str::trim) {
        None | Some("") => hex::encode(&Sha256::digest(prompt.as_bytes())[..8]),
        Some(name) if name.chars().count() > NAME_CHARACTERS || name.chars().any(char::is_control) => {
            let message = format!("must be 1 to {NAME_CHARACTERS} characters on one line");
            return Err(ApiError::invalid("character_lora_id", message));
        }
        Some(name) => name.to_owned(),
    };
    Ok((name, prompt))
}

/// A picture in an art style at a resolution.
pub(super) fn styled_spec(
    rules: &Rules,
    defaults: ModelDefaults,
    prompt: String,
    style: &Style,
    size: Option<&str>,
) -> Result<ImageSpec, ApiError> {
    let size = size.map(|text| resolution("resolution", text)).transpose()?;
    let negative_prompt = join(&[&defaults.negative_prompt, &style.negative]);
    let choices = Choices {
        prompt,
        negative_prompt: Some(negative_prompt),
        width: size.map(|(width, _)| width),
        height: size.map(|(_, height)| height),
        ..Choices::default()
    };
    rules
        .resolve(defaults, choices)
        .map_err(|error| error.renamed(&[("width", "resolution"), ("height", "resolution")]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::extract::parse_json;
    use crate::http::rules::testing::{defaults, rules};
    use crate::http::task_json::testing::view;
    use crate::task::TaskStatus;

    fn prototypes(json: &str) -> Result<Vec<ImageSpec>, ApiError> {
        let request = parse_json(json.as_bytes())?;
        prototype_specs(&Words::embedded().unwrap(), &rules(), defaults(), &request)
    }

    fn pack(json: &str) -> Result<Vec<ImageSpec>, ApiError> {
        let request = parse_json(json.as_bytes())?;
        expression_specs(&Words::embedded().unwrap(), &rules(), &defaults(), &Owner::Anyone, &request)
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

    #[test]
    fn a_pack_is_one_character_with_one_seed_and_a_place_in_the_bank_each() {
        let request = r#"{"character_lora_id": "mia", "expression_tags": ["smile_gentle", "angry"],
                          "character_prompt": "1girl, red hair,"}"#;
        let specs = pack(request).unwrap();
        assert_eq!(specs[0].prompt, "1girl, red hair, gentle smile");
        assert_eq!(specs[1].label.as_deref(), Some("angry"));
        assert_eq!(specs[0].seed, specs[1].seed);
        let places: Vec<_> = specs.iter().map(|spec| spec.bank.clone().unwrap()).collect();
        assert_ne!(places[0].key, places[1].key);
        assert_eq!(places[0].character, "mia");
        assert_eq!(pack(request).unwrap(), specs);
    }

    #[test]
    fn a_bypassed_bank_draws_others_into_the_same_places() {
        let with = |bypass: &str| {
            pack(&format!(
                r#"{{"expression_tags": ["sad"], "character_prompt": "1girl", "bypass_cache": {bypass}}}"#
            ))
            .unwrap()
        };
        let (kept, anew) = (with("false"), with("true"));
        assert_eq!(kept[0].bank, anew[0].bank);
        assert_ne!(kept[0].seed, anew[0].seed);
    }

    #[test]
    fn a_character_without_a_prompt_is_refused_and_told_why() {
        let error = pack(r#"{"character_lora_id": "mia", "expression_tags": ["sad"]}"#).unwrap_err();
        assert_eq!(error.detail().field.as_deref(), Some("character_prompt"));
        assert!(error.detail().hint.as_deref().unwrap().contains("LoRAs are not supported yet"));
    }

    #[test]
    fn a_wrong_expression_request_names_its_field() {
        let with = |rest: &str| field(pack(&format!(r#"{{"character_prompt": "1girl", {rest}}}"#)));
        assert_eq!(with(r#""expression_tags": []"#), "expression_tags");
        assert_eq!(with(r#""expression_tags": ["sad", "zzz"]"#), "expression_tags[1]");
        let many = vec!["\"sad\""; 25].join(",");
        assert_eq!(with(&format!("\"expression_tags\": [{many}]")), "expression_tags");
        assert_eq!(with(r#""expression_tags": ["sad"], "art_style": "zzz""#), "art_style");
        assert_eq!(with(r#""expression_tags": ["sad"], "priority": "soon""#), "priority");
        assert_eq!(
            with("\"expression_tags\": [\"sad\"], \"character_lora_id\": \"a\\nb\""),
            "character_lora_id"
        );
    }

    #[test]
    fn the_answer_has_the_gateways_fields() {
        let body = serde_json::to_value(AcceptedBody::new(&view(TaskStatus::Queued, 12, 0))).unwrap();
        assert_eq!(body["status"], "queued");
        assert_eq!(body["estimated_time_seconds"], 2);
        assert_eq!(body["expression_count"], 12);
        assert!(body["webhook_url"].is_null());
        let done = AcceptedBody::new(&view(TaskStatus::Completed, 2, 2));
        assert_eq!((done.status, done.estimated_time_seconds), ("completed", Some(0)));
        let mut unknown = view(TaskStatus::Queued, 1, 0);
        unknown.eta_seconds = None;
        assert_eq!(AcceptedBody::new(&unknown).estimated_time_seconds, None);
    }
}
