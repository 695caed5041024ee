//! Euler's method, plain, ancestral, and for CFG++.

use super::arithmetic::{ancestral_step, flow_ancestral_step, linear, scaled, slope};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};
use crate::schedule::Process;

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
        if step.process == Process::Flow {
            if next == 0.0 {
                return Ok(Outcome::Next(denoised.guided.clone()));
            }
            let (down, keep, up) = flow_ancestral_step(sigma, next);
            let ratio = down / sigma;
            let x = scaled(ratio, step.latent, &[(1.0 - ratio, &denoised.guided)])?;
            return Ok(Outcome::Next(step.renoise(&x, keep, up)?));
        }
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
        // In the coordinates of an exploding process, where a flow's latent is divided by what the picture counts.
        let (alpha, alpha_next) = (step.process.alpha(sigma), step.process.alpha(next));
        let (from, to) = (sigma / alpha, next / alpha_next);
        let (down, up) = if self.ancestral { ancestral_step(from, to) } else { (to, 0.0) };
        let uncond = scaled(alpha, denoised.uncond()?, &[])?;
        let d = slope(step.latent, &uncond, sigma)?;
        let x = scaled(alpha_next * down, &d, &[(alpha_next, &denoised.guided)])?;
        let up = alpha_next * up;
        Ok(Outcome::Next(if self.ancestral { step.add_noise(&x, up, sigma, next)? } else { x }))
    }
}
