//! Causal self-attention with rotary positions, in which several heads of the queries share one of keys and values
//! (Ainslie et al. 2023).

use candle_core::{Device, Tensor};
use darkroom_kernels::{AttentionMask, RotaryPairs, attention, rotary};

use super::QwenVlTextConfig;
use crate::adapter::Adapters;
use crate::layers::Linear;
use crate::weights::{Weights, WeightsError};

/// The angles by which the places `0..n` turn a head's pairs of channels, `[n, head_dim / 2]` each, `f32`.
#[derive(Debug, Clone)]
pub(super) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    pub(super) fn new(
        config: &QwenVlTextConfig,
        tokens: usize,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let (dim, theta) = (config.head_dim(), config.rope_theta as f32);
        // In single precision, as the network was trained.
        let frequencies: Vec<f32> =
            (0..dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / dim as f32)).collect();
        let angle = |turn: fn(f32) -> f32| {
            let turned = |place: usize| frequencies.iter().map(move |f| turn(place as f32 * f));
            Tensor::from_vec((0..tokens).flat_map(turned).collect::<Vec<_>>(), (tokens, dim / 2), device)
        };
        Ok(Self { cos: angle(f32::cos)?, sin: angle(f32::sin)? })
    }

    fn turn(&self, x: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
        rotary(x, heads, &self.cos, &self.sin, RotaryPairs::Halves)
    }
}

/// Queries, keys, values and the projection of what was seen.
#[derive(Debug, Clone)]
pub(super) struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
    key_value_heads: usize,
}

impl SelfAttention {
    pub(super) fn load(config: &QwenVlTextConfig, weights: &Weights) -> Result<Self, WeightsError> {
        let (width, shared) = (config.hidden_size, config.key_value_width());
        Ok(Self {
            query: Linear::load(&weights.scope("q_proj"), width, width)?,
            key: Linear::load(&weights.scope("k_proj"), width, shared)?,
            value: Linear::load(&weights.scope("v_proj"), width, shared)?,
            out: Linear::load_without_bias(&weights.scope("o_proj"), width, width)?,
            heads: config.num_attention_heads,
            key_value_heads: config.num_key_value_heads,
        })
    }

    /// `[b, n, width]` plus `residual`, the same shape out.
    pub(super) fn forward_add(
        &self,
        x: &Tensor,
        residual: &Tensor,
        angles: &Angles,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        let q = angles.turn(&self.query.forward(x, adapters)?, self.heads)?;
        let k = angles.turn(&self.key.forward(x, adapters)?, self.key_value_heads)?;
        let v = self.value.forward(x, adapters)?;
        let seen =
            attention(&q, &self.repeated(&k)?, &self.repeated(&v)?, self.heads, &AttentionMask::Causal)?;
        self.out.forward_add(&seen, residual, adapters)
    }

    /// Each head of keys or values as often as heads of the queries share it, side by side.
    fn repeated(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (rows, tokens, width) = x.dims3()?;
        let (shared, times) = (self.key_value_heads, self.heads / self.key_value_heads);
        if times == 1 {
            return Ok(x.clone());
        }
        let dim = width / shared;
        x.reshape((rows, tokens, shared, 1, dim))?
            .broadcast_as((rows, tokens, shared, times, dim))?
            .reshape((rows, tokens, self.heads * dim))
    }
}
