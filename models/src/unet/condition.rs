//! Everything but the latent that steers a forward pass: noise level, prompt, pooled prompt and sizes.

use candle_core::{D, DType, Tensor, bail};
use darkroom_kernels::{Activation, AttentionMask, activate, sinusoid};

use super::{AdditionConfig, SIZE_IDS, UNetConfig};
use crate::adapter::Adapters;
use crate::layers::{Linear, TwoLayerMlp};
use crate::weights::{Weights, WeightsError};

/// One batch of samples to denoise; each row has its own noise level, prompt and sizes.
#[derive(Debug, Clone, Copy)]
pub struct UNetInput<'a> {
    /// `[b, in_channels, h, w]`, `f32`, already scaled to the network's input (`x / √(σ² + 1)` for ε-prediction).
    pub latent: &'a Tensor,
    /// `[b]`, `f32`: a timestep a row, 0 to 999.
    pub timesteps: &'a Tensor,
    /// `[b, t, cross_attention_dim]`.
    pub context: &'a Tensor,
    /// How many of a row's `t` context tokens are its own, where prompts of different lengths share a batch;
    /// the rest is padding that no query sees.
    pub context_lengths: Option<&'a [usize]>,
    /// `[b, p]`: the pooled prompt, for networks with [`AdditionConfig`].
    pub pooled: Option<&'a Tensor>,
    /// `[b, 6]`, `f32`: original height and width, crop top and left, target height and width, for networks
    /// with [`AdditionConfig`].
    pub size_ids: Option<&'a Tensor>,
    /// Which rows have which changes to the network's layers.
    pub adapters: &'a Adapters,
}

/// What the blocks see of an input's conditioning.
#[derive(Debug, Clone)]
pub(crate) struct Condition {
    /// `[b, time_embed_dim]`, SiLU applied: every consumer starts with it. `f32`, a row a picture.
    pub(crate) time: Tensor,
    /// `[b, t, cross_attention_dim]`.
    pub(crate) context: Tensor,
    /// Which context tokens a row sees.
    pub(crate) mask: AttentionMask,
    /// Which rows have which changes to layers.
    pub(crate) adapters: Adapters,
}

/// The embeddings of noise level, pooled prompt and sizes.
#[derive(Debug, Clone)]
pub(crate) struct ConditionEmbedding {
    timestep_width: usize,
    time: TwoLayerMlp,
    addition: Option<Addition>,
    context_width: usize,
    /// What the blocks compute in.
    activations: DType,
}

#[derive(Debug, Clone)]
struct Addition {
    /// Of each size id.
    width: usize,
    mlp: TwoLayerMlp,
    pooled_width: usize,
}

impl ConditionEmbedding {
    /// Takes `time_embedding` and, where the config has it, `add_embedding`.
    pub(crate) fn load(config: &UNetConfig, weights: &Weights) -> Result<Self, WeightsError> {
        let (inputs, width) = (config.time_embed_dim() / 4, config.time_embed_dim());
        let mlp = |name, inputs| -> Result<_, WeightsError> {
            // A row a picture: rounding it would cost precision everywhere and save no time.
            let scope = weights.scope(name).in_full();
            Ok(TwoLayerMlp {
                first: Linear::load(&scope.scope("linear_1"), inputs, width)?,
                activation: Activation::Silu,
                second: Linear::load(&scope.scope("linear_2"), width, width)?,
            })
        };
        let addition = |addition: &AdditionConfig| -> Result<_, WeightsError> {
            Ok(Addition {
                width: addition.time_embed_dim,
                mlp: mlp("add_embedding", addition.projection_input_dim)?,
                pooled_width: addition
                    .projection_input_dim
                    .saturating_sub(SIZE_IDS * addition.time_embed_dim),
            })
        };
        Ok(Self {
            timestep_width: inputs,
            time: mlp("time_embedding", inputs)?,
            addition: config.addition.as_ref().map(addition).transpose()?,
            context_width: config.cross_attention_dim,
            activations: weights.activations(),
        })
    }

    /// Checks the input's conditioning against the batch of `latent` and embeds it.
    pub(crate) fn forward(&self, input: &UNetInput<'_>) -> candle_core::Result<Condition> {
        let batch = input.latent.dim(0)?;
        expect_shape("timesteps", input.timesteps, &[batch])?;
        let (rows, tokens, width) = input.context.dims3()?;
        if rows != batch || width != self.context_width || tokens == 0 {
            bail!(
                "UNet: context has shape {:?}, but [{batch}, tokens, {}] is needed",
                input.context.dims(),
                self.context_width
            );
        }
        let mut time = self.time.forward(&sinusoid(input.timesteps, self.timestep_width)?, input.adapters)?;
        if let Some(addition) = &self.addition {
            time = (time + addition.forward(input, batch)?)?;
        }
        Ok(Condition {
            time: activate(&time, Activation::Silu)?,
            context: input.context.to_dtype(self.activations)?.contiguous()?,
            mask: context_mask(input.context_lengths, batch, tokens)?,
            adapters: input.adapters.clone(),
        })
    }
}

impl Addition {
    fn forward(&self, input: &UNetInput<'_>, batch: usize) -> candle_core::Result<Tensor> {
        let (Some(pooled), Some(sizes)) = (input.pooled, input.size_ids) else {
            bail!("UNet: this network needs the pooled prompt and the size ids");
        };
        expect_shape("pooled prompt", pooled, &[batch, self.pooled_width])?;
        expect_shape("size ids", sizes, &[batch, SIZE_IDS])?;
        let sizes = sinusoid(&sizes.flatten_all()?, self.width)?.reshape((batch, ()))?;
        let both = Tensor::cat(&[&pooled.to_dtype(DType::F32)?, &sizes], D::Minus1)?;
        self.mlp.forward(&both, input.adapters)
    }
}

fn context_mask(
    lengths: Option<&[usize]>,
    batch: usize,
    tokens: usize,
) -> candle_core::Result<AttentionMask> {
    let Some(lengths) = lengths else { return Ok(AttentionMask::None) };
    if lengths.len() != batch {
        bail!("UNet: {} context lengths for a batch of {batch}", lengths.len());
    }
    if let Some(length) = lengths.iter().find(|&&length| length == 0 || length > tokens) {
        bail!("UNet: a context length of {length} is not within 1 to {tokens}");
    }
    if lengths.iter().all(|&length| length == tokens) {
        return Ok(AttentionMask::None);
    }
    Ok(AttentionMask::KeyLengths(lengths.to_vec()))
}

fn expect_shape(what: &str, tensor: &Tensor, shape: &[usize]) -> candle_core::Result<()> {
    if tensor.dims() != shape {
        bail!("UNet: {what} has shape {:?}, but {shape:?} is needed", tensor.dims());
    }
    Ok(())
}
