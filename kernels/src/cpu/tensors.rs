//! From candle tensors to slices and back.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};

use super::element::E4m3;

/// A weight tensor's elements in the type they are stored in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Elements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// Truncated 32-bit floats.
    Bf16(&'a [bf16]),
}

/// Runs `$body` with `$slice` bound to the elements, once per stored type.
macro_rules! with_elements {
    ($elements:expr, $slice:ident => $body:expr) => {
        match $elements {
            $crate::cpu::tensors::Elements::F32($slice) => $body,
            $crate::cpu::tensors::Elements::F16($slice) => $body,
            $crate::cpu::tensors::Elements::Bf16($slice) => $body,
        }
    };
}
pub(crate) use with_elements;

/// Whether the fast paths take activations like `x`.
pub(crate) fn takes_activation(x: &Tensor) -> bool {
    matches!(x.device(), Device::Cpu) && x.dtype() == DType::F32
}

/// Whether the fast paths take weights like `weight`.
pub(crate) fn takes_weight(weight: &Tensor) -> bool {
    matches!(weight.device(), Device::Cpu) && matches!(weight.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// The elements that a contiguous layout covers.
pub(crate) fn elements<'a>(storage: &'a Storage, layout: &Layout) -> Result<Elements<'a>> {
    match storage {
        Storage::Cpu(storage) => cpu_elements(storage, layout),
        _ => bail!("weights are f32, f16 or bf16 on the CPU"),
    }
}

/// [`elements`] of what is known to be on the CPU.
pub(crate) fn cpu_elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Elements<'a>> {
    let range = match layout.contiguous_offsets() {
        Some((start, end)) => start..end,
        None => bail!("a weight must be contiguous here"),
    };
    let outside = || candle_core::Error::msg("a tensor's layout reaches outside its storage");
    match storage {
        CpuStorage::F32(all) => Ok(Elements::F32(all.get(range).ok_or_else(outside)?)),
        CpuStorage::F16(all) => Ok(Elements::F16(all.get(range).ok_or_else(outside)?)),
        CpuStorage::BF16(all) => Ok(Elements::Bf16(all.get(range).ok_or_else(outside)?)),
        _ => bail!("weights are f32, f16 or bf16 on the CPU"),
    }
}

/// The elements of a contiguous `u8` tensor as codes of e4m3. Not one of [`Elements`]: only who knows that bytes are
/// codes may read them so.
pub(crate) fn codes<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [E4m3]> {
    let range = layout.contiguous_offsets().map(|(start, end)| start..end);
    match (storage, range) {
        (Storage::Cpu(CpuStorage::U8(all)), Some(range)) => match all.get(range) {
            Some(codes) => Ok(E4m3::of(codes)),
            None => bail!("a tensor's layout reaches outside its storage"),
        },
        _ => bail!("codes are contiguous u8 on the CPU"),
    }
}

/// The elements of a contiguous `f32` tensor.
pub(crate) fn floats<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match elements(storage, layout)? {
        Elements::F32(all) => Ok(all),
        _ => bail!("activations are f32 on the CPU"),
    }
}

/// A small vector (bias, scale) as `f32`.
pub(crate) fn widened(x: &Tensor) -> Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// A new `f32` tensor of `shape` whose elements `fill` writes, every one of them.
///
/// # Safety
/// `fill` must initialise all elements behind the pointer it gets, or return an error.
pub(crate) unsafe fn build(
    shape: impl Into<Shape>,
    fill: impl FnOnce(*mut f32) -> Result<()>,
) -> Result<Tensor> {
    let shape = shape.into();
    let len = shape.elem_count();
    let mut out = Vec::new();
    out.try_reserve_exact(len).map_err(candle_core::Error::wrap)?;
    fill(out.as_mut_ptr())?;
    // SAFETY: the capacity is at least `len` and the caller promises that `fill` initialised all of it.
    unsafe { out.set_len(len) };
    Tensor::from_vec(out, shape, &Device::Cpu)
}
