//! DPM-Solver (Lu et al. 2022) of orders 1 to 3 in noise prediction: `dpm_fast`, which spends a fixed number of
//! evaluations, and `dpm_adaptive`, which chooses its own steps.

use candle_core::{D, Tensor};

use super::arithmetic::{linear, slope};
use super::driver::{Driver, Method, Outcome, Run, Step};
use super::{Advance, Denoised, Result, Sampler, SamplerError};
use crate::schedule::{exp, linspace, ln};

/// One step in the logarithm of sigma, of which the noise predictions are gathered.
struct LogStep {
    t: f32,
    t_next: f32,
    h: f32,
    /// Noise predictions at the step's start, at `r1` and at `r2`.
    eps: Vec<Tensor>,
}

impl LogStep {
    fn new(t: f32, t_next: f32) -> Self {
        Self { t, t_next, h: t_next - t, eps: Vec::with_capacity(3) }
    }

    fn sigma(&self, part: f32) -> f32 {
        exp(-(self.t + part * self.h))
    }

    fn end(&self) -> f32 {
        exp(-self.t_next)
    }

    /// Where the second evaluation is: `x` taken to `part` of the step to first order.
    fn first_order_to(&self, x: &Tensor, part: f32) -> Result<Tensor> {
        linear(x, &[(-self.sigma(part) * (part * self.h).exp_m1(), &self.eps[0])])
    }

    /// Where the third evaluation is, with the second one at `r1`.
    fn second_order_to(&self, x: &Tensor, r1: f32, r2: f32) -> Result<Tensor> {
        let (sigma, growth) = (self.sigma(r2), (r2 * self.h).exp_m1());
        let change = -sigma * (r2 / r1) * (growth / (r2 * self.h) - 1.0);
        linear(x, &[(-sigma * growth, &self.eps[0]), (change, &self.change_to(1)?)])
    }

    fn first_order(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &[(-self.end() * self.h.exp_m1(), &self.eps[0])])
    }

    fn second_order(&self, x: &Tensor, r1: f32) -> Result<Tensor> {
        let whole = -self.end() * self.h.exp_m1();
        linear(x, &[(whole, &self.eps[0]), (whole / (2.0 * r1), &self.change_to(1)?)])
    }

    fn third_order(&self, x: &Tensor, r2: f32) -> Result<Tensor> {
        let growth = self.h.exp_m1();
        let change = -self.end() / r2 * (growth / self.h - 1.0);
        linear(x, &[(-self.end() * growth, &self.eps[0]), (change, &self.change_to(2)?)])
    }

    /// How far a noise prediction is from the first. Steps are long and coefficients large, so the difference is
    /// taken before it is scaled.
    fn change_to(&self, index: usize) -> Result<Tensor> {
        Ok((&self.eps[index] - &self.eps[0])?)
    }
}

/// Where the solver stops: the last sigma above 0.
fn smallest_positive(sigmas: &[f32]) -> Option<f32> {
    sigmas.iter().rev().copied().find(|&sigma| sigma > 0.0)
}

/// `dpm_fast`: as many evaluations as steps were asked for, in steps of order 3 and a rest.
pub(super) struct DpmFast {
    times: Vec<f32>,
    orders: Vec<usize>,
    step: Option<LogStep>,
    tried: Option<Tensor>,
}

impl DpmFast {
    /// Only the first sigma, the last above 0, and their number count.
    pub(super) fn start(run: Run) -> (Box<dyn Sampler>, Advance) {
        let sigmas = &run.sigmas;
        let (evaluations, start, end) = match (sigmas.as_slice(), smallest_positive(sigmas)) {
            ([start, _, ..], Some(end)) => (sigmas.len() - 1, -ln(*start), -ln(end)),
            _ => (0, 0.0, 0.0),
        };
        let orders = match (evaluations / 3, evaluations % 3) {
            (0, 0) => Vec::new(),
            (threes, 0) => [vec![3; threes - 1], vec![2, 1]].concat(),
            (threes, rest) => [vec![3; threes], vec![rest]].concat(),
        };
        let times: Vec<f32> = linspace(start, end, orders.len() + 1).collect();
        let at = times.iter().map(|&t| exp(-t)).collect();
        Driver::start(Self { times, orders, step: None, tried: None }, Run { sigmas: at, ..run })
    }
}

impl Method for DpmFast {
    fn step(&mut self, at: Step<'_>, denoised: &Denoised) -> Result<Outcome> {
        let order = self.orders[at.index];
        let mut step =
            self.step.take().unwrap_or_else(|| LogStep::new(self.times[at.index], self.times[at.index + 1]));
        let (r1, r2) = if order == 2 { (0.5, 1.0) } else { (1.0 / 3.0, 2.0 / 3.0) };
        let part = [0.0, r1, r2][step.eps.len()];
        let tried = self.tried.take();
        step.eps.push(slope(tried.as_ref().unwrap_or(at.latent), &denoised.guided, step.sigma(part))?);
        let x = at.latent;
        let (latent, sigma) = match (step.eps.len(), order) {
            (1, 1) => return Ok(Outcome::Next(step.first_order(x)?)),
            (2, 2) => return Ok(Outcome::Next(step.second_order(x, r1)?)),
            (3, _) => return Ok(Outcome::Next(step.third_order(x, r2)?)),
            (1, _) => (step.first_order_to(x, r1)?, step.sigma(r1)),
            _ => (step.second_order_to(x, r1, r2)?, step.sigma(r2)),
        };
        self.tried = Some(latent.clone());
        self.step = Some(step);
        Ok(Outcome::Evaluate { latent, sigma })
    }
}

/// Most steps tried, accepted or not, before a run is given up.
const MAX_TRIES: usize = 2_000;
const ABSOLUTE_TOLERANCE: f64 = 0.0078;
const RELATIVE_TOLERANCE: f64 = 0.05;
const FIRST_STEP: f64 = 0.05;
const ACCEPT_SAFETY: f64 = 0.81;
const CONTROL_EPSILON: f64 = 1e-8;

/// `dpm_adaptive`: DPM-Solver-23. The steps follow the error, which is read back from the device once a step: the
/// only sampler that waits for it.
pub(super) struct DpmAdaptive {
    latent: Tensor,
    /// The lower-order latent at the end of the last accepted step.
    low: Tensor,
    t: f32,
    start: f32,
    end: f32,
    /// Length of the next step to try, negative where sigmas rise.
    h: f64,
    step: LogStep,
    tried: Option<Tensor>,
    tries: usize,
    total_steps: usize,
}

impl DpmAdaptive {
    const R1: f32 = 1.0 / 3.0;
    const R2: f32 = 2.0 / 3.0;

    /// Only the first sigma and the last above 0 count; it may be above the first.
    pub(super) fn start(run: Run) -> (Box<dyn Sampler>, Advance) {
        let Run { latent, sigmas, .. } = run;
        let (start, end) = match (sigmas.as_slice(), smallest_positive(&sigmas)) {
            ([start, _, ..], Some(end)) => (-ln(*start), -ln(end)),
            _ => (0.0, 0.0),
        };
        let mut run = Self {
            low: latent.clone(),
            latent,
            t: start,
            start,
            end,
            h: if start > end { -FIRST_STEP } else { FIRST_STEP },
            step: LogStep::new(start, start),
            tried: None,
            tries: 0,
            total_steps: sigmas.len().saturating_sub(1),
        };
        let first = run.open_step();
        (Box::new(run), first)
    }

    fn is_done(&self) -> bool {
        let left = f64::from(self.end) - f64::from(self.t);
        if self.end < self.start { left >= -1e-5 } else { left <= 1e-5 }
    }

    fn open_step(&mut self) -> Advance {
        let latent = self.latent.clone();
        if self.is_done() {
            return Advance::Done(latent);
        }
        let next = self.t + self.h as f32;
        let next = if self.end < self.start { self.end.max(next) } else { self.end.min(next) };
        self.step = LogStep::new(self.t, next);
        Advance::Evaluate { latent, sigma: self.step.sigma(0.0) }
    }

    /// Compares the two orders, and takes the step if they agree well enough.
    fn close_step(&mut self) -> Result<Advance> {
        let low = self.step.second_order(&self.latent, Self::R1)?;
        let high = self.step.third_order(&self.latent, Self::R2)?;
        let size = low.abs()?.maximum(&self.low.abs()?)?;
        let allowed = size.affine(RELATIVE_TOLERANCE, 0.0)?.maximum(ABSOLUTE_TOLERANCE)?;
        let ratio = ((&low - &high)? / allowed)?;
        let mean = ratio.sqr()?.flatten_all()?.mean(D::Minus1)?.to_dtype(candle_core::DType::F64)?;
        let error = mean.to_scalar::<f64>()?.sqrt();
        self.tries += 1;
        if !error.is_finite() || self.tries > MAX_TRIES {
            return Err(SamplerError::NoConvergence { tries: self.tries, error });
        }
        // An integral controller of order 3.
        let factor = (1.0 / (error + CONTROL_EPSILON)).powf(1.0 / 3.0);
        let factor = 1.0 + (factor - 1.0).atan();
        self.h *= factor;
        if factor >= ACCEPT_SAFETY {
            self.t = self.step.t_next;
            self.low = low;
            self.latent = high;
        }
        Ok(self.open_step())
    }
}

impl Sampler for DpmAdaptive {
    fn advance(&mut self, denoised: &Denoised) -> Result<Advance> {
        if self.is_done() {
            return Err(SamplerError::AlreadyDone);
        }
        let part = [0.0, Self::R1, Self::R2][self.step.eps.len()];
        let tried = self.tried.take();
        let at = tried.as_ref().unwrap_or(&self.latent);
        let eps = slope(at, &denoised.guided, self.step.sigma(part))?;
        self.step.eps.push(eps);
        let (latent, sigma) = match self.step.eps.len() {
            1 => (self.step.first_order_to(&self.latent, Self::R1)?, self.step.sigma(Self::R1)),
            2 => (self.step.second_order_to(&self.latent, Self::R1, Self::R2)?, self.step.sigma(Self::R2)),
            _ => return self.close_step(),
        };
        self.tried = Some(latent.clone());
        Ok(Advance::Evaluate { latent, sigma })
    }

    fn opens_step(&self) -> bool {
        self.step.eps.is_empty()
    }

    /// The way covered, as a share of the steps asked for: how many there will be is not known.
    fn completed_steps(&self) -> usize {
        if self.is_done() {
            return self.total_steps;
        }
        let share = (self.t - self.start) / (self.end - self.start);
        ((share * self.total_steps as f32) as usize).min(self.total_steps.saturating_sub(1))
    }

    fn total_steps(&self) -> usize {
        self.total_steps
    }
}
