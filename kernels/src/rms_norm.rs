//! Root-mean-square normalisation (Zhang & Sennrich 2019).

use candle_core::{D, Result, Tensor, bail};

use crate::cpu::isa::Isa;
use crate::cpu::{norm, tensors};
use crate::{Activation, reference};

/// `activation(x / √(mean(x²) + eps) · weight)` over the last dimension of `x: [.., c]`; `weight: [c]`.
///
/// # Errors
/// When the shapes do not fit or `x` has no elements.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, activation: Activation) -> Result<Tensor> {
    if x.elem_count() == 0 || weight.dims() != [x.dim(D::Minus1)?] {
        bail!("rms_norm: x {:?} and weight {:?} do not fit", x.shape(), weight.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::rms_norm::takes(x) {
        return crate::cuda::rms_norm::rms_norm(x, weight, eps, activation);
    }
    if !tensors::takes_activation(x) {
        return reference::rms_norm(x, weight, eps, activation);
    }
    on_cpu(Isa::detect(), x, weight, eps, activation)
}

fn on_cpu(isa: Isa, x: &Tensor, weight: &Tensor, eps: f64, activation: Activation) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, tensors::widened(weight)?);
    let (storage, layout) = x.storage_and_layout();
    let elements = tensors::floats(&storage, layout)?;
    // SAFETY: the caller has checked the shapes; every element is written.
    unsafe {
        tensors::build(x.shape(), |out| {
            norm::rms_norm(isa, elements, &weight, eps, activation, out);
            Ok(())
        })
    }
}
