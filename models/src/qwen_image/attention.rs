//! Attention over both streams at once: each projects its tokens with its own weights, and all tokens see each other.

use candle_core::{Result, Tensor};
use darkroom_kernels::{Activation, AttentionMask, RotaryPairs, attention, rotary};

use super::block::Streams;
use super::rope::RotaryTable;
use crate::adapter::Adapters;
use crate::layers::{Linear, RmsNorm};
use crate::weights::{Weights, WeightsError};

/// Of the norms of queries and keys.
const RMS_NORM_EPS: f64 = 1e-6;

/// What the blocks of one pass share.
#[derive(Debug)]
pub(super) struct Joint<'a> {
    /// `[b, inner]`: the embedded timestep, SiLU applied.
    pub(super) time: Tensor,
    /// The angles of all tokens.
    pub(super) table: RotaryTable,
    /// Which tokens a row sees.
    pub(super) mask: AttentionMask,
    /// Which rows have which changes to layers.
    pub(super) adapters: &'a Adapters,
}

/// diffusers' `Attention` with added projections.
#[derive(Debug, Clone)]
pub(super) struct JointAttention {
    image: Projections,
    text: Projections,
    heads: usize,
}

/// One stream's layers.
#[derive(Debug, Clone)]
struct Projections {
    query: Normed,
    key: Normed,
    value: Linear,
    out: Linear,
}

impl JointAttention {
    /// Takes what is in the scope `attn`.
    pub(super) fn load(
        weights: &Weights,
        inner: usize,
        heads: usize,
    ) -> std::result::Result<Self, WeightsError> {
        let linear = |name| Linear::load(&weights.scope(name), inner, inner);
        let normed = |name, norm| Normed::load(weights, (name, norm), inner, heads);
        Ok(Self {
            image: Projections {
                query: normed("to_q", "norm_q")?,
                key: normed("to_k", "norm_k")?,
                value: linear("to_v")?,
                out: linear("to_out.0")?,
            },
            text: Projections {
                query: normed("add_q_proj", "norm_added_q")?,
                key: normed("add_k_proj", "norm_added_k")?,
                value: linear("add_v_proj")?,
                out: linear("to_add_out")?,
            },
            heads,
        })
    }

    /// What the tokens of `x` see of each other. Takes `x` so that its memory is free before they look.
    pub(super) fn forward(&self, x: Streams, joint: &Joint<'_>) -> Result<Streams> {
        let (Projections { query, key, value, .. }, text) = (&self.image, &self.text);
        let adapters = joint.adapters;
        let turned = |tokens: &Tensor| {
            let RotaryTable { cos, sin } = &joint.table;
            rotary(tokens, self.heads, cos, sin, RotaryPairs::Adjacent)
        };
        let queries =
            turned(&x.joined(|x| query.forward(x, adapters), |x| text.query.forward(x, adapters))?)?;
        let keys = turned(&x.joined(|x| key.forward(x, adapters), |x| text.key.forward(x, adapters))?)?;
        let values = x.joined(|x| value.forward(x, adapters), |x| text.value.forward(x, adapters))?;
        let pictures = x.image.dim(1)?;
        drop(x);
        let seen = attention(&queries, &keys, &values, self.heads, &joint.mask)?;
        drop((queries, keys, values));
        let image = self.image.out.forward(&seen.narrow(1, 0, pictures)?, adapters)?;
        let tokens = seen.dim(1)? - pictures;
        let text = self.text.out.forward(&seen.narrow(1, pictures, tokens)?, adapters)?;
        Ok(Streams { image, text })
    }
}

/// A projection whose heads are normalised.
#[derive(Debug, Clone)]
struct Normed {
    projection: Linear,
    norm: RmsNorm,
    heads: usize,
}

impl Normed {
    fn load(
        weights: &Weights,
        (projection, norm): (&str, &str),
        inner: usize,
        heads: usize,
    ) -> std::result::Result<Self, WeightsError> {
        let width = inner / heads.max(1);
        let norm = weights.scope(norm);
        Ok(Self {
            projection: Linear::load(&weights.scope(projection), inner, inner)?,
            norm: RmsNorm::load(&norm, "weight", width, RMS_NORM_EPS, Activation::Identity)?,
            heads,
        })
    }

    /// `[b, n, inner]`, the same shape out.
    fn forward(&self, x: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        let (batch, tokens, inner) = x.dims3()?;
        let y = self.projection.forward(x, adapters)?;
        let y = y.reshape((batch, tokens, self.heads, inner / self.heads.max(1)))?;
        self.norm.forward(&y, adapters)?.reshape((batch, tokens, inner))
    }
}
