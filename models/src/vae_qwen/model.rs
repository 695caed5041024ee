//! The whole autoencoder, in one piece.

use candle_core::{DType, Tensor};

use super::QwenVaeConfig;
use super::blocks::{Decoder, Encoder};
use crate::adapter::Adapters;
use crate::layers::{Linear, channels_first, channels_last};
use crate::vae::check_picture;
use crate::weights::{Weights, WeightsError};

/// diffusers' `AutoencoderKLQwenImage`, of single pictures. Computed in `f32`, or in `bf16` on GPUs; inputs and outputs
/// are `f32`. Latents are in the network's own units: [`QwenVaeConfig::to_network`] is the caller's.
#[derive(Debug, Clone)]
pub struct AutoencoderKlQwenImage {
    config: QwenVaeConfig,
    encoder: Encoder,
    quant: Linear,
    post_quant: Linear,
    decoder: Decoder,
    activations: DType,
}

impl AutoencoderKlQwenImage {
    /// Takes all of the network's tensors under diffusers' names.
    pub fn load(config: &QwenVaeConfig, weights: &Weights) -> Result<Self, WeightsError> {
        config.validate().map_err(candle_core::Error::wrap)?;
        let (latent, moments) = (config.z_dim, 2 * config.z_dim);
        Ok(Self {
            config: config.clone(),
            encoder: Encoder::load(config, &weights.scope("encoder"))?,
            quant: Linear::load_pointwise_3d(&weights.scope("quant_conv"), moments, moments)?,
            post_quant: Linear::load_pointwise_3d(&weights.scope("post_quant_conv"), latent, latent)?,
            decoder: Decoder::load(config, &weights.scope("decoder"))?,
            activations: weights.activations(),
        })
    }

    /// What the network was built from.
    pub fn config(&self) -> &QwenVaeConfig {
        &self.config
    }

    /// The type of the activations between the layers.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// `[b, 16, h, w] -> [b, 3, 8h, 8w]`, clamped to -1 to 1.
    ///
    /// # Errors
    /// When the latent has another shape.
    pub fn decode(&self, latent: &Tensor) -> candle_core::Result<Tensor> {
        self.decode_unclamped(latent)?.clamp(-1f32, 1f32)
    }

    /// As it comes out of the network: what tiles are blended of.
    pub(super) fn decode_unclamped(&self, latent: &Tensor) -> candle_core::Result<Tensor> {
        check_picture("latent", latent, self.config.z_dim, 1)?;
        let mut x = channels_last(latent)?.to_dtype(self.activations)?;
        x = self.post_quant.forward(&x, Adapters::none())?;
        channels_first(&self.decoder.forward(x)?)?.to_dtype(DType::F32)
    }

    /// The mean of the latent's distribution: `[b, 3, h, w]`, -1 to 1, to `[b, 16, h/8, w/8]`, rounded down.
    ///
    /// # Errors
    /// When the image has another shape, or is smaller than a latent's cell.
    pub fn encode(&self, image: &Tensor) -> candle_core::Result<Tensor> {
        check_picture("image", image, QwenVaeConfig::PICTURE_CHANNELS, self.config.downscale())?;
        let x = channels_last(image)?.to_dtype(self.activations)?;
        let moments = self.quant.forward(&self.encoder.forward(x)?, Adapters::none())?;
        channels_first(&moments.narrow(3, 0, self.config.z_dim)?)?.to_dtype(DType::F32)
    }
}
