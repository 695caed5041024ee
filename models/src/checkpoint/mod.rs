//! Whole models as people keep them: single files with ldm/sgm names, and diffusers folders. Says what a file
//! is ([`inspect()`]), and opens Stable Diffusion 1.5 and SDXL checkpoints for the networks to load from
//! ([`Checkpoint`]). Everything here reads headers and configs only; tensors are copied when networks take them.

mod detect;
mod error;
mod folder;
mod inspect;
mod keys;
mod kind;
mod prediction;
mod single_file;

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use crate::clip::ClipTextConfig;
use crate::unet::UNetConfig;
use crate::vae::VaeConfig;
use crate::weights::{WeightFile, Weights};

pub use error::CheckpointError;
pub use inspect::{ComponentSummary, Inspection, inspect};
pub use kind::{Layout, ModelKind, Part};
pub use prediction::{Prediction, PredictionType};

/// One network of a checkpoint: its shape, and what it loads from.
#[derive(Debug, Clone)]
pub struct Component<C> {
    /// The network's shape.
    pub config: C,
    /// Its tensors under canonical names. The network takes them and then calls `finish`, which names what is
    /// left over.
    pub weights: Weights,
}

/// An opened checkpoint: what a picture needs, as far as the checkpoint has it.
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
    /// CLIP-L, the only text encoder of SD 1.5 and the first of SDXL.
    pub clip_l: Option<Component<ClipTextConfig>>,
    /// OpenCLIP bigG, SDXL's second text encoder.
    pub clip_g: Option<Component<ClipTextConfig>>,
    /// Stored names that belong to no part and to nothing known.
    pub stray: Vec<String>,
}

impl CheckpointParts {
    /// The parts that a picture needs and this checkpoint lacks.
    pub fn missing(&self) -> Vec<Part> {
        self.kind.parts().iter().copied().filter(|part| !self.has(*part)).collect()
    }

    fn has(&self, part: Part) -> bool {
        match part {
            Part::UNet => self.unet.is_some(),
            Part::Vae => self.vae.is_some(),
            Part::ClipL => self.clip_l.is_some(),
            Part::ClipG => self.clip_g.is_some(),
        }
    }

    /// Fails, naming them, when parts are missing.
    pub fn require_all(&self) -> Result<(), CheckpointError> {
        match self.missing().as_slice() {
            [] => Ok(()),
            missing => {
                Err(CheckpointError::MissingParts { origin: self.origin.clone(), parts: missing.to_vec() })
            }
        }
    }

    fn require<C>(
        &self,
        component: Option<&Component<C>>,
        part: Part,
    ) -> Result<Component<C>, CheckpointError>
    where
        C: Clone,
    {
        component
            .cloned()
            .ok_or_else(|| CheckpointError::MissingParts { origin: self.origin.clone(), parts: vec![part] })
    }

    /// The UNet, or an error that says it is missing.
    pub fn unet(&self) -> Result<Component<UNetConfig>, CheckpointError> {
        self.require(self.unet.as_ref(), Part::UNet)
    }

    /// The autoencoder, or an error that says it is missing.
    pub fn vae(&self) -> Result<Component<VaeConfig>, CheckpointError> {
        self.require(self.vae.as_ref(), Part::Vae)
    }

    /// CLIP-L, or an error that says it is missing.
    pub fn clip_l(&self) -> Result<Component<ClipTextConfig>, CheckpointError> {
        self.require(self.clip_l.as_ref(), Part::ClipL)
    }

    /// OpenCLIP bigG, or an error that says it is missing.
    pub fn clip_g(&self) -> Result<Component<ClipTextConfig>, CheckpointError> {
        self.require(self.clip_g.as_ref(), Part::ClipG)
    }
}

/// Opens checkpoints.
#[derive(Debug)]
pub struct Checkpoint;

impl Checkpoint {
    /// Opens the single file or diffusers folder at `path`, for networks on `device`.
    ///
    /// # Errors
    /// When it is unreadable, damaged, another kind of model than Stable Diffusion 1.5 or SDXL, or made in a
    /// way that the networks cannot honour. Missing parts are no error here: see
    /// [`CheckpointParts::require_all`].
    pub fn open(path: &Path, device: &Device) -> Result<CheckpointParts, CheckpointError> {
        if path.is_dir() {
            return folder::open(path, device);
        }
        Self::from_file(&Arc::new(WeightFile::open(path)?), device)
    }

    /// The same for a file that is open already (the embedded model).
    pub fn from_file(file: &Arc<WeightFile>, device: &Device) -> Result<CheckpointParts, CheckpointError> {
        single_file::open(file, device)
    }
}
