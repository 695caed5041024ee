//! Pictures as ComfyUI's `LoadImage` and `LoadImageMask` take them (through Pillow): every frame of an animation, and
//! each format's own idea of transparency and of 16 bits.

use std::io::Cursor;

use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{AnimationDecoder, DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, ImageResult, Pixel};

use super::read::{Opened, ReadError, ReadLimits};

/// Where a PNG says its bits and what its pixels are.
const PNG_DEPTH: usize = 24;
const PNG_COLOR: usize = 25;
/// PNG's pixels of grey, and of indices into a palette.
const PNG_GREY: u8 = 0;
const PNG_PALETTE: u8 = 3;
const PNG_GREY_ALPHA: u8 = 4;
const PNG_RGB_ALPHA: u8 = 6;

/// The pictures of a file, all of one size, values 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Frames {
    /// Pictures.
    pub count: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[count, height, width, 3]`.
    pub rgb: Vec<f32>,
    /// How opaque each pixel is, `[count, height, width]`, where the file says so.
    pub alpha: Option<Vec<f32>>,
    /// Whether that is a channel or a palette's entry, not one colour that stands for transparency: `LoadImage` looks
    /// at the former alone.
    pub alpha_is_channel: bool,
}

/// Reads every picture of a file that is in memory; `name` is what errors call it. Animations count towards the limit
/// of pixels with all of their frames.
///
/// # Errors
/// As [`super::read_picture_bytes`].
pub fn read_frames(bytes: &[u8], limits: &ReadLimits, name: &str) -> Result<Frames, ReadError> {
    let opened = Opened::new(bytes, limits, name)?;
    match animation(&opened, bytes, limits, name)? {
        Some(frames) if frames.count > 1 => Ok(frames),
        _ => still(&opened, bytes),
    }
}

/// The same for the first picture alone.
///
/// # Errors
/// As [`super::read_picture_bytes`].
pub fn read_first_frame(bytes: &[u8], limits: &ReadLimits, name: &str) -> Result<Frames, ReadError> {
    still(&Opened::new(bytes, limits, name)?, bytes)
}

/// A file's first picture in 8 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgba {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 4]`.
    pub pixels: Vec<u8>,
    /// Whether any pixel may be transparent.
    pub has_alpha: bool,
}

/// Reads a file's first picture as 8-bit RGBA; `name` is what errors call it.
///
/// # Errors
/// As [`super::read_picture_bytes`].
pub fn read_rgba(bytes: &[u8], limits: &ReadLimits, name: &str) -> Result<Rgba, ReadError> {
    let opened = Opened::new(bytes, limits, name)?;
    let is_grey = opened.format == ImageFormat::Png && bytes.get(PNG_COLOR) == Some(&PNG_GREY);
    let picture = eight_bits(opened.decode()?, is_grey);
    let has_alpha = picture.color().has_alpha();
    let pixels = picture.into_rgba8();
    let (width, height) = (pixels.width() as usize, pixels.height() as usize);
    Ok(Rgba { width, height, pixels: pixels.into_raw(), has_alpha })
}

fn still(opened: &Opened<'_>, bytes: &[u8]) -> Result<Frames, ReadError> {
    let png = |at| (opened.format == ImageFormat::Png).then(|| bytes.get(at).copied()).flatten();
    let color = png(PNG_COLOR);
    let decoded = eight_bits(opened.decode()?, color == Some(PNG_GREY));
    let has_alpha = decoded.color().has_alpha();
    let mut frames = Frames {
        count: 0,
        width: decoded.width() as usize,
        height: decoded.height() as usize,
        rgb: Vec::new(),
        alpha: has_alpha.then(Vec::new),
        alpha_is_channel: has_alpha
            && color.is_none_or(|color| matches!(color, PNG_PALETTE | PNG_GREY_ALPHA | PNG_RGB_ALPHA)),
    };
    frames.push(&decoded);
    // A GIF is decoded with transparency whether it has any or not.
    if opened.format == ImageFormat::Gif {
        frames.drop_opaque();
    }
    Ok(frames)
}

impl Frames {
    /// Forgets transparency where there is none.
    fn drop_opaque(&mut self) {
        if self.alpha.as_ref().is_some_and(|alpha| alpha.iter().all(|value| *value == 1.0)) {
            self.alpha = None;
            self.alpha_is_channel = false;
        }
    }

    fn push(&mut self, picture: &DynamicImage) {
        let unit = |value: &u8| f32::from(*value) / 255.0;
        self.count += 1;
        match &mut self.alpha {
            None => self.rgb.extend(picture.to_rgb8().as_raw().iter().map(unit)),
            Some(alpha) => {
                let pixels = picture.to_rgba8();
                self.rgb.extend(pixels.pixels().flat_map(|pixel| pixel.0[..3].iter().map(unit)));
                alpha.extend(pixels.pixels().map(|pixel| unit(&pixel.0[3])));
            }
        }
    }
}

/// 16 bits as Pillow cuts them: grey (its mode `I;16`) to what 8 bits can say, so that most of it is white; colours,
/// and grey with transparency, to their upper 8 bits.
fn eight_bits(picture: DynamicImage, clip: bool) -> DynamicImage {
    let cut = move |value: u16| if clip { value.min(255) as u8 } else { (value >> 8) as u8 };
    match picture {
        DynamicImage::ImageLuma16(pixels) => DynamicImage::ImageLuma8(each(&pixels, cut)),
        DynamicImage::ImageLumaA16(pixels) => DynamicImage::ImageLumaA8(each(&pixels, cut)),
        DynamicImage::ImageRgb16(pixels) => DynamicImage::ImageRgb8(each(&pixels, cut)),
        DynamicImage::ImageRgba16(pixels) => DynamicImage::ImageRgba8(each(&pixels, cut)),
        picture => picture,
    }
}

fn each<From, To>(pixels: &ImageBuffer<From, Vec<u16>>, cut: impl Fn(u16) -> u8) -> ImageBuffer<To, Vec<u8>>
where
    From: Pixel<Subpixel = u16>,
    To: Pixel<Subpixel = u8>,
{
    let values = pixels.as_raw().iter().map(|value| cut(*value)).collect();
    // As many values as before: there is always room.
    ImageBuffer::from_raw(pixels.width(), pixels.height(), values).unwrap_or_default()
}

/// The frames of an animation, each with what the ones before it left; `None` where there is none.
fn animation(
    opened: &Opened<'_>,
    bytes: &[u8],
    limits: &ReadLimits,
    name: &str,
) -> Result<Option<Frames>, ReadError> {
    let collected = opened.guarded(|| match opened.format {
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(Cursor::new(bytes))?;
            decoder.set_limits(limits.decoder())?;
            collect(decoder, None, Orientation::NoTransforms, limits)
        }
        ImageFormat::WebP => {
            let mut decoder = WebPDecoder::new(Cursor::new(bytes))?;
            if !decoder.has_animation() {
                return Ok(Some(None));
            }
            decoder.set_limits(limits.decoder())?;
            let (alpha, orientation) = (decoder.color_type().has_alpha(), decoder.orientation()?);
            collect(decoder, Some(alpha), orientation, limits)
        }
        // Only 8 bits can be animated.
        ImageFormat::Png if bytes.get(PNG_DEPTH).is_some_and(|depth| *depth <= 8) => {
            let mut decoder = PngDecoder::with_limits(Cursor::new(bytes), limits.decoder())?;
            if !decoder.is_apng()? {
                return Ok(Some(None));
            }
            let color = bytes.get(PNG_COLOR).copied();
            let has_alpha = decoder.color_type().has_alpha();
            let alpha = has_alpha && matches!(color, Some(PNG_PALETTE | PNG_GREY_ALPHA | PNG_RGB_ALPHA));
            let orientation = decoder.orientation()?;
            collect(decoder.apng()?, Some(alpha), orientation, limits)
        }
        _ => Ok(Some(None)),
    })?;
    collected.ok_or_else(|| ReadError::TooManyFrames { file: name.to_owned(), pixels: limits.pixels })
}

/// `None`: more pixels than allowed. `alpha` says whether the frames have transparency; if it does not, they have
/// where any pixel is not opaque.
fn collect<'a>(
    decoder: impl AnimationDecoder<'a>,
    alpha: Option<bool>,
    orientation: Orientation,
    limits: &ReadLimits,
) -> ImageResult<Option<Option<Frames>>> {
    let mut all: Option<Frames> = None;
    for frame in decoder.into_frames() {
        let mut picture = DynamicImage::ImageRgba8(frame?.into_buffer());
        picture.apply_orientation(orientation);
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let frames = all.get_or_insert_with(|| Frames {
            count: 0,
            width,
            height,
            rgb: Vec::new(),
            alpha: (alpha != Some(false)).then(Vec::new),
            alpha_is_channel: true,
        });
        // As in ComfyUI, pictures of another size than the first are left out.
        if (frames.width, frames.height) != (width, height) {
            continue;
        }
        if (frames.count as u64 + 1).saturating_mul(width as u64 * height as u64) > limits.pixels {
            return Ok(None);
        }
        frames.push(&picture);
    }
    if let (Some(frames), None) = (&mut all, alpha) {
        frames.drop_opaque();
    }
    Ok(Some(all))
}

#[cfg(test)]
mod tests;
