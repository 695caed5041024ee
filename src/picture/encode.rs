//! Pictures as the bytes of a file, in every format that a task can ask for, with the recipe inside.

use std::borrow::Cow;

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use img_parts::jpeg::Jpeg;
use img_parts::webp::WebP;
use img_parts::{Bytes, ImageEXIF};

use super::png_file::{Effort, png_with};
use super::{Recipe, exif};
use crate::task::ImageFormat;

/// Most bytes of EXIF data in a JPEG: a segment's 64 KiB without its length and its name.
const JPEG_EXIF: usize = 65_535 - 2 - b"Exif\0\0".len();
/// Most bytes of EXIF data in a WebP: far more than prompts within limits take, far less than its 4 GiB.
const WEBP_EXIF: usize = 16 << 20;
/// Longest side of a JPEG and of a WebP, pixels.
const JPEG_SIDE: usize = 65_535;
const WEBP_SIDE: usize = 16_383;

/// How hard libwebp tries, 0 to 6. Its default of 4 saves 4 % of the bytes and takes more than twice as long.
const WEBP_METHOD: i32 = 2;

/// Why a picture could not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The buffer does not have `3 · width · height` bytes, or none.
    #[error("{bytes} bytes are no RGB picture of {width}x{height} pixels")]
    Buffer {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// Bytes that were given.
        bytes: usize,
    },
    /// The transparency does not have `width · height` bytes.
    #[error("{bytes} bytes are no transparency for a picture of {width}x{height} pixels")]
    Alpha {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// Bytes that were given.
        bytes: usize,
    },
    /// The format cannot hold so large a picture.
    #[error("a picture of {width}x{height} pixels does not fit into {mime} (at most {most} a side); use PNG")]
    Side {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// The format.
        mime: &'static str,
        /// What it can hold.
        most: usize,
    },
    /// The PNG encoder failed.
    #[error("cannot encode the PNG: {0}")]
    Png(#[from] png::EncodingError),
    /// The JPEG or the lossless WebP encoder failed.
    #[error("cannot encode the picture: {0}")]
    Image(#[from] image::ImageError),
    /// libwebp failed.
    #[error("cannot encode the WebP: libwebp says {0:?}")]
    LossyWebp(webp::WebPEncodingError),
    /// The metadata could not be put into the encoded picture.
    #[error("cannot put the metadata into the picture: {0}")]
    Metadata(#[from] img_parts::Error),
}

/// Encodes 8-bit RGB, `[height, width, 3]`, as a whole file. `alpha`, `[height, width]`, says how opaque each pixel is;
/// the colours are not multiplied by it, and those of invisible pixels stay as given. JPEG has no transparency: there
/// the picture is laid on white. `recipe` goes into the file's metadata, as much of it as the format holds:
/// AUTOMATIC1111's `parameters` and ComfyUI's `prompt`.
///
/// # Errors
/// Buffers of another size than the picture's, a picture too large for the format, and what encoders refuse.
pub fn encode(
    width: usize,
    height: usize,
    rgb: &[u8],
    alpha: Option<&[u8]>,
    format: ImageFormat,
    recipe: Option<&Recipe>,
) -> Result<Vec<u8>, EncodeError> {
    let area = width.checked_mul(height).filter(|area| *area > 0);
    if area.and_then(|area| area.checked_mul(3)) != Some(rgb.len()) {
        return Err(EncodeError::Buffer { width, height, bytes: rgb.len() });
    }
    if let Some(alpha) = alpha
        && Some(alpha.len()) != area
    {
        return Err(EncodeError::Alpha { width, height, bytes: alpha.len() });
    }
    let within = |most: usize| {
        if width <= most && height <= most {
            Ok((width as u32, height as u32))
        } else {
            Err(EncodeError::Side { width, height, mime: format.mime(), most })
        }
    };
    match format {
        ImageFormat::Png => {
            let chunks = recipe.map(Recipe::text_chunks).unwrap_or_default();
            let bytes = match alpha {
                None => png_with(Effort::Fast, width, height, png::ColorType::Rgb, rgb, &chunks),
                Some(alpha) => {
                    let pixels = rgba(rgb, alpha);
                    png_with(Effort::Fast, width, height, png::ColorType::Rgba, &pixels, &chunks)
                }
            };
            Ok(bytes?)
        }
        ImageFormat::Jpeg { quality } => {
            let (width, height) = within(JPEG_SIDE)?;
            let mut bytes = Vec::with_capacity(rgb.len() / 8 + 1024);
            let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality.clamp(1, 100));
            let pixels = alpha.map_or(Cow::Borrowed(rgb), |alpha| Cow::Owned(on_white(rgb, alpha)));
            encoder.encode(&pixels, width, height, ExtendedColorType::Rgb8)?;
            let exif = recipe.and_then(|recipe| exif::of_recipe(recipe, JPEG_EXIF));
            with_exif(bytes, exif, Jpeg::from_bytes, |file| file.encoder().bytes())
        }
        ImageFormat::Webp { quality } => {
            let (width, height) = within(WEBP_SIDE)?;
            let (pixels, color) = match alpha {
                None => (Cow::Borrowed(rgb), ExtendedColorType::Rgb8),
                Some(alpha) => (Cow::Owned(rgba(rgb, alpha)), ExtendedColorType::Rgba8),
            };
            let bytes = match quality {
                Some(quality) => {
                    let encoder = match alpha {
                        None => webp::Encoder::from_rgb(&pixels, width, height),
                        Some(_) => webp::Encoder::from_rgba(&pixels, width, height),
                    };
                    lossy_webp(&encoder, quality)?
                }
                None => {
                    let mut bytes = Vec::with_capacity(rgb.len() / 2 + 1024);
                    WebPEncoder::new_lossless(&mut bytes).encode(&pixels, width, height, color)?;
                    bytes
                }
            };
            let exif = recipe.and_then(|recipe| exif::of_recipe(recipe, WEBP_EXIF));
            with_exif(bytes, exif, WebP::from_bytes, |file| file.encoder().bytes())
        }
    }
}

/// Four bytes a pixel.
fn rgba(rgb: &[u8], alpha: &[u8]) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(4 * alpha.len());
    for (colour, alpha) in rgb.chunks_exact(3).zip(alpha) {
        pixels.extend_from_slice(colour);
        pixels.push(*alpha);
    }
    pixels
}

/// The picture as it looks on white.
fn on_white(rgb: &[u8], alpha: &[u8]) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(rgb.len());
    for (colour, alpha) in rgb.chunks_exact(3).zip(alpha) {
        let alpha = u32::from(*alpha);
        pixels.extend(colour.iter().map(|value| {
            let sum = u32::from(*value) * alpha + 255 * (255 - alpha);
            ((sum + 127) / 255) as u8
        }));
    }
    pixels
}

/// The picture that `encoder` was given, with `quality` 1 to 100.
pub(super) fn lossy_webp(encoder: &webp::Encoder<'_>, quality: u8) -> Result<Vec<u8>, EncodeError> {
    let invalid = |()| EncodeError::LossyWebp(webp::WebPEncodingError::VP8_ENC_ERROR_INVALID_CONFIGURATION);
    let mut config = webp::WebPConfig::new().map_err(invalid)?;
    config.quality = f32::from(quality.clamp(1, 100));
    config.method = WEBP_METHOD;
    Ok(encoder.encode_advanced(&config).map_err(EncodeError::LossyWebp)?.to_vec())
}

fn with_exif<F: ImageEXIF>(
    bytes: Vec<u8>,
    exif: Option<Vec<u8>>,
    parse: fn(Bytes) -> img_parts::Result<F>,
    write: fn(F) -> Bytes,
) -> Result<Vec<u8>, EncodeError> {
    let Some(exif) = exif else { return Ok(bytes) };
    let mut file = parse(bytes.into())?;
    file.set_exif(Some(exif.into()));
    Ok(write(file).into())
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, ImageDecoder, ImageReader};

    use super::super::exif::tests::{recipe, texts};
    use super::*;

    const FORMATS: [ImageFormat; 4] = [
        ImageFormat::Png,
        ImageFormat::Jpeg { quality: 90 },
        ImageFormat::Webp { quality: Some(90) },
        ImageFormat::Webp { quality: None },
    ];
    const WIDTH: usize = 64;
    const HEIGHT: usize = 32;

    /// A smooth picture: what a lossy format keeps well.
    fn rgb() -> Vec<u8> {
        let pixel = |x: usize, y: usize| [x * 4, y * 8, 255 - x * 2 - y * 3];
        let pixels = (0..HEIGHT).flat_map(|y| (0..WIDTH).map(move |x| pixel(x, y)));
        pixels.flatten().map(|value| value as u8).collect()
    }

    /// Invisible at the left, opaque at the right, with everything between.
    fn alpha() -> Vec<u8> {
        (0..HEIGHT).flat_map(|_| (0..WIDTH).map(|x| (x * 255 / (WIDTH - 1)) as u8)).collect()
    }

    fn decoded(bytes: &[u8]) -> DynamicImage {
        image::load_from_memory(bytes).unwrap()
    }

    fn exif_of(bytes: &[u8]) -> Option<Vec<u8>> {
        let reader = ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format().unwrap();
        reader.into_decoder().unwrap().exif_metadata().unwrap()
    }

    #[test]
    fn every_format_keeps_the_picture_with_and_without_a_recipe() {
        let rgb = rgb();
        for format in FORMATS {
            for recipe in [None, Some(&recipe("1girl"))] {
                let bytes = encode(WIDTH, HEIGHT, &rgb, None, format, recipe).unwrap();
                let guessed = image::guess_format(&bytes).unwrap();
                assert_eq!(guessed.to_mime_type(), format.mime());
                let back = decoded(&bytes);
                assert_eq!((back.width(), back.height()), (WIDTH as u32, HEIGHT as u32));
                let back = back.into_rgb8().into_raw();
                let off: f64 = rgb.iter().zip(&back).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
                let lossless = matches!(format, ImageFormat::Png | ImageFormat::Webp { quality: None });
                // Colours are stored at half the resolution by lossy WebP and blurred a little by both.
                let most = if lossless { 0.0 } else { 4.0 };
                assert!(off / rgb.len() as f64 <= most, "{format:?}: {}", off / rgb.len() as f64);
            }
        }
    }

    #[test]
    fn transparency_is_kept_exactly_where_the_format_has_it() {
        let (rgb, alpha) = (rgb(), alpha());
        for format in FORMATS.into_iter().filter(|format| !matches!(format, ImageFormat::Jpeg { .. })) {
            for recipe in [None, Some(&recipe("1girl"))] {
                let bytes = encode(WIDTH, HEIGHT, &rgb, Some(&alpha), format, recipe).unwrap();
                let back = decoded(&bytes);
                assert!(back.color().has_alpha(), "{format:?}");
                let back = back.into_rgba8();
                let kept: Vec<u8> = back.pixels().map(|pixel| pixel[3]).collect();
                assert_eq!(kept, alpha, "{format:?}");
                let pairs = back.pixels().zip(rgb.chunks_exact(3));
                let off = pairs.flat_map(|(a, b)| [0, 1, 2].map(|c| a[c].abs_diff(b[c])));
                if !matches!(format, ImageFormat::Webp { quality: Some(_) }) {
                    // Invisible pixels included.
                    assert_eq!(off.max(), Some(0), "{format:?}");
                }
            }
        }
    }

    #[test]
    fn visible_colours_of_a_transparent_lossy_picture_stay_close() {
        let (rgb, alpha) = (rgb(), alpha());
        let lossy = ImageFormat::Webp { quality: Some(90) };
        let back = decoded(&encode(WIDTH, HEIGHT, &rgb, Some(&alpha), lossy, None).unwrap()).into_rgba8();
        let visible = back.pixels().zip(rgb.chunks_exact(3)).filter(|(pixel, _)| pixel[3] > 127);
        let off: Vec<u8> = visible.flat_map(|(a, b)| [0, 1, 2].map(|c| a[c].abs_diff(b[c]))).collect();
        let mean = off.iter().map(|value| f64::from(*value)).sum::<f64>() / off.len() as f64;
        assert!(mean <= 4.0, "{mean}");
    }

    #[test]
    fn a_jpeg_shows_what_is_transparent_on_white() {
        let dark = vec![20; WIDTH * HEIGHT * 3];
        let jpeg = ImageFormat::Jpeg { quality: 95 };
        for (alpha, expected) in [(0, 255), (255, 20), (128, 137)] {
            let alpha = vec![alpha; WIDTH * HEIGHT];
            let back = decoded(&encode(WIDTH, HEIGHT, &dark, Some(&alpha), jpeg, None).unwrap());
            for value in back.into_rgb8().into_raw() {
                assert!(value.abs_diff(expected) <= 2, "{value}, not {expected}");
            }
        }
    }

    #[test]
    fn transparency_of_another_size_is_refused_in_every_format() {
        for format in FORMATS {
            for length in [0, 1, WIDTH * HEIGHT - 1, WIDTH * HEIGHT + 1, WIDTH * HEIGHT * 3] {
                let error =
                    encode(WIDTH, HEIGHT, &rgb(), Some(&vec![255; length]), format, None).unwrap_err();
                assert!(matches!(error, EncodeError::Alpha { bytes, .. } if bytes == length), "{error}");
            }
        }
    }

    #[test]
    fn the_recipe_reads_back_from_every_format() {
        let recipe = recipe("café, 少女");
        for format in FORMATS {
            let bytes = encode(WIDTH, HEIGHT, &rgb(), None, format, Some(&recipe)).unwrap();
            if format == ImageFormat::Png {
                let info = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
                assert_eq!(info.info().utf8_text[0].get_text().unwrap(), recipe.parameters());
                continue;
            }
            let found = texts(&exif_of(&bytes).unwrap());
            assert_eq!(found, (Some(recipe.parameters()), Some(recipe.comfyui_text())), "{format:?}");
        }
    }

    #[test]
    fn without_a_recipe_there_is_no_metadata() {
        for format in FORMATS {
            let bytes = encode(WIDTH, HEIGHT, &rgb(), None, format, None).unwrap();
            assert_eq!(exif_of(&bytes), None, "{format:?}");
        }
    }

    #[test]
    fn a_recipe_too_long_for_a_jpeg_loses_the_workflow_then_everything_but_never_the_picture() {
        for (letters, kept) in [(100, true), (25_000, true), (70_000, false)] {
            let recipe = recipe(&"x".repeat(letters));
            let jpeg = ImageFormat::Jpeg { quality: 80 };
            let bytes = encode(WIDTH, HEIGHT, &rgb(), None, jpeg, Some(&recipe)).unwrap();
            assert_eq!(decoded(&bytes).width(), WIDTH as u32);
            let parameters = exif_of(&bytes).and_then(|exif| texts(&exif).0);
            assert_eq!(parameters, kept.then(|| recipe.parameters()), "{letters}");
            let webp =
                encode(WIDTH, HEIGHT, &rgb(), None, ImageFormat::Webp { quality: None }, Some(&recipe));
            assert_eq!(texts(&exif_of(&webp.unwrap()).unwrap()).1, Some(recipe.comfyui_text()));
        }
    }

    #[test]
    fn quality_decides_the_size() {
        let noisy: Vec<u8> = (0..WIDTH * HEIGHT * 3).map(|i| (i * i * 31 % 251) as u8).collect();
        let size = |format| encode(WIDTH, HEIGHT, &noisy, None, format, None).unwrap().len();
        assert!(size(ImageFormat::Jpeg { quality: 10 }) < size(ImageFormat::Jpeg { quality: 90 }) / 2);
        let webp = |quality| size(ImageFormat::Webp { quality: Some(quality) });
        assert!(webp(10) < webp(90) / 2);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused_in_every_format() {
        for format in FORMATS {
            for (width, height, bytes) in [(0, 4, 0), (4, 4, 3), (1, 1, 6), (usize::MAX, 2, 3)] {
                let error = encode(width, height, &vec![0; bytes], None, format, None).unwrap_err();
                assert!(matches!(error, EncodeError::Buffer { .. }), "{error}");
            }
        }
        let wide = vec![0; 3 * 16_384];
        let error = encode(16_384, 1, &wide, None, FORMATS[2], None).unwrap_err().to_string();
        assert!(error.contains("16383") && error.contains("PNG"), "{error}");
        assert!(encode(16_384, 1, &wide, None, ImageFormat::Png, None).is_ok());
        assert!(encode(65_536, 1, &vec![0; 3 * 65_536], None, FORMATS[1], None).is_err());
    }
}
