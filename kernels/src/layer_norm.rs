//! Layer normalisation (Ba et al. 2016).

use candle_core::{D, Result, Tensor, bail};

use crate::cpu::isa::Isa;
use crate::cpu::{norm, tensors};
use crate::reference;

/// Normalises the last dimension of `x: [.., c]`, then scales and shifts by `weight`, `bias: [c]`.
///
/// # Errors
/// When the shapes do not fit or `x` has no elements.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let c = x.dim(D::Minus1)?;
    if x.elem_count() == 0 || weight.dims() != [c] || bias.dims() != [c] {
        bail!(
            "layer_norm: x {:?}, weight {:?} and bias {:?} do not fit",
            x.shape(),
            weight.shape(),
            bias.shape()
        );
    }
    if !tensors::takes_activation(x) {
        return reference::layer_norm(x, weight, bias, eps);
    }
    on_cpu(Isa::detect(), x, weight, bias, eps)
}

fn on_cpu(isa: Isa, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (weight, bias) = (tensors::widened(weight)?, tensors::widened(bias)?);
    let (storage, layout) = x.storage_and_layout();
    let elements = tensors::floats(&storage, layout)?;
    // SAFETY: the caller has checked the shapes; every element is written.
    unsafe {
        tensors::build(x.shape(), |out| {
            norm::layer_norm(isa, elements, &weight, &bias, eps, out);
            Ok(())
        })
    }
}
