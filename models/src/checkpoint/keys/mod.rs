//! Key maps: from the names that checkpoints use to the canonical ones (diffusers' `UNet2DConditionModel` and
//! `AutoencoderKL`, transformers' `CLIPTextModel` with its `text_model.` prefix). Computed from the networks'
//! structure, no tables of whole names. Names that a map does not know stay as they are: the network will not
//! take them, and `Weights::finish` names them.

mod clip;
mod controlnet;
mod qwen_vl;
mod unet;
mod vae;
mod vae_qwen;

pub(crate) use clip::clip;
pub(super) use clip::is_clip_buffer;
pub(super) use controlnet::{controlnet, last_hint_convolution};
pub(super) use qwen_vl::{QwenVlKey, qwen_vl};
pub(super) use unet::layers_per_block;
pub(crate) use unet::unet;
pub(super) use vae::{vae, vae_levels};
pub(super) use vae_qwen::{is_vae_qwen, vae_qwen, vae_qwen_res_blocks};

use crate::weights::Transform;

/// A canonical name, and what makes the stored tensor canonical.
pub(crate) type Mapped = (String, Transform);

/// Splits `12.rest` into the number and the rest.
fn indexed(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.split_once('.')?;
    // No signs, no leading zeros: one spelling a number, so that no two names map to one.
    let number = Some(number).filter(|n| n.len() < 4 && (n.len() == 1 || !n.starts_with('0')))?;
    Some((number.parse().ok()?, rest))
}

/// The residual block's own names, common to all spellings but the autoencoder's shortcut.
fn joined(prefix: String, rest: &str) -> Mapped {
    (prefix + rest, Transform::None)
}
