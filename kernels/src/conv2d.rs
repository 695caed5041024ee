//! 2-D convolution, channels-last.

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Result, Tensor, bail};

use crate::Precision;
use crate::cpu::gemm::{self, Dense, Im2col, Problem, with_kernel};
use crate::cpu::isa::Isa;
use crate::cpu::tensors::{self, with_elements};
use crate::cpu::winograd;
#[cfg(feature = "cuda")]
use crate::cuda::{conv2d as cuda, launch};
use crate::reference;

/// Rows and columns of zeros around a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Columns to the left.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub const fn all(n: usize) -> Self {
        Self { top: n, left: n, bottom: n, right: n }
    }
}

/// How a kernel moves over a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dGeometry {
    /// Step of the kernel in both directions.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: Padding,
}

/// The most zeros on one side: far beyond any network, far below where sizes could overflow.
const MAX_PADDING: usize = 1 << 16;

/// The fewest input channels that are worth [`Precision::Bf16`]: what one tile holds.
const BF16_CHANNELS: usize = 32;

impl Conv2dGeometry {
    /// Height and width of the output; `None` when the kernel does not fit the padded picture, the stride is
    /// zero or the padding absurd.
    pub(crate) fn output(&self, h: usize, w: usize, kh: usize, kw: usize) -> Option<(usize, usize)> {
        let p = self.padding;
        if [p.top, p.left, p.bottom, p.right].iter().any(|&side| side > MAX_PADDING) {
            return None;
        }
        let height = (h + p.top + p.bottom).checked_sub(kh)?.checked_div(self.stride)? + 1;
        let width = (w + p.left + p.right).checked_sub(kw)?.checked_div(self.stride)? + 1;
        Some((height, width))
    }
}

/// `x: [b, h, w, in]` convolved with `weight: [out, kh, kw, in]`, plus `bias: [out]`.
/// Returns `[b, h', w', out]`, `h' = (h + top + bottom - kh) / stride + 1`.
///
/// # Errors
/// When the shapes do not fit each other, the kernel is larger than the padded picture, the stride or a
/// dimension is zero, or a side's padding is beyond 65536.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
) -> Result<Tensor> {
    conv2d_at(x, weight, bias, geometry, Precision::Full)
}

/// [`conv2d`], with products formed at `precision`.
///
/// # Errors
/// As [`conv2d`].
pub fn conv2d_at(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
    precision: Precision,
) -> Result<Tensor> {
    check(x, weight, bias, geometry, false)?;
    #[cfg(feature = "cuda")]
    if launch::takes(x) {
        return cuda::convolve(&cuda::Problem::new(x, weight, bias, geometry));
    }
    if !tensors::takes_activation(x) || !tensors::takes_weight(weight) {
        return reference::conv2d(x, weight, bias, geometry);
    }
    on_cpu(Isa::detect(), precision, x, weight, bias, geometry)
}

/// [`conv2d_at`] plus `residual`: `[b, h', w', out]`, or `[b, 1, 1, out]` for what all pixels of a sample get. On
/// GPUs a pass less than adding it afterwards.
///
/// # Errors
/// As [`conv2d`], and when the residual has another shape.
pub fn conv2d_add(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: &Tensor,
    geometry: Conv2dGeometry,
    precision: Precision,
) -> Result<Tensor> {
    let output = check(x, weight, bias, geometry, false)?;
    let of_samples = residual.dims() == [output[0], 1, 1, output[3]];
    if residual.dims() != output && !of_samples {
        bail!("conv2d_add: residual {:?} is not {output:?}", residual.shape());
    }
    #[cfg(feature = "cuda")]
    if launch::takes(x) {
        let problem = cuda::Problem::new(x, weight, bias, geometry);
        if residual.dims() == output {
            return cuda::convolve(&cuda::Problem { residual: Some(residual), ..problem });
        }
        let mut row = residual.reshape((output[0], output[3]))?.to_dtype(DType::F32)?;
        if let Some(bias) = bias {
            row = row.broadcast_add(&bias.to_dtype(DType::F32)?)?;
        }
        return cuda::convolve(&cuda::Problem { bias: Some(&row), ..problem });
    }
    let y = conv2d_at(x, weight, bias, geometry, precision)?;
    let residual = residual.to_dtype(y.dtype())?;
    if of_samples {
        return y.broadcast_add(&residual);
    }
    // In place: nothing else has seen it yet.
    crate::add_to_rows(&y, 0, &residual)?;
    Ok(y)
}

/// [`conv2d_at`] of `x` with height and width doubled by repeating pixels ([`crate::upsample_nearest_2x`]); the sizes
/// of the output are those of the doubled picture. On GPUs it need never be in memory.
///
/// # Errors
/// As [`conv2d`].
pub fn conv2d_upsampled_2x(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
    precision: Precision,
) -> Result<Tensor> {
    check(x, weight, bias, geometry, true)?;
    #[cfg(feature = "cuda")]
    if launch::takes(x) {
        let problem = cuda::Problem::new(x, weight, bias, geometry);
        return cuda::convolve(&cuda::Problem { upsampled: true, ..problem });
    }
    conv2d_at(&crate::upsample_nearest_2x(x)?, weight, bias, geometry, precision)
}

/// The shape of the output, if the operands fit each other.
pub(crate) fn check(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
    upsampled: bool,
) -> Result<[usize; 4]> {
    let (b, h, w, channels) = x.dims4()?;
    let (out, kh, kw, inner) = weight.dims4()?;
    if channels != inner || bias.is_some_and(|b| b.dims() != [out]) {
        let bias = bias.map(Tensor::shape);
        bail!("conv2d: x {:?}, weight {:?} and bias {bias:?} do not fit", x.shape(), weight.shape());
    }
    if x.elem_count() == 0 || weight.elem_count() == 0 {
        bail!("conv2d: x {:?} or weight {:?} is empty", x.shape(), weight.shape());
    }
    let times = if upsampled { 2 } else { 1 };
    match geometry.output(times * h, times * w, kh, kw) {
        Some((height, width)) => Ok([b, height, width, out]),
        None => {
            bail!("conv2d: {geometry:?} and weight {:?} make no picture of x {:?}", weight.shape(), x.shape())
        }
    }
}

fn on_cpu(
    isa: Isa,
    precision: Precision,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: Conv2dGeometry,
) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let (b, height, width, channels) = x.dims4()?;
    let (n, kh, kernel_width, _) = weight.dims4()?;
    let p = geometry.padding;
    let Some((out_height, out_width)) = geometry.output(height, width, kh, kernel_width) else {
        bail!("conv2d: {geometry:?} makes no picture of x {:?}", x.shape());
    };
    let (m, depth) = (b * out_height * out_width, kh * kernel_width * channels);
    let bias = bias.map(tensors::widened).transpose()?;
    let (x_storage, x_layout) = x.storage_and_layout();
    let (w_storage, w_layout) = weight.storage_and_layout();
    let picture = tensors::floats(&x_storage, x_layout)?;
    let w = tensors::elements(&w_storage, w_layout)?;
    let zeros = vec![0f32; channels];
    // Rounding gains nothing where a picture is packed a few channels at a time.
    let precision = if channels < BF16_CHANNELS { Precision::Full } else { precision };
    let pointwise = kh == 1 && kernel_width == 1 && geometry.stride == 1 && p == Padding::all(0);
    // Winograd's transforms would magnify what rounding to `bf16` loses.
    let winograd_fits = (kh, kernel_width, geometry.stride) == (3, 3, 1)
        && !gemm::takes_bf16(precision, n, depth)
        && winograd::pays(b, out_height, out_width, channels, n);
    // SAFETY: the kernel is one the machine has; sizes were checked by the caller; every element of `C` is
    // written.
    unsafe {
        tensors::build((b, out_height, out_width, n), |c| {
            if winograd_fits {
                with_elements!(w, weight => {
                    let problem = winograd::Problem {
                        x: picture, weight, bias: bias.as_deref(), batch: b, height, width, channels, out: n,
                        out_height, out_width, top: p.top, left: p.left,
                    };
                    with_kernel!(isa, K => winograd::convolve::<K, _>(isa, &problem, c));
                });
                return Ok(());
            }
            with_elements!(w, w => {
                let w = Dense { elements: w, width: depth };
                if pointwise {
                    let a = Dense { elements: picture, width: depth };
                    let problem = Problem { m, n, depth, a, w, bias: bias.as_deref(), accumulate: false };
                    gemm::solve(isa, precision, &problem, c);
                } else {
                    let a = Im2col {
                        picture, height, width, channels, out_height, out_width, kernel_width, geometry,
                        zeros: &zeros,
                    };
                    let problem = Problem { m, n, depth, a, w, bias: bias.as_deref(), accumulate: false };
                    gemm::solve(isa, precision, &problem, c);
                }
            });
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::cpu::oracle::{random, worst};

    #[test]
    fn every_instruction_set_gives_the_reference_convolution() {
        let padding = Padding { top: 0, left: 2, bottom: 1, right: 1 };
        for (channels, out, stride) in [(5, 7, 2), (40, 50, 1), (130, 33, 1)] {
            let x = random(&[2, 9, 10, channels]);
            let weight = random(&[out, 3, 3, channels]).to_dtype(DType::BF16).unwrap();
            let geometry = Conv2dGeometry { stride, padding };
            let slow = reference::conv2d(&x, &weight, None, geometry).unwrap();
            for isa in Isa::available() {
                let fast = on_cpu(isa, Precision::Full, &x, &weight, None, geometry).unwrap();
                let error = worst(&fast, &slow);
                // The bound for Winograd, which the wider two take.
                assert!(error < 3e-5, "{isa:?} {channels}->{out} stride {stride}: {error:e}");
            }
        }
    }
}
