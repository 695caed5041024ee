//! DPM-Solver++ (Lu et al. 2022) without a Brownian path: 2S ancestral, 2M, and 2M for CFG++.

use candle_core::Tensor;

use super::arithmetic::{ancestral_step, linear, scaled, slope};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};
use crate::schedule::{exp, ln};

/// `dpmpp_2s_ancestral`: a second evaluation halfway in the logarithm, and fresh noise at the end.
#[derive(Default)]
pub(super) struct Dpmpp2sAncestral {
    in_second_half: bool,
}

impl Method for Dpmpp2sAncestral {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        let (down, up) = ancestral_step(sigma, next);
        if down == 0.0 {
            let d = slope(step.latent, &denoised.guided, sigma)?;
            let x = linear(step.latent, &[(down - sigma, &d)])?;
            return Ok(Outcome::Next(if next > 0.0 { step.add_noise(&x, up, sigma, next)? } else { x }));
        }
        let (t, t_next) = (-ln(sigma), -ln(down));
        let h = t_next - t;
        if !self.in_second_half {
            self.in_second_half = true;
            let sigma_mid = exp(-(t + 0.5 * h));
            let x_2 = scaled(sigma_mid / exp(-t), step.latent, &[(-(-h * 0.5).exp_m1(), &denoised.guided)])?;
            return Ok(Outcome::Evaluate { latent: x_2, sigma: sigma_mid });
        }
        self.in_second_half = false;
        let x = scaled(exp(-t_next) / exp(-t), step.latent, &[(-(-h).exp_m1(), &denoised.guided)])?;
        Ok(Outcome::Next(step.add_noise(&x, up, sigma, next)?))
    }
}

/// `dpmpp_2m`: the prediction is extrapolated from this step's and the last one's.
#[derive(Default)]
pub(super) struct Dpmpp2m {
    previous: Option<Tensor>,
}

impl Method for Dpmpp2m {
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let previous = self.previous.replace(denoised.guided.clone());
        // The last step goes to t = infinity, where these formulas give the prediction itself.
        let (t, t_next) = (-ln(step.sigma()), -ln(step.next()));
        let h = t_next - t;
        let scale = exp(-t_next) / exp(-t);
        let amount = -(-h).exp_m1();
        Ok(Outcome::Next(match (previous, step.previous()) {
            (Some(previous), Some(sigma_before)) if step.next() > 0.0 => {
                let r = (t + ln(sigma_before)) / h;
                let share = 1.0 / (2.0 * r);
                let terms = [(amount * (1.0 + share), &denoised.guided), (-amount * share, &previous)];
                scaled(scale, step.latent, &terms)?
            }
            _ => scaled(scale, step.latent, &[(amount, &denoised.guided)])?,
        }))
    }
}

/// `dpmpp_2m_cfg_pp`: [`Dpmpp2m`] noised along the unconditional prediction.
#[derive(Default)]
pub(super) struct Dpmpp2mCfgPp {
    /// The last step's unconditional prediction.
    previous: Option<Tensor>,
}

impl Method for Dpmpp2mCfgPp {
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let uncond = denoised.uncond()?;
        let previous = self.previous.replace(uncond.clone());
        let (t, t_next) = (-ln(step.sigma()), -ln(step.next()));
        let h = t_next - t;
        let keep = exp(-h);
        let mut terms = vec![(1.0, &denoised.guided), (-keep, uncond)];
        if let (Some(previous), Some(sigma_before), true) = (&previous, step.previous(), step.next() > 0.0) {
            let r = (t + ln(sigma_before)) / h;
            let amount = -(-h).exp_m1() * (1.0 / (2.0 * r));
            terms.extend([(amount, &denoised.guided), (-amount, previous)]);
        }
        Ok(Outcome::Next(scaled(keep, step.latent, &terms)?))
    }
}
