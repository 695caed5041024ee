//! The levels of the autoencoder: residual blocks, and single-head attention in the middle.

use candle_core::Tensor;
use darkroom_kernels::{Activation, AttentionMask, Padding, attention};

use super::VaeConfig;
use crate::adapter::Adapters;
use crate::layers::{Conv2d, Downsampler, GroupNorm, Linear, ResnetBlock, Upsampler};
use crate::weights::{Weights, WeightsError};

/// Epsilon of every norm; it is not in the config.
const NORM_EPS: f64 = 1e-6;

fn resnet(
    config: &VaeConfig,
    weights: &Weights,
    inputs: usize,
    outputs: usize,
) -> Result<ResnetBlock, WeightsError> {
    ResnetBlock::load(weights, inputs, outputs, None, config.norm_num_groups, NORM_EPS)
}

fn resnets(
    config: &VaeConfig,
    weights: &Weights,
    inputs: usize,
    outputs: usize,
    count: usize,
) -> Result<Vec<ResnetBlock>, WeightsError> {
    let scope = weights.scope("resnets");
    (0..count)
        .map(|i| resnet(config, &scope.scope(i), if i == 0 { inputs } else { outputs }, outputs))
        .collect()
}

/// Residual block, attention, residual block.
#[derive(Debug, Clone)]
struct MidBlock {
    first: ResnetBlock,
    attention: MidAttention,
    second: ResnetBlock,
}

impl MidBlock {
    fn load(config: &VaeConfig, weights: &Weights, channels: usize) -> Result<Self, WeightsError> {
        let resnet = |i| resnet(config, &weights.scope("resnets").scope(i), channels, channels);
        Ok(Self {
            first: resnet(0)?,
            attention: MidAttention::load(config, &weights.scope("attentions.0"), channels)?,
            second: resnet(1)?,
        })
    }

    fn forward(&self, x: Tensor) -> candle_core::Result<Tensor> {
        let mut x = self.first.forward(x, None, Adapters::none())?;
        x = self.attention.forward(&x)?;
        self.second.forward(x, None, Adapters::none())
    }
}

/// Single-head self-attention over all positions, with a residual.
#[derive(Debug, Clone)]
struct MidAttention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

impl MidAttention {
    fn load(config: &VaeConfig, weights: &Weights, channels: usize) -> Result<Self, WeightsError> {
        let projection = |name| Linear::load(&weights.scope(name), channels, channels);
        let groups = config.norm_num_groups;
        let norm = weights.scope("group_norm");
        Ok(Self {
            norm: GroupNorm::load(&norm, channels, groups, NORM_EPS, Activation::Identity)?,
            query: projection("to_q")?,
            key: projection("to_k")?,
            value: projection("to_v")?,
            out: projection("to_out.0")?,
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (b, h, w, c) = x.dims4()?;
        let seen = {
            let tokens = self.norm.forward(x, Adapters::none())?.reshape((b, h * w, c))?;
            let query = self.query.forward(&tokens, Adapters::none())?;
            let (key, value) = (
                self.key.forward(&tokens, Adapters::none())?,
                self.value.forward(&tokens, Adapters::none())?,
            );
            attention(&query, &key, &value, 1, &AttentionMask::None)?
        };
        let residual = x.reshape((b, h * w, c))?;
        self.out.forward_add(&seen, &residual, Adapters::none())?.reshape((b, h, w, c))
    }
}

/// `norm`, SiLU and the last convolution.
#[derive(Debug, Clone)]
struct Output {
    norm: GroupNorm,
    conv: Conv2d,
}

impl Output {
    fn load(
        config: &VaeConfig,
        weights: &Weights,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self, WeightsError> {
        let (norm, groups) = (weights.scope("conv_norm_out"), config.norm_num_groups);
        Ok(Self {
            norm: GroupNorm::load(&norm, inputs, groups, NORM_EPS, Activation::Silu)?,
            conv: Conv2d::load(&weights.scope("conv_out"), inputs, outputs, 3)?,
        })
    }

    fn forward(&self, mut x: Tensor) -> candle_core::Result<Tensor> {
        x = self.norm.forward(&x, Adapters::none())?;
        self.conv.forward(&x, Adapters::none())
    }
}

/// Pictures to the moments of latents.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    stem: Conv2d,
    down: Vec<(Vec<ResnetBlock>, Option<Downsampler>)>,
    middle: MidBlock,
    output: Output,
}

impl Encoder {
    /// Takes `encoder`.
    pub(super) fn load(config: &VaeConfig, weights: &Weights) -> Result<Self, WeightsError> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let padding = Padding { top: 0, left: 0, bottom: 1, right: 1 };
        let mut down = Vec::with_capacity(channels.len());
        for (i, &width) in channels.iter().enumerate() {
            let scope = weights.scope("down_blocks").scope(i);
            let inputs = channels[i.saturating_sub(1)];
            let resnets = resnets(config, &scope, inputs, width, config.layers_per_block)?;
            let downsampler = (i + 1 < channels.len()).then(|| Downsampler::load(&scope, width, padding));
            down.push((resnets, downsampler.transpose()?));
        }
        Ok(Self {
            stem: Conv2d::load(&weights.scope("conv_in"), config.in_channels, first, 3)?,
            down,
            middle: MidBlock::load(config, &weights.scope("mid_block"), last)?,
            output: Output::load(config, weights, last, 2 * config.latent_channels)?,
        })
    }

    /// `[b, h, w, in_channels] -> [b, h/8, w/8, 2 · latent_channels]`.
    pub(super) fn forward(&self, mut x: Tensor) -> candle_core::Result<Tensor> {
        x = self.stem.forward(&x, Adapters::none())?;
        for (resnets, downsampler) in &self.down {
            for resnet in resnets {
                x = resnet.forward(x, None, Adapters::none())?;
            }
            if let Some(downsampler) = downsampler {
                x = downsampler.forward(&x, Adapters::none())?;
            }
        }
        self.output.forward(self.middle.forward(x)?)
    }
}

/// Latents to pictures.
#[derive(Debug, Clone)]
pub(super) struct Decoder {
    stem: Conv2d,
    middle: MidBlock,
    up: Vec<(Vec<ResnetBlock>, Option<Upsampler>)>,
    output: Output,
}

impl Decoder {
    /// Takes `decoder`.
    pub(super) fn load(config: &VaeConfig, weights: &Weights) -> Result<Self, WeightsError> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut up = Vec::with_capacity(channels.len());
        for (i, &width) in channels.iter().enumerate() {
            let scope = weights.scope("up_blocks").scope(i);
            let inputs = channels[i.saturating_sub(1)];
            let resnets = resnets(config, &scope, inputs, width, config.layers_per_block + 1)?;
            let upsampler = (i + 1 < channels.len()).then(|| Upsampler::load(&scope, width));
            up.push((resnets, upsampler.transpose()?));
        }
        Ok(Self {
            stem: Conv2d::load(&weights.scope("conv_in"), config.latent_channels, first, 3)?,
            middle: MidBlock::load(config, &weights.scope("mid_block"), first)?,
            up,
            output: Output::load(config, weights, last, config.out_channels)?,
        })
    }

    /// `[b, h, w, latent_channels] -> [b, 8h, 8w, out_channels]`.
    pub(super) fn forward(&self, mut x: Tensor) -> candle_core::Result<Tensor> {
        x = self.stem.forward(&x, Adapters::none())?;
        x = self.middle.forward(x)?;
        for (resnets, upsampler) in &self.up {
            for resnet in resnets {
                x = resnet.forward(x, None, Adapters::none())?;
            }
            if let Some(upsampler) = upsampler {
                x = upsampler.forward(&x, Adapters::none())?;
            }
        }
        self.output.forward(x)
    }
}
