//! Fits an input picture to a size that was asked for: scaled until it covers the size, cut at the centre.
//! This is ComfyUI's `ImageScale` with `upscale_method = lanczos`, `crop = center`, up to rounding of the filter.

use image::imageops::{FilterType, crop_imm, resize};
use image::{ImageBuffer, Luma, Pixel, Rgb};

use super::{Mask, Picture};

/// `picture` scaled (Lanczos) to cover `width` × `height` and cut to it at the centre.
pub fn cover(picture: &Picture, width: usize, height: usize) -> Picture {
    let data = fit::<Rgb<f32>>(picture.width, picture.height, &picture.data, width, height);
    Picture { width, height, data }
}

/// The same for a mask.
pub fn cover_mask(mask: &Mask, width: usize, height: usize) -> Mask {
    let data = fit::<Luma<f32>>(mask.width, mask.height, &mask.data, width, height);
    Mask { width, height, data }
}

fn fit<P>(from_width: usize, from_height: usize, data: &[f32], width: usize, height: usize) -> Vec<f32>
where
    P: Pixel<Subpixel = f32> + 'static,
{
    let (w, h) = (from_width as f64, from_height as f64);
    let target = width as f64 / height as f64;
    // The largest centred part that has the target's shape.
    let (mut x, mut y) = (0.0, 0.0);
    if w / h > target {
        x = ((w - h * target) / 2.0).round();
    } else {
        y = ((h - w / target) / 2.0).round();
    }
    let source = ImageBuffer::<P, Vec<f32>>::from_raw(from_width as u32, from_height as u32, data.to_vec());
    let Some(source) = source else { return vec![0.0; width * height * usize::from(P::CHANNEL_COUNT)] };
    let part = crop_imm(&source, x as u32, y as u32, (w - 2.0 * x) as u32, (h - 2.0 * y) as u32).to_image();
    let mut data = resize(&part, width as u32, height as u32, FilterType::Lanczos3).into_raw();
    data.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0)); // Lanczos overshoots at edges
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_is_the_same_picture() {
        let data: Vec<f32> = (0..5 * 3 * 3).map(|i| i as f32 / 45.0).collect();
        let picture = Picture { width: 5, height: 3, data };
        let scaled = cover(&picture, 5, 3);
        let worst = picture.data.iter().zip(&scaled.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{worst}");
    }

    #[test]
    fn a_wide_mask_loses_its_sides_not_its_centre() {
        // Columns 0..4 black, 4..8 white, 8..12 black; the middle third is what a 4x4 target keeps.
        let data = (0..12 * 4).map(|i| if (4..8).contains(&(i % 12)) { 1.0 } else { 0.0 }).collect();
        let scaled = cover_mask(&Mask { width: 12, height: 4, data }, 4, 4);
        assert_eq!(scaled.data, vec![1.0; 16]);
    }

    #[test]
    fn values_stay_between_0_and_1() {
        let data = (0..8 * 8).map(|i| ((i / 2) % 2) as f32).collect();
        let scaled = cover_mask(&Mask { width: 8, height: 8, data }, 40, 24);
        assert_eq!((scaled.width, scaled.height, scaled.data.len()), (40, 24, 960));
        assert!(scaled.data.iter().all(|value| (0.0..=1.0).contains(value)));
    }
}
