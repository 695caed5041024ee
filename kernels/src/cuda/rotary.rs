//! Rotary position embedding.

use candle_core::{DType, Error, Result, Tensor};

use super::compile::{Source, function};
use super::launch::{self, Dense, launch};
use super::operand::operand;
use super::packs;
use super::view::View;
use crate::RotaryPairs;

const SOURCE: Source = Source { name: "rotary", text: include_str!("../../cuda/rotary.cu") };

/// `x: [b, n, heads · d]` with each pair turned; shapes have been checked, and `x` is of a type that kernels take.
pub(crate) fn rotary(
    x: &Tensor,
    heads: usize,
    cos: &Tensor,
    sin: &Tensor,
    pairs: RotaryPairs,
) -> Result<Tensor> {
    let device = launch::device(x)?;
    let (dtype, (batch, tokens, inner)) = (x.dtype(), x.dims3()?);
    let half = inner / heads / 2;
    let (pack, threads, name) = match pairs {
        RotaryPairs::Adjacent => {
            let pack = packs::width(dtype, &[2 * half]);
            (pack, inner / pack, "rotate_adjacent")
        }
        RotaryPairs::Halves => {
            let pack = packs::width(dtype, &[half]);
            (pack, inner / 2 / pack, "rotate_halves")
        }
    };
    let y = Dense::unset(x.shape(), dtype, x.device())?;
    let (cos, sin) = (operand(cos, DType::F32, x.device())?, operand(sin, DType::F32, x.device())?);
    let x = View::of(x, pack * dtype.size_in_bytes())?;
    let function = function(&device, SOURCE, &packs::defines(dtype, pack)?, name)?;
    let number = |n: usize| u32::try_from(n).map_err(Error::wrap);
    launch!(
        device,
        function,
        launch::rows(batch * tokens, threads)?,
        x.address,
        cos.address(),
        sin.address(),
        y.address(),
        x.steps[0] as u64,
        x.steps[1] as u64,
        number(tokens)?,
        number(threads)?,
        number(half)?,
    )?;
    Ok(y.into_tensor())
}
