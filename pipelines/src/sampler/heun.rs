//! Heun's method and Heun++: the slope of a step is averaged with slopes ahead.

use candle_core::Tensor;

use super::arithmetic::{linear, slope};
use super::driver::{Method, Outcome, Step};
use super::{Denoised, Result};

/// Karras et al. 2022, algorithm 2 without churn.
#[derive(Default)]
pub(super) struct Heun {
    /// Slope at the step's start and the latent that was tried at its end.
    tried: Option<(Tensor, Tensor)>,
}

impl Method for Heun {
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        let dt = next - sigma;
        if let Some((d, x_2)) = self.tried.take() {
            let d_2 = slope(&x_2, &denoised.guided, next)?;
            let half = 0.5 * dt;
            return Ok(Outcome::Next(linear(step.latent, &[(half, &d), (half, &d_2)])?));
        }
        let d = slope(step.latent, &denoised.guided, sigma)?;
        let x = linear(step.latent, &[(dt, &d)])?;
        if next == 0.0 {
            return Ok(Outcome::Next(x));
        }
        self.tried = Some((d, x.clone()));
        Ok(Outcome::Evaluate { latent: x, sigma: next })
    }
}

/// Heun++ (Carzit's sampler collection): two slopes ahead, weighted by their sigmas.
#[derive(Default)]
pub(super) struct Heunpp2 {
    /// Slopes of this step so far, and the latent that is being evaluated.
    slopes: Vec<Tensor>,
    tried: Option<Tensor>,
}

impl Method for Heunpp2 {
    fn step(&mut self, step: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let (sigma, next) = (step.sigma(), step.next());
        let first = step.sigmas[0];
        let last = step.sigmas[step.sigmas.len() - 1];
        let dt = next - sigma;
        // The sigma after the next, if that is not where the run ends.
        let ahead = step.sigmas.get(step.index + 2).copied().filter(|&ahead| ahead != last);

        let x = self.tried.take();
        let x = x.as_ref().unwrap_or(step.latent);
        let at = step.sigmas[step.index + self.slopes.len()];
        self.slopes.push(slope(x, &denoised.guided, at)?);

        match (self.slopes.as_slice(), ahead) {
            ([d], _) => {
                let x_2 = linear(x, &[(dt, d)])?;
                if next == last {
                    self.slopes.clear();
                    return Ok(Outcome::Next(x_2));
                }
                self.tried = Some(x_2.clone());
                Ok(Outcome::Evaluate { latent: x_2, sigma: next })
            }
            ([_, d_2], Some(ahead)) => {
                let x_3 = linear(x, &[(ahead - next, d_2)])?;
                self.tried = Some(x_3.clone());
                Ok(Outcome::Evaluate { latent: x_3, sigma: ahead })
            }
            (slopes, _) => {
                let whole = slopes.len() as f32 * first;
                let weights: Vec<f32> =
                    (1..slopes.len()).map(|i| step.sigmas[step.index + i] / whole).collect();
                let own = weights.iter().fold(1.0, |own, weight| own - weight);
                let terms: Vec<(f32, &Tensor)> = std::iter::once(own)
                    .chain(weights)
                    .zip(slopes)
                    .map(|(weight, d)| (weight * dt, d))
                    .collect();
                let x = linear(step.latent, &terms)?;
                self.slopes.clear();
                Ok(Outcome::Next(x))
            }
        }
    }
}
