//! Gated GELU, the feed-forward gate of the UNet's transformer blocks (Shazeer 2020).

use candle_core::{Result, Tensor};

use crate::reference;

/// `x[.., ..c] · gelu(x[.., c..])` with the exact GELU; `[.., 2c] -> [.., c]`.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    reference::geglu(x)
}
