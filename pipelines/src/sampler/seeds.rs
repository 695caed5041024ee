//! SEEDS (Gonzalez et al. 2023): stochastic exponential solvers of two and three stages, eta 1.

use candle_core::Tensor;

use super::arithmetic::{linear, scaled};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};
use crate::schedule::{Process, exp};

/// A step in half the logarithm of the signal-to-noise ratio.
struct LogStep {
    process: Process,
    sigma: f32,
    next: f32,
    lambda: f32,
    lambda_next: f32,
    h: f32,
}

impl LogStep {
    fn of(step: &Step<'_>) -> Self {
        let (process, sigma, next) = (step.process, step.sigma(), step.next());
        let (lambda, lambda_next) = (process.half_log_snr(sigma), process.half_log_snr(next));
        Self { process, sigma, next, lambda, lambda_next, h: lambda_next - lambda }
    }

    /// The noise level at a share of the step.
    fn sigma_at(&self, share: f32) -> f32 {
        // torch's lerp counts from the nearer end.
        let lambda = match share < 0.5 {
            true => self.lambda + share * self.h,
            false => self.lambda_next - self.h * (1.0 - share),
        };
        self.process.sigma(lambda)
    }

    /// The latent at `sigma`, a share of the step further, by predictions with these weights.
    fn to(&self, x: &Tensor, sigma: f32, share: f32, weights: &[(f32, &Tensor)]) -> Result<Tensor> {
        let alpha = self.process.alpha(sigma);
        let terms: Vec<(f32, &Tensor)> =
            weights.iter().map(|(weight, denoised)| (-alpha * weight, *denoised)).collect();
        scaled(sigma / self.sigma * exp(-share * self.h), x, &terms)
    }

    /// The noise of a stage that has gone `covered` of the step, `fresh` drawn for its last part.
    fn noise(&self, kept: Option<&Tensor>, covered: f32, before: f32, fresh: &Tensor) -> Result<Tensor> {
        let part = (before - covered) * self.h;
        let fresh = scaled((-(2.0 * part).exp_m1()).sqrt(), fresh, &[])?;
        match kept {
            Some(kept) => linear(&fresh, &[(exp(part), kept)]),
            None => Ok(fresh),
        }
    }

    /// `h phi_1(h)` of a share of the step, for eta 1.
    fn phi_1(&self, share: f32) -> f32 {
        (-share * (2.0 * self.h)).exp_m1()
    }

    /// `h phi_2(h)` of it.
    fn phi_2(&self, share: f32) -> f32 {
        let h = -share * (2.0 * self.h);
        (h.exp_m1() - h) / h
    }
}

/// A run of `seeds_2`, r 1/2.
#[derive(Default)]
pub(super) struct Seeds2 {
    /// Noise of the first stage while the midpoint is evaluated.
    noise: Option<Tensor>,
}

impl Method for Seeds2 {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        const HALF: f32 = 0.5;
        if step.next() == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let log = LogStep::of(&step);
        let middle = log.sigma_at(HALF);
        let Some(noise) = self.noise.take() else {
            let fresh = step.draw(log.sigma, middle)?;
            let noise = log.noise(None, HALF, 0.0, &fresh)?;
            let x = log.to(step.latent, middle, HALF, &[(log.phi_1(HALF), &denoised.guided)])?;
            let latent = linear(&x, &[(middle, &noise)])?;
            self.noise = Some(noise);
            return Ok(Outcome::Evaluate { latent, sigma: middle });
        };
        // With r = 1/2 the midpoint's prediction counts alone.
        let x = log.to(step.latent, log.next, 1.0, &[(log.phi_1(1.0), &denoised.guided)])?;
        let fresh = step.draw(middle, log.next)?;
        let noise = log.noise(Some(&noise), 1.0, HALF, &fresh)?;
        Ok(Outcome::Next(linear(&x, &[(log.next, &noise)])?))
    }
}

/// A run of `seeds_3`, r 1/3 and 2/3.
#[derive(Default)]
pub(super) struct Seeds3 {
    /// The step's first prediction and its noise so far, while later stages are evaluated.
    stage: Option<Stage>,
}

struct Stage {
    first: Tensor,
    noise: Tensor,
    /// Whether the last stage is evaluated.
    last: bool,
}

impl Method for Seeds3 {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        const R1: f32 = 1.0 / 3.0;
        const R2: f32 = 2.0 / 3.0;
        if step.next() == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let log = LogStep::of(&step);
        let (sigma_1, sigma_2) = (log.sigma_at(R1), log.sigma_at(R2));
        let guided = &denoised.guided;
        let Some(Stage { first, noise, last }) = self.stage.take() else {
            let fresh = step.draw(log.sigma, sigma_1)?;
            let noise = log.noise(None, R1, 0.0, &fresh)?;
            let x = log.to(step.latent, sigma_1, R1, &[(log.phi_1(R1), guided)])?;
            let latent = linear(&x, &[(sigma_1, &noise)])?;
            self.stage = Some(Stage { first: guided.clone(), noise, last: false });
            return Ok(Outcome::Evaluate { latent, sigma: sigma_1 });
        };
        if last {
            let weight = log.phi_2(1.0) / R2;
            let weights = [(log.phi_1(1.0) - weight, &first), (weight, guided)];
            let x = log.to(step.latent, log.next, 1.0, &weights)?;
            let fresh = step.draw(sigma_2, log.next)?;
            let noise = log.noise(Some(&noise), 1.0, R2, &fresh)?;
            return Ok(Outcome::Next(linear(&x, &[(log.next, &noise)])?));
        }
        let weight = R2 / R1 * log.phi_2(R2);
        let weights = [(log.phi_1(R2) - weight, &first), (weight, guided)];
        let x = log.to(step.latent, sigma_2, R2, &weights)?;
        let fresh = step.draw(sigma_1, sigma_2)?;
        let noise = log.noise(Some(&noise), R2, R1, &fresh)?;
        let latent = linear(&x, &[(sigma_2, &noise)])?;
        self.stage = Some(Stage { first, noise, last: true });
        Ok(Outcome::Evaluate { latent, sigma: sigma_2 })
    }
}
