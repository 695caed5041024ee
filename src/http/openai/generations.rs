//! `POST /v1/images/generations`: pictures in OpenAI's shape, in the answer or as signed addresses.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::errors::OpenAiErrorBody;
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::Body;
use crate::http::outcome::finished;
use crate::http::rules::resolution;
use crate::http::submit;
use crate::http::task_json::format_name;
use crate::http::v1::{Drawing, FormatName, ImagesRequest};
use crate::task::{DrawnImage, ImageFormat};

/// OpenAI's own limit.
const MOST: u32 = 10;

/// Pictures to draw, in OpenAI's fields. `negative_prompt`, `seed`, `steps` and `cfg` are Darkroom's own.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerationsRequest {
    /// What to draw.
    prompt: String,
    /// A model's id, as GET /v1/models lists them; the default model if it is left out.
    model: Option<String>,
    /// How many.
    #[schema(minimum = 1, maximum = 10, default = 1)]
    n: Option<u32>,
    /// `WIDTHxHEIGHT`, multiples of 8, or `auto`: the model's own size.
    size: Option<String>,
    /// Whether pictures are in the answer or at an address that works for an hour.
    response_format: Option<ResponseFormat>,
    /// How the file is written.
    output_format: Option<FormatName>,
    /// Quality of jpeg and webp, percent.
    #[schema(maximum = 100)]
    output_compression: Option<u8>,
    /// `opaque` or `auto`: pictures have no transparent parts.
    background: Option<String>,
    /// Accepted, and changes nothing: choose `steps`.
    #[expect(dead_code, reason = "clients send it")]
    quality: Option<String>,
    /// Accepted, and changes nothing: write it into the prompt.
    #[expect(dead_code, reason = "clients send it")]
    style: Option<String>,
    /// Accepted, and changes nothing.
    #[expect(dead_code, reason = "clients send it")]
    moderation: Option<String>,
    /// Accepted, and changes nothing.
    #[expect(dead_code, reason = "clients send it")]
    user: Option<String>,
    /// Only false: streams are not supported here; GET /v1/tasks/{id}/events has them.
    stream: Option<bool>,
    /// Only 0, for the same reason.
    partial_images: Option<u32>,
    /// What to stay away from.
    negative_prompt: Option<String>,
    /// Seed of the first picture; each next one is one higher.
    #[schema(format = "uint64")]
    seed: Option<u64>,
    /// Sampling steps.
    steps: Option<u32>,
    /// Classifier-free guidance scale.
    cfg: Option<f64>,
}

/// Where the pictures are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ResponseFormat {
    /// At an address.
    #[default]
    Url,
    /// In the answer.
    B64Json,
}

/// The pictures.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GenerationsBody {
    /// When they were asked for, seconds since 1970.
    created: i64,
    /// One entry a picture.
    data: Vec<GenerationBody>,
    /// `png`, `webp` or `jpeg`.
    output_format: &'static str,
    /// `WIDTHxHEIGHT`.
    size: String,
}

/// A picture.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GenerationBody {
    /// The file as base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    /// Where the file is, for an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// The seed that it was drawn from; Darkroom's own.
    #[schema(format = "uint64")]
    seed: u64,
}

/// Draws pictures, as OpenAI's API does.
///
/// Answers when they are done. A client that goes away takes the task back.
#[utoipa::path(
    post,
    path = "/v1/images/generations",
    tag = "OpenAI",
    request_body = GenerationsRequest,
    responses(
        (status = 200, body = GenerationsBody, description = "The pictures"),
        (status = "default", body = OpenAiErrorBody, description = "Why not, in OpenAI's words")
    )
)]
pub(super) async fn create(
    State(app): State<App>,
    client: Client,
    headers: HeaderMap,
    body: Body<GenerationsRequest>,
) -> Result<Json<GenerationsBody>, ApiError> {
    let Body { value: request, idempotency, .. } = body;
    let response_format = request.response_format.unwrap_or_default();
    let names = [
        ("count", "n"),
        ("width", "size"),
        ("height", "size"),
        ("quality", "output_compression"),
        ("format", "output_format"),
    ];
    let drawing = Drawing::read(&app, native(request)?).await?;
    let job = drawing.job(&app).map_err(|error| error.renamed(&names))?;
    let submitted = job.submit(&app, &client, idempotency).await?;
    // A repeated request may share its task with another client that still waits.
    let view = submit::wait(&app, &client, &submitted.view.task.id, submitted.created).await?;
    let drawn = finished(&view)?;
    let mut data = Vec::with_capacity(drawn.len());
    for image in &drawn {
        data.push(picture(&app, &client, &headers, image, response_format).await?);
    }
    let first = drawn.first();
    Ok(Json(GenerationsBody {
        created: view.task.created_at.as_second(),
        data,
        output_format: format_name(first.map_or(ImageFormat::Png, |image| image.format)),
        size: first.map(|image| format!("{}x{}", image.width, image.height)).unwrap_or_default(),
    }))
}

async fn picture(
    app: &App,
    client: &Client,
    headers: &HeaderMap,
    image: &DrawnImage,
    response_format: ResponseFormat,
) -> Result<GenerationBody, ApiError> {
    let (b64_json, url) = match response_format {
        ResponseFormat::B64Json => {
            let stored = app.service.image(&client.owner, &image.id).await?;
            (Some(STANDARD.encode(&stored.bytes)), None)
        }
        ResponseFormat::Url => {
            let secret = app.service.link_secret();
            (None, Some(app.addresses(headers).signed_image(&image.id, secret, Timestamp::now())))
        }
    };
    Ok(GenerationBody { b64_json, url, seed: image.seed })
}

/// The same request in our own words.
fn native(request: GenerationsRequest) -> Result<ImagesRequest, ApiError> {
    let count = request.n.unwrap_or(1);
    if !(1..=MOST).contains(&count) {
        return Err(ApiError::invalid("n", format!("is {count}, must be 1 to {MOST}")));
    }
    if request.stream == Some(true) || request.partial_images.is_some_and(|count| count > 0) {
        let field = if request.stream == Some(true) { "stream" } else { "partial_images" };
        return Err(ApiError::invalid(field, "is not supported on this route")
            .hint("POST /v1/images and GET /v1/tasks/{id}/events?previews=true stream previews"));
    }
    if let Some(background) = request.background.as_deref()
        && !matches!(background, "opaque" | "auto")
    {
        return Err(ApiError::invalid(
            "background",
            "must be opaque or auto: pictures have no transparent parts",
        ));
    }
    let size = match request.size.as_deref() {
        None | Some("auto") => None,
        Some(text) => Some(resolution("size", text)?),
    };
    let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
    let format = request.output_format.unwrap_or_default();
    if request.output_compression.is_some_and(|percent| percent > 100) {
        return Err(ApiError::invalid("output_compression", "must be 0 to 100"));
    }
    // PNG has no quality; OpenAI's clients send 100 with it all the same. Ours counts from 1.
    let quality =
        request.output_compression.filter(|_| format != FormatName::Png).map(|percent| percent.max(1));
    Ok(ImagesRequest {
        prompt: request.prompt,
        negative_prompt: request.negative_prompt,
        model: request.model,
        width: size.map(|(width, _)| side(width)),
        height: size.map(|(_, height)| side(height)),
        steps: request.steps,
        cfg: request.cfg,
        seed: request.seed,
        count: Some(count),
        format: Some(format),
        quality,
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
    fn openais_fields_become_ours() {
        let request = mapped(
            r#"{"prompt": "a cat", "model": "tiny-sdxl", "n": 3, "size": "256x128", "quality": "hd", "style": "vivid",
                "user": "u", "background": "auto", "output_format": "jpeg", "output_compression": 0,
                "moderation": "low", "stream": false, "partial_images": 0, "seed": 5}"#,
        )
        .unwrap();
        assert_eq!((request.prompt.as_str(), request.model.as_deref()), ("a cat", Some("tiny-sdxl")));
        assert_eq!((request.count, request.width, request.height), (Some(3), Some(256), Some(128)));
        assert_eq!((request.format, request.quality), (Some(FormatName::Jpeg), Some(1)));
        assert_eq!(request.seed, Some(5));
    }

    #[test]
    fn a_plain_request_leaves_all_to_the_model() {
        let request = mapped(r#"{"prompt": "a cat", "size": "auto", "output_compression": 100}"#).unwrap();
        assert_eq!((request.count, request.width, request.quality), (Some(1), None, None));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_its_field() {
        let field = |rest: &str| {
            let error = mapped(&format!(r#"{{"prompt": "a", {rest}}}"#)).unwrap_err();
            error.detail().field.clone().unwrap()
        };
        assert_eq!(field(r#""n": 0"#), "n");
        assert_eq!(field(r#""n": 11"#), "n");
        assert_eq!(field(r#""size": "large""#), "size");
        assert_eq!(field(r#""stream": true"#), "stream");
        assert_eq!(field(r#""partial_images": 2"#), "partial_images");
        assert_eq!(field(r#""background": "transparent""#), "background");
        assert_eq!(field(r#""output_compression": 101"#), "output_compression");
        assert_eq!(field(r#""response_format": "png""#), "response_format");
        assert_eq!(field(r#""propmt": "x""#), "propmt");
    }
}
