//! Root-mean-square normalisation as a layer.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use darkroom_kernels::{Activation, rms_norm};

use super::norm::no_low_rank;
use crate::adapter::Adapters;
use crate::weights::{Weights, WeightsError};

/// Root-mean-square normalisation, and an activation after it.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    name: Arc<str>,
    weight: Tensor,
    eps: f64,
    activation: Activation,
}

impl RmsNorm {
    /// Takes the `channels` scales that are called `tensor` (`weight`, of VAEs `gamma`), in any shape of as many elements.
    pub(crate) fn load(
        weights: &Weights,
        tensor: &str,
        channels: usize,
        eps: f64,
        activation: Activation,
    ) -> Result<Self, WeightsError> {
        let stored = weights.shape(tensor).filter(|shape| shape.iter().product::<usize>() == channels);
        let weight = weights.take(tensor, &stored.unwrap_or_else(|| vec![channels]))?;
        let weight = weight.flatten_all()?.to_dtype(DType::F32)?;
        Ok(Self { name: weights.layer(), weight, eps, activation })
    }

    /// `[.., channels]`, the same shape out.
    pub(crate) fn forward(&self, x: &Tensor, adapters: &Adapters) -> candle_core::Result<Tensor> {
        let norm = |x: &Tensor, weight: Option<&Tensor>, _: Option<&Tensor>| {
            rms_norm(x, weight.unwrap_or(&self.weight), self.eps, self.activation)
        };
        adapters.apply(&self.name, x, norm(x, None, None)?, None, norm, no_low_rank)
    }
}
