//! Group normalisation with a fused activation (Wu & He 2018).

use candle_core::{D, Result, Tensor, bail};

use crate::cpu::isa::Isa;
use crate::cpu::norm::{self, Groups};
use crate::cpu::tensors;
use crate::{Activation, reference};

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
    if !tensors::takes_activation(x) {
        return reference::group_norm(x, groups, weight, bias, eps, activation);
    }
    on_cpu(Isa::detect(), x, groups, weight, bias, eps, activation)
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
