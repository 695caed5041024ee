//! Nearest-neighbour upsampling, the first half of every up-block's resize.

use candle_core::{Result, Tensor, bail};

use crate::cpu::{pointwise, tensors};
use crate::reference;

/// Doubles height and width by repeating pixels; `[b, h, w, c] -> [b, 2h, 2w, c]`.
///
/// # Errors
/// When `x` is not of rank 4 or has no elements.
pub fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    if x.elem_count() == 0 {
        bail!("upsample_nearest_2x: x {:?} is empty", x.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(x) {
        return crate::cuda::pointwise::upsample_nearest_2x(x);
    }
    if !tensors::takes_activation(x) {
        return reference::upsample_nearest_2x(x);
    }
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let elements = tensors::floats(&storage, layout)?;
    // SAFETY: every element is written.
    unsafe {
        tensors::build((b, 2 * h, 2 * w, c), |out| {
            pointwise::upsample_nearest_2x(elements, b * h, w, c, out);
            Ok(())
        })
    }
}
