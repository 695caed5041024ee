//! The beta scheduler: timesteps at quantiles of a beta distribution (Lee et al. 2024, "Beta Sampling is All You
//! Need"), and that distribution's quantile function.

use super::model_sampling::ModelSampling;

/// Both shape parameters, ComfyUI's default.
const SHAPE: f64 = 0.6;

/// Sigmas of the timesteps `round(quantile(1 - i / steps) * 999)`; a timestep that repeats is dropped.
pub(super) fn beta(model: &ModelSampling, steps: usize) -> Vec<f32> {
    let last = (model.table().len() - 1) as f64;
    let mut sigmas = Vec::with_capacity(steps + 1);
    let mut previous = None;
    for i in 0..steps {
        let probability = 1.0 - i as f64 / steps as f64;
        // numpy's rint: ties to even.
        let timestep = (quantile(probability) * last).round_ties_even() as usize;
        if previous != Some(timestep) {
            sigmas.push(model.table()[timestep.min(model.table().len() - 1)]);
        }
        previous = Some(timestep);
    }
    sigmas.push(0.0);
    sigmas
}

/// Quantile of the symmetric beta distribution with both parameters [`SHAPE`], to about 1e-14: bisection on the
/// distribution function, in the half where it is computed well.
fn quantile(probability: f64) -> f64 {
    if probability <= 0.0 {
        return 0.0;
    }
    if probability >= 1.0 {
        return 1.0;
    }
    // At the middle exactly: half the steps round here from a tie.
    if probability == 0.5 {
        return 0.5;
    }
    if probability > 0.5 {
        return 1.0 - quantile(1.0 - probability);
    }
    let (mut low, mut high) = (0.0f64, 0.5f64);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if distribution(middle) < probability { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Distribution function on `[0, 1/2]`, as a share of its value 1/2 at 1/2: the integral's power series
/// `x^a Σ (1-a)_k x^k / (k! (a+k))`, which converges at least as fast as powers of 1/2 there.
fn distribution(x: f64) -> f64 {
    let series = |x: f64| {
        let mut term = 1.0;
        let mut sum = 0.0;
        for k in 0..80 {
            let k = f64::from(k);
            sum += term / (SHAPE + k);
            term *= (1.0 - SHAPE + k) / (k + 1.0) * x;
        }
        x.powf(SHAPE) * sum
    };
    0.5 * series(x) / series(0.5)
}
