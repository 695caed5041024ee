//! The autoencoder's names: ldm's `encoder.down.N.block.M` and `decoder.up.N.block.M` (counted from full
//! resolution on both sides) to diffusers' `encoder.down_blocks`, `decoder.up_blocks` (counted in running
//! order), and the attention's four spellings, where 1×1 convolutions became linear layers.

use super::{Mapped, indexed, joined};
use crate::weights::Transform;

/// Levels of the decoder, counted off the ldm names.
pub(crate) fn vae_levels<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names
        .filter_map(|name| indexed(name.strip_prefix("decoder.up.")?))
        .map(|(level, _)| level + 1)
        .max()
        .unwrap_or(0)
}

/// The canonical name of `name` (ldm's, or diffusers' of any age) in an autoencoder of `levels` levels.
pub(crate) fn vae(name: &str, levels: usize) -> Option<Mapped> {
    let (side, rest) = name.split_once('.')?;
    if !matches!(side, "encoder" | "decoder") {
        return None;
    }
    if let Some(rest) = rest.strip_prefix("norm_out.") {
        return Some(joined(format!("{side}.conv_norm_out."), rest));
    }
    for attention in ["mid.attn_1.", "mid_block.attentions.0."] {
        if let Some(rest) = rest.strip_prefix(attention) {
            return mid_attention(side, rest);
        }
    }
    if let Some(rest) = rest.strip_prefix("mid.block_") {
        let (number, rest) = indexed(rest)?;
        let number = number.checked_sub(1)?;
        return Some(residual(&format!("{side}.mid_block.resnets.{number}."), rest));
    }
    let (direction, sampler) = match side {
        "encoder" => ("down", "downsample"),
        _ => ("up", "upsample"),
    };
    let (level, rest) = indexed(rest.strip_prefix(direction)?.strip_prefix('.')?)?;
    let level = if side == "encoder" { level } else { levels.checked_sub(level + 1)? };
    let block = format!("{side}.{direction}_blocks.{level}.");
    if let Some(rest) = rest.strip_prefix("block.") {
        let (layer, rest) = indexed(rest)?;
        return Some(residual(&format!("{block}resnets.{layer}."), rest));
    }
    let rest = rest.strip_prefix(sampler)?.strip_prefix(".conv.")?;
    Some(joined(format!("{block}{sampler}rs.0.conv."), rest))
}

fn residual(prefix: &str, rest: &str) -> Mapped {
    match rest.strip_prefix("nin_shortcut.") {
        Some(rest) => joined(format!("{prefix}conv_shortcut."), rest),
        None => joined(prefix.into(), rest),
    }
}

fn mid_attention(side: &str, rest: &str) -> Option<Mapped> {
    let prefix = format!("{side}.mid_block.attentions.0.");
    let (layer, kind) = rest.rsplit_once('.')?;
    let canonical = match layer {
        "norm" | "group_norm" => return Some(joined(prefix, &format!("group_norm.{kind}"))),
        "q" | "query" | "to_q" => "to_q",
        "k" | "key" | "to_k" => "to_k",
        "v" | "value" | "to_v" => "to_v",
        "proj_out" | "proj_attn" | "to_out.0" => "to_out.0",
        _ => return None,
    };
    let transform = if kind == "weight" { Transform::Squeeze } else { Transform::None };
    Some((format!("{prefix}{canonical}.{kind}"), transform))
}
