//! Reads `--image` and `--mask` files. The file is not trusted: its size, its dimensions and the memory that
//! decoding takes are bounded before anything is decoded, and its extension is never looked at.
//!
//! The rules are those of ComfyUI's `LoadImage` and `LoadImageMask`: the first frame, turned upright by its EXIF
//! orientation, as 8-bit RGB; the mask of a picture is 1 − alpha; the mask of a mask file is its red channel.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use darkroom_pipelines::{Mask, Picture};
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

/// Longest side of an input picture, pixels.
pub const MAX_SIDE: u32 = 16_384;
/// Most pixels of an input picture: 64 megapixels.
pub const MAX_PIXELS: u64 = 1 << 26;
/// Largest input file, bytes.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Most that a decoder may allocate: `MAX_PIXELS` in 16-bit RGBA.
const MAX_DECODED_BYTES: u64 = MAX_PIXELS * 8;

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
    #[error("{file}: the file has {bytes} bytes; the limit is {MAX_FILE_BYTES}")]
    FileTooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: u64,
    },
    /// The content is no picture of a known format, whatever the extension says.
    #[error("{file}: not a picture that Darkroom reads (PNG, JPEG, WebP, GIF or BMP)")]
    UnknownFormat {
        /// The file.
        file: String,
    },
    /// The picture says it is larger than Darkroom decodes.
    #[error(
        "{file}: {width}x{height} pixels; the limit is {MAX_PIXELS} pixels and {MAX_SIDE} a side: scale it down first"
    )]
    TooManyPixels {
        /// The file.
        file: String,
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
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

/// Reads a picture; the mask is 1 − alpha, if it has an alpha channel.
pub fn read_picture(path: &Path) -> Result<(Picture, Option<Mask>), ReadError> {
    let decoded = decode(path)?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let mask = decoded.color().has_alpha().then(|| {
        let alpha = decoded.to_rgba8().into_raw();
        alpha.chunks_exact(4).map(|pixel| 1.0 - f32::from(pixel[3]) / 255.0).collect()
    });
    let data = decoded.into_rgb8().into_raw().into_iter().map(|value| f32::from(value) / 255.0).collect();
    let picture = Picture::new(width, height, data).ok_or_else(|| no_pixels(path))?;
    Ok((picture, mask.and_then(|mask| Mask::new(width, height, mask))))
}

/// Reads a mask file: white repaints, black keeps. Of a coloured file the red channel counts, as in ComfyUI's
/// `LoadImageMask` with `channel = red`.
pub fn read_mask(path: &Path) -> Result<Mask, ReadError> {
    let decoded = decode(path)?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let rgb = decoded.into_rgb8().into_raw();
    let data = rgb.chunks_exact(3).map(|pixel| f32::from(pixel[0]) / 255.0).collect();
    Mask::new(width, height, data).ok_or_else(|| no_pixels(path))
}

fn no_pixels(path: &Path) -> ReadError {
    ReadError::Damaged { file: path.display().to_string(), reason: "it has no pixels".into() }
}

fn decode(path: &Path) -> Result<DynamicImage, ReadError> {
    let file = path.display().to_string();
    let io = |source| ReadError::Io { file: file.clone(), source };
    let damaged = |e: image::ImageError| ReadError::Damaged { file: file.clone(), reason: e.to_string() };

    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(ReadError::NotAFile { file });
    }
    match metadata.len() {
        0 => return Err(ReadError::Empty { file }),
        bytes if bytes > MAX_FILE_BYTES => return Err(ReadError::FileTooLarge { file, bytes }),
        _ => {}
    }
    let opened = File::open(path).map_err(io)?;
    let mut reader = ImageReader::new(BufReader::new(opened)).with_guessed_format().map_err(io)?;
    if reader.format().is_none_or(|format| !format.reading_enabled()) {
        return Err(ReadError::UnknownFormat { file });
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(damaged)?;

    let (width, height) = decoder.dimensions();
    if width > MAX_SIDE || height > MAX_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(ReadError::TooManyPixels { file, width, height });
    }
    limits.reserve(decoder.total_bytes()).map_err(damaged)?;
    decoder.set_limits(limits).map_err(damaged)?;
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    decoded.apply_orientation(orientation);
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use image::{ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
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
        picture.write_to(&mut std::io::Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        bytes
    }

    fn small_png() -> Vec<u8> {
        png_of(&RgbImage::from_fn(16, 8, |x, y| Rgb([x as u8 * 16, y as u8 * 32, 77])).into())
    }

    /// A PNG whose header promises `width` × `height` pixels and whose data is a few bytes.
    fn bomb(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
        let mut chunk = |kind: &[u8; 4], data: &[u8]| {
            bytes.extend((data.len() as u32).to_be_bytes());
            let start = bytes.len();
            bytes.extend(kind);
            bytes.extend(data);
            bytes.extend(crc32(&bytes[start..]).to_be_bytes());
        };
        let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
        header.extend([8, 6, 0, 0, 0]);
        chunk(b"IHDR", &header);
        chunk(b"IDAT", &[0x78, 0x9c, 0x63, 0x00, 0x00, 0x00, 0x01, 0x00, 0x01]);
        chunk(b"IEND", &[]);
        bytes
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8)
                .fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 })
        })
    }

    #[test]
    fn a_picture_is_read_as_rgb_between_0_and_1_whatever_its_extension() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("lies.jpg");
        std::fs::write(&path, small_png()).unwrap();
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
        let whole = small_png();
        // The last 12 bytes are IEND, which carries no pixel.
        for length in 8..whole.len() - 12 {
            let error = read_picture(file_of(&whole[..length]).path());
            assert!(matches!(error, Err(ReadError::Damaged { .. })), "{length}: {error:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            mut bytes in prop_oneof![Just(small_png()), prop::collection::vec(any::<u8>(), 0..200)],
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            if !bytes.is_empty() {
                for (index, value) in flips {
                    let at = index.index(bytes.len());
                    bytes[at] = value;
                }
            }
            let _ = read_picture(file_of(&bytes).path());
        }
    }
}
