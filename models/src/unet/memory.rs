//! How much memory a forward pass of the UNet takes, by walking its config the way the network walks its blocks.
//!
//! Counted are activations, which grow with the picture and the batch. The kernels' packed panels and scratch do
//! not: each thread keeps a few megabytes of them between calls.

use super::{UNet2DConditionModel, UNetConfig};

/// A transformer block at its worst, in the middle of its feed-forward part: the residual around all blocks, its
/// input, three normed inputs, the widened gates and values (eight times as wide) and their products (four times).
const FEED_FORWARD: u128 = 1 + 1 + 3 + 8 + 4;
/// The same in cross-attention, beside keys and values: the residual, its input, two normed inputs, queries, what
/// was seen and what is made of it.
const CROSS_ATTENTION: u128 = 1 + 1 + 2 + 3;

impl UNet2DConditionModel {
    /// Most bytes of activations alive at once in a forward pass of `rows` latents of `height × width` cells with
    /// `tokens` of context each.
    ///
    /// In `f32` SDXL at 1024 × 1024 (128 × 128 cells) with two rows takes 0.52 GB. A row's peak is the feed-forward part at
    /// half resolution: 17 tensors of 4096 positions × 640 channels (178 MB), while the skips of the first level
    /// and of half the second wait (78 MB). The full resolution, where there is no attention, comes to less:
    /// joining 640 channels with a skip's 320 and convolving them takes 147 MB beside 42 MB of skips.
    pub fn forward_bytes(&self, rows: usize, height: usize, width: usize, tokens: usize) -> usize {
        bytes(self.config(), self.activations().size_in_bytes(), rows, height, width, tokens)
    }

    /// Bytes of what one row of a pass of `height × width` cells hands up at skip number `branch`: what step caching
    /// keeps of it. A pass that is cut there takes no more beside it than [`UNet2DConditionModel::forward_bytes`].
    ///
    /// SDXL's at 1024 × 1024, cut below the outermost blocks, are 42 MB.
    pub fn kept_bytes(&self, branch: usize, height: usize, width: usize) -> usize {
        let elements = kept_elements(self.config(), branch, height, width);
        usize::try_from(elements).unwrap_or(usize::MAX).saturating_mul(self.activations().size_in_bytes())
    }
}

fn kept_elements(config: &UNetConfig, branch: usize, height: usize, width: usize) -> u128 {
    let Some(Plan { channels, positions }) = Plan::new(config, height, width) else { return 0 };
    let level = branch / (config.layers_per_block + 1);
    let (Some(own), Some(positions)) = (channels.get(level), positions.get(level)) else { return 0 };
    // The level's first stage on the way up takes what the level below, or the middle, made.
    let opens = branch % (config.layers_per_block + 1) == config.layers_per_block;
    let channels = if opens { channels.get(level + 1).unwrap_or(own) } else { own };
    positions * channels
}

fn bytes(
    config: &UNetConfig,
    element: usize,
    rows: usize,
    height: usize,
    width: usize,
    tokens: usize,
) -> usize {
    let row = usize::try_from(row_elements(config, height, width, tokens)).unwrap_or(usize::MAX);
    rows.saturating_mul(row).saturating_mul(element)
}

/// Most elements alive at once while the downward half and the middle run over one row, all of whose features are
/// kept: what a ControlNet repeats. Also the elements of these features, and of the largest of them.
pub(crate) fn encoder_elements(config: &UNetConfig, height: usize, width: usize, tokens: usize) -> Encoded {
    let Some(plan) = Plan::new(config, height, width) else { return Encoded::default() };
    let mut walk = Walk::new(config, plan.positions[0], wide(tokens));
    walk.descend(config, &plan, wide(tokens));
    let middle = plan.positions[plan.positions.len() - 1] * plan.channels[plan.channels.len() - 1];
    Encoded {
        peak: walk.peak,
        features: walk.skips.iter().sum::<u128>() + middle,
        largest: walk.skips.iter().copied().max().unwrap_or(0).max(middle),
    }
}

/// What [`encoder_elements`] counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Encoded {
    /// Most elements alive at once.
    pub(crate) peak: u128,
    /// All features.
    pub(crate) features: u128,
    /// The largest of them.
    pub(crate) largest: u128,
}

fn wide(number: usize) -> u128 {
    number as u128
}

/// Channels and positions of each level.
struct Plan {
    channels: Vec<u128>,
    positions: Vec<u128>,
}

impl Plan {
    /// `None` without levels.
    fn new(config: &UNetConfig, height: usize, width: usize) -> Option<Self> {
        let channels: Vec<u128> = config.block_out_channels.iter().copied().map(wide).collect();
        channels.first()?;
        // Every downsampler halves both sides, rounding up.
        let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
        let sides = std::iter::successors(Some((side(height), side(width))), |(height, width)| {
            Some((height.div_ceil(2), width.div_ceil(2)))
        });
        let positions = sides.map(|(height, width)| u128::from(height) * u128::from(width));
        Some(Self { positions: positions.take(channels.len()).collect(), channels })
    }
}

/// Elements alive at some point of the pass: those that wait, and the most there have been. Wide enough for any
/// sides of 32 bits.
struct Walk {
    /// The skips that were pushed and not popped, innermost last.
    skips: Vec<u128>,
    /// Their sum, and what else waits.
    waiting: u128,
    peak: u128,
}

impl Walk {
    /// The latent, its channels-last copy and the context wait throughout.
    fn new(config: &UNetConfig, cells: u128, tokens: u128) -> Self {
        let waiting = cells * 2 * wide(config.in_channels) + tokens * wide(config.cross_attention_dim);
        Self { skips: Vec::new(), waiting, peak: 0 }
    }

    /// `elements` are alive beside what waits.
    fn at(&mut self, elements: u128) {
        self.peak = self.peak.max(self.waiting + elements);
    }

    fn push(&mut self, skip: u128) {
        self.skips.push(skip);
        self.waiting += skip;
    }

    fn pop(&mut self) -> u128 {
        let skip = self.skips.pop().unwrap_or(0);
        self.waiting -= skip;
        skip
    }

    /// A residual block whose input waits elsewhere.
    fn resnet(&mut self, positions: u128, inputs: u128, outputs: u128) {
        let end = if inputs == outputs { 2 * outputs } else { 3 * outputs };
        self.at(positions * (inputs + outputs).max(2 * outputs).max(end));
    }

    /// A residual block that frees its input before it adds.
    fn owning_resnet(&mut self, positions: u128, inputs: u128, outputs: u128) {
        self.at(positions * (2 * inputs + outputs).max(inputs + 2 * outputs).max(3 * outputs));
    }

    fn attention(&mut self, positions: u128, channels: u128, tokens: u128) {
        self.at(channels * (positions * FEED_FORWARD).max(positions * CROSS_ATTENTION + 2 * tokens));
    }

    /// The downward half, whose skips are pushed, and the middle; gives the channels that come out of it.
    fn descend(&mut self, config: &UNetConfig, plan: &Plan, tokens: u128) -> u128 {
        let Plan { channels, positions } = plan;
        self.push(positions[0] * channels[0]);
        let mut carried = channels[0];
        for (level, &width) in channels.iter().enumerate() {
            for _ in 0..config.layers_per_block {
                self.resnet(positions[level], carried, width);
                if config.transformer_layers[level] > 0 {
                    self.attention(positions[level], width, tokens);
                }
                self.push(positions[level] * width);
                carried = width;
            }
            if let Some(below) = positions.get(level + 1) {
                self.push(below * width);
            }
        }
        let lowest = positions[channels.len() - 1];
        self.resnet(lowest, carried, carried);
        if config.mid_transformer_layers > 0 {
            self.attention(lowest, carried, tokens);
        }
        self.owning_resnet(lowest, carried, carried);
        carried
    }
}

fn row_elements(config: &UNetConfig, height: usize, width: usize, tokens: usize) -> u128 {
    let Some(plan) = Plan::new(config, height, width) else { return 0 };
    let tokens = wide(tokens);
    let mut walk = Walk::new(config, plan.positions[0], tokens);
    let mut carried = walk.descend(config, &plan, tokens);
    let Plan { channels, positions } = plan;
    let (cells, first) = (positions[0], channels[0]);
    for (level, &width) in channels.iter().enumerate().rev() {
        for _ in 0..=config.layers_per_block {
            let skipped = walk.pop();
            // What comes from below, the skip, and both joined.
            walk.at(2 * (positions[level] * carried + skipped));
            walk.owning_resnet(positions[level], carried + skipped / positions[level].max(1), width);
            if config.transformer_layers[level] > 0 {
                walk.attention(positions[level], width, tokens);
            }
            carried = width;
        }
        if let Some(above) = level.checked_sub(1).map(|above| positions[above]) {
            // The level's output, doubled, cut where the side above is odd, and what the convolution makes of it.
            let doubled = 4 * positions[level];
            let cut = if doubled == above { 0 } else { above };
            walk.at(width * (positions[level] + doubled + cut + above));
        }
    }
    walk.at(cells * 2 * (first + wide(config.out_channels)));
    walk.peak
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sdxl() -> UNetConfig {
        serde_json::from_value(serde_json::json!({
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": true,
            "addition_embed_type": "text_time",
        }))
        .unwrap()
    }

    #[test]
    fn sdxl_takes_what_its_documentation_says() {
        let bytes = bytes(&sdxl(), 4, 2, 128, 128, 77);
        assert!((510_000_000..530_000_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn what_is_kept_of_sdxl_is_what_its_documentation_says() {
        let kept = |branch| kept_elements(&sdxl(), branch, 128, 128);
        assert_eq!(kept(0), 128 * 128 * 320);
        assert_eq!(kept(2), 128 * 128 * 640);
        assert_eq!(kept(5), 64 * 64 * 1280);
        assert_eq!(kept(8), 32 * 32 * 1280);
        assert_eq!(kept(9), 0);
    }

    #[test]
    fn more_never_takes_less_and_absurd_sizes_do_not_overflow() {
        let config = sdxl();
        let bytes = |rows, height, width, tokens| bytes(&config, 4, rows, height, width, tokens);
        assert_eq!(3 * bytes(1, 64, 64, 77), bytes(3, 64, 64, 77));
        assert!(bytes(1, 64, 64, 77) < bytes(1, 64, 65, 77));
        assert!(bytes(1, 64, 64, 77) < bytes(1, 64, 64, 154));
        assert_eq!(bytes(usize::MAX, usize::MAX, usize::MAX, usize::MAX), usize::MAX);
    }
}
