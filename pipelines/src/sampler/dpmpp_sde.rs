//! DPM-Solver++ for the stochastic equation (Lu et al. 2022, k-diffusion's forms), eta 1: noise comes from one
//! Brownian path.

use candle_core::Tensor;

use super::arithmetic::{ancestral_step, linear, scaled};
use super::driver::{Method, Outcome, Step};
use super::history::History;
use super::{Denoised, Result};
use crate::schedule::{exp, ln};

/// `dpmpp_sde`: two evaluations a step, the second halfway in the logarithm (r 1/2).
#[derive(Default)]
pub(super) struct DpmppSde {
    /// Prediction at the step's start while the midpoint is evaluated.
    first: Option<Tensor>,
}

impl Method for DpmppSde {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        if next == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let process = step.process;
        let (lambda, lambda_next) = (process.half_log_snr(sigma), process.half_log_snr(next));
        let lambda_mid = lambda + 0.5 * (lambda_next - lambda);
        let sigma_mid = process.sigma(lambda_mid);
        let second = self.first.is_some();
        let (lambda_to, sigma_to) = if second { (lambda_next, next) } else { (lambda_mid, sigma_mid) };

        let (down, up) = ancestral_step(exp(-lambda), exp(-lambda_to));
        let h = -ln(down) - lambda;
        let (alpha, alpha_to) = (process.alpha(sigma), process.alpha(sigma_to));
        // With r = 1/2 the second half of the step uses the midpoint's prediction alone.
        let terms = [(-alpha_to * (-h).exp_m1(), &denoised.guided)];
        let x = scaled(alpha_to / alpha * exp(-h), step.latent, &terms)?;
        let x = step.add_noise(&x, alpha_to * up, sigma, sigma_to)?;
        if second {
            self.first = None;
            return Ok(Outcome::Next(x));
        }
        self.first = Some(denoised.guided.clone());
        Ok(Outcome::Evaluate { latent: x, sigma: sigma_mid })
    }
}

/// How `dpmpp_2m_sde` corrects by the last step's prediction.
#[derive(Clone, Copy)]
pub(super) enum Correction {
    /// `dpmpp_2m_sde`.
    Midpoint,
    /// `dpmpp_2m_sde_heun`.
    Heun,
}

/// `dpmpp_2m_sde`: one evaluation a step, corrected by the last prediction.
pub(super) struct Dpmpp2mSde {
    correction: Correction,
    previous: Option<Tensor>,
}

impl Dpmpp2mSde {
    pub(super) fn new(correction: Correction) -> Self {
        Self { correction, previous: None }
    }
}

impl Method for Dpmpp2mSde {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        let previous = self.previous.replace(denoised.guided.clone());
        if next == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let h = length(&step, sigma, next);
        let h_eta = 2.0 * h;
        let alpha = step.process.alpha(next);
        let amount = -alpha * (-h_eta).exp_m1();
        let mut x = scaled(next / sigma * exp(-h), step.latent, &[(amount, &denoised.guided)])?;
        if let (Some(previous), Some(sigma_before)) = (&previous, step.previous()) {
            let r = length(&step, sigma_before, sigma) / h;
            let weight = match self.correction {
                Correction::Midpoint => 0.5 * amount,
                Correction::Heun => amount / -h_eta + alpha,
            } / r;
            x = linear(&x, &[(weight, &denoised.guided), (-weight, previous)])?;
        }
        Ok(Outcome::Next(step.add_noise(&x, noise_scale(next, h), sigma, next)?))
    }
}

/// `dpmpp_3m_sde`: one evaluation a step, corrected by the last two predictions.
pub(super) struct Dpmpp3mSde {
    predictions: History,
}

impl Dpmpp3mSde {
    pub(super) fn new() -> Self {
        Self { predictions: History::new(3) }
    }
}

impl Method for Dpmpp3mSde {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        self.predictions.push(denoised.guided.clone());
        if next == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let h = length(&step, sigma, next);
        let h_eta = 2.0 * h;
        let alpha = step.process.alpha(next);
        let before =
            |i: usize| length(&step, step.sigmas[step.index - i], step.sigmas[step.index + 1 - i]) / h;
        let phi_2 = alpha * ((-h_eta).exp_m1() / h_eta + 1.0);
        // The corrections are linear in the predictions: their weights, newest prediction first.
        let corrections = match self.predictions.len() {
            1 => vec![0.0],
            2 => {
                let weight = phi_2 / before(1);
                vec![weight, -weight]
            }
            _ => {
                let (r0, r1) = (before(1), before(2));
                let phi_3 = phi_2 / h_eta - 0.5 * alpha;
                let (near, far) = (1.0 / r0, 1.0 / r1);
                // d1 = near + (near - far) r0 / (r0 + r1), d2 = (near - far) / (r0 + r1), of differences.
                let mixed = (phi_2 * r0 - phi_3) / (r0 + r1);
                let (weight_near, weight_far) = ((phi_2 + mixed) * near, -mixed * far);
                vec![weight_near, weight_far - weight_near, -weight_far]
            }
        };
        let amount = -alpha * (-h_eta).exp_m1();
        let x = scaled(next / sigma * exp(-h), step.latent, &[(amount, &denoised.guided)])?;
        let x = linear(&x, &self.predictions.with(&corrections))?;
        Ok(Outcome::Next(step.add_noise(&x, noise_scale(next, h), sigma, next)?))
    }
}

/// Length of a step in half the logarithm of the signal-to-noise ratio.
fn length(step: &Step<'_>, sigma: f32, next: f32) -> f32 {
    step.process.half_log_snr(next) - step.process.half_log_snr(sigma)
}

/// Strength of the fresh noise of a step of length `h` to `next`.
fn noise_scale(next: f32, h: f32) -> f32 {
    next * (-(-2.0 * h).exp_m1()).sqrt()
}
