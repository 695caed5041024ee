//! Whole models as people keep them: single files with ldm/sgm names, and diffusers folders. Says what a file
//! is ([`inspect()`]), and opens Stable Diffusion 1.5 and SDXL checkpoints for the networks to load from
//! ([`Checkpoint`], or [`CheckpointParts`] where some may be missing), and Qwen-Image ([`QwenImageParts`]). Everything here reads headers and configs only; tensors are copied when networks take them.

mod controlnet;
mod detect;
mod error;
mod folder;
mod inspect;
pub(crate) mod keys;
mod kind;
mod lone_part;
mod prediction;
mod qwen_image;
mod single_file;

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use crate::clip::ClipTextConfig;
use crate::unet::UNetConfig;
use crate::vae::VaeConfig;
use crate::weights::{WeightFile, Weights};

pub use controlnet::{ControlNetFamily, ControlNetForm, ControlNetKind};
pub(crate) use controlnet::{Twins, canonical_names};
pub use error::CheckpointError;
pub use inspect::{ComponentSummary, Inspection, inspect};
pub(crate) use kind::classify;
pub use kind::{Layout, ModelKind, Part};
pub use prediction::{Prediction, PredictionType};
pub use qwen_image::QwenImageParts;

/// One network of a checkpoint: its shape, and what it loads from.
#[derive(Debug, Clone)]
pub struct Component<C> {
    /// The network's shape.
    pub config: C,
    /// Its tensors under canonical names. The network takes them and then calls `finish`, which names what is
    /// left over.
    pub weights: Weights,
}

/// A complete checkpoint: every part that a picture needs.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file or folder.
    pub origin: String,
    /// What model it is: [`ModelKind::Sdxl`] or [`ModelKind::Sd15`].
    pub kind: ModelKind,
    /// How it is laid out.
    pub layout: Layout,
    /// What the UNet predicts, and whether its schedule ends in pure noise.
    pub prediction: Prediction,
    /// The UNet.
    pub unet: Component<UNetConfig>,
    /// The autoencoder.
    pub vae: Component<VaeConfig>,
    /// CLIP-L, the only text encoder of SD 1.5 and the first of SDXL.
    pub clip_l: Component<ClipTextConfig>,
    /// OpenCLIP bigG, SDXL's second text encoder; always there in SDXL.
    pub clip_g: Option<Component<ClipTextConfig>>,
    /// Stored names that belong to no part and to nothing known.
    pub stray: Vec<String>,
}

impl Checkpoint {
    /// Opens the single file or diffusers folder at `path`, for networks on `device`.
    ///
    /// # Errors
    /// As [`CheckpointParts::open`], and when parts are missing, which are named.
    pub fn open(path: &Path, device: &Device) -> Result<Self, CheckpointError> {
        CheckpointParts::open(path, device)?.complete()
    }

    /// The same for a file that is open already (the embedded model).
    pub fn from_file(file: &Arc<WeightFile>, device: &Device) -> Result<Self, CheckpointError> {
        CheckpointParts::from_file(file, device)?.complete()
    }
}

/// An opened checkpoint that may lack parts (a UNet alone, to go with a VAE from elsewhere).
#[derive(Debug)]
pub struct CheckpointParts {
    /// The file or folder.
    pub origin: String,
    /// What model it is: [`ModelKind::Sdxl`] or [`ModelKind::Sd15`].
    pub kind: ModelKind,
    /// How it is laid out.
    pub layout: Layout,
    /// What the UNet predicts, and whether its schedule ends in pure noise.
    pub prediction: Prediction,
    /// The UNet.
    pub unet: Option<Component<UNetConfig>>,
    /// The autoencoder.
    pub vae: Option<Component<VaeConfig>>,
    /// CLIP-L.
    pub clip_l: Option<Component<ClipTextConfig>>,
    /// OpenCLIP bigG.
    pub clip_g: Option<Component<ClipTextConfig>>,
    /// Stored names that belong to no part and to nothing known.
    pub stray: Vec<String>,
}

impl CheckpointParts {
    /// Opens the single file or diffusers folder at `path`, for networks on `device`.
    ///
    /// # Errors
    /// When it is unreadable, damaged, another kind of model than Stable Diffusion 1.5 or SDXL, or made in a
    /// way that the networks cannot honour.
    pub fn open(path: &Path, device: &Device) -> Result<Self, CheckpointError> {
        if path.is_dir() {
            return folder::open(path, device);
        }
        single_file::open(&Arc::new(WeightFile::open(path)?), device)
    }

    /// The same for a file that is open already.
    pub fn from_file(file: &Arc<WeightFile>, device: &Device) -> Result<Self, CheckpointError> {
        single_file::open(file, device)
    }

    /// The parts that a picture needs and this checkpoint lacks.
    pub fn missing(&self) -> Vec<Part> {
        let has = |part: &Part| match part {
            Part::UNet => self.unet.is_some(),
            Part::Vae => self.vae.is_some(),
            Part::ClipL => self.clip_l.is_some(),
            Part::ClipG => self.clip_g.is_some(),
            Part::Transformer | Part::QwenVl => false,
        };
        self.kind.parts().iter().copied().filter(|part| !has(part)).collect()
    }

    /// The checkpoint, if nothing is missing.
    ///
    /// # Errors
    /// [`CheckpointError::MissingParts`], naming all of them.
    pub fn complete(self) -> Result<Checkpoint, CheckpointError> {
        let missing = self.missing();
        let (true, Some(unet), Some(vae), Some(clip_l)) =
            (missing.is_empty(), self.unet, self.vae, self.clip_l)
        else {
            return Err(CheckpointError::MissingParts { origin: self.origin, parts: missing });
        };
        Ok(Checkpoint {
            origin: self.origin,
            kind: self.kind,
            layout: self.layout,
            prediction: self.prediction,
            unet,
            vae,
            clip_l,
            clip_g: self.clip_g,
            stray: self.stray,
        })
    }
}
