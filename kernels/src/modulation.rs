//! Adaptive layer normalisation with a gate (Peebles & Xie 2023): how timesteps steer the blocks of diffusion
//! transformers.

use candle_core::{Result, Tensor, bail};

use crate::reference;

/// `(x − mean) / √(variance + eps) · (1 + scale) + shift` over the last dimension of `x: [b, n, c]`; `shift` and `scale`
/// are `[b, c]`, their rows possibly apart in memory (parts of one projection).
///
/// # Errors
/// When the shapes do not fit or `x` has no elements.
pub fn modulated_layer_norm(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    check("modulated_layer_norm", x, &[shift, scale])?;
    reference::modulated_layer_norm(x, shift, scale, eps)
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
    reference::add_gated(x, y, gate)
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
