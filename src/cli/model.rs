//! Which model `--model` names, and the settings that suit it where the flags say nothing.

use std::path::{Path, PathBuf};

use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::Scheduler;

use super::args::SamplingArgs;
use super::error::CommandError;
use crate::catalog::qwen_image;
use crate::expressions::Vocabulary;
use crate::hub;

/// The word for the built-in model.
const EMBEDDED: &str = "embedded";

/// Where a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ModelRef {
    /// Compiled in.
    Embedded,
    /// A checkpoint file or a diffusers folder.
    Path(PathBuf),
    /// `org/name` on the hub.
    Hub(String),
}

/// What a model draws with when the flags say nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Defaults {
    pub(super) size: (usize, usize),
    pub(super) steps: usize,
    pub(super) cfg: f64,
    pub(super) sampler: SamplerKind,
    pub(super) scheduler: Scheduler,
    pub(super) negative_prompt: String,
}

impl Defaults {
    /// For a checkpoint that was trained at `side` × `side` pixels.
    pub(super) fn of_size(side: usize) -> Self {
        Self {
            size: (side, side),
            steps: 20,
            cfg: 7.0,
            sampler: SamplerKind::Dpmpp2m,
            scheduler: Scheduler::Karras,
            negative_prompt: String::new(),
        }
    }

    /// For Qwen-Image as it was trained, without a LoRA for few steps.
    pub(super) fn of_qwen_image() -> Self {
        Self {
            size: (qwen_image::SIDE, qwen_image::SIDE),
            steps: qwen_image::STEPS,
            cfg: qwen_image::CFG,
            sampler: SamplerKind::Euler,
            scheduler: Scheduler::Simple,
            negative_prompt: String::new(),
        }
    }

    /// For the embedded model: what its own vocabulary recommends.
    pub(super) fn embedded(vocabulary: &Vocabulary) -> Result<Self, CommandError> {
        let sampling = &vocabulary.sampler;
        let [width, height] = vocabulary.sizes.trained;
        Ok(Self {
            size: (width, height),
            steps: sampling.steps,
            cfg: sampling.cfg,
            sampler: sampling.name.parse().map_err(CommandError::plain)?,
            scheduler: sampling.scheduler.parse().map_err(CommandError::plain)?,
            negative_prompt: vocabulary.negative_prompt.clone(),
        })
    }

    /// The same with what the flags say in its place.
    pub(super) fn with_flags(&self, args: &SamplingArgs) -> Self {
        Self {
            size: self.size,
            steps: args.steps.map_or(self.steps, |steps| steps as usize),
            cfg: args.cfg.unwrap_or(self.cfg),
            sampler: args.sampler.unwrap_or(self.sampler),
            scheduler: args.scheduler.unwrap_or(self.scheduler),
            negative_prompt: args.negative.clone().unwrap_or_else(|| self.negative_prompt.clone()),
        }
    }
}

impl ModelRef {
    /// What `text` names: a path that exists comes before a reference.
    pub(super) fn parse(text: &str) -> Result<Self, CommandError> {
        let path = Path::new(text);
        if text == EMBEDDED {
            Ok(Self::Embedded)
        } else if path.exists() {
            Ok(Self::Path(path.to_owned()))
        } else if hub::is_reference(text) && path.extension().is_none_or(|e| e != "safetensors") {
            Ok(Self::Hub(text.to_owned()))
        } else {
            Err(CommandError::usage(
                format!("no model at '{text}'"),
                "pass the path of a .safetensors file or a diffusers folder, or org/name on the Hugging Face Hub",
            ))
        }
    }

    /// The name for recipes: ComfyUI's `ckpt_name`.
    pub(super) fn name(&self, vocabulary: &Vocabulary) -> String {
        match self {
            Self::Embedded => format!("{}.safetensors", vocabulary.model),
            Self::Path(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            Self::Hub(reference) => reference.clone(),
        }
    }
}

/// How many pictures of a size go through the network at once: as many cells as one picture of 1024 × 1024.
pub(super) fn default_batch(width: usize, height: usize) -> usize {
    (1024 * 1024 / (width * height).max(1)).clamp(1, 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_embedded_a_path_that_exists_or_a_reference() {
        assert_eq!(ModelRef::parse("embedded").unwrap(), ModelRef::Embedded);
        assert_eq!(ModelRef::parse("src").unwrap(), ModelRef::Path("src".into()));
        assert_eq!(ModelRef::parse("org/name-1.0").unwrap(), ModelRef::Hub("org/name-1.0".into()));
        for missing in ["no.safetensors", "models/no.safetensors", "/no/such", ""] {
            let error = ModelRef::parse(missing).unwrap_err();
            assert!(matches!(error, CommandError::Usage { .. }), "{missing}: {error:?}");
        }
    }

    #[test]
    fn the_embedded_models_recommendations_are_ones_that_exist() {
        let vocabulary = Vocabulary::embedded().unwrap();
        let defaults = Defaults::embedded(&vocabulary).unwrap();
        assert_eq!(defaults.size, (128, 128));
        assert!(defaults.steps > 0 && defaults.cfg > 0.0);
    }

    #[test]
    fn large_pictures_go_alone_and_small_ones_together() {
        assert_eq!([128, 512, 1024, 4096].map(|side| default_batch(side, side)), [16, 4, 1, 1]);
    }
}
