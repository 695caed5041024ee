//! LoRA files and their relatives (LoCon, DoRA, LoHa, LoKr, plain differences): read ([`LoraFile`]), bound to the
//! layers of a model ([`Lora`]), and applied in one of two ways. [`merge()`] makes changed weights, exactly as
//! ComfyUI does; [`adapter()`] makes the [`crate::adapter::NetworkAdapter`] that single rows of a batch carry.
//!
//! Above [`crate::weights`], which reads files and keeps what networks took, and below whoever draws pictures.
//! Names are told by [`crate::checkpoint`]'s key maps, so that every spelling of a layer that a checkpoint may
//! have is also one that a LoRA may have.

mod aliases;
mod apply;
mod bind;
mod blocks;
mod change;
mod error;
mod family;
mod file;
mod parts;

use std::collections::BTreeMap;

use crate::unet::UNetConfig;
use crate::weights::Kept;

pub use apply::{adapter, merge, merge_unrounded};
pub use change::Patch;
pub use error::LoraError;
pub use family::Family;
pub use file::{LoraFile, LoraSummary};

/// Whether a stored name is a part of a LoRA or of a relative, supported or not.
pub(crate) fn is_lora_tensor(stored: &str) -> bool {
    match parts::name(stored) {
        parts::Name::Part(_, role) => role.changes(),
        parts::Name::Unsupported(_) => aliases::scope(stored).0.is_some(),
        parts::Name::Unknown => false,
    }
}

/// The networks that a LoRA is for.
#[derive(Debug, Clone, Copy)]
pub struct LoraTarget<'a> {
    /// The denoiser's tensors.
    pub denoiser: &'a Kept,
    /// What the denoiser is; `None` where there is none, only text encoders.
    pub kind: Option<DenoiserKind<'a>>,
    /// CLIP-L's tensors; none in families without it.
    pub clip_l: &'a Kept,
    /// OpenCLIP bigG's tensors, in SDXL.
    pub clip_g: Option<&'a Kept>,
}

/// A denoiser's family, as far as the names of its layers and the shapes of its contexts depend on it.
#[derive(Debug, Clone, Copy)]
pub enum DenoiserKind<'a> {
    /// A UNet of Stable Diffusion, of this shape.
    UNet(&'a UNetConfig),
    /// Qwen-Image's transformer. LoRAs are made for it alone: its text encoder has none.
    QwenImage,
}

impl DenoiserKind<'_> {
    fn family(&self) -> Family {
        match self {
            Self::UNet(config) => Family::of_context(config.cross_attention_dim),
            Self::QwenImage => Family::QwenImage,
        }
    }
}

/// A LoRA whose tensors are on the device, sorted by the layers that they change.
#[derive(Debug, Clone, Default)]
pub struct Lora {
    /// Changes of the denoiser: of the UNet, or of the transformer in its place.
    pub unet: LoraPart,
    /// Changes of CLIP-L.
    pub clip_l: LoraPart,
    /// Changes of OpenCLIP bigG.
    pub clip_g: LoraPart,
    /// Stored names that fit nothing in the model, in order. They change nothing; whoever binds a LoRA reports
    /// them.
    pub unmatched: Vec<String>,
}

impl Lora {
    /// Bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        [&self.unet, &self.clip_l, &self.clip_g].into_iter().map(LoraPart::bytes).sum()
    }
}

/// What a LoRA changes in one network.
#[derive(Debug, Clone, Default)]
pub struct LoraPart {
    layers: BTreeMap<String, Patch>,
}

impl LoraPart {
    /// The change to one layer, by canonical name (`down_blocks.1.attentions.0.proj_in`).
    pub fn get(&self, layer: &str) -> Option<&Patch> {
        self.layers.get(layer)
    }

    /// The layers that change.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// How many layers change.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        self.layers.values().map(Patch::bytes).sum()
    }
}
