//! Methods that reuse the slopes or predictions of earlier steps, one evaluation a step.

use std::collections::VecDeque;

use candle_core::Tensor;

use super::arithmetic::{linear, slope};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};

/// The last few tensors, newest first.
pub(super) struct History {
    kept: VecDeque<Tensor>,
    most: usize,
}

impl History {
    pub(super) fn new(most: usize) -> Self {
        Self { kept: VecDeque::with_capacity(most), most }
    }

    pub(super) fn push(&mut self, newest: Tensor) {
        self.kept.truncate(self.most - 1);
        self.kept.push_front(newest);
    }

    /// Puts another in the place of the newest.
    pub(super) fn replace_newest(&mut self, newest: Tensor) {
        self.kept.pop_front();
        self.kept.push_front(newest);
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Each of them with its coefficient, newest first.
    pub(super) fn with<'a>(&'a self, coefficients: &[f32]) -> Vec<(f32, &'a Tensor)> {
        coefficients.iter().copied().zip(&self.kept).collect()
    }
}

/// Linear multistep (Katherine Crowson's `lms`): the Adams-Bashforth integral of the polynomial through the last
/// four slopes.
pub(super) struct Lms {
    slopes: History,
}

impl Lms {
    pub(super) fn new() -> Self {
        Self { slopes: History::new(4) }
    }
}

impl Method for Lms {
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        self.slopes.push(slope(step.latent, &denoised.guided, step.sigma())?);
        if step.next() == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let nodes: Vec<f64> =
            (0..self.slopes.len()).map(|i| f64::from(step.sigmas[step.index - i])).collect();
        let (from, to) = (f64::from(step.sigma()), f64::from(step.next()));
        let coefficients: Vec<f32> =
            (0..nodes.len()).map(|j| lagrange_integral(&nodes, j, from, to) as f32).collect();
        Ok(Outcome::Next(linear(step.latent, &self.slopes.with(&coefficients))?))
    }
}

/// Integral from `from` to `to` of the Lagrange polynomial that is 1 at node `j` and 0 at the others, by a
/// three-point Gauss rule, which is exact up to degree 5; there are at most four nodes.
fn lagrange_integral(nodes: &[f64], j: usize, from: f64, to: f64) -> f64 {
    let polynomial = |t: f64| {
        nodes
            .iter()
            .enumerate()
            .filter(|&(k, _)| k != j)
            .map(|(_, node)| (t - node) / (nodes[j] - node))
            .product::<f64>()
    };
    let (middle, half) = (0.5 * (from + to), 0.5 * (to - from));
    let offset = half * 0.6f64.sqrt();
    half * (5.0 * polynomial(middle - offset) + 8.0 * polynomial(middle) + 5.0 * polynomial(middle + offset))
        / 9.0
}

/// Improved pseudo linear multistep (Zhang and Chen 2022), order 4, with the coefficients of equal steps.
pub(super) struct Ipndm {
    slopes: History,
}

impl Ipndm {
    pub(super) fn new() -> Self {
        Self { slopes: History::new(4) }
    }
}

impl Method for Ipndm {
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        self.slopes.push(slope(step.latent, &denoised.guided, step.sigma())?);
        if step.next() == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let (weights, divisor): (&[f32], f32) = match self.slopes.len() {
            1 => (&[1.0], 1.0),
            2 => (&[3.0, -1.0], 2.0),
            3 => (&[23.0, -16.0, 5.0], 12.0),
            _ => (&[55.0, -59.0, 37.0, -9.0], 24.0),
        };
        let dt = step.next() - step.sigma();
        let coefficients: Vec<f32> = weights.iter().map(|weight| dt * weight / divisor).collect();
        Ok(Outcome::Next(linear(step.latent, &self.slopes.with(&coefficients))?))
    }
}

/// [`Ipndm`] with coefficients for unequal steps (zju-pi's diff-sampler).
pub(super) struct IpndmV {
    slopes: History,
}

impl IpndmV {
    pub(super) fn new() -> Self {
        Self { slopes: History::new(4) }
    }
}

impl Method for IpndmV {
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        self.slopes.push(slope(step.latent, &denoised.guided, step.sigma())?);
        if step.next() == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let order = self.slopes.len();
        // Lengths of this step and the ones before it, as signed differences of sigma.
        let lengths: Vec<f32> =
            (0..order).map(|i| step.sigmas[step.index + 1 - i] - step.sigmas[step.index - i]).collect();
        let dt = step.next() - step.sigma();
        let coefficients: Vec<f32> = variable_adams(&lengths).iter().map(|weight| dt * weight).collect();
        Ok(Outcome::Next(linear(step.latent, &self.slopes.with(&coefficients))?))
    }
}

/// Adams-Bashforth weights for steps of these lengths, newest first, one weight a length.
fn variable_adams(lengths: &[f32]) -> Vec<f32> {
    let [h, rest @ ..] = lengths else { return Vec::new() };
    let h = *h;
    let third = |h1: f32, h2: f32| (1.0 - h / (3.0 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2.0;
    match *rest {
        [] => vec![1.0],
        [h1] => vec![(2.0 + h / h1) / 2.0, -(h / h1) / 2.0],
        [h1, h2] => {
            let t = third(h1, h2);
            vec![(2.0 + h / h1) / 2.0 + t, -(h / h1) / 2.0 - (1.0 + h1 / h2) * t, t * h1 / h2]
        }
        [h1, h2, h3, ..] => {
            let t = third(h1, h2);
            let u = ((1.0 - h / (3.0 * (h + h1))) / 2.0
                + (1.0 - h / (2.0 * (h + h1))) * h / (6.0 * (h + h1 + h2)))
                * (h * (h + h1) * (h + h1 + h2))
                / (h1 * (h1 + h2) * (h1 + h2 + h3));
            let a = h1 / h2;
            let b = h1 * (h1 + h2) / (h2 * (h2 + h3));
            vec![
                (2.0 + h / h1) / 2.0 + t + u,
                -(h / h1) / 2.0 - (1.0 + a) * t - (1.0 + a + b) * u,
                t * a + (a + b * (1.0 + h2 / h3)) * u,
                -u * b * h1 / h2,
            ]
        }
    }
}

/// Gradient estimation (Permenter and Yuan 2023), gamma 2: Euler along the slope, corrected by its last change; for
/// CFG++ along the unconditional slope from the guided prediction.
pub(super) struct GradientEstimation {
    cfg_pp: bool,
    previous: Option<Tensor>,
}

impl GradientEstimation {
    pub(super) fn new(cfg_pp: bool) -> Self {
        Self { cfg_pp, previous: None }
    }
}

impl Method for GradientEstimation {
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let dt = step.next() - step.sigma();
        let aim = if self.cfg_pp { denoised.uncond()? } else { &denoised.guided };
        let d = slope(step.latent, aim, step.sigma())?;
        let previous = self.previous.replace(d.clone());
        if step.next() == 0.0 {
            return Ok(Outcome::Next(denoised.guided.clone()));
        }
        let (base, along) = if self.cfg_pp { (&denoised.guided, step.next()) } else { (step.latent, dt) };
        Ok(Outcome::Next(match previous {
            None => linear(base, &[(along, &d)])?,
            Some(previous) => linear(base, &[(along + dt, &d), (-dt, &previous)])?,
        }))
    }
}
