//! What can go wrong between a request and a picture.

use darkroom_models::checkpoint::{CheckpointError, ModelKind, Part};
use darkroom_models::weights::WeightsError;

use crate::prompt::PromptError;
use crate::sampler::SamplerError;
use crate::schedule::ScheduleError;

/// Why a picture could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A value of the request is out of range.
    #[error("{field} {message}")]
    Request {
        /// The request's field.
        field: &'static str,
        /// What it is and what it may be.
        message: String,
    },
    /// A prompt cannot be encoded.
    #[error("{field}: {source}")]
    Prompt {
        /// Which prompt.
        field: &'static str,
        /// What is wrong with it.
        source: PromptError,
    },
    /// The tokenizer cannot be built.
    #[error(transparent)]
    Tokenizer(#[from] darkroom_models::tokenizer::TokenizerError),
    /// Noise cannot be drawn.
    #[error(transparent)]
    Noise(#[from] crate::noise::NoiseError),
    /// The schedule cannot be computed.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The sampler cannot run.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The model cannot be opened.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model's weights do not fit its networks.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A part that the work needs is not in the model's file.
    #[error("{origin}: it has no {part}: load that from a file of its own, or a whole checkpoint")]
    MissingPart {
        /// The file or folder.
        origin: String,
        /// What is missing.
        part: Part,
    },
    /// The text encoder has no tokenizer beside it.
    #[error(
        "{origin}: it has no tokenizer: put Qwen2.5-VL's tokenizer.json (or vocab.json and merges.txt) beside the text \
         encoder's file, or name it with --tokenizer"
    )]
    NoTokenizer {
        /// The file or folder.
        origin: String,
    },
    /// The model's network cannot do what was asked.
    #[error("{origin} is {kind}: {what} are not for it")]
    Unsupported {
        /// The file or folder.
        origin: String,
        /// What it is.
        kind: ModelKind,
        /// What was asked.
        what: &'static str,
    },
    /// There is less memory than the weights take.
    #[error("{origin}: it has {} MiB of weights; the memory budget is {} MiB", bytes >> 20, budget >> 20)]
    TooLarge {
        /// The file or folder.
        origin: String,
        /// Bytes of its weights as they would be held.
        bytes: u64,
        /// Bytes that there are.
        budget: u64,
    },
    /// The network gave values that are no numbers.
    #[error(
        "picture {index} turned into NaN while denoising: the weights are damaged, or a prompt weight or the \
         guidance scale is far too large"
    )]
    NotANumber {
        /// Which of the samples, from 0.
        index: usize,
    },
    /// A LoRA does not fit the model.
    #[error(transparent)]
    Lora(Box<darkroom_models::lora::LoraError>),
    /// A ControlNet does not fit the model.
    #[error(transparent)]
    ControlNet(Box<darkroom_models::controlnet::ControlNetError>),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl PipelineError {
    /// Whether the device's memory is full: less at once may go.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Tensor(error) | Self::Weights(WeightsError::Tensor(error)) => {
                darkroom_models::device::is_out_of_memory(error)
            }
            _ => false,
        }
    }
}

impl From<darkroom_models::lora::LoraError> for PipelineError {
    // Boxed: it is by far the largest of them.
    fn from(error: darkroom_models::lora::LoraError) -> Self {
        Self::Lora(Box::new(error))
    }
}

impl From<darkroom_models::controlnet::ControlNetError> for PipelineError {
    fn from(error: darkroom_models::controlnet::ControlNetError) -> Self {
        Self::ControlNet(Box::new(error))
    }
}
