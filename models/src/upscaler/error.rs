//! What can go wrong between a file or a picture and the larger picture.

use crate::weights::WeightsError;

/// Why there is no upscaler, or no larger picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpscalerError {
    /// The file holds another network.
    #[error(
        "{file}: {found}, which is not supported; use an upscaler of the ESRGAN family or a Real-ESRGAN Compact one"
    )]
    Kind {
        /// The file.
        file: String,
        /// What it holds: `this is a SwinIR`.
        found: String,
    },
    /// Its tensors make no network.
    #[error("{file}: {reason}")]
    Layout {
        /// The file.
        file: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// Not a picture that it takes.
    #[error("a picture of shape {found:?}; [batch, height, width, {channels}] with no side 0 is needed")]
    Shape {
        /// Its shape.
        found: Vec<usize>,
        /// Channels that are needed.
        channels: usize,
    },
    /// A tensor does not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A computation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
