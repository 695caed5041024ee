//! Euler's method.

use super::arithmetic::{linear, slope};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};

/// Karras et al. 2022, algorithm 2 without churn: one step along the slope.
pub(super) struct Euler;

impl Method for Euler {
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let d = slope(step.latent, &denoised.guided, step.sigma())?;
        Ok(Outcome::Next(linear(step.latent, &[(step.next() - step.sigma(), &d)])?))
    }
}
