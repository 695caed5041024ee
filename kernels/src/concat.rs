//! Joining channels: how features of the way down come back on the way up.

use candle_core::{D, Result, Tensor, bail};

/// The channels of `a` and then those of `b`; `[.., c1] + [.., c2] -> [.., c1 + c2]`.
///
/// # Errors
/// When the other sides or the types differ, or one of them has no elements.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let fit = match (a.dims().split_last(), b.dims().split_last()) {
        (Some((_, left)), Some((_, right))) => left == right && a.dtype() == b.dtype(),
        _ => false,
    };
    if !fit || a.elem_count() == 0 || b.elem_count() == 0 {
        bail!(
            "concat_channels: {:?} of {:?} and {:?} of {:?} do not fit",
            a.shape(),
            a.dtype(),
            b.shape(),
            b.dtype()
        );
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(a) {
        return crate::cuda::pointwise::concat(a, b);
    }
    Tensor::cat(&[a, b], D::Minus1)
}
