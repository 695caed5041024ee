//! `POST /v1/character-packs/expressions`: a character in many expressions.

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use utoipa::ToSchema;

use super::cast::{Cast, CastRequest};
use super::recipe::Recipe;
use super::series::{Series, face_detail};
use super::templating::TemplateRequest;
use super::{AcceptedBody, Kit, Pack};
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::Body;
use crate::http::guides::{Guides, LoraRequest};
use crate::http::submit::{self, PriorityName};
use crate::service::ModelDefaults;
use crate::task::{Background, ImageFormat, ImageSpec, Owner, TaskKind};

/// How large models draw expressions.
const RECIPE: Recipe = Recipe { steps: 30, size: None };

/// A character in many expressions.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http::v1) struct ExpressionsRequest {
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
    /// `WIDTHxHEIGHT` in pixels, multiples of 8; the model's own size if it is left out.
    resolution: Option<String>,
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
pub(in crate::http::v1) async fn expressions(
    State(app): State<App>,
    client: Client,
    body: Body<ExpressionsRequest>,
) -> Result<Response, ApiError> {
    let Body { value: request, idempotency, .. } = body;
    let defaults = submit::defaults(&app, request.model.as_deref())?;
    let webhook_url = submit::webhook(&app, "webhook_url", request.webhook_url.clone())?;
    let guides = app.guides(&defaults.model)?;
    let mut warnings = Vec::new();
    let (images, uploads) = specs(&Kit::of(&app), &guides, defaults, &client.owner, &request, &mut warnings)?;
    app.check_templates(&uploads).await?;
    let pack = Pack {
        kind: TaskKind::Expressions,
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
    request: &ExpressionsRequest,
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
    let series = Series {
        words: kit.words,
        rules: kit.rules,
        owner,
        defaults: RECIPE.tune(defaults),
        cast: &cast,
        style: &style,
        backdrop: "",
        expressions: &request.expression_tags,
        resolution: request.resolution.as_deref(),
        templating: kit.templating(guides, templates)?,
        detail: face_detail(guides, request.apply_detailing, warnings),
        background: Background::Keep,
        format: ImageFormat::Png,
        seed: request.seed,
        bypass_bank: request.bypass_cache == Some(true),
    };
    series.specs()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Shelves, field, with};
    use super::*;
    use crate::http::extract::parse_json;
    use crate::task::{LoraSpec, Preprocess};

    /// Pictures, files, warnings.
    type Made = (Vec<ImageSpec>, Vec<Bytes>, Vec<String>);

    fn pack_of(shelves: &Shelves, json: &str) -> Result<Made, ApiError> {
        let request = parse_json(json.as_bytes())?;
        let mut warnings = Vec::new();
        let made = with(shelves, |kit, guides, defaults| {
            specs(kit, guides, defaults, &Owner::Anyone, &request, &mut warnings)
        });
        made.map(|(specs, uploads)| (specs, uploads, warnings))
    }

    fn pack(json: &str) -> Result<Vec<ImageSpec>, ApiError> {
        pack_of(&Shelves::bare(), json).map(|(specs, ..)| specs)
    }

    #[test]
    fn a_pack_is_one_character_with_one_seed_and_a_place_in_the_bank_each() {
        let request = r#"{"character_id": "mia", "expression_tags": ["smile_gentle", "angry"],
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
    fn a_lora_is_in_every_picture_with_its_words() {
        let with =
            r#"{"character_lora_id": "mia", "lora_strength": 0.7, "expression_tags": ["sad", "wink"]}"#;
        let (specs, ..) = pack_of(&Shelves::full(), with).unwrap();
        for spec in &specs {
            assert!(spec.prompt.starts_with("mia_v2, "), "{}", spec.prompt);
            assert_eq!(spec.loras, [LoraSpec { lora: "mia".into(), strength: 0.7, text_strength: 0.7 }]);
        }
        assert_eq!(specs[0].bank.as_ref().unwrap().character, "mia");
        let weaker = pack_of(&Shelves::full(), &with.replace("0.7", "0.6")).unwrap().0;
        assert_ne!(weaker[0].bank, specs[0].bank);
    }

    #[test]
    fn templates_are_followed_where_there_are_some_and_a_controlnet() {
        let shelves = Shelves::full();
        let request = r#"{"character_prompt": "1girl", "expression_tags": ["sad", "wink"]}"#;
        let (specs, uploads, warnings) = pack_of(&shelves, request).unwrap();
        assert_eq!((specs[0].controls.len(), specs[1].controls.len(), uploads.len()), (1, 0, 1));
        let control = &specs[0].controls[0];
        assert_eq!((control.control.as_str(), control.strength), ("xl-canny", 0.8));
        assert_eq!(control.preprocess, Preprocess::OpencvCanny { low: 100.0, high: 200.0 });
        assert_eq!(control.image, crate::task::BlobId::of(&uploads[0]));
        assert!(warnings.is_empty() && pack(request).unwrap()[0].controls.is_empty());
        let without = request.replace("\"expression", "\"use_templates\": false, \"expression");
        let without = pack_of(&shelves, &without).unwrap().0;
        assert!(without[0].controls.is_empty());
        assert_ne!(without[0].bank, specs[0].bank);
        assert_eq!(without[1].bank, specs[1].bank);
    }

    #[test]
    fn a_template_that_was_asked_for_and_is_missing_is_refused_with_what_there_is() {
        let request = |rest: &str| {
            let json = format!(r#"{{"character_prompt": "1girl", "expression_tags": ["wink"], {rest}}}"#);
            let error = pack_of(&Shelves::full(), &json).unwrap_err();
            assert_eq!(error.status().as_u16(), 422, "{error:?}");
            (error.detail().field.clone().unwrap(), error.detail().message.clone())
        };
        let (field, message) = request(r#""template_set": "default""#);
        assert_eq!(field, "template_set");
        assert!(
            message.contains("'default'") && message.contains("'wink'") && message.contains("sad"),
            "{message}"
        );
        assert_eq!(request(r#""template_set": "his""#).0, "template_set");
        assert_eq!(request(r#""template_set": "default", "use_templates": false"#).0, "template_set");
        assert_eq!(request(r#""template_strength": 99"#).0, "template_strength");
        let none = r#"{"character_prompt": "1girl", "expression_tags": ["sad"], "use_templates": true}"#;
        assert_eq!(field_of(none), "use_templates");
    }

    fn field_of(json: &str) -> String {
        field(pack(json))
    }

    #[test]
    fn detailing_that_cannot_be_done_is_a_warning_if_it_was_asked_for() {
        let request =
            |rest: &str| format!(r#"{{"character_prompt": "1girl", "expression_tags": ["sad"]{rest}}}"#);
        let asked = request(r#", "apply_detailing": true"#);
        let (specs, _, warnings) = pack_of(&Shelves::bare(), &asked).unwrap();
        assert!(specs[0].detail.is_none() && warnings[0].contains("apply_detailing"), "{warnings:?}");
        assert!(pack_of(&Shelves::bare(), &request("")).unwrap().2.is_empty());
        assert!(pack_of(&Shelves::full(), &request("")).unwrap().0[0].detail.is_some());
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
    fn a_wrong_expression_request_names_its_field() {
        let with = |rest: &str| field_of(&format!(r#"{{"character_prompt": "1girl", {rest}}}"#));
        assert_eq!(with(r#""expression_tags": []"#), "expression_tags");
        assert_eq!(with(r#""expression_tags": ["sad", "zzz"]"#), "expression_tags[1]");
        let many = vec!["\"sad\""; 25].join(",");
        assert_eq!(with(&format!("\"expression_tags\": [{many}]")), "expression_tags");
        assert_eq!(with(r#""expression_tags": ["sad"], "art_style": "zzz""#), "art_style");
        assert_eq!(with(r#""expression_tags": ["sad"], "priority": "soon""#), "priority");
        assert_eq!(with("\"expression_tags\": [\"sad\"], \"character_id\": \"a\\nb\""), "character_id");
        assert_eq!(field_of(r#"{"expression_tags": ["sad"]}"#), "character_prompt");
    }
}
