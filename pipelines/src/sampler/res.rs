//! The second-order exponential multistep of RES (Zhang et al. 2023): plain, ancestral, and both for CFG++.

use candle_core::Tensor;

use super::arithmetic::{ancestral_step, linear, scaled, slope};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};
use crate::schedule::{exp, ln};

/// A run of `res_multistep*`.
pub(super) struct ResMultistep {
    /// Whether it steps below its target and adds fresh noise up to it.
    ancestral: bool,
    cfg_pp: bool,
    last: Option<LastStep>,
}

struct LastStep {
    /// The prediction, the unconditional one for CFG++.
    denoised: Tensor,
    /// Where the step ended before its noise.
    down: f32,
}

impl ResMultistep {
    pub(super) fn new(ancestral: bool, cfg_pp: bool) -> Self {
        Self { ancestral, cfg_pp, last: None }
    }
}

impl Method for ResMultistep {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        let (down, up) = if self.ancestral { ancestral_step(sigma, next) } else { (next, 0.0) };
        let guided = &denoised.guided;
        let aim = if self.cfg_pp { denoised.uncond()? } else { guided };
        let last = self.last.replace(LastStep { denoised: aim.clone(), down });
        let x = match (last, step.previous()) {
            (Some(last), Some(before)) if down != 0.0 => {
                let (t_before, t_old, t, t_next) = (-ln(before), -ln(last.down), -ln(sigma), -ln(down));
                let h = t_next - t;
                let c2 = (t_before - t_old) / h;
                let phi_1 = (-h).exp_m1() / -h;
                let phi_2 = (phi_1 - 1.0) / -h;
                let number = |weight: f32| if weight.is_nan() { 0.0 } else { weight };
                let (b1, b2) = (number(phi_1 - phi_2 / c2), number(phi_2 / c2));
                let moved = match self.cfg_pp {
                    true => linear(step.latent, &[(1.0, guided), (-1.0, aim)])?,
                    false => step.latent.clone(),
                };
                scaled(exp(-h), &moved, &[(h * b1, aim), (h * b2, &last.denoised)])?
            }
            _ => {
                let d = slope(step.latent, aim, sigma)?;
                match self.cfg_pp {
                    true => linear(guided, &[(down, &d)])?,
                    false => linear(step.latent, &[(down - sigma, &d)])?,
                }
            }
        };
        if self.ancestral && next > 0.0 {
            return Ok(Outcome::Next(step.add_noise(&x, up, sigma, next)?));
        }
        Ok(Outcome::Next(x))
    }
}
