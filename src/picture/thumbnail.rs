//! Small versions of stored pictures, for lists and galleries.

use image::imageops::{self, FilterType};
use image::{ImageBuffer, Pixel};

use super::encode::lossy_webp;
use super::read::Opened;
use super::{EncodeError, ReadError, ReadLimits};

/// Quality of the WebP.
const QUALITY: u8 = 80;
/// A picture at least this many times too wide is shrunk by plain averaging to `BEFORE_FILTER` times the width
/// first, which costs little and hides behind the filter.
const FAR_TOO_WIDE: u32 = 4;
const BEFORE_FILTER: u32 = 2;
/// What the picture is called in errors.
const NAME: &str = "the stored picture";

/// Why there is no thumbnail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThumbnailError {
    /// The picture cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The small picture cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// The picture in `bytes`, scaled down to `width` pixels a row with its proportions kept, and its media type: a
/// lossy WebP without metadata. A picture that is no wider comes back as it is.
pub fn thumbnail(
    bytes: &[u8],
    width: u32,
    limits: &ReadLimits,
) -> Result<(Vec<u8>, &'static str), ThumbnailError> {
    let opened = Opened::new(bytes, limits, NAME)?;
    let unchanged = || Ok((bytes.to_vec(), opened.format.to_mime_type()));
    // Whichever side EXIF puts at the bottom.
    if opened.width.max(opened.height) <= width {
        return unchanged();
    }
    let picture = opened.decode()?;
    if picture.width() <= width {
        return unchanged();
    }
    let width = width.max(1);
    let exact = f64::from(picture.height()) * f64::from(width) / f64::from(picture.width());
    let height = (exact.round() as u32).max(1);
    let small = if picture.color().has_alpha() {
        let mut pixels = picture.into_rgba8();
        premultiply(&mut pixels);
        let mut pixels = shrunk(&pixels, width, height);
        unpremultiply(&mut pixels);
        lossy_webp(&webp::Encoder::from_rgba(&pixels, width, height), QUALITY)?
    } else {
        let pixels = shrunk(&picture.into_rgb8(), width, height);
        lossy_webp(&webp::Encoder::from_rgb(&pixels, width, height), QUALITY)?
    };
    Ok((small, "image/webp"))
}

/// Colours multiplied by their alpha, so that they count in averages as much as they are seen: what is invisible
/// leaves no fringe around what is not.
fn premultiply(picture: &mut image::RgbaImage) {
    for pixel in picture.pixels_mut() {
        let alpha = u32::from(pixel[3]);
        for value in &mut pixel.0[..3] {
            *value = ((u32::from(*value) * alpha + 127) / 255) as u8;
        }
    }
}

/// The reverse, for four bytes a pixel.
fn unpremultiply(pixels: &mut [u8]) {
    for pixel in pixels.chunks_exact_mut(4) {
        let alpha = u32::from(pixel[3]);
        for value in &mut pixel[..3] {
            // The filter overshoots at edges.
            *value = (u32::from(*value) * 255 + alpha / 2).checked_div(alpha).unwrap_or(0).min(255) as u8;
        }
    }
}

fn shrunk<P>(picture: &ImageBuffer<P, Vec<u8>>, width: u32, height: u32) -> Vec<u8>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    if picture.width() / width >= FAR_TOO_WIDE && picture.height() / height >= FAR_TOO_WIDE {
        let halfway = imageops::thumbnail(picture, BEFORE_FILTER * width, BEFORE_FILTER * height);
        return imageops::resize(&halfway, width, height, FilterType::Lanczos3).into_raw();
    }
    imageops::resize(picture, width, height, FilterType::Lanczos3).into_raw()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};

    use super::*;

    fn png_of(picture: &DynamicImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        bytes
    }

    /// The left half red, the right half blue.
    fn halves(width: u32, height: u32) -> Vec<u8> {
        let colour = |x| if x < width / 2 { Rgb([220, 20, 20]) } else { Rgb([20, 20, 220]) };
        png_of(&RgbImage::from_fn(width, height, |x, _| colour(x)).into())
    }

    fn small(bytes: &[u8], width: u32) -> DynamicImage {
        let (bytes, mime) = thumbnail(bytes, width, &ReadLimits::default()).unwrap();
        assert_eq!(mime, "image/webp");
        assert_eq!(image::guess_format(&bytes).unwrap(), ImageFormat::WebP);
        image::load_from_memory(&bytes).unwrap()
    }

    #[test]
    fn a_thumbnail_is_the_picture_smaller_with_its_proportions() {
        // By the filter alone, and by averages first.
        for width in [100, 40] {
            let picture = small(&halves(300, 150), width).into_rgb8();
            assert_eq!((picture.width(), picture.height()), (width, width / 2));
            for (x, expected) in [(width / 4, [220, 20, 20]), (width * 3 / 4, [20, 20, 220])] {
                let found = picture.get_pixel(x, width / 4).0;
                let off = found.iter().zip(expected).map(|(a, b): (&u8, u8)| a.abs_diff(b)).max();
                assert!(off < Some(12), "{found:?}, not {expected:?}");
            }
        }
    }

    #[test]
    fn a_picture_no_wider_comes_back_as_it_is() {
        let bytes = halves(64, 200);
        for width in [64, 100, 5000] {
            let unchanged = thumbnail(&bytes, width, &ReadLimits::default()).unwrap();
            assert_eq!(unchanged, (bytes.clone(), "image/png"));
        }
    }

    #[test]
    fn a_sliver_keeps_a_row_and_no_width_is_one_pixel() {
        let picture = small(&halves(1000, 2), 50);
        assert_eq!((picture.width(), picture.height()), (50, 1));
        assert_eq!(small(&halves(30, 30), 0).width(), 1);
    }

    #[test]
    fn transparency_stays() {
        let alpha = |x| if x < 50 { 0 } else { 255 };
        let picture = RgbaImage::from_fn(100, 40, |x, _| Rgba([200, 100, 50, alpha(x)]));
        let picture = small(&png_of(&picture.into()), 20).into_rgba8();
        assert!(picture.get_pixel(2, 4)[3] < 10 && picture.get_pixel(17, 4)[3] > 245);
    }

    #[test]
    fn the_colour_of_invisible_pixels_leaves_no_fringe() {
        // Nothing but white is seen, whatever lies under the invisible part.
        for (hidden, width) in [([0, 255, 0], 33), ([0, 0, 0], 33), ([0, 255, 0], 20)] {
            let [r, g, b] = hidden;
            let picture = RgbaImage::from_fn(100, 40, |x, _| {
                if x < 50 { Rgba([r, g, b, 0]) } else { Rgba([255, 255, 255, 255]) }
            });
            let picture = small(&png_of(&picture.into()), width).into_rgba8();
            for pixel in picture.pixels().filter(|pixel| pixel[3] > 20) {
                assert!(pixel.0[..3].iter().all(|value| *value > 235), "{pixel:?} over {hidden:?}");
            }
            assert!(picture.pixels().any(|pixel| pixel[3] > 20 && pixel[3] < 235) || width == 20);
        }
    }

    #[test]
    fn limits_hold_and_damage_is_named() {
        let limits = ReadLimits { pixels: 1000, ..ReadLimits::default() };
        let refused = |bytes: &[u8]| match thumbnail(bytes, 16, &limits) {
            Err(ThumbnailError::Read(error)) => error,
            other => panic!("{other:?}"),
        };
        assert!(matches!(refused(&halves(40, 40)), ReadError::TooManyPixels { .. }));
        let bytes = halves(30, 30);
        assert!(matches!(refused(&bytes[..bytes.len() - 30]), ReadError::Damaged { .. }));
        assert!(matches!(refused(b"text"), ReadError::UnknownFormat { .. }));
    }
}
