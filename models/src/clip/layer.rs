//! One pre-norm transformer layer of the text encoder.

use candle_core::Tensor;
use darkroom_kernels::{Activation, AttentionMask, attention};

use super::{ClipTextConfig, HiddenAct};
use crate::adapter::Adapters;
use crate::layers::{LayerNorm, Linear, TwoLayerMlp};
use crate::weights::{Weights, WeightsError};

/// Causal self-attention, then the feed-forward part, each on normalised input with a residual around it.
#[derive(Debug, Clone)]
pub(super) struct EncoderLayer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm2: LayerNorm,
    feed_forward: TwoLayerMlp,
    heads: usize,
}

impl EncoderLayer {
    pub(super) fn load(config: &ClipTextConfig, weights: &Weights) -> Result<Self, WeightsError> {
        let width = config.hidden_size;
        let norm = |name| LayerNorm::load(&weights.scope(name), width, config.layer_norm_eps);
        let attn = weights.scope("self_attn");
        let projection = |name| Linear::load(&attn.scope(name), width, width);
        Ok(Self {
            norm1: norm("layer_norm1")?,
            query: projection("q_proj")?,
            key: projection("k_proj")?,
            value: projection("v_proj")?,
            out: projection("out_proj")?,
            norm2: norm("layer_norm2")?,
            feed_forward: TwoLayerMlp {
                first: Linear::load(&weights.scope("mlp.fc1"), width, config.intermediate_size)?,
                activation: match config.hidden_act {
                    HiddenAct::QuickGelu => Activation::QuickGelu,
                    HiddenAct::Gelu => Activation::Gelu,
                },
                second: Linear::load(&weights.scope("mlp.fc2"), config.intermediate_size, width)?,
            },
            heads: config.num_attention_heads,
        })
    }

    /// `[b, n, width]`, the same shape out.
    pub(super) fn forward(&self, x: &Tensor, adapters: &Adapters) -> candle_core::Result<Tensor> {
        let h = self.norm1.forward(x, adapters)?;
        let (q, k, v) = (
            self.query.forward(&h, adapters)?,
            self.key.forward(&h, adapters)?,
            self.value.forward(&h, adapters)?,
        );
        let h = attention(&q, &k, &v, self.heads, &AttentionMask::Causal)?;
        let x = (x + self.out.forward(&h, adapters)?)?;
        let h = self.feed_forward.forward(&self.norm2.forward(&x, adapters)?, adapters)?;
        x + h
    }
}
