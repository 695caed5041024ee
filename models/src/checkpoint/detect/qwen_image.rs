//! The shapes of Qwen-Image's transformer and of its autoencoder, read off their tensors.

use super::{Tensors, with_hint};
use crate::checkpoint::CheckpointError;
use crate::qwen_image::QwenImageConfig;
use crate::vae_qwen::QwenVaeConfig;
use crate::weights::Header;

/// The transformer's config. What its axes' shares of a head are does not show: real ones have heads of 128.
pub(in crate::checkpoint) fn qwen_image(
    tensors: &Tensors<'_>,
    header: &Header,
) -> Result<QwenImageConfig, CheckpointError> {
    const KEY: &str = "transformer_config";
    let said = tensors.metadata::<QwenImageConfig>(header, KEY)?;
    let [inner, in_channels] = tensors.need("img_in.weight")?;
    let [_, joint_attention_dim] = tensors.need("txt_in.weight")?;
    let [head] = tensors.need("transformer_blocks.0.attn.norm_q.weight")?;
    let num_layers = tensors.count(|index| format!("transformer_blocks.{index}.attn.norm_q.weight"));
    let base = said.clone().unwrap_or_default();
    let patch = base.patch_size * base.patch_size;
    let [out, _] = tensors.need("proj_out.weight")?;
    let detected = QwenImageConfig {
        in_channels,
        out_channels: out.checked_div(patch).unwrap_or(0),
        num_layers,
        attention_head_dim: head,
        num_attention_heads: inner.checked_div(head).unwrap_or(0),
        joint_attention_dim,
        ..base
    };
    detected.validate().map_err(|e| tensors.config_error(with_hint(e, KEY)))?;
    if let Some(said) = said {
        tensors.agree("the transformer's shape", &said, &detected)?;
    }
    Ok(detected)
}

/// The config of Qwen-Image's autoencoder; its latents' means and spreads are not in a file.
pub(in crate::checkpoint) fn vae_qwen(
    tensors: &Tensors<'_>,
    header: &Header,
) -> Result<QwenVaeConfig, CheckpointError> {
    let detected = QwenVaeConfig::from_shapes(|name| tensors.shape(name))
        .map_err(|reason| tensors.undetectable(reason))?;
    let Some(said) = tensors.metadata::<QwenVaeConfig>(header, "vae_config")? else { return Ok(detected) };
    let shapes = QwenVaeConfig {
        latents_mean: said.latents_mean.clone(),
        latents_std: said.latents_std.clone(),
        ..detected
    };
    tensors.agree("the autoencoder's shape", &said, &shapes)?;
    Ok(said)
}
