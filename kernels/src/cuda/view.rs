//! Tensors whose last dimension lies side by side and whose others need not: parts of a fused projection, read as they lie.

use candle_core::{Result, Tensor};

use super::launch::{Dense, first_address};

/// A tensor, or a copy of it, whose rows all begin where a kernel's accesses may.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// Keeps the memory.
    _tensor: Tensor,
    /// Where the first element lies.
    pub(crate) address: u64,
    /// Elements from one to the next, of every dimension but the last.
    pub(crate) steps: Vec<usize>,
}

impl View {
    /// `x` as it lies if every row begins at a multiple of `bytes`, else a dense copy, for whose rows the caller knows it.
    pub(crate) fn of(x: &Tensor, bytes: usize) -> Result<Self> {
        if let Some((1, steps)) = x.stride().split_last() {
            let address = first_address(x)?;
            let size = x.dtype().size_in_bytes();
            let fits = steps.iter().all(|step| (step * size).is_multiple_of(bytes));
            if fits && address.is_multiple_of(bytes as u64) {
                return Ok(Self { _tensor: x.clone(), address, steps: steps.to_vec() });
            }
        }
        let dense = Dense::of(x)?;
        let address = dense.address();
        let tensor = dense.into_tensor();
        let steps = tensor.stride().split_last().map_or(vec![], |(_, steps)| steps.to_vec());
        Ok(Self { _tensor: tensor, address, steps })
    }
}
