//! DPM-Solver-2 in k-diffusion's form: the slope is taken halfway (in the logarithm of sigma).

use candle_core::Tensor;

use super::arithmetic::{ancestral_step, flow_ancestral_step, linear, slope};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};
use crate::schedule::{Process, exp, ln};

/// `dpm_2`, and `dpm_2_ancestral`, which steps below its target and adds fresh noise up to it.
pub(super) struct Dpm2 {
    ancestral: bool,
    /// Latent and sigma of the midpoint that is being evaluated.
    middle: Option<(Tensor, f32)>,
}

impl Dpm2 {
    pub(super) fn new(ancestral: bool) -> Self {
        Self { ancestral, middle: None }
    }
}

impl Method for Dpm2 {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        let (down, keep, up) = match (self.ancestral, step.process) {
            (false, _) => (next, 1.0, 0.0),
            (true, Process::Exploding) => {
                let (down, up) = ancestral_step(sigma, next);
                (down, 1.0, up)
            }
            (true, Process::Flow) => flow_ancestral_step(sigma, next),
        };
        if let Some((x_2, sigma_mid)) = self.middle.take() {
            let d_2 = slope(&x_2, &denoised.guided, sigma_mid)?;
            let x = linear(step.latent, &[(down - sigma, &d_2)])?;
            return Ok(Outcome::Next(if self.ancestral { step.renoise(&x, keep, up)? } else { x }));
        }
        let d = slope(step.latent, &denoised.guided, sigma)?;
        if down == 0.0 {
            return Ok(Outcome::Next(linear(step.latent, &[(down - sigma, &d)])?));
        }
        let (from, to) = (ln(sigma), ln(down));
        let sigma_mid = exp(to - (to - from) * 0.5);
        let x_2 = linear(step.latent, &[(sigma_mid - sigma, &d)])?;
        self.middle = Some((x_2.clone(), sigma_mid));
        Ok(Outcome::Evaluate { latent: x_2, sigma: sigma_mid })
    }
}
