//! SRVGGNetCompact (realesr-general, realesr-animevideo): convolutions at the picture's own size, whose last gives
//! what is added to the picture with its pixels repeated.

use candle_core::{Result, Tensor};

use super::detect::CompactConfig;
use super::rectify::Rectifier;
use super::shuffle::{repeat, shuffle};
use crate::adapter::Adapters;
use crate::layers::Conv2d;
use crate::weights::{Weights, WeightsError};

/// The network.
#[derive(Debug, Clone)]
pub(super) struct Compact {
    layers: Vec<(Conv2d, Rectifier)>,
    last: Conv2d,
    scale: usize,
}

impl Compact {
    pub(super) fn load(config: &CompactConfig, weights: &Weights) -> std::result::Result<Self, WeightsError> {
        let &CompactConfig { channels, filters, layers: between, scale } = config;
        let scope = |layer: usize| weights.scope(format!("body.{layer}"));
        let mut layers = Vec::with_capacity(between + 1);
        for layer in 0..=between {
            let inputs = if layer == 0 { channels } else { filters };
            let conv = Conv2d::load(&scope(2 * layer), inputs, filters, 3)?;
            let slopes = scope(2 * layer + 1).take("weight", &[filters])?;
            layers.push((conv, Rectifier::parametric(&slopes)?));
        }
        let last = Conv2d::load(&scope(2 * (between + 1)), filters, channels * scale * scale, 3)?;
        Ok(Self { layers, last, scale })
    }

    /// `[b, h, w, c] -> [b, scale·h, scale·w, c]`.
    pub(super) fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut x = pixels.clone();
        for (conv, rectifier) in &self.layers {
            x = rectifier.apply(conv.forward(&x, Adapters::none())?)?;
        }
        shuffle(&self.last.forward(&x, Adapters::none())?, self.scale)? + repeat(pixels, self.scale)?
    }

    /// Most bytes of activations for one picture of `pixels` pixels: two layers, or what is shuffled and the picture
    /// beside it.
    pub(super) fn forward_bytes(config: &CompactConfig, pixels: usize) -> usize {
        let shuffled = config.channels * config.scale * config.scale;
        let values = (2 * config.filters).max(config.filters + shuffled).max(4 * shuffled);
        pixels.saturating_mul(values + config.channels).saturating_mul(size_of::<f32>())
    }
}
