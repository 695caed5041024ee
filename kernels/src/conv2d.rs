//! 2-D convolution, channels-last.

use candle_core::{Result, Tensor};

use crate::reference;

/// Rows and columns of zeros around a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Columns to the left.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub const fn all(n: usize) -> Self {
        Self { top: n, left: n, bottom: n, right: n }
    }
}

/// How a kernel moves over a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dGeometry {
    /// Step of the kernel in both directions.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: Padding,
}

/// `x: [b, h, w, in]` convolved with `weight: [out, kh, kw, in]`, plus `bias: [out]`.
/// Returns `[b, h', w', out]`, `h' = (h + top + bottom - kh) / stride + 1`.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
) -> Result<Tensor> {
    reference::conv2d(x, weight, bias, geometry)
}
