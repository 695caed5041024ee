//! IS-Net: six residual U-blocks down, five up, and a picture of probabilities from the last.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::MattingError;
use super::blocks::{Conv3x3, Inside, Rsu, halved, joined, sized};
use crate::weights::{Header, Stored, Transform, WeightFile, Weights};

/// The blocks on the way down and their insides.
const DOWN: [(&str, Inside); 6] = [
    ("stage1", Inside::Halving(7)),
    ("stage2", Inside::Halving(6)),
    ("stage3", Inside::Halving(5)),
    ("stage4", Inside::Halving(4)),
    ("stage5", Inside::Dilated),
    ("stage6", Inside::Dilated),
];
/// The blocks on the way up.
const UP: [(&str, Inside); 5] = [
    ("stage5d", Inside::Dilated),
    ("stage4d", Inside::Halving(4)),
    ("stage3d", Inside::Halving(5)),
    ("stage2d", Inside::Halving(6)),
    ("stage1d", Inside::Halving(7)),
];
/// Tensors that only training uses: the coarser outputs, and a count in every normalisation.
const UNUSED_OUTPUTS: [&str; 5] = ["side2.", "side3.", "side4.", "side5.", "side6."];

/// The network, from pixels to probabilities.
#[derive(Debug, Clone)]
pub(super) struct IsNet {
    input: Conv3x3,
    down: Vec<Rsu>,
    up: Vec<Rsu>,
    output: Conv3x3,
}

impl IsNet {
    pub(super) fn load(file: &Arc<WeightFile>, device: &Device) -> std::result::Result<Self, MattingError> {
        if let Some(found) = other_network(file.header()) {
            return Err(MattingError::Kind { file: file.name().to_owned(), found });
        }
        let weights = used(file, device);
        let input = Conv3x3::load(&weights.scope("conv_in"), 3, 2)?;
        let mut channels = input.outputs();
        let mut down: Vec<Rsu> = Vec::with_capacity(DOWN.len());
        for (name, inside) in DOWN {
            let block = Rsu::load(&weights.scope(name), channels, inside)?;
            channels = block.outputs();
            down.push(block);
        }
        let mut up = Vec::with_capacity(UP.len());
        for ((name, inside), skip) in UP.into_iter().zip(down.iter().rev().skip(1)) {
            let block = Rsu::load(&weights.scope(name), channels + skip.outputs(), inside)?;
            channels = block.outputs();
            up.push(block);
        }
        let output = Conv3x3::load(&weights.scope("side1"), channels, 1)?;
        if output.outputs() != 1 {
            return Err(MattingError::Layout {
                file: file.name().to_owned(),
                reason: format!("'side1' gives {} values a pixel; one is needed", output.outputs()),
            });
        }
        weights.finish()?;
        Ok(Self { input, down, up, output })
    }

    /// `pixels: [b, h, w, 3]` of -0.5 to 0.5. Gives `[b, h, w, 1]`, the probability that a pixel is not background.
    pub(super) fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let (_, h, w, _) = pixels.dims4()?;
        let mut x = self.input.forward(pixels)?;
        let mut skips = Vec::with_capacity(self.down.len());
        for (i, block) in self.down.iter().enumerate() {
            if i > 0 {
                x = halved(&x)?;
            }
            x = block.forward(&x)?;
            skips.push(x.clone());
        }
        // The last block's output is where the way up begins.
        skips.pop();
        for block in &self.up {
            let Some(skip) = skips.pop() else { break };
            x = block.forward(&joined(&x, &skip)?)?;
        }
        let logits = sized(&self.output.forward(&x)?, h, w)?;
        (logits.neg()?.exp()? + 1.0)?.recip()
    }
}

/// What `header` is if it is no IS-Net.
fn other_network(header: &Header) -> Option<&'static str> {
    let has = |name: &str| header.tensors.contains_key(name);
    let begins = |prefix: &str| header.tensors.keys().any(|name| name.starts_with(prefix));
    if begins("bb.") && (begins("squeeze_module.") || begins("decoder.")) {
        return Some("this is a BiRefNet (such as RMBG-2.0)");
    }
    let blocks = has("stage1.rebnconvin.conv_s1.weight");
    if blocks && has("outconv.weight") && !has("conv_in.weight") {
        return Some("this is a U²-Net");
    }
    (!blocks || !has("conv_in.weight")).then_some("this is no IS-Net")
}

/// The tensors of `file` that pictures need.
fn used(file: &Arc<WeightFile>, device: &Device) -> Weights {
    let unused = |name: &str| {
        UNUSED_OUTPUTS.iter().any(|prefix| name.starts_with(prefix))
            || name.ends_with(".bn_s1.num_batches_tracked")
    };
    let tensors: BTreeMap<String, Stored> = file
        .header()
        .tensors
        .keys()
        .filter(|name| !unused(name))
        .map(|name| {
            let stored = Stored { file: file.clone(), name: name.clone(), transform: Transform::None };
            (name.clone(), stored)
        })
        .collect();
    Weights::new(file.name(), tensors, device)
}
