//! Large pictures in overlapping tiles, by the rule that ComfyUI has for autoencoders of video: square tiles, blended
//! by linear ramps over the overlaps. (Those of pictures it takes through three shapes of tiles: see `vae`.)

use candle_core::{Result, Tensor, bail};

use super::{AutoencoderKlQwenImage, QwenVaeConfig};
use crate::vae::tiled::{LARGEST_TILE, Scale, check_sides, mean_of_passes};
use crate::vae::{Tiling, check_picture};

impl AutoencoderKlQwenImage {
    /// [`Self::decode`] in tiles of `tile × tile` latent cells that share `overlap` cells; `overlap` must be below
    /// `tile`. One tile of one row is computed at a time.
    ///
    /// # Errors
    /// When the latent has another shape, or the tiles overlap by all of their side.
    pub fn decode_tiled(&self, latent: &Tensor, tile: usize, overlap: usize) -> Result<Tensor> {
        check_picture("latent", latent, self.config().z_dim, 1)?;
        check_tiles(tile, overlap)?;
        let scale = Scale { up: self.config().downscale(), down: 1 };
        let channels = QwenVaeConfig::PICTURE_CHANNELS;
        let decode = |x: &Tensor| self.decode_unclamped(x);
        mean_of_passes(latent, &[[tile, tile]], overlap, scale, channels, decode)?.clamp(-1f32, 1f32)
    }

    /// [`Self::encode`] in tiles; `tile` and `overlap` are in latent cells here too, and the picture's sides must be
    /// multiples of a cell's.
    ///
    /// # Errors
    /// When the image has another shape or sides, or the tiles overlap by all of their side.
    pub fn encode_tiled(&self, image: &Tensor, tile: usize, overlap: usize) -> Result<Tensor> {
        let cell = self.config().downscale();
        check_picture("image", image, QwenVaeConfig::PICTURE_CHANNELS, cell)?;
        check_sides(image, cell)?;
        check_tiles(tile, overlap)?;
        let scale = Scale { up: 1, down: cell };
        let (tile, overlap) = (tile * cell, overlap * cell);
        mean_of_passes(image, &[[tile, tile]], overlap, scale, self.config().z_dim, |x| self.encode(x))
    }

    /// [`Self::decode`] or [`Self::decode_tiled`], as `tiling` says.
    ///
    /// # Errors
    /// As they.
    pub fn decode_with(&self, latent: &Tensor, tiling: Tiling) -> Result<Tensor> {
        match tiling {
            Tiling::Whole => self.decode(latent),
            Tiling::Tiles { tile, overlap } => self.decode_tiled(latent, tile, overlap),
        }
    }

    /// [`Self::encode`] or [`Self::encode_tiled`], as `tiling` says.
    ///
    /// # Errors
    /// As they.
    pub fn encode_with(&self, image: &Tensor, tiling: Tiling) -> Result<Tensor> {
        match tiling {
            Tiling::Whole => self.encode(image),
            Tiling::Tiles { tile, overlap } => self.encode_tiled(image, tile, overlap),
        }
    }
}

fn check_tiles(tile: usize, overlap: usize) -> Result<()> {
    if tile > LARGEST_TILE || tile <= overlap {
        bail!("VAE: tiles of {tile} latent cells cannot overlap by {overlap}: less than a tile is needed");
    }
    Ok(())
}
