//! Pictures to latents in the VAE's own units and back, as ComfyUI's VAE nodes do it.

use candle_core::{Device, Tensor};
use darkroom_models::vae::Tiling;

use super::Pipeline;
use crate::PipelineError;
use crate::picture::Picture;
use crate::request::PIXELS_PER_CELL;

impl Pipeline {
    /// A latent where [`Pipeline::decode`] wants it. On a GPU that is another stream: handed over as soon as it is
    /// finished, it is decoded beside the steps that come after and waits for none of them.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn to_decoder(&self, latent: &Tensor) -> Result<Tensor, PipelineError> {
        Ok(darkroom_models::device::moved(latent, &self.vae_device)?)
    }

    /// The picture of a latent, `[channels, h, w]` in VAE units. `tiling`: in which tiles; `None`: in one piece, or by tiles
    /// where that would not fit.
    pub fn decode_latent(&self, latent: &Tensor, tiling: Option<Tiling>) -> Result<Picture, PipelineError> {
        let latent = self.to_decoder(latent)?.unsqueeze(0)?;
        let (_, _, height, width) = latent.dims4()?;
        let vae = self.vae()?;
        let tiling = tiling.unwrap_or_else(|| vae.decode_tiling(height, width, self.activation_budget));
        Picture::from_tensor(&vae.decode_with(&latent, tiling)?.get(0)?)
    }

    /// A picture's latent, `[channels, h/8, w/8]` in VAE units on the CPU: the mean of its distribution. Sides are cut to
    /// multiples of 8, evenly from both ends.
    pub fn encode_latent(&self, picture: &Picture, tiling: Option<Tiling>) -> Result<Tensor, PipelineError> {
        let cells = |pixels: usize| pixels / PIXELS_PER_CELL;
        let (height, width) = (cells(picture.height()), cells(picture.width()));
        if height == 0 || width == 0 {
            let (width, height) = (picture.width(), picture.height());
            let message =
                format!("of {width}x{height} are too small: each side needs {PIXELS_PER_CELL} at least");
            return Err(PipelineError::Request { field: "pixels", message });
        }
        let pixels = picture.cropped_to_multiple(PIXELS_PER_CELL).to_tensor(&self.vae_device)?;
        let vae = self.vae()?;
        let tiling = tiling.unwrap_or_else(|| vae.encode_tiling(height, width, self.activation_budget));
        Ok(vae.encode_with(&pixels, tiling)?.get(0)?.to_device(&Device::Cpu)?)
    }
}
