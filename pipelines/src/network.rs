//! The network that denoises, of whatever family. What steps and requests need to know of it is asked here; how a call
//! of each is made is [`crate::denoise`]'s matter.

use darkroom_models::qwen_image::QwenImageTransformer2DModel;
use darkroom_models::unet::UNet2DConditionModel;

/// A denoising network.
#[derive(Debug, Clone)]
pub(crate) enum Network {
    /// Stable Diffusion's.
    UNet(Box<UNet2DConditionModel>),
    /// Qwen-Image's.
    QwenImage(Box<QwenImageTransformer2DModel>),
}

impl Network {
    /// Channels of its latents.
    pub(crate) fn latent_channels(&self) -> usize {
        match self {
            Self::UNet(unet) => unet.config().in_channels,
            Self::QwenImage(transformer) => transformer.config().latent_channels(),
        }
    }

    /// Width of the encoded prompts that it looks at.
    pub(crate) fn context_width(&self) -> usize {
        match self {
            Self::UNet(unet) => unet.config().cross_attention_dim,
            Self::QwenImage(transformer) => transformer.config().joint_attention_dim,
        }
    }

    /// The UNet, where it is one: what ControlNets, FreeU and step caching work on.
    pub(crate) fn unet(&self) -> Option<&UNet2DConditionModel> {
        match self {
            Self::UNet(unet) => Some(unet),
            Self::QwenImage(_) => None,
        }
    }

    /// Most bytes that a call takes beside the weights, for `rows` latents of `height × width` cells and prompts of
    /// `tokens`.
    pub(crate) fn forward_bytes(&self, rows: usize, height: usize, width: usize, tokens: usize) -> usize {
        match self {
            Self::UNet(unet) => unet.forward_bytes(rows, height, width, tokens),
            Self::QwenImage(transformer) => transformer.forward_bytes(rows, height, width, tokens),
        }
    }

    /// Kinds of its passes that a GPU replays from a recording.
    pub(crate) fn recordings(&self) -> usize {
        self.unet().map_or(0, UNet2DConditionModel::recordings)
    }
}
