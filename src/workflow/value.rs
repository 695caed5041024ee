//! What travels along the links of a workflow. Models, text encoders and VAEs travel by name: the engine keeps their
//! weights, and a node borrows them while it runs.

use std::sync::Arc;

use darkroom_pipelines::Area;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::Prediction;
use serde_json::Value as Json;

use super::image::{Image, Mask};
use super::latent::Latent;
use crate::task::LoraSpec;

/// The type of a socket: ComfyUI's name of it. `*` fits every type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind(&'static str);

#[allow(missing_docs, reason = "each is ComfyUI's own name")]
impl Kind {
    pub const ANY: Self = Self("*");
    pub const BOOLEAN: Self = Self("BOOLEAN");
    pub const CLIP: Self = Self("CLIP");
    pub const CLIP_VISION: Self = Self("CLIP_VISION");
    pub const CONDITIONING: Self = Self("CONDITIONING");
    pub const CONTROL_NET: Self = Self("CONTROL_NET");
    pub const FLOAT: Self = Self("FLOAT");
    pub const GUIDER: Self = Self("GUIDER");
    pub const IMAGE: Self = Self("IMAGE");
    pub const INT: Self = Self("INT");
    pub const LATENT: Self = Self("LATENT");
    pub const MASK: Self = Self("MASK");
    pub const MODEL: Self = Self("MODEL");
    pub const NOISE: Self = Self("NOISE");
    pub const SAMPLER: Self = Self("SAMPLER");
    pub const SIGMAS: Self = Self("SIGMAS");
    pub const STRING: Self = Self("STRING");
    pub const STYLE_MODEL: Self = Self("STYLE_MODEL");
    pub const UPSCALE_MODEL: Self = Self("UPSCALE_MODEL");
    pub const VAE: Self = Self("VAE");

    /// A type of an extension.
    pub const fn other(name: &'static str) -> Self {
        Self(name)
    }

    /// ComfyUI's name.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// Whether what comes out of a socket of type `from` may go into one of this type (ComfyUI's
    /// `validate_node_input`): the same name, a wildcard on either side, or a name that lists `A,B` have in common.
    pub fn accepts(self, from: Self) -> bool {
        let any = |kind: Self| kind.0 == "*";
        let parts = |kind: Self| kind.0.split(',').map(str::trim);
        any(self) || any(from) || parts(from).any(|part| parts(self).any(|own| own == part))
    }
}

/// The engine's name of the networks behind a value: a checkpoint's id in the catalog, or a part's
/// ([`crate::catalog::PartKind::id`]).
pub type Origin = Arc<str>;

/// A model to denoise with: what `MODEL` sockets carry.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Where its network comes from.
    pub origin: Origin,
    /// LoRAs in the order they were applied; only `strength` counts here.
    pub loras: Vec<LoraSpec>,
    /// What it predicts and its noise levels, where a node said otherwise than its file.
    pub sampling: Option<SamplingChange>,
    /// `RescaleCFG`'s multiplier.
    pub rescale_cfg: Option<f64>,
    /// Strengths of `CFGNorm`, in the order they were applied.
    pub cfg_norms: Vec<f64>,
    /// `FreeU_V2`'s `[b1, b2, s1, s2]`, in the order they were applied.
    pub free_u: Vec<[f64; 4]>,
    /// `DifferentialDiffusion`'s strength.
    pub differential: Option<f64>,
}

impl Model {
    /// A model as its file has it.
    pub fn new(origin: Origin) -> Self {
        Self {
            origin,
            loras: Vec::new(),
            sampling: None,
            rescale_cfg: None,
            cfg_norms: Vec::new(),
            free_u: Vec::new(),
            differential: None,
        }
    }
}

/// What a network is taken to predict, and at which noise levels; the last node that says so counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SamplingChange {
    /// `ModelSamplingDiscrete`.
    Discrete {
        /// What the network predicts.
        prediction: Prediction,
        /// Whether the schedule ends in pure noise (zero terminal SNR).
        zero_snr: bool,
    },
    /// `ModelSamplingSD3` and `ModelSamplingAuraFlow`.
    Flow {
        /// How far noise levels are moved up, above 0.
        shift: f64,
        /// What the network is told of noise alone.
        multiplier: f64,
    },
}

/// Text encoders: what `CLIP` sockets carry.
#[derive(Debug, Clone, PartialEq)]
pub struct Clip {
    /// Where they come from.
    pub origin: Origin,
    /// LoRAs in the order they were applied; only `text_strength` counts here.
    pub loras: Vec<LoraSpec>,
    /// `CLIPSetLastLayer`'s -1 (last) to -24; `None`: the model's own.
    pub last_layer: Option<i32>,
}

/// A VAE: what `VAE` sockets carry.
#[derive(Debug, Clone, PartialEq)]
pub struct Vae {
    /// Where it comes from.
    pub origin: Origin,
}

/// A ControlNet: what `CONTROL_NET` sockets carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlNet {
    /// Its id in the catalog.
    pub name: Arc<str>,
    /// `SetUnionControlNetType`'s choice.
    pub union_type: Option<String>,
}

/// A prompt as the network takes it, and where and when it counts: one entry of a `CONDITIONING`.
#[derive(Debug, Clone)]
pub struct Cond {
    /// The encoded prompt, on the CPU.
    pub text: darkroom_pipelines::Conditioning,
    /// `CLIPTextEncodeSDXL`'s `[height, width, crop_h, crop_w, target_height, target_width]`; `None`: the latent's
    /// own size.
    pub size_ids: Option<[f32; 6]>,
    /// Where it counts; `None`: everywhere.
    pub area: Option<Area>,
    /// How much it counts beside others.
    pub strength: f64,
    /// Where it counts, softly.
    pub mask: Option<CondMask>,
    /// Shares of the schedule between which it counts (`ConditioningSetTimestepRange`).
    pub range: Option<(f64, f64)>,
    /// ControlNets, in the order they were applied.
    pub controls: Vec<CondControl>,
    /// Whether they act on the negative prompt as well, where it has none of its own (`ControlNetApply`).
    pub controls_both: bool,
    /// `InpaintModelConditioning`'s source (`concat_latent_image`, `concat_mask`), for models that take them.
    pub inpaint: Option<Arc<Latent>>,
}

impl Cond {
    /// A prompt that counts everywhere and always.
    pub fn new(text: darkroom_pipelines::Conditioning) -> Self {
        Self {
            text,
            size_ids: None,
            area: None,
            strength: 1.0,
            mask: None,
            range: None,
            controls: Vec::new(),
            controls_both: false,
            inpaint: None,
        }
    }
}

/// A mask over the picture.
#[derive(Debug, Clone)]
pub struct CondMask {
    /// 1 where it counts.
    pub mask: Mask,
    /// `mask_strength`.
    pub strength: f64,
    /// `set_cond_area: mask bounds`: only the mask's box goes through the network.
    pub bounds: bool,
}

/// A ControlNet with its picture.
#[derive(Debug, Clone)]
pub struct CondControl {
    /// Which.
    pub net: ControlNet,
    /// The picture that steers it; the first of a batch, or one for each sample.
    pub image: Image,
    /// What its residuals are multiplied by.
    pub strength: f64,
    /// Share of the schedule at which it begins.
    pub start: f64,
    /// Share of the schedule at which it ends.
    pub end: f64,
}

/// What `GUIDER` sockets carry.
#[derive(Debug, Clone)]
pub struct Guider {
    /// The model.
    pub model: Model,
    /// What to draw.
    pub positive: Arc<Vec<Cond>>,
    /// What to stay away from; `None`: no guidance (`BasicGuider`).
    pub negative: Option<Arc<Vec<Cond>>>,
    /// Guidance scale.
    pub cfg: f64,
}

/// What `NOISE` sockets carry: a seed, or no noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise {
    /// Noise of a seed.
    Seed(u64),
    /// None at all.
    Disabled,
}

/// One value on a link.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Value {
    /// `MODEL`.
    Model(Model),
    /// `CLIP`.
    Clip(Clip),
    /// `VAE`.
    Vae(Vae),
    /// `CONDITIONING`.
    Conditioning(Arc<Vec<Cond>>),
    /// `LATENT`.
    Latent(Arc<Latent>),
    /// `IMAGE`.
    Image(Image),
    /// `MASK`.
    Mask(Mask),
    /// `CONTROL_NET`.
    ControlNet(ControlNet),
    /// `UPSCALE_MODEL`, by its file's name in `upscale_models/`.
    UpscaleModel(Arc<str>),
    /// `SAMPLER`.
    Sampler(SamplerKind),
    /// `SIGMAS`.
    Sigmas(Arc<[f32]>),
    /// `GUIDER`.
    Guider(Arc<Guider>),
    /// `NOISE`.
    Noise(Noise),
    /// `INT`; Python's are unbounded, these hold any 64 bits of either sign.
    Int(i128),
    /// `FLOAT`.
    Float(f64),
    /// `STRING`, and choices of a list.
    String(Arc<str>),
    /// `BOOLEAN`.
    Boolean(bool),
    /// `LORA_STACK`: LoRAs that are not applied yet.
    LoraStack(Vec<LoraSpec>),
    /// A detector of faces or other things, by its file's name (`BBOX_DETECTOR`, `SEGM_DETECTOR`).
    Detector(Arc<str>),
    /// What a node that takes lists whole (`Interface::takes_lists`) gets for each input.
    List(Vec<Self>),
    /// Plain data: inputs that are objects or lists, and what has no other type.
    Json(Json),
    /// Nothing (Python's `None`).
    None,
}

impl Value {
    /// Bytes of memory that it holds; the smallest ones count a little, so that nothing is free.
    pub fn bytes(&self) -> usize {
        const LEAST: usize = 64;
        let own = match self {
            Self::Image(image) => image.bytes(),
            Self::Mask(mask) => mask.bytes(),
            Self::Latent(latent) => latent.bytes(),
            Self::Conditioning(conds) => conds.iter().map(Cond::bytes).sum(),
            Self::Guider(guider) => {
                let negative = guider.negative.iter().flat_map(|conds| conds.iter());
                guider.positive.iter().chain(negative).map(Cond::bytes).sum()
            }
            Self::Sigmas(sigmas) => size_of_val(&**sigmas),
            Self::String(text) => text.len(),
            Self::Json(json) => json.to_string().len(),
            Self::List(values) => values.iter().map(Self::bytes).sum(),
            _ => 0,
        };
        own + LEAST
    }
}

impl Cond {
    /// Bytes of memory that it holds.
    pub fn bytes(&self) -> usize {
        let floats = self.text.context.elem_count()
            + self.text.pooled.as_ref().map_or(0, candle_core::Tensor::elem_count);
        let controls: usize = self.controls.iter().map(|control| control.image.bytes()).sum();
        let inpaint = self.inpaint.as_ref().map_or(0, |latent| latent.bytes());
        4 * floats + controls + inpaint + self.mask.as_ref().map_or(0, |mask| mask.mask.bytes())
    }
}
