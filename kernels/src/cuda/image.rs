//! Pictures as bytes.

use candle_core::{DType, Result, Tensor};

use super::compile::{Source, function};
use super::launch::{self, Dense, launch};

const SOURCE: Source = Source { name: "image", text: include_str!("../../cuda/image.cu") };
const THREADS: u32 = 256;

/// A byte of each value.
pub(crate) fn to_bytes(x: &Tensor) -> Result<Tensor> {
    let (device, dtype, length) = (launch::device(x)?, x.dtype(), x.elem_count());
    let x = Dense::of(x)?;
    let y = Dense::unset(x.tensor().shape(), DType::U8, x.tensor().device())?;
    let function = function(&device, SOURCE, &[launch::element(dtype)?], "to_bytes")?;
    let config = launch::blocks(length.div_ceil(16 / dtype.size_in_bytes()), THREADS)?;
    launch!(device, function, config, x.address(), y.address(), length as u64)?;
    Ok(y.into_tensor())
}
