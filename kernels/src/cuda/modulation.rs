//! Adaptive layer normalisation, and sums with a gated side: each batch row has numbers of its own, which may be parts of
//! wider rows.

use candle_core::{D, DType, Error, Result, Tensor, bail};

use super::compile::{Source, function};
use super::launch::{self, Dense, launch};
use super::packs;
use super::row_threads::RowThreads;
use super::view::View;

const NORM: Source = Source { name: "modulation", text: include_str!("../../cuda/modulation.cu") };
const GATE: Source = Source { name: "gate", text: include_str!("../../cuda/gate.cu") };

/// Whether [`modulated_layer_norm`] takes `x`.
pub(crate) fn takes(x: &Tensor) -> bool {
    launch::takes(x) && x.dim(D::Minus1).is_ok_and(|width| RowThreads::of(width, 1).is_some())
}

fn number(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(Error::wrap)
}

/// The type that rows beside activations of `dtype` are read in, and what kernels call it.
fn row_type(dtype: DType, rows: &[&Tensor]) -> (DType, &'static str) {
    match dtype {
        DType::F16 if rows.iter().all(|row| row.dtype() == dtype) => (dtype, "M=f16"),
        DType::BF16 if rows.iter().all(|row| row.dtype() == dtype) => (dtype, "M=bf16"),
        _ => (DType::F32, "M=float"),
    }
}

/// `row: [b, c]` in `dtype`, to be read `pack` elements at a time, at most 16 bytes of them at once.
fn row(row: &Tensor, dtype: DType, pack: usize) -> Result<View> {
    View::of(&row.to_dtype(dtype)?, (pack * dtype.size_in_bytes()).min(16))
}

/// `(x − mean) / √(variance + eps) · (1 + scale) + shift`; shapes have been checked, and [`takes`] it.
pub(crate) fn modulated_layer_norm(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let device = launch::device(x)?;
    let (dtype, (batch, tokens, width)) = (x.dtype(), x.dims3()?);
    let pack = packs::width(dtype, &[width]);
    let Some(threads) = RowThreads::of(width, pack) else {
        bail!("modulated_layer_norm: rows of {width} are too wide")
    };
    let (of_rows, named) = row_type(dtype, &[shift, scale]);
    let (shift, scale) = (row(shift, of_rows, pack)?, row(scale, of_rows, pack)?);
    let x = Dense::of(x)?;
    let y = Dense::unset(x.tensor().shape(), dtype, x.tensor().device())?;
    let mut defines = packs::defines(dtype, pack)?;
    defines.push(named.into());
    defines.extend(threads.defines());
    let function = function(&device, NORM, &defines, "modulated_layer_norm")?;
    let blocks = number(threads.blocks(batch * tokens))?;
    let config = launch::grid((blocks, 1, 1), number(threads.block)?, number(threads.shared())?);
    launch!(
        device,
        function,
        config,
        x.address(),
        shift.address,
        scale.address,
        y.address(),
        number(batch * tokens)?,
        number(tokens)?,
        number(width)?,
        shift.steps[0] as u64,
        scale.steps[0] as u64,
        eps as f32,
    )?;
    Ok(y.into_tensor())
}

/// `x + gate · y`; shapes have been checked, and `x` is of a type that kernels take.
pub(crate) fn add_gated(x: &Tensor, y: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let device = launch::device(x)?;
    let (dtype, (batch, tokens, width)) = (x.dtype(), x.dims3()?);
    let pack = packs::width(dtype, &[width]);
    let (of_gate, named) = row_type(dtype, &[gate]);
    let gate = row(gate, of_gate, pack)?;
    let (x, y) = (Dense::of(x)?, Dense::of(y)?);
    let sum = Dense::unset(x.tensor().shape(), dtype, x.tensor().device())?;
    let mut defines = packs::defines(dtype, pack)?;
    defines.push(named.into());
    let function = function(&device, GATE, &defines, "add_gated")?;
    let columns = width / pack;
    launch!(
        device,
        function,
        launch::rows(batch * tokens, columns)?,
        x.address(),
        y.address(),
        gate.address,
        sum.address(),
        number(tokens)?,
        number(columns)?,
        gate.steps[0] as u64,
    )?;
    Ok(sum.into_tensor())
}
