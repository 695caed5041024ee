//! The UNet's levels: residual blocks with or without attention, and the middle.

use candle_core::{Tensor, bail};
use darkroom_kernels::{Padding, concat_channels};

use super::UNetConfig;
use super::condition::Condition;
use super::transformer::SpatialTransformer;
use crate::layers::{Downsampler, ResnetBlock, Upsampler};
use crate::weights::{Weights, WeightsError};

/// One residual block and the attention behind it, where the level has any.
#[derive(Debug, Clone)]
struct Stage {
    resnet: ResnetBlock,
    attention: Option<SpatialTransformer>,
}

impl Stage {
    fn forward(&self, x: Tensor, condition: &Condition) -> candle_core::Result<Tensor> {
        let x = self.resnet.forward(x, Some(&condition.time), &condition.adapters)?;
        match &self.attention {
            Some(attention) => attention.forward(&x, condition),
            None => Ok(x),
        }
    }
}

/// Where a block's residual parts are, and how deep its attention is.
struct Level<'a> {
    config: &'a UNetConfig,
    weights: &'a Weights,
    channels: usize,
    heads: usize,
    depth: usize,
}

impl<'a> Level<'a> {
    fn new(config: &'a UNetConfig, weights: &'a Weights, index: usize) -> Self {
        let (channels, heads) = (config.block_out_channels[index], config.attention_heads[index]);
        Self { config, weights, channels, heads, depth: config.transformer_layers[index] }
    }

    fn resnet(&self, index: usize, inputs: usize) -> Result<ResnetBlock, WeightsError> {
        let scope = self.weights.scope("resnets").scope(index);
        let (width, groups) = (self.config.time_embed_dim(), self.config.norm_num_groups);
        ResnetBlock::load(&scope, inputs, self.channels, Some(width), groups, self.config.norm_eps)
    }

    fn attention(&self, index: usize) -> Result<Option<SpatialTransformer>, WeightsError> {
        let load = || {
            let scope = self.weights.scope("attentions").scope(index);
            SpatialTransformer::load(self.config, &scope, self.channels, self.heads, self.depth)
        };
        (self.depth > 0).then(load).transpose()
    }

    fn stage(&self, index: usize, inputs: usize) -> Result<Stage, WeightsError> {
        Ok(Stage { resnet: self.resnet(index, inputs)?, attention: self.attention(index)? })
    }
}

/// A level on the way down; every stage's output, and the downsampled one, is a skip.
#[derive(Debug, Clone)]
pub(super) struct DownBlock {
    stages: Vec<Stage>,
    downsampler: Option<Downsampler>,
}

impl DownBlock {
    /// Takes `down_blocks.{index}`.
    pub(super) fn load(config: &UNetConfig, weights: &Weights, index: usize) -> Result<Self, WeightsError> {
        let level = Level::new(config, weights, index);
        let before = config.block_out_channels[index.saturating_sub(1)];
        let last = index + 1 == config.block_out_channels.len();
        Ok(Self {
            stages: (0..config.layers_per_block)
                .map(|i| level.stage(i, if i == 0 { before } else { level.channels }))
                .collect::<Result<_, _>>()?,
            downsampler: (!last)
                .then(|| Downsampler::load(weights, level.channels, Padding::all(1)))
                .transpose()?,
        })
    }

    /// `[b, h, w, c] -> [b, h/2, w/2, c']` (the last level keeps the size); pushes its skips, and goes no further
    /// than until there are `most` of them.
    pub(super) fn forward(
        &self,
        x: Tensor,
        condition: &Condition,
        skips: &mut Vec<Tensor>,
        most: usize,
    ) -> candle_core::Result<Tensor> {
        let mut x = x;
        for stage in &self.stages {
            if skips.len() >= most {
                return Ok(x);
            }
            x = stage.forward(x, condition)?;
            skips.push(x.clone());
        }
        if let (Some(downsampler), true) = (&self.downsampler, skips.len() < most) {
            x = downsampler.forward(&x, &condition.adapters)?;
            skips.push(x.clone());
        }
        Ok(x)
    }
}

/// The lowest level: a residual block, attention, a residual block; without attention, the first alone.
#[derive(Debug, Clone)]
pub(super) struct MidBlock {
    first: Stage,
    second: Option<ResnetBlock>,
}

impl MidBlock {
    /// Takes `mid_block`.
    pub(super) fn load(config: &UNetConfig, weights: &Weights) -> Result<Self, WeightsError> {
        let mut level = Level::new(config, weights, config.block_out_channels.len() - 1);
        level.depth = config.mid_transformer_layers;
        let second = || level.resnet(1, level.channels);
        Ok(Self {
            first: level.stage(0, level.channels)?,
            second: (level.depth > 0).then(second).transpose()?,
        })
    }

    /// `[b, h, w, c]`, the same shape out.
    pub(super) fn forward(&self, x: Tensor, condition: &Condition) -> candle_core::Result<Tensor> {
        let x = self.first.forward(x, condition)?;
        match &self.second {
            Some(second) => second.forward(x, Some(&condition.time), &condition.adapters),
            None => Ok(x),
        }
    }
}

/// A level on the way up; every stage takes one skip.
#[derive(Debug, Clone)]
pub(super) struct UpBlock {
    stages: Vec<Stage>,
    upsampler: Option<Upsampler>,
}

impl UpBlock {
    /// Takes `up_blocks.{levels - 1 - index}`, the counterpart of down block `index`.
    pub(super) fn load(config: &UNetConfig, weights: &Weights, index: usize) -> Result<Self, WeightsError> {
        let level = Level::new(config, weights, index);
        let channels = &config.block_out_channels;
        let below = channels.get(index + 1).copied().unwrap_or(level.channels);
        let above = channels[index.saturating_sub(1)];
        let last = config.layers_per_block;
        Ok(Self {
            stages: (0..=last)
                .map(|i| {
                    let carried = if i == 0 { below } else { level.channels };
                    let skipped = if i == last { above } else { level.channels };
                    level.stage(i, carried + skipped)
                })
                .collect::<Result<_, _>>()?,
            upsampler: (index > 0).then(|| Upsampler::load(weights, level.channels)).transpose()?,
        })
    }

    /// `[b, h, w, c] -> [b, h', w', c']` with the size of the skip that the next level takes first; pops its
    /// own skips. `adjust` may change what comes from below and the skip before they are joined. The first
    /// `passed_over` stages are left out; `x` is then what comes from below to the next one.
    pub(super) fn forward(
        &self,
        x: Tensor,
        condition: &Condition,
        skips: &mut Vec<Tensor>,
        passed_over: usize,
        mut adjust: impl FnMut(Tensor, Tensor) -> candle_core::Result<(Tensor, Tensor)>,
    ) -> candle_core::Result<Tensor> {
        let mut x = x;
        for stage in self.stages.iter().skip(passed_over) {
            let Some(skip) = skips.pop() else { bail!("UNet: the features lack a skip") };
            let (below, skip) = adjust(x, skip)?;
            let joined = concat_channels(&below, &skip)?;
            drop((below, skip));
            x = stage.forward(joined, condition)?;
        }
        match (&self.upsampler, skips.last()) {
            (Some(upsampler), Some(next)) => {
                let (_, height, width, _) = next.dims4()?;
                upsampler.forward_to(&x, height, width, &condition.adapters)
            }
            (Some(_), None) => bail!("UNet: the features lack a skip"),
            (None, _) => Ok(x),
        }
    }
}
