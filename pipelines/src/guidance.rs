//! What pulls a sample towards its prompts: classifier-free guidance (Ho & Salimans 2022) over any number of
//! conditions, as ComfyUI's `calc_cond_batch` and `cfg_function` have it.
//!
//! It says which rows the network is to evaluate at a noise level, and makes one denoised latent of them.

use std::ops::RangeInclusive;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use darkroom_kernels::sampling::guide;
use darkroom_models::unet::FreeUScales;

use crate::condition::{Cells, Placed};
use crate::lora::LoraSet;
use crate::schedule::ModelSampling;

/// What a cell counts before any condition counts there, so that nothing is divided by 0.
const LEAST_COUNT: f32 = 1e-37;

/// Conditions, and how their predictions become one.
#[derive(Debug, Clone)]
pub(crate) struct Guidance {
    /// The prompts.
    pub(crate) positive: Vec<Placed>,
    /// The negative prompts; `None` when neither the scale nor the sampler asks for them.
    pub(crate) negative: Option<Vec<Placed>>,
    /// `uncond + (cond - uncond) · scale` on denoised latents.
    pub(crate) scale: f64,
    /// Noise levels at which the negative prompts are evaluated; `None`: all.
    pub(crate) interval: Option<RangeInclusive<f32>>,
    /// How far the result's spread is brought back to that of the prompt's (Lin et al. 2024, section 3.4).
    pub(crate) rescale: Option<f64>,
    /// Whether each token's guided velocity is brought back to the length of the prompt's, as diffusers does for
    /// Qwen-Image.
    pub(crate) velocity_norm: bool,
    /// What it is drawn with beside the model.
    pub(crate) loras: Option<Arc<LoraSet>>,
    /// What the network's output is taken for, where it is not the model's own choice.
    pub(crate) sampling: Option<Arc<ModelSampling>>,
    /// Strengths of `CFGNorm`, one after the other.
    pub(crate) cfg_norms: Vec<f64>,
    /// How features are weighed on the way up, one after the other.
    pub(crate) free_u: Vec<FreeUScales>,
}

/// Denoised latents of one evaluation.
pub(crate) struct Guided {
    pub(crate) guided: Tensor,
    pub(crate) uncond: Option<Tensor>,
}

impl Guidance {
    /// What the network is to evaluate at a noise level: the positive conditions, then the negative ones, each with
    /// its number among [`Self::conditions`].
    pub(crate) fn rows(&self, sigma: f32) -> impl Iterator<Item = (usize, &Placed)> {
        let positive = self.positive.len();
        let guides = self.guides_at(sigma);
        let wanted =
            move |&(index, placed): &(usize, &Placed)| (index < positive || guides) && placed.acts_at(sigma);
        self.conditions().enumerate().filter(wanted)
    }

    /// Whether the negative prompts count at a noise level.
    fn guides_at(&self, sigma: f32) -> bool {
        self.interval.as_ref().is_none_or(|sigmas| sigmas.contains(&sigma))
    }

    pub(crate) fn conditions(&self) -> impl Iterator<Item = &Placed> {
        self.positive.iter().chain(self.negative.iter().flatten())
    }

    /// Makes one latent of the predictions of [`Self::rows`], in their order, for the input `x: [4, h, w]`.
    pub(crate) fn combine(
        &self,
        x: &Tensor,
        sigma: f32,
        predictions: &[Tensor],
    ) -> candle_core::Result<Guided> {
        let positive = self.positive.iter().filter(|placed| placed.acts_at(sigma)).count();
        let (cond, uncond) = predictions.split_at(positive.min(predictions.len()));
        let cond = weigh(active(&self.positive, sigma), cond, x)?;
        let Some(negative) = self.negative.as_ref().filter(|_| self.guides_at(sigma)) else {
            return Ok(Guided { guided: self.normed(cond.clone(), &cond)?, uncond: None });
        };
        let uncond = weigh(active(negative, sigma), uncond, x)?;
        let guided = if self.scale == 1.0 {
            cond.clone()
        } else if let Some(multiplier) = self.rescale {
            rescaled(x, sigma, &cond, &uncond, self.scale, multiplier)?
        } else if self.velocity_norm {
            normed_velocity(x, sigma, &cond, &uncond, self.scale)?
        } else {
            guide(&cond, &uncond, self.scale)?
        };
        Ok(Guided { guided: self.normed(guided, &cond)?, uncond: Some(uncond) })
    }

    /// ComfyUI's `CFGNorm`: in each cell the guided prediction is no longer, over its channels, than the prompt's.
    fn normed(&self, mut guided: Tensor, cond: &Tensor) -> candle_core::Result<Tensor> {
        const LEAST_NORM: f64 = 1e-8;
        let norm = |tensor: &Tensor| tensor.sqr()?.sum_keepdim(0)?.sqrt();
        for strength in &self.cfg_norms {
            let share = (norm(cond)? / norm(&guided)?.affine(1.0, LEAST_NORM)?)?.clamp(0f32, 1f32)?;
            guided = guided.broadcast_mul(&share.affine(*strength, 0.0)?)?;
        }
        Ok(guided)
    }
}

fn active(conditions: &[Placed], sigma: f32) -> impl Iterator<Item = &Placed> {
    conditions.iter().filter(move |placed| placed.acts_at(sigma))
}

/// The weighted mean of what conditions predict, cell by cell; 0 where none counts.
fn weigh<'p>(
    conditions: impl Iterator<Item = &'p Placed>,
    predictions: &[Tensor],
    x: &Tensor,
) -> candle_core::Result<Tensor> {
    let all: Vec<(&Placed, &Tensor)> = conditions.zip(predictions).collect();
    if let [(Placed { part: None, weights: None, .. }, only)] = all.as_slice() {
        return Ok((*only).clone());
    }
    let (_, height, width) = x.dims3()?;
    let mut sum = x.zeros_like()?;
    let mut count = Tensor::full(LEAST_COUNT, (1, height, width), x.device())?;
    for (placed, prediction) in all {
        let weights = match &placed.weights {
            Some(weights) => weights.clone(),
            None => {
                let (_, rows, columns) = prediction.dims3()?;
                Tensor::ones((1, rows, columns), DType::F32, x.device())?
            }
        };
        let weighted = prediction.broadcast_mul(&weights)?;
        let spread = |tensor: Tensor| match placed.part {
            Some(Cells { height: rows, width: columns, y, x }) => {
                tensor.pad_with_zeros(1, y, height - y - rows)?.pad_with_zeros(2, x, width - x - columns)
            }
            None => Ok(tensor),
        };
        sum = (sum + spread(weighted)?)?;
        count = (count + spread(weights)?)?;
    }
    sum.broadcast_div(&count)
}

/// Guidance on predicted velocities, its spread brought back to the prompt's by `multiplier` (`RescaleCFG`).
fn rescaled(
    x: &Tensor,
    sigma: f32,
    cond: &Tensor,
    uncond: &Tensor,
    scale: f64,
    multiplier: f64,
) -> candle_core::Result<Tensor> {
    let variance = sigma * sigma + 1.0;
    let kept = x.affine(f64::from(1.0 / variance), 0.0)?;
    let velocity = |denoised: &Tensor| (&kept - denoised)?.affine(f64::from(variance.sqrt() / sigma), 0.0);
    let (cond, uncond) = (velocity(cond)?, velocity(uncond)?);
    let guided = (&uncond + ((&cond - &uncond)? * scale)?)?;
    let spread = |tensor: &Tensor| tensor.flatten_all()?.var(0)?.sqrt();
    let ratio = (spread(&cond)? / spread(&guided)?)?;
    let factor = ratio.affine(multiplier, 1.0 - multiplier)?;
    let velocity = guided.broadcast_mul(&factor)?;
    kept - velocity.affine(f64::from(sigma / variance.sqrt()), 0.0)?
}

/// Guidance on velocities, of which each token's, a patch of two by two cells with all channels, is then as long as the
/// prompt's.
fn normed_velocity(
    x: &Tensor,
    sigma: f32,
    cond: &Tensor,
    uncond: &Tensor,
    scale: f64,
) -> candle_core::Result<Tensor> {
    const PATCH: usize = 2;
    let (channels, height, width) = x.dims3()?;
    let (rows, columns) = (height.div_ceil(PATCH), width.div_ceil(PATCH));
    let velocity = |denoised: &Tensor| (x - denoised)?.affine(f64::from(1.0 / sigma), 0.0);
    let length = |velocity: &Tensor| {
        let whole = velocity.sqr()?.pad_with_zeros(1, 0, rows * PATCH - height)?;
        let whole = whole.pad_with_zeros(2, 0, columns * PATCH - width)?;
        let patches = whole.reshape((channels, rows, PATCH, columns, PATCH))?;
        // Never quite nothing, for the quotient.
        patches.sum_keepdim(0)?.sum_keepdim(2)?.sum_keepdim(4)?.sqrt()?.affine(1.0, 1e-30)
    };
    let (cond, uncond) = (velocity(cond)?, velocity(uncond)?);
    let guided = guide(&cond, &uncond, scale)?;
    let ratio = (length(&cond)? / length(&guided)?)?.broadcast_as((1, rows, PATCH, columns, PATCH))?;
    let ratio = ratio.reshape((1, rows * PATCH, columns * PATCH))?;
    let ratio = ratio.narrow(1, 0, height)?.narrow(2, 0, width)?;
    x - guided.broadcast_mul(&ratio)?.affine(f64::from(sigma), 0.0)?
}

#[cfg(test)]
mod tests;
