//! Fits an input picture to a size that was asked for: scaled until it covers the size, cut at the centre.

use darkroom_pipelines::preprocess::resize::resize;
use darkroom_pipelines::resample::{Crop, Filter, Raster, lanczos_floats};
use darkroom_pipelines::{Mask, Picture};

/// `picture` scaled (Lanczos) to cover `width` × `height` and cut to it at the centre, as ComfyUI's `ImageScale` with
/// `upscale_method = lanczos` and `crop = center` does it; one that has the size stays as it is. `None` for a size
/// of 0.
pub fn cover(picture: &Picture, width: usize, height: usize) -> Option<Picture> {
    if (width, height) == (picture.width(), picture.height()) {
        return Some(picture.clone());
    }
    (width > 0 && height > 0).then(|| resize(picture, width, height, Filter::Lanczos, Crop::Center))
}

/// The same for a mask, in floats.
pub fn cover_mask(mask: &Mask, width: usize, height: usize) -> Option<Mask> {
    if width == 0 || height == 0 {
        return None;
    }
    let raster = Raster::new(mask.data(), mask.width(), mask.height(), 1)?;
    Mask::new(width, height, lanczos_floats(raster, width, height, Crop::Center))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_is_the_same_picture() {
        let data: Vec<f32> = (0..5 * 3 * 3).map(|i| i as f32 / 45.0).collect();
        let picture = Picture::new(5, 3, data).unwrap();
        let scaled = cover(&picture, 5, 3).unwrap();
        assert_eq!(scaled, picture);
    }

    #[test]
    fn a_wide_mask_loses_its_sides_not_its_centre() {
        // Columns 0..4 black, 4..8 white, 8..12 black; the middle third is what a 4x4 target keeps.
        let data = (0..12 * 4).map(|i| if (4..8).contains(&(i % 12)) { 1.0 } else { 0.0 }).collect();
        let scaled = cover_mask(&Mask::new(12, 4, data).unwrap(), 4, 4).unwrap();
        assert_eq!(scaled.data(), [1.0; 16]);
    }

    #[test]
    fn values_stay_between_0_and_1_and_a_sliver_still_scales() {
        for (from_width, from_height) in [(8, 8), (1, 300), (300, 1)] {
            let data = (0..from_width * from_height).map(|i| ((i / 2) % 2) as f32).collect();
            let scaled = cover_mask(&Mask::new(from_width, from_height, data).unwrap(), 40, 24).unwrap();
            assert_eq!((scaled.width(), scaled.height(), scaled.data().len()), (40, 24, 960));
            assert!(scaled.data().iter().all(|value| (0.0..=1.0).contains(value)));
        }
        assert!(cover_mask(&Mask::new(1, 1, vec![1.0]).unwrap(), 0, 8).is_none());
    }
}
