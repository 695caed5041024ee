//! Gated GELU, the feed-forward gate of the UNet's transformer blocks (Shazeer 2020).

use candle_core::{D, Result, Tensor, bail};

use crate::cpu::isa::Isa;
use crate::cpu::{pointwise, tensors};
use crate::reference;

/// `x[.., ..c] · gelu(x[.., c..])` with the exact GELU; `[.., 2c] -> [.., c]`.
///
/// # Errors
/// When `x` has no elements or the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    if x.elem_count() == 0 || !x.dim(D::Minus1)?.is_multiple_of(2) {
        bail!("geglu: x {:?} does not split into values and gates", x.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(x) {
        return crate::cuda::pointwise::geglu(x);
    }
    if !tensors::takes_activation(x) {
        return reference::geglu(x);
    }
    on_cpu(Isa::detect(), x)
}

fn on_cpu(isa: Isa, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let c = x.dim(D::Minus1)? / 2;
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = c;
    }
    let (storage, layout) = x.storage_and_layout();
    let elements = tensors::floats(&storage, layout)?;
    // SAFETY: the caller has checked the shape; every element is written.
    unsafe {
        tensors::build(dims, |out| {
            pointwise::geglu(isa, elements, c, out);
            Ok(())
        })
    }
}
