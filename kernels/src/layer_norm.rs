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
    check(x, weight, bias)?;
    #[cfg(feature = "cuda")]
    if crate::cuda::layer_norm::takes(x) {
        return Ok(crate::cuda::layer_norm::layer_norm(x, None, weight, bias, eps)?.1);
    }
    if !tensors::takes_activation(x) {
        return reference::layer_norm(x, weight, bias, eps);
    }
    on_cpu(Isa::detect(), x, weight, bias, eps)
}

/// `x + residual`, and [`layer_norm`] of that; both of the shape and type of `x`.
///
/// # Errors
/// As [`layer_norm`], and when `residual` is not of the shape and type of `x`.
pub fn add_layer_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    check(x, weight, bias)?;
    if x.dims() != residual.dims() || x.dtype() != residual.dtype() {
        bail!(
            "add_layer_norm: x {:?} of {:?} and residual {:?} of {:?} do not fit",
            x.shape(),
            x.dtype(),
            residual.shape(),
            residual.dtype()
        );
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::layer_norm::takes(x)
        && let (Some(sum), normed) =
            crate::cuda::layer_norm::layer_norm(x, Some(residual), weight, bias, eps)?
    {
        return Ok((sum, normed));
    }
    let sum = (x + residual)?;
    let normed = layer_norm(&sum, weight, bias, eps)?;
    Ok((sum, normed))
}

fn check(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<()> {
    let c = x.dim(D::Minus1)?;
    if x.elem_count() == 0 || weight.dims() != [c] || bias.dims() != [c] {
        bail!(
            "layer_norm: x {:?}, weight {:?} and bias {:?} do not fit",
            x.shape(),
            weight.shape(),
            bias.shape()
        );
    }
    Ok(())
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
