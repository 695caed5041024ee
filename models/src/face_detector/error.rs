//! What can go wrong between a weight file and boxes.

use crate::weights::WeightsError;

/// Why a detector cannot be loaded or a picture cannot be searched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetectorError {
    /// The file holds no network of this family.
    #[error("{file}: not a YOLOv8 detector: {reason}")]
    Layout {
        /// The file.
        file: String,
        /// What is missing or too much, and what to do about it.
        reason: String,
    },
    /// An option is out of range.
    #[error("{option} {message}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What it is and what it may be.
        message: String,
    },
    /// A picture cannot be searched.
    #[error("picture {index} {message}")]
    Picture {
        /// Which of the pictures, from 0.
        index: usize,
        /// What is wrong with it.
        message: String,
    },
    /// The network gave values that are no numbers.
    #[error("the detector's answer for picture {index} is not a number: its weights are damaged")]
    NotANumber {
        /// Which of the pictures, from 0.
        index: usize,
    },
    /// The weights do not fit the network.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
