//! Layer normalisation, of rows and of sums of rows.

use candle_core::{D, DType, Error, Result, Tensor};

use super::compile::{Source, function};
use super::launch::{self, Dense, launch};
use super::operand::operand;
use super::packs;

const SOURCE: Source = Source { name: "layer_norm", text: include_str!("../../cuda/layer_norm.cu") };
/// Elements of a row that one thread holds at most, so that all stay in registers.
const MOST_OF_THREAD: usize = 48;
/// Threads of a row: a warp, or a block where a warp would hold too much.
const WARP: usize = 32;
const BLOCK: usize = 256;
/// Threads of a block whose warps have a row each.
const WARPS_OF_ROWS: usize = 128;

/// Whether the kernel takes `x`.
pub(crate) fn takes(x: &Tensor) -> bool {
    launch::takes(x) && x.dim(D::Minus1).is_ok_and(|width| width <= BLOCK * MOST_OF_THREAD)
}

/// The normalised rows of `x`, or of `x + residual`, and that sum; shapes have been checked, and [`takes`] it.
pub(crate) fn layer_norm(
    x: &Tensor,
    residual: Option<&Tensor>,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Option<Tensor>, Tensor)> {
    let device = launch::device(x)?;
    let dtype = x.dtype();
    let width = x.dim(D::Minus1)?;
    let rows = x.elem_count() / width;
    let x = Dense::of(x)?;
    let residual = residual.map(Dense::of).transpose()?;
    let residual_at = residual.as_ref().map_or(0, Dense::address);
    let unset = || Dense::unset(x.tensor().shape(), dtype, x.tensor().device());
    let sum = if residual.is_some() { Some(unset()?) } else { None };
    let sum_at = sum.as_ref().map_or(0, Dense::address);
    let y = unset()?;
    let on = x.tensor().device();
    let (weight, bias) = (operand(weight, DType::F32, on)?, operand(bias, DType::F32, on)?);

    let pack = packs::width(dtype, &[width]);
    let lanes = if width <= WARP * MOST_OF_THREAD { WARP } else { BLOCK };
    let threads = if lanes == WARP { WARPS_OF_ROWS } else { BLOCK };
    let mut defines = packs::defines(dtype, pack)?;
    defines.extend([format!("LANES={lanes}"), format!("PACKS={}", width.div_ceil(pack * lanes))]);

    let number = |n: usize| u32::try_from(n).map_err(Error::wrap);
    let function = function(&device, SOURCE, &defines, "layer_norm")?;
    let blocks = number(rows.div_ceil(threads / lanes))?;
    let config = launch::grid((blocks, 1, 1), number(threads)?, number(threads / WARP * size_of::<f32>())?);
    launch!(
        device,
        function,
        config,
        x.address(),
        residual_at,
        weight.address(),
        bias.address(),
        sum_at,
        y.address(),
        rows as u64,
        number(width)?,
        eps as f32,
    )?;
    Ok((sum.map(Dense::into_tensor), y.into_tensor()))
}
