//! Pointwise non-linearities, on their own and as the tail of other operations.

use candle_core::{Result, Tensor, bail};

use crate::cpu::isa::Isa;
use crate::cpu::{pointwise, tensors};
use crate::reference;

/// The non-linearities that SD-family networks use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x`
    Identity,
    /// `x · sigmoid(x)`
    Silu,
    /// `x · Φ(x)`, with the error function (not the tanh approximation)
    Gelu,
    /// `x · sigmoid(1.702 x)`, as in OpenAI's CLIP
    QuickGelu,
    /// `x · Φ(x)` by its tanh approximation (diffusion transformers)
    GeluTanh,
}

#[cfg(feature = "cuda")]
impl Activation {
    /// What kernels call it (`kernels/cuda/prelude.cuh`).
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Identity => 0,
            Self::Silu => 1,
            Self::Gelu => 2,
            Self::QuickGelu => 3,
            Self::GeluTanh => 4,
        }
    }
}

/// `activation` of every element of `x`, any shape.
///
/// # Errors
/// When `x` has no elements.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if x.elem_count() == 0 {
        bail!("activate: x {:?} is empty", x.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(x) && activation != Activation::Identity {
        return crate::cuda::pointwise::activate(x, activation);
    }
    if activation == Activation::Identity || !tensors::takes_activation(x) {
        return reference::activate(x, activation);
    }
    on_cpu(Isa::detect(), x, activation)
}

fn on_cpu(isa: Isa, x: &Tensor, activation: Activation) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let elements = tensors::floats(&storage, layout)?;
    // SAFETY: every element is written.
    unsafe {
        tensors::build(x.shape(), |out| {
            pointwise::activate(isa, elements, activation, out);
            Ok(())
        })
    }
}
