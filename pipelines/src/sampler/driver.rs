//! What most methods share: steps from one sigma to the next, each opening with an evaluation at the step's own
//! sigma. A [`Method`] only says what a step makes of its evaluations.

use candle_core::Tensor;

use super::{Advance, Denoised, Result, Sampler, SamplerError};
use crate::noise::StepNoise;

/// The step a method is in.
pub(super) struct Step<'a> {
    /// Which step, from 0.
    pub(super) index: usize,
    /// All sigmas of the run; there is one more than steps.
    pub(super) sigmas: &'a [f32],
    /// The latent at the step's start.
    pub(super) latent: &'a Tensor,
    noise: &'a mut dyn StepNoise,
}

impl Step<'_> {
    /// Sigma at the step's start.
    pub(super) fn sigma(&self) -> f32 {
        self.sigmas[self.index]
    }

    /// Sigma at the step's end.
    pub(super) fn next(&self) -> f32 {
        self.sigmas[self.index + 1]
    }

    /// Sigma where the step before began, if there was one.
    pub(super) fn previous(&self) -> Option<f32> {
        self.index.checked_sub(1).map(|index| self.sigmas[index])
    }

    /// Standard normal noise for the way between two sigmas.
    pub(super) fn draw(&mut self, from: f32, to: f32) -> Result<Tensor> {
        Ok(self.noise.next(from, to)?)
    }

    /// `x` with noise of strength `scale` for the way between two sigmas.
    pub(super) fn add_noise(&mut self, x: &Tensor, scale: f32, from: f32, to: f32) -> Result<Tensor> {
        Ok((x + self.draw(from, to)?.affine(f64::from(scale), 0.0)?)?)
    }
}

/// What a method makes of an evaluation.
pub(super) enum Outcome {
    /// The step goes on: this is to be denoised too.
    Evaluate {
        /// The noisy latent.
        latent: Tensor,
        /// Its noise level.
        sigma: f32,
    },
    /// The step is over; this is the latent at its end.
    Next(Tensor),
}

/// A sampling method: a step's arithmetic and what is remembered between steps.
pub(super) trait Method: Send {
    /// Called with the evaluation at the step's sigma, then with each one that the step asked for.
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome>;
}

/// Runs a [`Method`] through a list of sigmas.
pub(super) struct Driver<M> {
    method: M,
    sigmas: Vec<f32>,
    index: usize,
    latent: Tensor,
    noise: Box<dyn StepNoise>,
}

impl<M: Method + 'static> Driver<M> {
    /// Fewer than two `sigmas` are no run.
    pub(super) fn start(
        method: M,
        latent: Tensor,
        sigmas: Vec<f32>,
        noise: Box<dyn StepNoise>,
    ) -> (Box<dyn Sampler>, Advance) {
        let driver = Self { method, sigmas, index: 0, latent, noise };
        let first = driver.evaluate();
        (Box::new(driver), first)
    }

    fn evaluate(&self) -> Advance {
        let latent = self.latent.clone();
        if self.index < self.total_steps() {
            Advance::Evaluate { latent, sigma: self.sigmas[self.index] }
        } else {
            Advance::Done(latent)
        }
    }
}

impl<M: Method + 'static> Sampler for Driver<M> {
    fn advance(&mut self, denoised: &Denoised) -> Result<Advance> {
        if self.index >= self.total_steps() {
            return Err(SamplerError::AlreadyDone);
        }
        let step = Step {
            index: self.index,
            sigmas: &self.sigmas,
            latent: &self.latent,
            noise: self.noise.as_mut(),
        };
        match self.method.step(step, denoised)? {
            Outcome::Evaluate { latent, sigma } => Ok(Advance::Evaluate { latent, sigma }),
            Outcome::Next(latent) => {
                self.latent = latent;
                self.index += 1;
                Ok(self.evaluate())
            }
        }
    }

    fn completed_steps(&self) -> usize {
        self.index
    }

    fn total_steps(&self) -> usize {
        self.sigmas.len().saturating_sub(1)
    }
}
