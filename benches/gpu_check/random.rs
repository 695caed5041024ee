//! Random numbers in any amount: each by its place, so that all cores make them at once and a part can be made anew.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Numbers made at a time.
const PIECE: usize = 1 << 16;

/// splitmix64's finaliser.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of its own for each name.
pub(crate) fn stream(seed: u64, name: &str) -> u64 {
    name.bytes()
        .fold(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)), |state, byte| mix(state ^ u64::from(byte)))
}

/// Number `index` of a stream: mean 0, deviation 1, nearly normal (a sum of four uniform ones).
pub(crate) fn normal(stream: u64, index: u64) -> f32 {
    let bits = mix(stream.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let sum = (bits & 0xffff) + ((bits >> 16) & 0xffff) + ((bits >> 32) & 0xffff) + (bits >> 48);
    // The sum of four has mean 2 and variance 4/12.
    (sum as f32 * (1.0 / 65_535.0) - 2.0) * 1.732_050_8
}

/// A tensor of such numbers on the CPU.
pub(crate) fn tensor(shape: &[usize], stream: u64, deviation: f32) -> candle_core::Result<Tensor> {
    let mut values = vec![0f32; shape.iter().product()];
    values.par_chunks_mut(PIECE).enumerate().for_each(|(piece, values)| {
        let first = (piece * PIECE) as u64;
        for (offset, value) in values.iter_mut().enumerate() {
            *value = deviation * normal(stream, first + offset as u64);
        }
    });
    Tensor::from_vec(values, shape, &Device::Cpu)
}
