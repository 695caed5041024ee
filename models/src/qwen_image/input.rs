//! What a forward pass is given, and what it refuses.

use candle_core::{Result, Tensor, bail};
use darkroom_kernels::AttentionMask;

use super::QwenImageConfig;
use super::pack::grid;
use super::rope::Places;
use crate::adapter::Adapters;

/// One batch of samples to denoise; each row has its own noise level, prompt and references.
#[derive(Debug, Clone, Copy)]
pub struct QwenImageInput<'a> {
    /// `[b, 16, h, w]`, `f32`, as samplers hold it. Sides may be odd.
    pub latent: &'a Tensor,
    /// `[b]`: a sigma a row, 0 to 1.
    pub timesteps: &'a Tensor,
    /// `[b, t, joint_attention_dim]`.
    pub context: &'a Tensor,
    /// How many of a row's `t` context tokens are its own, where prompts of different lengths share a batch; the rest is
    /// padding, of any finite numbers, that no query sees.
    pub context_lengths: Option<&'a [usize]>,
    /// Latents of further pictures that the model looks at, `[b, 16, h', w']` each (Qwen-Image-Edit).
    pub references: &'a [&'a Tensor],
    /// Which rows have which changes to the network's layers.
    pub adapters: &'a Adapters,
}

impl QwenImageInput<'_> {
    /// Fails unless everything fits together; gives where each token stands.
    pub(super) fn check(&self, config: &QwenImageConfig) -> Result<Places> {
        let channels = config.latent_channels();
        let size = |what: &str, latent: &Tensor| match *latent.dims() {
            [rows, own, height, width] if rows > 0 && own == channels && height > 0 && width > 0 => {
                Ok((rows, grid(height, width, config.patch_size)))
            }
            _ => bail!(
                "Qwen-Image: {what} has shape {:?}, but [batch, {channels}, height, width] is needed",
                latent.dims()
            ),
        };
        let (batch, own) = size("latent", self.latent)?;
        let mut grids = vec![own];
        for reference in self.references {
            let (rows, grid) = size("reference", reference)?;
            if rows != batch {
                bail!("Qwen-Image: a reference has {rows} rows beside a latent of {batch}");
            }
            grids.push(grid);
        }
        if self.timesteps.dims() != [batch] {
            bail!("Qwen-Image: timesteps have shape {:?}, but [{batch}] is needed", self.timesteps.dims());
        }
        match *self.context.dims() {
            [rows, tokens, width] if rows == batch && tokens > 0 && width == config.joint_attention_dim => {
                Ok(Places { grids, tokens })
            }
            _ => bail!(
                "Qwen-Image: context has shape {:?}, but [{batch}, tokens, {}] is needed",
                self.context.dims(),
                config.joint_attention_dim
            ),
        }
    }

    /// Which tokens a row sees: all of its pictures', which come first, and its own of the text.
    pub(super) fn mask(&self, places: &Places) -> Result<AttentionMask> {
        let (batch, tokens) = (self.latent.dim(0)?, places.tokens);
        let Some(lengths) = self.context_lengths else { return Ok(AttentionMask::None) };
        if lengths.len() != batch {
            bail!("Qwen-Image: {} context lengths for a batch of {batch}", lengths.len());
        }
        if let Some(length) = lengths.iter().find(|&&length| length == 0 || length > tokens) {
            bail!("Qwen-Image: a context length of {length} is not within 1 to {tokens}");
        }
        if lengths.iter().all(|&length| length == tokens) {
            return Ok(AttentionMask::None);
        }
        let pictures = places.pictures();
        Ok(AttentionMask::KeyLengths(lengths.iter().map(|length| pictures + length).collect()))
    }
}
