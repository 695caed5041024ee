//! The blocks that YOLOv8 is built of. Their names are those of the reference.
//!
//! Activations are `[b, h, w, c]`. Every block reads its output channels off its tensors; what it is given must
//! have the channels its input has.

use candle_core::{DType, Tensor};
use darkroom_kernels::{Activation, Conv2dGeometry, Padding, activate, conv2d};

use super::DetectorError;
use crate::weights::Weights;

/// The normalisations' epsilon. No file says it: the reference sets it for all its networks.
const BATCH_NORM_EPS: f64 = 1e-3;
/// Most channels of a layer; the largest published network has 640. A damaged file must not ask for memory
/// without end.
const MAX_CHANNELS: usize = 1024;
/// Most bottlenecks in a block; the largest published network has 6.
const MAX_BOTTLENECKS: usize = 32;
/// Side of the pooling window in [`Sppf`].
const POOL: usize = 5;

/// A convolution, with normalisation and SiLU where it has them.
#[derive(Debug, Clone)]
pub(super) struct Conv {
    weight: Tensor,
    bias: Tensor,
    geometry: Conv2dGeometry,
    activation: Activation,
    /// Channels of the output.
    pub(super) outputs: usize,
}

impl Conv {
    /// Takes `conv` and `bn`, which is folded into it; without `bn`, `conv` must have the bias that folding
    /// leaves.
    pub(super) fn load(
        weights: &Weights,
        inputs: usize,
        kernel: usize,
        stride: usize,
    ) -> Result<Self, DetectorError> {
        let conv = weights.scope("conv");
        let (weight, outputs) = kernel_of(&conv, inputs, kernel)?;
        let folded = !weights.contains("bn.weight");
        let bias = if folded || conv.contains("bias") { Some(vector(&conv, "bias", outputs)?) } else { None };
        let (weight, bias) = match bias {
            Some(bias) if folded => (weight, bias),
            bias => fold(&weights.scope("bn"), &weight, bias, outputs)?,
        };
        let geometry = Conv2dGeometry { stride, padding: Padding::all(kernel / 2) };
        Ok(Self { weight, bias, geometry, activation: Activation::Silu, outputs })
    }

    /// Takes `weight` and `bias` of a 1×1 convolution with nothing behind it.
    pub(super) fn load_plain(weights: &Weights, inputs: usize) -> Result<Self, DetectorError> {
        let (weight, outputs) = kernel_of(weights, inputs, 1)?;
        let bias = vector(weights, "bias", outputs)?;
        let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(0) };
        Ok(Self { weight, bias, geometry, activation: Activation::Identity, outputs })
    }

    /// `[b, h, w, inputs] -> [b, h / stride, w / stride, outputs]`, rounded up.
    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        activate(&conv2d(x, &self.weight, Some(&self.bias), self.geometry)?, self.activation)
    }
}

/// Takes `weight: [outputs, inputs, kernel, kernel]`, widened to `f32` and channels-last.
fn kernel_of(weights: &Weights, inputs: usize, kernel: usize) -> Result<(Tensor, usize), DetectorError> {
    // Of a tensor that is missing or has another rank, `take_conv` tells.
    let outputs = weights.shape("weight").and_then(|shape| shape.first().copied()).unwrap_or(1);
    if !(1..=MAX_CHANNELS).contains(&outputs) {
        return Err(DetectorError::Layout {
            file: weights.origin().to_owned(),
            reason: format!("a layer has {outputs} channels, but 1 to {MAX_CHANNELS} are possible"),
        });
    }
    let weight = weights.take_conv("weight", [outputs, inputs, kernel, kernel])?;
    Ok((weight.to_dtype(DType::F32)?, outputs))
}

fn vector(weights: &Weights, name: &str, length: usize) -> Result<Tensor, DetectorError> {
    Ok(weights.take(name, &[length])?.to_dtype(DType::F32)?)
}

/// The convolution that does what `weight` (and `bias`) followed by the normalisation in `bn` do.
fn fold(
    bn: &Weights,
    weight: &Tensor,
    bias: Option<Tensor>,
    channels: usize,
) -> Result<(Tensor, Tensor), DetectorError> {
    let take = |name| vector(bn, name, channels);
    let (gain, shift) = (take("weight")?, take("bias")?);
    let (mean, variance) = (take("running_mean")?, take("running_var")?);
    if variance.min_all()?.to_scalar::<f32>()? < 0.0 {
        return Err(DetectorError::Layout {
            file: bn.origin().to_owned(),
            reason: "a normalisation's running_var is negative: the file is damaged".into(),
        });
    }
    let scale = gain.div(&(variance + BATCH_NORM_EPS)?.sqrt()?)?;
    let weight = weight.broadcast_mul(&scale.reshape((channels, 1, 1, 1))?)?;
    let mean = match bias {
        Some(bias) => (mean - bias)?,
        None => mean,
    };
    Ok((weight, (shift - (mean * scale)?)?))
}

/// Two 3×3 convolutions, with a shortcut around them in the backbone.
#[derive(Debug, Clone)]
struct Bottleneck {
    cv1: Conv,
    cv2: Conv,
    shortcut: bool,
}

impl Bottleneck {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = self.cv2.forward(&self.cv1.forward(x)?)?;
        if self.shortcut { x + y } else { Ok(y) }
    }
}

/// A cross-stage partial block: half of the channels go through a chain of bottlenecks, and every link of the
/// chain is seen by the last convolution.
#[derive(Debug, Clone)]
pub(super) struct C2f {
    cv1: Conv,
    chain: Vec<Bottleneck>,
    cv2: Conv,
    /// Channels of the output.
    pub(super) outputs: usize,
}

impl C2f {
    /// Takes `cv1`, `m.0`, `m.1`, …, `cv2`.
    pub(super) fn load(weights: &Weights, inputs: usize, shortcut: bool) -> Result<Self, DetectorError> {
        let layout = |reason| Err(DetectorError::Layout { file: weights.origin().to_owned(), reason });
        let cv1 = Conv::load(&weights.scope("cv1"), inputs, 1, 1)?;
        if cv1.outputs % 2 != 0 {
            return layout(format!("a block's {} channels cannot be split in two", cv1.outputs));
        }
        let half = cv1.outputs / 2;
        let mut chain = Vec::new();
        while weights.contains(&format!("m.{}.cv1.conv.weight", chain.len())) {
            if chain.len() == MAX_BOTTLENECKS {
                return layout(format!("a block has more than {MAX_BOTTLENECKS} bottlenecks"));
            }
            let scope = weights.scope(format_args!("m.{}", chain.len()));
            let cv1 = Conv::load(&scope.scope("cv1"), half, 3, 1)?;
            let cv2 = Conv::load(&scope.scope("cv2"), cv1.outputs, 3, 1)?;
            if cv2.outputs != half {
                return layout(format!("a bottleneck makes {} channels of {half}", cv2.outputs));
            }
            chain.push(Bottleneck { cv1, cv2, shortcut });
        }
        let cv2 = Conv::load(&weights.scope("cv2"), half * (2 + chain.len()), 1, 1)?;
        let outputs = cv2.outputs;
        Ok(Self { cv1, chain, cv2, outputs })
    }

    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let both = self.cv1.forward(x)?;
        let half = self.cv1.outputs / 2;
        let mut last = both.narrow(3, half, half)?.contiguous()?;
        let mut parts = vec![both];
        for bottleneck in &self.chain {
            last = bottleneck.forward(&last)?;
            parts.push(last.clone());
        }
        self.cv2.forward(&Tensor::cat(&parts, 3)?)
    }
}

/// Spatial pyramid pooling: a picture beside itself pooled once, twice and three times.
#[derive(Debug, Clone)]
pub(super) struct Sppf {
    cv1: Conv,
    cv2: Conv,
    /// Channels of the output.
    pub(super) outputs: usize,
}

impl Sppf {
    /// Takes `cv1` and `cv2`.
    pub(super) fn load(weights: &Weights, inputs: usize) -> Result<Self, DetectorError> {
        let cv1 = Conv::load(&weights.scope("cv1"), inputs, 1, 1)?;
        let cv2 = Conv::load(&weights.scope("cv2"), 4 * cv1.outputs, 1, 1)?;
        let outputs = cv2.outputs;
        Ok(Self { cv1, cv2, outputs })
    }

    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut parts = vec![self.cv1.forward(x)?];
        while parts.len() < 4 {
            let last = &parts[parts.len() - 1];
            parts.push(pooled(&pooled(last, 1)?, 2)?);
        }
        self.cv2.forward(&Tensor::cat(&parts, 3)?)
    }
}

/// The maximum of every [`POOL`] neighbours along `dim`, at stride 1.
fn pooled(x: &Tensor, dim: usize) -> candle_core::Result<Tensor> {
    let length = x.dim(dim)?;
    // A repeated edge changes no maximum: whoever sees it sees the edge too.
    let padded = x.pad_with_same(dim, POOL / 2, POOL / 2)?;
    let mut most = padded.narrow(dim, 0, length)?;
    for shift in 1..POOL {
        most = most.maximum(&padded.narrow(dim, shift, length)?)?;
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn pooling_takes_the_largest_of_five_by_five_within_the_picture() {
        let mut data = vec![-1f32; 6 * 7];
        data[7 + 3] = 2.0;
        let x = Tensor::from_vec(data, (1, 6, 7, 1), &Device::Cpu).unwrap();
        let y = pooled(&pooled(&x, 1).unwrap(), 2).unwrap().flatten_all().unwrap();
        let y = y.to_vec1::<f32>().unwrap();
        for (i, value) in y.into_iter().enumerate() {
            let near = (i / 7).abs_diff(1) <= 2 && (i % 7).abs_diff(3) <= 2;
            assert_eq!(value, if near { 2.0 } else { -1.0 }, "at {}, {}", i % 7, i / 7);
        }
    }
}
