//! What a pipeline holds and what its stages take, in bytes: what a scheduler needs to know before it admits work.

use darkroom_models::ComputeType;
use darkroom_models::arithmetic::Range;
use darkroom_models::weights::Weights;

use super::Pipeline;
use super::load::Parts;
use crate::network::Network;
use crate::speed::{Speed, StepCache};

/// Context tokens that a row is taken to have: prompts of four chunks. Each further chunk of SDXL's takes 0.6 MB.
const TOKENS: usize = 4 * 77;
/// Small latents of a row beside what the network itself takes: scaled for it, gathered for the batch, what came
/// out of it, its parts, and the denoised estimate with its intermediate values.
const LATENTS: usize = 8;

impl Pipeline {
    /// Bytes of the weights that this pipeline holds on its device, each in its stored type or the one that its network
    /// computes in.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Most bytes that one network call takes beside the weights, for `rows` latents of `height × width` cells. A
    /// sample is two rows where it has a negative prompt, else one. What samples keep between steps
    /// ([`Pipeline::cache_bytes`]) comes to it.
    pub fn step_bytes(&self, rows: usize, height: usize, width: usize) -> usize {
        let Some(network) = &self.network else { return 0 };
        let latent = network.latent_channels().saturating_mul(height).saturating_mul(width);
        let latents = rows.saturating_mul(LATENTS).saturating_mul(latent).saturating_mul(size_of::<f32>());
        network.forward_bytes(rows, height, width, TOKENS).saturating_add(latents)
    }

    /// Most bytes that a sample of two rows keeps between its steps with `speed`: features that evaluations share.
    pub fn cache_bytes(&self, speed: &Speed, height: usize, width: usize) -> usize {
        let (Some(unet), Some(StepCache { cache_interval: 2.., cache_branch_id })) =
            (self.network.as_ref().and_then(Network::unet), speed.step_cache)
        else {
            return 0;
        };
        let branch = cache_branch_id.unwrap_or_else(|| unet.config().outermost_skip());
        unet.kept_bytes(branch, height, width).saturating_mul(2)
    }

    /// The same for the settings that keep most.
    pub fn most_cache_bytes(&self, height: usize, width: usize) -> usize {
        let Some(unet) = self.network.as_ref().and_then(Network::unet) else { return 0 };
        let each = (0..unet.config().skip_count()).map(|branch| unet.kept_bytes(branch, height, width));
        each.max().unwrap_or(0).saturating_mul(2)
    }

    /// Kinds of the network's passes that a GPU replays from a recording.
    pub fn recordings(&self) -> usize {
        self.network.as_ref().map_or(0, Network::recordings)
    }

    /// Most bytes that decoding one latent of `height × width` cells in one piece takes. [`Pipeline::decode`] itself
    /// goes by tiles where that is beyond its budget.
    pub fn decode_bytes(&self, height: usize, width: usize) -> usize {
        self.vae.as_ref().map_or(0, |vae| vae.decode_bytes(height, width))
    }
}

/// The UNet's and the VAE's weights in a checkpoint from which nothing was taken yet.
pub(super) fn network_bytes(checkpoint: &Parts<'_>, compute_type: ComputeType) -> u64 {
    let unet = checkpoint.unet.map(|part| part.weights.computing(compute_type, Range::Half));
    let vae = checkpoint.vae.map(|part| part.weights.computing(compute_type, Range::Wide));
    unet.iter().chain(&vae).map(Weights::bytes).sum()
}

/// The same of its text encoders, which stay in their stored type.
pub(super) fn text_bytes(checkpoint: &Parts<'_>) -> u64 {
    [checkpoint.clip_l, checkpoint.clip_g].into_iter().flatten().map(|part| part.weights.bytes()).sum()
}
