//! UniPC (Zhao et al. 2023): a multistep predictor whose result the next evaluation corrects, at no extra cost.

use std::collections::VecDeque;

use candle_core::Tensor;

use super::arithmetic::{linear, scaled, solve};
use super::driver::Run;
use super::{Advance, Denoised, Result, Sampler, SamplerError};

/// Highest order.
const ORDER: usize = 3;
/// Where the last step ends in place of sigma 0, at which the method has no logarithm.
const LAST_SIGMA: f32 = 0.001;

/// The function `B(h)` of the paper.
#[derive(Clone, Copy)]
pub(super) enum Variant {
    /// `B(h) = h`: `uni_pc`.
    Bh1,
    /// `B(h) = e^h - 1`: `uni_pc_bh2`.
    Bh2,
}

/// An earlier evaluation.
struct Evaluation {
    sigma: f32,
    denoised: Tensor,
}

/// A predicted step that waits for its evaluation to be corrected.
struct Prediction {
    /// The first-order part that predictor and corrector share.
    base: Tensor,
    /// Scale of the higher-order parts.
    scale: f32,
    /// Divided differences of the earlier predictions, and the corrector's weight of each.
    differences: Vec<(f32, Tensor)>,
    /// The corrector's weight of the new difference.
    newest: f32,
}

/// A run. Inside, latents are in variance-preserving coordinates, `x / √(1 + sigma²)`.
pub(super) struct UniPc {
    variant: Variant,
    sigmas: Vec<f32>,
    order: usize,
    index: usize,
    latent: Tensor,
    /// Newest first.
    evaluations: VecDeque<Evaluation>,
    prediction: Option<Prediction>,
}

impl UniPc {
    /// `sigmas` fall strictly; fewer than two are no run.
    pub(super) fn start(variant: Variant, run: Run) -> Result<(Box<dyn Sampler>, Advance)> {
        let Run { latent, mut sigmas, .. } = run;
        let steps = sigmas.len().saturating_sub(1);
        let first = match sigmas.as_mut_slice() {
            [] | [_] => Advance::Done(latent.clone()),
            [first, .., last] => {
                let first = *first;
                if *last == 0.0 {
                    *last = LAST_SIGMA;
                }
                Advance::Evaluate { latent: latent.clone(), sigma: first }
            }
        };
        if let [.., before, last] = sigmas.as_mut_slice() {
            // Only sigmas below any model's reach this.
            *last = last.min(0.5 * *before);
        }
        let scale = sigmas.first().map_or(1.0, |sigma| 1.0 / (1.0 + sigma * sigma).sqrt());
        let run = Self {
            variant,
            sigmas,
            // A run of one step has no second evaluation to correct with; it takes the first-order step.
            order: ORDER.min(steps.saturating_sub(1)).max(1),
            index: 0,
            latent: scaled(scale, &latent, &[])?,
            evaluations: VecDeque::with_capacity(ORDER),
            prediction: None,
        };
        Ok((Box::new(run), first))
    }

    /// Steps from the newest evaluation to `sigmas[target]`.
    fn predict(&self, target: usize, order: usize) -> Result<(Tensor, Prediction)> {
        let newest = &self.evaluations[0];
        let at = Marginal::at(self.sigmas[target]);
        let from = Marginal::at(newest.sigma);
        let h = at.lambda - from.lambda;

        let mut ratios = Vec::with_capacity(order);
        let mut differences = Vec::with_capacity(order - 1);
        for earlier in self.evaluations.iter().skip(1).take(order - 1) {
            let ratio = (Marginal::at(earlier.sigma).lambda - from.lambda) / h;
            ratios.push(f64::from(ratio));
            let difference = (&earlier.denoised - &newest.denoised)?;
            differences.push(scaled(1.0 / ratio, &difference, &[])?);
        }
        ratios.push(1.0);

        let (matrix, right) = self.conditions(&ratios, -h);
        let predictor = match order {
            1 => Vec::new(),
            2 => vec![0.5],
            _ => {
                let smaller: Vec<Vec<f64>> =
                    matrix[..order - 1].iter().map(|row| row[..order - 1].to_vec()).collect();
                solve(smaller, right[..order - 1].to_vec())
            }
        };
        let corrector = if order == 1 { vec![0.5] } else { solve(matrix, right) };

        let growth = (-h).exp_m1();
        let scale = at.alpha * self.b_h(-h);
        let base = scaled(at.sigma / from.sigma, &self.latent, &[(-at.alpha * growth, &newest.denoised)])?;
        let terms: Vec<(f32, &Tensor)> =
            predictor.iter().zip(&differences).map(|(&weight, d)| (-scale * weight as f32, d)).collect();
        let predicted = linear(&base, &terms)?;
        let last = corrector.len() - 1;
        let newest = corrector[last] as f32;
        let differences = corrector[..last].iter().map(|&weight| weight as f32).zip(differences).collect();
        Ok((predicted, Prediction { base, scale, differences, newest }))
    }

    fn b_h(&self, hh: f32) -> f32 {
        match self.variant {
            Variant::Bh1 => hh,
            Variant::Bh2 => hh.exp_m1(),
        }
    }

    /// The order conditions `R rho = b` of the paper, for `hh = -h` (data prediction).
    fn conditions(&self, ratios: &[f64], hh: f32) -> (Vec<Vec<f64>>, Vec<f64>) {
        let order = ratios.len();
        let mut phi = hh.exp_m1() / hh - 1.0;
        let mut factorial = 1.0f32;
        let mut matrix = Vec::with_capacity(order);
        let mut right = Vec::with_capacity(order);
        for i in 1..=order {
            matrix.push(ratios.iter().map(|ratio| ratio.powi(i as i32 - 1)).collect());
            right.push(f64::from(phi * factorial / self.b_h(hh)));
            factorial *= (i + 1) as f32;
            phi = phi / hh - 1.0 / factorial;
        }
        (matrix, right)
    }
}

impl Sampler for UniPc {
    fn advance(&mut self, denoised: &Denoised) -> Result<Advance> {
        let steps = self.total_steps();
        if self.index >= steps {
            return Err(SamplerError::AlreadyDone);
        }
        if let Some(prediction) = self.prediction.take() {
            let newest = (&denoised.guided - &self.evaluations[0].denoised)?;
            let mut terms: Vec<(f32, &Tensor)> = prediction
                .differences
                .iter()
                .map(|(weight, difference)| (-prediction.scale * weight, difference))
                .collect();
            terms.push((-prediction.scale * prediction.newest, &newest));
            self.latent = linear(&prediction.base, &terms)?;
        }
        self.evaluations.truncate(ORDER - 1);
        self.evaluations
            .push_front(Evaluation { sigma: self.sigmas[self.index], denoised: denoised.guided.clone() });

        let target = self.index + 1;
        let order = if target < self.order { target } else { self.order.min(steps + 1 - target) };
        let (predicted, prediction) = self.predict(target, order)?;
        self.index = target;
        let sigma = self.sigmas[target];
        if target == steps {
            return Ok(Advance::Done(scaled(1.0 / Marginal::at(sigma).alpha, &predicted, &[])?));
        }
        self.prediction = Some(prediction);
        Ok(Advance::Evaluate { latent: scaled((sigma * sigma + 1.0).sqrt(), &predicted, &[])?, sigma })
    }

    fn opens_step(&self) -> bool {
        true
    }

    fn completed_steps(&self) -> usize {
        self.index
    }

    fn total_steps(&self) -> usize {
        self.sigmas.len().saturating_sub(1)
    }
}

/// Signal and noise of the variance-preserving process at a sigma, in torch's single precision: at the last sigma
/// the roundings are part of the reference's result.
struct Marginal {
    alpha: f32,
    sigma: f32,
    /// Half the logarithm of the signal-to-noise ratio.
    lambda: f32,
}

impl Marginal {
    fn at(sigma: f32) -> Self {
        let log_alpha = 0.5 * (1.0 / (sigma * sigma + 1.0)).ln();
        let variance = 1.0 - (2.0 * log_alpha).exp();
        Self { alpha: log_alpha.exp(), sigma: variance.sqrt(), lambda: log_alpha - 0.5 * variance.ln() }
    }
}
