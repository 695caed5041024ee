//! What most methods share: steps from one sigma to the next, each opening with an evaluation at the step's own
//! sigma. A [`Method`] only says what a step makes of its evaluations.

use candle_core::Tensor;

use super::{Advance, Denoised, Result, Sampler, SamplerError};
use crate::noise::StepNoise;
use crate::schedule::Process;

/// The step a method is in.
pub(super) struct Step<'a> {
    /// Which step, from 0.
    pub(super) index: usize,
    /// All sigmas of the run; there is one more than steps.
    pub(super) sigmas: &'a [f32],
    /// The latent at the step's start.
    pub(super) latent: &'a Tensor,
    /// What the sigmas are those of.
    pub(super) process: Process,
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

    /// `keep * x` with noise of strength `scale`, at the step's end.
    pub(super) fn renoise(&mut self, x: &Tensor, keep: f32, scale: f32) -> Result<Tensor> {
        let kept = x.affine(f64::from(keep), 0.0)?;
        self.add_noise(&kept, scale, self.sigma(), self.next())
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

/// What a method is to walk through.
pub(super) struct Run {
    /// The latent at the first sigma.
    pub(super) latent: Tensor,
    /// Fewer than two are no run.
    pub(super) sigmas: Vec<f32>,
    /// What the sigmas are those of.
    pub(super) process: Process,
    /// Noise of the steps.
    pub(super) noise: Box<dyn StepNoise>,
}

/// Takes a [`Method`] through a [`Run`].
pub(super) struct Driver<M> {
    method: M,
    run: Run,
    index: usize,
    /// Whether the step has begun with what is evaluated now.
    opens_step: bool,
}

impl<M: Method + 'static> Driver<M> {
    pub(super) fn start(method: M, run: Run) -> (Box<dyn Sampler>, Advance) {
        let driver = Self { method, run, index: 0, opens_step: true };
        let first = driver.evaluate();
        (Box::new(driver), first)
    }

    fn evaluate(&self) -> Advance {
        let latent = self.run.latent.clone();
        if self.index < self.total_steps() {
            Advance::Evaluate { latent, sigma: self.run.sigmas[self.index] }
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
            sigmas: &self.run.sigmas,
            latent: &self.run.latent,
            process: self.run.process,
            noise: self.run.noise.as_mut(),
        };
        match self.method.step(step, denoised)? {
            Outcome::Evaluate { latent, sigma } => {
                self.opens_step = false;
                Ok(Advance::Evaluate { latent, sigma })
            }
            Outcome::Next(latent) => {
                self.run.latent = latent;
                self.index += 1;
                self.opens_step = true;
                Ok(self.evaluate())
            }
        }
    }

    fn opens_step(&self) -> bool {
        self.opens_step
    }

    fn completed_steps(&self) -> usize {
        self.index
    }

    fn total_steps(&self) -> usize {
        self.run.sigmas.len().saturating_sub(1)
    }
}
