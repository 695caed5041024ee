//! The UNet's names: `input_blocks` / `middle_block` / `output_blocks` (ldm, sgm) to `down_blocks` /
//! `mid_block` / `up_blocks` (diffusers).
//!
//! `input_blocks.0` is the first convolution; then each level has its residual layers, each with its attention,
//! and a downsampler but for the last. `output_blocks` run the other way with one residual layer more a level,
//! the last of which carries the upsampler.

use super::{Mapped, indexed, joined};

/// Residual layers a level, counted off the ldm names; `None` without an ldm UNet.
pub(crate) fn layers_per_block<'a>(names: impl Iterator<Item = &'a str>) -> Option<usize> {
    let mut last = None;
    let mut first_downsampler: Option<usize> = None;
    for (index, rest) in names.filter_map(|name| indexed(name.strip_prefix("input_blocks.")?)) {
        last = last.max(Some(index));
        if rest.starts_with("0.op.") {
            first_downsampler = Some(first_downsampler.map_or(index, |first| first.min(index)));
        }
    }
    // One level alone has no downsampler: its layers are all there are.
    let layers = first_downsampler.map_or(last?, |index| index.saturating_sub(1));
    (layers > 0).then_some(layers)
}

/// The canonical name of ldm's `name` in a UNet with `layers` residual layers a level. Names that are
/// canonical already stay.
pub(crate) fn unet(name: &str, layers: usize) -> Option<Mapped> {
    if let Some(rest) = name.strip_prefix("input_blocks.") {
        return input(rest, layers);
    }
    if let Some(rest) = name.strip_prefix("output_blocks.") {
        return output(rest, layers);
    }
    if let Some(rest) = name.strip_prefix("middle_block.") {
        let (part, rest) = indexed(rest)?;
        return match part {
            0 => residual("mid_block.resnets.0.", rest),
            1 => Some(joined("mid_block.attentions.0.".into(), rest)),
            2 => residual("mid_block.resnets.1.", rest),
            _ => None,
        };
    }
    for (ldm, canonical) in [
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("label_emb.0.0.", "add_embedding.linear_1."),
        ("label_emb.0.2.", "add_embedding.linear_2."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
    ] {
        if let Some(rest) = name.strip_prefix(ldm) {
            return Some(joined(canonical.into(), rest));
        }
    }
    None
}

fn input(rest: &str, layers: usize) -> Option<Mapped> {
    let (block, rest) = indexed(rest)?;
    let (part, rest) = indexed(rest)?;
    let Some(position) = block.checked_sub(1) else {
        return (part == 0).then(|| joined("conv_in.".into(), rest));
    };
    let (level, layer) = (position / (layers + 1), position % (layers + 1));
    match part {
        0 if layer == layers => {
            let rest = rest.strip_prefix("op.")?;
            Some(joined(format!("down_blocks.{level}.downsamplers.0.conv."), rest))
        }
        0 => residual(&format!("down_blocks.{level}.resnets.{layer}."), rest),
        1 if layer < layers => Some(joined(format!("down_blocks.{level}.attentions.{layer}."), rest)),
        _ => None,
    }
}

fn output(rest: &str, layers: usize) -> Option<Mapped> {
    let (block, rest) = indexed(rest)?;
    let (part, rest) = indexed(rest)?;
    let (level, layer) = (block / (layers + 1), block % (layers + 1));
    // The upsampler is the part after the attention, or after the residual layer where there is none.
    if let Some(rest) = rest.strip_prefix("conv.") {
        return (part > 0).then(|| joined(format!("up_blocks.{level}.upsamplers.0.conv."), rest));
    }
    match part {
        0 => residual(&format!("up_blocks.{level}.resnets.{layer}."), rest),
        1 => Some(joined(format!("up_blocks.{level}.attentions.{layer}."), rest)),
        _ => None,
    }
}

fn residual(prefix: &str, rest: &str) -> Option<Mapped> {
    for (ldm, canonical) in [
        ("in_layers.0.", "norm1."),
        ("in_layers.2.", "conv1."),
        ("emb_layers.1.", "time_emb_proj."),
        ("out_layers.0.", "norm2."),
        ("out_layers.3.", "conv2."),
        ("skip_connection.", "conv_shortcut."),
    ] {
        if let Some(rest) = rest.strip_prefix(ldm) {
            return Some(joined(format!("{prefix}{canonical}"), rest));
        }
    }
    None
}
