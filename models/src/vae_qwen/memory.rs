//! How much memory the autoencoder's activations take, and from which size on it must work in tiles.

use candle_core::DType;

use super::{AutoencoderKlQwenImage, QwenVaeConfig};
use crate::vae::Tiling;
use crate::vae::memory::{resnet, tiling};

/// The tile and overlap that ComfyUI falls back to for autoencoders of video, in latent cells.
const DEFAULT: [usize; 2] = [32, 8];

impl AutoencoderKlQwenImage {
    /// Most bytes of activations alive at once while one latent of `height × width` cells is decoded in one piece. A
    /// batch takes as many times more.
    pub fn decode_bytes(&self, height: usize, width: usize) -> usize {
        decode_elements(self.config(), height.saturating_mul(width))
            .saturating_mul(self.activations().size_in_bytes())
    }

    /// The same for encoding a picture whose latent has `height × width` cells.
    pub fn encode_bytes(&self, height: usize, width: usize) -> usize {
        encode_elements(self.config(), height.saturating_mul(width))
            .saturating_mul(self.activations().size_in_bytes())
    }

    /// How to decode a latent of `height × width` cells within `budget` bytes: whole if it fits, else in ComfyUI's
    /// tiles, else in the largest of their halves that fits (or the smallest one, if none does).
    pub fn decode_tiling(&self, height: usize, width: usize, budget: usize) -> Tiling {
        tiling(|h, w| self.decode_bytes(h, w), [height, width], DEFAULT, budget)
    }

    /// The same for encoding.
    pub fn encode_tiling(&self, height: usize, width: usize, budget: usize) -> Tiling {
        tiling(|h, w| self.encode_bytes(h, w), [height, width], DEFAULT, budget)
    }
}

impl QwenVaeConfig {
    /// [`AutoencoderKlQwenImage::decode_bytes`] of a network that is not loaded yet, whose activations would be of
    /// `activations`.
    pub fn decode_bytes(&self, activations: DType, height: usize, width: usize) -> usize {
        decode_elements(self, height.saturating_mul(width)).saturating_mul(activations.size_in_bytes())
    }
}

/// Mid-block attention at its worst: input, what queries, keys and values are cut from, and the three.
const ATTENTION: usize = 7;

fn decode_elements(config: &QwenVaeConfig, cells: usize) -> usize {
    let widths = config.widths();
    let mut positions = cells;
    let mut inputs = widths.last().copied().unwrap_or(0);
    let mut peak = positions.saturating_mul(ATTENTION * inputs);
    for (i, &width) in widths.iter().rev().enumerate() {
        peak = peak.max(positions.saturating_mul(resnet(inputs, width).max(resnet(width, width))));
        inputs = width;
        if i + 1 < widths.len() {
            // The level's output, the doubled picture and the half as wide one that the convolution makes of it.
            peak = peak.max(positions.saturating_mul(width + 4 * width + 2 * width));
            positions = positions.saturating_mul(4);
            inputs = width / 2;
        }
    }
    peak.max(positions.saturating_mul(inputs + 2 * QwenVaeConfig::PICTURE_CHANNELS))
}

fn encode_elements(config: &QwenVaeConfig, cells: usize) -> usize {
    let mut positions = cells.saturating_mul(config.downscale().pow(2));
    let mut inputs = config.base_dim;
    let mut peak = positions.saturating_mul(2 * QwenVaeConfig::PICTURE_CHANNELS + inputs);
    for width in config.widths() {
        peak = peak.max(positions.saturating_mul(resnet(inputs, width).max(resnet(width, width))));
        inputs = width;
        positions /= 4;
    }
    peak.max(cells.saturating_mul(ATTENTION * inputs))
}
