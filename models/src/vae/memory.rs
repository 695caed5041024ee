//! How much memory the autoencoder's activations take, and from which size on it must work in tiles.

use super::{AutoencoderKl, VaeConfig};

/// ComfyUI's tile and overlap, in latent cells.
const DEFAULT: [usize; 2] = [64, 16];
/// Below this, overlaps are most of the work and seams begin to show.
const SMALLEST_TILE: usize = 16;

/// How to decode or encode a picture of some size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiling {
    /// In one piece.
    Whole,
    /// In overlapping tiles.
    Tiles {
        /// Side of a tile, in latent cells.
        tile: usize,
        /// Cells shared by neighbours.
        overlap: usize,
    },
}

impl AutoencoderKl {
    /// Most bytes of activations alive at once while one latent of `height × width` cells is decoded in one
    /// piece. A batch takes as many times more.
    pub fn decode_bytes(&self, height: usize, width: usize) -> usize {
        decode_elements(self.config(), height.saturating_mul(width))
            .saturating_mul(self.activations().size_in_bytes())
    }

    /// The same for encoding a picture whose latent has `height × width` cells.
    pub fn encode_bytes(&self, height: usize, width: usize) -> usize {
        encode_elements(self.config(), height.saturating_mul(width))
            .saturating_mul(self.activations().size_in_bytes())
    }

    /// How to decode a latent of `height × width` cells within `budget` bytes: whole if it fits, else in
    /// ComfyUI's tiles, else in the largest of their halves that fits (or the smallest one, if none does).
    pub fn decode_tiling(&self, height: usize, width: usize, budget: usize) -> Tiling {
        tiling(|h, w| self.decode_bytes(h, w), [height, width], DEFAULT, budget)
    }

    /// The same for encoding.
    pub fn encode_tiling(&self, height: usize, width: usize, budget: usize) -> Tiling {
        tiling(|h, w| self.encode_bytes(h, w), [height, width], DEFAULT, budget)
    }
}

/// How to work on `height × width` cells within `budget`: whole, or in tiles of `[tile, overlap]` cells or of halves of
/// them, of which each takes `bytes`.
pub(crate) fn tiling(
    bytes: impl Fn(usize, usize) -> usize,
    [height, width]: [usize; 2],
    [mut tile, mut overlap]: [usize; 2],
    budget: usize,
) -> Tiling {
    if bytes(height, width) <= budget {
        return Tiling::Whole;
    }
    while tile > SMALLEST_TILE && bytes(tile, tile) > budget {
        (tile, overlap) = (tile / 2, overlap / 2);
    }
    Tiling::Tiles { tile, overlap }
}

/// A residual block at its worst: input, normed input and first convolution; or input, normed middle and
/// second convolution; or both branches and their sum.
pub(crate) fn resnet(inputs: usize, outputs: usize) -> usize {
    (2 * inputs + outputs).max(inputs + 2 * outputs).max(3 * outputs)
}

/// Mid-block attention at its worst: input, normed input, queries, keys, values and what was seen.
const ATTENTION: usize = 6;

fn decode_elements(config: &VaeConfig, cells: usize) -> usize {
    let mut peak = 0;
    let mut positions = cells;
    let levels = config.block_out_channels.len();
    let mut inputs = config.block_out_channels.last().copied().unwrap_or(0);
    peak = peak.max(positions.saturating_mul(ATTENTION * inputs));
    for (i, &width) in config.block_out_channels.iter().rev().enumerate() {
        peak = peak.max(positions.saturating_mul(resnet(inputs, width).max(resnet(width, width))));
        if i + 1 < levels {
            // The level's output, the doubled picture and what the convolution makes of it.
            peak = peak.max(positions.saturating_mul(width + 4 * width + 4 * width));
            positions = positions.saturating_mul(4);
        }
        inputs = width;
    }
    peak.max(positions.saturating_mul(inputs + 2 * config.out_channels))
}

fn encode_elements(config: &VaeConfig, cells: usize) -> usize {
    let mut positions = cells.saturating_mul(config.downscale().pow(2));
    let mut inputs = config.block_out_channels.first().copied().unwrap_or(0);
    let mut peak = positions.saturating_mul(2 * config.in_channels + inputs);
    for &width in &config.block_out_channels {
        peak = peak.max(positions.saturating_mul(resnet(inputs, width).max(resnet(width, width))));
        inputs = width;
        positions /= 4;
    }
    peak.max(cells.saturating_mul(ATTENTION * inputs))
}
