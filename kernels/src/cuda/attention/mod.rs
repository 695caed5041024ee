//! Attention on NVIDIA's GPUs: by cuDNN where it is installed and takes the shape, else by kernels of our own, on tensor
//! cores where the heads allow.
//!
//! [`crate::attention`] checks shapes and comes here; [`attention_by`] is for who compares the ways.

mod cudnn;
mod lengths;
mod operand;
mod own;

use candle_core::{Result, Tensor, bail};

use crate::{AttentionMask, reference};

/// A way to compute attention on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttentionPath {
    /// cuDNN's operation: 16-bit types, heads of up to 256 channels, no causal mask.
    Cudnn,
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
        AttentionPath::Cudnn => match cudnn::attention(q, &k, &v, heads, mask)? {
            Some(out) => Ok(out),
            None => bail!(
                "attention: cuDNN does not take q {:?} {:?} and {} keys in {heads} heads: {:?}; refused before: {:?}",
                q.dtype(),
                q.shape(),
                k.dim(1)?,
                super::cudnn::cudnn(),
                super::cudnn::cudnn_refusals(),
            ),
        },
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
    if let Some(out) = cudnn::attention(q, &k, &v, heads, mask)? {
        return Ok(out);
    }
    match own::attention(q, &k, &v, heads, mask)? {
        Some(out) => Ok(out),
        None => reference::attention(q, &k, &v, heads, mask),
    }
}
