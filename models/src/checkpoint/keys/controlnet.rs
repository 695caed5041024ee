//! A ControlNet's names: the UNet's own (`input_blocks`, `middle_block`), and cldm's `input_hint_block`,
//! `zero_convs` and `middle_block_out` for what diffusers calls `controlnet_cond_embedding`,
//! `controlnet_down_blocks` and `controlnet_mid_block`.

use super::{Mapped, indexed, joined, unet};

/// The index of the last convolution of cldm's hint encoder, where every second module is an activation;
/// `None` without one.
pub(crate) fn last_hint_convolution<'a>(names: impl Iterator<Item = &'a str>) -> Option<usize> {
    names.filter_map(|name| indexed(name.strip_prefix("input_hint_block.")?)).map(|(index, _)| index).max()
}

/// The canonical name of cldm's `name` in a ControlNet with `layers` residual layers a level, whose hint
/// encoder ends at index `last_hint`. Names that are canonical already stay.
pub(crate) fn controlnet(name: &str, layers: usize, last_hint: usize) -> Option<Mapped> {
    if let Some(rest) = name.strip_prefix("input_hint_block.") {
        let (index, rest) = indexed(rest)?;
        let module = match index {
            0 => "conv_in".to_owned(),
            _ if index == last_hint => "conv_out".to_owned(),
            _ if index % 2 == 0 => format!("blocks.{}", index / 2 - 1),
            _ => return None,
        };
        return Some(joined(format!("controlnet_cond_embedding.{module}."), rest));
    }
    if let Some(rest) = name.strip_prefix("zero_convs.") {
        let (index, rest) = indexed(rest)?;
        return Some(joined(format!("controlnet_down_blocks.{index}."), rest.strip_prefix("0.")?));
    }
    if let Some(rest) = name.strip_prefix("middle_block_out.0.") {
        return Some(joined("controlnet_mid_block.".into(), rest));
    }
    unet(name, layers)
}
