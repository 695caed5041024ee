//! From a picture of any size to its alpha: sizes and ranges as RMBG-1.4's own code has them.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::MattingError;
use super::blocks::sized;
use super::network::IsNet;
use crate::weights::WeightFile;

/// Pixels of both sides of what the network sees, whatever the picture's shape: it was trained so.
const SIDE: usize = 1024;

/// A background-removal network, ready to use.
#[derive(Debug, Clone)]
pub struct BackgroundRemover {
    device: Device,
    network: IsNet,
}

impl BackgroundRemover {
    /// Loads an IS-Net onto `device`.
    ///
    /// # Errors
    /// When the file holds something else, or tensors are missing, damaged or too many.
    pub fn from_file(file: &Arc<WeightFile>, device: &Device) -> Result<Self, MattingError> {
        Ok(Self { device: device.clone(), network: IsNet::load(file, device)? })
    }

    /// The alpha of `picture: [height, width, 3]`, values in `0..=1`: `[height, width]`, 0 where it is most clearly
    /// background and 1 where it is least. A picture without any difference is all background.
    ///
    /// # Errors
    /// When `picture` has another shape or no pixels.
    pub fn alpha(&self, picture: &Tensor) -> Result<Tensor, MattingError> {
        let (height, width) = match picture.dims() {
            &[height, width, 3] if height > 0 && width > 0 => (height, width),
            other => return Err(MattingError::Shape { found: other.to_vec() }),
        };
        let picture = picture.to_device(&self.device)?.to_dtype(DType::F32)?.unsqueeze(0)?;
        let seen = (sized(&picture, SIDE, SIDE)? - 0.5)?;
        drop(picture);
        let alpha = sized(&self.network.forward(&seen)?, height, width)?.reshape((height, width))?;
        let least = alpha.min_all()?;
        let range = (alpha.max_all()?.to_scalar::<f32>()? - least.to_scalar::<f32>()?).max(f32::MIN_POSITIVE);
        Ok((alpha.broadcast_sub(&least)? / f64::from(range))?)
    }

    /// The bare network: `pixels: [b, h, w, 3]` of -0.5 to 0.5, any size; gives `[b, h, w]`, the probability that a
    /// pixel is not background.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor, MattingError> {
        Ok(self.network.forward(pixels)?.squeeze(3)?)
    }
}
