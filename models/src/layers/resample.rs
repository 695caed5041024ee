//! Halving and doubling the resolution between levels.

use candle_core::{Tensor, bail};
use darkroom_kernels::{Conv2dGeometry, Padding, upsample_nearest_2x};

use super::Conv2d;
use crate::adapter::Adapters;
use crate::weights::{Weights, WeightsError};

/// A 3×3 convolution with stride 2.
#[derive(Debug, Clone)]
pub(crate) struct Downsampler {
    conv: Conv2d,
}

impl Downsampler {
    /// Takes `downsamplers.0.conv`. With a zero on every side `h` becomes `h / 2` rounded up; with zeros below
    /// and right only, rounded down.
    pub(crate) fn load(weights: &Weights, channels: usize, padding: Padding) -> Result<Self, WeightsError> {
        let geometry = Conv2dGeometry { stride: 2, padding };
        let scope = weights.scope("downsamplers.0.conv");
        Ok(Self { conv: Conv2d::load_with(&scope, channels, channels, 3, geometry)? })
    }

    /// `[b, h, w, c] -> [b, h/2, w/2, c]`.
    pub(crate) fn forward(&self, x: &Tensor, adapters: &Adapters) -> candle_core::Result<Tensor> {
        self.conv.forward(x, adapters)
    }
}

/// Nearest-neighbour upsampling and a 3×3 convolution.
#[derive(Debug, Clone)]
pub(crate) struct Upsampler {
    conv: Conv2d,
}

impl Upsampler {
    /// Takes `upsamplers.0.conv`.
    pub(crate) fn load(weights: &Weights, channels: usize) -> Result<Self, WeightsError> {
        Ok(Self { conv: Conv2d::load(&weights.scope("upsamplers.0.conv"), channels, channels, 3)? })
    }

    /// `[b, h, w, c] -> [b, 2h, 2w, c]`.
    pub(crate) fn forward(&self, x: &Tensor, adapters: &Adapters) -> candle_core::Result<Tensor> {
        self.conv.forward_upsampled(x, adapters)
    }

    /// `[b, h, w, c] -> [b, height, width, c]`, where `height` is `2h` or `2h - 1`: the size that the matching
    /// downsampler saw. Interpolating to `2h - 1` gives the doubled picture without its last row.
    pub(crate) fn forward_to(
        &self,
        x: &Tensor,
        height: usize,
        width: usize,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        let (_, h, w, _) = x.dims4()?;
        if (height, width) == (2 * h, 2 * w) {
            return self.forward(x, adapters);
        }
        if height.div_ceil(2) != h || width.div_ceil(2) != w {
            bail!("cannot upsample {h}×{w} to {height}×{width}");
        }
        let doubled = upsample_nearest_2x(x)?;
        self.conv.forward(&doubled.narrow(1, 0, height)?.narrow(2, 0, width)?.contiguous()?, adapters)
    }
}
