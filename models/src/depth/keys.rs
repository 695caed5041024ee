//! The names of Depth Anything V2's tensors: its authors' ones are brought to transformers'.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Device;

use crate::weights::{Stored, Transform, WeightFile, Weights};

/// Tensors that are in the files and that no picture needs: the mask of training, and the coarsest level's unit for a
/// second input, which it does not have.
const UNUSED: &[&str] = &["backbone.embeddings.mask_token", "neck.fusion_stage.layers.0.residual_layer1."];

/// The tensors of `file` under transformers' names; names that are not known stay as they are.
pub(super) fn canonical(file: &Arc<WeightFile>, device: &Device) -> Weights {
    let mut tensors = BTreeMap::new();
    for (stored, info) in &file.header().tensors {
        let mut put = |name: String, transform| {
            if !UNUSED.iter().any(|unused| name.starts_with(unused)) {
                tensors.insert(name, Stored { file: file.clone(), name: stored.clone(), transform });
            }
        };
        if let Some((before, after)) = stored.split_once(".attn.qkv.") {
            let len = info.shape.first().map_or(0, |rows| rows / 3);
            for (i, part) in ["query", "key", "value"].into_iter().enumerate() {
                let name = format!("{before}.attention.attention.{part}.{after}");
                put(renamed(&name), Transform::Rows { start: i * len, len });
            }
        } else {
            put(renamed(stored), Transform::None);
        }
    }
    Weights::new(file.name(), tensors, device)
}

/// transformers' name for the authors' one.
fn renamed(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("pretrained.") {
        return backbone(rest);
    }
    if let Some(new) = name.strip_prefix("depth_head.").and_then(head) {
        return new;
    }
    name.to_owned()
}

fn backbone(rest: &str) -> String {
    if let Some((layer, part)) = rest.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
        let part = part
            .replacen("attn.proj.", "attention.output.dense.", 1)
            .replacen("ls1.gamma", "layer_scale1.lambda1", 1)
            .replacen("ls2.gamma", "layer_scale2.lambda1", 1)
            .replacen("mlp.w12.", "mlp.weights_in.", 1)
            .replacen("mlp.w3.", "mlp.weights_out.", 1);
        return format!("backbone.encoder.layer.{layer}.{part}");
    }
    if let Some(part) = rest.strip_prefix("norm.") {
        return format!("backbone.layernorm.{part}");
    }
    let part = rest.replacen("pos_embed", "position_embeddings", 1).replacen(
        "patch_embed.proj.",
        "patch_embeddings.projection.",
        1,
    );
    format!("backbone.embeddings.{part}")
}

fn head(rest: &str) -> Option<String> {
    let level = |rest: &str, kind: &str| {
        let (level, part) = rest.split_once('.')?;
        Some(format!("neck.reassemble_stage.layers.{level}.{kind}.{part}"))
    };
    if let Some(rest) = rest.strip_prefix("projects.") {
        return level(rest, "projection");
    }
    if let Some(rest) = rest.strip_prefix("resize_layers.") {
        return level(rest, "resize");
    }
    let rest = rest.strip_prefix("scratch.")?;
    for (old, new) in [("output_conv1.", "conv1"), ("output_conv2.0.", "conv2"), ("output_conv2.2.", "conv3")]
    {
        if let Some(part) = rest.strip_prefix(old) {
            return Some(format!("head.{new}.{part}"));
        }
    }
    if let Some(rest) = rest.strip_prefix("refinenet") {
        // Theirs are counted from the finest level, transformers' from the coarsest.
        let (level, part) = rest.split_once('.')?;
        let layer = 4usize.checked_sub(level.parse().ok()?)?;
        let part = part.replacen("out_conv.", "projection.", 1);
        let part = part.replacen("resConfUnit", "residual_layer", 1).replacen(".conv", ".convolution", 1);
        return Some(format!("neck.fusion_stage.layers.{layer}.{part}"));
    }
    let (level, part) = rest.strip_prefix("layer")?.split_once("_rn.")?;
    let level = level.parse::<usize>().ok()?.checked_sub(1)?;
    Some(format!("neck.convs.{level}.{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_counted_from_the_other_end() {
        assert_eq!(
            renamed("depth_head.scratch.refinenet4.resConfUnit2.conv1.weight"),
            "neck.fusion_stage.layers.0.residual_layer2.convolution1.weight"
        );
        assert_eq!(
            renamed("depth_head.scratch.refinenet1.out_conv.bias"),
            "neck.fusion_stage.layers.3.projection.bias"
        );
        assert_eq!(renamed("depth_head.scratch.layer1_rn.weight"), "neck.convs.0.weight");
    }

    #[test]
    fn a_strange_name_is_left_as_it_is() {
        for name in [
            "depth_head.scratch.refinenet9.out_conv.bias",
            "depth_head.scratch.layer0_rn.weight",
            "depth_head.",
            "",
            "depth_head.scratch.refinenet.x",
        ] {
            assert_eq!(renamed(name), name);
        }
    }
}
