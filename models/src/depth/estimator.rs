//! From a picture of any size to its depth: sizes, pixel values and ranges as the authors' `infer_image` has them.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::head::DptHead;
use super::transformer::VisionTransformer;
use super::{DepthConfig, DepthError, keys};
use crate::layers::{Interpolation, resize};
use crate::weights::WeightFile;

/// Mean and standard deviation of pixel values, red, green and blue (ImageNet's).
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];
/// Pixels of the shorter side that the network sees.
const SHORT_SIDE: usize = 518;
/// The longer side over the shorter at most: bounds the tokens, whose number squared is what attention costs.
const LONGEST: usize = 4;

/// A Depth Anything V2 network, ready to use.
#[derive(Debug, Clone)]
pub struct DepthEstimator {
    config: DepthConfig,
    device: Device,
    transformer: VisionTransformer,
    head: DptHead,
}

impl DepthEstimator {
    /// Loads a network from its authors' file or transformers', onto `device`. Small, base and large are told apart
    /// by their shapes.
    ///
    /// # Errors
    /// When the file holds something else, or tensors are missing, damaged or too many.
    pub fn from_file(file: &Arc<WeightFile>, device: &Device) -> Result<Self, DepthError> {
        Self::load(file, None, device)
    }

    /// As [`DepthEstimator::from_file`], with the number of attention heads given. It cannot be read off the tensors,
    /// and `from_file` takes heads to be 64 channels wide, as all published ones are.
    ///
    /// # Errors
    /// As [`DepthEstimator::from_file`].
    pub fn from_file_with_heads(
        file: &Arc<WeightFile>,
        heads: usize,
        device: &Device,
    ) -> Result<Self, DepthError> {
        Self::load(file, Some(heads), device)
    }

    fn load(file: &Arc<WeightFile>, heads: Option<usize>, device: &Device) -> Result<Self, DepthError> {
        let weights = keys::canonical(file, device);
        let config = DepthConfig::detect(&weights, heads)?;
        let transformer = VisionTransformer::load(&weights.scope("backbone"), &config)?;
        let head = DptHead::load(&weights, &config)?;
        weights.finish()?;
        Ok(Self { config, device: device.clone(), transformer, head })
    }

    /// The network's shape.
    pub fn config(&self) -> &DepthConfig {
        &self.config
    }

    /// The depth of `picture: [height, width, 3]`, values in `0..=1`: `[height, width]`, 1 where the picture is
    /// nearest and 0 where it is farthest; all 0 where nothing is nearer than anything else.
    ///
    /// # Errors
    /// When the picture is empty or too narrow.
    pub fn estimate(&self, picture: &Tensor) -> Result<Tensor, DepthError> {
        let (height, width, channels) = picture.dims3()?;
        let (short, long) = (height.min(width), height.max(width));
        if short == 0 || channels != 3 || long > LONGEST * short {
            return Err(DepthError::Shape { width, height, most: LONGEST });
        }
        let picture = picture.to_device(&self.device)?.to_dtype(DType::F32)?.unsqueeze(0)?;
        let (h, w) = network_size(height, width, self.config.patch);
        let seen = resize(&picture, h, w, Interpolation::Bicubic)?;
        drop(picture);
        let mean = Tensor::new(&MEAN, &self.device)?;
        let deviation = Tensor::new(&DEVIATION, &self.device)?;
        let depth = self.forward(&seen.broadcast_sub(&mean)?.broadcast_div(&deviation)?)?;
        let depth = resize(&depth.unsqueeze(3)?, height, width, Interpolation::BilinearCorners)?;
        let depth = depth.reshape((height, width))?;
        let least = depth.min_all()?;
        let range = (depth.max_all()?.to_scalar::<f32>()? - least.to_scalar::<f32>()?).max(f32::MIN_POSITIVE);
        Ok((depth.broadcast_sub(&least)? / f64::from(range))?)
    }

    /// The bare network: `pixels: [b, h, w, 3]`, normalised, sides multiples of the patch. Gives `[b, h, w]`, the
    /// inverse of the distance up to a scale and a shift.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor, DepthError> {
        let (_, h, w, _) = pixels.dims4()?;
        let taps = self.transformer.forward(pixels)?;
        Ok(self.head.forward(&taps, h, w)?)
    }
}

/// Height and width that the network sees: the shorter side as trained, the longer in proportion, both rounded to
/// whole patches (halves to even, as numpy does) but never below the trained side.
fn network_size(height: usize, width: usize, patch: usize) -> (usize, usize) {
    let scale = SHORT_SIDE as f64 / height.min(width) as f64;
    let side = |pixels: usize| {
        let patches = pixels as f64 * scale / patch as f64;
        let rounded = patches.round_ties_even() as usize * patch;
        if rounded < SHORT_SIDE { SHORT_SIDE.div_ceil(patch) * patch } else { rounded }
    };
    (side(height), side(width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_side_is_518_and_both_are_whole_patches() {
        assert_eq!(network_size(1024, 1024, 14), (518, 518));
        assert_eq!(network_size(1536, 1024, 14), (784, 518));
        assert_eq!(network_size(100, 399, 14), (518, 2072));
        assert_eq!(network_size(1, 1, 14), (518, 518));
        assert_eq!(network_size(720, 1280, 14), (518, 924));
    }
}
