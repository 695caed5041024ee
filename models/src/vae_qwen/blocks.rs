//! The levels of the autoencoder: residual blocks of normalised convolutions, single-head attention in the middle, and
//! the convolutions that halve and double the resolution.

use candle_core::Tensor;
use darkroom_kernels::{Activation, AttentionMask, Conv2dGeometry, Padding, attention};

use super::QwenVaeConfig;
use crate::adapter::Adapters;
use crate::layers::{Conv2d, Linear, RmsNorm};
use crate::weights::{Weights, WeightsError};

/// The reference divides by the norm of a position's channels, or by 1e-12 if that is more. Under the root of the mean
/// of squares this is far below anything that a network makes, and rows of zeros stay zeros.
const NORM_EPS: f64 = 1e-24;

fn norm(weights: &Weights, channels: usize, activation: Activation) -> Result<RmsNorm, WeightsError> {
    RmsNorm::load(weights, "gamma", channels, NORM_EPS, activation)
}

/// `shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))`
#[derive(Debug, Clone)]
struct ResidualBlock {
    norm1: RmsNorm,
    conv1: Conv2d,
    norm2: RmsNorm,
    conv2: Conv2d,
    shortcut: Option<Linear>,
}

impl ResidualBlock {
    /// Takes diffusers' `QwenImageResidualBlock`.
    fn load(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self, WeightsError> {
        Ok(Self {
            norm1: norm(&weights.scope("norm1"), inputs, Activation::Silu)?,
            conv1: Conv2d::load_causal(&weights.scope("conv1"), inputs, outputs, 3)?,
            norm2: norm(&weights.scope("norm2"), outputs, Activation::Silu)?,
            conv2: Conv2d::load_causal(&weights.scope("conv2"), outputs, outputs, 3)?,
            shortcut: (inputs != outputs)
                .then(|| Linear::load_pointwise_3d(&weights.scope("conv_shortcut"), inputs, outputs))
                .transpose()?,
        })
    }

    /// `[b, h, w, inputs] -> [b, h, w, outputs]`. Takes `x` by value so that its memory is free as soon as the shortcut
    /// has been computed.
    fn forward(&self, x: Tensor) -> candle_core::Result<Tensor> {
        let none = Adapters::none();
        let mut h = self.conv1.forward(&self.norm1.forward(&x, none)?, none)?;
        h = self.norm2.forward(&h, none)?;
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward(&x, none)?,
            None => x.clone(),
        };
        drop(x);
        self.conv2.forward_add(&h, &residual, none)
    }
}

/// Single-head self-attention over all positions, with a residual.
#[derive(Debug, Clone)]
struct MidAttention {
    norm: RmsNorm,
    qkv: Linear,
    out: Linear,
}

impl MidAttention {
    /// Takes diffusers' `QwenImageAttentionBlock`.
    fn load(weights: &Weights, channels: usize) -> Result<Self, WeightsError> {
        Ok(Self {
            norm: norm(&weights.scope("norm"), channels, Activation::Identity)?,
            qkv: Linear::load_pointwise(&weights.scope("to_qkv"), channels, 3 * channels)?,
            out: Linear::load_pointwise(&weights.scope("proj"), channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let none = Adapters::none();
        let (b, h, w, c) = x.dims4()?;
        let [query, key, value] = {
            let qkv = self.qkv.forward(&self.norm.forward(x, none)?, none)?.reshape((b, h * w, 3 * c))?;
            let third = |i: usize| qkv.narrow(2, i * c, c)?.contiguous();
            [third(0)?, third(1)?, third(2)?]
        };
        let seen = attention(&query, &key, &value, 1, &AttentionMask::None)?;
        drop([query, key, value]);
        let residual = x.reshape((b, h * w, c))?;
        self.out.forward_add(&seen, &residual, none)?.reshape((b, h, w, c))
    }
}

/// Residual block, attention, residual block.
#[derive(Debug, Clone)]
struct MidBlock {
    first: ResidualBlock,
    attention: MidAttention,
    second: ResidualBlock,
}

impl MidBlock {
    fn load(weights: &Weights, channels: usize) -> Result<Self, WeightsError> {
        let residual = |i: usize| ResidualBlock::load(&weights.scope("resnets").scope(i), channels, channels);
        Ok(Self {
            first: residual(0)?,
            attention: MidAttention::load(&weights.scope("attentions.0"), channels)?,
            second: residual(1)?,
        })
    }

    fn forward(&self, x: Tensor) -> candle_core::Result<Tensor> {
        let mut x = self.first.forward(x)?;
        x = self.attention.forward(&x)?;
        self.second.forward(x)
    }
}

/// Normalisation, SiLU and the last convolution.
#[derive(Debug, Clone)]
struct Output {
    norm: RmsNorm,
    conv: Conv2d,
}

impl Output {
    fn load(weights: &Weights, inputs: usize, outputs: usize) -> Result<Self, WeightsError> {
        Ok(Self {
            norm: norm(&weights.scope("norm_out"), inputs, Activation::Silu)?,
            conv: Conv2d::load_causal(&weights.scope("conv_out"), inputs, outputs, 3)?,
        })
    }

    fn forward(&self, mut x: Tensor) -> candle_core::Result<Tensor> {
        x = self.norm.forward(&x, Adapters::none())?;
        self.conv.forward(&x, Adapters::none())
    }
}

/// The convolution of a `QwenImageResample`, a plain one. What it has for time is nothing to a first frame.
fn resample(
    weights: &Weights,
    inputs: usize,
    outputs: usize,
    geometry: Conv2dGeometry,
) -> Result<Conv2d, WeightsError> {
    weights.leave_out("time_conv.weight");
    weights.leave_out("time_conv.bias");
    Conv2d::load_with(&weights.scope("resample.1"), inputs, outputs, 3, geometry)
}

/// What works at one resolution, and the way to the next.
#[derive(Debug, Clone)]
struct Level {
    residuals: Vec<ResidualBlock>,
    /// The encoder's has stride 2; the decoder's sees the doubled picture, and halves the channels.
    resample: Option<Conv2d>,
}

impl Level {
    fn residuals(&self, mut x: Tensor) -> candle_core::Result<Tensor> {
        for block in &self.residuals {
            x = block.forward(x)?;
        }
        Ok(x)
    }
}

/// Pictures to the moments of latents.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    stem: Conv2d,
    down: Vec<Level>,
    middle: MidBlock,
    output: Output,
}

impl Encoder {
    /// Takes `encoder`. Its blocks are numbered through, not by level.
    pub(super) fn load(config: &QwenVaeConfig, weights: &Weights) -> Result<Self, WeightsError> {
        let widths = config.widths();
        let geometry =
            Conv2dGeometry { stride: 2, padding: Padding { top: 0, left: 0, bottom: 1, right: 1 } };
        let scope = weights.scope("down_blocks");
        let mut blocks = (0..).map(|number: usize| scope.scope(number));
        let mut channels = config.base_dim;
        let mut down = Vec::with_capacity(widths.len());
        for (level, &width) in widths.iter().enumerate() {
            let mut residuals = Vec::with_capacity(config.num_res_blocks);
            for scope in blocks.by_ref().take(config.num_res_blocks) {
                residuals.push(ResidualBlock::load(&scope, channels, width)?);
                channels = width;
            }
            let next = if level + 1 < widths.len() { blocks.next() } else { None };
            let resample = next.map(|scope| resample(&scope, width, width, geometry)).transpose()?;
            down.push(Level { residuals, resample });
        }
        let pictures = QwenVaeConfig::PICTURE_CHANNELS;
        Ok(Self {
            stem: Conv2d::load_causal(&weights.scope("conv_in"), pictures, config.base_dim, 3)?,
            down,
            middle: MidBlock::load(&weights.scope("mid_block"), channels)?,
            output: Output::load(weights, channels, 2 * config.z_dim)?,
        })
    }

    /// `[b, h, w, 3] -> [b, h/8, w/8, 2 · z_dim]`, rounded down.
    pub(super) fn forward(&self, mut x: Tensor) -> candle_core::Result<Tensor> {
        x = self.stem.forward(&x, Adapters::none())?;
        for level in &self.down {
            x = level.residuals(x)?;
            if let Some(conv) = &level.resample {
                x = conv.forward(&x, Adapters::none())?;
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
    up: Vec<Level>,
    output: Output,
}

impl Decoder {
    /// Takes `decoder`.
    pub(super) fn load(config: &QwenVaeConfig, weights: &Weights) -> Result<Self, WeightsError> {
        let mut widths = config.widths();
        widths.reverse();
        let deepest = widths.first().copied().unwrap_or(config.base_dim);
        let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(1) };
        let mut channels = deepest;
        let mut up = Vec::with_capacity(widths.len());
        for (level, &width) in widths.iter().enumerate() {
            let scope = weights.scope("up_blocks").scope(level);
            let mut residuals = Vec::with_capacity(config.num_res_blocks + 1);
            for i in 0..=config.num_res_blocks {
                residuals.push(ResidualBlock::load(&scope.scope("resnets").scope(i), channels, width)?);
                channels = width;
            }
            let next = (level + 1 < widths.len()).then(|| {
                channels = width / 2;
                resample(&scope.scope("upsamplers.0"), width, channels, geometry)
            });
            up.push(Level { residuals, resample: next.transpose()? });
        }
        Ok(Self {
            stem: Conv2d::load_causal(&weights.scope("conv_in"), config.z_dim, deepest, 3)?,
            middle: MidBlock::load(&weights.scope("mid_block"), deepest)?,
            up,
            output: Output::load(weights, channels, QwenVaeConfig::PICTURE_CHANNELS)?,
        })
    }

    /// `[b, h, w, z_dim] -> [b, 8h, 8w, 3]`.
    pub(super) fn forward(&self, mut x: Tensor) -> candle_core::Result<Tensor> {
        x = self.stem.forward(&x, Adapters::none())?;
        x = self.middle.forward(x)?;
        for level in &self.up {
            x = level.residuals(x)?;
            if let Some(conv) = &level.resample {
                x = conv.forward_upsampled(&x, Adapters::none())?;
            }
        }
        self.output.forward(x)
    }
}
