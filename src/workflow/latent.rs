//! Latents as they travel between nodes.

use candle_core::Tensor;

use super::image::Mask;

/// `LATENT`: what ComfyUI keeps as a dictionary of `samples`, `noise_mask` and `batch_index`.
#[derive(Debug, Clone)]
pub struct Latent {
    /// `[batch, channels, height/8, width/8]` with 4 channels, 16 of Qwen-Image, `f32` on the CPU, in the VAE's own units
    /// (not scaled for the network).
    pub samples: Tensor,
    /// Where to repaint, at any size.
    pub noise_mask: Option<Mask>,
    /// Each sample's place in the batch that its noise is drawn for; `None`: its place in this one.
    pub batch_index: Option<Vec<usize>>,
}

impl Latent {
    /// Of samples alone.
    pub fn new(samples: Tensor) -> Self {
        Self { samples, noise_mask: None, batch_index: None }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        4 * self.samples.elem_count() + self.noise_mask.as_ref().map_or(0, Mask::bytes)
    }
}
