//! What a weight file is, told by the names in its header (and a few widths, where names are shared).

use std::fmt;

use serde::Serialize;

use super::keys;
use crate::weights::Header;

/// Kinds of models that are recognised. [`ModelKind::Sdxl`], [`ModelKind::Sd15`] and [`ModelKind::QwenImage`] can be
/// drawn with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelKind {
    /// Stable Diffusion XL base and its finetunes.
    Sdxl,
    /// Stable Diffusion 1.x and its finetunes.
    Sd15,
    /// The SDXL refiner.
    SdxlRefiner,
    /// Stable Diffusion 2.x.
    Sd2,
    /// Flux.
    Flux,
    /// Qwen-Image.
    QwenImage,
    /// Qwen2.5-VL alone, which is Qwen-Image's text encoder.
    QwenVl,
    /// Qwen-Image's autoencoder alone, which is Wan 2.1's.
    QwenImageVae,
    /// An autoencoder alone.
    Vae,
    /// The CLIP-L text encoder alone.
    ClipL,
    /// The OpenCLIP bigG text encoder alone.
    ClipG,
    /// A ControlNet.
    ControlNet,
    /// A LoRA or one of its relatives.
    Lora,
    /// An ESRGAN-style upscaler.
    Upscaler,
    /// None of these.
    Unknown,
}

impl ModelKind {
    /// The parts that make a complete checkpoint of this kind; none for kinds that are not checkpoints.
    pub fn parts(self) -> &'static [Part] {
        match self {
            Self::Sdxl => &[Part::UNet, Part::Vae, Part::ClipL, Part::ClipG],
            Self::Sd15 => &[Part::UNet, Part::Vae, Part::ClipL],
            Self::QwenImage => &[Part::Transformer, Part::Vae, Part::QwenVl],
            _ => &[],
        }
    }
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sdxl => "an SDXL base model",
            Self::Sd15 => "a Stable Diffusion 1.5 model",
            Self::SdxlRefiner => "an SDXL refiner",
            Self::Sd2 => "a Stable Diffusion 2.x model",
            Self::Flux => "a Flux model",
            Self::QwenImage => "a Qwen-Image model",
            Self::QwenVl => "a Qwen2.5-VL text encoder alone",
            Self::QwenImageVae => "a Qwen-Image autoencoder (VAE) alone",
            Self::Vae => "an autoencoder (VAE) alone",
            Self::ClipL => "a CLIP-L text encoder alone",
            Self::ClipG => "an OpenCLIP bigG text encoder alone",
            Self::ControlNet => "a ControlNet",
            Self::Lora => "a LoRA",
            Self::Upscaler => "an upscaler (ESRGAN)",
            Self::Unknown => "an unknown kind of model",
        })
    }
}

/// How a model's tensors are named and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Layout {
    /// One file with ldm/sgm names (`model.diffusion_model.…`).
    Ldm,
    /// One file with diffusers' names.
    Diffusers,
    /// A diffusers folder (`model_index.json`, `unet/`, …).
    DiffusersFolder,
    /// transformers' names.
    Transformers,
    /// OpenCLIP's names.
    OpenClip,
    /// kohya's LoRA names (`lora_unet_…lora_down.weight`).
    Kohya,
    /// PEFT's LoRA names (`….lora_A.weight`).
    Peft,
    /// Anything else.
    Other,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ldm => "ldm names",
            Self::Diffusers => "diffusers names",
            Self::DiffusersFolder => "diffusers folder",
            Self::Transformers => "transformers names",
            Self::OpenClip => "OpenCLIP names",
            Self::Kohya => "kohya names",
            Self::Peft => "PEFT names",
            Self::Other => "own names",
        })
    }
}

/// The networks that a checkpoint is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The denoiser.
    UNet,
    /// The autoencoder.
    Vae,
    /// The first (or only) text encoder.
    ClipL,
    /// SDXL's second text encoder.
    ClipG,
    /// Qwen-Image's denoiser.
    Transformer,
    /// Qwen-Image's text encoder.
    QwenVl,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UNet => "UNet",
            Self::Vae => "VAE",
            Self::ClipL => "text encoder (CLIP-L)",
            Self::ClipG => "second text encoder (OpenCLIP bigG)",
            Self::Transformer => "transformer",
            Self::QwenVl => "text encoder (Qwen2.5-VL)",
        })
    }
}

/// What single files keep each part's tensors under.
pub(super) const UNET: &str = "model.diffusion_model.";
pub(super) const VAE: &str = "first_stage_model.";
pub(super) const SDXL_CLIP_L: &str = "conditioner.embedders.0.transformer.";
pub(super) const SDXL_CLIP_G: &str = "conditioner.embedders.1.model.";
pub(super) const SD15_CLIP: &str = "cond_stage_model.transformer.";
const REFINER_CLIP: &str = "conditioner.embedders.0.model.";
const SD2_CLIP: &str = "cond_stage_model.model.";

/// What kind of model `header` describes, and how its tensors are named.
pub(crate) fn classify(header: &Header) -> (ModelKind, Layout) {
    let has = |prefix: &str| {
        let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
        header.tensors.range::<str, _>(from).next().is_some_and(|(name, _)| name.starts_with(prefix))
    };
    let contains = |part: &str| header.tensors.keys().any(|name| name.contains(part));
    // LoRAs first: their names contain the names of the networks they change.
    if let Some(name) = header.tensors.keys().find(|name| crate::lora::is_lora_tensor(name)) {
        let peft = contains(".lora_A") || contains(".lora_B");
        let kohya = name.starts_with("lora_") || name.starts_with("lycoris_");
        let layout = match (peft, kohya) {
            (true, _) => Layout::Peft,
            (false, true) => Layout::Kohya,
            (false, false) => Layout::Diffusers,
        };
        return (ModelKind::Lora, layout);
    }
    let controlnet = [
        "controlnet_cond_embedding.",
        "controlnet_down_blocks.",
        "controlnet_blocks.",
        "controlnet_x_embedder.",
    ];
    if controlnet.into_iter().any(has) {
        return (ModelKind::ControlNet, Layout::Diffusers);
    }
    if has("control_model.") || has("input_hint_block.") {
        return (ModelKind::ControlNet, Layout::Ldm);
    }
    if has("model.diffusion_model.double_blocks.") || has("double_blocks.") {
        return (ModelKind::Flux, Layout::Ldm);
    }
    if has("transformer_blocks.0.img_mod.") || has("model.diffusion_model.transformer_blocks.0.img_mod.") {
        return (ModelKind::QwenImage, Layout::Diffusers);
    }
    if has("single_transformer_blocks.") {
        return (ModelKind::Flux, Layout::Diffusers);
    }
    if has(REFINER_CLIP) {
        return (ModelKind::SdxlRefiner, Layout::Ldm);
    }
    if has(SDXL_CLIP_L) || has(SDXL_CLIP_G) {
        return (ModelKind::Sdxl, Layout::Ldm);
    }
    if has(SD2_CLIP) {
        return (ModelKind::Sd2, Layout::Ldm);
    }
    if has(SD15_CLIP) {
        return (ModelKind::Sd15, Layout::Ldm);
    }
    if has("model.diffusion_model.input_blocks.") {
        let label = has("model.diffusion_model.label_emb.");
        return (unet_kind(context_width(header), label), Layout::Ldm);
    }
    if has("down_blocks.") && has("time_embedding.") {
        return (unet_kind(context_width(header), has("add_embedding.")), Layout::Diffusers);
    }
    if let Some(found) = lone_part(header, &has) {
        return found;
    }
    if has("body.0.rdb1.conv1.") || has("RRDB_trunk.") || has("model.1.sub.0.RDB1.") || has("body.0.weight") {
        return (ModelKind::Upscaler, Layout::Other);
    }
    (ModelKind::Unknown, Layout::Other)
}

/// One network without the rest.
fn lone_part(header: &Header, has: &impl Fn(&str) -> bool) -> Option<(ModelKind, Layout)> {
    if keys::is_vae_qwen(header.tensors.keys().map(|name| name.strip_prefix("vae.").unwrap_or(name))) {
        let wan = has("encoder.downsamples.") || has("vae.encoder.downsamples.");
        let layout = if wan { Layout::Other } else { Layout::Diffusers };
        return Some((ModelKind::QwenImageVae, layout));
    }
    // Qwen2's attention has biases, Llama's has none.
    let is_bias = |name: &String| name.ends_with("layers.0.self_attn.k_proj.bias");
    let of_language_model = |name: &String| matches!(keys::qwen_vl(name), keys::QwenVlKey::Text(_));
    if header.tensors.keys().any(|name| is_bias(name) && of_language_model(name))
        && header.tensors.keys().any(|name| name.ends_with("embed_tokens.weight"))
    {
        return Some((ModelKind::QwenVl, Layout::Transformers));
    }
    if has("decoder.up_blocks.") || has("decoder.mid_block.") {
        return Some((ModelKind::Vae, Layout::Diffusers));
    }
    if has("decoder.up.") || has("first_stage_model.decoder.") {
        return Some((ModelKind::Vae, Layout::Ldm));
    }
    if has("transformer.resblocks.") || has("model.transformer.resblocks.") {
        return Some((ModelKind::ClipG, Layout::OpenClip));
    }
    for prefix in ["text_model.", ""] {
        let first = format!("{prefix}encoder.layers.0.self_attn.q_proj.weight");
        if let Some(info) = header.tensors.get(&first) {
            let kind = if info.shape.first() == Some(&1280) { ModelKind::ClipG } else { ModelKind::ClipL };
            return Some((kind, Layout::Transformers));
        }
    }
    None
}

/// Width of what the UNet's cross-attention looks at.
fn context_width(header: &Header) -> Option<usize> {
    let (_, info) = header.tensors.iter().find(|(name, _)| name.ends_with(".attn2.to_k.weight"))?;
    info.shape.get(1).copied()
}

/// The kind of a UNet whose text encoders are not there to tell: by its context width and whether it has a
/// second conditioning.
pub(super) fn unet_kind(context: Option<usize>, addition: bool) -> ModelKind {
    match (context, addition) {
        (Some(1280), true) => ModelKind::SdxlRefiner,
        (Some(1024), _) => ModelKind::Sd2,
        (_, true) => ModelKind::Sdxl,
        (_, false) => ModelKind::Sd15,
    }
}
