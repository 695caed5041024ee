//! Sums of activations.

use candle_core::{D, Result, Tensor, bail};

use crate::reference;

/// `a + b`, of one shape and type.
///
/// # Errors
/// When the shapes or types differ, or there are no elements.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.elem_count() == 0 || a.dims() != b.dims() || a.dtype() != b.dtype() {
        bail!("add: {:?} of {:?} and {:?} of {:?} do not fit", a.shape(), a.dtype(), b.shape(), b.dtype());
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(a) {
        return crate::cuda::pointwise::add(a, b);
    }
    a + b
}

/// `x + shift`, the same for all positions of a row: `x: [b, .., c]`, `shift: [b, c]`, of one type.
///
/// # Errors
/// When the shapes or types do not fit, or there are no elements.
pub fn add_row_shift(x: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let fits = x.rank() >= 2 && shift.dims() == [x.dim(0)?, x.dim(D::Minus1)?] && x.dtype() == shift.dtype();
    if x.elem_count() == 0 || !fits {
        bail!(
            "add_row_shift: x {:?} of {:?} and shift {:?} of {:?} do not fit",
            x.shape(),
            x.dtype(),
            shift.shape(),
            shift.dtype()
        );
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(x) {
        return crate::cuda::pointwise::add_row_shift(x, shift);
    }
    reference::add_row_shift(x, shift)
}
