//! Euler's method, plain, ancestral, and for CFG++.

use super::arithmetic::{ancestral_step, linear, scaled, slope};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};

/// Karras et al. 2022, algorithm 2 without churn: one step along the slope. `ddim` is the same without masks.
pub(super) struct Euler;

impl Method for Euler {
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let d = slope(step.latent, &denoised.guided, step.sigma())?;
        Ok(Outcome::Next(linear(step.latent, &[(step.next() - step.sigma(), &d)])?))
    }
}

/// Euler's method below the target and fresh noise up to it (k-diffusion).
pub(super) struct EulerAncestral;

impl Method for EulerAncestral {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        let (down, up) = ancestral_step(sigma, next);
        if down == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let d = slope(step.latent, &denoised.guided, sigma)?;
        let x = linear(step.latent, &[(down - sigma, &d)])?;
        Ok(Outcome::Next(step.add_noise(&x, up, sigma, next)?))
    }
}

/// CFG++ (Chung et al. 2024): the guided prediction is noised again along the slope of the unconditional one.
pub(super) struct EulerCfgPp {
    /// Whether part of the noise is fresh.
    pub(super) ancestral: bool,
}

impl Method for EulerCfgPp {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        if next == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let (down, up) = if self.ancestral { ancestral_step(sigma, next) } else { (next, 0.0) };
        let d = slope(step.latent, denoised.uncond()?, sigma)?;
        let x = scaled(down, &d, &[(1.0, &denoised.guided)])?;
        Ok(Outcome::Next(if self.ancestral { step.add_noise(&x, up, sigma, next)? } else { x }))
    }
}
