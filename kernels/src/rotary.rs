//! Rotary position embedding (Su et al. 2021).

use candle_core::{Result, Tensor, bail};

use crate::cpu::isa::Isa;
use crate::cpu::{rotary as fast, tensors};
use crate::reference;

/// Which two numbers of a head are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryPairs {
    /// Numbers `2i` and `2i + 1` (Flux, Qwen-Image).
    Adjacent,
    /// Numbers `i` and `i + d/2` (Llama, Qwen2).
    Halves,
}

/// Turns each pair of each head of `x: [b, n, heads · d]` by its angle; `cos` and `sin`, `[n, d/2]` of `f32`, are the same
/// for all heads and rows of the batch.
///
/// # Errors
/// When the shapes do not fit, `d` is odd or `x` has no elements.
pub fn rotary(x: &Tensor, heads: usize, cos: &Tensor, sin: &Tensor, pairs: RotaryPairs) -> Result<Tensor> {
    let (_, tokens, inner) = x.dims3()?;
    let d = inner.checked_div(heads).unwrap_or(0);
    let fits = x.elem_count() > 0 && d * heads == inner && d.is_multiple_of(2);
    if !fits || cos.dims() != [tokens, d / 2] || sin.dims() != cos.dims() {
        bail!(
            "rotary: x {:?} of {heads} heads, cos {:?} and sin {:?} do not fit",
            x.shape(),
            cos.shape(),
            sin.shape()
        );
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(x) {
        return crate::cuda::rotary::rotary(x, heads, cos, sin, pairs);
    }
    if !tensors::takes_activation(x) {
        return reference::rotary(x, heads, cos, sin, pairs);
    }
    on_cpu(Isa::detect(), x, heads, cos, sin, pairs)
}

fn on_cpu(
    isa: Isa,
    x: &Tensor,
    heads: usize,
    cos: &Tensor,
    sin: &Tensor,
    pairs: RotaryPairs,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (cos, sin) = (tensors::widened(cos)?, tensors::widened(sin)?);
    let (storage, layout) = x.storage_and_layout();
    let elements = tensors::floats(&storage, layout)?;
    let (_, tokens, inner) = x.dims3()?;
    // SAFETY: the caller has checked the shapes; every element is written.
    unsafe {
        tensors::build(x.shape(), |out| {
            fast::rotate(isa, elements, &cos, &sin, [tokens, heads, inner / heads / 2], pairs, out);
            Ok(())
        })
    }
}
