//! DEIS (Zhang and Chen 2022), `tab` with polynomials in time, order 3.

use candle_core::Tensor;

use super::arithmetic::{linear, slope};
use super::driver::{Method, Outcome, Step};
use super::history::History;
use super::{Denoised, Result};

/// Points of the numerical integral; part of the reference's result, because its rule is a plain sum.
const POINTS: usize = 10_000;

/// A run of `deis`.
pub(super) struct Deis {
    slopes: History,
    time: Time,
}

impl Deis {
    pub(super) fn new() -> Self {
        Self { slopes: History::new(3), time: Time::edm() }
    }
}

impl Method for Deis {
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        self.slopes.push(slope(step.latent, &denoised.guided, step.sigma())?);
        let order = self.slopes.len();
        let coefficients = if order == 1 || step.next() == 0.0 {
            vec![step.next() - step.sigma()]
        } else {
            let nodes: Vec<f64> = (0..order).map(|i| self.time.of(step.sigmas[step.index - i])).collect();
            self.time.integrals(&nodes, self.time.of(step.next()))
        };
        let terms: Vec<(f32, &Tensor)> = self.slopes.with(&coefficients);
        Ok(Outcome::Next(linear(step.latent, &terms)?))
    }
}

/// The variance-preserving process whose noise runs from EDM's sigma 0.002 at time 0.001 to 80 at time 1.
struct Time {
    beta_0: f64,
    beta_d: f64,
}

impl Time {
    fn edm() -> Self {
        const EPSILON: f32 = 1e-3;
        let log = |sigma: f32| (sigma * sigma + 1.0).ln();
        // In single precision as in the reference: beta_0 is a small difference of large numbers.
        let beta_d = 2.0 * (log(0.002) / EPSILON - log(80.0)) / (EPSILON - 1.0);
        let beta_0 = log(80.0) - 0.5 * beta_d;
        Self { beta_0: f64::from(beta_0), beta_d: f64::from(beta_d) }
    }

    /// The time at which the noise is `sigma`.
    fn of(&self, sigma: f32) -> f64 {
        let sigma = f64::from(sigma);
        let log = (sigma * sigma).ln_1p();
        ((self.beta_0 * self.beta_0 + 2.0 * self.beta_d * log).sqrt() - self.beta_0) / self.beta_d
    }

    /// For each node (the times of the slopes, newest first) the integral from the newest to `end` of its Lagrange
    /// polynomial times the change of sigma.
    fn integrals(&self, nodes: &[f64], end: f64) -> Vec<f32> {
        let start = nodes[0];
        let width = (end - start) / POINTS as f64;
        let mut sums = vec![0f64; nodes.len()];
        for i in 0..POINTS {
            let t = start + (end - start) * i as f64 / (POINTS - 1) as f64;
            let log_alpha = -0.5 * t * t * self.beta_d - t * self.beta_0;
            let alpha = log_alpha.exp();
            let weight = 0.5 * (t * self.beta_d + self.beta_0) / (alpha * -log_alpha.exp_m1()).sqrt();
            for (j, sum) in sums.iter_mut().enumerate() {
                let others = nodes.iter().enumerate().filter(|&(k, _)| k != j);
                *sum += weight * others.map(|(_, node)| (t - node) / (nodes[j] - node)).product::<f64>();
            }
        }
        sums.into_iter().map(|sum| (sum * width) as f32).collect()
    }
}
