//! The fields of `POST /v1/images`, which batches and the other dialects share.

use darkroom_pipelines::FlowShift;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::http::guides::{BackgroundName, ControlRequest, DetailRequest, LoraRequest};
use crate::http::speed::SpeedBody;
use crate::http::submit::PriorityName;

/// Pictures to draw. Everything but the prompt may be left out; what is left out suits the model.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ImagesRequest {
    /// What to draw, in ComfyUI's prompt syntax: `(red hat:1.2)` weighs more.
    #[schema(examples("1girl, blonde hair, blue eyes, gentle smile"))]
    pub(in crate::http) prompt: String,
    /// What to stay away from.
    pub(in crate::http) negative_prompt: Option<String>,
    /// A model's id, as GET /v1/models lists them.
    pub(in crate::http) model: Option<String>,
    /// Pixels in a row, a multiple of 8.
    #[schema(minimum = 16, multiple_of = 8)]
    pub(in crate::http) width: Option<u32>,
    /// Rows of pixels, a multiple of 8.
    #[schema(minimum = 16, multiple_of = 8)]
    pub(in crate::http) height: Option<u32>,
    /// Sampling steps.
    #[schema(minimum = 1)]
    pub(in crate::http) steps: Option<u32>,
    /// Classifier-free guidance scale.
    #[schema(minimum = 0, maximum = 100)]
    pub(in crate::http) cfg: Option<f64>,
    /// ComfyUI's name of a sampler: `dpmpp_2m`.
    pub(in crate::http) sampler: Option<String>,
    /// ComfyUI's name of a scheduler: `karras`.
    pub(in crate::http) scheduler: Option<String>,
    /// Seed of the first picture; each next one is one higher. Drawn at random if it is left out.
    #[schema(format = "uint64")]
    pub(in crate::http) seed: Option<u64>,
    /// How many pictures.
    #[schema(minimum = 1, default = 1)]
    pub(in crate::http) count: Option<u32>,
    /// Text-encoder layer from the end.
    #[schema(minimum = 1, maximum = 32)]
    pub(in crate::http) clip_skip: Option<u32>,
    /// A picture to start from: base64, a data URL or an http(s) address. It is scaled and cut to width and height.
    pub(in crate::http) init_image: Option<String>,
    /// What to repaint of init_image: white repaints, black keeps. Given like init_image.
    pub(in crate::http) mask: Option<String>,
    /// How the masked part starts. Without a mask, the transparent part of init_image is repainted.
    pub(in crate::http) inpaint_mode: Option<InpaintMode>,
    /// Pixels that the mask grows with inpaint_mode "fill".
    #[schema(maximum = 64, default = 6)]
    pub(in crate::http) grow_mask: Option<u32>,
    /// How much of init_image changes: 0 nothing, 1 all. Default: 0.75, with a mask 1.
    #[schema(minimum = 0, maximum = 1)]
    pub(in crate::http) denoise: Option<f64>,
    /// LoRAs, applied in this order.
    #[schema(max_items = 8)]
    pub(in crate::http) loras: Option<Vec<LoraRequest>>,
    /// ControlNets; their effects add up.
    #[schema(max_items = 4)]
    pub(in crate::http) controls: Option<Vec<ControlRequest>>,
    /// What is given up of exactness for speed.
    pub(in crate::http) speed: Option<SpeedBody>,
    /// How far noise levels are moved up, of models that predict a flow (Qwen-Image): a number above 0, 3 if it is left
    /// out, or "dynamic": the further the larger the picture is.
    pub(in crate::http) shift: Option<ShiftBody>,
    /// Faces, or places of your choice, are drawn once more, larger.
    pub(in crate::http) detail: Option<DetailRequest>,
    /// What becomes of the background. Transparency needs PNG or WebP.
    pub(in crate::http) background: Option<BackgroundName>,
    /// How the file is written.
    pub(in crate::http) format: Option<FormatName>,
    /// Of "webp" and "jpeg". WebP without a quality is lossless.
    #[schema(minimum = 1, maximum = 100)]
    pub(in crate::http) quality: Option<u8>,
    /// Whether the file carries these settings.
    #[schema(default = true)]
    pub(in crate::http) metadata: Option<bool>,
    /// How soon.
    pub(in crate::http) priority: Option<PriorityName>,
    /// Whom to tell when the task is final.
    pub(in crate::http) webhook_url: Option<String>,
    /// With `?wait=true`: take the task back when the client goes away.
    #[schema(default = false)]
    pub(in crate::http) cancel_on_disconnect: Option<bool>,
}

/// How far noise levels are moved up.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a number above 0, or \"dynamic\"")]
pub(in crate::http) enum ShiftBody {
    /// So far for every size.
    Fixed(f64),
    /// A rule.
    Named(ShiftName),
}

/// A rule for how far noise levels are moved up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::http) enum ShiftName {
    /// The further the larger the picture is.
    Dynamic,
}

impl From<ShiftBody> for FlowShift {
    fn from(body: ShiftBody) -> Self {
        match body {
            ShiftBody::Fixed(shift) => Self::Fixed(shift),
            ShiftBody::Named(ShiftName::Dynamic) => Self::Dynamic,
        }
    }
}

/// What the network sees under the mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::http) enum InpaintMode {
    /// The picture itself: for changes.
    NoiseMask,
    /// Grey: for replacing.
    Fill,
}

/// How the file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::http) enum FormatName {
    /// Lossless.
    #[default]
    Png,
    /// Lossless, or with a quality lossy.
    Webp,
    /// Lossy.
    Jpeg,
}
