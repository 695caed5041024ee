//! Group and layer normalisation with their scales and shifts.

use std::sync::Arc;

use candle_core::{DType, Tensor, bail};
use darkroom_kernels::{Activation, add_row_shift, group_norm, group_norm_shifted, layer_norm};

use crate::adapter::{Adapters, Factors};
use crate::weights::{Weights, WeightsError};

/// Group normalisation with an activation fused behind it.
#[derive(Debug, Clone)]
pub(crate) struct GroupNorm {
    name: Arc<str>,
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
    activation: Activation,
}

impl GroupNorm {
    /// Takes `weight: [channels]` and `bias: [channels]`.
    pub(crate) fn load(
        weights: &Weights,
        channels: usize,
        groups: usize,
        eps: f64,
        activation: Activation,
    ) -> Result<Self, WeightsError> {
        let (weight, bias) = scale_and_shift(weights, channels)?;
        Ok(Self { name: weights.layer(), weight, bias, groups, eps, activation })
    }

    /// `[b, .., channels]`, the same shape out.
    pub(crate) fn forward(&self, x: &Tensor, adapters: &Adapters) -> candle_core::Result<Tensor> {
        let norm = |x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>| {
            let (weight, bias) = (weight.unwrap_or(&self.weight), bias.unwrap_or(&self.bias));
            group_norm(x, self.groups, weight, bias, self.eps, self.activation)
        };
        adapters.apply(&self.name, x, norm(x, None, None)?, None, norm, no_low_rank)
    }
}

impl GroupNorm {
    /// The same of `x` with `shift`, `[b, channels]`, added to all positions.
    pub(crate) fn forward_shifted(
        &self,
        x: &Tensor,
        shift: &Tensor,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        if adapters.change(&self.name) {
            return self.forward(&add_row_shift(x, &shift.to_dtype(x.dtype())?)?, adapters);
        }
        group_norm_shifted(x, shift, self.groups, &self.weight, &self.bias, self.eps, self.activation)
    }
}

/// Layer normalisation.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    name: Arc<str>,
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Takes `weight: [channels]` and `bias: [channels]`.
    pub(crate) fn load(weights: &Weights, channels: usize, eps: f64) -> Result<Self, WeightsError> {
        let (weight, bias) = scale_and_shift(weights, channels)?;
        Ok(Self { name: weights.layer(), weight, bias, eps })
    }

    /// `[.., channels]`, the same shape out.
    pub(crate) fn forward(&self, x: &Tensor, adapters: &Adapters) -> candle_core::Result<Tensor> {
        let norm = |x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>| {
            layer_norm(x, weight.unwrap_or(&self.weight), bias.unwrap_or(&self.bias), self.eps)
        };
        adapters.apply(&self.name, x, norm(x, None, None)?, None, norm, no_low_rank)
    }
}

pub(super) fn no_low_rank(_: &Tensor, _: &[Factors<'_>]) -> candle_core::Result<()> {
    bail!("a norm's scale has no low-rank change")
}

fn scale_and_shift(weights: &Weights, channels: usize) -> Result<(Tensor, Tensor), WeightsError> {
    let widened =
        |name| -> Result<Tensor, WeightsError> { Ok(weights.take(name, &[channels])?.to_dtype(DType::F32)?) };
    Ok((widened("weight")?, widened("bias")?))
}
