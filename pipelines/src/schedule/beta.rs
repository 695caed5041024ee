//! The beta scheduler: timesteps at quantiles of a beta distribution (Lee et al. 2024, "Beta Sampling is All You
//! Need"), and that distribution's quantile function.

use super::model_sampling::ModelSampling;

/// Sigmas of the timesteps `round(quantile(1 - i / steps) * 999)`; a timestep that repeats is dropped. `shape`: the
/// distribution's two parameters, above 0.
pub(super) fn beta(model: &ModelSampling, steps: usize, shape: [f64; 2]) -> Vec<f32> {
    let last = (model.table().len() - 1) as f64;
    let mut sigmas = Vec::with_capacity(steps + 1);
    let mut previous = None;
    for i in 0..steps {
        let probability = 1.0 - i as f64 / steps as f64;
        // numpy's rint: ties to even.
        let timestep = (quantile(probability, shape) * last).round_ties_even() as usize;
        if previous != Some(timestep) {
            sigmas.push(model.table()[timestep.min(model.table().len() - 1)]);
        }
        previous = Some(timestep);
    }
    sigmas.push(0.0);
    sigmas
}

/// Quantile of the beta distribution, to about 1e-13: bisection on the distribution function.
fn quantile(probability: f64, shape: [f64; 2]) -> f64 {
    if probability <= 0.0 {
        return 0.0;
    }
    if probability >= 1.0 {
        return 1.0;
    }
    // At the middle exactly: half the steps round here from a tie.
    if probability == 0.5 && shape[0] == shape[1] {
        return 0.5;
    }
    // Above the middle the distance to 1 is what is small: it is found as the mirrored distribution's quantile.
    let [a, b] = shape;
    if probability > distribution(0.5, shape) {
        return 1.0 - lower_quantile(1.0 - probability, [b, a]);
    }
    lower_quantile(probability, shape)
}

/// The same for quantiles up to 1/2.
fn lower_quantile(probability: f64, shape: [f64; 2]) -> f64 {
    let (mut low, mut high) = (0.0f64, 0.5f64);
    // Halving gets through every exponent that a double has.
    for _ in 0..1100 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if distribution(middle, shape) < probability { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Distribution function for `x` up to 1/2.
fn distribution(x: f64, shape: [f64; 2]) -> f64 {
    let [a, b] = shape;
    // The complement converges where this one does not.
    if x <= (a + 1.0) / (a + b + 2.0) { tail(x, 1.0 - x, a, b) } else { 1.0 - tail(1.0 - x, x, b, a) }
}

/// The regularised incomplete beta function by its continued fraction (DLMF 8.17.22), evaluated by Lentz's method;
/// `y = 1 - x`.
fn tail(x: f64, y: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    const PRECISE: f64 = 1e-16;
    if x <= 0.0 {
        return 0.0;
    }
    let away = |value: f64| if value.abs() < TINY { TINY } else { value };
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * y.ln()).exp() / a;
    let mut c = 1.0;
    let mut d = 1.0 / away(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for m in 1..500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / away(1.0 + term * d);
            c = away(1.0 + term / c);
            change = c * d;
            fraction *= change;
        }
        if (change - 1.0).abs() < PRECISE {
            break;
        }
    }
    front * fraction
}

/// Logarithm of the gamma function for `x > 0` (Lanczos, g = 7, nine terms).
fn ln_gamma(x: f64) -> f64 {
    const G: f64 = 7.0;
    const TERMS: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        // Reflected to where the series is good.
        return (std::f64::consts::PI / (std::f64::consts::PI * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let sum: f64 =
        TERMS[0] + TERMS[1..].iter().zip(1..).map(|(term, i)| term / (x + f64::from(i))).sum::<f64>();
    let t = x + G + 0.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}
