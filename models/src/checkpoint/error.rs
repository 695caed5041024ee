//! What can be wrong with a checkpoint beyond its weight files.

use super::{ModelKind, Part};
use crate::tokenizer::TokenizerError;
use crate::weights::WeightsError;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A weight file is unreadable, damaged or incomplete.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A tokenizer is unreadable or damaged.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A config or index could not be read.
    #[error("{file}: cannot read: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A config does not make sense, or asks for what is not supported.
    #[error("{origin}: {part} config: {reason}")]
    Config {
        /// The file it stands in.
        origin: String,
        /// The network it describes.
        part: Part,
        /// What is wrong.
        reason: String,
    },
    /// A JSON file of a folder is malformed.
    #[error("{file}: {reason}")]
    Json {
        /// The file.
        file: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// It is another kind of model.
    #[error("{origin}: this is {kind}, not a checkpoint of Stable Diffusion 1.5, SDXL or Qwen-Image")]
    Kind {
        /// The file or folder.
        origin: String,
        /// What it is.
        kind: ModelKind,
    },
    /// It is of the right kind but made in a way that the networks cannot honour.
    #[error("{origin}: not supported: {reason}")]
    Unsupported {
        /// The file or folder.
        origin: String,
        /// What is not supported.
        reason: String,
    },
    /// A network's shape cannot be read off its tensors.
    #[error("{origin}: cannot tell the {part}'s shape: {reason}")]
    Undetectable {
        /// The file or folder.
        origin: String,
        /// The network.
        part: Part,
        /// What is missing or contradicts itself, and what would help.
        reason: String,
    },
    /// Two stored tensors have the same meaning.
    #[error("{origin}: tensors '{first}' and '{second}' are both the {part}'s '{name}'")]
    Ambiguous {
        /// The file or folder.
        origin: String,
        /// The network.
        part: Part,
        /// The canonical name.
        name: String,
        /// One stored name.
        first: String,
        /// The other.
        second: String,
    },
    /// A folder has no usable weight file where one is expected.
    #[error("{folder}: no weights: {hint}")]
    NoWeights {
        /// The folder.
        folder: String,
        /// What is expected there, or what is there instead.
        hint: String,
    },
    /// An index names a file outside its own folder.
    #[error("{file}: refuses to open '{name}': an index may only name .safetensors files beside itself")]
    UnsafeName {
        /// The index.
        file: String,
        /// What it names.
        name: String,
    },
    /// Parts that are needed are not in the checkpoint.
    #[error("{origin}: it has no {}: use a full checkpoint", list(parts))]
    MissingParts {
        /// The file or folder.
        origin: String,
        /// What is missing.
        parts: Vec<Part>,
    },
}

fn list(parts: &[Part]) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", no ")
}
