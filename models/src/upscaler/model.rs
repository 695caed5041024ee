//! An upscaler of either sort, from a file to larger pictures.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::UpscalerError;
use super::compact::Compact;
use super::detect::{self, Architecture};
use super::rrdb::Rrdb;
use super::shuffle::padded;
use crate::weights::WeightFile;

/// A network that enlarges pictures, ready to use. Computes in `f32`.
#[derive(Debug, Clone)]
pub struct Upscaler {
    device: Device,
    architecture: Architecture,
    network: Network,
}

#[derive(Debug, Clone)]
enum Network {
    Rrdb(Box<Rrdb>),
    Compact(Compact),
}

impl Upscaler {
    /// Loads an upscaler onto `device`.
    ///
    /// # Errors
    /// When the file holds something else, or tensors are missing, damaged or too many.
    pub fn from_file(file: &Arc<WeightFile>, device: &Device) -> Result<Self, UpscalerError> {
        let (architecture, weights) = detect::open(file, device)?;
        let network = match &architecture {
            Architecture::Rrdb(config) => Network::Rrdb(Box::new(Rrdb::load(config, &weights)?)),
            Architecture::Compact(config) => Network::Compact(Compact::load(config, &weights)?),
        };
        weights.finish()?;
        Ok(Self { device: device.clone(), architecture, network })
    }

    /// What it is.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// By how much the sides of pictures grow: 1 to 16.
    pub fn scale(&self) -> usize {
        self.architecture.scale()
    }

    /// `pixels: [b, h, w, input_channels]`, values of 0 to 1, to `[b, scale·h, scale·w, output_channels]`, clamped to
    /// 0 to 1. Sides that the network cannot take are padded first and cut off after, as spandrel does.
    ///
    /// # Errors
    /// When the shape is another.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor, UpscalerError> {
        let channels = self.architecture.input_channels();
        let (height, width) = match *pixels.dims() {
            [batch, height, width, c] if batch > 0 && height > 0 && width > 0 && c == channels => {
                (height, width)
            }
            ref other => return Err(UpscalerError::Shape { found: other.to_vec(), channels }),
        };
        let pixels = pixels.to_device(&self.device)?.to_dtype(DType::F32)?.contiguous()?;
        let result = match &self.network {
            Network::Rrdb(network) => {
                // Four whatever the factor of unshuffling.
                let multiple = if self.is_unshuffled() { 4 } else { 1 };
                network.forward(&padded(&pixels, 2, multiple)?)?
            }
            Network::Compact(network) => network.forward(&pixels)?,
        };
        let scale = self.scale();
        let result = result.narrow(1, 0, height * scale)?.narrow(2, 0, width * scale)?;
        Ok(result.contiguous()?.clamp(0f32, 1f32)?)
    }

    fn is_unshuffled(&self) -> bool {
        matches!(&self.architecture, Architecture::Rrdb(config) if config.unshuffle > 1)
    }

    /// Most bytes of activations alive at once while one picture of `height × width` pixels is enlarged. A batch takes
    /// as many times more.
    pub fn forward_bytes(&self, height: usize, width: usize) -> usize {
        match &self.architecture {
            Architecture::Rrdb(config) => Rrdb::forward_bytes(config, height, width),
            Architecture::Compact(config) => Compact::forward_bytes(config, height.saturating_mul(width)),
        }
    }
}
