//! Adaptive layer normalisation with a gate (Peebles & Xie 2023): how timesteps steer the blocks of diffusion
//! transformers.

use candle_core::{Result, Tensor, bail};

use crate::cpu::isa::Isa;
use crate::cpu::{norm, pointwise, tensors};
use crate::reference;

/// `(x − mean) / √(variance + eps) · (1 + scale) + shift` over the last dimension of `x: [b, n, c]`; `shift` and `scale`
/// are `[b, c]`, their rows possibly apart in memory (parts of one projection).
///
/// # Errors
/// When the shapes do not fit or `x` has no elements.
pub fn modulated_layer_norm(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    check("modulated_layer_norm", x, &[shift, scale])?;
    #[cfg(feature = "cuda")]
    if crate::cuda::modulation::takes(x) {
        return crate::cuda::modulation::modulated_layer_norm(x, shift, scale, eps);
    }
    if !tensors::takes_activation(x) {
        return reference::modulated_layer_norm(x, shift, scale, eps);
    }
    norm_on_cpu(Isa::detect(), x, shift, scale, eps)
}

/// `x + gate · y`; `x`, `y: [b, n, c]` of one type, `gate: [b, c]`, its rows possibly apart in memory.
///
/// # Errors
/// When the shapes or types do not fit or `x` has no elements.
pub fn add_gated(x: &Tensor, y: &Tensor, gate: &Tensor) -> Result<Tensor> {
    check("add_gated", x, &[gate])?;
    if x.dims() != y.dims() || x.dtype() != y.dtype() {
        bail!("add_gated: x {:?} of {:?} and y {:?} of {:?}", x.shape(), x.dtype(), y.shape(), y.dtype());
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(x) {
        return crate::cuda::modulation::add_gated(x, y, gate);
    }
    if !tensors::takes_activation(x) || !tensors::takes_activation(y) {
        return reference::add_gated(x, y, gate);
    }
    add_on_cpu(Isa::detect(), x, y, gate)
}

fn norm_on_cpu(isa: Isa, x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (_, tokens, channels) = x.dims3()?;
    let shift = tensors::widened(shift)?;
    let factor: Vec<f32> = tensors::widened(scale)?.into_iter().map(|scale| 1.0 + scale).collect();
    let (storage, layout) = x.storage_and_layout();
    let elements = tensors::floats(&storage, layout)?;
    // SAFETY: the caller has checked the shapes; a row of the batch writes what is its own, and so every element.
    unsafe {
        tensors::build(x.shape(), |out| {
            let rows = factor.chunks_exact(channels).zip(shift.chunks_exact(channels));
            for ((row, x), (factor, shift)) in elements.chunks_exact(tokens * channels).enumerate().zip(rows)
            {
                norm::layer_norm(isa, x, factor, shift, eps, out.add(row * tokens * channels));
            }
            Ok(())
        })
    }
}

fn add_on_cpu(isa: Isa, x: &Tensor, y: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let (x, y) = (x.contiguous()?, y.contiguous()?);
    let (_, tokens, channels) = x.dims3()?;
    let gate = tensors::widened(gate)?;
    let (x_storage, x_layout) = x.storage_and_layout();
    let (y_storage, y_layout) = y.storage_and_layout();
    let (all, more) = (tensors::floats(&x_storage, x_layout)?, tensors::floats(&y_storage, y_layout)?);
    // SAFETY: the caller has checked the shapes; every element is written.
    unsafe {
        tensors::build(x.shape(), |out| {
            pointwise::add_gated(isa, all, more, &gate, [tokens, channels], out);
            Ok(())
        })
    }
}

fn check(operation: &str, x: &Tensor, rows: &[&Tensor]) -> Result<()> {
    let (batch, _, channels) = x.dims3()?;
    if x.elem_count() == 0 || rows.iter().any(|row| row.dims() != [batch, channels]) {
        bail!(
            "{operation}: x {:?} and {:?} do not fit",
            x.shape(),
            rows.iter().map(|row| row.shape()).collect::<Vec<_>>()
        );
    }
    Ok(())
}
