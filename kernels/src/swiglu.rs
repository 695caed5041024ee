//! The SiLU gate of feed-forward layers (Shazeer 2020).

use candle_core::{Result, Tensor, bail};

use crate::reference;

/// `silu(gate) · value`, both of one shape and type.
///
/// # Errors
/// When they are not, or have no elements.
pub fn swiglu(gate: &Tensor, value: &Tensor) -> Result<Tensor> {
    if gate.elem_count() == 0 || gate.dims() != value.dims() || gate.dtype() != value.dtype() {
        bail!(
            "swiglu: gate {:?} of {:?} and value {:?} of {:?} do not fit",
            gate.shape(),
            gate.dtype(),
            value.shape(),
            value.dtype()
        );
    }
    reference::swiglu(gate, value)
}
