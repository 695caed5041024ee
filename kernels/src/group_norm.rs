//! Group normalisation with a fused activation (Wu & He 2018).

use candle_core::{D, Result, Tensor, bail};

use crate::cpu::isa::Isa;
use crate::cpu::norm::{self, Groups};
use crate::cpu::tensors;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{Activation, add_row_shift, reference};

/// Normalises each of `groups` channel groups of each batch row over all positions, scales and shifts by
/// `weight`, `bias: [c]`, then applies `activation`. `x: [b, h, w, c]` or `[b, n, c]`; statistics in at least
/// `f32`.
///
/// # Errors
/// When the shapes do not fit, `groups` does not divide the channels, or a dimension is zero.
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    check(x, groups, weight, bias)?;
    #[cfg(feature = "cuda")]
    if cuda::group_norm::takes(x) {
        return cuda::group_norm::group_norm(x, None, groups, weight, bias, eps, activation);
    }
    if !tensors::takes_activation(x) {
        return reference::group_norm(x, groups, weight, bias, eps, activation);
    }
    on_cpu(Isa::detect(), x, groups, weight, bias, eps, activation)
}

/// [`group_norm`] of `x` with `shift: [b, c]` added to all positions of its row, as residual blocks have it of their
/// time embedding. On CUDA the sum is never written, nor rounded to the type of `x`.
///
/// # Errors
/// As [`group_norm`], and when `shift` does not fit.
pub fn group_norm_shifted(
    x: &Tensor,
    shift: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    check(x, groups, weight, bias)?;
    if shift.dims() != [x.dim(0)?, x.dim(D::Minus1)?] {
        bail!(
            "group_norm: shift {:?} is not one of each row and channel of x {:?}",
            shift.shape(),
            x.shape()
        );
    }
    #[cfg(feature = "cuda")]
    if cuda::group_norm::takes(x) {
        return cuda::group_norm::group_norm(x, Some(shift), groups, weight, bias, eps, activation);
    }
    let shifted = add_row_shift(x, &shift.to_dtype(x.dtype())?)?;
    group_norm(&shifted, groups, weight, bias, eps, activation)
}

fn check(x: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor) -> Result<()> {
    let c = x.dim(D::Minus1)?;
    if x.rank() < 2 || x.elem_count() == 0 {
        bail!("group_norm: x {:?} is not a batch of positions", x.shape());
    }
    if groups == 0 || !c.is_multiple_of(groups) || weight.dims() != [c] || bias.dims() != [c] {
        bail!(
            "group_norm: {groups} groups, weight {:?} and bias {:?} do not fit x {:?}",
            weight.shape(),
            bias.shape(),
            x.shape()
        );
    }
    Ok(())
}

fn on_cpu(
    isa: Isa,
    x: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (batch, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
    let positions = x.elem_count() / (batch * channels);
    let (weight, bias) = (tensors::widened(weight)?, tensors::widened(bias)?);
    let (storage, layout) = x.storage_and_layout();
    let elements = tensors::floats(&storage, layout)?;
    let sizes = Groups { batch, positions, channels, groups, eps };
    // SAFETY: the caller has checked the shapes; every element is written.
    unsafe {
        tensors::build(x.shape(), |out| {
            norm::group_norm(isa, sizes, elements, &weight, &bias, activation, out);
            Ok(())
        })
    }
}
