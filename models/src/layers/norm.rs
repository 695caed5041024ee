//! Group and layer normalisation with their scales and shifts.

use candle_core::{DType, Tensor};
use darkroom_kernels::{Activation, group_norm, layer_norm};

use crate::weights::{Weights, WeightsError};

/// Group normalisation with an activation fused behind it.
#[derive(Debug, Clone)]
pub(crate) struct GroupNorm {
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
        Ok(Self { weight, bias, groups, eps, activation })
    }

    /// `[b, .., channels]`, the same shape out.
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        group_norm(x, self.groups, &self.weight, &self.bias, self.eps, self.activation)
    }
}

/// Layer normalisation.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Takes `weight: [channels]` and `bias: [channels]`.
    pub(crate) fn load(weights: &Weights, channels: usize, eps: f64) -> Result<Self, WeightsError> {
        let (weight, bias) = scale_and_shift(weights, channels)?;
        Ok(Self { weight, bias, eps })
    }

    /// `[.., channels]`, the same shape out.
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

fn scale_and_shift(weights: &Weights, channels: usize) -> Result<(Tensor, Tensor), WeightsError> {
    let widened =
        |name| -> Result<Tensor, WeightsError> { Ok(weights.take(name, &[channels])?.to_dtype(DType::F32)?) };
    Ok((widened("weight")?, widened("bias")?))
}
