//! SA-Solver (Xue et al. 2023): a stochastic Adams predictor and corrector, orders 3 and 4, with noise between 20%
//! and 80% of the timesteps.

use candle_core::Tensor;

use super::arithmetic::{scaled, solve};
use super::driver::{Method, Outcome, Step};
use super::history::History;
use super::{Denoised, Result};
use crate::schedule::{ModelSampling, Process, exp};

const PREDICTOR_ORDER: usize = 3;
const CORRECTOR_ORDER: usize = 4;

/// A run of `sa_solver`, or of `sa_solver_pece`, which evaluates the corrected latent too. The driver's latent is the
/// predicted one; the corrected one is kept here.
pub(super) struct SaSolver {
    predictions: History,
    /// Sigmas between which noise is added, largest first.
    noisy: (f32, f32),
    pece: bool,
    last: Option<LastStep>,
    /// The corrected latent while it is evaluated.
    corrected: Option<Tensor>,
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
    pub(super) fn new(model: &ModelSampling, pece: bool) -> Self {
        Self {
            predictions: History::new(CORRECTOR_ORDER),
            noisy: (model.percent_to_sigma(0.2), model.percent_to_sigma(0.8)),
            pece,
            last: None,
            corrected: None,
        }
    }

    fn tau(&self, sigma: f32) -> f32 {
        if self.noisy.0 >= sigma && sigma >= self.noisy.1 { 1.0 } else { 0.0 }
    }

    /// The step's latent by all that is known at its start.
    fn correct(&self, step: &Step<'_>, last: LastStep, before: f32) -> Result<Tensor> {
        let order = order_left(step, CORRECTOR_ORDER.min(self.predictions.len()), 1);
        let lambdas = lambdas(step, order);
        let (weights, keep) = adams(step.process, (before, step.sigma()), &lambdas, last.tau);
        let x = scaled(keep, &last.corrected, &self.predictions.with(&weights))?;
        Ok(match last.noise {
            Some(noise) => (x + noise)?,
            None => x,
        })
    }

    fn predict(&mut self, mut step: Step<'_>, corrected: Tensor) -> Result<Tensor> {
        let (sigma, next) = (step.sigma(), step.next());
        let order = order_left(&step, PREDICTOR_ORDER.min(self.predictions.len()), 2);
        let tau = self.tau(next);
        let (weights, keep) = adams(step.process, (sigma, next), &lambdas(&step, order), tau);
        let mut x = scaled(keep, &corrected, &self.predictions.with(&weights))?;
        let mut noise = None;
        if tau > 0.0 {
            let h = step.process.half_log_snr(next) - step.process.half_log_snr(sigma);
            let strength = next * (-(-2.0 * tau * tau * h).exp_m1()).sqrt();
            let scaled_noise = scaled(strength, &step.draw(sigma, next)?, &[])?;
            x = (x + &scaled_noise)?;
            noise = Some(scaled_noise);
        }
        self.last = Some(LastStep { corrected, tau, noise });
        Ok(x)
    }
}

/// An order that falls towards the end, where the sigmas end at 0: `short` less than the sigmas that are left.
fn order_left(step: &Step<'_>, order: usize, short: usize) -> usize {
    let ends_at_zero = step.sigmas[step.sigmas.len() - 1] == 0.0;
    if ends_at_zero { order.min(step.sigmas.len() - short - step.index) } else { order }
}

/// Half the logarithms of the signal-to-noise ratio where the newest `order` predictions are.
fn lambdas(step: &Step<'_>, order: usize) -> Vec<f64> {
    (0..order).map(|i| f64::from(step.process.half_log_snr(step.sigmas[step.index - i]))).collect()
}

impl Method for SaSolver {
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let last_step = step.next() == 0.0;
        let corrected = match self.corrected.take() {
            Some(corrected) => {
                self.predictions.replace_newest(denoised.guided.clone());
                corrected
            }
            None => {
                self.predictions.push(denoised.guided.clone());
                match (self.last.take(), step.previous()) {
                    (Some(last), Some(before)) if self.pece || !last_step => {
                        let corrected = self.correct(&step, last, before)?;
                        if self.pece {
                            self.corrected = Some(corrected.clone());
                            return Ok(Outcome::Evaluate { latent: corrected, sigma: step.sigma() });
                        }
                        corrected
                    }
                    _ => step.latent.clone(),
                }
            }
        };
        if last_step {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        if step.index + 2 == step.sigmas.len() {
            // A run that ends in noise ends where its last step begins: the reference gives its corrected latent back,
            // not the predicted one.
            return Ok(Outcome::Next(corrected));
        }
        Ok(Outcome::Next(self.predict(step, corrected)?))
    }
}

/// Weights of the predictions at `lambdas` (newest first) for a step between two sigmas, and the factor of the
/// latent itself: the paper's equations 15 and 18 for data prediction.
fn adams(process: Process, (sigma, next): (f32, f32), lambdas: &[f64], tau: f32) -> (Vec<f32>, f32) {
    let (s, t) = (f64::from(process.half_log_snr(sigma)), f64::from(process.half_log_snr(next)));
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
    let alpha = process.alpha(next);
    (weights.into_iter().map(|weight| alpha * weight as f32).collect(), keep)
}
