//! The SiLU gate of feed-forward layers (Shazeer 2020).

use candle_core::{Result, Tensor, bail};

use crate::cpu::isa::Isa;
use crate::cpu::{pointwise, tensors};
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
    #[cfg(feature = "cuda")]
    if crate::cuda::launch::takes(gate) {
        return crate::cuda::pointwise::swiglu(gate, value);
    }
    if !tensors::takes_activation(gate) || !tensors::takes_activation(value) {
        return reference::swiglu(gate, value);
    }
    on_cpu(Isa::detect(), gate, value)
}

fn on_cpu(isa: Isa, gate: &Tensor, value: &Tensor) -> Result<Tensor> {
    let (gate, value) = (gate.contiguous()?, value.contiguous()?);
    let (gate_storage, gate_layout) = gate.storage_and_layout();
    let (value_storage, value_layout) = value.storage_and_layout();
    let gates = tensors::floats(&gate_storage, gate_layout)?;
    let values = tensors::floats(&value_storage, value_layout)?;
    // SAFETY: the caller has checked the shapes; every element is written.
    unsafe {
        tensors::build(gate.shape(), |out| {
            pointwise::swiglu(isa, gates, values, out);
            Ok(())
        })
    }
}
