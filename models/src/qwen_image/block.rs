//! A block of the transformer: joint attention, then a feed-forward part for each stream, all steered by the noise level.

use candle_core::{Result, Tensor};
use darkroom_kernels::{Activation, activate, add_gated, modulated_layer_norm};

use super::attention::{Joint, JointAttention};
use super::embedding::Modulation;
use crate::adapter::Adapters;
use crate::layers::Linear;
use crate::weights::{Weights, WeightsError};

/// Of all layer norms, which have no weights of their own.
pub(super) const LAYER_NORM_EPS: f64 = 1e-6;
/// The feed-forward part is this many times wider than its input.
pub(super) const FEED_FORWARD_FACTOR: usize = 4;

/// The tokens of the pictures and of the text, `[b, n, inner]` each.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    pub(super) image: Tensor,
    pub(super) text: Tensor,
}

impl Streams {
    /// What is made of each, as one sequence: text last, so that what pads shorter texts is at the end.
    pub(super) fn joined(
        &self,
        image: impl FnOnce(&Tensor) -> Result<Tensor>,
        text: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        Tensor::cat(&[image(&self.image)?, text(&self.text)?], 1)
    }
}

/// diffusers' `QwenImageTransformerBlock`.
#[derive(Debug, Clone)]
pub(super) struct TransformerBlock {
    attention: JointAttention,
    image: Stream,
    text: Stream,
}

impl TransformerBlock {
    /// Takes all that is in the block's scope.
    pub(super) fn load(
        weights: &Weights,
        inner: usize,
        heads: usize,
    ) -> std::result::Result<Self, WeightsError> {
        Ok(Self {
            attention: JointAttention::load(&weights.scope("attn"), inner, heads)?,
            image: Stream::load(weights, ("img_mod.1", "img_mlp"), inner)?,
            text: Stream::load(weights, ("txt_mod.1", "txt_mlp"), inner)?,
        })
    }

    /// Both streams after the block.
    pub(super) fn forward(&self, x: &mut Streams, joint: &Joint<'_>) -> Result<()> {
        let [image, image_after] = self.image.modulations(joint)?;
        let [text, text_after] = self.text.modulations(joint)?;
        let normed = Streams { image: normed(&x.image, &image)?, text: normed(&x.text, &text)? };
        let seen = self.attention.forward(normed, joint)?;
        x.image = add_gated(&x.image, &seen.image, &image.gate)?;
        x.text = add_gated(&x.text, &seen.text, &text.gate)?;
        drop(seen);
        x.image = self.image.feed_forward(&x.image, &image_after, joint.adapters)?;
        x.text = self.text.feed_forward(&x.text, &text_after, joint.adapters)?;
        Ok(())
    }
}

fn normed(x: &Tensor, by: &Modulation) -> Result<Tensor> {
    modulated_layer_norm(x, &by.shift, &by.scale, LAYER_NORM_EPS)
}

/// What a stream has for itself besides its part of the attention.
#[derive(Debug, Clone)]
struct Stream {
    modulation: Linear,
    widen: Linear,
    narrow: Linear,
}

impl Stream {
    fn load(
        weights: &Weights,
        (modulation, mlp): (&str, &str),
        inner: usize,
    ) -> std::result::Result<Self, WeightsError> {
        let wide = FEED_FORWARD_FACTOR * inner;
        Ok(Self {
            modulation: Linear::load(&weights.scope(modulation), inner, 6 * inner)?,
            widen: Linear::load(&weights.scope(mlp).scope("net.0.proj"), inner, wide)?,
            narrow: Linear::load(&weights.scope(mlp).scope("net.2"), wide, inner)?,
        })
    }

    /// Of attention and of the feed-forward part.
    fn modulations(&self, joint: &Joint<'_>) -> Result<[Modulation; 2]> {
        Modulation::halves(&self.modulation.forward(&joint.time, joint.adapters)?)
    }

    /// `x` plus what the feed-forward part makes of it.
    fn feed_forward(&self, x: &Tensor, by: &Modulation, adapters: &Adapters) -> Result<Tensor> {
        // Assigned, not shadowed: what `h` held is free before the next tensor is made.
        let mut h = normed(x, by)?;
        h = self.widen.forward(&h, adapters)?;
        h = activate(&h, Activation::GeluTanh)?;
        h = self.narrow.forward(&h, adapters)?;
        add_gated(x, &h, &by.gate)
    }
}
