//! The hint encoder: from a picture in pixels to what is added to the latent's first features.

use candle_core::Tensor;
use darkroom_kernels::{Activation, Conv2dGeometry, Padding, activate};

use super::ControlNetConfig;
use crate::adapter::Adapters;
use crate::layers::Conv2d;
use crate::weights::{Weights, WeightsError};

/// diffusers' `ControlNetConditioningEmbedding`: 3×3 convolutions with SiLU between them; after the first, one at
/// each resolution and one that halves it.
#[derive(Debug, Clone)]
pub(super) struct HintEncoder {
    /// Each followed by SiLU.
    convolutions: Vec<Conv2d>,
    last: Conv2d,
}

impl HintEncoder {
    /// Takes `controlnet_cond_embedding`.
    pub(super) fn load(config: &ControlNetConfig, weights: &Weights) -> Result<Self, WeightsError> {
        let levels = &config.conditioning_embedding_out_channels;
        let (Some(&first), Some(&last)) = (levels.first(), levels.last()) else {
            return Err(WeightsError::Missing {
                file: weights.origin().to_owned(),
                name: "controlnet_cond_embedding.conv_in.weight".into(),
            });
        };
        let mut convolutions =
            vec![Conv2d::load(&weights.scope("conv_in"), config.conditioning_channels, first, 3)?];
        let blocks = weights.scope("blocks");
        let halving = Conv2dGeometry { stride: 2, padding: Padding::all(1) };
        for (level, pair) in levels.windows(2).enumerate() {
            let &[inputs, outputs] = pair else { continue };
            convolutions.push(Conv2d::load(&blocks.scope(2 * level), inputs, inputs, 3)?);
            let scope = blocks.scope(2 * level + 1);
            convolutions.push(Conv2d::load_with(&scope, inputs, outputs, 3, halving)?);
        }
        let outputs = config.unet.block_out_channels[0];
        Ok(Self { convolutions, last: Conv2d::load(&weights.scope("conv_out"), last, outputs, 3)? })
    }

    /// `[b, h, w, conditioning_channels] -> [b, h/8, w/8, c]`.
    pub(super) fn forward(&self, hint: Tensor) -> candle_core::Result<Tensor> {
        let mut x = hint;
        for convolution in &self.convolutions {
            x = convolution.forward(&x, Adapters::none())?;
            x = activate(&x, Activation::Silu)?;
        }
        self.last.forward(&x, Adapters::none())
    }
}
