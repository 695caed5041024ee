//! What can go wrong between a file or a picture and its depth.

use crate::weights::WeightsError;

/// Why there is no depth estimator, or no depth.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DepthError {
    /// The file holds another network.
    #[error(
        "{file}: not a Depth Anything V2 network ({reason}); pass a file such as depth_anything_v2_vits.safetensors"
    )]
    Kind {
        /// The file.
        file: String,
        /// What is missing or in the way.
        reason: String,
    },
    /// A picture that the network cannot see as a whole.
    #[error(
        "a picture of {width}×{height} is too narrow for depth: its longer side may be {most} times the shorter"
    )]
    Shape {
        /// Pixels a row.
        width: usize,
        /// Rows.
        height: usize,
        /// The largest ratio of the sides.
        most: usize,
    },
    /// A tensor does not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A computation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
