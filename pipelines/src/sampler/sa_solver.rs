//! SA-Solver (Xue et al. 2023): a stochastic Adams predictor and corrector, orders 3 and 4, with noise between 20%
//! and 80% of the timesteps.

use candle_core::Tensor;

use super::arithmetic::{scaled, solve};
use super::driver::{Method, Outcome, Step};
use super::history::History;
use super::{Denoised, Result};
use crate::schedule::{ModelSampling, exp, ln};

const PREDICTOR_ORDER: usize = 3;
const CORRECTOR_ORDER: usize = 4;

/// A run of `sa_solver`. The driver's latent is the predicted one; the corrected one is kept here.
pub(super) struct SaSolver {
    predictions: History,
    /// Sigmas between which noise is added, largest first.
    noisy: (f32, f32),
    last: Option<LastStep>,
}

/// What the corrector needs of the step before.
struct LastStep {
    /// The latent that step began with.
    corrected: Tensor,
    tau: f32,
    /// The noise it added, scaled.
    noise: Option<Tensor>,
}

impl SaSolver {
    pub(super) fn new(model: &ModelSampling) -> Self {
        Self {
            predictions: History::new(CORRECTOR_ORDER),
            noisy: (model.percent_to_sigma(0.2), model.percent_to_sigma(0.8)),
            last: None,
        }
    }

    fn tau(&self, sigma: f32) -> f32 {
        if self.noisy.0 >= sigma && sigma >= self.noisy.1 { 1.0 } else { 0.0 }
    }
}

impl Method for SaSolver {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let index = step.index;
        self.predictions.push(denoised.guided.clone());
        if step.next() == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let ends_at_zero = step.sigmas[step.sigmas.len() - 1] == 0.0;
        // Orders fall towards the end: this many steps are left, counted as the reference does.
        let left = |order: usize, left: usize| if ends_at_zero { order.min(left) } else { order };
        let known = self.predictions.len();
        let predictor_order = left(PREDICTOR_ORDER.min(known), step.sigmas.len() - 2 - index);
        let lambdas = |order: usize| -> Vec<f64> {
            (0..order).map(|i| f64::from(-ln(step.sigmas[index - i]))).collect()
        };

        let corrected = match (self.last.take(), step.previous()) {
            (Some(last), Some(before)) => {
                let order = left(CORRECTOR_ORDER.min(known), step.sigmas.len() - 1 - index);
                let (weights, keep) = adams(before, step.sigma(), &lambdas(order), last.tau);
                let x = scaled(keep, &last.corrected, &self.predictions.with(&weights))?;
                match last.noise {
                    Some(noise) => (x + noise)?,
                    None => x,
                }
            }
            _ => step.latent.clone(),
        };

        let tau = self.tau(step.next());
        let (weights, keep) = adams(step.sigma(), step.next(), &lambdas(predictor_order), tau);
        let mut x = scaled(keep, &corrected, &self.predictions.with(&weights))?;
        let mut noise = None;
        if tau > 0.0 {
            let h = -ln(step.next()) - -ln(step.sigma());
            let strength = step.next() * (-(-2.0 * tau * tau * h).exp_m1()).sqrt();
            let (from, to) = (step.sigma(), step.next());
            let scaled_noise = scaled(strength, &step.draw(from, to)?, &[])?;
            x = (x + &scaled_noise)?;
            noise = Some(scaled_noise);
        }
        self.last = Some(LastStep { corrected, tau, noise });
        Ok(Outcome::Next(x))
    }
}

/// Weights of the predictions at `lambdas` (newest first) for a step between two sigmas, and the factor of the
/// latent itself: the paper's equations 15 and 18 for data prediction.
fn adams(sigma: f32, next: f32, lambdas: &[f64], tau: f32) -> (Vec<f32>, f32) {
    let (s, t) = (f64::from(-ln(sigma)), f64::from(-ln(next)));
    let h = t - s;
    let rate = 1.0 + f64::from(tau) * f64::from(tau);
    let order = lambdas.len();
    // integrals[p] = rate ∫ e^(rate (x - t)) x^p dx from s to t, by parts.
    let mut integrals: Vec<f64> = Vec::with_capacity(order);
    for p in 0..order {
        let edge = t.powi(p as i32) - s.powi(p as i32) * (-rate * h).exp();
        let lower = integrals.last().map_or(0.0, |last| p as f64 / rate * last);
        integrals.push(edge - lower);
    }
    let vandermonde =
        (0..order).map(|p| lambdas.iter().map(|lambda| lambda.powi(p as i32)).collect()).collect();
    let weights = solve(vandermonde, integrals);
    let keep = next / sigma * exp(-(tau * tau) * h as f32);
    (weights.into_iter().map(|weight| weight as f32).collect(), keep)
}
