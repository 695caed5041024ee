//! The residual block of the UNet and of the VAE (He et al. 2016, as in Ho et al. 2020): two normalised
//! convolutions, in the UNet with the time embedding added between them.

use candle_core::Tensor;
use darkroom_kernels::Activation;

use super::{Conv2d, GroupNorm, Linear};
use crate::adapter::Adapters;
use crate::weights::{Weights, WeightsError};

/// `shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time)))`.
#[derive(Debug, Clone)]
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Linear>,
}

impl ResnetBlock {
    /// Takes diffusers' `ResnetBlock2D`; `time_embedding` is the embedding's width, or `None` in a VAE.
    pub(crate) fn load(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        time_embedding: Option<usize>,
        groups: usize,
        eps: f64,
    ) -> Result<Self, WeightsError> {
        let norm =
            |name, channels| GroupNorm::load(&weights.scope(name), channels, groups, eps, Activation::Silu);
        Ok(Self {
            norm1: norm("norm1", inputs)?,
            conv1: Conv2d::load(&weights.scope("conv1"), inputs, outputs, 3)?,
            time: time_embedding
                .map(|width| {
                    // A row a picture: rounding it would cost precision and save no time.
                    let scope = weights.scope("time_emb_proj").in_full();
                    Linear::load(&scope, width, outputs)
                })
                .transpose()?,
            norm2: norm("norm2", outputs)?,
            conv2: Conv2d::load(&weights.scope("conv2"), outputs, outputs, 3)?,
            shortcut: (inputs != outputs)
                .then(|| Linear::load_pointwise(&weights.scope("conv_shortcut"), inputs, outputs))
                .transpose()?,
        })
    }

    /// `x: [b, h, w, inputs]`, `time: [b, width]` with SiLU already applied. Returns `[b, h, w, outputs]`.
    /// Takes `x` by value so that its memory is free as soon as the shortcut has been computed.
    pub(crate) fn forward(
        &self,
        x: Tensor,
        time: Option<&Tensor>,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        let mut h = self.conv1.forward(&self.norm1.forward(&x, adapters)?, adapters)?;
        // Assigned, not shadowed: what `h` held is free before the next tensor is made.
        h = match (&self.time, time) {
            (Some(layer), Some(time)) => {
                self.norm2.forward_shifted(&h, &layer.forward(time, adapters)?, adapters)?
            }
            _ => self.norm2.forward(&h, adapters)?,
        };
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward(&x, adapters)?,
            None => x.clone(),
        };
        drop(x);
        self.conv2.forward_add(&h, &residual, adapters)
    }
}
