//! Reads pictures and masks, from files and from bytes that came with a request. Neither is trusted: the size, the
//! dimensions and the memory that decoding takes are bounded before anything is decoded, and no name or media type
//! is believed.
//!
//! The rules are those of ComfyUI's `LoadImage` and `LoadImageMask`: the first frame, turned upright by its EXIF
//! orientation, as 8-bit RGB; the mask of a picture is 1 − alpha; the mask of a mask file is its red channel.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use darkroom_pipelines::{Mask, Picture};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::webp_layout;

/// Longest side of an input picture, pixels.
pub const MAX_SIDE: u32 = 16_384;
/// Most pixels of an input picture: 64 megapixels.
pub const MAX_PIXELS: u64 = 1 << 26;
/// Largest input file, bytes.
pub const MAX_BYTES: u64 = 256 << 20;
/// Most that a decoder may allocate for a pixel: 16-bit RGBA.
const DECODED_BYTES_PER_PIXEL: u64 = 8;
/// What a decoder may allocate beside the pixels (colour profiles, text).
const DECODER_OVERHEAD: u64 = 1 << 20;

/// What may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// Bytes of the file.
    pub bytes: u64,
    /// Pixels a side.
    pub side: u32,
    /// Pixels in all.
    pub pixels: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { bytes: MAX_BYTES, side: MAX_SIDE, pixels: MAX_PIXELS }
    }
}

impl ReadLimits {
    pub(super) fn decoder(&self) -> Limits {
        let pixels = self.pixels.saturating_mul(DECODED_BYTES_PER_PIXEL);
        let mut limits = Limits::default();
        limits.max_alloc = Some(pixels.saturating_add(DECODER_OVERHEAD));
        limits
    }
}

/// Why a picture could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file could not be opened or read.
    #[error("{file}: cannot read: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder, a device, a pipe.
    #[error("{file}: not a regular file")]
    NotAFile {
        /// The path.
        file: String,
    },
    /// The file has no bytes.
    #[error("{file}: the file is empty (0 bytes)")]
    Empty {
        /// The file.
        file: String,
    },
    /// The file itself is too big.
    #[error("{file}: the file has {bytes} bytes; the limit is {limit}")]
    FileTooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The content is no picture of a known format, whatever the extension says.
    #[error("{file}: not a picture that Darkroom reads (PNG, JPEG, WebP, GIF or BMP)")]
    UnknownFormat {
        /// The file.
        file: String,
    },
    /// The picture says it is larger than Darkroom decodes.
    #[error(
        "{file}: {width}x{height} pixels; the limit is {pixels} pixels and {side} a side: scale it down first"
    )]
    TooManyPixels {
        /// The file.
        file: String,
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// Pixels that are allowed.
        pixels: u64,
        /// Pixels a side that are allowed.
        side: u32,
    },
    /// An animation has more pixels than may be read.
    #[error("{file}: the frames of this animation have more than {pixels} pixels together: take some out")]
    TooManyFrames {
        /// The file.
        file: String,
        /// Pixels that are allowed.
        pixels: u64,
    },
    /// The data is damaged, cut short or needs more memory than allowed.
    #[error("{file}: cannot decode, the file is damaged or incomplete: {reason}")]
    Damaged {
        /// The file.
        file: String,
        /// What the decoder said.
        reason: String,
    },
    /// A mask was asked of a picture that has no alpha channel.
    #[error("{file}: the picture has no transparent areas to repaint")]
    NoAlpha {
        /// The file.
        file: String,
    },
}

/// Reads a picture from a file within the default limits; the mask is 1 − alpha, if it has an alpha channel.
pub fn read_picture(path: &Path) -> Result<(Picture, Option<Mask>), ReadError> {
    let limits = ReadLimits::default();
    read_picture_bytes(&bytes_of(path, &limits)?, &limits, &path.display().to_string())
}

/// Reads a mask file within the default limits: white repaints, black keeps. Of a coloured file the red channel
/// counts, as in ComfyUI's `LoadImageMask` with `channel = red`.
pub fn read_mask(path: &Path) -> Result<Mask, ReadError> {
    let limits = ReadLimits::default();
    read_mask_bytes(&bytes_of(path, &limits)?, &limits, &path.display().to_string())
}

/// [`read_picture`] for a file that is in memory. `name` is what errors call it.
pub fn read_picture_bytes(
    bytes: &[u8],
    limits: &ReadLimits,
    name: &str,
) -> Result<(Picture, Option<Mask>), ReadError> {
    let decoded = Opened::new(bytes, limits, name)?.decode()?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let mask = decoded.color().has_alpha().then(|| {
        let alpha = decoded.to_rgba8().into_raw();
        alpha.chunks_exact(4).map(|pixel| 1.0 - f32::from(pixel[3]) / 255.0).collect()
    });
    let data = decoded.into_rgb8().into_raw().into_iter().map(|value| f32::from(value) / 255.0).collect();
    let picture = Picture::new(width, height, data).ok_or_else(|| no_pixels(name))?;
    Ok((picture, mask.and_then(|mask| Mask::new(width, height, mask))))
}

/// [`read_mask`] for a file that is in memory. `name` is what errors call it.
pub fn read_mask_bytes(bytes: &[u8], limits: &ReadLimits, name: &str) -> Result<Mask, ReadError> {
    let decoded = Opened::new(bytes, limits, name)?.decode()?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let rgb = decoded.into_rgb8().into_raw();
    let data = rgb.chunks_exact(3).map(|pixel| f32::from(pixel[0]) / 255.0).collect();
    Mask::new(width, height, data).ok_or_else(|| no_pixels(name))
}

fn no_pixels(name: &str) -> ReadError {
    ReadError::Damaged { file: name.to_owned(), reason: "it has no pixels".into() }
}

fn bytes_of(path: &Path, limits: &ReadLimits) -> Result<Vec<u8>, ReadError> {
    let file = path.display().to_string();
    let io = |source| ReadError::Io { file: file.clone(), source };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(ReadError::NotAFile { file });
    }
    if metadata.len() > limits.bytes {
        return Err(ReadError::FileTooLarge { file, bytes: metadata.len(), limit: limits.bytes });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    // The file may have grown since.
    File::open(path).map_err(io)?.take(limits.bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// A file whose format, size and dimensions are known and within limits, and whose pixels are not decoded yet.
pub(super) struct Opened<'a> {
    pub(super) format: ImageFormat,
    /// As stored, before EXIF turns it.
    pub(super) width: u32,
    pub(super) height: u32,
    bytes: &'a [u8],
    limits: &'a ReadLimits,
    name: &'a str,
}

impl<'a> Opened<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: &'a ReadLimits, name: &'a str) -> Result<Self, ReadError> {
        let file = || name.to_owned();
        match bytes.len() as u64 {
            0 => return Err(ReadError::Empty { file: file() }),
            bytes if bytes > limits.bytes => {
                return Err(ReadError::FileTooLarge { file: file(), bytes, limit: limits.bytes });
            }
            _ => {}
        }
        let format = image::guess_format(bytes).ok().filter(ImageFormat::reading_enabled);
        let Some(format) = format else { return Err(ReadError::UnknownFormat { file: file() }) };
        let mut opened = Self { format, width: 0, height: 0, bytes, limits, name };
        (opened.width, opened.height) = opened.guarded(|| Ok(opened.decoder()?.dimensions()))?;
        let (width, height) = (opened.width, opened.height);
        if width > limits.side || height > limits.side || u64::from(width) * u64::from(height) > limits.pixels
        {
            let (pixels, side) = (limits.pixels, limits.side);
            return Err(ReadError::TooManyPixels { file: file(), width, height, pixels, side });
        }
        if format == ImageFormat::WebP {
            webp_layout::check(bytes).map_err(|reason| opened.damaged(&reason))?;
        }
        Ok(opened)
    }

    /// The pixels, turned upright.
    pub(super) fn decode(&self) -> Result<DynamicImage, ReadError> {
        self.guarded(|| {
            let mut limits = self.limits.decoder();
            let mut decoder = self.decoder()?;
            limits.reserve(decoder.total_bytes())?;
            decoder.set_limits(limits)?;
            let orientation = decoder.orientation()?;
            let mut decoded = DynamicImage::from_decoder(decoder)?;
            decoded.apply_orientation(orientation);
            Ok(decoded)
        })
    }

    fn decoder(&self) -> image::ImageResult<impl ImageDecoder + use<'a>> {
        let mut reader = ImageReader::with_format(Cursor::new(self.bytes), self.format);
        reader.limits(self.limits.decoder());
        reader.into_decoder()
    }

    /// Runs foreign code over foreign bytes. A decoder that panics on a damaged file has found it to be damaged.
    pub(super) fn guarded<T>(&self, decode: impl FnOnce() -> image::ImageResult<T>) -> Result<T, ReadError> {
        // Nothing that the closure leaves half done is looked at again.
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode)) {
            Ok(decoded) => decoded.map_err(|error| self.damaged(&error)),
            Err(_) => Err(self.damaged(&"its decoder gave up")),
        }
    }

    fn damaged(&self, reason: &dyn std::fmt::Display) -> ReadError {
        ReadError::Damaged { file: self.name.to_owned(), reason: reason.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use image::{Rgb, RgbImage, Rgba, RgbaImage};
    use proptest::prelude::*;
    use tempfile::{NamedTempFile, TempDir};

    use super::*;

    fn file_of(bytes: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn png_of(picture: &DynamicImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        bytes
    }

    /// A PNG whose header promises `width` × `height` pixels and that has none.
    fn bomb(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = png::Encoder::new(&mut bytes, width, height).write_header().unwrap();
        writer.write_chunk(png::chunk::IDAT, &[]).unwrap();
        drop(writer);
        bytes
    }

    const FORMATS: [ImageFormat; 5] =
        [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp];

    /// A picture of 16 × 8 pixels in `format`.
    fn small(format: ImageFormat) -> Vec<u8> {
        let picture = RgbImage::from_fn(16, 8, |x, y| Rgb([x as u8 * 16, y as u8 * 32, 77]));
        let mut bytes = Vec::new();
        picture.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<(Picture, Option<Mask>), ReadError> {
        read_picture_bytes(bytes, &ReadLimits::default(), "upload")
    }

    #[test]
    fn a_picture_is_read_as_rgb_between_0_and_1_whatever_its_extension() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("lies.jpg");
        std::fs::write(&path, small(ImageFormat::Png)).unwrap();
        let (picture, mask) = read_picture(&path).unwrap();
        assert_eq!((picture.width(), picture.height()), (16, 8));
        assert_eq!(picture.data()[3 * (16 * 2 + 5)..][..3], [80.0 / 255.0, 64.0 / 255.0, 77.0 / 255.0]);
        assert_eq!(mask, None);
    }

    #[test]
    fn the_mask_of_a_picture_is_one_minus_alpha() {
        let file = file_of(&png_of(&RgbaImage::from_fn(4, 1, |x, _| Rgba([9, 9, 9, x as u8 * 85])).into()));
        let (_, mask) = read_picture(file.path()).unwrap();
        assert_eq!(mask.unwrap().data(), [1.0, 1.0 - 85.0 / 255.0, 1.0 - 170.0 / 255.0, 0.0]);
    }

    #[test]
    fn the_mask_of_a_mask_file_is_its_red_channel() {
        let file = file_of(&png_of(&RgbImage::from_fn(2, 1, |x, _| Rgb([x as u8 * 255, 128, 3])).into()));
        assert_eq!(read_mask(file.path()).unwrap().data(), [0.0, 1.0]);
    }

    #[test]
    fn exif_orientation_turns_the_picture_upright() {
        // Orientation 6 (turn 90° clockwise) in an eXIf chunk: a 2×1 picture becomes 1×2.
        let exif = [&b"II*\0\x08\0\0\0"[..], b"\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"].concat();
        let mut bytes = Vec::new();
        let mut info = png::Info::with_size(2, 1);
        info.color_type = png::ColorType::Rgb;
        info.exif_metadata = Some(exif.into());
        let mut writer = png::Encoder::with_info(&mut bytes, info).unwrap().write_header().unwrap();
        writer.write_image_data(&[255, 0, 0, 0, 255, 0]).unwrap();
        writer.finish().unwrap();
        let (picture, _) = read_picture(file_of(&bytes).path()).unwrap();
        assert_eq!((picture.width(), picture.height()), (1, 2));
        assert_eq!(picture.data(), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn a_decompression_bomb_is_refused_by_its_header() {
        for (width, height) in [(100_000, 100_000), (16_384, 16_384), (17_000, 1), (u32::MAX >> 1, 1)] {
            let error = read_picture(file_of(&bomb(width, height)).path()).unwrap_err();
            assert!(matches!(error, ReadError::TooManyPixels { .. } | ReadError::Damaged { .. }), "{error}");
        }
        let error = read_picture(file_of(&bomb(100_000, 100_000)).path()).unwrap_err();
        assert!(error.to_string().contains("100000x100000 pixels"), "{error}");
    }

    #[test]
    fn an_empty_file_a_folder_a_text_and_a_missing_file_are_told_apart() {
        assert!(matches!(read_picture(file_of(b"").path()), Err(ReadError::Empty { .. })));
        assert!(matches!(read_picture(&std::env::temp_dir()), Err(ReadError::NotAFile { .. })));
        assert!(matches!(read_picture(file_of(b"hello").path()), Err(ReadError::UnknownFormat { .. })));
        assert!(matches!(read_picture(Path::new("/no/such/file.png")), Err(ReadError::Io { .. })));
    }

    #[test]
    fn a_truncated_png_is_called_damaged_at_every_length() {
        let whole = small(ImageFormat::Png);
        // The last 12 bytes are IEND, which carries no pixel.
        for length in 8..whole.len() - 12 {
            let error = read_picture(file_of(&whole[..length]).path());
            assert!(matches!(error, Err(ReadError::Damaged { .. })), "{length}: {error:?}");
        }
    }

    #[test]
    fn bytes_are_read_as_files_are_in_every_format() {
        for format in FORMATS {
            let bytes = small(format);
            assert_eq!(read(&bytes).unwrap(), read_picture(file_of(&bytes).path()).unwrap());
            let mask = read_mask_bytes(&bytes, &ReadLimits::default(), "mask").unwrap();
            assert_eq!((mask.width(), mask.height()), (16, 8), "{format:?}");
        }
    }

    #[test]
    fn limits_are_the_callers_and_errors_name_them_and_the_upload() {
        let bytes = small(ImageFormat::Png);
        let limits = ReadLimits::default();
        let refused = |limits| read_picture_bytes(&bytes, &limits, "init_image").unwrap_err().to_string();
        assert_eq!(
            refused(ReadLimits { bytes: 20, ..limits }),
            format!("init_image: the file has {} bytes; the limit is 20", bytes.len())
        );
        let message = refused(ReadLimits { pixels: 100, ..limits });
        assert!(message.starts_with("init_image: 16x8 pixels; the limit is 100 pixels"), "{message}");
        let message = refused(ReadLimits { side: 15, ..limits });
        assert!(message.contains("15 a side"), "{message}");
        assert!(read_picture_bytes(&bytes, &ReadLimits { pixels: 128, side: 16, ..limits }, "").is_ok());
    }

    #[test]
    fn a_header_that_promises_too_much_is_refused_in_every_format() {
        for format in FORMATS {
            let mut bytes = small(format);
            let at = match format {
                ImageFormat::Png => 16,
                ImageFormat::Gif => 6,
                ImageFormat::Bmp => 18,
                ImageFormat::Jpeg => bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap() + 5,
                _ => 21, // lossless WebP
            };
            let sizes: &[u8] = match format {
                ImageFormat::Png => &[0, 1, 0, 0, 0, 1, 0, 0],
                ImageFormat::Bmp => &[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0],
                ImageFormat::WebP => &[0x7f, 0x7f, 0x7f, 0x0f], // 14 bits each
                _ => &[0x7f; 4],
            };
            bytes[at..at + sizes.len()].copy_from_slice(sizes);
            let error = read(&bytes).unwrap_err();
            // A changed PNG header no longer has its checksum.
            let refused = matches!(error, ReadError::TooManyPixels { .. })
                || (format == ImageFormat::Png && matches!(error, ReadError::Damaged { .. }));
            assert!(refused, "{format:?}: {error}");
        }
    }

    #[test]
    fn an_animation_whose_colours_outgrow_their_frame_is_damaged_not_a_panic() {
        fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
            let mut bytes = [&kind[..], &(data.len() as u32).to_le_bytes(), data].concat();
            bytes.resize(bytes.len().next_multiple_of(2), 0);
            bytes
        }
        let rgb = vec![9; 64 * 64 * 3];
        let lossy = webp::Encoder::from_rgb(&rgb, 64, 64).encode(50.0);
        let mut frame = vec![0; 16];
        (frame[6], frame[9]) = (15, 7);
        frame.extend(chunk(b"ALPH", &[&[0][..], &[255; 16 * 8]].concat()));
        frame.extend(&lossy[12..]);
        let body = [
            chunk(b"VP8X", &[0x12, 0, 0, 0, 15, 0, 0, 7, 0, 0]),
            chunk(b"ANIM", &[0; 6]),
            chunk(b"ANMF", &frame),
        ]
        .concat();
        let bytes = [&b"RIFF"[..], &(body.len() as u32 + 4).to_le_bytes(), b"WEBP", &body].concat();
        let error = read(&bytes).unwrap_err();
        assert!(error.to_string().contains("different sizes"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            mut bytes in prop_oneof![
                4 => (0..FORMATS.len()).prop_map(|index| small(FORMATS[index])),
                1 => Just(webp::Encoder::from_rgb(&[77; 16 * 8 * 3], 16, 8).encode(50.0).to_vec()),
                1 => prop::collection::vec(any::<u8>(), 0..200),
            ],
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            length in any::<prop::sample::Index>(),
            cut in any::<bool>(),
        ) {
            if !bytes.is_empty() {
                for (index, value) in flips {
                    let at = index.index(bytes.len());
                    bytes[at] = value;
                }
                if cut {
                    bytes.truncate(length.index(bytes.len()));
                }
            }
            // Small, so that flipped dimensions do not make the test slow.
            let limits = ReadLimits { pixels: 1 << 16, ..ReadLimits::default() };
            let _ = read_picture_bytes(&bytes, &limits, "upload");
            let _ = read_mask_bytes(&bytes, &limits, "upload");
        }
    }
}
