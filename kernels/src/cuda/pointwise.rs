//! Operations of each element on its own, and copies that change the shape.

use candle_core::{D, Error, Result, Tensor};

use super::compile::{Source, function};
use super::launch::{self, Dense, launch};
use super::packs;
use crate::Activation;

const SOURCE: Source = Source { name: "pointwise", text: include_str!("../../cuda/pointwise.cu") };
const THREADS: u32 = 256;

fn number(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(Error::wrap)
}

/// A new tensor like `x` of `shape`.
fn unset(shape: &[usize], x: &Dense) -> Result<Dense> {
    Dense::unset(shape, x.tensor().dtype(), x.tensor().device())
}

/// The shape of `x` with `last` as its last side.
fn with_last(x: &Tensor, last: usize) -> Vec<usize> {
    let mut dims = x.dims().to_vec();
    if let Some(side) = dims.last_mut() {
        *side = last;
    }
    dims
}

/// Launches `$kernel` with a thread for each of `$items` packs of `$width` elements.
macro_rules! each {
    ($device:ident, $dtype:expr, $width:expr, $items:expr, $kernel:literal, $($argument:expr),+ $(,)?) => {{
        let function = function(&$device, SOURCE, &packs::defines($dtype, $width)?, $kernel)?;
        let config = launch::blocks($items, THREADS)?;
        launch!($device, function, config, $($argument),+)
    }};
}

/// `activation` of every element.
pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    let (device, dtype, length) = (launch::device(x)?, x.dtype(), x.elem_count());
    let (x, y) = (Dense::of(x)?, Dense::unset(x.shape(), dtype, x.device())?);
    let width = packs::width(dtype, &[]);
    let items = length.div_ceil(width);
    each!(
        device,
        dtype,
        width,
        items,
        "activate",
        x.address(),
        y.address(),
        length as u64,
        activation.code()
    )?;
    Ok(y.into_tensor())
}

/// `a + b`, of one shape and type.
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (device, dtype, length) = (launch::device(a)?, a.dtype(), a.elem_count());
    let (a, b) = (Dense::of(a)?, Dense::of(b)?);
    let y = unset(a.tensor().dims(), &a)?;
    let width = packs::width(dtype, &[]);
    let items = length.div_ceil(width);
    each!(device, dtype, width, items, "add", a.address(), b.address(), y.address(), length as u64)?;
    Ok(y.into_tensor())
}

/// `target += source` in place from element `start` of `target` on, which is contiguous and long enough.
pub(crate) fn add_in_place(target: &Tensor, start: usize, source: &Tensor) -> Result<()> {
    let (device, dtype, length) = (launch::device(target)?, target.dtype(), source.elem_count());
    let (target, source) = (Dense::in_place(target)?, Dense::of(source)?);
    let first = target.address() + (start * dtype.size_in_bytes()) as u64;
    let widest = packs::width(dtype, &[]);
    let aligned = first.is_multiple_of((widest * dtype.size_in_bytes()) as u64);
    let width = if aligned { widest } else { 1 };
    let items = length.div_ceil(width);
    each!(device, dtype, width, items, "add_in_place", first, source.address(), length as u64)
}

/// `x + shift`, `x: [b, .., c]` and `shift: [b, c]` of one type.
pub(crate) fn add_row_shift(x: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let (device, dtype, length) = (launch::device(x)?, x.dtype(), x.elem_count());
    let (batch, channels) = shift.dims2()?;
    let positions = length / (batch * channels);
    let (x, shift) = (Dense::of(x)?, Dense::of(shift)?);
    let y = unset(x.tensor().dims(), &x)?;
    let width = packs::width(dtype, &[channels]);
    let items = length / width;
    each!(
        device,
        dtype,
        width,
        items,
        "add_row_shift",
        x.address(),
        shift.address(),
        y.address(),
        items as u64,
        number(positions)?,
        number(channels)?,
    )?;
    Ok(y.into_tensor())
}

/// `x[.., ..c] · gelu(x[.., c..])`.
pub(crate) fn geglu(x: &Tensor) -> Result<Tensor> {
    let (device, dtype) = (launch::device(x)?, x.dtype());
    let half = x.dim(D::Minus1)? / 2;
    let y = Dense::unset(with_last(x, half), dtype, x.device())?;
    let x = Dense::of(x)?;
    let width = packs::width(dtype, &[half]);
    let items = y.tensor().elem_count() / width;
    each!(device, dtype, width, items, "geglu", x.address(), y.address(), items as u64, number(half)?)?;
    Ok(y.into_tensor())
}

/// `silu(gate) · value`, of one shape and type.
pub(crate) fn swiglu(gate: &Tensor, value: &Tensor) -> Result<Tensor> {
    let (device, dtype, length) = (launch::device(gate)?, gate.dtype(), gate.elem_count());
    let (gate, value) = (Dense::of(gate)?, Dense::of(value)?);
    let y = unset(gate.tensor().dims(), &gate)?;
    let width = packs::width(dtype, &[]);
    let items = length.div_ceil(width);
    each!(
        device,
        dtype,
        width,
        items,
        "swiglu",
        gate.address(),
        value.address(),
        y.address(),
        length as u64
    )?;
    Ok(y.into_tensor())
}

/// Rows of `a`, each followed by that of `b`.
pub(crate) fn concat(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (device, dtype) = (launch::device(a)?, a.dtype());
    let (left, right) = (a.dim(D::Minus1)?, b.dim(D::Minus1)?);
    let y = Dense::unset(with_last(a, left + right), dtype, a.device())?;
    let (a, b) = (Dense::of(a)?, Dense::of(b)?);
    let width = packs::width(dtype, &[left, right]);
    let items = y.tensor().elem_count() / width;
    each!(
        device,
        dtype,
        width,
        items,
        "concat",
        a.address(),
        b.address(),
        y.address(),
        items as u64,
        number(left)?,
        number(right)?,
    )?;
    Ok(y.into_tensor())
}

/// Each pixel four times; `[b, h, w, c] -> [b, 2h, 2w, c]`.
pub(crate) fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    let (device, dtype) = (launch::device(x)?, x.dtype());
    let (b, h, w, c) = x.dims4()?;
    let x = Dense::of(x)?;
    let y = unset(&[b, 2 * h, 2 * w, c], &x)?;
    let width = packs::width(dtype, &[c]);
    let items = b * h * w * c / width;
    each!(
        device,
        dtype,
        width,
        items,
        "upsample",
        x.address(),
        y.address(),
        items as u64,
        number(w)?,
        number(c)?
    )?;
    Ok(y.into_tensor())
}
