//! How alike two results are.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::Outcome;

/// `‖actual − expected‖ / ‖expected‖` in f64; infinite where shapes differ or anything is not finite.
pub(crate) fn relative_error(actual: &Tensor, expected: &Tensor) -> Outcome<f64> {
    if actual.dims() != expected.dims() {
        return Ok(f64::INFINITY);
    }
    let (actual, expected) = (floats(actual)?, floats(expected)?);
    let (difference, norm) = actual
        .par_iter()
        .zip(&expected)
        .map(|(a, e)| ((f64::from(*a) - f64::from(*e)).powi(2), f64::from(*e).powi(2)))
        .reduce(|| (0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    let error = (difference / norm).sqrt();
    Ok(if error.is_finite() { error } else { f64::INFINITY })
}

/// All elements, on the CPU.
pub(crate) fn floats(x: &Tensor) -> Outcome<Vec<f32>> {
    Ok(x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// How many elements are no numbers.
pub(crate) fn not_numbers(values: &[f32]) -> usize {
    values.par_iter().filter(|value| !value.is_finite()).count()
}

/// Peak signal-to-noise ratio of 8-bit pictures in decibels; infinite (`None` in a report) where they are the same.
pub(crate) fn psnr(a: &[u8], b: &[u8]) -> f64 {
    if a.len() != b.len() || a.is_empty() {
        return 0.0;
    }
    let sum: f64 = a.par_iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / sum).log10()
}
