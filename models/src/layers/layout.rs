//! The border between the reference's picture layout and the kernels' one.

use candle_core::{Result, Tensor};

/// `[b, c, h, w] -> [b, h, w, c]`.
pub(crate) fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()
}

/// `[b, h, w, c] -> [b, c, h, w]`.
pub(crate) fn channels_first(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 3, 1, 2))?.contiguous()
}
