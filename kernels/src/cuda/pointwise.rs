//! Operations of each element on its own.

use candle_core::{Result, Tensor};

use super::compile::{Source, function};
use super::launch::{self, Dense, launch};
use crate::Activation;

const SOURCE: Source = Source { name: "pointwise", text: include_str!("../../cuda/pointwise.cu") };
const THREADS: u32 = 256;

/// `activation` of every element.
pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    let device = launch::device(x)?;
    let (x, y) = (Dense::of(x)?, Dense::unset(x.shape(), x.dtype(), x.device())?);
    let length = x.tensor().elem_count();
    let function = function(&device, SOURCE, &[launch::element(x.tensor().dtype())?], "activate")?;
    let each = 16 / x.tensor().dtype().size_in_bytes();
    let config = launch::blocks(length.div_ceil(each), THREADS)?;
    launch!(device, function, config, x.address(), y.address(), length as u64, activation.code())?;
    Ok(y.into_tensor())
}
