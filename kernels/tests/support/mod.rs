//! Inputs that the tests of the public functions share.

use candle_core::{Device, Tensor};

/// The same numbers in `-1.7..1.7` for the same seed, on every machine.
pub(crate) fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let data: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 1.7
        })
        .collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}
