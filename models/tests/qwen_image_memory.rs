//! What Qwen-Image's denoiser allocates against what it says it needs. A test binary of its own, with a counting
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
use darkroom_models::adapter::Adapters;
use darkroom_models::qwen_image::{QwenImageConfig, QwenImageInput, QwenImageTransformer2DModel};
use support::folder;

#[test]
fn estimates_bound_what_is_allocated_and_are_not_far_above_it() {
    // On one thread: with more, chance decides which of them first needs its scratch memory when.
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(check);
}

fn check() {
    /// What tensors are besides their elements.
    const BOOKKEEPING: usize = 64 << 10;
    let (config, weights) = folder::<QwenImageConfig>("qwen_image/transformer_3");
    let network = QwenImageTransformer2DModel::load(&config, &weights).unwrap();
    let random = |shape: &[usize]| Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
    let none: &[(usize, usize)] = &[];
    for (rows, (height, width), references, tokens) in [
        (1, (96, 64), none, 40),
        (2, (61, 87), none, 77),
        (2, (48, 40), &[(64, 30), (31, 64)][..], 50),
        // More text than picture.
        (2, (4, 6), none, 1000),
    ] {
        let latent = random(&[rows, 4, height, width]);
        let others: Vec<Tensor> = references.iter().map(|&(h, w)| random(&[rows, 4, h, w])).collect();
        let (context, timesteps) = (random(&[rows, tokens, 24]), random(&[rows]));
        let run = || {
            network.forward(&QwenImageInput {
                latent: &latent,
                timesteps: &timesteps,
                context: &context,
                context_lengths: None,
                references: &others.iter().collect::<Vec<_>>(),
                adapters: Adapters::none(),
            })
        };
        // What threads keep for the next time is there after the first, and so is the table of angles.
        run().unwrap();
        let (used, _, _) = measure(|| run().unwrap());
        let estimate = network.forward_bytes_with(rows, (height, width), references, tokens);
        println!("{rows} rows of {height} x {width}: {used} bytes, {estimate} estimated");
        assert!(used <= estimate + BOOKKEEPING, "{used} bytes used, {estimate} estimated");
        assert!(used >= estimate / 2, "{used} bytes used, {estimate} estimated");
    }
}
