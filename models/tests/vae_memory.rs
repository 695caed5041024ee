//! What the autoencoders allocate against what they say they need. A test binary of its own, with a counting
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
use darkroom_models::vae::{AutoencoderKl, VaeConfig};
use darkroom_models::vae_qwen::{AutoencoderKlQwenImage, QwenVaeConfig};
use support::folder;

/// Packed panels and scratch of the kernels, which do not grow with the picture.
const SCRATCH: usize = 4 << 20;

/// Holds what `work` allocates to what was `estimated` for it.
fn assert_bound<T>(what: &str, estimated: usize, work: impl FnOnce() -> T) {
    // At once, beyond what was there before.
    let used = measure(work).0;
    println!("{what}: {used} bytes, {estimated} estimated");
    assert!(used <= estimated + SCRATCH, "{what}: {used} bytes used, {estimated} estimated");
    assert!(used >= estimated / 2, "{what}: {used} bytes used, {estimated} estimated");
}

/// A latent of so many channels and cells, and a picture of the same size.
fn inputs(channels: usize, height: usize, width: usize) -> (Tensor, Tensor) {
    let random = |shape: (usize, usize, usize, usize)| Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
    (random((1, channels, height, width)), random((1, 3, 8 * height, 8 * width)))
}

// One test: what another allocates would be counted too.
#[test]
fn estimates_bound_what_is_allocated_and_are_not_far_above_it() {
    let (config, weights) = folder::<VaeConfig>("sdxl/vae");
    let vae = AutoencoderKl::load(&config, &weights).unwrap();
    let (height, width) = (48, 40);
    let (latent, image) = inputs(4, height, width);
    assert_bound("decode", vae.decode_bytes(height, width), || vae.decode(&latent).unwrap());
    assert_bound("encode", vae.encode_bytes(height, width), || vae.encode(&image).unwrap());

    let (config, weights) = folder::<QwenVaeConfig>("qwen_image/vae_published");
    let vae = AutoencoderKlQwenImage::load(&config, &weights).unwrap();
    let (height, width) = (72, 80);
    let (latent, image) = inputs(16, height, width);
    assert_bound("Qwen-Image's decode", vae.decode_bytes(height, width), || vae.decode(&latent).unwrap());
    assert_bound("Qwen-Image's encode", vae.encode_bytes(height, width), || vae.encode(&image).unwrap());
}
