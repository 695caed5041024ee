//! Residual U-blocks (Qin et al. 2020): each a small U-Net of its own, with a shortcut around it.

use candle_core::{DType, Result, Tensor};
use darkroom_kernels::{Conv2dGeometry, Padding, conv2d};

use super::MattingError;
use crate::layers::{Interpolation, resize};
use crate::weights::Weights;

/// The normalisations' epsilon, torch's default.
const BATCH_NORM_EPS: f64 = 1e-5;

/// A 3×3 convolution, into which the normalisation behind it is folded, and a ReLU.
#[derive(Debug, Clone)]
pub(super) struct ConvRelu {
    conv: Conv3x3,
    /// Pixels between the taps of the kernel.
    dilation: usize,
}

impl ConvRelu {
    /// Takes `conv_s1` and `bn_s1`.
    fn load(weights: &Weights, inputs: usize, dilation: usize) -> std::result::Result<Self, MattingError> {
        let mut conv = Conv3x3::load(&weights.scope("conv_s1"), inputs, 1)?;
        let bn = weights.scope("bn_s1");
        let outputs = conv.outputs();
        let take = |name: &str| -> std::result::Result<Tensor, MattingError> {
            Ok(bn.take(name, &[outputs])?.to_dtype(DType::F32)?)
        };
        let (gain, shift, mean, variance) =
            (take("weight")?, take("bias")?, take("running_mean")?, take("running_var")?);
        if variance.min_all()?.to_scalar::<f32>()? < 0.0 {
            return Err(MattingError::Layout {
                file: bn.origin().to_owned(),
                reason: "a normalisation's running_var is negative: the file is damaged".into(),
            });
        }
        let scale = (gain / (variance + BATCH_NORM_EPS)?.sqrt()?)?;
        conv.bias = (((&conv.bias - mean)? * &scale)? + shift)?;
        conv.weight = conv.weight.broadcast_mul(&scale.reshape((outputs, 1, 1, 1))?)?;
        Ok(Self { conv, dilation })
    }

    fn outputs(&self) -> usize {
        self.conv.outputs()
    }

    /// `[b, h, w, inputs] -> [b, h, w, outputs]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.dilation == 1 {
            return self.conv.forward(x)?.relu();
        }
        // A kernel with gaps of `d` sees every d-th row and column only: it is the kernel without gaps on each of the
        // d² pictures of such rows and columns. Rows and columns of zeros make the sides divisible, which the kernel's
        // own padding would add anyway.
        let d = self.dilation;
        let (b, h, w, c) = x.dims4()?;
        let (rows, columns) = (h.div_ceil(d), w.div_ceil(d));
        let x = x.pad_with_zeros(1, 0, rows * d - h)?.pad_with_zeros(2, 0, columns * d - w)?;
        let x = x.reshape((b, rows, d, columns, d, c))?.permute((0, 2, 4, 1, 3, 5))?.contiguous()?;
        let y = self.conv.forward(&x.reshape((b * d * d, rows, columns, c))?)?.relu()?;
        let y = y.reshape((b, d, d, rows, columns, self.outputs()))?.permute((0, 3, 1, 4, 2, 5))?;
        let y = y.contiguous()?.reshape((b, rows * d, columns * d, self.outputs()))?;
        y.narrow(1, 0, h)?.narrow(2, 0, w)?.contiguous()
    }
}

/// A 3×3 convolution whose output channels are read off its tensors; widened to `f32`.
#[derive(Debug, Clone)]
pub(super) struct Conv3x3 {
    weight: Tensor,
    bias: Tensor,
    stride: usize,
}

impl Conv3x3 {
    /// Takes `weight` and `bias`.
    pub(super) fn load(
        weights: &Weights,
        inputs: usize,
        stride: usize,
    ) -> std::result::Result<Self, MattingError> {
        // Of a tensor that is missing or has another rank, `take_conv` tells.
        let outputs = weights.shape("weight").and_then(|shape| shape.first().copied()).unwrap_or(1);
        if outputs == 0 {
            return Err(MattingError::Layout {
                file: weights.origin().to_owned(),
                reason: "a convolution has no channels: the file is damaged".into(),
            });
        }
        let weight = weights.take_conv("weight", [outputs, inputs, 3, 3])?.to_dtype(DType::F32)?;
        let bias = weights.take("bias", &[outputs])?.to_dtype(DType::F32)?;
        Ok(Self { weight, bias, stride })
    }

    pub(super) fn outputs(&self) -> usize {
        self.bias.elem_count()
    }

    /// `[b, h, w, inputs] -> [b, h / stride, w / stride, outputs]`, rounded up.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let geometry = Conv2dGeometry { stride: self.stride, padding: Padding::all(1) };
        conv2d(x, &self.weight, Some(&self.bias), geometry)
    }
}

/// What a residual U-block's inner layers do to the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inside {
    /// Each halves it, down to this many layers (RSU-7 to RSU-4).
    Halving(usize),
    /// None does; their kernels grow instead (RSU-4F).
    Dilated,
}

/// A residual U-block.
#[derive(Debug, Clone)]
pub(super) struct Rsu {
    input: ConvRelu,
    /// From the outside in.
    encoders: Vec<ConvRelu>,
    /// From the inside out, one fewer.
    decoders: Vec<ConvRelu>,
    halving: bool,
}

impl Rsu {
    /// Takes `rebnconvin`, `rebnconv1` to `rebnconvN` and `rebnconv(N-1)d` to `rebnconv1d`.
    pub(super) fn load(
        weights: &Weights,
        inputs: usize,
        inside: Inside,
    ) -> std::result::Result<Self, MattingError> {
        let (count, halving) = match inside {
            Inside::Halving(count) => (count, true),
            Inside::Dilated => (4, false),
        };
        // `i` is counted from 1, as in the names.
        let dilation = |i: usize| match inside {
            Inside::Halving(count) => 1 + usize::from(i == count),
            Inside::Dilated => 1 << (i - 1),
        };
        let input = ConvRelu::load(&weights.scope("rebnconvin"), inputs, 1)?;
        let mut channels = input.outputs();
        let mut encoders: Vec<ConvRelu> = Vec::with_capacity(count);
        for i in 1..=count {
            let encoder = ConvRelu::load(&weights.scope(format!("rebnconv{i}")), channels, dilation(i))?;
            channels = encoder.outputs();
            encoders.push(encoder);
        }
        let mut decoders = Vec::with_capacity(count - 1);
        for (i, skip) in (1..count).zip(&encoders).rev() {
            let scope = weights.scope(format!("rebnconv{i}d"));
            let decoder = ConvRelu::load(&scope, channels + skip.outputs(), dilation(i))?;
            channels = decoder.outputs();
            decoders.push(decoder);
        }
        if channels != input.outputs() {
            return Err(MattingError::Layout {
                file: weights.origin().to_owned(),
                reason: format!(
                    "a block's input of {} channels cannot be added to its output of {channels}",
                    input.outputs()
                ),
            });
        }
        Ok(Self { input, encoders, decoders, halving })
    }

    /// Channels of the output.
    pub(super) fn outputs(&self) -> usize {
        self.input.outputs()
    }

    /// `[b, h, w, inputs] -> [b, h, w, outputs]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let input = self.input.forward(x)?;
        let innermost = self.encoders.len() - 1;
        let mut x = input.clone();
        let mut skips = Vec::with_capacity(innermost);
        for (i, encoder) in self.encoders.iter().enumerate() {
            if self.halving && i > 0 && i < innermost {
                x = halved(&x)?;
            }
            x = encoder.forward(&x)?;
            if i < innermost {
                skips.push(x.clone());
            }
        }
        for decoder in &self.decoders {
            let Some(skip) = skips.pop() else { break };
            x = decoder.forward(&joined(&x, &skip)?)?;
        }
        x + input
    }
}

/// `x`, brought to the size of `skip`, beside it.
pub(super) fn joined(x: &Tensor, skip: &Tensor) -> Result<Tensor> {
    let (_, h, w, _) = skip.dims4()?;
    Tensor::cat(&[&sized(x, h, w)?, skip], 3)
}

/// `[b, .., .., c] -> [b, height, width, c]`.
pub(super) fn sized(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, h, w, _) = x.dims4()?;
    if (h, w) == (height, width) { Ok(x.clone()) } else { resize(x, height, width, Interpolation::Bilinear) }
}

/// The largest of every 2×2 pixels; sides are rounded up.
pub(super) fn halved(x: &Tensor) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    let (rows, columns) = (h.div_ceil(2), w.div_ceil(2));
    // The last row and column again where their number is odd, which changes no maximum.
    let x = x.pad_with_same(1, 0, 2 * rows - h)?.pad_with_same(2, 0, 2 * columns - w)?.contiguous()?;
    let x = x.reshape((b, rows, 2, 2 * columns * c))?;
    let x = x.narrow(2, 0, 1)?.contiguous()?.maximum(&x.narrow(2, 1, 1)?.contiguous()?)?;
    let x = x.reshape((b * rows * columns, 2, c))?;
    let x = x.narrow(1, 0, 1)?.contiguous()?.maximum(&x.narrow(1, 1, 1)?.contiguous()?)?;
    x.reshape((b, rows, columns, c))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn halving_takes_the_largest_and_keeps_the_odd_ones_out() {
        let x = Tensor::from_slice(
            &[1f32, 5.0, -3.0, 2.0, 4.0, -2.0, -7.0, -9.0, -8.0],
            (1, 3, 3, 1),
            &Device::Cpu,
        );
        let y = halved(&x.unwrap()).unwrap();
        assert_eq!(y.dims(), [1, 2, 2, 1]);
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [5.0, -2.0, -7.0, -8.0]);
    }

    #[test]
    fn gaps_in_a_kernel_are_the_kernel_on_every_nth_pixel() {
        let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let (weight, bias) = (random(&[4, 3, 3, 2]), random(&[4]));
        for (dilation, h, w) in [(2, 5, 8), (4, 7, 3), (8, 9, 16)] {
            let x = random(&[2, h, w, 2]);
            let conv = Conv3x3 { weight: weight.clone(), bias: bias.clone(), stride: 1 };
            let actual = ConvRelu { conv, dilation }.forward(&x).unwrap();
            let first = |t: &Tensor| t.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap();
            let expected = first(&x).conv2d(&first(&weight), dilation, 1, dilation, 1).unwrap();
            let expected =
                expected.broadcast_add(&bias.reshape((1, 4, 1, 1)).unwrap()).unwrap().relu().unwrap();
            let worst = (first(&actual) - expected).unwrap().abs().unwrap().max_all().unwrap();
            assert!(worst.to_scalar::<f32>().unwrap() < 1e-4, "dilation {dilation} at {w}×{h}");
        }
    }
}
