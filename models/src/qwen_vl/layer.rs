//! One pre-norm transformer layer of the language model.

use candle_core::Tensor;
use darkroom_kernels::{Activation, swiglu};

use super::QwenVlTextConfig;
use super::attention::{Angles, SelfAttention};
use crate::adapter::Adapters;
use crate::layers::{Linear, RmsNorm};
use crate::weights::{Weights, WeightsError};

/// Causal self-attention, then the gated feed-forward part, each on normalised input with a residual around it.
#[derive(Debug, Clone)]
pub(super) struct DecoderLayer {
    norm1: RmsNorm,
    attention: SelfAttention,
    norm2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl DecoderLayer {
    pub(super) fn load(config: &QwenVlTextConfig, weights: &Weights) -> Result<Self, WeightsError> {
        let (width, wide) = (config.hidden_size, config.intermediate_size);
        let mlp = weights.scope("mlp");
        Ok(Self {
            norm1: norm(config, &weights.scope("input_layernorm"))?,
            attention: SelfAttention::load(config, &weights.scope("self_attn"))?,
            norm2: norm(config, &weights.scope("post_attention_layernorm"))?,
            gate: Linear::load_without_bias(&mlp.scope("gate_proj"), width, wide)?,
            up: Linear::load_without_bias(&mlp.scope("up_proj"), width, wide)?,
            down: Linear::load_without_bias(&mlp.scope("down_proj"), wide, width)?,
        })
    }

    /// `[b, n, width]`, the same shape out.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        angles: &Angles,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        let h = self.norm1.forward(x, adapters)?;
        let x = self.attention.forward_add(&h, x, angles, adapters)?;
        let h = self.norm2.forward(&x, adapters)?;
        let h = swiglu(&self.gate.forward(&h, adapters)?, &self.up.forward(&h, adapters)?)?;
        self.down.forward_add(&h, &x, adapters)
    }
}

/// The norm that is called `weight` in its scope.
pub(super) fn norm(config: &QwenVlTextConfig, weights: &Weights) -> Result<RmsNorm, WeightsError> {
    RmsNorm::load(weights, "weight", config.hidden_size, config.rms_norm_eps, Activation::Identity)
}
