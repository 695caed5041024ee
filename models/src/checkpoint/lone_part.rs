//! Networks in files of their own, as ComfyUI's split loaders take them: a UNet (`diffusion_models/`), text encoders
//! (`text_encoders/`), a VAE (`vae/`), under ldm, diffusers, transformers or OpenCLIP names, with or without the
//! prefixes that whole checkpoints have.

use std::sync::Arc;

use candle_core::Device;

use super::keys::is_clip_buffer;
use super::kind::{self, SD15_CLIP, SDXL_CLIP_G, SDXL_CLIP_L, UNET, VAE, unet_kind};
use super::single_file::open_with;
use super::{CheckpointError, CheckpointParts, ModelKind, Part};
use crate::weights::{Header, WeightFile};

/// Width of OpenCLIP bigG's hidden states, which tells it from CLIP-L.
const CLIP_G_WIDTH: usize = 1280;

impl CheckpointParts {
    /// Opens a UNet alone.
    ///
    /// # Errors
    /// When the file holds none of Stable Diffusion 1.5's or SDXL's shape.
    pub fn unet_alone(file: &Arc<WeightFile>, device: &Device) -> Result<Self, CheckpointError> {
        let header = file.header();
        let has = |prefix: &str| {
            header.tensors.keys().any(|name| name.strip_prefix(UNET).unwrap_or(name).starts_with(prefix))
        };
        let known = has("input_blocks.") || (has("down_blocks.") && has("time_embedding."));
        if !known {
            return Err(refused(file, "a UNet"));
        }
        let context = header.tensors.iter().find(|(name, _)| name.ends_with(".attn2.to_k.weight"));
        let context = context.and_then(|(_, info)| info.shape.get(1).copied());
        let kind = unet_kind(context, has("label_emb.") || has("add_embedding."));
        let (_, layout) = kind::classify(header);
        open_with(file, device, (kind, layout), &|name| {
            let inner = name.strip_prefix(UNET).unwrap_or(name);
            (!is_of_another(name, UNET)).then_some((Part::UNet, inner))
        })
    }

    /// Opens a VAE alone. Its latents are in its own units: what a model multiplies them by is the model's matter.
    ///
    /// # Errors
    /// When the file holds none.
    pub fn vae_alone(file: &Arc<WeightFile>, device: &Device) -> Result<Self, CheckpointError> {
        let has = |prefix: &str| {
            file.header()
                .tensors
                .keys()
                .any(|name| name.strip_prefix(VAE).unwrap_or(name).starts_with(prefix))
        };
        if !has("decoder.conv_in.") || !has("encoder.conv_in.") {
            return Err(refused(file, "a VAE (encoder and decoder)"));
        }
        let (_, layout) = kind::classify(file.header());
        open_with(file, device, (ModelKind::Sdxl, layout), &|name| {
            let inner = name.strip_prefix(VAE).unwrap_or(name);
            (!is_of_another(name, VAE)).then_some((Part::Vae, inner))
        })
    }

    /// Opens text encoders: one file for Stable Diffusion 1.5, two for SDXL, in any order.
    ///
    /// # Errors
    /// When a file holds none, or both hold the same.
    pub fn text_encoders(files: &[Arc<WeightFile>], device: &Device) -> Result<Self, CheckpointError> {
        match files {
            [only] => text_encoder(only, Part::ClipL, ModelKind::Sd15, device),
            [first, second] => {
                // Of unusual widths, the first is CLIP-L.
                let swapped = is_clip_g(first.header()) && !is_clip_g(second.header());
                let (l, g) = if swapped { (second, first) } else { (first, second) };
                let l = text_encoder(l, Part::ClipL, ModelKind::Sdxl, device)?;
                let g = text_encoder(g, Part::ClipG, ModelKind::Sdxl, device)?;
                let origin = format!("{} and {}", l.origin, g.origin);
                Ok(Self { clip_g: g.clip_g, origin, stray: [l.stray, g.stray].concat(), ..l })
            }
            _ => Err(CheckpointError::Unsupported {
                origin: files.iter().map(|file| file.name()).collect::<Vec<_>>().join(", "),
                reason: "one text encoder (Stable Diffusion 1.5) or two (SDXL) can be used together".into(),
            }),
        }
    }
}

fn text_encoder(
    file: &Arc<WeightFile>,
    part: Part,
    kind: ModelKind,
    device: &Device,
) -> Result<CheckpointParts, CheckpointError> {
    let (found, layout) = kind::classify(file.header());
    if !matches!(found, ModelKind::ClipL | ModelKind::ClipG) {
        return Err(refused(file, "a CLIP text encoder"));
    }
    let prefixes = [SDXL_CLIP_L, SDXL_CLIP_G, SD15_CLIP];
    open_with(file, device, (kind, layout), &|name| {
        let inner = prefixes.into_iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        (!is_clip_buffer(inner)).then_some((part, inner))
    })
}

/// By the width of the token table, under any of its names.
fn is_clip_g(header: &Header) -> bool {
    header.tensors.iter().any(|(name, info)| {
        name.ends_with("token_embedding.weight") && info.shape.get(1) == Some(&CLIP_G_WIDTH)
    })
}

/// Whether a name belongs to another network of a whole checkpoint.
fn is_of_another(name: &str, own: &str) -> bool {
    [UNET, VAE, SDXL_CLIP_L, SDXL_CLIP_G, SD15_CLIP]
        .into_iter()
        .any(|prefix| prefix != own && name.starts_with(prefix))
}

fn refused(file: &WeightFile, wanted: &str) -> CheckpointError {
    let (kind, layout) = kind::classify(file.header());
    CheckpointError::Unsupported {
        origin: file.name().to_owned(),
        reason: format!("it is {kind} ({layout}), and {wanted} was wanted"),
    }
}
