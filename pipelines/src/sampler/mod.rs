//! Samplers as state machines. A sampler owns neither a loop nor a model: it says which latent it wants denoised at
//! which sigma, is told the answer, and says the next one, until it is done. So the samples of one network call may
//! use different samplers and stand at different steps.
//!
//! The methods are those of k-diffusion and ComfyUI by their names, with ComfyUI's default settings. Latents may
//! have any shape. Coefficients are scalars computed on the host in single precision as torch does; the tensors
//! stay on their device.

mod arithmetic;
mod driver;
mod euler;
mod kind;

pub(crate) use kind::join;
pub use kind::{SamplerKind, noise_for};

use candle_core::Tensor;

use crate::noise::{NoiseError, StepNoise};
use crate::schedule::ModelSampling;
use driver::Driver;

/// What can go wrong in a sampler.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    /// No sampler has this name.
    #[error("no sampler is called {0:?}; choose one of: {list}", list = join(SamplerKind::ALL))]
    UnknownSampler(String),
    /// The sigmas are not a schedule.
    #[error(
        "sigma number {index} is {sigma} after {previous:?}; sigmas must be finite, not negative, and must not rise"
    )]
    Sigmas {
        /// Which sigma, from 0.
        index: usize,
        /// Its value.
        sigma: f32,
        /// The one before it.
        previous: Option<f32>,
    },
    /// A `*_cfg_pp` sampler was not given the unconditional prediction.
    #[error("this sampler needs the unconditional prediction beside the guided one")]
    NoUncond,
    /// The sampler was advanced after it was done.
    #[error("the sampler was done already")]
    AlreadyDone,
    /// Noise could not be drawn.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Result of a sampler.
pub type Result<T, E = SamplerError> = std::result::Result<T, E>;

/// What a network made of the latent that a sampler asked for.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// The denoised latent after guidance.
    pub guided: Tensor,
    /// The denoised latent of the negative prompt alone, where [`SamplerKind::needs_uncond`] says so.
    pub uncond: Option<Tensor>,
}

impl Denoised {
    /// A prediction without its unconditional part.
    #[must_use]
    pub fn guided(guided: Tensor) -> Self {
        Self { guided, uncond: None }
    }

    fn uncond(&self) -> Result<&Tensor> {
        self.uncond.as_ref().ok_or(SamplerError::NoUncond)
    }
}

/// What a sampler wants next.
#[derive(Debug, Clone)]
pub enum Advance {
    /// Denoise this latent at this sigma, and give the answer to [`Sampler::advance`].
    Evaluate {
        /// The noisy latent, not yet scaled for the network.
        latent: Tensor,
        /// Its noise level.
        sigma: f32,
    },
    /// The run is over; this is its latent.
    Done(Tensor),
}

/// A run of one sample through its sigmas.
pub trait Sampler: Send {
    /// Takes the denoised latent that the last [`Advance::Evaluate`] asked for and says what is next.
    ///
    /// # Errors
    /// The run is over already, the unconditional prediction is missing, shapes differ, or a tensor operation
    /// failed. The sampler is not usable afterwards.
    fn advance(&mut self, denoised: &Denoised) -> Result<Advance>;

    /// Steps that are done, for progress; a step may take several evaluations.
    fn completed_steps(&self) -> usize;

    /// Steps of the whole run.
    fn total_steps(&self) -> usize;
}

/// Starts a run of `latent` (noisy, at `sigmas[0]`) through falling `sigmas`. A list of no or one sigma is no run:
/// the latent is done at once. A sigma that repeats makes no step.
///
/// `noise` comes from [`noise_for`]; `model` is the noise schedule of the network.
///
/// # Errors
/// A sigma is negative, not finite, or above the one before it, or a tensor operation failed.
pub fn start(
    kind: SamplerKind,
    latent: Tensor,
    sigmas: &[f32],
    noise: Box<dyn StepNoise>,
    _model: &ModelSampling,
) -> Result<(Box<dyn Sampler>, Advance)> {
    let mut steps: Vec<f32> = Vec::with_capacity(sigmas.len());
    for (index, &sigma) in sigmas.iter().enumerate() {
        let previous = steps.last().copied();
        if !sigma.is_finite() || sigma < 0.0 || previous.is_some_and(|previous| sigma > previous) {
            return Err(SamplerError::Sigmas { index, sigma, previous });
        }
        if previous != Some(sigma) {
            steps.push(sigma);
        }
    }
    match kind {
        _ => Ok(Driver::start(euler::Euler, latent, steps, noise)),
    }
}
