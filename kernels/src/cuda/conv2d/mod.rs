//! Convolution on CUDA: by cuDNN where it takes the problem, else by a kernel of our own, which takes every one.
//!
//! The kernel's sums run in one order, so that with it an image is the same to the bit in every batch. cuDNN chooses
//! an engine for each shape: there another batch may round differently, and nothing else.

mod cudnn;
mod own;

use std::sync::OnceLock;

use candle_core::{DType, Error, Result, Tensor, bail};

use super::launch::{self, Dense};
use super::operand::operand;
use crate::{Activation, Conv2dGeometry, Padding};

/// A convolution whose operands fit each other: `crate::conv2d` checks them.
#[derive(Debug)]
pub(crate) struct Problem<'a> {
    /// `[b, h, w, in]`
    pub(crate) x: &'a Tensor,
    /// `[out, kh, kw, in]`
    pub(crate) weight: &'a Tensor,
    /// `[out]`, or `[b, out]`: one for each sample.
    pub(crate) bias: Option<&'a Tensor>,
    /// `[b, h', w', out]`
    pub(crate) residual: Option<&'a Tensor>,
    /// Of the sum with both.
    pub(crate) activation: Activation,
    /// How the kernel moves over the picture.
    pub(crate) geometry: Conv2dGeometry,
    /// Whether that picture is `x` with height and width doubled by repeating pixels.
    pub(crate) upsampled: bool,
}

impl<'a> Problem<'a> {
    /// A convolution with no more than a bias.
    pub(crate) fn new(
        x: &'a Tensor,
        weight: &'a Tensor,
        bias: Option<&'a Tensor>,
        geometry: Conv2dGeometry,
    ) -> Self {
        let activation = Activation::Identity;
        Self { x, weight, bias, residual: None, activation, geometry, upsampled: false }
    }
}

/// Who convolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvPath {
    /// NVIDIA's cuDNN, with bias, residual and SiLU in the convolution's own kernel, which it compiles for the card,
    /// or after it where it does not fuse them.
    Cudnn,
    /// cuDNN, with all of that in a pass of its own after one of the kernels that it brings along.
    CudnnBare,
    /// The kernel of this crate.
    Own,
}

/// Every number of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    batch: usize,
    /// Of `x`, before it is doubled.
    height: usize,
    width: usize,
    channels: usize,
    out_height: usize,
    out_width: usize,
    out: usize,
    kernel_height: usize,
    kernel_width: usize,
    geometry: Conv2dGeometry,
    upsampled: bool,
}

/// A [`Problem`] as kernels take it.
#[derive(Debug)]
struct Prepared {
    /// In the type of `weight`, which products are formed of.
    x: Dense,
    weight: Dense,
    /// In `f32`.
    bias: Option<Dense>,
    /// In the type of what comes out.
    residual: Option<Dense>,
    /// What comes out.
    dtype: DType,
    activation: Activation,
    sizes: Sizes,
}

impl Sizes {
    fn of(problem: &Problem<'_>) -> Result<Self> {
        let (batch, height, width, channels) = problem.x.dims4()?;
        let (out, kernel_height, kernel_width, _) = problem.weight.dims4()?;
        let (geometry, upsampled) = (problem.geometry, problem.upsampled);
        let times = if upsampled { 2 } else { 1 };
        let size = geometry.output(times * height, times * width, kernel_height, kernel_width);
        let Some((out_height, out_width)) = size else {
            bail!("conv2d: {geometry:?} makes no picture of x {:?}", problem.x.shape());
        };
        Ok(Self {
            batch,
            height,
            width,
            channels,
            out_height,
            out_width,
            out,
            kernel_height,
            kernel_width,
            geometry,
            upsampled,
        })
    }

    /// Pixels of the output, of the whole batch.
    fn rows(&self) -> usize {
        self.batch * self.out_height * self.out_width
    }

    /// Terms of each sum.
    fn depth(&self) -> usize {
        self.kernel_height * self.kernel_width * self.channels
    }

    /// The shape of the output.
    fn output(&self) -> (usize, usize, usize, usize) {
        (self.batch, self.out_height, self.out_width, self.out)
    }
}

impl Prepared {
    fn of(problem: &Problem<'_>) -> Result<Self> {
        let sizes = Sizes::of(problem)?;
        let dtype = problem.x.dtype();
        let products = problem.weight.dtype();
        if !matches!(products, DType::F32 | DType::F16 | DType::BF16) {
            bail!("conv2d: {products:?} is no type of weights");
        }
        let on = problem.x.device();
        let dense =
            |tensor: Option<&Tensor>, dtype| tensor.map(|tensor| operand(tensor, dtype, on)).transpose();
        Ok(Self {
            x: Dense::of(&problem.x.to_dtype(products)?)?,
            weight: Dense::of(problem.weight)?,
            bias: dense(problem.bias, DType::F32)?,
            residual: dense(problem.residual, dtype)?,
            dtype,
            activation: problem.activation,
            sizes,
        })
    }

    /// The type of products.
    fn products(&self) -> DType {
        self.weight.tensor().dtype()
    }

    /// Whether each sample has a bias of its own.
    fn bias_per_sample(&self) -> bool {
        self.bias.as_ref().is_some_and(|bias| bias.tensor().rank() == 2)
    }
}

/// The variable that names who convolves where there is a choice: `cudnn` (if it is not set), `cudnn-bare` or `own`.
/// For measurements of whole networks.
pub const CONV_VARIABLE: &str = "DARKROOM_CONV";

/// Whom [`CONV_VARIABLE`] names; read once.
fn preferred() -> ConvPath {
    static PREFERRED: OnceLock<ConvPath> = OnceLock::new();
    *PREFERRED.get_or_init(|| match std::env::var(CONV_VARIABLE).as_deref() {
        Ok("own") => ConvPath::Own,
        Ok("cudnn-bare") => ConvPath::CudnnBare,
        _ => ConvPath::Cudnn,
    })
}

/// By the preferred path, or by the one that takes everything.
pub(crate) fn convolve(problem: &Problem<'_>) -> Result<Tensor> {
    let prepared = Prepared::of(problem)?;
    match by(preferred(), &prepared)? {
        Some(y) => Ok(y),
        None => own::convolve(&prepared),
    }
}

fn by(path: ConvPath, problem: &Prepared) -> Result<Option<Tensor>> {
    match path {
        ConvPath::Cudnn => cudnn::convolve(problem, true),
        ConvPath::CudnnBare => cudnn::convolve(problem, false),
        ConvPath::Own => own::convolve(problem).map(Some),
    }
}

/// `x · weightᵀ` with all that follows it, by the kernel of this crate: what takes a product that no library does.
/// `x: [.., in]`, `weight: [out, in]`, `bias: [out]`, `residual: [.., out]`.
pub(crate) fn product(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    let (out, inner) = weight.dims2()?;
    let rows = x.elem_count() / inner.max(1);
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = out;
    }
    let x = x.reshape((1, 1, rows, inner))?;
    let weight = weight.reshape((out, 1, 1, inner))?;
    let residual = residual.map(|residual| residual.reshape((1, 1, rows, out))).transpose()?;
    let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(0) };
    let problem = Problem::new(&x, &weight, bias, geometry);
    let problem = Problem { residual: residual.as_ref(), activation, ..problem };
    own::convolve(&Prepared::of(&problem)?)?.reshape(dims)
}

/// A convolution by `path` alone, for checks and measurements: `x: [b, h, w, in]`, `weight: [out, kh, kw, in]`,
/// `bias: [out]`, `residual: [b, h', w', out]`. With `upsampled` it is of `x` with height and width doubled.
///
/// # Errors
/// When the operands do not fit each other or are not on a CUDA device, or `path` does not take them.
pub fn conv2d_by(
    path: ConvPath,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    activation: Activation,
    geometry: Conv2dGeometry,
    upsampled: bool,
) -> Result<Tensor> {
    if !launch::takes(x) {
        bail!("conv2d_by: {:?} on {:?} is not for CUDA's paths", x.dtype(), x.device().location());
    }
    let output = crate::conv2d::check(x, weight, bias, geometry, upsampled)?;
    if residual.is_some_and(|residual| residual.dims() != output) {
        bail!("conv2d_by: residual {:?} is not {output:?}", residual.map(Tensor::shape));
    }
    let prepared = Prepared::of(&Problem { x, weight, bias, residual, activation, geometry, upsampled })?;
    by(path, &prepared)?.ok_or_else(|| {
        let library = super::cudnn::cudnn().map(|cudnn| cudnn.version);
        Error::msg(format!("conv2d_by: cuDNN ({library:?}) does not take {}", cudnn::key(&prepared)))
    })
}
