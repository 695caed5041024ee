//! The network's shape, read off its tensors.

use super::DepthError;
use crate::weights::Weights;

/// Channels of an attention head in every published DINOv2.
const HEAD_WIDTH: usize = 64;
/// Levels of the DPT head.
pub(super) const LEVELS: usize = 4;

/// The shape of a Depth Anything V2 network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DepthConfig {
    /// Channels of the transformer: 384 (small), 768 (base) or 1024 (large).
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Transformer layers: 12, 12 or 24.
    pub layers: usize,
    /// Channels within a feed-forward part.
    pub feed_forward: usize,
    /// Pixels of a patch's side (14).
    pub patch: usize,
    /// Patches of a side of the square that positions were trained for (37).
    pub positions: usize,
    /// The layers, counted from 0, whose outputs go to the head.
    pub taps: [usize; LEVELS],
    /// Channels of the head's levels, finest first.
    pub levels: [usize; LEVELS],
    /// Channels where levels are fused.
    pub fused: usize,
    /// Channels before the last convolution (32).
    pub last: usize,
}

impl DepthConfig {
    /// Reads the shape off tensors under transformers' names, all but the heads: without their number they are as
    /// wide as in all published networks. Fails when what makes a Depth Anything V2 is not there, or does not fit.
    pub(super) fn detect(weights: &Weights, heads: Option<usize>) -> Result<Self, DepthError> {
        let kind = |reason: String| DepthError::Kind { file: weights.origin().to_owned(), reason };
        let shape = |name: &str, rank: usize| {
            let shape = weights.shape(name).ok_or_else(|| kind(format!("'{name}' is missing")))?;
            if shape.len() == rank { Ok(shape) } else { Err(kind(format!("'{name}' has shape {shape:?}"))) }
        };
        let patches = shape("backbone.embeddings.patch_embeddings.projection.weight", 4)?;
        let (width, patch) = (patches[0], patches[3]);
        let table = shape("backbone.embeddings.position_embeddings", 3)?[1];
        let positions = table.saturating_sub(1).isqrt();
        if patch == 0 || positions == 0 || positions * positions + 1 != table {
            return Err(kind(format!(
                "{table} positions of patches of {patch} pixels are not a square and one"
            )));
        }
        if weights.contains("backbone.encoder.layer.0.mlp.weights_in.weight") {
            return Err(kind(
                "a giant transformer with gated feed-forward parts; small, base and large are".into(),
            ));
        }
        let feed_forward = shape("backbone.encoder.layer.0.mlp.fc1.weight", 2)?[0];
        let layers = (0..)
            .take_while(|i| weights.contains(&format!("backbone.encoder.layer.{i}.norm1.weight")))
            .count();
        let taps = match layers {
            24 => [4, 11, 17, 23],
            _ if layers >= LEVELS && layers % LEVELS == 0 => [1, 2, 3, 4].map(|i| i * layers / LEVELS - 1),
            _ => return Err(kind(format!("{layers} layers; 12 or 24 are"))),
        };
        let heads = heads.unwrap_or(width / HEAD_WIDTH);
        if heads == 0 || width % heads != 0 {
            return Err(kind(format!("{width} channels are not {heads} attention heads")));
        }
        let mut levels = [0; LEVELS];
        for (i, level) in levels.iter_mut().enumerate() {
            *level = shape(&format!("neck.reassemble_stage.layers.{i}.projection.weight"), 4)?[0];
        }
        let fused = shape("neck.convs.0.weight", 4)?[0];
        let last = shape("head.conv2.weight", 4)?[0];
        if fused < 2 || last == 0 || levels.contains(&0) {
            return Err(kind(format!("a head of {levels:?}, {fused} and {last} channels")));
        }
        Ok(Self { width, heads, layers, feed_forward, patch, positions, taps, levels, fused, last })
    }
}
