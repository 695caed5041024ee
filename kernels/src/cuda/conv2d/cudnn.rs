//! Convolution by cuDNN: one graph of the convolution, its bias, a residual and SiLU, or what of it an engine fuses.

use std::fmt::Write as _;
use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::super::cudnn::{self, Attribute, Code, Descriptor, Draft, Kind, Library, TensorSpec, pointwise};
use super::super::launch::{self, Dense};
use super::{Prepared, Sizes, own};
use crate::Activation;

const X: i64 = 1;
const WEIGHT: i64 = 2;
const BIAS: i64 = 3;
const RESIDUAL: i64 = 4;
const Y: i64 = 5;
/// Of values between operations; counted upwards.
const VIRTUAL: i64 = 16;

/// What a graph does beside convolving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fused {
    /// Rows of the bias: 0 where there is none.
    bias_rows: usize,
    residual: bool,
    silu: bool,
}

const BARE: Fused = Fused { bias_rows: 0, residual: false, silu: false };

/// By cuDNN, if there is one and it takes the problem; with all that follows the sums in its own kernel if it may
/// `fuse` and does.
pub(super) fn convolve(problem: &Prepared, fuse: bool) -> Result<Option<Tensor>> {
    let Some(element) = element(problem) else { return Ok(None) };
    let device = launch::device(problem.x.tensor())?;
    let sizes = seen(&problem.sizes);
    let wanted = Fused::of(problem);
    let plan = |fused: Fused| {
        let build = |library| operations(library, &sizes, element, fused);
        cudnn::plan(&device, &name(&sizes, problem.dtype, fused), build)
    };
    let found = if fuse { plan(wanted).map(|plan| (plan, wanted)) } else { None };
    // Else the rest is a pass of its own.
    let found = found.or_else(|| Some((plan(BARE)?, BARE)));
    let Some((plan, fused)) = found else { return Ok(None) };
    // cuDNN reads no picture that is not there.
    let doubled;
    let x = if problem.sizes.upsampled {
        doubled = Dense::of(&crate::upsample_nearest_2x(problem.x.tensor())?)?;
        &doubled
    } else {
        &problem.x
    };
    let y = Dense::unset(sizes.output(), problem.dtype, problem.x.tensor().device())?;
    let mut arguments = vec![(X, x.address()), (WEIGHT, problem.weight.address()), (Y, y.address())];
    if let (Some(bias), true) = (&problem.bias, fused.bias_rows > 0) {
        arguments.push((BIAS, bias.address()));
    }
    if let (Some(residual), true) = (&problem.residual, fused.residual) {
        arguments.push((RESIDUAL, residual.address()));
    }
    // SAFETY: these are the graph's tensors, dense and aligned, with the sizes that `operations` told cuDNN.
    unsafe { cudnn::run(&device, &plan, &arguments) }?;
    let finished = fused == wanted && (wanted.silu || problem.activation == Activation::Identity);
    if finished {
        Ok(Some(y.into_tensor()))
    } else if fused == BARE {
        own::finish(problem, y).map(Some)
    } else {
        crate::activate(y.tensor(), problem.activation).map(Some)
    }
}

/// The element's name, if the problem is one for cuDNN: 16-bit types, whole vectors of channels on both sides.
fn element(problem: &Prepared) -> Option<Code> {
    let vectors = problem.sizes.channels.is_multiple_of(8) && problem.sizes.out.is_multiple_of(8);
    match problem.dtype {
        _ if !vectors || problem.products() != problem.dtype => None,
        DType::F16 => Some(Code::HALF),
        DType::BF16 => Some(Code::BFLOAT16),
        _ => None,
    }
}

/// The picture that is convolved, where it is doubled first.
fn seen(sizes: &Sizes) -> Sizes {
    let times = if sizes.upsampled { 2 } else { 1 };
    Sizes { height: times * sizes.height, width: times * sizes.width, upsampled: false, ..*sizes }
}

impl Fused {
    fn of(problem: &Prepared) -> Self {
        let bias_rows = match &problem.bias {
            None => 0,
            Some(_) if problem.bias_per_sample() => problem.sizes.batch,
            Some(_) => 1,
        };
        Self { bias_rows, residual: problem.residual.is_some(), silu: problem.activation == Activation::Silu }
    }
}

/// What names the graph of a problem.
pub(super) fn key(problem: &Prepared) -> String {
    name(&seen(&problem.sizes), problem.dtype, Fused::of(problem))
}

fn name(sizes: &Sizes, dtype: DType, fused: Fused) -> String {
    let Sizes { batch, height, width, channels, out, kernel_height, kernel_width, geometry, .. } = sizes;
    let p = geometry.padding;
    let mut name = format!(
        "conv2d {dtype:?} x {batch}x{height}x{width}x{channels} weight {out}x{kernel_height}x{kernel_width} \
         stride {} padding {},{},{},{}",
        geometry.stride, p.top, p.left, p.bottom, p.right
    );
    if fused.bias_rows > 0 {
        // Writing to a string cannot fail.
        let _ = write!(name, " bias {}", fused.bias_rows);
    }
    name.push_str(if fused.residual { " residual" } else { "" });
    name.push_str(if fused.silu { " silu" } else { "" });
    name
}

/// NCHW's dimensions of a channels-last tensor and their strides.
fn channels_last(batch: usize, channels: usize, height: usize, width: usize) -> ([i64; 4], [i64; 4]) {
    let [b, c, h, w] = [batch, channels, height, width].map(|n| n as i64);
    ([b, c, h, w], [h * w * c, 1, w * c, c])
}

/// The bare convolution, then each thing that is fused.
fn operations(
    library: &'static Library,
    sizes: &Sizes,
    element: Code,
    fused: Fused,
) -> cudnn::Result<Vec<Arc<Descriptor>>> {
    let tensor =
        |uid, (dims, strides): ([i64; 4], [i64; 4]), element| TensorSpec::new(uid, &dims, &strides, element);
    let picture = channels_last(sizes.batch, sizes.out, sizes.out_height, sizes.out_width);
    let x = channels_last(sizes.batch, sizes.channels, sizes.height, sizes.width);
    let weight = channels_last(sizes.out, sizes.channels, sizes.kernel_height, sizes.kernel_width);
    let x = tensor(X, x, element).descriptor(library)?;
    let weight = tensor(WEIGHT, weight, element).descriptor(library)?;
    let y = tensor(Y, picture, element).descriptor(library)?;
    let mut steps = usize::from(fused.bias_rows > 0) + usize::from(fused.residual) + usize::from(fused.silu);
    // What comes after `steps` more steps: the output, or a value that is never stored, in f32.
    let value = |steps: usize| match steps {
        0 => Ok(Arc::clone(&y)),
        _ => tensor(VIRTUAL + steps as i64, picture, Code::FLOAT).virtual_one().descriptor(library),
    };
    let mut last = value(steps)?;
    let mut operations = vec![convolution(library, sizes, &x, &weight, &last)?];
    let mut then = |mode: Code, with: Option<&Arc<Descriptor>>| -> cudnn::Result<()> {
        steps -= 1;
        let next = value(steps)?;
        operations.push(pointwise(library, mode, &last, with, &next)?);
        last = next;
        Ok(())
    };
    if fused.bias_rows > 0 {
        let bias = channels_last(fused.bias_rows, sizes.out, 1, 1);
        then(Code::ADD, Some(&tensor(BIAS, bias, Code::FLOAT).descriptor(library)?))?;
    }
    if fused.residual {
        then(Code::ADD, Some(&tensor(RESIDUAL, picture, element).descriptor(library)?))?;
    }
    if fused.silu {
        then(Code::SWISH_FWD, None)?;
    }
    Ok(operations)
}

fn convolution(
    library: &'static Library,
    sizes: &Sizes,
    x: &Arc<Descriptor>,
    weight: &Arc<Descriptor>,
    y: &Arc<Descriptor>,
) -> cudnn::Result<Arc<Descriptor>> {
    let (stride, p) = (sizes.geometry.stride as i64, sizes.geometry.padding);
    let how = Draft::new(library, Kind::CONVOLUTION)?
        .i64s(Attribute::CONVOLUTION_SPATIAL_DIMS, &[2])?
        .code(Attribute::CONVOLUTION_COMP_TYPE, Code::FLOAT)?
        .code(Attribute::CONVOLUTION_CONV_MODE, Code::CROSS_CORRELATION)?
        .i64s(Attribute::CONVOLUTION_PRE_PADDINGS, &[p.top as i64, p.left as i64])?
        .i64s(Attribute::CONVOLUTION_POST_PADDINGS, &[p.bottom as i64, p.right as i64])?
        .i64s(Attribute::CONVOLUTION_DILATIONS, &[1, 1])?
        .i64s(Attribute::CONVOLUTION_FILTER_STRIDES, &[stride, stride])?
        .finalized()?;
    Draft::new(library, Kind::OPERATION_CONVOLUTION_FORWARD)?
        .descriptors(Attribute::OPERATION_CONVOLUTION_FORWARD_X, &[Arc::clone(x)])?
        .descriptors(Attribute::OPERATION_CONVOLUTION_FORWARD_W, &[Arc::clone(weight)])?
        .descriptors(Attribute::OPERATION_CONVOLUTION_FORWARD_Y, &[Arc::clone(y)])?
        .descriptors(Attribute::OPERATION_CONVOLUTION_FORWARD_CONV_DESC, &[how])?
        .f32(Attribute::OPERATION_CONVOLUTION_FORWARD_ALPHA, 1.0)?
        .f32(Attribute::OPERATION_CONVOLUTION_FORWARD_BETA, 0.0)?
        .finalized()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{Conv2dGeometry, Padding};

    fn sizes() -> Sizes {
        let padding = Padding { top: 0, left: 1, bottom: 2, right: 3 };
        Sizes {
            batch: 2,
            height: 64,
            width: 48,
            channels: 320,
            out_height: 31,
            out_width: 25,
            out: 640,
            kernel_height: 3,
            kernel_width: 3,
            geometry: Conv2dGeometry { stride: 2, padding },
            upsampled: false,
        }
    }

    #[test]
    fn graphs_that_differ_in_anything_have_different_names() {
        let s = sizes();
        let with = |geometry| Sizes { geometry, ..s };
        let p = s.geometry.padding;
        let others = [
            Sizes { batch: 3, ..s },
            Sizes { height: 65, ..s },
            Sizes { width: 49, ..s },
            Sizes { channels: 328, ..s },
            Sizes { out: 648, ..s },
            Sizes { kernel_height: 1, ..s },
            Sizes { kernel_width: 1, ..s },
            with(Conv2dGeometry { stride: 1, padding: p }),
            with(Conv2dGeometry { stride: 2, padding: Padding { top: 1, ..p } }),
            with(Conv2dGeometry { stride: 2, padding: Padding { left: 0, ..p } }),
            with(Conv2dGeometry { stride: 2, padding: Padding { bottom: 1, ..p } }),
            with(Conv2dGeometry { stride: 2, padding: Padding { right: 1, ..p } }),
            s,
        ];
        let mut names = HashSet::new();
        for sizes in others {
            assert!(names.insert(name(&sizes, DType::BF16, BARE)), "{sizes:?}");
        }
        assert!(names.insert(name(&s, DType::F16, BARE)));
        for (bias_rows, residual, silu) in
            [(1, false, false), (2, false, false), (0, true, false), (0, false, true)]
        {
            assert!(names.insert(name(&s, DType::BF16, Fused { bias_rows, residual, silu })));
        }
    }

    #[test]
    fn a_channels_last_picture_has_neighbouring_channels() {
        let (dims, strides) = channels_last(2, 320, 64, 48);
        assert_eq!(dims, [2, 320, 64, 48]);
        assert_eq!(strides, [64 * 48 * 320, 1, 48 * 320, 320]);
    }

    #[test]
    fn cudnn_sees_an_upsampled_picture_in_its_full_size() {
        let doubled = seen(&Sizes { upsampled: true, ..sizes() });
        assert_eq!((doubled.height, doubled.width, doubled.upsampled), (128, 96, false));
        assert_eq!(seen(&sizes()), sizes());
    }

    /// A square picture convolved so that only the stride changes its size; a stride of 2 pads as a VAE does.
    fn square(batch: usize, side: usize, channels: usize, out: usize, kernel: usize, stride: usize) -> Sizes {
        let half = kernel / 2;
        let before = if stride == 2 { 0 } else { half };
        let padding = Padding { top: before, left: before, bottom: half, right: half };
        let geometry = Conv2dGeometry { stride, padding };
        let (out_height, out_width) = geometry.output(side, side, kernel, kernel).unwrap();
        let (height, width, kernel_height, kernel_width) = (side, side, kernel, kernel);
        let upsampled = false;
        Sizes {
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
        }
    }

    /// A plan, by cuDNN's own account, and the same from its text.
    fn planned(sizes: &Sizes, dtype: DType, fused: Fused) -> Option<cudnn::Result<()>> {
        let (library, card) = cudnn::without_a_card::h100()?;
        let target = cudnn::Target::Properties(&card);
        let element = if dtype == DType::BF16 { Code::BFLOAT16 } else { Code::HALF };
        let name = name(sizes, dtype, fused);
        Some(operations(library, sizes, element, fused).and_then(|operations| {
            let plan = cudnn::Plan::search(library, target, &operations, cudnn::MOST_WORKSPACE, &name)?;
            let json = plan.json()?.unwrap();
            let again = cudnn::Plan::from_json(library, target, &json)?;
            assert_eq!(again.workspace(), plan.workspace(), "{name}");
            Ok(())
        }))
    }

    #[test]
    fn cudnn_takes_every_convolution_of_sdxl_on_an_h100() {
        for sizes in [
            square(2, 128, 320, 320, 3, 1),
            square(2, 128, 320, 320, 3, 2),
            square(16, 64, 640, 640, 3, 1),
            square(2, 32, 2560, 1280, 3, 1),
            square(3, 33, 1280, 1280, 3, 1),
            square(1, 1024, 128, 128, 3, 1),
            square(2, 64, 1920, 640, 1, 1),
        ] {
            for dtype in [DType::BF16, DType::F16] {
                let Some(plan) = planned(&sizes, dtype, BARE) else { return };
                plan.unwrap();
            }
        }
    }

    #[test]
    #[allow(clippy::print_stderr, reason = "a test says what it skips")]
    fn cudnn_fuses_what_follows_a_convolution_on_an_h100() {
        for (bias_rows, residual, silu) in
            [(1, false, false), (2, false, false), (1, true, false), (1, true, true)]
        {
            let fused = Fused { bias_rows, residual, silu };
            match planned(&square(2, 128, 320, 320, 3, 1), DType::BF16, fused) {
                None => return,
                // It compiles these for the card, and needs the library of a real driver for that.
                Some(Err(why)) if why.to_string().contains("none was offered") => {
                    eprintln!("not tested: {why}");
                }
                Some(plan) => plan.unwrap(),
            }
        }
    }
}
