//! Sizes of pictures for ControlNets, by ComfyUI's rules; [`crate::resample`] has the filters.

use crate::Picture;
use crate::resample::{self, Raster};

pub use crate::resample::{Crop, Filter};

/// A control picture at the size that a ControlNet reads, `width` × `height` pixels (latent cells × 8): cut at the
/// centre to the target's shape, then scaled to the nearest pixels. What ComfyUI does to every hint.
///
/// A side of 0 is taken for 1.
pub fn hint(picture: &Picture, width: usize, height: usize) -> Picture {
    resize(picture, width, height, Filter::NearestExact, Crop::Center)
}

/// `picture` at `width` × `height` pixels, as ComfyUI's `ImageScale` makes it. A side of 0 is taken for 1; nothing
/// else is done to a picture that has the size already, except by Lanczos, which rounds to 8 bits.
pub fn resize(picture: &Picture, width: usize, height: usize, filter: Filter, crop: Crop) -> Picture {
    let (width, height) = (width.max(1), height.max(1));
    let scaled = Raster::new(picture.data(), picture.width(), picture.height(), 3)
        .and_then(|raster| Picture::new(width, height, resample::scale(raster, width, height, filter, crop)));
    // A picture's buffer always fits its size.
    scaled.unwrap_or_else(|| picture.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_is_the_same_picture() {
        let data = (0..7 * 5).flat_map(|i| [i as f32 / 35.0; 3]).collect();
        let picture = Picture::new(7, 5, data).unwrap();
        for filter in [Filter::NearestExact, Filter::Bilinear, Filter::Area, Filter::Bicubic] {
            assert_eq!(resize(&picture, 7, 5, filter, Crop::Center), picture, "{filter:?}");
        }
        assert_eq!(hint(&picture, 7, 5), picture);
    }
}
