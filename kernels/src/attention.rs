//! Scaled dot-product attention over channels-last sequences.

use candle_core::{Result, Tensor};

use crate::reference;

/// Which keys a query may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttentionMask {
    /// All of them.
    None,
    /// Those at or before the query's own position (text encoders).
    Causal,
    /// The first `n` of each batch row: sequences of different lengths padded into one batch. One entry a
    /// batch row, each at least 1 and at most the number of keys.
    KeyLengths(Vec<usize>),
}

/// `softmax(q kᵀ / √d) v` per head, with `q: [batch, queries, heads·d]` and `k`, `v: [batch, keys, heads·d]`.
/// Returns `[batch, queries, heads·d]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: &AttentionMask) -> Result<Tensor> {
    reference::attention(q, k, v, heads, mask)
}
