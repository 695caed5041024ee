//! Each operation as a plain candle composition: slow, obvious, and right on every device candle has.
//!
//! Property tests hold the fast paths to these; devices without a fast path run them.

use candle_core::{D, DType, Result, Tensor};

use crate::{Activation, AttentionMask, Conv2dGeometry};

/// `x · weightᵀ + bias`; `x: [.., in]`, `weight: [out, in]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let weight = weight.to_dtype(x.dtype())?;
    let (out, inner) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    let rows = x.elem_count() / inner.max(1);
    let y = x.reshape((rows, inner))?.matmul(&weight.t()?)?;
    if let Some(last) = dims.last_mut() {
        *last = out;
    }
    let y = y.reshape(dims)?;
    match bias {
        Some(bias) => y.broadcast_add(&bias.to_dtype(x.dtype())?),
        None => Ok(y),
    }
}

/// 2-D convolution; `x: [b, h, w, in]`, `weight: [out, kh, kw, in]`.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
) -> Result<Tensor> {
    let p = geometry.padding;
    let x = x.pad_with_zeros(1, p.top, p.bottom)?.pad_with_zeros(2, p.left, p.right)?;
    let x = x.permute((0, 3, 1, 2))?.contiguous()?;
    let weight = weight.to_dtype(x.dtype())?.permute((0, 3, 1, 2))?.contiguous()?;
    let y = x.conv2d(&weight, 0, geometry.stride, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()?;
    match bias {
        Some(bias) => y.broadcast_add(&bias.to_dtype(y.dtype())?),
        None => Ok(y),
    }
}

/// Scaled dot-product attention with the whole score matrix in memory.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: &AttentionMask) -> Result<Tensor> {
    let (b, n, inner) = q.dims3()?;
    let m = k.dim(1)?;
    let d = inner / heads;
    let split = |t: &Tensor, len: usize| t.reshape((b, len, heads, d))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q, n)?, split(k, m)?, split(v, m)?);
    let scores = (q.matmul(&k.t()?)? * (1.0 / (d as f64).sqrt()))?;
    let allowed = |row: usize, query: usize, key: usize| match mask {
        AttentionMask::None => true,
        AttentionMask::Causal => key <= query,
        AttentionMask::KeyLengths(lengths) => key < lengths[row],
    };
    let scores = if matches!(mask, AttentionMask::None) {
        scores
    } else {
        let mut bias = Vec::with_capacity(b * n * m);
        for row in 0..b {
            for query in 0..n {
                bias.extend(
                    (0..m).map(|key| if allowed(row, query, key) { 0f32 } else { f32::NEG_INFINITY }),
                );
            }
        }
        scores.broadcast_add(&Tensor::from_vec(bias, (b, 1, n, m), q.device())?.to_dtype(q.dtype())?)?
    };
    let max = scores.max_keepdim(D::Minus1)?;
    let weights = scores.broadcast_sub(&max)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&v)?.transpose(1, 2)?.reshape((b, n, inner))
}

/// Group normalisation over `[b, h, w, c]` (or `[b, n, c]`), then `activation`.
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let dtype = x.dtype();
    let dims = x.dims().to_vec();
    let (b, c) = (x.dim(0)?, x.dim(D::Minus1)?);
    let positions = x.elem_count() / (b * c).max(1);
    let x = x.to_dtype(DType::F32)?.reshape((b, positions, groups, c / groups))?;
    let mean = x.mean_keepdim(3)?.mean_keepdim(1)?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(3)?.mean_keepdim(1)?;
    let y = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape(dims)?;
    let y = y
        .broadcast_mul(&weight.to_dtype(DType::F32)?)?
        .broadcast_add(&bias.to_dtype(DType::F32)?)?
        .to_dtype(dtype)?;
    activate(&y, activation)
}

/// Layer normalisation over the last dimension.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred
        .broadcast_div(&(variance + eps)?.sqrt()?)?
        .broadcast_mul(&weight.to_dtype(DType::F32)?)?
        .broadcast_add(&bias.to_dtype(DType::F32)?)?
        .to_dtype(dtype)
}

/// Gated GELU: the first half times `gelu` (exact, erf) of the second; `[.., 2c] -> [.., c]`.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let c = x.dim(D::Minus1)? / 2;
    let value = x.narrow(D::Minus1, 0, c)?;
    let gate = x.narrow(D::Minus1, c, c)?.contiguous()?;
    value.contiguous()?.mul(&gate.gelu_erf()?)
}

/// Nearest-neighbour upsampling by two; `[b, h, w, c] -> [b, 2h, 2w, c]`.
pub fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    x.reshape((b, h, 1, w, 1, c))?.broadcast_as((b, h, 2, w, 2, c))?.contiguous()?.reshape((
        b,
        2 * h,
        2 * w,
        c,
    ))
}

/// `activation` of every element.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Identity => Ok(x.clone()),
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::QuickGelu => x * (x * 1.702)?.neg()?.exp()?.affine(1.0, 1.0)?.recip()?,
    }
}
