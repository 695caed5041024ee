//! Schedules by numbers of one's own, for workflows that build their sigmas node by node. They are ComfyUI's
//! (k-diffusion's), in its single precision; each falls and ends in 0, but for [`laplace`], which ends at its
//! smallest sigma.

use super::model_sampling::{ModelSampling, exp};
use super::scheduler::{MAX_STEPS, linspace, with_zero};
use super::{ScheduleError, beta};

/// Where a schedule begins and ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SigmaRange {
    /// The smallest sigma.
    pub min: f64,
    /// The largest sigma.
    pub max: f64,
}

impl SigmaRange {
    /// All that a model was trained at.
    pub(super) fn of(model: &ModelSampling) -> Self {
        Self { min: model.sigma_min().into(), max: model.sigma_max().into() }
    }
}

/// Karras et al. 2022, equation 5.
///
/// # Errors
/// Too many steps, or `rho` is 0.
pub fn karras(steps: usize, range: SigmaRange, rho: f64) -> Result<Vec<f32>, ScheduleError> {
    check(steps, &[("sigma_min", range.min), ("sigma_max", range.max)])?;
    if rho == 0.0 || !rho.is_finite() {
        return Err(ScheduleError::Value { name: "rho", value: rho, needed: "a number above 0" });
    }
    Ok(karras_unchecked(steps, range, rho))
}

pub(super) fn karras_unchecked(steps: usize, range: SigmaRange, rho: f64) -> Vec<f32> {
    let (min, max) = (range.min.powf(1.0 / rho), range.max.powf(1.0 / rho));
    let (base, slope) = (max as f32, (min - max) as f32);
    with_zero(linspace(0.0, 1.0, steps).map(|ramp| f64::from(base + ramp * slope).powf(rho) as f32))
}

/// Evenly spaced logarithms.
///
/// # Errors
/// Too many steps, or a sigma that has no logarithm.
pub fn exponential(steps: usize, range: SigmaRange) -> Result<Vec<f32>, ScheduleError> {
    logarithms(steps, range)?;
    Ok(exponential_unchecked(steps, range))
}

pub(super) fn exponential_unchecked(steps: usize, range: SigmaRange) -> Vec<f32> {
    with_zero(linspace(range.max.ln() as f32, range.min.ln() as f32, steps).map(exp))
}

/// A polynomial in the logarithm of sigma; `rho` 1 is [`exponential`].
///
/// # Errors
/// Too many steps, or a sigma that has no logarithm.
pub fn polyexponential(steps: usize, range: SigmaRange, rho: f64) -> Result<Vec<f32>, ScheduleError> {
    let (min, max) = logarithms(steps, range)?;
    check(steps, &[("rho", rho)])?;
    let (slope, base) = ((max - min) as f32, min as f32);
    let ramp = linspace(1.0, 0.0, steps).map(|ramp| f64::from(ramp).powf(rho) as f32);
    Ok(with_zero(ramp.map(|ramp| exp(ramp * slope + base))))
}

/// The continuous variance-preserving schedule (Song et al. 2021) from time 1 to `eps_s`.
///
/// # Errors
/// Too many steps.
pub fn vp(steps: usize, beta_d: f64, beta_min: f64, eps_s: f64) -> Result<Vec<f32>, ScheduleError> {
    check(steps, &[("beta_d", beta_d), ("beta_min", beta_min), ("eps_s", eps_s)])?;
    let (d, min) = (beta_d as f32, beta_min as f32);
    let sigma = |t: f32| (f64::from(d * (t * t) / 2.0 + min * t).exp_m1() as f32).sqrt();
    Ok(with_zero(linspace(1.0, eps_s as f32, steps).map(sigma)))
}

/// Steps at quantiles of a Laplace distribution of the logarithm of sigma (Hang et al. 2024).
///
/// # Errors
/// Too many steps.
pub fn laplace(steps: usize, range: SigmaRange, mu: f64, beta: f64) -> Result<Vec<f32>, ScheduleError> {
    const EPSILON: f32 = 1e-5;
    check(steps, &[("sigma_min", range.min), ("sigma_max", range.max), ("mu", mu), ("beta", beta)])?;
    let (mu, beta) = (mu as f32, beta as f32);
    let (min, max) = (range.min as f32, range.max as f32);
    let sigma = |x: f32| {
        let side = 0.5 - x;
        // torch's sign is 0 at 0.
        let sign = if side == 0.0 { 0.0 } else { side.signum() };
        let log = f64::from(1.0 - 2.0 * side.abs() + EPSILON).ln() as f32;
        // torch's clamp takes the upper bound where the two cross.
        exp(mu - beta * sign * log).max(min).min(max)
    };
    Ok(linspace(0.0, 1.0, steps).map(sigma).collect())
}

/// The `beta` scheduler with shape parameters of one's own.
///
/// # Errors
/// Too many steps, or a parameter that is not above 0.
pub fn beta_quantiles(
    model: &ModelSampling,
    steps: usize,
    alpha: f64,
    beta: f64,
) -> Result<Vec<f32>, ScheduleError> {
    check(steps, &[])?;
    for (name, value) in [("alpha", alpha), ("beta", beta)] {
        if !(value > 0.0 && value.is_finite()) {
            return Err(ScheduleError::Value { name, value, needed: "a number above 0" });
        }
    }
    Ok(beta::beta(model, steps, [alpha, beta]))
}

/// SD Turbo's ten timesteps 999, 899, …, 99: `steps` of them, beginning where `denoise` (0 to 1) says.
///
/// # Errors
/// `denoise` is not a share.
pub fn sd_turbo(model: &ModelSampling, steps: usize, denoise: f64) -> Result<Vec<f32>, ScheduleError> {
    if !(0.0..=1.0).contains(&denoise) {
        return Err(ScheduleError::Denoise(denoise));
    }
    let first = 10 - (10.0 * denoise) as usize;
    let timesteps = (1..=10).rev().map(|i| (100 * i - 1) as f32);
    Ok(with_zero(timesteps.skip(first).take(steps).map(|t| model.sigma(t))))
}

fn logarithms(steps: usize, range: SigmaRange) -> Result<(f64, f64), ScheduleError> {
    check(steps, &[])?;
    for (name, value) in [("sigma_min", range.min), ("sigma_max", range.max)] {
        if !(value > 0.0 && value.is_finite()) {
            return Err(ScheduleError::Value { name, value, needed: "a number above 0" });
        }
    }
    Ok((range.min.ln(), range.max.ln()))
}

fn check(steps: usize, numbers: &[(&'static str, f64)]) -> Result<(), ScheduleError> {
    if !(1..=MAX_STEPS).contains(&steps) {
        return Err(ScheduleError::Steps(steps));
    }
    match numbers.iter().find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(ScheduleError::Value { name, value: *value, needed: "a finite number" }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Prediction;

    const RANGE: SigmaRange = SigmaRange { min: 0.05, max: 20.0 };

    /// ComfyUI's values; f32 functions differ by a rounding or two.
    fn assert_near(ours: &[f32], theirs: &[f32]) {
        assert_eq!(ours.len(), theirs.len());
        for (a, b) in ours.iter().zip(theirs) {
            assert!((a - b).abs() <= 2e-6 * b.abs(), "{ours:?} against {theirs:?}");
        }
    }

    #[test]
    fn each_equals_comfyuis() {
        assert_near(
            &karras(5, RANGE, 3.0).unwrap(),
            &[20.000002, 9.635233, 3.662308, 0.870729, 0.050000016, 0.0],
        );
        assert_near(&exponential(5, RANGE).unwrap(), &[20.0, 4.472136, 1.0, 0.2236068, 0.05, 0.0]);
        let poly = polyexponential(5, RANGE, 2.5).unwrap();
        assert_near(&poly, &[20.0, 0.9258394, 0.1441961, 0.06029542, 0.05, 0.0]);
        let vp = vp(5, 19.9, 0.1, 1e-3).unwrap();
        assert_near(&vp, &[152.16698, 17.04912, 3.422245, 0.9575265, 0.010485993, 0.0]);
        assert_near(&laplace(5, RANGE, 0.3, 0.7).unwrap(), &[20.0, 2.1928215, 1.3498589, 0.8309472, 0.05]);
    }

    #[test]
    fn beta_of_any_shape_picks_scipys_timesteps() {
        let model = ModelSampling::scaled_linear(Prediction::Epsilon);
        for (shape, timesteps) in [
            ([0.6, 0.6], [999, 908, 724, 500, 275, 91]),
            ([1.0, 2.0], [999, 591, 422, 293, 183, 87]),
            ([0.3, 4.5], [999, 127, 49, 17, 4, 0]),
        ] {
            let theirs: Vec<f32> = timesteps.iter().map(|t| model.table()[*t]).chain([0.0]).collect();
            assert_eq!(beta_quantiles(&model, 6, shape[0], shape[1]).unwrap(), theirs, "{shape:?}");
        }
        // A timestep that repeats counts once.
        let theirs: Vec<f32> =
            [999, 998, 995, 979, 927].iter().map(|t| model.table()[*t]).chain([0.0]).collect();
        assert_eq!(beta_quantiles(&model, 6, 5.0, 0.2).unwrap(), theirs);
    }

    #[test]
    fn turbo_begins_later_the_less_it_denoises() {
        let model = ModelSampling::scaled_linear(Prediction::Epsilon);
        assert_near(&sd_turbo(&model, 1, 1.0).unwrap(), &[model.table()[999], 0.0]);
        let half = sd_turbo(&model, 2, 0.5).unwrap();
        assert_near(&half, &[model.table()[499], model.table()[399], 0.0]);
        assert_eq!(sd_turbo(&model, 3, 0.0).unwrap(), [0.0]);
    }

    #[test]
    fn numbers_that_no_schedule_has_are_refused_by_name() {
        let zero = SigmaRange { min: 0.0, max: 1.0 };
        let refused = [
            karras(5, RANGE, 0.0),
            karras(5, SigmaRange { min: f64::NAN, max: 1.0 }, 7.0),
            exponential(5, zero),
            polyexponential(0, RANGE, 1.0),
            vp(5, f64::INFINITY, 0.1, 0.001),
            laplace(MAX_STEPS + 1, RANGE, 0.0, 0.5),
            beta_quantiles(&ModelSampling::scaled_linear(Prediction::Epsilon), 5, 0.0, 1.0),
        ];
        assert!(refused.iter().all(Result::is_err), "{refused:?}");
        assert!(exponential(5, zero).unwrap_err().to_string().starts_with("sigma_min 0"));
    }
}
