//! Attention on NVIDIA's GPUs: kernels of our own, on tensor cores where the heads allow.
//!
//! [`crate::attention`] checks shapes and comes here; [`attention_by`] is for who compares the ways.

mod operand;
mod own;

use candle_core::{Result, Tensor, bail};

use crate::{AttentionMask, reference};

/// A way to compute attention on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttentionPath {
    /// The kernels of this crate: any head of up to 512 channels, any mask.
    Own,
}

/// As [`crate::attention`], by one way only.
///
/// # Errors
/// As [`crate::attention`], and when the tensors are not on a GPU, or this way does not take them.
pub fn attention_by(
    path: AttentionPath,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: &AttentionMask,
) -> Result<Tensor> {
    crate::attention::check(q, k, v, heads, mask)?;
    if !super::launch::takes(q) {
        bail!("attention: {:?} of {:?} is nothing for a GPU", q.dtype(), q.device().location());
    }
    let (k, v) = (k.to_dtype(q.dtype())?, v.to_dtype(q.dtype())?);
    match path {
        AttentionPath::Own => match own::attention(q, &k, &v, heads, mask)? {
            Some(out) => Ok(out),
            None => bail!("attention: no kernel for {heads} heads of {} channels", q.dim(2)? / heads),
        },
    }
}

/// Attention by the fastest way that takes it. Shapes were checked by the caller.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: &AttentionMask,
) -> Result<Tensor> {
    let (k, v) = (k.to_dtype(q.dtype())?, v.to_dtype(q.dtype())?);
    match own::attention(q, &k, &v, heads, mask)? {
        Some(out) => Ok(out),
        None => reference::attention(q, &k, &v, heads, mask),
    }
}
