//! Embeddings of numbers.

use candle_core::{DType, Error, Result, Tensor};

use super::compile::{Source, function};
use super::launch::{self, Dense, launch};

const SOURCE: Source = Source { name: "embedding", text: include_str!("../../cuda/embedding.cu") };
const THREADS: u32 = 128;

/// `[n] -> [n, 2 half]`.
pub(crate) fn sinusoid(numbers: &Tensor, half: usize) -> Result<Tensor> {
    let device = launch::device(numbers)?;
    let n = numbers.elem_count();
    let numbers = Dense::of(&numbers.to_dtype(DType::F32)?)?;
    let y = Dense::unset((n, 2 * half), DType::F32, numbers.tensor().device())?;
    let number = |n: usize| u32::try_from(n).map_err(Error::wrap);
    // The kernel counts its elements in 32 bits.
    number(n * half)?;
    let function = function(&device, SOURCE, &[], "sinusoid")?;
    let config = launch::blocks(n * half, THREADS)?;
    launch!(device, function, config, numbers.address(), y.address(), number(n)?, number(half)?)?;
    Ok(y.into_tensor())
}
