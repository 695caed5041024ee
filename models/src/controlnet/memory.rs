//! How much memory a ControlNet's passes take, by walking its config. As with the UNet, activations are counted,
//! kernels' scratch is not.

use super::config::CELL;
use super::{ControlNet, ControlNetConfig};
use crate::unet::encoder_elements;

impl ControlNet {
    /// Most bytes of activations alive at once in [`ControlNet::forward`] for `rows` latents of
    /// `height × width` cells with `tokens` of context each, its embedded hint and its residuals included.
    pub fn forward_bytes(&self, rows: usize, height: usize, width: usize, tokens: usize) -> usize {
        let config = &self.config().unet;
        let encoded = encoder_elements(config, height, width, tokens);
        let hint = cells(height, width) * channels(config.block_out_channels.first());
        // Residuals replace features one by one, so that both exist of one only.
        self.bytes(rows, hint + encoded.peak.max(encoded.features + encoded.largest))
    }

    /// Bytes of the residuals that [`ControlNet::forward`] gives: what is held beside the UNet's own pass.
    pub fn residual_bytes(&self, rows: usize, height: usize, width: usize) -> usize {
        self.bytes(rows, encoder_elements(&self.config().unet, height, width, 0).features)
    }

    /// Most bytes of activations alive at once in [`ControlNet::embed_hint`] for one hint of a latent of
    /// `height × width` cells, the hint included.
    pub fn hint_bytes(&self, height: usize, width: usize) -> usize {
        self.bytes(1, hint_elements(self.config(), height, width))
    }

    fn bytes(&self, rows: usize, elements: u128) -> usize {
        bytes(self.activations().size_in_bytes(), rows, elements)
    }
}

fn hint_elements(config: &ControlNetConfig, height: usize, width: usize) -> u128 {
    let levels = &config.conditioning_embedding_out_channels;
    let mut positions = cells(height, width) * (CELL * CELL) as u128;
    // The picture, and its channels-last copy until the first convolution read it.
    let picture = positions * config.conditioning_channels as u128;
    let mut peak = picture + positions * channels(levels.first());
    for pair in levels.windows(2) {
        let &[inputs, outputs] = pair else { continue };
        // A convolution or activation at this resolution, then the one that halves it.
        peak = peak.max(positions * 2 * inputs as u128);
        positions /= 4;
        peak = peak.max(positions * (4 * inputs + outputs).max(2 * outputs) as u128);
    }
    peak = peak.max(positions * (channels(levels.last()) + channels(config.unet.block_out_channels.first())));
    picture + peak
}

fn cells(height: usize, width: usize) -> u128 {
    let side = |side: usize| u128::from(u32::try_from(side).unwrap_or(u32::MAX));
    side(height) * side(width)
}

fn channels(level: Option<&usize>) -> u128 {
    level.copied().unwrap_or(0) as u128
}

fn bytes(element: usize, rows: usize, elements: u128) -> usize {
    let row = usize::try_from(elements).unwrap_or(usize::MAX);
    rows.saturating_mul(row).saturating_mul(element)
}
