//! What Qwen-Image's autoencoder allocates against what it says it needs. A test binary of its own, with a counting
//! allocator and one test, so that nothing else is counted.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

#[path = "support/counting.rs"]
mod counting;
mod support;

use candle_core::{Device, Tensor};
use counting::measure;
use darkroom_models::vae_qwen::{AutoencoderKlQwenImage, QwenVaeConfig};
use support::folder;

/// Bytes that `work` had allocated at once beyond what was there before.
fn peak_of<T>(work: impl FnOnce() -> T) -> usize {
    measure(work).0
}

#[test]
fn estimates_bound_what_is_allocated_and_are_not_far_above_it() {
    /// Packed panels and scratch of the kernels, which do not grow with the picture.
    const SCRATCH: usize = 4 << 20;
    let (config, weights) = folder::<QwenVaeConfig>("qwen_image/vae_published");
    let vae = AutoencoderKlQwenImage::load(&config, &weights).unwrap();
    let (height, width) = (72, 80);
    let latent = Tensor::randn(0f32, 1., (1, 16, height, width), &Device::Cpu).unwrap();
    let image = Tensor::randn(0f32, 1., (1, 3, 8 * height, 8 * width), &Device::Cpu).unwrap();
    let decoded = peak_of(|| vae.decode(&latent).unwrap());
    let encoded = peak_of(|| vae.encode(&image).unwrap());
    for (what, used, estimate) in [
        ("decode", decoded, vae.decode_bytes(height, width)),
        ("encode", encoded, vae.encode_bytes(height, width)),
    ] {
        println!("{what}: {used} bytes, {estimate} estimated");
        assert!(used <= estimate + SCRATCH, "{what}: {used} bytes used, {estimate} estimated");
        assert!(used >= estimate / 2, "{what}: {used} bytes used, {estimate} estimated");
    }
}
