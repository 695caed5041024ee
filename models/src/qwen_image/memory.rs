//! How much memory a forward pass of the denoiser takes.
//!
//! Counted are activations, which grow with the picture and the batch. The kernels' packed panels and scratch do not:
//! each thread keeps a few megabytes of them between calls. Streamed blocks' weights are not counted either.

use candle_core::DType;

use super::{QwenImageConfig, QwenImageTransformer2DModel};

use super::block::FEED_FORWARD_FACTOR;
use super::pack::grid;

/// Bytes of a number of `f32`: latents, and angles.
const F32: u128 = 4;
/// In attention, for each token: itself, normalised, queries, keys, and values, joined out of those of both streams.
const ATTENTION: u128 = 1 + 1 + 1 + 1 + 2;

impl QwenImageTransformer2DModel {
    /// Most bytes of activations alive at once in a forward pass of `rows` latents of `height × width` cells with
    /// `tokens` of context each, and no references.
    ///
    /// Qwen-Image's in `bf16` at 1328 × 1328 (166 × 166 cells) with 200 tokens takes 0.39 GB a row. The peak is the
    /// picture's feed-forward part: four times as wide, before its activation and after it.
    pub fn forward_bytes(&self, rows: usize, height: usize, width: usize, tokens: usize) -> usize {
        self.forward_bytes_with(rows, (height, width), &[], tokens)
    }

    /// The same with references of these heights and widths.
    pub fn forward_bytes_with(
        &self,
        rows: usize,
        latent: (usize, usize),
        references: &[(usize, usize)],
        tokens: usize,
    ) -> usize {
        bytes(self.config(), self.activations().size_in_bytes(), rows, latent, references, tokens)
    }
}

impl QwenImageConfig {
    /// The same of a network that is not loaded yet, whose activations would be of `activations`.
    pub fn forward_bytes(
        &self,
        activations: DType,
        rows: usize,
        latent: (usize, usize),
        tokens: usize,
    ) -> usize {
        bytes(self, activations.size_in_bytes(), rows, latent, &[], tokens)
    }
}

fn bytes(
    config: &QwenImageConfig,
    element: usize,
    rows: usize,
    latent: (usize, usize),
    references: &[(usize, usize)],
    tokens: usize,
) -> usize {
    let positions = |(height, width)| {
        let (rows, columns) = grid(height, width, config.patch_size.max(1));
        (rows as u128).saturating_mul(columns as u128)
    };
    let pictures =
        references.iter().fold(positions(latent), |sum, &reference| sum.saturating_add(positions(reference)));
    let tokens = tokens as u128;
    let all = pictures.saturating_add(tokens);
    let (inner, context) = (config.inner_dim() as u128, config.joint_attention_dim as u128);
    // Itself beside the wide numbers before the activation and after it, of the longer stream.
    let feed_forward =
        all.saturating_add((2 * FEED_FORWARD_FACTOR as u128).saturating_mul(pictures.max(tokens)));
    let block = inner.saturating_mul(feed_forward.max(all.saturating_mul(ATTENTION)));
    // Normalised context beside itself while it enters.
    let enter = all.saturating_mul(inner).saturating_add(tokens.saturating_mul(2 * context));
    let row = block.max(enter).saturating_mul(element as u128);
    // Latents as tokens, twice while they are made, and one table of angles for all rows.
    let packed = pictures.saturating_mul(2 * config.in_channels as u128 * F32);
    let table = all.saturating_mul(config.attention_head_dim as u128 * F32);
    let total = row.saturating_add(packed).saturating_mul(rows as u128).saturating_add(table);
    usize::try_from(total).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qwen_image_takes_what_its_documentation_says() {
        let bytes = bytes(&QwenImageConfig::default(), 2, 1, (166, 166), &[], 200);
        assert!((385_000_000..395_000_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn more_never_takes_less_and_absurd_sizes_do_not_overflow() {
        let config = QwenImageConfig::default();
        let take = |rows, sides, tokens| bytes(&config, 4, rows, sides, &[], tokens);
        assert!(take(1, (64, 64), 77) < take(2, (64, 64), 77));
        assert!(take(1, (64, 64), 77) < take(1, (64, 65), 77));
        assert!(take(1, (64, 64), 77) < take(1, (64, 64), 78));
        let most = usize::MAX;
        assert_eq!(take(most, (most, most), most), most);
        let edited = bytes(&config, 4, 1, (64, 64), &[(64, 64)], 77);
        assert!(take(1, (64, 64), 77) < edited && edited <= take(1, (64, 128), 77));
        assert_eq!(bytes(&config, 4, most, (most, most), &[(most, most); 3], most), most);
    }
}
