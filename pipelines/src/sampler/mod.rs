//! Samplers as state machines. A sampler owns neither a loop nor a model: it says which latent it wants denoised at
//! which sigma, is told the answer, and says the next one, until it is done. So the samples of one network call may
//! use different samplers and stand at different steps.
//!
//! The methods are those of k-diffusion and ComfyUI by their names, with ComfyUI's default settings. Latents may
//! have any shape. Coefficients are scalars computed on the host in single precision as torch does; the tensors
//! stay on their device.

mod arithmetic;
mod ddpm;
mod deis;
mod dpm2;
mod dpm_solver;
mod dpmpp;
mod dpmpp_sde;
mod driver;
mod er_sde;
mod euler;
mod heun;
mod history;
mod kind;
mod res;
mod sa_solver;
mod seeds;
mod uni_pc;

pub(crate) use kind::join;
pub use kind::{SamplerKind, noise_for};

use candle_core::Tensor;

use crate::noise::{NoiseError, StepNoise};
use crate::schedule::{ModelSampling, Process};
use dpmpp_sde::Correction;
use driver::{Driver, Run};
use uni_pc::{UniPc, Variant};

/// Share of a flow's run that methods in logarithms leave out where it begins in noise alone (ComfyUI).
const FIRST_PERCENT: f64 = 1e-4;

/// What can go wrong in a sampler.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    /// No sampler has this name.
    #[error("no sampler is called {0:?}; choose one of: {list}", list = join(SamplerKind::ALL))]
    UnknownSampler(String),
    /// The sigmas are none that the sampler can walk.
    #[error(
        "sigma number {index} is {sigma} after {previous:?}; sigmas must be finite and not negative, and with this \
         sampler must not rise"
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
    /// The adaptive sampler found no step that is accurate enough.
    #[error(
        "the adaptive sampler gave up after {tries} steps (error {error}); the network's predictions may not be \
         finite, or use a sampler with fixed steps"
    )]
    NoConvergence {
        /// Steps tried.
        tries: usize,
        /// Error of the last one, relative to what is allowed.
        error: f64,
    },
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

    /// Whether what was asked for last is a step's first evaluation, which ComfyUI shows as the step's picture.
    fn opens_step(&self) -> bool;

    /// Steps that are done, for progress; a step may take several evaluations.
    fn completed_steps(&self) -> usize;

    /// Steps of the whole run.
    fn total_steps(&self) -> usize;
}

/// Starts a run of `latent` (noisy, at `sigmas[0]`) through `sigmas`, which fall, or rise where the method can follow
/// them. A list of no or one sigma is no run: the latent is done at once. A sigma that repeats makes no step where the
/// method would divide by the step's length; other methods evaluate it, as ComfyUI does.
///
/// `noise` comes from [`noise_for`]; `model` is the noise schedule of the network.
///
/// # Errors
/// A sigma is negative, not finite, or above the one before it with a sampler that only falls, or a tensor operation
/// failed.
pub fn start(
    kind: SamplerKind,
    latent: Tensor,
    sigmas: &[f32],
    noise: Box<dyn StepNoise>,
    model: &ModelSampling,
) -> Result<(Box<dyn Sampler>, Advance)> {
    let mut steps: Vec<f32> = Vec::with_capacity(sigmas.len());
    for (index, &sigma) in sigmas.iter().enumerate() {
        let previous = steps.last().copied();
        let rises = previous.is_some_and(|previous| sigma > previous);
        if !sigma.is_finite() || sigma < 0.0 || (rises && !kind.can_rise()) {
            return Err(SamplerError::Sigmas { index, sigma, previous });
        }
        if previous != Some(sigma) || kind.steps_in_place() {
            steps.push(sigma);
        }
    }
    let process = model.process();
    if let [first, _, ..] = steps.as_mut_slice()
        && process == Process::Flow
        && kind.is_logarithmic()
        && *first >= 1.0
    {
        // Where there is noise alone, the logarithm of the signal's share is none.
        *first = model.percent_to_sigma(FIRST_PERCENT);
    }
    let run = Run { latent, sigmas: steps, process, noise };
    Ok(match kind {
        SamplerKind::Euler | SamplerKind::Ddim => Driver::start(euler::Euler, run),
        SamplerKind::EulerCfgPp => Driver::start(euler::EulerCfgPp { ancestral: false }, run),
        SamplerKind::EulerAncestral => Driver::start(euler::EulerAncestral, run),
        SamplerKind::EulerAncestralCfgPp => Driver::start(euler::EulerCfgPp { ancestral: true }, run),
        SamplerKind::Heun => Driver::start(heun::Heun::default(), run),
        SamplerKind::Heunpp2 => Driver::start(heun::Heunpp2::default(), run),
        SamplerKind::Dpm2 => Driver::start(dpm2::Dpm2::new(false), run),
        SamplerKind::Dpm2Ancestral => Driver::start(dpm2::Dpm2::new(true), run),
        SamplerKind::Lms => Driver::start(history::Lms::new(), run),
        SamplerKind::DpmFast => dpm_solver::DpmFast::start(run),
        SamplerKind::DpmAdaptive => dpm_solver::DpmAdaptive::start(run),
        SamplerKind::Dpmpp2sAncestral => Driver::start(dpmpp::Dpmpp2sAncestral::default(), run),
        SamplerKind::Dpmpp2sAncestralCfgPp => Driver::start(dpmpp::Dpmpp2sAncestralCfgPp::default(), run),
        SamplerKind::DpmppSde => Driver::start(dpmpp_sde::DpmppSde::default(), run),
        SamplerKind::Dpmpp2m => Driver::start(dpmpp::Dpmpp2m::default(), run),
        SamplerKind::Dpmpp2mCfgPp => Driver::start(dpmpp::Dpmpp2mCfgPp::default(), run),
        SamplerKind::Dpmpp2mSde => Driver::start(dpmpp_sde::Dpmpp2mSde::new(Correction::Midpoint), run),
        SamplerKind::Dpmpp2mSdeHeun => Driver::start(dpmpp_sde::Dpmpp2mSde::new(Correction::Heun), run),
        SamplerKind::Dpmpp3mSde => Driver::start(dpmpp_sde::Dpmpp3mSde::new(), run),
        SamplerKind::Ddpm => Driver::start(ddpm::Ddpm, run),
        SamplerKind::Lcm => Driver::start(ddpm::Lcm, run),
        SamplerKind::Ipndm => Driver::start(history::Ipndm::new(), run),
        SamplerKind::IpndmV => Driver::start(history::IpndmV::new(), run),
        SamplerKind::Deis => Driver::start(deis::Deis::new(), run),
        SamplerKind::ResMultistep => Driver::start(res::ResMultistep::new(false, false), run),
        SamplerKind::ResMultistepCfgPp => Driver::start(res::ResMultistep::new(false, true), run),
        SamplerKind::ResMultistepAncestral => Driver::start(res::ResMultistep::new(true, false), run),
        SamplerKind::ResMultistepAncestralCfgPp => Driver::start(res::ResMultistep::new(true, true), run),
        SamplerKind::GradientEstimation => Driver::start(history::GradientEstimation::new(false), run),
        SamplerKind::GradientEstimationCfgPp => Driver::start(history::GradientEstimation::new(true), run),
        SamplerKind::ErSde => Driver::start(er_sde::ErSde::default(), run),
        SamplerKind::Seeds2 => Driver::start(seeds::Seeds2::default(), run),
        SamplerKind::Seeds3 => Driver::start(seeds::Seeds3::default(), run),
        SamplerKind::SaSolver => Driver::start(sa_solver::SaSolver::new(model, false), run),
        SamplerKind::SaSolverPece => Driver::start(sa_solver::SaSolver::new(model, true), run),
        SamplerKind::UniPc => UniPc::start(Variant::Bh1, run)?,
        SamplerKind::UniPcBh2 => UniPc::start(Variant::Bh2, run)?,
    })
}
