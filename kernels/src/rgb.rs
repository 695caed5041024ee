//! From what a decoder gives to the bytes of a picture.

use candle_core::{D, Result, Tensor, bail};

use crate::reference;

/// Eight-bit RGB of a decoder's `[.., 3]` in `-1..1`, cut off as ComfyUI's `SaveImage` does it:
/// `trunc(255 clamp((x + 1) / 2, 0, 1))`, and 0 where it is not a number.
///
/// # Errors
/// When the last side is not 3, or there are no elements.
pub fn to_rgb8(x: &Tensor) -> Result<Tensor> {
    if x.elem_count() == 0 || x.dim(D::Minus1)? != 3 {
        bail!("to_rgb8: x {:?} is no picture of red, green and blue", x.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(x) {
        return crate::cuda::image::to_bytes(x);
    }
    reference::to_bytes(x)
}
