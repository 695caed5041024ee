//! Checks how a WebP file is laid out before a decoder sees it. Its decoder takes a chunk's own word for how long
//! the chunk is and for how large the picture in it is, and allocates that much before it compares either with the
//! file and the canvas; a frame whose transparency is smaller than its colours makes it fail worse than that.
//!
//! The format: [RFC 9649](https://www.rfc-editor.org/rfc/rfc9649).

/// Bytes before the first chunk: `RIFF`, a length, `WEBP`.
const FILE_HEADER: usize = 12;
/// Bytes of a frame (`ANMF`) before its own chunks.
const FRAME_HEADER: usize = 16;

/// What is wrong with a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LayoutError {
    #[error("a chunk of the WebP file is cut short")]
    Cut,
    #[error("the WebP file holds pictures of different sizes")]
    Sizes,
}

/// A picture's width and height.
type Size = (u32, u32);

/// Whether every chunk lies within the file and every picture in it has the size that the canvas or its frame
/// says, frames lying within the canvas.
pub(super) fn check(file: &[u8]) -> Result<(), LayoutError> {
    let mut canvas = None;
    for chunk in chunks(file.get(FILE_HEADER..).unwrap_or_default()) {
        let Chunk { kind, data } = chunk?;
        match kind {
            b"VP8X" => canvas = Some((u24(data, 4)? + 1, u24(data, 7)? + 1)),
            b"ANMF" => {
                let frame = (u24(data, 6)? + 1, u24(data, 9)? + 1);
                if canvas.is_some_and(|canvas| frame.0 > canvas.0 || frame.1 > canvas.1) {
                    return Err(LayoutError::Sizes);
                }
                check_frame(data.get(FRAME_HEADER..).ok_or(LayoutError::Cut)?, frame)?;
            }
            _ => check_picture(kind, data, canvas)?,
        }
    }
    Ok(())
}

fn check_frame(data: &[u8], size: Size) -> Result<(), LayoutError> {
    let mut follows_alpha = false;
    for chunk in chunks(data) {
        let Chunk { kind, data } = chunk?;
        // What follows transparency is decoded as colours whatever it is called.
        let kind = if follows_alpha { b"VP8 " } else { kind };
        check_picture(kind, data, Some(size))?;
        follows_alpha = kind == b"ALPH";
    }
    Ok(())
}

fn check_picture(kind: &[u8; 4], data: &[u8], expected: Option<Size>) -> Result<(), LayoutError> {
    let size = match kind {
        // A tag of three bytes and a start code of three.
        b"VP8 " => (u16(data, 6)? & 0x3fff, u16(data, 8)? & 0x3fff),
        // A signature, then 14 bits each.
        b"VP8L" => {
            let low = u16(data, 1)? | u16(data, 3)? << 16;
            ((low & 0x3fff) + 1, (low >> 14 & 0x3fff) + 1)
        }
        _ => return Ok(()),
    };
    if expected.is_none_or(|expected| expected == size) { Ok(()) } else { Err(LayoutError::Sizes) }
}

struct Chunk<'a> {
    kind: &'a [u8; 4],
    data: &'a [u8],
}

/// The chunks of `bytes`, each padded to an even length; ends after the first that is cut short.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = Result<Chunk<'_>, LayoutError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        // Fewer bytes than a chunk's header are no chunk: decoders pass over them as well.
        let (header, data) = rest.split_at_checked(8)?;
        let (kind, length) = header.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length.first_chunk()?) as usize;
        let Some((data, after)) = data.split_at_checked(length) else {
            rest = &[];
            return Some(Err(LayoutError::Cut));
        };
        rest = after.get(length % 2..).unwrap_or_default();
        Some(Ok(Chunk { kind, data }))
    })
}

fn u16(data: &[u8], at: usize) -> Result<u32, LayoutError> {
    let bytes = data.get(at..).and_then(|rest| rest.first_chunk::<2>()).ok_or(LayoutError::Cut)?;
    Ok(u32::from(u16::from_le_bytes(*bytes)))
}

fn u24(data: &[u8], at: usize) -> Result<u32, LayoutError> {
    let bytes = data.get(at..).and_then(|rest| rest.first_chunk::<3>()).ok_or(LayoutError::Cut)?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let mut bytes = [&kind[..], &(data.len() as u32).to_le_bytes(), data].concat();
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        let body = chunks.concat();
        [&b"RIFF"[..], &(body.len() as u32 + 4).to_le_bytes(), b"WEBP", &body].concat()
    }

    /// The start of a lossy picture.
    fn colours(width: u16, height: u16) -> Vec<u8> {
        [&[0x10, 0, 0, 0x9d, 1, 0x2a][..], &width.to_le_bytes(), &height.to_le_bytes()].concat()
    }

    fn canvas(width: u8, height: u8) -> Vec<u8> {
        chunk(b"VP8X", &[0, 0, 0, 0, width - 1, 0, 0, height - 1, 0, 0])
    }

    fn frame(width: u8, height: u8, chunks: &[Vec<u8>]) -> Vec<u8> {
        let mut data = vec![0; FRAME_HEADER];
        (data[6], data[9]) = (width - 1, height - 1);
        chunk(b"ANMF", &[data, chunks.concat()].concat())
    }

    #[test]
    fn real_files_pass() {
        let rgb = [77; 20 * 10 * 3];
        let encoder = webp::Encoder::from_rgb(&rgb, 20, 10);
        for bytes in [encoder.encode(80.0), encoder.encode_lossless()] {
            assert_eq!(check(&bytes), Ok(()));
        }
        let transparent = [77; 20 * 10 * 4];
        assert_eq!(check(&webp::Encoder::from_rgba(&transparent, 20, 10).encode(80.0)), Ok(()));
    }

    #[test]
    fn a_picture_larger_than_its_canvas_is_refused() {
        let lossy = |width, height| chunk(b"VP8 ", &colours(width, height));
        assert_eq!(check(&file(&[canvas(16, 8), lossy(16, 8)])), Ok(()));
        assert_eq!(check(&file(&[canvas(16, 8), lossy(16_383, 16_383)])), Err(LayoutError::Sizes));
        let lossless = |width: u32, height: u32| {
            let sizes = (width - 1) | (height - 1) << 14;
            chunk(b"VP8L", &[&[0x2f][..], &sizes.to_le_bytes()].concat())
        };
        assert_eq!(check(&file(&[canvas(16, 8), lossless(16, 8)])), Ok(()));
        assert_eq!(check(&file(&[canvas(16, 8), lossless(8, 16)])), Err(LayoutError::Sizes));
    }

    #[test]
    fn a_frame_whose_colours_have_another_size_is_refused_whatever_they_are_called() {
        for kind in [b"VP8 ", b"ABCD"] {
            let chunks = |width| [chunk(b"ALPH", &[0; 3]), chunk(kind, &colours(width, 8))];
            assert_eq!(check(&file(&[canvas(16, 8), frame(16, 8, &chunks(16))])), Ok(()));
            let larger = file(&[canvas(16, 8), frame(16, 8, &chunks(64))]);
            assert_eq!(check(&larger), Err(LayoutError::Sizes));
        }
        let outside = file(&[canvas(16, 8), frame(17, 8, &[])]);
        assert_eq!(check(&outside), Err(LayoutError::Sizes));
    }

    #[test]
    fn a_chunk_that_promises_more_than_the_file_has_is_refused() {
        let mut bytes = file(&[canvas(16, 8), chunk(b"EXIF", b"abcd")]);
        let length = bytes.len() - 8;
        bytes[length..length + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(check(&bytes), Err(LayoutError::Cut));
        assert_eq!(check(&file(&[canvas(16, 8), chunk(b"ANMF", &[0; 8])])), Err(LayoutError::Cut));
    }
}
