//! A linear layer.

use std::sync::Arc;

use candle_core::Tensor;
use darkroom_kernels::{LowRank, Precision, add_low_rank_to_rows, linear_at};

use crate::adapter::Adapters;
use crate::weights::{Matrix, Weights, WeightsError};

/// `x · weightᵀ + bias`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    name: Arc<str>,
    weight: Matrix,
    bias: Option<Tensor>,
    precision: Precision,
}

impl Linear {
    /// Takes `weight: [outputs, inputs]` and `bias: [outputs]`.
    pub(crate) fn load(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self, WeightsError> {
        let mut layer = Self::load_without_bias(weights, inputs, outputs)?;
        layer.bias = Some(load_bias(weights, outputs)?);
        Ok(layer)
    }

    /// Takes `weight: [outputs, inputs]` alone.
    pub(crate) fn load_without_bias(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self, WeightsError> {
        let weight = weights.take_matrix("weight", &[outputs, inputs])?;
        Ok(Self { name: weights.layer(), weight, bias: None, precision: weights.precision() })
    }

    /// Takes a 1×1 convolution, `weight: [outputs, inputs, 1, 1]` and `bias: [outputs]`: on channels-last
    /// pictures it is a linear layer.
    pub(crate) fn load_pointwise(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self, WeightsError> {
        Self::load_kernel_of_one(weights, outputs, &[outputs, inputs, 1, 1])
    }

    /// The same of a 1×1×1 convolution over frames, `weight: [outputs, inputs, 1, 1, 1]`.
    pub(crate) fn load_pointwise_3d(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self, WeightsError> {
        Self::load_kernel_of_one(weights, outputs, &[outputs, inputs, 1, 1, 1])
    }

    fn load_kernel_of_one(weights: &Weights, outputs: usize, shape: &[usize]) -> Result<Self, WeightsError> {
        let weight = weights.take_matrix("weight", shape)?;
        let bias = Some(load_bias(weights, outputs)?);
        Ok(Self { name: weights.layer(), weight, bias, precision: weights.precision() })
    }

    /// `[.., inputs] -> [.., outputs]`.
    pub(crate) fn forward(&self, x: &Tensor, adapters: &Adapters) -> candle_core::Result<Tensor> {
        self.run(x, None, adapters)
    }

    /// The same plus `residual`, `[.., outputs]`.
    pub(crate) fn forward_add(
        &self,
        x: &Tensor,
        residual: &Tensor,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        self.run(x, Some(residual), adapters)
    }

    fn run(&self, x: &Tensor, residual: Option<&Tensor>, adapters: &Adapters) -> candle_core::Result<Tensor> {
        let y = self.weight.product(x, self.bias.as_ref(), residual, self.precision)?;
        adapters.apply(
            &self.name,
            x,
            y,
            residual,
            |x, weight, bias| {
                let bias = bias.or(self.bias.as_ref());
                match weight {
                    // A 1×1 convolution's weight may come in its own shape.
                    Some(weight) => {
                        let matrix = weight.flatten_from(1)?;
                        linear_at(x, &matrix, bias, self.precision)
                    }
                    None => self.weight.product(x, bias, None, self.precision),
                }
            },
            |y, factors| {
                let downs = factors.iter().map(|change| change.down.flatten_from(1));
                let downs = downs.collect::<candle_core::Result<Vec<_>>>()?;
                let groups: Vec<LowRank<'_>> = factors
                    .iter()
                    .zip(&downs)
                    .map(|(change, down)| LowRank {
                        rows: change.rows.clone(),
                        down,
                        up: change.up,
                        scale: 1.0,
                    })
                    .collect();
                add_low_rank_to_rows(y, x, &groups, self.precision)
            },
        )
    }
}

/// In the activations' type: `f32`, or what a GPU's matrix products add without a conversion.
fn load_bias(weights: &Weights, outputs: usize) -> Result<Tensor, WeightsError> {
    Ok(weights.take("bias", &[outputs])?.to_dtype(weights.activations())?)
}
