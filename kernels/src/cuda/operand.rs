//! Weights in the type that a kernel wants, made where the kernel runs.
//!
//! While a computation is recorded as a graph its activations belong to another stream than the weights, which the graph
//! reads each time it is replayed. What is made of weights on the way must therefore be made by the graph: candle's own
//! conversions would run in the weights' stream, once.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::cuda::compile::{Source, function};
use crate::cuda::launch::{self, Dense, launch};

const SOURCE: Source = Source { name: "convert", text: include_str!("../../cuda/convert.cu") };
const THREADS: u32 = 256;
/// Elements of a thread.
const EACH: usize = 4;

/// `x`, dense and in `dtype`, for kernels in the stream of `on`.
pub(crate) fn operand(x: &Tensor, dtype: DType, on: &Device) -> Result<Dense> {
    // With these `Dense::of` copies nothing.
    let ready = x.is_contiguous() && launch::first_address(x)?.is_multiple_of(16);
    if !ready && !x.device().same_device(on) {
        bail!("a weight {:?} that is a view cannot be used from another stream than its own", x.shape());
    }
    let x = Dense::of(x)?;
    if x.tensor().dtype() == dtype { Ok(x) } else { converted(&x, dtype, on) }
}

/// A product's result in `dtype`.
pub(crate) fn result(y: Dense, dtype: DType) -> Result<Tensor> {
    if y.tensor().dtype() == dtype {
        return Ok(y.into_tensor());
    }
    let on = y.tensor().device().clone();
    Ok(converted(&y, dtype, &on)?.into_tensor())
}

fn converted(x: &Dense, dtype: DType, on: &Device) -> Result<Dense> {
    let Device::Cuda(device) = on else { bail!("a CUDA device is needed here") };
    let length = x.tensor().elem_count();
    let y = Dense::unset(x.tensor().shape(), dtype, on)?;
    let defines = [format!("FROM={}", name(x.tensor().dtype())?), format!("TO={}", name(dtype)?)];
    let function = function(device, SOURCE, &defines, "convert")?;
    let config = launch::blocks(length.div_ceil(EACH), THREADS)?;
    launch!(device, function, config, x.address(), y.address(), length as u64)?;
    Ok(y)
}

/// What kernels call a type.
fn name(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("float"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        other => bail!("{other:?} is no type of weights"),
    }
}
