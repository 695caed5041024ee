//! What can go wrong between a file or a picture and its alpha.

use crate::weights::WeightsError;

/// Why there is no background remover, or no alpha.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MattingError {
    /// The file holds another network.
    #[error("{file}: {found}, but an IS-Net is needed; pass RMBG-1.4's model.safetensors")]
    Kind {
        /// The file.
        file: String,
        /// What it holds.
        found: &'static str,
    },
    /// A tensor's values make no layer.
    #[error("{file}: {reason}")]
    Layout {
        /// The file.
        file: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// Not a picture.
    #[error("a picture of shape {found:?}; height, width and 3 channels, none of them 0, are needed")]
    Shape {
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor does not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A computation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
