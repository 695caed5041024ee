//! Pictures outside the networks: read from files, converted to bytes, written with the recipe that made them.
//! Nothing here knows a tensor; [`crate::cli`] hands these buffers to `darkroom-pipelines` and back.

mod png_file;
mod read;
mod recipe;
mod scale;

pub use png_file::{TextChunk, WriteError, encode_png, read_text_chunks, save_numbered, save_whole};
pub use read::{MAX_PIXELS, MAX_SIDE, ReadError, read_mask, read_picture};
pub use recipe::{Origin, Recipe};
pub use scale::{cover, cover_mask};

/// An RGB picture, `[height, width, 3]`, each value 0..1.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` values, red first, row by row from the top.
    pub data: Vec<f32>,
}

/// A mask, `[height, width]`: 1 repaints, 0 keeps, values between blend.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width` values, row by row from the top.
    pub data: Vec<f32>,
}

impl Picture {
    /// The picture in 8 bits a channel by ComfyUI's rule: `trunc(clip(255 x, 0, 255))`, no rounding.
    pub fn to_rgb8(&self) -> Vec<u8> {
        // A float-to-integer cast truncates and saturates, which is this rule.
        self.data.iter().map(|&x| (255.0 * x) as u8).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_are_truncated_and_clipped_never_rounded() {
        let data = vec![-0.5, 0.0, 0.999_99, 1.0, 1.7, 254.99 / 255.0];
        let picture = Picture { width: 2, height: 1, data };
        assert_eq!(picture.to_rgb8(), [0, 0, 254, 255, 255, 254]);
    }
}
