//! Two linear layers with an activation between them: time embeddings and the text encoder's feed-forward part.

use candle_core::{Result, Tensor};
use darkroom_kernels::{Activation, activate};

use super::Linear;
use crate::adapter::Adapters;

/// `second(activation(first(x)))`.
#[derive(Debug, Clone)]
pub(crate) struct TwoLayerMlp {
    pub(crate) first: Linear,
    pub(crate) activation: Activation,
    pub(crate) second: Linear,
}

impl TwoLayerMlp {
    /// `[.., inputs] -> [.., outputs]`.
    pub(crate) fn forward(&self, x: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        let h = self.first.forward(x, adapters)?;
        let h = activate(&h, self.activation)?;
        self.second.forward(&h, adapters)
    }
}
