//! The linear layer: every projection and feed-forward matrix of the networks.

use candle_core::{Result, Tensor};

use crate::reference;

/// `x · weightᵀ + bias`; `x: [.., in]`, `weight: [out, in]`, `bias: [out]`. Returns `[.., out]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    reference::linear(x, weight, bias)
}
