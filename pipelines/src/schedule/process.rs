//! How a picture and its noise share a latent: what a noise level says of either. Samplers, masks and the network's
//! two ends all follow from it.

use candle_core::{Result, Tensor};

/// The process that noise levels are those of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// `picture + sigma · noise`, with sigmas from 0 to any: Stable Diffusion 1.5 and SDXL as k-diffusion has them.
    Exploding,
    /// `(1 - sigma) · picture + sigma · noise`, with sigmas from 0 to 1 (rectified flow; Liu et al. 2022): Stable
    /// Diffusion 3, AuraFlow, Qwen-Image. ComfyUI's `CONST`.
    Flow,
}

impl Process {
    /// What the picture counts at a noise level.
    #[must_use]
    pub fn alpha(self, sigma: f32) -> f32 {
        match self {
            Self::Exploding => 1.0,
            Self::Flow => 1.0 - sigma,
        }
    }

    /// Half the logarithm of the signal-to-noise ratio, `ln(alpha / sigma)`.
    #[must_use]
    pub fn half_log_snr(self, sigma: f32) -> f32 {
        match self {
            Self::Exploding => -super::ln(sigma),
            Self::Flow => -super::ln(sigma / (1.0 - sigma)),
        }
    }

    /// The noise level at half a logarithm of the signal-to-noise ratio.
    #[must_use]
    pub fn sigma(self, half_log_snr: f32) -> f32 {
        match self {
            Self::Exploding => super::exp(-half_log_snr),
            Self::Flow => (1.0 / (1.0 + f64::from(half_log_snr).exp())) as f32,
        }
    }

    /// A picture at a noise level.
    ///
    /// # Errors
    /// The shapes differ, or the tensor library failed.
    pub fn noised(self, picture: &Tensor, noise: &Tensor, sigma: f32) -> Result<Tensor> {
        let noise = noise.affine(f64::from(sigma), 0.0)?;
        match self {
            Self::Exploding => noise + picture,
            Self::Flow => noise + picture.affine(f64::from(self.alpha(sigma)), 0.0)?,
        }
    }

    /// The latent that a run leaves at its last noise level, as another run takes it: divided by what the picture
    /// counts there, so that mixing it with no noise gives it back (ComfyUI's `inverse_noise_scaling`).
    ///
    /// # Errors
    /// The tensor library failed.
    pub fn unmixed(self, latent: &Tensor, sigma: f32) -> Result<Tensor> {
        match self {
            Self::Exploding => Ok(latent.clone()),
            Self::Flow => latent.affine(1.0 / f64::from(self.alpha(sigma)), 0.0),
        }
    }
}
