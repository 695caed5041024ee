//! What can be wrong with a ControlNet beyond its weight file.

use super::ControlNetFamily;
use crate::checkpoint::ModelKind;
use crate::weights::WeightsError;

/// Why a ControlNet cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlNetError {
    /// The weight file is unreadable, damaged or incomplete.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// It is another kind of file.
    #[error("{origin}: this is {kind}, not a ControlNet")]
    Kind {
        /// The file.
        origin: String,
        /// What it is.
        kind: ModelKind,
    },
    /// It belongs to models of another family.
    #[error("{origin}: this is a ControlNet for {found}, but the model is {base}: pick one made for it")]
    Family {
        /// The file.
        origin: String,
        /// The models that it is made for.
        found: ControlNetFamily,
        /// The model that it was to steer.
        base: ControlNetFamily,
    },
    /// It belongs to models of the same family but of another shape.
    #[error(
        "{origin}: this is a ControlNet for {base} models of another shape ({reason}): pick one made for this \
         model"
    )]
    Shape {
        /// The file.
        origin: String,
        /// The family of both.
        base: ControlNetFamily,
        /// Where the shapes differ.
        reason: String,
    },
    /// It is a ControlNet of a form that is not supported.
    #[error("{origin}: {reason}")]
    Unsupported {
        /// The file.
        origin: String,
        /// What is not supported, and what is.
        reason: String,
    },
    /// Its shape cannot be read off its tensors.
    #[error("{origin}: cannot tell the ControlNet's shape: {reason}")]
    Undetectable {
        /// The file.
        origin: String,
        /// What is missing or contradicts itself.
        reason: String,
    },
    /// Two stored tensors have the same meaning.
    #[error("{origin}: tensors '{first}' and '{second}' are both the ControlNet's '{name}'")]
    Ambiguous {
        /// The file.
        origin: String,
        /// The canonical name.
        name: String,
        /// One stored name.
        first: String,
        /// The other.
        second: String,
    },
    /// A folder holds no ControlNet's weights.
    #[error("{folder}: no ControlNet in this folder: diffusion_pytorch_model.safetensors is expected there")]
    NoWeights {
        /// The folder.
        folder: String,
    },
}
