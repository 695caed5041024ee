//! Root-mean-square normalisation.

use candle_core::{D, DType, Error, Result, Tensor, bail};

use super::compile::{Source, function};
use super::launch::{self, Dense, launch};
use super::operand::operand;
use super::packs;
use super::row_threads::RowThreads;
use crate::Activation;

const SOURCE: Source = Source { name: "rms_norm", text: include_str!("../../cuda/rms_norm.cu") };

/// Whether the kernel takes `x`.
pub(crate) fn takes(x: &Tensor) -> bool {
    launch::takes(x) && x.dim(D::Minus1).is_ok_and(|width| RowThreads::of(width, 1).is_some())
}

/// `activation(x / √(mean(x²) + eps) · weight)` of each row; shapes have been checked, and [`takes`] it.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, activation: Activation) -> Result<Tensor> {
    let device = launch::device(x)?;
    let (dtype, width) = (x.dtype(), x.dim(D::Minus1)?);
    let rows = x.elem_count() / width;
    let pack = packs::width(dtype, &[width]);
    let Some(threads) = RowThreads::of(width, pack) else { bail!("rms_norm: rows of {width} are too wide") };
    let x = Dense::of(x)?;
    let weight = operand(weight, DType::F32, x.tensor().device())?;
    let y = Dense::unset(x.tensor().shape(), dtype, x.tensor().device())?;
    let mut defines = packs::defines(dtype, pack)?;
    defines.extend(threads.defines());
    let function = function(&device, SOURCE, &defines, "rms_norm")?;
    let number = |n: usize| u32::try_from(n).map_err(Error::wrap);
    let blocks = number(threads.blocks(rows))?;
    let config = launch::grid((blocks, 1, 1), number(threads.block)?, number(threads.shared())?);
    launch!(
        device,
        function,
        config,
        x.address(),
        weight.address(),
        y.address(),
        rows as u64,
        number(width)?,
        eps as f32,
        activation.code(),
    )?;
    Ok(y.into_tensor())
}
