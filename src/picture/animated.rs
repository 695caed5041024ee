//! Animations, as ComfyUI's `SaveAnimatedWEBP` and `SaveAnimatedPNG` write them. The WebP container is put together
//! here ([RFC 9649](https://www.rfc-editor.org/rfc/rfc9649)) around the frames that libwebp encodes.

use super::EncodeError;
use super::exif;

/// Longest side of a WebP, pixels.
const WEBP_SIDE: usize = 16_383;
/// Longest time that a frame can be shown, milliseconds: 24 bits in WebP, 16 in PNG.
const WEBP_LONGEST: u32 = (1 << 24) - 1;
const PNG_LONGEST: u32 = u16::MAX as u32;

/// Flags of a WebP's `VP8X`.
const ALPHA: u8 = 0x10;
const EXIF: u8 = 0x08;
const ANIMATION: u8 = 0x02;
/// Flag of a frame: it replaces what was there.
const REPLACE: u8 = 0x02;

/// Frames of one size, 8 bits a value.
#[derive(Debug, Clone, Copy)]
pub struct Animation<'a> {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Whether pixels are RGBA, not RGB.
    pub alpha: bool,
    /// `[height, width, 3 or 4]` each.
    pub frames: &'a [Vec<u8>],
    /// How long each is shown, milliseconds.
    pub duration: u32,
}

/// How a WebP is compressed.
#[derive(Debug, Clone, Copy)]
pub struct WebpEffort {
    /// To the same values.
    pub lossless: bool,
    /// 0 to 100; of a lossless one, how hard libwebp tries.
    pub quality: u8,
    /// 0 (fast) to 6 (small).
    pub method: u8,
}

impl Animation<'_> {
    fn check(&self, most: usize, mime: &'static str) -> Result<(u32, u32), EncodeError> {
        let Self { width, height, .. } = *self;
        let size = width.checked_mul(height).and_then(|area| area.checked_mul(self.channels()));
        for frame in self.frames {
            if size != Some(frame.len()) || frame.is_empty() {
                return Err(EncodeError::Buffer { width, height, bytes: frame.len() });
            }
        }
        if self.frames.is_empty() {
            return Err(EncodeError::Buffer { width, height, bytes: 0 });
        }
        let side = |length: usize| u32::try_from(length).ok().filter(|_| length <= most);
        match (side(width), side(height)) {
            (Some(width), Some(height)) => Ok((width, height)),
            _ => Err(EncodeError::Side { width, height, mime, most }),
        }
    }

    fn channels(&self) -> usize {
        if self.alpha { 4 } else { 3 }
    }

    /// A WebP that plays again and again; of one frame, a still. `texts` are EXIF tags with their texts.
    ///
    /// # Errors
    /// No frames, frames of another size, sides beyond 16383 pixels, and what libwebp refuses.
    pub fn webp(&self, effort: WebpEffort, texts: &[(u16, String)]) -> Result<Vec<u8>, EncodeError> {
        let (width, height) = self.check(WEBP_SIDE, "image/webp")?;
        let invalid =
            |()| EncodeError::LossyWebp(webp::WebPEncodingError::VP8_ENC_ERROR_INVALID_CONFIGURATION);
        let mut config = webp::WebPConfig::new().map_err(invalid)?;
        config.lossless = i32::from(effort.lossless);
        config.quality = f32::from(effort.quality.min(100));
        config.method = i32::from(effort.method.min(6));
        let exif = exif::of_texts(texts);
        let is_animated = self.frames.len() > 1;
        let size = [&u24(width - 1)[..], &u24(height - 1)].concat();
        let mut body = Vec::new();
        let mut flags = if is_animated { ANIMATION } else { 0 };
        for frame in self.frames {
            let encoder = if self.alpha {
                webp::Encoder::from_rgba(frame, width, height)
            } else {
                webp::Encoder::from_rgb(frame, width, height)
            };
            let encoded = encoder.encode_advanced(&config).map_err(EncodeError::LossyWebp)?;
            let (chunks, has_alpha) = picture_chunks(&encoded);
            if has_alpha {
                flags |= ALPHA;
            }
            if is_animated {
                let duration = u24(self.duration.min(WEBP_LONGEST));
                let data = [&[0; 6][..], &size, &duration, &[REPLACE], &chunks].concat();
                chunk(&mut body, b"ANMF", &data);
            } else {
                body.extend(chunks);
            }
        }
        let mut file = Vec::with_capacity(body.len() + 64);
        if exif.is_some() {
            flags |= EXIF;
        }
        chunk(&mut file, b"VP8X", &[&[flags, 0, 0, 0][..], &size].concat());
        if is_animated {
            // A transparent background, and no end.
            chunk(&mut file, b"ANIM", &[0; 6]);
        }
        file.extend(body);
        if let Some(exif) = exif {
            chunk(&mut file, b"EXIF", &exif);
        }
        let length = u32::try_from(file.len() + 4)
            .map_err(|_| EncodeError::LossyWebp(webp::WebPEncodingError::VP8_ENC_ERROR_FILE_TOO_BIG))?;
        Ok([&b"RIFF"[..], &length.to_le_bytes(), b"WEBP", &file].concat())
    }

    /// A PNG that plays again and again; of one frame, a still. `level` 0 to 9 is zlib's. `texts` go into ComfyUI's
    /// own chunk behind the pixels.
    ///
    /// # Errors
    /// No frames, frames of another size, and what the encoder refuses.
    pub fn png(&self, level: u8, texts: &[(String, String)]) -> Result<Vec<u8>, EncodeError> {
        let (width, height) = self.check(u32::MAX as usize, "image/png")?;
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(if self.alpha { png::ColorType::Rgba } else { png::ColorType::Rgb });
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_deflate_compression(match level {
            0 => png::DeflateCompression::NoCompression,
            level => png::DeflateCompression::Level(level.min(9)),
        });
        if self.frames.len() > 1 {
            // Checked to be at least two, and no more than fit into memory.
            encoder.set_animated(u32::try_from(self.frames.len()).unwrap_or(u32::MAX), 0)?;
            encoder.set_frame_delay(self.duration.min(PNG_LONGEST) as u16, 1000)?;
        }
        let mut writer = encoder.write_header()?;
        for frame in self.frames {
            writer.write_image_data(frame)?;
        }
        for (keyword, text) in texts {
            let data = [keyword.as_bytes(), b"\0", text.as_bytes()].concat();
            writer.write_chunk(png::chunk::ChunkType(*b"comf"), &data)?;
        }
        writer.finish()?;
        Ok(bytes)
    }
}

/// Those chunks of a still that are its picture, and whether it has transparency.
fn picture_chunks(still: &[u8]) -> (Vec<u8>, bool) {
    let mut chunks = Vec::with_capacity(still.len());
    let mut has_alpha = false;
    let mut rest = still.get(12..).unwrap_or_default();
    while let Some((head, data)) = rest.split_at_checked(8) {
        let length = head[4..].iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let Some((data, after)) = data.split_at_checked(length.next_multiple_of(2)) else { break };
        match &head[..4] {
            b"ALPH" => has_alpha = true,
            // A bit behind the signature and twice 14 bits of size.
            b"VP8L" => has_alpha |= data.get(4).is_some_and(|byte| byte & 0x10 != 0),
            b"VP8 " => {}
            _ => {
                rest = after;
                continue;
            }
        }
        chunks.extend(head);
        chunks.extend(data);
        rest = after;
    }
    (chunks, has_alpha)
}

fn u24(number: u32) -> [u8; 3] {
    let [low, middle, high, _] = number.to_le_bytes();
    [low, middle, high]
}

fn chunk(file: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    file.extend(kind);
    file.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
    file.extend(data);
    if data.len() % 2 == 1 {
        file.push(0);
    }
}

#[cfg(test)]
mod tests {
    use image::{ImageDecoder, ImageReader};

    use super::super::{ReadLimits, read_frames};
    use super::*;

    const FRAMES: usize = 3;

    fn frames(channels: usize) -> Vec<Vec<u8>> {
        let value = |frame: usize, at: usize| (frame * 80 + at * 7 % 50) as u8;
        (0..FRAMES).map(|frame| (0..8 * 4 * channels).map(|at| value(frame, at)).collect()).collect()
    }

    fn animation(frames: &[Vec<u8>], alpha: bool) -> Animation<'_> {
        Animation { width: 8, height: 4, alpha, frames, duration: 166 }
    }

    fn rgb_of(bytes: &[u8]) -> (usize, Vec<u8>) {
        let read = read_frames(bytes, &ReadLimits::default(), "a").unwrap();
        assert_eq!((read.width, read.height), (8, 4));
        (read.count, read.rgb.iter().map(|value| (value * 255.0).round() as u8).collect())
    }

    const LOSSLESS: WebpEffort = WebpEffort { lossless: true, quality: 80, method: 4 };

    #[test]
    fn lossless_frames_come_back_as_they_were() {
        let frames = frames(3);
        let texts = [(0x010f, "workflow:{}".to_owned()), (0x0110, "prompt:{}".to_owned())];
        let webp = animation(&frames, false).webp(LOSSLESS, &texts).unwrap();
        assert_eq!(rgb_of(&webp), (FRAMES, frames.concat()));
        let reader = ImageReader::new(std::io::Cursor::new(&webp)).with_guessed_format().unwrap();
        let exif = reader.into_decoder().unwrap().exif_metadata().unwrap().unwrap();
        let has = |text: &[u8]| exif.windows(text.len()).any(|window| window == text);
        assert!(has(b"prompt:{}\0") && has(b"workflow:{}\0"));
        let png = animation(&frames, false).png(4, &[("prompt".into(), "{}".into())]).unwrap();
        assert_eq!(rgb_of(&png), (FRAMES, frames.concat()));
        let at = |text: &[u8]| png.windows(text.len()).position(|window| window == text).unwrap();
        assert!(at(b"comfprompt\0{}") > at(b"fdAT"));
        for level in [0, 9] {
            let png = animation(&frames, false).png(level, &[]).unwrap();
            assert_eq!(rgb_of(&png), (FRAMES, frames.concat()), "{level}");
        }
    }

    #[test]
    fn a_single_frame_is_a_still() {
        let frames = &frames(3)[..1];
        let webp = animation(frames, false).webp(LOSSLESS, &[]).unwrap();
        assert_eq!(rgb_of(&webp), (1, frames.concat()));
        assert!(!webp.windows(4).any(|window| window == b"ANIM"));
        let png = animation(frames, false).png(4, &[]).unwrap();
        assert_eq!(rgb_of(&png), (1, frames.concat()));
        assert!(!png.windows(4).any(|window| window == b"acTL"));
    }

    #[test]
    fn transparency_is_kept_in_both_kinds_of_webp() {
        let mut frames = frames(4);
        for frame in &mut frames {
            frame.chunks_exact_mut(4).for_each(|pixel| pixel[3] = if pixel[0] % 2 == 0 { 0 } else { 255 });
        }
        for effort in [LOSSLESS, WebpEffort { lossless: false, ..LOSSLESS }] {
            let webp = animation(&frames, true).webp(effort, &[]).unwrap();
            let read = read_frames(&webp, &ReadLimits::default(), "a").unwrap();
            let expected: Vec<f32> =
                frames.concat().chunks_exact(4).map(|p| f32::from(p[3]) / 255.0).collect();
            assert_eq!(read.alpha, Some(expected));
        }
        let png = animation(&frames, true).png(1, &[]).unwrap();
        assert!(read_frames(&png, &ReadLimits::default(), "a").unwrap().alpha.is_some());
    }

    #[test]
    fn the_time_of_each_frame_is_said() {
        let frames = frames(3);
        let webp = animation(&frames, false).webp(LOSSLESS, &[]).unwrap();
        let at = webp.windows(4).position(|window| window == b"ANMF").unwrap();
        assert_eq!(webp[at + 8 + 12..at + 8 + 15], [166, 0, 0]);
        let png = animation(&frames, false).png(4, &[]).unwrap();
        let at = png.windows(4).position(|window| window == b"fcTL").unwrap();
        assert_eq!(png[at + 4 + 20..at + 4 + 24], [0, 166, 3, 232]);
    }

    #[test]
    fn frames_that_do_not_fit_are_refused() {
        let frames = vec![vec![0; 8 * 4 * 3], vec![0; 5]];
        assert!(animation(&frames, false).webp(LOSSLESS, &[]).is_err());
        assert!(animation(&frames, false).png(4, &[]).is_err());
        assert!(animation(&[], false).png(4, &[]).is_err());
        let long = [vec![0; 16_384 * 3]];
        let long = Animation { width: 16_384, height: 1, alpha: false, frames: &long, duration: 1 };
        assert!(matches!(long.webp(LOSSLESS, &[]), Err(EncodeError::Side { .. })));
    }
}
