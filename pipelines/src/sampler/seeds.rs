//! SEEDS-2 (Gonzalez et al. 2023): a stochastic exponential solver of two stages, eta 1, r 1/2.

use candle_core::Tensor;

use super::arithmetic::{linear, scaled};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};
use crate::schedule::{exp, ln};

/// A run of `seeds_2`.
#[derive(Default)]
pub(super) struct Seeds2 {
    /// Noise of the first stage while the midpoint is evaluated.
    first_noise: Option<Tensor>,
}

impl Method for Seeds2 {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        if next == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let (lambda, lambda_next) = (-ln(sigma), -ln(next));
        let h = lambda_next - lambda;
        let sigma_mid = exp(-(lambda + 0.5 * h));
        // Strength of the noise of half a step, relative to its sigma.
        let half_noise = (-(-h).exp_m1()).sqrt();

        let Some(first_noise) = self.first_noise.take() else {
            let x = scaled(
                sigma_mid / sigma * exp(-0.5 * h),
                step.latent,
                &[(-(-h).exp_m1(), &denoised.guided)],
            )?;
            let noise = step.draw(sigma, sigma_mid)?;
            let x = linear(&x, &[(sigma_mid * half_noise, &noise)])?;
            self.first_noise = Some(noise);
            return Ok(Outcome::Evaluate { latent: x, sigma: sigma_mid });
        };
        // With r = 1/2 the midpoint's prediction counts alone.
        let x = scaled(next / sigma * exp(-h), step.latent, &[(-(-2.0 * h).exp_m1(), &denoised.guided)])?;
        let second_noise = step.draw(sigma_mid, next)?;
        let terms = [(next * half_noise * exp(-0.5 * h), &first_noise), (next * half_noise, &second_noise)];
        Ok(Outcome::Next(linear(&x, &terms)?))
    }
}
