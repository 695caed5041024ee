//! The downward half of the UNet and its middle: what a ControlNet repeats.

use std::ops::Range;

use candle_core::{Tensor, bail};
use darkroom_kernels::add_to_rows;

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

impl UNetFeatures {
    /// Each row of every tensor times its own factor; `factors: [b, 1, 1, 1]`, `f32`.
    pub fn scaled(&self, factors: &Tensor) -> candle_core::Result<Self> {
        let scale = |tensor: &Tensor| tensor.broadcast_mul(&factors.to_dtype(tensor.dtype())?);
        Ok(Self {
            skips: self.skips.iter().map(scale).collect::<candle_core::Result<_>>()?,
            middle: scale(&self.middle)?,
        })
    }

    /// Adds some rows of another network's features to some of these, in place: `runs` has the rows there and the
    /// first row here.
    pub fn add_to_rows(
        &mut self,
        residuals: &Self,
        runs: &[(Range<usize>, usize)],
    ) -> candle_core::Result<()> {
        if self.skips.len() != residuals.skips.len() {
            bail!(
                "UNet: residuals for {} skips, but the network has {}",
                residuals.skips.len(),
                self.skips.len()
            );
        }
        let own = self.skips.iter().chain([&self.middle]);
        for (own, residual) in own.zip(residuals.skips.iter().chain([&residuals.middle])) {
            add_runs(own, residual, runs)?;
        }
        Ok(())
    }
}

/// Adds rows of `residual` to rows of `own`, in place.
pub(super) fn add_runs(
    own: &Tensor,
    residual: &Tensor,
    runs: &[(Range<usize>, usize)],
) -> candle_core::Result<()> {
    for (from, to) in runs {
        add_to_rows(own, *to, &residual.narrow(0, from.start, from.len())?)?;
    }
    Ok(())
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
        let (x, skips) = self.descend(stem, condition, usize::MAX)?;
        Ok(UNetFeatures { skips, middle: self.middle.forward(x, condition)? })
    }

    /// From the stem's output to the first `most` skips, and nothing below them.
    pub(crate) fn first_skips(
        &self,
        stem: Tensor,
        condition: &Condition,
        most: usize,
    ) -> candle_core::Result<Vec<Tensor>> {
        Ok(self.descend(stem, condition, most)?.1)
    }

    fn descend(
        &self,
        stem: Tensor,
        condition: &Condition,
        most: usize,
    ) -> candle_core::Result<(Tensor, Vec<Tensor>)> {
        let mut skips = vec![stem.clone()];
        let mut x = stem;
        for block in &self.down {
            x = block.forward(x, condition, &mut skips, most)?;
        }
        Ok((x, skips))
    }
}
