//! What the autoencoder allocates against what it says it needs. A test binary of its own, with a counting
//! allocator and one test, so that nothing else is counted.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, Tensor};
use darkroom_models::vae::{AutoencoderKl, VaeConfig};
use support::folder;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system allocator unchanged; the counters only watch. `realloc` and
// `alloc_zeroed` keep their default forms, which call these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::SeqCst) + layout.size();
        PEAK.fetch_max(now, Ordering::SeqCst);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's promise about `pointer` and `layout` is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that `work` had allocated at once beyond what was there before.
fn peak_of<T>(work: impl FnOnce() -> T) -> usize {
    let before = NOW.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let result = work();
    let peak = PEAK.load(Ordering::SeqCst) - before;
    drop(result);
    peak
}

#[test]
fn estimates_bound_what_is_allocated_and_are_not_far_above_it() {
    /// Packed panels and scratch of the kernels, which do not grow with the picture.
    const SCRATCH: usize = 4 << 20;
    let (config, weights) = folder::<VaeConfig>("sdxl/vae");
    let vae = AutoencoderKl::load(&config, &weights).unwrap();
    let (height, width) = (48, 40);
    let latent = Tensor::randn(0f32, 1., (1, 4, height, width), &Device::Cpu).unwrap();
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
