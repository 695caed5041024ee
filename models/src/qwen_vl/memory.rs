//! How much memory a pass of the text encoder takes, from its config. Activations are counted, kernels' scratch is not.

use candle_core::DType;

use super::{QwenVlTextConfig, QwenVlTextEncoder};

impl QwenVlTextEncoder {
    /// Most bytes of activations alive at once in [`QwenVlTextEncoder::encode`] for `rows` prompts, the longest of which
    /// has `tokens`.
    ///
    /// In `f32` the 7B takes 256 KB a token: its peak is the feed-forward part, whose gates, values and products are
    /// more than five times as wide as the hidden state each.
    pub fn encode_bytes(&self, rows: usize, tokens: usize) -> usize {
        self.config().encode_bytes(self.activations(), rows, tokens)
    }
}

impl QwenVlTextConfig {
    /// The same of a network that is not loaded yet, whose activations would be of `activations`.
    pub fn encode_bytes(&self, activations: DType, rows: usize, tokens: usize) -> usize {
        let bytes = u128::from(token_elements(self)) * activations.size_in_bytes() as u128;
        let bytes = bytes.saturating_mul(rows as u128).saturating_mul(tokens as u128);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }
}

/// Most elements alive at once for one token.
fn token_elements(config: &QwenVlTextConfig) -> u64 {
    let (width, wide) = (config.hidden_size as u64, config.intermediate_size as u64);
    let shared = config.key_value_width() as u64;
    // The residual and its norm; then queries, keys (both also turned) and values, the latter two repeated for all
    // heads, and what was seen.
    let attention = 2 * width + 2 * width + 3 * shared + 2 * width + width;
    // The residual and its norm; then gates, values and their products.
    let feed_forward = 2 * width + 3 * wide;
    attention.max(feed_forward)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_7b_takes_a_quarter_of_a_megabyte_a_token() {
        assert_eq!(token_elements(&QwenVlTextConfig::default()) * 4, 256_000);
    }
}
