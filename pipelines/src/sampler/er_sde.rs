//! ER-SDE-Solver-3 (Cui et al. 2023): an extended reverse-time equation with little noise, one evaluation a step.

use candle_core::Tensor;

use super::arithmetic::{linear, scaled};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};
use crate::schedule::{Process, exp};

/// Points of the numerical integrals; part of the reference's result, because its rule is a plain sum.
const POINTS: usize = 200;

/// A run of `er_sde`.
#[derive(Default)]
pub(super) struct ErSde {
    previous: Option<Tensor>,
    /// The last first derivative of the prediction.
    derivative: Option<Tensor>,
}

/// The paper's noise scale function: `x (e^(x^0.3) + 10)`.
fn noise_scaler(x: f64) -> f64 {
    x * (x.powf(0.3).exp() + 10.0)
}

impl Method for ErSde {
    fn step(&mut self, mut step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let previous = self.previous.replace(denoised.guided.clone());
        let (sigma, next) = (step.sigma(), step.next());
        if next == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        // Noise relative to the picture.
        let process = step.process;
        let lambda = |sigma: f32| match process {
            Process::Exploding => f64::from(sigma),
            Process::Flow => f64::from(exp(-process.half_log_snr(sigma))),
        };
        let (s, t) = (lambda(sigma), lambda(next));
        let (alpha_s, alpha) = (f64::from(sigma) / s, f64::from(next) / t);
        let r = noise_scaler(t) / noise_scaler(s);
        let terms = [((alpha * (1.0 - r)) as f32, &denoised.guided)];
        let mut x = scaled((alpha / alpha_s * r) as f32, step.latent, &terms)?;

        if let (Some(previous), Some(before)) = (previous, step.previous()) {
            let dt = t - s;
            let width = -dt / POINTS as f64;
            let (mut first, mut second) = (0.0, 0.0);
            for i in 0..POINTS {
                let position = t + i as f64 * width;
                first += width / noise_scaler(position);
                second += width * (position - s) / noise_scaler(position);
            }
            let gap = 1.0 / (s - lambda(before));
            let derivative = scaled(gap as f32, &(&denoised.guided - previous)?, &[])?;
            x = linear(&x, &[((alpha * (dt + first * noise_scaler(t))) as f32, &derivative)])?;

            let earlier = self.derivative.replace(derivative.clone());
            if let (Some(earlier), Some(index)) = (earlier, step.index.checked_sub(2)) {
                let gap = 2.0 / (s - lambda(step.sigmas[index]));
                let change = scaled(gap as f32, &(derivative - earlier)?, &[])?;
                let share = alpha * (dt * dt / 2.0 + second * noise_scaler(t));
                x = linear(&x, &[(share as f32, &change)])?;
            }
        }
        let scale = alpha * (t * t - s * s * r * r).max(0.0).sqrt();
        Ok(Outcome::Next(step.add_noise(&x, scale as f32, sigma, next)?))
    }
}
