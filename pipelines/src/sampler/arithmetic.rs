//! The few formulas that many methods share. Scalars are f32, as torch's zero-dimensional tensors are.

use candle_core::Tensor;
use darkroom_kernels::sampling::linear_combination;

use super::Result;

/// `x + Σ coefficient * tensor`.
pub(super) fn linear(x: &Tensor, terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    scaled(1.0, x, terms)
}

/// `scale * x + Σ coefficient * tensor`.
pub(super) fn scaled(scale: f32, x: &Tensor, terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    let rest = terms.iter().map(|&(coefficient, tensor)| (tensor, f64::from(coefficient)));
    let all: Vec<(&Tensor, f64)> = std::iter::once((x, f64::from(scale))).chain(rest).collect();
    Ok(linear_combination(&all)?)
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

/// The same for a flow (ComfyUI's `*_RF`): `(sigma_down, keep, up)`, where the latent at `sigma_down` is kept in the
/// proportion `keep` and noise of strength `up` is added.
pub(super) fn flow_ancestral_step(from: f32, to: f32) -> (f32, f32, f32) {
    let down = to * (1.0 + (to / from - 1.0));
    let (alpha, alpha_down) = (1.0 - to, 1.0 - down);
    let up = (to * to - down * down * (alpha * alpha) / (alpha_down * alpha_down)).max(0.0).sqrt();
    (down, alpha / alpha_down, up)
}

/// Solves a small square system by elimination with pivoting. A singular system gives values that are not finite.
pub(super) fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let n = right.len();
    for column in 0..n {
        let pivot = (column..n)
            .max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()))
            .unwrap_or(column);
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        let (above, below) = matrix.split_at_mut(column + 1);
        let pivot = &above[column];
        for (row, values) in (column + 1..).zip(below) {
            let factor = values[column] / pivot[column];
            for (value, pivot) in values.iter_mut().zip(pivot).skip(column) {
                *value -= factor * pivot;
            }
            right[row] -= factor * right[column];
        }
    }
    for row in (0..n).rev() {
        for k in row + 1..n {
            right[row] -= matrix[row][k] * right[k];
        }
        right[row] /= matrix[row][row];
    }
    right
}
