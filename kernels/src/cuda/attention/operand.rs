//! Queries, keys and values as they lie: rows of channels, a stride apart.

use candle_core::{Result, Tensor};

use crate::cuda::launch::{Dense, first_address};

/// Bytes that the kernels of 16-bit elements read at once.
const ACCESS: u64 = 16;

/// The longest way from one token to the next, in elements, with which 128 tokens are counted in 32 bits.
const LONGEST_STEP: usize = 1 << 24;

/// A `[batch, tokens, channels]` tensor whose channels lie side by side; a third of a fused projection is one.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    tensor: Tensor,
    /// Where the first element lies.
    pub(super) address: u64,
    /// Elements from one batch row to the next.
    pub(super) batch_stride: usize,
    /// Elements from one token to the next.
    pub(super) token_stride: usize,
}

impl Rows {
    /// `x` itself, or a copy where its layout is none that the kernels read.
    pub(super) fn of(x: &Tensor) -> Result<Self> {
        if let Some(rows) = Self::as_it_lies(x)? {
            return Ok(rows);
        }
        let dense = Dense::of(x)?;
        let (_, tokens, channels) = x.dims3()?;
        Ok(Self {
            address: dense.address(),
            tensor: dense.into_tensor(),
            batch_stride: tokens * channels,
            token_stride: channels,
        })
    }

    fn as_it_lies(x: &Tensor) -> Result<Option<Self>> {
        let &[batch_stride, token_stride, 1] = x.stride() else { return Ok(None) };
        let rows = Self { address: first_address(x)?, tensor: x.clone(), batch_stride, token_stride };
        Ok((token_stride <= LONGEST_STEP && (rows.is_aligned() || x.dtype().size_in_bytes() == 4))
            .then_some(rows))
    }

    /// Whether every row begins where 16 bytes can be read at once.
    pub(super) fn is_aligned(&self) -> bool {
        let size = self.tensor.dtype().size_in_bytes();
        let begins = |elements: usize| ((elements * size) as u64).is_multiple_of(ACCESS);
        self.address.is_multiple_of(ACCESS) && begins(self.batch_stride) && begins(self.token_stride)
    }

    /// Where batch row `row` begins.
    pub(super) fn row(&self, row: usize) -> u64 {
        self.address + (row * self.batch_stride * self.tensor.dtype().size_in_bytes()) as u64
    }
}
