//! A linear layer's weight as its products take it. Between the weight views and the layers.

use candle_core::{Result, Tensor};
use darkroom_kernels::{Fp8Scaling, Fp8Weight, Precision, linear_add, linear_fp8, linear_widened};

/// `[out, in]`
#[derive(Debug, Clone)]
pub enum Matrix {
    /// In a type that candle has.
    Plain(Tensor),
    /// In 8 bits, with scales; activations are rounded to 8 bits as well.
    EightBit(Fp8Weight),
    /// In 8 bits, with a scale; widened where it is multiplied.
    Widened(Fp8Weight),
}

impl Matrix {
    /// `x · weightᵀ (+ bias) (+ residual)`, `x: [rows of the batch, .., in]`.
    ///
    /// # Errors
    /// When shapes or types do not fit.
    pub(crate) fn product(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        residual: Option<&Tensor>,
        precision: Precision,
    ) -> Result<Tensor> {
        let weight = match self {
            Self::Plain(weight) => return linear_add(x, weight, bias, residual, precision),
            Self::Widened(weight) => return linear_widened(x, weight, bias, residual, precision),
            Self::EightBit(weight) => weight,
        };
        let rows = x.dim(0)?;
        if weight.scaling() == Fp8Scaling::Row || rows == 1 {
            return linear_fp8(x, weight, bias, residual);
        }
        // One scale for all of `x` would make each row of the batch depend on the others.
        let row = |row: usize| {
            let residual = residual.map(|residual| residual.narrow(0, row, 1)).transpose()?;
            linear_fp8(&x.narrow(0, row, 1)?, weight, bias, residual.as_ref())
        };
        Tensor::cat(&(0..rows).map(row).collect::<Result<Vec<_>>>()?, 0)
    }
}

/// Whether a tensor of this shape is a matrix that can be held in 8 bits; `[out, in, 1, 1]` counts as one.
pub(super) fn fits_eight_bits(shape: &[usize]) -> bool {
    matches!(shape, [out, inner] | [out, inner, 1, 1] if Fp8Weight::takes(*out, *inner))
}
