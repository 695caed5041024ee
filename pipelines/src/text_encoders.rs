//! The text encoders of whatever family, with their tokenizers.

use std::sync::Arc;

use darkroom_models::clip::ClipTextEncoder;
use darkroom_models::qwen_vl::QwenVlTextEncoder;
use darkroom_models::tokenizer::{ClipTokenizer, QwenTokenizer};

/// What reads prompts.
#[derive(Clone)]
pub(crate) enum TextEncoders {
    /// Stable Diffusion's.
    Clip {
        /// For both.
        tokenizer: Arc<ClipTokenizer>,
        /// CLIP-L.
        clip_l: Option<Box<ClipTextEncoder>>,
        /// OpenCLIP bigG, of SDXL.
        clip_g: Option<Box<ClipTextEncoder>>,
    },
    /// Qwen-Image's.
    QwenVl {
        /// Its tokenizer, where one was found.
        tokenizer: Option<Arc<QwenTokenizer>>,
        /// The language model.
        encoder: Option<Box<QwenVlTextEncoder>>,
    },
}

impl TextEncoders {
    /// CLIP-L.
    pub(crate) fn clip_l(&self) -> Option<&ClipTextEncoder> {
        match self {
            Self::Clip { clip_l, .. } => clip_l.as_deref(),
            Self::QwenVl { .. } => None,
        }
    }

    /// OpenCLIP bigG.
    pub(crate) fn clip_g(&self) -> Option<&ClipTextEncoder> {
        match self {
            Self::Clip { clip_g, .. } => clip_g.as_deref(),
            Self::QwenVl { .. } => None,
        }
    }

    /// Whether they are SDXL's, whose network is told sizes too.
    pub(crate) fn is_sdxl(&self) -> bool {
        self.clip_g().is_some()
    }
}
