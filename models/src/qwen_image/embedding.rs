//! The noise level as a vector that steers every block, and the projections of it.

use candle_core::{D, DType, Tensor};
use darkroom_kernels::{Activation, activate, sinusoid};

use crate::adapter::Adapters;
use crate::layers::{Linear, TwoLayerMlp};
use crate::weights::{Weights, WeightsError};

/// Cosines and sines of a timestep.
const SINUSOID_WIDTH: usize = 256;
/// Sigmas of 0 to 1 are embedded as the timesteps that networks were first trained on.
const TIMESTEPS: f64 = 1000.0;

/// diffusers' `QwenTimestepProjEmbeddings`, and the SiLU that every consumer of it begins with.
#[derive(Debug, Clone)]
pub(super) struct TimestepEmbedding {
    mlp: TwoLayerMlp,
    /// What the blocks compute in.
    activations: DType,
}

impl TimestepEmbedding {
    /// Takes `timestep_embedder.linear_1` and `linear_2`.
    pub(super) fn load(weights: &Weights, inner: usize) -> Result<Self, WeightsError> {
        // A row a picture: rounding it would cost precision everywhere and save no time.
        let scope = weights.scope("timestep_embedder").in_full();
        let mlp = TwoLayerMlp {
            first: Linear::load(&scope.scope("linear_1"), SINUSOID_WIDTH, inner)?,
            activation: Activation::Silu,
            second: Linear::load(&scope.scope("linear_2"), inner, inner)?,
        };
        Ok(Self { mlp, activations: weights.activations() })
    }

    /// `[b]`, sigmas of 0 to 1, to `[b, inner]`, SiLU applied. In the blocks' type: their projections of it are a third of
    /// all weights, too many to be held in full.
    pub(super) fn forward(&self, sigmas: &Tensor, adapters: &Adapters) -> candle_core::Result<Tensor> {
        let timesteps = (sigmas.to_dtype(DType::F32)? * TIMESTEPS)?;
        let embedded = self.mlp.forward(&sinusoid(&timesteps, SINUSOID_WIDTH)?, adapters)?;
        activate(&embedded, Activation::Silu)?.to_dtype(self.activations)
    }
}

/// How one half of a block, attention or feed-forward, is steered: `[b, inner]` each, rows apart in memory.
#[derive(Debug, Clone)]
pub(super) struct Modulation {
    pub(super) shift: Tensor,
    pub(super) scale: Tensor,
    pub(super) gate: Tensor,
}

impl Modulation {
    /// Both halves' of one product of the embedded timestep, `[b, 6 · inner]`.
    pub(super) fn halves(product: &Tensor) -> candle_core::Result<[Self; 2]> {
        let parts = product.chunk(6, D::Minus1)?;
        let half = |first: usize| Self {
            shift: parts[first].clone(),
            scale: parts[first + 1].clone(),
            gate: parts[first + 2].clone(),
        };
        Ok([half(0), half(3)])
    }
}
