//! The few formulas that many methods share. Scalars are f32, as torch's zero-dimensional tensors are.

use candle_core::Tensor;

use super::Result;

/// `x + Σ coefficient * tensor`.
pub(super) fn linear(x: &Tensor, terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    let mut sum = x.clone();
    for &(coefficient, tensor) in terms {
        sum = (sum + tensor.affine(f64::from(coefficient), 0.0)?)?;
    }
    Ok(sum)
}

/// `scale * x + Σ coefficient * tensor`.
pub(super) fn scaled(scale: f32, x: &Tensor, terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    linear(&x.affine(f64::from(scale), 0.0)?, terms)
}

/// The slope of the probability flow at `x`, k-diffusion's `to_d`: `(x - denoised) / sigma`.
pub(super) fn slope(x: &Tensor, denoised: &Tensor, sigma: f32) -> Result<Tensor> {
    Ok((x - denoised)?.affine(1.0 / f64::from(sigma), 0.0)?)
}

/// Splits a step from `from` to `to` into a way down and fresh noise up again, k-diffusion's `get_ancestral_step`
/// with eta 1: `(sigma_down, sigma_up)`.
pub(super) fn ancestral_step(from: f32, to: f32) -> (f32, f32) {
    let (from2, to2) = (from * from, to * to);
    let up = to.min((to2 * (from2 - to2) / from2).sqrt());
    ((to2 - up * up).sqrt(), up)
}
