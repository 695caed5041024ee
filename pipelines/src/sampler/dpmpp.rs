//! DPM-Solver++ (Lu et al. 2022) without a Brownian path: 2S ancestral and 2M, and both for CFG++.

use candle_core::Tensor;

use super::arithmetic::{ancestral_step, flow_ancestral_step, linear, scaled, slope};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};
use crate::schedule::{Process, exp, ln};

/// `dpmpp_2s_ancestral`: a second evaluation halfway in the logarithm, and fresh noise at the end.
#[derive(Default)]
pub(super) struct Dpmpp2sAncestral {
    in_second_half: bool,
}

impl Dpmpp2sAncestral {
    fn flow_step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        /// Where the second evaluation of a step from noise alone is, which has no logarithm.
        const AFTER_ALL_NOISE: f32 = 0.9999;
        let (sigma, next) = (step.sigma(), step.next());
        if next == 0.0 {
            let d = slope(step.latent, &denoised.guided, sigma)?;
            return Ok(Outcome::Next(linear(step.latent, &[(-sigma, &d)])?));
        }
        let (down, keep, up) = flow_ancestral_step(sigma, next);
        self.in_second_half = !self.in_second_half;
        if self.in_second_half {
            let middle = if sigma == 1.0 {
                AFTER_ALL_NOISE
            } else {
                let (from, to) = (step.process.half_log_snr(sigma), step.process.half_log_snr(down));
                step.process.sigma(from + 0.5 * (to - from))
            };
            let ratio = middle / sigma;
            let latent = scaled(ratio, step.latent, &[(1.0 - ratio, &denoised.guided)])?;
            return Ok(Outcome::Evaluate { latent, sigma: middle });
        }
        let ratio = down / sigma;
        let x = scaled(ratio, step.latent, &[(1.0 - ratio, &denoised.guided)])?;
        Ok(Outcome::Next(step.renoise(&x, keep, up)?))
    }
}

impl Method for Dpmpp2sAncestral {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        if step.process == Process::Flow {
            return self.flow_step(step, denoised);
        }
        let (sigma, next) = (step.sigma(), step.next());
        let (down, up) = ancestral_step(sigma, next);
        if down == 0.0 {
            let d = slope(step.latent, &denoised.guided, sigma)?;
            let x = linear(step.latent, &[(down - sigma, &d)])?;
            return Ok(Outcome::Next(if next > 0.0 { step.add_noise(&x, up, sigma, next)? } else { x }));
        }
        let half = Halfway::between(sigma, down);
        self.in_second_half = !self.in_second_half;
        if self.in_second_half {
            let latent = half.first(step.latent, &denoised.guided)?;
            return Ok(Outcome::Evaluate { latent, sigma: half.sigma });
        }
        let x = half.second(step.latent, &denoised.guided)?;
        Ok(Outcome::Next(step.add_noise(&x, up, sigma, next)?))
    }
}

/// The two halves of a second-order step.
struct Halfway {
    t: f32,
    t_next: f32,
    h: f32,
    /// The noise level halfway in the logarithm.
    sigma: f32,
}

impl Halfway {
    fn between(sigma: f32, down: f32) -> Self {
        let (t, t_next) = (-ln(sigma), -ln(down));
        let h = t_next - t;
        Self { t, t_next, h, sigma: exp(-(t + 0.5 * h)) }
    }

    /// `x` at [`Self::sigma`].
    fn first(&self, x: &Tensor, denoised: &Tensor) -> Result<Tensor> {
        scaled(self.sigma / exp(-self.t), x, &[(-(-self.h * 0.5).exp_m1(), denoised)])
    }

    /// `x` at the end, by what was predicted halfway.
    fn second(&self, x: &Tensor, denoised: &Tensor) -> Result<Tensor> {
        scaled(exp(-self.t_next) / exp(-self.t), x, &[(-(-self.h).exp_m1(), denoised)])
    }
}

/// `dpmpp_2s_ancestral_cfg_pp`: [`Dpmpp2sAncestral`] from a latent that guidance has moved.
#[derive(Default)]
pub(super) struct Dpmpp2sAncestralCfgPp {
    /// The guided prediction at the step's start while the middle is evaluated.
    first: Option<Tensor>,
}

impl Method for Dpmpp2sAncestralCfgPp {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        let (down, up) = ancestral_step(sigma, next);
        let uncond = denoised.uncond()?;
        if down == 0.0 {
            let x = denoised.guided.clone();
            return Ok(Outcome::Next(if next > 0.0 { step.add_noise(&x, up, sigma, next)? } else { x }));
        }
        let half = Halfway::between(sigma, down);
        let moved = |guided: &Tensor| linear(step.latent, &[(1.0, guided), (-1.0, uncond)]);
        let Some(first) = self.first.take() else {
            let latent = half.first(&moved(&denoised.guided)?, &denoised.guided)?;
            self.first = Some(denoised.guided.clone());
            return Ok(Outcome::Evaluate { latent, sigma: half.sigma });
        };
        // By the first guided prediction and the second unconditional one, as the reference has it.
        let x = half.second(&moved(&first)?, &denoised.guided)?;
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
