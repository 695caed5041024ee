//! Each operation as a plain candle composition: slow, obvious, and right on every device candle has.
//!
//! Property tests hold the fast paths to these; devices without a fast path run them.

use candle_core::{D, DType, Result, Tensor, bail};

use crate::{Activation, AttentionMask, Conv2dGeometry, RotaryPairs};

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
    // In `f64`: sums of numbers far from zero lose in `f32` what is left of them once the mean is taken off.
    let x = x.to_dtype(DType::F64)?.reshape((b, positions, groups, c / groups))?;
    let mean = x.mean_keepdim(3)?.mean_keepdim(1)?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(3)?.mean_keepdim(1)?;
    let y = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.reshape(dims)?;
    let y = y
        .to_dtype(DType::F32)?
        .broadcast_mul(&weight.to_dtype(DType::F32)?)?
        .broadcast_add(&bias.to_dtype(DType::F32)?)?
        .to_dtype(dtype)?;
    activate(&y, activation)
}

/// Group normalisation of `x` with `shift: [b, c]` added to all positions.
pub fn group_norm_shifted(
    x: &Tensor,
    shift: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    group_norm(&add_row_shift(x, &shift.to_dtype(x.dtype())?)?, groups, weight, bias, eps, activation)
}

/// `x + shift` with `x: [b, .., c]` and `shift: [b, c]`.
pub fn add_row_shift(x: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let mut dims = vec![1; x.rank()];
    let (batch, channels) = shift.dims2()?;
    if let [first, .., last] = dims.as_mut_slice() {
        (*first, *last) = (batch, channels);
    }
    x.broadcast_add(&shift.reshape(dims)?)
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

/// Root-mean-square normalisation over the last dimension, then `activation`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, activation: Activation) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let inverse = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    let y = x.broadcast_mul(&inverse)?.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
    activate(&y, activation)?.to_dtype(dtype)
}

/// Layer normalisation of `x: [b, n, c]` without weights, then `· (1 + scale) + shift`, `[b, c]` each.
pub fn modulated_layer_norm(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let row = |t: &Tensor| t.to_dtype(DType::F32)?.unsqueeze(1);
    centred
        .broadcast_div(&(variance + eps)?.sqrt()?)?
        .broadcast_mul(&(row(scale)? + 1.0)?)?
        .broadcast_add(&row(shift)?)?
        .to_dtype(dtype)
}

/// `x + gate · y` with `x`, `y: [b, n, c]` and `gate: [b, c]`.
pub fn add_gated(x: &Tensor, y: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let dtype = x.dtype();
    let gated = y.to_dtype(DType::F32)?.broadcast_mul(&gate.to_dtype(DType::F32)?.unsqueeze(1)?)?;
    (x.to_dtype(DType::F32)? + gated)?.to_dtype(dtype)
}

/// Rotary position embedding of `x: [b, n, heads · d]`; `cos`, `sin: [n, d/2]`.
pub fn rotary(x: &Tensor, heads: usize, cos: &Tensor, sin: &Tensor, pairs: RotaryPairs) -> Result<Tensor> {
    let dtype = x.dtype();
    let (b, n, inner) = x.dims3()?;
    let half = inner / heads / 2;
    let (shape, pair) = match pairs {
        RotaryPairs::Adjacent => ((b, n, heads, half, 2), D::Minus1),
        RotaryPairs::Halves => ((b, n, heads, 2, half), D::Minus2),
    };
    let x = x.to_dtype(DType::F32)?.reshape(shape)?;
    let first = x.narrow(pair, 0, 1)?.squeeze(pair)?;
    let second = x.narrow(pair, 1, 1)?.squeeze(pair)?;
    let angle = |t: &Tensor| t.to_dtype(DType::F32)?.reshape((1, n, 1, half));
    let (cos, sin) = (angle(cos)?, angle(sin)?);
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    let at = if pairs == RotaryPairs::Adjacent { 4 } else { 3 };
    Tensor::stack(&[turned_first, turned_second], at)?.reshape((b, n, inner))?.to_dtype(dtype)
}

/// `silu(gate) · value`.
pub fn swiglu(gate: &Tensor, value: &Tensor) -> Result<Tensor> {
    let dtype = gate.dtype();
    (gate.to_dtype(DType::F32)?.silu()? * value.to_dtype(DType::F32)?)?.to_dtype(dtype)
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

/// Cosines, then sines, of `numbers: [n]` times `half` falling frequencies; `[n, 2 half]`, `f32`.
pub fn sinusoid(numbers: &Tensor, half: usize) -> Result<Tensor> {
    let exponents = (0..half).map(|i| -10_000f64.ln() as f32 * i as f32 / half as f32);
    let frequencies = Tensor::from_vec(exponents.map(f32::exp).collect(), (1, half), numbers.device())?;
    let angles = numbers.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
    Tensor::cat(&[angles.cos()?, angles.sin()?], D::Minus1)
}

/// Values in `-1..1` as bytes: `trunc(255 clamp((x + 1) / 2, 0, 1))`.
pub fn to_bytes(x: &Tensor) -> Result<Tensor> {
    let unit = ((x.to_dtype(DType::F32)? + 1.0)? / 2.0)?.clamp(0f32, 1f32)?;
    unit.affine(255.0, 0.0)?.to_dtype(DType::U8)
}

/// `uncond + (cond - uncond) · scale`.
pub fn guide(cond: &Tensor, uncond: &Tensor, scale: f64) -> Result<Tensor> {
    uncond + ((cond - uncond)? * scale)?
}

/// `Σ factor · tensor`, added in order.
pub fn linear_combination(terms: &[(&Tensor, f64)]) -> Result<Tensor> {
    let mut terms = terms.iter().map(|&(tensor, factor)| scaled(tensor, factor));
    let Some(first) = terms.next() else { bail!("linear_combination: nothing to combine") };
    terms.try_fold(first?, |sum, term| sum + term?)
}

/// `n` latents `[c, h, w]`, each times its factor, as `[n, h, w, c]` of `dtype`.
pub fn scale_latents(latents: &[(&Tensor, f64)], dtype: DType) -> Result<Tensor> {
    let scaled = latents.iter().map(|&(latent, factor)| scaled(latent, factor));
    let stacked = Tensor::stack(&scaled.collect::<Result<Vec<_>>>()?, 0)?;
    stacked.permute((0, 2, 3, 1))?.contiguous()?.to_dtype(dtype)
}

/// `latent · factor + output · of_output` of each row: `[n, c, h, w]`, `f32`, of an `output: [n, h, w, c]`.
pub fn denoised_latents(output: &Tensor, latents: &[(&Tensor, f64, f64)]) -> Result<Tensor> {
    let output = output.to_dtype(DType::F32)?.permute((0, 3, 1, 2))?.contiguous()?;
    let row = |(i, &(latent, factor, of_output)): (usize, &(&Tensor, f64, f64))| match (factor, of_output) {
        (0.0, of_output) => scaled(&output.get(i)?, of_output),
        (factor, 0.0) => scaled(latent, factor),
        (factor, of_output) => scaled(latent, factor)? + scaled(&output.get(i)?, of_output)?,
    };
    Tensor::stack(&latents.iter().enumerate().map(row).collect::<Result<Vec<_>>>()?, 0)
}

fn scaled(x: &Tensor, factor: f64) -> Result<Tensor> {
    if factor == 1.0 { Ok(x.clone()) } else { x.affine(factor, 0.0) }
}

/// `activation` of every element.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Identity => Ok(x.clone()),
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::QuickGelu => x * (x * 1.702)?.neg()?.exp()?.affine(1.0, 1.0)?.recip()?,
    }
}
