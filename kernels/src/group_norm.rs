//! Group normalisation with a fused activation (Wu & He 2018).

use candle_core::{Result, Tensor};

use crate::{Activation, reference};

/// Normalises each of `groups` channel groups of each batch row over all positions, scales and shifts by
/// `weight`, `bias: [c]`, then applies `activation`. `x: [b, h, w, c]` or `[b, n, c]`; statistics in `f32`.
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    reference::group_norm(x, groups, weight, bias, eps, activation)
}
