//! Samplers of the discrete chain: DDPM and LCM.

use super::arithmetic::{scaled, slope};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};

/// Ho et al. 2020, algorithm 2, between any two sigmas.
pub(super) struct Ddpm;

impl Method for Ddpm {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        let kept = 1.0 / (sigma * sigma + 1.0);
        let kept_next = 1.0 / (next * next + 1.0);
        let alpha = kept / kept_next;
        let eps = slope(step.latent, &denoised.guided, sigma)?;
        // The chain lives in variance-preserving coordinates, latents in variance-exploding ones.
        let out = (1.0 + next * next).sqrt();
        let root = (1.0 / alpha).sqrt() * out;
        let x = scaled(
            root / (1.0 + sigma * sigma).sqrt(),
            step.latent,
            &[(-root * (1.0 - alpha) / (1.0 - kept).sqrt(), &eps)],
        )?;
        if next == 0.0 {
            return Ok(Outcome::Next(x));
        }
        let scale = ((1.0 - alpha) * (1.0 - kept_next) / (1.0 - kept)).sqrt() * out;
        Ok(Outcome::Next(step.add_noise(&x, scale, sigma, next)?))
    }
}

/// Latent consistency models (Luo et al. 2023): the prediction, noised afresh.
pub(super) struct Lcm;

impl Method for Lcm {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let next = step.next();
        if next == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        Ok(Outcome::Next(step.renoise(&denoised.guided, step.process.alpha(next), next)?))
    }
}
