//! The autoencoder of whatever family, and what lies between its latents and the network's.

use candle_core::{Result, Tensor};
use darkroom_models::vae::{AutoencoderKl, Tiling};
use darkroom_models::vae_qwen::{AutoencoderKlQwenImage, QwenVaeConfig};

/// An autoencoder.
#[derive(Debug, Clone)]
pub(crate) enum Autoencoder {
    /// Stable Diffusion's.
    Kl(Box<AutoencoderKl>),
    /// Qwen-Image's.
    QwenImage(Box<AutoencoderKlQwenImage>),
}

/// Runs `$body` with `$vae` bound to the autoencoder, whichever it is.
macro_rules! each {
    ($self:ident, $vae:ident => $body:expr) => {
        match $self {
            Self::Kl($vae) => $body,
            Self::QwenImage($vae) => $body,
        }
    };
}

impl Autoencoder {
    /// `[b, channels, h/8, w/8]`, in its own units, to `[b, 3, h, w]`, -1 to 1.
    pub(crate) fn decode_with(&self, latent: &Tensor, tiling: Tiling) -> Result<Tensor> {
        each!(self, vae => vae.decode_with(latent, tiling))
    }

    /// The means of pictures' latents, in its own units.
    pub(crate) fn encode_with(&self, pixels: &Tensor, tiling: Tiling) -> Result<Tensor> {
        each!(self, vae => vae.encode_with(pixels, tiling))
    }

    /// Most bytes that decoding one latent in one piece takes.
    pub(crate) fn decode_bytes(&self, height: usize, width: usize) -> usize {
        each!(self, vae => vae.decode_bytes(height, width))
    }

    /// How to decode within `budget` bytes.
    pub(crate) fn decode_tiling(&self, height: usize, width: usize, budget: usize) -> Tiling {
        each!(self, vae => vae.decode_tiling(height, width, budget))
    }

    /// How to encode within `budget` bytes.
    pub(crate) fn encode_tiling(&self, height: usize, width: usize, budget: usize) -> Tiling {
        each!(self, vae => vae.encode_tiling(height, width, budget))
    }
}

/// What a network's latents are to those of its autoencoder (ComfyUI's `latent_formats`).
#[derive(Debug, Clone)]
pub(crate) enum LatentFormat {
    /// Those, times this.
    Scaled(f64),
    /// Those, each channel less its mean and divided by its spread.
    Normalised(QwenVaeConfig),
}

impl LatentFormat {
    /// Channels, where the format says how many.
    pub(crate) fn channels(&self) -> usize {
        match self {
            Self::Scaled(_) => 4,
            Self::Normalised(config) => config.z_dim,
        }
    }

    /// `[.., channels, h, w]`, from the autoencoder's units to the network's.
    pub(crate) fn normalised(&self, latent: &Tensor) -> Result<Tensor> {
        match self {
            Self::Scaled(scale) => latent * *scale,
            Self::Normalised(config) => config.to_network(latent),
        }
    }

    /// The way back.
    pub(crate) fn denormalised(&self, latent: &Tensor) -> Result<Tensor> {
        match self {
            Self::Scaled(scale) => latent / *scale,
            Self::Normalised(config) => config.from_network(latent),
        }
    }
}
