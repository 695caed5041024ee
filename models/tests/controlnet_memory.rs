//! What a ControlNet allocates against what it says it needs. A test binary of its own, with a counting allocator
//! and one test, so that nothing else is counted.

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
use darkroom_models::adapter::Adapters;
use darkroom_models::controlnet::ControlNet;
use darkroom_models::unet::{UNetConfig, UNetInput};
use support::{folder, golden};

#[test]
fn estimates_bound_what_is_allocated_and_are_not_far_above_it() {
    // On one thread: with more, chance decides which of them first needs its scratch memory when.
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(check);
}

fn check() {
    const ROWS: usize = 2;
    const TOKENS: usize = 7;
    /// What tensors are besides their elements.
    const BOOKKEEPING: usize = 64 << 10;
    let (base, _) = folder::<UNetConfig>("sdxl/unet");
    let net = ControlNet::open(&golden("controlnet/sdxl.safetensors"), &base, &Device::Cpu).unwrap();
    let random = |shape: &[usize]| Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
    let bounds = |what: &str, used: usize, estimate: usize| {
        println!("{what}: {used} bytes, {estimate} estimated");
        assert!(used <= estimate + BOOKKEEPING, "{what}: {used} bytes used, {estimate} estimated");
        assert!(used >= estimate / 2, "{what}: {used} bytes used, {estimate} estimated");
    };
    for (height, width) in [(96, 64), (61, 87)] {
        let picture = || random(&[1, 3, 8 * height, 8 * width]);
        // What threads keep for the next time is there after the first.
        net.embed_hint(&picture()).unwrap();
        // The picture is counted too.
        let (used, _, _) = measure(|| net.embed_hint(&picture()).unwrap());
        bounds("hint", used, net.hint_bytes(height, width));

        let latent = random(&[ROWS, 4, height, width]);
        let (context, pooled) = (random(&[ROWS, TOKENS, 80]), random(&[ROWS, 40]));
        let sizes = Tensor::full(1024f32, (ROWS, 6), &Device::Cpu).unwrap();
        let timesteps = Tensor::full(500f32, ROWS, &Device::Cpu).unwrap();
        let input = UNetInput {
            latent: &latent,
            timesteps: &timesteps,
            context: &context,
            context_lengths: None,
            pooled: Some(&pooled),
            size_ids: Some(&sizes),
            adapters: Adapters::none(),
        };
        let hint = random(&[ROWS, height, width, 8]);
        net.forward(&input, &hint).unwrap();
        let (used, kept, _residuals) = measure(|| net.forward(&input, &hint).unwrap());
        bounds("forward", used, net.forward_bytes(ROWS, height, width, TOKENS));
        let residuals = net.residual_bytes(ROWS, height, width);
        println!("residuals: {kept} bytes, {residuals} estimated");
        assert!(kept.abs_diff(residuals) < residuals / 20, "{kept} bytes kept, {residuals} estimated");
    }
}
