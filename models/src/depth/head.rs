//! The DPT head (Ranftl et al. 2021): four layers' tokens become pictures of four sizes, fused from the coarsest to
//! the finest into one depth a pixel.

use candle_core::{DType, Result, Tensor};
use darkroom_kernels::{Conv2dGeometry, Padding, Precision, conv2d_at, linear_at};

use super::DepthConfig;
use super::config::LEVELS;
use crate::adapter::Adapters;
use crate::layers::{Conv2d, Interpolation, Linear, resize};
use crate::weights::{Weights, WeightsError};

type Loaded<T> = std::result::Result<T, WeightsError>;

/// The head, from the taps to a depth a pixel.
#[derive(Debug, Clone)]
pub(super) struct DptHead {
    levels: Vec<Level>,
    /// Coarsest first.
    fusions: Vec<Fusion>,
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Linear,
}

impl DptHead {
    /// Takes `neck` and `head`.
    pub(super) fn load(weights: &Weights, config: &DepthConfig) -> Loaded<Self> {
        let (neck, head) = (weights.scope("neck"), weights.scope("head"));
        Ok(Self {
            levels: (0..LEVELS).map(|i| Level::load(&neck, config, i)).collect::<Loaded<_>>()?,
            fusions: (0..LEVELS)
                .map(|i| Fusion::load(&neck.scope(format!("fusion_stage.layers.{i}")), config.fused, i > 0))
                .collect::<Loaded<_>>()?,
            conv1: Conv2d::load(&head.scope("conv1"), config.fused, config.fused / 2, 3)?,
            conv2: Conv2d::load(&head.scope("conv2"), config.fused / 2, config.last, 3)?,
            conv3: Linear::load_pointwise(&head.scope("conv3"), config.last, 1)?,
        })
    }

    /// `taps`: four of `[b, rows, columns, width]`, shallowest first. Gives `[b, height, width]`, at least 0 and larger
    /// where nearer.
    pub(super) fn forward(&self, taps: &[Tensor], height: usize, width: usize) -> Result<Tensor> {
        let mut finer = Vec::with_capacity(LEVELS);
        for (level, tap) in self.levels.iter().zip(taps) {
            finer.push(level.forward(tap)?);
        }
        let mut fused: Option<Tensor> = None;
        for fusion in &self.fusions {
            let Some(level) = finer.pop() else { break };
            let x = match fused {
                None => fusion.refine(&level)?,
                Some(fused) => fusion.join(fused, &level)?,
            };
            let (_, h, w, _) = x.dims4()?;
            let (h, w) = match finer.last() {
                Some(next) => (next.dim(1)?, next.dim(2)?),
                None => (2 * h, 2 * w),
            };
            fused = Some(
                fusion
                    .project
                    .forward(&resize(&x, h, w, Interpolation::BilinearCorners)?, Adapters::none())?,
            );
        }
        let Some(fused) = fused else { candle_core::bail!("no taps") };
        let x = self.conv1.forward(&fused, Adapters::none())?;
        let x = resize(&x, height, width, Interpolation::BilinearCorners)?;
        let x = self.conv2.forward(&x, Adapters::none())?.relu()?;
        self.conv3.forward(&x, Adapters::none())?.relu()?.squeeze(3)
    }
}

/// One tap's tokens as a picture of the level's size and channels.
#[derive(Debug, Clone)]
struct Level {
    project: Linear,
    size: Size,
    /// 3×3 without bias: `[fused, 3, 3, level]`.
    fuse: Tensor,
    precision: Precision,
}

#[derive(Debug, Clone)]
enum Size {
    /// A transposed convolution whose kernel is its stride: every pixel becomes a square of its own.
    Larger {
        factor: usize,
        weight: Tensor,
        bias: Tensor,
    },
    Same,
    Half(Conv2d),
}

impl Level {
    fn load(neck: &Weights, config: &DepthConfig, level: usize) -> Loaded<Self> {
        let channels = config.levels[level];
        let scope = neck.scope(format!("reassemble_stage.layers.{level}"));
        let size = match level {
            0 => Size::larger(&scope.scope("resize"), channels, 4)?,
            1 => Size::larger(&scope.scope("resize"), channels, 2)?,
            2 => Size::Same,
            _ => {
                let geometry = Conv2dGeometry { stride: 2, padding: Padding::all(1) };
                Size::Half(Conv2d::load_with(&scope.scope("resize"), channels, channels, 3, geometry)?)
            }
        };
        Ok(Self {
            project: Linear::load_pointwise(&scope.scope("projection"), config.width, channels)?,
            size,
            fuse: neck.scope(format!("convs.{level}")).take_conv("weight", [config.fused, channels, 3, 3])?,
            precision: neck.precision(),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.project.forward(x, Adapters::none())?;
        let x = match &self.size {
            Size::Larger { factor, weight, bias } => {
                let (b, h, w, c) = x.dims4()?;
                let squares = linear_at(&x, weight, Some(bias), self.precision)?;
                let squares = squares.reshape((b, h, w, *factor, *factor, c))?;
                let (h, w) = (h * factor, w * factor);
                squares.permute((0, 1, 3, 2, 4, 5))?.contiguous()?.reshape((b, h, w, c))?
            }
            Size::Same => x,
            Size::Half(conv) => conv.forward(&x, Adapters::none())?,
        };
        let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(1) };
        conv2d_at(&x, &self.fuse, None, geometry, self.precision)
    }
}

impl Size {
    fn larger(weights: &Weights, channels: usize, factor: usize) -> Loaded<Self> {
        // [in, out, rows, columns] -> [rows · columns · out, in]
        let weight = weights.take("weight", &[channels, channels, factor, factor])?;
        let weight = weight.permute((2, 3, 1, 0))?.contiguous()?;
        let weight = weight.reshape((factor * factor * channels, channels))?;
        let bias = weights.take("bias", &[channels])?.to_dtype(DType::F32)?;
        Ok(Self::Larger { factor, weight, bias: bias.repeat(factor * factor)? })
    }
}

/// Joins a level to what was fused so far.
#[derive(Debug, Clone)]
struct Fusion {
    /// For the finer level; the coarsest has nothing to join.
    level: Option<Residual>,
    joined: Residual,
    project: Linear,
}

impl Fusion {
    fn load(weights: &Weights, channels: usize, joins: bool) -> Loaded<Self> {
        let residual = |name| Residual::load(&weights.scope(name), channels);
        Ok(Self {
            level: joins.then(|| residual("residual_layer1")).transpose()?,
            joined: residual("residual_layer2")?,
            project: Linear::load_pointwise(&weights.scope("projection"), channels, channels)?,
        })
    }

    fn join(&self, fused: Tensor, level: &Tensor) -> Result<Tensor> {
        let level = match &self.level {
            Some(residual) => residual.forward(level)?,
            None => level.clone(),
        };
        self.refine(&(fused + level)?)
    }

    fn refine(&self, x: &Tensor) -> Result<Tensor> {
        self.joined.forward(x)
    }
}

/// `x + conv2(relu(conv1(relu(x))))`.
#[derive(Debug, Clone)]
struct Residual {
    conv1: Conv2d,
    conv2: Conv2d,
}

impl Residual {
    fn load(weights: &Weights, channels: usize) -> Loaded<Self> {
        Ok(Self {
            conv1: Conv2d::load(&weights.scope("convolution1"), channels, channels, 3)?,
            conv2: Conv2d::load(&weights.scope("convolution2"), channels, channels, 3)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&x.relu()?, Adapters::none())?.relu()?;
        x + self.conv2.forward(&h, Adapters::none())?
    }
}
