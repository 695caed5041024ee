//! The downward half of the UNet and its middle: what a ControlNet repeats.

use candle_core::{Tensor, bail};

use super::UNetConfig;
use super::blocks::{DownBlock, MidBlock};
use super::condition::Condition;
use crate::adapter::Adapters;
use crate::layers::Conv2d;
use crate::weights::{Weights, WeightsError};

/// What the downward half hands to the upward half. Channels-last.
#[derive(Debug, Clone)]
pub struct UNetFeatures {
    /// One tensor a stage and downsampler, first the stem's: `[b, h / 2ⁱ, w / 2ⁱ, c]`.
    pub skips: Vec<Tensor>,
    /// The middle block's output.
    pub middle: Tensor,
}

impl UNetFeatures {
    /// Adds another network's features, already scaled, to these: what a ControlNet does.
    pub fn add(&mut self, residuals: &Self) -> candle_core::Result<()> {
        if self.skips.len() != residuals.skips.len() {
            bail!(
                "UNet: residuals for {} skips, but the network has {}",
                residuals.skips.len(),
                self.skips.len()
            );
        }
        for (skip, residual) in self.skips.iter_mut().zip(&residuals.skips) {
            *skip = (&*skip + residual)?;
        }
        self.middle = (&self.middle + &residuals.middle)?;
        Ok(())
    }
}

/// `conv_in`, the down blocks and the middle block.
#[derive(Debug, Clone)]
pub(crate) struct UNetEncoder {
    stem: Conv2d,
    down: Vec<DownBlock>,
    middle: MidBlock,
}

impl UNetEncoder {
    /// Takes `conv_in`, `down_blocks` and `mid_block`.
    pub(crate) fn load(config: &UNetConfig, weights: &Weights) -> Result<Self, WeightsError> {
        let down = weights.scope("down_blocks");
        Ok(Self {
            stem: Conv2d::load(
                &weights.scope("conv_in"),
                config.in_channels,
                config.block_out_channels[0],
                3,
            )?,
            down: (0..config.block_out_channels.len())
                .map(|i| DownBlock::load(config, &down.scope(i), i))
                .collect::<Result<_, _>>()?,
            middle: MidBlock::load(config, &weights.scope("mid_block"))?,
        })
    }

    /// `[b, h, w, in_channels] -> [b, h, w, c]`: the first convolution alone.
    pub(crate) fn stem(&self, latent: &Tensor, adapters: &Adapters) -> candle_core::Result<Tensor> {
        self.stem.forward(latent, adapters)
    }

    /// From the stem's output to all features.
    pub(crate) fn forward(&self, stem: Tensor, condition: &Condition) -> candle_core::Result<UNetFeatures> {
        let mut skips = vec![stem.clone()];
        let mut x = stem;
        for block in &self.down {
            x = block.forward(x, condition, &mut skips)?;
        }
        Ok(UNetFeatures { skips, middle: self.middle.forward(x, condition)? })
    }
}
