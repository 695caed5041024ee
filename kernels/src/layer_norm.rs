//! Layer normalisation (Ba et al. 2016).

use candle_core::{Result, Tensor};

use crate::reference;

/// Normalises the last dimension of `x: [.., c]`, then scales and shifts by `weight`, `bias: [c]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    reference::layer_norm(x, weight, bias, eps)
}
