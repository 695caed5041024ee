//! The spatial transformer: pixels as tokens that see each other and the prompt.

use candle_core::Tensor;
use darkroom_kernels::{Activation, AttentionMask, attention, geglu};

use super::UNetConfig;
use super::condition::Condition;
use crate::adapter::Adapters;
use crate::layers::{GroupNorm, LayerNorm, Linear};
use crate::weights::{Weights, WeightsError};

/// The spatial transformer's own norm does not follow the config's epsilon, nor do its layer norms.
const GROUP_NORM_EPS: f64 = 1e-6;
const LAYER_NORM_EPS: f64 = 1e-5;
/// The feed-forward part is this many times wider than its input.
const FEED_FORWARD_FACTOR: usize = 4;

/// Transformer layers over a picture's positions, with a residual around all of them.
#[derive(Debug, Clone)]
pub(crate) struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: Linear,
    blocks: Vec<TransformerBlock>,
    proj_out: Linear,
}

impl SpatialTransformer {
    /// Takes diffusers' `Transformer2DModel` with `depth` blocks.
    pub(crate) fn load(
        config: &UNetConfig,
        weights: &Weights,
        channels: usize,
        heads: usize,
        depth: usize,
    ) -> Result<Self, WeightsError> {
        let projection = |name| {
            let scope = weights.scope(name);
            match config.use_linear_projection {
                true => Linear::load(&scope, channels, channels),
                false => Linear::load_pointwise(&scope, channels, channels),
            }
        };
        let groups = config.norm_num_groups;
        Ok(Self {
            norm: GroupNorm::load(
                &weights.scope("norm"),
                channels,
                groups,
                GROUP_NORM_EPS,
                Activation::Identity,
            )?,
            proj_in: projection("proj_in")?,
            blocks: (0..depth)
                .map(|i| {
                    let scope = weights.scope("transformer_blocks").scope(i);
                    TransformerBlock::load(&scope, channels, heads, config.cross_attention_dim)
                })
                .collect::<Result<_, _>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    /// `[b, h, w, c]`, the same shape out.
    pub(crate) fn forward(&self, x: &Tensor, condition: &Condition) -> candle_core::Result<Tensor> {
        let (b, h, w, c) = x.dims4()?;
        let adapters = &condition.adapters;
        let normed = self.norm.forward(x, adapters)?;
        let mut tokens = self.proj_in.forward(&normed.reshape((b, h * w, c))?, adapters)?;
        for block in &self.blocks {
            tokens = block.forward(tokens, condition)?;
        }
        self.proj_out.forward_add(&tokens, &x.reshape((b, h * w, c))?, adapters)?.reshape((b, h, w, c))
    }
}

/// Self-attention, cross-attention and a gated feed-forward part, each on normalised input with a residual.
#[derive(Debug, Clone)]
struct TransformerBlock {
    norm1: LayerNorm,
    self_attention: Attention,
    norm2: LayerNorm,
    cross_attention: Attention,
    norm3: LayerNorm,
    widen: Linear,
    narrow: Linear,
}

impl TransformerBlock {
    fn load(weights: &Weights, channels: usize, heads: usize, context: usize) -> Result<Self, WeightsError> {
        let norm = |name| LayerNorm::load(&weights.scope(name), channels, LAYER_NORM_EPS);
        let inner = FEED_FORWARD_FACTOR * channels;
        Ok(Self {
            norm1: norm("norm1")?,
            self_attention: Attention::load(&weights.scope("attn1"), channels, channels, heads)?,
            norm2: norm("norm2")?,
            cross_attention: Attention::load(&weights.scope("attn2"), channels, context, heads)?,
            norm3: norm("norm3")?,
            widen: Linear::load(&weights.scope("ff.net.0.proj"), channels, 2 * inner)?,
            narrow: Linear::load(&weights.scope("ff.net.2"), inner, channels)?,
        })
    }

    /// `[b, n, c]`, the same shape out.
    fn forward(&self, mut x: Tensor, condition: &Condition) -> candle_core::Result<Tensor> {
        let adapters = &condition.adapters;
        // Assigned, not shadowed: what `x` and `h` held is free before the next tensors are made.
        let mut h = self.norm1.forward(&x, adapters)?;
        x = self.self_attention.forward(&h, &h, &AttentionMask::None, &x, adapters)?;
        h = self.norm2.forward(&x, adapters)?;
        x = self.cross_attention.forward(&h, &condition.context, &condition.mask, &x, adapters)?;
        let gated = geglu(&self.widen.forward(&self.norm3.forward(&x, adapters)?, adapters)?)?;
        self.narrow.forward_add(&gated, &x, adapters)
    }
}

/// Multi-head attention; queries, keys and values without bias, as in the reference.
#[derive(Debug, Clone)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
}

impl Attention {
    fn load(weights: &Weights, channels: usize, context: usize, heads: usize) -> Result<Self, WeightsError> {
        let projection = |name, inputs| Linear::load_without_bias(&weights.scope(name), inputs, channels);
        Ok(Self {
            query: projection("to_q", channels)?,
            key: projection("to_k", context)?,
            value: projection("to_v", context)?,
            out: Linear::load(&weights.scope("to_out.0"), channels, channels)?,
            heads,
        })
    }

    /// What `x` sees of `context`, plus `residual`.
    fn forward(
        &self,
        x: &Tensor,
        context: &Tensor,
        mask: &AttentionMask,
        residual: &Tensor,
        adapters: &Adapters,
    ) -> candle_core::Result<Tensor> {
        let query = self.query.forward(x, adapters)?;
        let (key, value) = (self.key.forward(context, adapters)?, self.value.forward(context, adapters)?);
        let seen = attention(&query, &key, &value, self.heads, mask)?;
        self.out.forward_add(&seen, residual, adapters)
    }
}
