//! The whole autoencoder, in one piece.

use candle_core::{DType, Tensor, bail};

use super::VaeConfig;
use super::blocks::{Decoder, Encoder};
use crate::adapter::Adapters;
use crate::layers::{Linear, channels_first, channels_last};
use crate::weights::{Weights, WeightsError};

/// diffusers' `AutoencoderKL`. Computed in `f32`, or in `bf16` on GPUs, which reaches as far: the SDXL decoder's
/// activations overflow `f16`. Inputs and outputs are `f32`. Latents are in the network's own units: scaling by `scaling_factor` is the caller's.
#[derive(Debug, Clone)]
pub struct AutoencoderKl {
    config: VaeConfig,
    encoder: Encoder,
    quant: Linear,
    post_quant: Linear,
    decoder: Decoder,
    activations: DType,
}

impl AutoencoderKl {
    /// Takes all of the network's tensors under diffusers' names.
    pub fn load(config: &VaeConfig, weights: &Weights) -> Result<Self, WeightsError> {
        config.validate().map_err(candle_core::Error::wrap)?;
        let (latent, moments) = (config.latent_channels, 2 * config.latent_channels);
        Ok(Self {
            config: config.clone(),
            encoder: Encoder::load(config, &weights.scope("encoder"))?,
            quant: Linear::load_pointwise(&weights.scope("quant_conv"), moments, moments)?,
            post_quant: Linear::load_pointwise(&weights.scope("post_quant_conv"), latent, latent)?,
            decoder: Decoder::load(config, &weights.scope("decoder"))?,
            activations: weights.activations(),
        })
    }

    /// What the network was built from.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// The type of the activations between the layers.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// `[b, 4, h, w] -> [b, 3, 8h, 8w]`, about -1 to 1, not clamped.
    pub fn decode(&self, latent: &Tensor) -> candle_core::Result<Tensor> {
        check_picture("latent", latent, self.config.latent_channels, 1)?;
        let x = channels_last(latent)?.to_dtype(self.activations)?;
        let decoded = self.decoder.forward(self.post_quant.forward(&x, Adapters::none())?)?;
        channels_first(&decoded)?.to_dtype(DType::F32)
    }

    /// The mean of the latent's distribution: `[b, 3, h, w]`, -1 to 1, to `[b, 4, h/8, w/8]`, rounded down.
    pub fn encode(&self, image: &Tensor) -> candle_core::Result<Tensor> {
        check_picture("image", image, self.config.in_channels, self.config.downscale())?;
        let x = channels_last(image)?.to_dtype(self.activations)?;
        let moments = self.quant.forward(&self.encoder.forward(x)?, Adapters::none())?;
        channels_first(&moments.narrow(3, 0, self.config.latent_channels)?)?.to_dtype(DType::F32)
    }
}

/// Fails unless `tensor` is `[b, channels, h, w]` with `h` and `w` at least `least`.
pub(crate) fn check_picture(
    what: &str,
    tensor: &Tensor,
    channels: usize,
    least: usize,
) -> candle_core::Result<()> {
    match *tensor.dims() {
        [b, c, h, w] if b > 0 && c == channels && h >= least && w >= least => Ok(()),
        _ => bail!(
            "VAE: {what} has shape {:?}, but [batch, {channels}, height, width] with sides of at least {least} is \
             needed",
            tensor.dims()
        ),
    }
}
