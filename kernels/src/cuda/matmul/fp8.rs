//! 8-bit products: rounding with scales found on the way and widening (`kernels/cuda/quantize.cu`), and cuBLASLt's
//! product of codes.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{CudaDevice, DType, Device, Error, Result, Tensor, bail};

use super::library::{self, Addresses};
use super::plan::{Problem, Scales};
use crate::Fp8Scaling;
use crate::cuda::compile::{Source, function};
use crate::cuda::launch::{self, Dense, launch};
use crate::cuda::operand::operand;

const SOURCE: Source = Source { name: "quantize", text: include_str!("../../../cuda/quantize.cu") };
const THREADS: u32 = 256;

/// Blocks that share the search for the largest of a whole tensor: enough for a card, few enough to be read by each.
const MOST_PARTS: usize = 1024;

/// Codes, `[rows, width]` of `u8`, and their scales, `[rows]` or `[1]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Codes<'a> {
    pub(crate) values: &'a Tensor,
    pub(crate) scales: &'a Tensor,
}

/// The scaling that cuBLASLt takes on this card: by rows if it can.
pub(crate) fn scaling(device: &CudaDevice) -> Result<Option<Fp8Scaling>> {
    static KNOWN: OnceLock<Mutex<HashMap<usize, Option<Fp8Scaling>>>> = OnceLock::new();
    let stream = device.cuda_stream();
    let ordinal = stream.context().ordinal();
    let mut known = KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(scaling) = known.get(&ordinal) {
        return Ok(*scaling);
    }
    let mut scaling = None;
    if stream.context().compute_capability().map_err(Error::wrap)? >= (8, 9) {
        let library = library::of(device)?;
        let library = library.lock().unwrap_or_else(PoisonError::into_inner);
        for candidate in [Fp8Scaling::Row, Fp8Scaling::Tensor] {
            let mut all = true;
            for (result, m, bias) in
                [(DType::BF16, 4096, true), (DType::F16, 16, true), (DType::F32, 1, false)]
            {
                all &= library.offers(&problem([m, 640, 640], result, bias, true, candidate))?;
            }
            if all {
                scaling = Some(candidate);
                break;
            }
        }
    }
    known.insert(ordinal, scaling);
    Ok(scaling)
}

fn problem([m, n, k]: [usize; 3], result: DType, bias: bool, adds: bool, scaling: Fp8Scaling) -> Problem {
    Problem {
        m,
        n,
        k,
        factors: DType::F8E4M3,
        result,
        bias,
        bias_type: result,
        adds,
        alignment: 16,
        scales: match scaling {
            Fp8Scaling::Row => Scales::Row,
            Fp8Scaling::Tensor => Scales::Tensor,
        },
        tuning: super::tuning(),
    }
}

/// Codes and scales of `x: [rows, width]`. The caller has checked shape and type.
pub(crate) fn quantize(x: &Tensor, scaling: Fp8Scaling) -> Result<(Tensor, Tensor)> {
    let device = launch::device(x)?;
    let (rows, width) = x.dims2()?;
    let (x, codes) = (Dense::of(x)?, Dense::unset((rows, width), DType::U8, x.device())?);
    let dtype = x.tensor().dtype();
    let defines = [launch::element(dtype)?];
    let on = x.tensor().device();
    let number = |n: usize| i32::try_from(n).map_err(Error::wrap);
    if scaling == Fp8Scaling::Row {
        let scales = Dense::unset(rows, DType::F32, on)?;
        let function = function(&device, SOURCE, &defines, "quantize_rows")?;
        // A warp a row.
        let config = launch::blocks(rows * 32, THREADS)?;
        let (rows, width) = (number(rows)?, number(width)?);
        launch!(device, function, config, x.address(), codes.address(), scales.address(), rows, width)?;
        return Ok((codes.into_tensor(), scales.into_tensor()));
    }
    let packs = rows * width * dtype.size_in_bytes() / 16;
    let count = packs.div_ceil(THREADS as usize).min(MOST_PARTS);
    let (parts, scale) = (Dense::unset(count, DType::F32, on)?, Dense::unset(1, DType::F32, on)?);
    let config = launch::grid((u32::try_from(count).map_err(Error::wrap)?, 1, 1), THREADS, 32);
    let find = function(&device, SOURCE, &defines, "largest_parts")?;
    launch!(device, find, config, x.address(), parts.address(), packs as u64)?;
    let round = function(&device, SOURCE, &defines, "quantize_all")?;
    let (to, by, count) = (codes.address(), scale.address(), number(count)?);
    launch!(device, round, config, x.address(), to, by, parts.address(), count, packs as u64)?;
    Ok((codes.into_tensor(), scale.into_tensor()))
}

/// The numbers that `codes`, `[rows, width]`, stand for, in `dtype`, for kernels in the stream of `on`.
pub(crate) fn widen(codes: Codes<'_>, dtype: DType, on: &Device) -> Result<Tensor> {
    let Device::Cuda(device) = on else { bail!("a CUDA device is needed here") };
    let (rows, width) = codes.values.dims2()?;
    let values = operand(codes.values, DType::U8, on)?;
    let scales = operand(codes.scales, DType::F32, on)?;
    let y = Dense::unset((rows, width), dtype, on)?;
    // A width of none: one scale for all.
    let width = if codes.scales.elem_count() > 1 { u32::try_from(width).map_err(Error::wrap)? } else { 0 };
    let length = values.tensor().elem_count();
    let function = function(device, SOURCE, &[launch::element(dtype)?], "widen")?;
    let config = launch::blocks(length.div_ceil(16 / dtype.size_in_bytes()), THREADS)?;
    launch!(device, function, config, values.address(), scales.address(), y.address(), length as u64, width)?;
    Ok(y.into_tensor())
}

/// `x · weightᵀ + bias + residual` of `dtype` and shape `dims`. The caller has checked shapes.
pub(crate) fn linear(
    x: Codes<'_>,
    weight: Codes<'_>,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    dims: &[usize],
    dtype: DType,
) -> Result<Tensor> {
    let device = launch::device(x.values)?;
    let ((m, k), (n, _)) = (x.values.dims2()?, weight.values.dims2()?);
    let by_row = weight.scales.elem_count() > 1;
    let scaling = if by_row { Fp8Scaling::Row } else { Fp8Scaling::Tensor };
    // cuBLASLt would have a bias of 8-bit products with results in f32 in bf16.
    let (fused, apart) = if dtype == DType::F32 { (None, bias) } else { (bias, None) };
    let library = library::of(&device)?;
    let mut library = library.lock().unwrap_or_else(PoisonError::into_inner);
    let problem = problem([m, n, k], dtype, fused.is_some(), residual.is_some(), scaling);
    let on = x.values.device();
    let as_is = |x: &Tensor| operand(x, x.dtype(), on);
    let (x_values, weight_values) = (as_is(x.values)?, as_is(weight.values)?);
    let (x_scales, weight_scales) = (as_is(x.scales)?, as_is(weight.scales)?);
    let bias = fused.map(|bias| operand(bias, dtype, on)).transpose()?;
    let residual = residual.map(as_is).transpose()?;
    let y = Dense::unset(dims, dtype, on)?;
    let address = |of: &Option<Dense>| of.as_ref().map_or(0, Dense::address);
    let at = Addresses {
        weight: weight_values.address(),
        x: x_values.address(),
        bias: address(&bias),
        residual: address(&residual),
        y: y.address(),
        scales: [weight_scales.address(), x_scales.address()],
    };
    // SAFETY: as in `super::linear`; there is a scale for each row, or one for all, as the problem says.
    if !unsafe { library.multiply(&device.cuda_stream(), &problem, at) }? {
        bail!("fp8: cuBLASLt has no 8-bit product of {m} x {k} and {n} x {k} to {dtype:?} on this card");
    }
    let y = y.into_tensor();
    match apart {
        Some(bias) => y.broadcast_add(&bias.to_dtype(dtype)?),
        None => Ok(y),
    }
}
