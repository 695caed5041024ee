//! Root-mean-square normalisation (Zhang & Sennrich 2019).

use candle_core::{D, Result, Tensor, bail};

use crate::{Activation, reference};

/// `activation(x / √(mean(x²) + eps) · weight)` over the last dimension of `x: [.., c]`; `weight: [c]`.
///
/// # Errors
/// When the shapes do not fit or `x` has no elements.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, activation: Activation) -> Result<Tensor> {
    if x.elem_count() == 0 || weight.dims() != [x.dim(D::Minus1)?] {
        bail!("rms_norm: x {:?} and weight {:?} do not fit", x.shape(), weight.shape());
    }
    reference::rms_norm(x, weight, eps, activation)
}
