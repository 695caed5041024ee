//! The simple route of story-writing front ends: one picture, in the answer.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::app::App;
use super::auth::Client;
use super::error::ApiError;
use super::extract::Body;
use super::guides::LoraRequest;
use super::outcome::finished;
use super::submit;
use super::v1::{Drawing, ImagesRequest, data_url, model_list};

/// Longest prompt, characters.
const PROMPT_CHARACTERS: usize = 1000;
/// Longest side, pixels.
const SIDE: u32 = 2048;
/// Steps of Qwen-Image with a LoRA for few, where a request does not say.
const FEW_STEPS: usize = 4;

/// Its routes.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(generate)).routes(routes!(models)).routes(routes!(image_models))
}

/// A picture to draw.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SimpleRequest {
    /// What to draw.
    #[schema(max_length = 1000)]
    prompt: String,
    /// What to stay away from.
    negative_prompt: Option<String>,
    /// Pixels in a row, a multiple of 8; the default model's own if it is left out.
    #[schema(minimum = 16, maximum = 2048, multiple_of = 8)]
    width: Option<u32>,
    /// Rows of pixels, a multiple of 8; the default model's own if it is left out.
    #[schema(minimum = 16, maximum = 2048, multiple_of = 8)]
    height: Option<u32>,
    /// Sampling steps; the default model's own if it is left out.
    #[schema(minimum = 1)]
    num_inference_steps: Option<u32>,
    /// Guidance scale; the default model's own if it is left out.
    #[schema(minimum = 0, maximum = 100)]
    guidance_scale: Option<f64>,
    /// Seed; drawn at random if it is left out.
    #[schema(format = "uint64")]
    seed: Option<u64>,
}

/// The picture.
#[derive(Debug, Serialize, ToSchema)]
struct SimpleBody {
    /// The picture as a `data:` URL.
    #[schema(examples("data:image/png;base64,…"))]
    image_url: String,
    /// The model that drew it.
    model: String,
    /// Pixels in a row.
    width: usize,
    /// Rows.
    height: usize,
    /// The seed that it was drawn from.
    #[schema(format = "uint64")]
    seed: u64,
}

/// Models, in short.
#[derive(Debug, Serialize, ToSchema)]
struct SimpleModelsBody {
    /// The models.
    models: Vec<SimpleModelBody>,
}

/// A model, in short.
#[derive(Debug, Serialize, ToSchema)]
struct SimpleModelBody {
    /// Its id.
    id: String,
    /// Its name, which is the same.
    name: String,
    /// `sdxl`, `sd15`, …
    #[serde(rename = "type")]
    kind: String,
    /// Whether requests without a model get it.
    default: bool,
    /// Whether it is on a device.
    initialized: bool,
}

/// Draws one picture and answers with it.
///
/// Qwen-Image draws it where its weights are there, with the LoRA for four steps where that is there; else the default
/// model. Width, height, steps and guidance that are left out are the model's own. A client
/// that goes away takes the task back.
#[utoipa::path(
    post,
    path = "/api/v1/images/generate",
    tag = "simple",
    request_body = SimpleRequest,
    responses((status = 200, body = SimpleBody, description = "The picture"))
)]
async fn generate(
    State(app): State<App>,
    client: Client,
    body: Body<SimpleRequest>,
) -> Result<Json<SimpleBody>, ApiError> {
    let Body { value: request, idempotency, .. } = body;
    let names = [("steps", "num_inference_steps"), ("cfg", "guidance_scale")];
    let drawing = Drawing::read(&app, suited(&app, native(request)?)).await?;
    let job = drawing.job(&app).map_err(|error| error.renamed(&names))?;
    let submitted = job.submit(&app, &client, idempotency).await?;
    // A repeated request may share its task with another client that still waits.
    let view = submit::wait(&app, &client, &submitted.view.task.id, submitted.created).await?;
    let drawn = finished(&view)?;
    let (Some(image), Some(spec)) = (drawn.first(), view.task.images.first()) else {
        return Err(ApiError::internal(&format!("task {} completed without a picture", view.task.id)));
    };
    let stored = app.service.image(&client.owner, &image.id).await?;
    Ok(Json(SimpleBody {
        image_url: data_url(image.format.mime(), &stored.bytes),
        model: spec.model.clone(),
        width: image.width,
        height: image.height,
        seed: image.seed,
    }))
}

/// Lists models.
#[utoipa::path(
    get,
    path = "/api/v1/models",
    tag = "simple",
    responses((status = 200, body = SimpleModelsBody, description = "All models"))
)]
async fn models(State(app): State<App>, _client: Client) -> Json<SimpleModelsBody> {
    Json(list(&app))
}

/// Lists models that draw pictures, which all do.
#[utoipa::path(
    get,
    path = "/api/v1/images/models",
    tag = "simple",
    responses((status = 200, body = SimpleModelsBody, description = "All models"))
)]
async fn image_models(State(app): State<App>, _client: Client) -> Json<SimpleModelsBody> {
    Json(list(&app))
}

fn list(app: &App) -> SimpleModelsBody {
    let models = model_list(app).into_iter().map(|model| SimpleModelBody {
        name: model.id.clone(),
        id: model.id,
        kind: model.family,
        default: model.is_default,
        initialized: model.state == "resident",
    });
    SimpleModelsBody { models: models.collect() }
}

/// The same with the model that this route is for, Qwen-Image, where its weights are there; with the LoRA for as few
/// steps as are asked for, where that is there too: four, if nothing is asked for.
fn suited(app: &App, mut request: ImagesRequest) -> ImagesRequest {
    let Some(model) = app.service.qwen_image() else { return request };
    request.model = Some(model);
    let steps = request.steps.map_or(FEW_STEPS, |steps| steps as usize);
    // Guidance is what such LoRAs were trained to do without.
    if request.cfg.is_none_or(|cfg| cfg == 1.0)
        && let Some(lora) = app.service.lightning(steps)
    {
        request.steps = Some(u32::try_from(steps).unwrap_or(u32::MAX));
        request.cfg = Some(1.0);
        request.loras = Some(vec![LoraRequest { id: lora, strength: None, text_strength: Some(0.0) }]);
    }
    request
}

/// The same request in our own words.
fn native(request: SimpleRequest) -> Result<ImagesRequest, ApiError> {
    for (field, text) in
        [("prompt", Some(&request.prompt)), ("negative_prompt", request.negative_prompt.as_ref())]
    {
        let length = text.map_or(0, |text| text.chars().count());
        if length > PROMPT_CHARACTERS {
            let message = format!("has {length} characters; {PROMPT_CHARACTERS} is the most");
            return Err(ApiError::invalid(field, message));
        }
    }
    for (field, side) in [("width", request.width), ("height", request.height)] {
        if let Some(side) = side.filter(|side| *side > SIDE) {
            return Err(ApiError::invalid(field, format!("is {side}, must be at most {SIDE}")));
        }
    }
    Ok(ImagesRequest {
        prompt: request.prompt,
        negative_prompt: request.negative_prompt,
        width: request.width,
        height: request.height,
        steps: request.num_inference_steps,
        cfg: request.guidance_scale,
        seed: request.seed,
        ..ImagesRequest::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::extract::parse_json;

    fn mapped(json: &str) -> Result<ImagesRequest, ApiError> {
        native(parse_json(json.as_bytes())?)
    }

    #[test]
    fn the_simple_fields_become_ours() {
        let request = mapped(
            r#"{"prompt": "a", "width": 64, "num_inference_steps": 4, "guidance_scale": 1.0, "seed": 9}"#,
        )
        .unwrap();
        assert_eq!((request.width, request.height, request.steps), (Some(64), None, Some(4)));
        assert_eq!((request.cfg, request.seed), (Some(1.0), Some(9)));
    }

    #[test]
    fn its_own_limits_hold() {
        let field = |json: &str| mapped(json).unwrap_err().detail().field.clone().unwrap();
        assert_eq!(field(&format!(r#"{{"prompt": "{}"}}"#, "é".repeat(1001))), "prompt");
        assert!(mapped(&format!(r#"{{"prompt": "{}"}}"#, "é".repeat(1000))).is_ok());
        assert_eq!(field(r#"{"prompt": "a", "width": 2056}"#), "width");
        assert_eq!(field(r#"{"prompt": "a", "steps": 4}"#), "steps");
    }
}
