//! What the unit tests of the fast paths share: random inputs, and the distance to a reference.

use candle_core::{Device, Tensor};

/// Uniform numbers in `-1..1`.
pub(crate) fn random(shape: &[usize]) -> Tensor {
    Tensor::rand(-1f32, 1f32, shape, &Device::Cpu).unwrap()
}

/// The largest difference, as a part of the largest reference value.
pub(crate) fn worst(fast: &Tensor, slow: &Tensor) -> f32 {
    let worst = |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    let error = worst(&(fast - slow).unwrap()).to_scalar::<f32>().unwrap();
    error / worst(slow).to_scalar::<f32>().unwrap()
}
