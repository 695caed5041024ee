//! `POST /v1/images`: one or more pictures from one prompt.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use utoipa::IntoParams;

use super::image_request::{FormatName, ImagesRequest, InpaintMode};
use crate::http::app::App;
use crate::http::auth::Client;
use crate::http::error::ApiError;
use crate::http::extract::{Body, Params, flag};
use crate::http::guides::{BackgroundName, Guides};
use crate::http::rules::{Choices, Start, random_seed, seeds};
use crate::http::source::{self, Upload};
use crate::http::submit::{self, Job};
use crate::http::task_json::TaskBody;
use crate::service::{Submission, Submitted};
use crate::task::{ControlSpec, DetailSpec, ImageFormat, ImageSpec, Inpaint, LoraSpec, SourceSpec, TaskKind};

/// ComfyUI's default of `grow_mask_by`.
const GROW_MASK: u32 = 6;
/// Most pixels that a mask grows.
const MAX_GROW_MASK: u32 = 64;
/// Quality of JPEG where none is given.
const JPEG_QUALITY: u8 = 90;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct WaitParams {
    /// Answer when the task is final, not at once.
    #[serde(default, deserialize_with = "flag")]
    #[param(value_type = Option<bool>)]
    wait: bool,
}

/// Draws pictures.
///
/// Answers at once with the task; with `?wait=true` when it is final. A header `Idempotency-Key` makes a repeated
/// request the same task.
#[utoipa::path(
    post,
    path = "/v1/images",
    tag = "images",
    params(WaitParams, ("Idempotency-Key" = Option<String>, Header, description = "Makes a repeated request the same task")),
    request_body = ImagesRequest,
    responses((status = 200, body = TaskBody, description = "The task, which is stored and will be finished"))
)]
pub(super) async fn create(
    State(app): State<App>,
    client: Client,
    Params(params): Params<WaitParams>,
    headers: HeaderMap,
    body: Body<ImagesRequest>,
) -> Result<Response, ApiError> {
    let Body { value: request, idempotency, .. } = body;
    let cancel_on_disconnect = request.cancel_on_disconnect == Some(true);
    if cancel_on_disconnect && !params.wait {
        return Err(ApiError::invalid("cancel_on_disconnect", "means something only with ?wait=true"));
    }
    let job = Drawing::read(&app, request).await?.job(&app)?;
    let submitted = job.submit(&app, &client, idempotency).await?;
    let created = submitted.created;
    let view = if params.wait && !submitted.view.task.status.is_final() {
        submit::wait(&app, &client, &submitted.view.task.id, cancel_on_disconnect).await?
    } else {
        submitted.view
    };
    let body = TaskBody::new(&view, &app.addresses(&headers));
    Ok(answer(&body, created))
}

/// 200 with the task, where to look at it, and whether an earlier request had made it.
pub(super) fn answer(body: &TaskBody, created: bool) -> Response {
    let mut response = Json(body).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/tasks/{}", body.task_id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    mark_replay(&mut response, created);
    response
}

/// Tells a client that its request was known already.
pub(super) fn mark_replay(response: &mut Response, created: bool) {
    if !created {
        let name = HeaderName::from_static("idempotency-replayed");
        response.headers_mut().insert(name, HeaderValue::from_static("true"));
    }
}

/// A request with its pictures read.
pub(in crate::http) struct Drawing {
    request: ImagesRequest,
    image: Option<Upload>,
    mask: Option<Upload>,
    controls: Vec<Upload>,
}

impl Drawing {
    /// Reads what the request starts from.
    pub(in crate::http) async fn read(app: &App, request: ImagesRequest) -> Result<Self, ApiError> {
        check_source_fields(&request)?;
        let asked = request.controls.as_deref().unwrap_or_default();
        let most = app.config.limits.controls;
        if asked.len() > most {
            let message = format!("has {} entries; {most} is the most", asked.len());
            return Err(ApiError::invalid("controls", message));
        }
        let image = match &request.init_image {
            Some(text) => Some(source::read(app, "init_image", text).await?),
            None => None,
        };
        let mask = match &request.mask {
            Some(text) => Some(source::read(app, "mask", text).await?),
            None => None,
        };
        let mut controls = Vec::with_capacity(asked.len());
        for (index, control) in asked.iter().enumerate() {
            controls.push(source::read(app, &format!("controls[{index}].image"), &control.image).await?);
        }
        Ok(Self { request, image, mask, controls })
    }

    /// Checks everything else, and makes it a submission.
    pub(in crate::http) fn job(mut self, app: &App) -> Result<Job, ApiError> {
        let count = self.request.count.unwrap_or(1) as usize;
        app.rules.check_count("count", count)?;
        let priority = self.request.priority.unwrap_or_default().into();
        let webhook_url = submit::webhook(app, "webhook_url", self.request.webhook_url.clone())?;
        let defaults = submit::defaults(app, self.request.model.as_deref())?;
        let first_seed = self.request.seed.unwrap_or_else(random_seed);
        let guides = app.guides(&defaults.model)?;
        let guidance = self.guidance(&guides)?;
        let controls = std::mem::take(&mut self.controls);
        let (choices, mut uploads) = self.choices()?;
        uploads.extend(controls.into_iter().map(|control| control.bytes));
        let spec = guidance.guide(app.rules.resolve(defaults, choices)?, &guides)?;
        Ok(Job {
            submission: Submission {
                kind: TaskKind::Images,
                priority,
                images: variants(&spec, first_seed, count),
                webhook_url,
                bypass_bank: false,
                idempotency: None,
            },
            uploads,
        })
    }

    /// What the request says of LoRAs, ControlNets, details and the background, each checked against what there is.
    fn guidance(&self, guides: &Guides<'_>) -> Result<Guidance, ApiError> {
        let request = &self.request;
        let loras = guides.loras("loras", request.loras.as_deref().unwrap_or_default())?;
        let asked = request.controls.iter().flatten().zip(&self.controls).enumerate();
        let controls = asked.map(|(index, (control, upload))| {
            let spec = guides.control_spec(control, upload.id.clone());
            spec.map_err(|error| error.within(&format!("controls[{index}]")))
        });
        let controls = controls.collect::<Result<_, _>>()?;
        let detail = request.detail.as_ref().map(|detail| guides.detail(detail));
        let detail = detail.transpose().map_err(|error| error.within("detail"))?;
        Ok(Guidance { loras, controls, detail, background: request.background.unwrap_or_default() })
    }

    fn choices(self) -> Result<(Choices, Vec<Bytes>), ApiError> {
        let request = self.request;
        let start = match &self.image {
            None => None,
            Some(image) => {
                let inpaint = inpaint(&request, image.has_alpha, self.mask.as_ref())?;
                let source = SourceSpec::Image { image: image.id.clone(), inpaint };
                Some(Start { source, size: (image.width, image.height) })
            }
        };
        let uploads = [self.image, self.mask].into_iter().flatten().map(|upload| upload.bytes).collect();
        let choices = Choices {
            format: Some(format(request.format.unwrap_or_default(), request.quality)?),
            prompt: request.prompt,
            negative_prompt: request.negative_prompt,
            width: request.width.map(|side| side as usize),
            height: request.height.map(|side| side as usize),
            steps: request.steps.map(|steps| steps as usize),
            cfg: request.cfg,
            sampler: request.sampler,
            scheduler: request.scheduler,
            clip_skip: request.clip_skip.map(|layer| layer as usize),
            denoise: request.denoise,
            speed: request.speed.unwrap_or_default().into(),
            shift: request.shift.map(Into::into),
            start,
            without_metadata: request.metadata == Some(false),
        };
        Ok((choices, uploads))
    }
}

/// What guides a picture beside its prompt.
struct Guidance {
    loras: Vec<LoraSpec>,
    controls: Vec<ControlSpec>,
    detail: Option<DetailSpec>,
    background: BackgroundName,
}

impl Guidance {
    fn guide(self, spec: ImageSpec, guides: &Guides<'_>) -> Result<ImageSpec, ApiError> {
        let background = guides.background(self.background, spec.format)?;
        let Self { loras, controls, detail, .. } = self;
        Ok(ImageSpec { loras, controls, detail, background, ..spec })
    }
}

/// Fields that mean nothing without others, before anything is fetched or decoded.
fn check_source_fields(request: &ImagesRequest) -> Result<(), ApiError> {
    let given = [
        ("mask", request.mask.is_some()),
        ("inpaint_mode", request.inpaint_mode.is_some()),
        ("grow_mask", request.grow_mask.is_some()),
    ];
    if let Some((field, _)) = given.into_iter().find(|(_, given)| *given && request.init_image.is_none()) {
        return Err(ApiError::invalid(field, "needs an init_image"));
    }
    if request.grow_mask.is_some() && request.inpaint_mode != Some(InpaintMode::Fill) {
        return Err(ApiError::invalid("grow_mask", "needs inpaint_mode \"fill\""));
    }
    if request.grow_mask.is_some_and(|pixels| pixels > MAX_GROW_MASK) {
        return Err(ApiError::invalid("grow_mask", format!("must be 0 to {MAX_GROW_MASK}")));
    }
    Ok(())
}

fn inpaint(
    request: &ImagesRequest,
    has_alpha: bool,
    mask: Option<&Upload>,
) -> Result<Option<Inpaint>, ApiError> {
    if mask.is_none() && request.inpaint_mode.is_none() {
        return Ok(None);
    }
    if mask.is_none() && !has_alpha {
        return Err(ApiError::invalid(
            "mask",
            "is missing, and init_image has no transparent part to repaint",
        ));
    }
    let fill = request.inpaint_mode == Some(InpaintMode::Fill);
    Ok(Some(Inpaint {
        mask: mask.map(|mask| mask.id.clone()),
        fill_grow: fill.then(|| request.grow_mask.unwrap_or(GROW_MASK) as usize),
    }))
}

fn format(name: FormatName, quality: Option<u8>) -> Result<ImageFormat, ApiError> {
    if quality.is_some_and(|quality| !(1..=100).contains(&quality)) {
        return Err(ApiError::invalid("quality", "must be 1 to 100"));
    }
    match (name, quality) {
        (FormatName::Png, Some(_)) => {
            Err(ApiError::invalid("quality", "means nothing to png, which is lossless").hint("leave it out"))
        }
        (FormatName::Png, None) => Ok(ImageFormat::Png),
        (FormatName::Webp, quality) => Ok(ImageFormat::Webp { quality }),
        (FormatName::Jpeg, quality) => Ok(ImageFormat::Jpeg { quality: quality.unwrap_or(JPEG_QUALITY) }),
    }
}

/// The picture with `count` seeds, counting up.
pub(super) fn variants(spec: &ImageSpec, first_seed: u64, count: usize) -> Vec<ImageSpec> {
    seeds(first_seed, count).map(|seed| ImageSpec { seed, ..spec.clone() }).collect()
}

/// Whether all were made now.
pub(super) fn all_created(submitted: &[Submitted]) -> bool {
    submitted.iter().all(|one| one.created)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::extract::parse_json;
    use crate::http::rules::testing::{defaults, rules};
    use crate::task::BlobId;

    fn upload(has_alpha: bool) -> Upload {
        Upload {
            id: BlobId::of(b"picture"),
            bytes: Bytes::from_static(b"picture"),
            width: 64,
            height: 64,
            has_alpha,
        }
    }

    fn refused_field(error: &ApiError) -> String {
        assert_eq!(error.status().as_u16(), 422);
        error.detail().field.clone().unwrap()
    }

    #[test]
    fn every_field_reaches_the_picture() {
        let request: ImagesRequest = parse_json(
            br#"{"prompt": "a cat", "negative_prompt": "dog", "width": 256, "height": 64, "steps": 9, "cfg": 3.5,
                 "sampler": "euler", "scheduler": "normal", "clip_skip": 2, "format": "webp", "quality": 80,
                 "metadata": false, "denoise": 0.5}"#,
        )
        .unwrap();
        let drawing = Drawing { request, image: Some(upload(false)), mask: None, controls: Vec::new() };
        let (choices, uploads) = drawing.choices().unwrap();
        assert_eq!(uploads.len(), 1);
        let spec = rules().resolve(defaults(), choices).unwrap();
        assert_eq!((spec.prompt.as_str(), spec.negative_prompt.as_str()), ("a cat", "dog"));
        assert_eq!((spec.width, spec.height, spec.steps, spec.cfg), (256, 64, 9, 3.5));
        assert_eq!((spec.sampler.as_str(), spec.scheduler.as_str()), ("euler", "normal"));
        assert_eq!((spec.clip_skip, spec.metadata, spec.denoise), (Some(2), false, 0.5));
        assert_eq!(spec.format, ImageFormat::Webp { quality: Some(80) });
        assert_eq!(spec.source, SourceSpec::Image { image: BlobId::of(b"picture"), inpaint: None });
    }

    #[test]
    fn pictures_of_one_request_differ_in_their_seed_alone() {
        let spec = crate::http::rules::testing::spec();
        let pictures = variants(&spec, u64::MAX, 2);
        assert_eq!((pictures[0].seed, pictures[1].seed), (u64::MAX, 0));
        assert_eq!(
            ImageSpec { seed: 0, ..pictures[0].clone() },
            ImageSpec { seed: 0, ..pictures[1].clone() }
        );
    }

    #[test]
    fn a_mask_without_a_picture_and_a_growth_without_fill_are_refused() {
        let check = |request: ImagesRequest| refused_field(&check_source_fields(&request).unwrap_err());
        assert_eq!(check(ImagesRequest { mask: Some("x".into()), ..Default::default() }), "mask");
        let mode = Some(InpaintMode::Fill);
        assert_eq!(check(ImagesRequest { inpaint_mode: mode, ..Default::default() }), "inpaint_mode");
        let init_image = Some("x".to_owned());
        let grow = |mode, grow| ImagesRequest {
            init_image: init_image.clone(),
            inpaint_mode: mode,
            grow_mask: Some(grow),
            ..Default::default()
        };
        assert_eq!(check(grow(None, 1)), "grow_mask");
        assert_eq!(check(grow(mode, 65)), "grow_mask");
        assert!(check_source_fields(&grow(mode, 64)).is_ok());
    }

    #[test]
    fn inpainting_follows_from_a_mask_or_from_transparency() {
        let plain = ImagesRequest::default();
        assert_eq!(inpaint(&plain, true, None), Ok(None));
        let mask = Some(BlobId::of(b"picture"));
        let expected = Inpaint { mask, fill_grow: None };
        assert_eq!(inpaint(&plain, false, Some(&upload(false))), Ok(Some(expected)));
        let fill = ImagesRequest { inpaint_mode: Some(InpaintMode::Fill), ..Default::default() };
        assert_eq!(inpaint(&fill, true, None), Ok(Some(Inpaint { mask: None, fill_grow: Some(6) })));
        assert_eq!(refused_field(&inpaint(&fill, false, None).unwrap_err()), "mask");
    }

    #[test]
    fn a_format_takes_a_quality_where_it_has_one() {
        assert_eq!(format(FormatName::Png, None), Ok(ImageFormat::Png));
        assert_eq!(format(FormatName::Webp, None), Ok(ImageFormat::Webp { quality: None }));
        assert_eq!(format(FormatName::Jpeg, None), Ok(ImageFormat::Jpeg { quality: 90 }));
        for (name, quality) in [(FormatName::Png, 50), (FormatName::Jpeg, 0), (FormatName::Webp, 101)] {
            assert_eq!(refused_field(&format(name, Some(quality)).unwrap_err()), "quality");
        }
    }
}
