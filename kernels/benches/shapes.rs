//! Fast paths beside their plain candle references, at the shapes of SDXL's UNet (512², guidance batch of 2)
//! and of the autoencoder's decoder. Run with `cargo bench -p darkroom-kernels`; a filter picks operations
//! (`… -- linear`). Matrix operations report floating-point operations as items.

use candle_core::{DType, Device, Result, Tensor};
use darkroom_kernels::{
    Activation, AttentionMask, Conv2dGeometry, Padding, attention, conv2d, geglu, group_norm, layer_norm,
    linear, reference, upsample_nearest_2x,
};
use divan::Bencher;
use divan::counter::ItemsCount;

fn main() {
    divan::main();
}

fn random(shape: &[usize]) -> Tensor {
    match Tensor::rand(-1f32, 1f32, shape, &Device::Cpu) {
        Ok(tensor) => tensor,
        Err(error) => unreachable!("the CPU makes tensors of any shape: {error}"),
    }
}

fn half(shape: &[usize]) -> Tensor {
    match random(shape).to_dtype(DType::F16) {
        Ok(tensor) => tensor,
        Err(error) => unreachable!("f32 converts to f16: {error}"),
    }
}

fn measure(bencher: Bencher<'_, '_>, flops: usize, run: impl Fn() -> Result<Tensor>) {
    bencher.counter(ItemsCount::new(flops)).bench_local(|| match run() {
        Ok(tensor) => tensor,
        Err(error) => unreachable!("benchmark shapes fit: {error}"),
    });
}

/// Rows, in, out.
const LINEAR: [(usize, usize, usize); 9] = [
    (2048, 640, 640),
    (2048, 640, 5120),
    (2048, 2560, 640),
    (512, 1280, 1280),
    (512, 1280, 10240),
    (512, 5120, 1280),
    (154, 2048, 640),
    (154, 2048, 1280),
    (2, 1280, 1280),
];

#[divan::bench(args = LINEAR, sample_count = 5, sample_size = 1)]
fn linear_fast(bencher: Bencher<'_, '_>, (rows, inner, out): (usize, usize, usize)) {
    let (x, w, b) = (random(&[rows, inner]), half(&[out, inner]), half(&[out]));
    measure(bencher, 2 * rows * inner * out, || linear(&x, &w, Some(&b)));
}

#[divan::bench(args = LINEAR, sample_count = 3, sample_size = 1)]
fn linear_reference(bencher: Bencher<'_, '_>, (rows, inner, out): (usize, usize, usize)) {
    let (x, w, b) = (random(&[rows, inner]), half(&[out, inner]), half(&[out]));
    measure(bencher, 2 * rows * inner * out, || reference::linear(&x, &w, Some(&b)));
}

/// Batch, side, in, out, kernel.
const CONV: [(usize, usize, usize, usize, usize); 13] = [
    (2, 64, 4, 320, 3),
    (2, 64, 320, 320, 3),
    (2, 64, 960, 320, 3),
    (2, 64, 640, 320, 1),
    (2, 32, 640, 640, 3),
    (2, 32, 1280, 640, 3),
    (2, 32, 1920, 640, 3),
    (2, 16, 1280, 1280, 3),
    (2, 16, 2560, 1280, 3),
    (1, 64, 512, 512, 3),
    (1, 128, 512, 512, 3),
    (1, 256, 256, 256, 3),
    (1, 512, 128, 128, 3),
];

#[divan::bench(args = CONV, sample_count = 5, sample_size = 1)]
fn conv2d_fast(bencher: Bencher<'_, '_>, (b, side, inner, out, k): (usize, usize, usize, usize, usize)) {
    let (x, w, bias) = (random(&[b, side, side, inner]), half(&[out, k, k, inner]), half(&[out]));
    let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(k / 2) };
    measure(bencher, 2 * b * side * side * inner * out * k * k, || conv2d(&x, &w, Some(&bias), geometry));
}

#[divan::bench(args = &CONV[..9], sample_count = 2, sample_size = 1)]
fn conv2d_reference(bencher: Bencher<'_, '_>, (b, side, inner, out, k): (usize, usize, usize, usize, usize)) {
    let (x, w, bias) = (random(&[b, side, side, inner]), half(&[out, k, k, inner]), half(&[out]));
    let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(k / 2) };
    measure(bencher, 2 * b * side * side * inner * out * k * k, || {
        reference::conv2d(&x, &w, Some(&bias), geometry)
    });
}

/// Batch, queries, keys, heads, channels of a head.
const ATTENTION: [(usize, usize, usize, usize, usize); 5] = [
    (2, 1024, 1024, 10, 64),
    (2, 256, 256, 20, 64),
    (2, 1024, 77, 10, 64),
    (2, 256, 77, 20, 64),
    (1, 4096, 4096, 1, 512),
];

#[divan::bench(args = ATTENTION, sample_count = 5, sample_size = 1)]
fn attention_fast(bencher: Bencher<'_, '_>, (b, n, m, heads, d): (usize, usize, usize, usize, usize)) {
    let (q, k, v) = (random(&[b, n, heads * d]), random(&[b, m, heads * d]), random(&[b, m, heads * d]));
    measure(bencher, 4 * b * n * m * heads * d, || attention(&q, &k, &v, heads, &AttentionMask::None));
}

#[divan::bench(args = ATTENTION, sample_count = 3, sample_size = 1)]
fn attention_reference(bencher: Bencher<'_, '_>, (b, n, m, heads, d): (usize, usize, usize, usize, usize)) {
    let (q, k, v) = (random(&[b, n, heads * d]), random(&[b, m, heads * d]), random(&[b, m, heads * d]));
    measure(bencher, 4 * b * n * m * heads * d, || {
        reference::attention(&q, &k, &v, heads, &AttentionMask::None)
    });
}

/// Batch, positions, channels.
const PICTURES: [(usize, usize, usize); 4] =
    [(2, 4096, 320), (2, 1024, 640), (2, 256, 1280), (1, 262_144, 128)];

#[divan::bench(args = PICTURES, sample_count = 5, sample_size = 1)]
fn group_norm_silu_fast(bencher: Bencher<'_, '_>, (b, n, c): (usize, usize, usize)) {
    let (x, w, bias) = (random(&[b, n, c]), half(&[c]), half(&[c]));
    measure(bencher, b * n * c, || group_norm(&x, 32, &w, &bias, 1e-5, Activation::Silu));
}

#[divan::bench(args = PICTURES, sample_count = 3, sample_size = 1)]
fn group_norm_silu_reference(bencher: Bencher<'_, '_>, (b, n, c): (usize, usize, usize)) {
    let (x, w, bias) = (random(&[b, n, c]), half(&[c]), half(&[c]));
    measure(bencher, b * n * c, || reference::group_norm(&x, 32, &w, &bias, 1e-5, Activation::Silu));
}

/// Rows, channels.
const ROWS: [(usize, usize); 2] = [(2048, 640), (512, 1280)];

#[divan::bench(args = ROWS, sample_count = 5, sample_size = 1)]
fn layer_norm_fast(bencher: Bencher<'_, '_>, (rows, c): (usize, usize)) {
    let (x, w, bias) = (random(&[rows, c]), half(&[c]), half(&[c]));
    measure(bencher, rows * c, || layer_norm(&x, &w, &bias, 1e-5));
}

#[divan::bench(args = ROWS, sample_count = 3, sample_size = 1)]
fn layer_norm_reference(bencher: Bencher<'_, '_>, (rows, c): (usize, usize)) {
    let (x, w, bias) = (random(&[rows, c]), half(&[c]), half(&[c]));
    measure(bencher, rows * c, || reference::layer_norm(&x, &w, &bias, 1e-5));
}

#[divan::bench(args = [(2048, 2560), (512, 5120)], sample_count = 5, sample_size = 1)]
fn geglu_fast(bencher: Bencher<'_, '_>, (rows, c): (usize, usize)) {
    let x = random(&[rows, 2 * c]);
    measure(bencher, rows * c, || geglu(&x));
}

#[divan::bench(args = [(2048, 2560), (512, 5120)], sample_count = 3, sample_size = 1)]
fn geglu_reference(bencher: Bencher<'_, '_>, (rows, c): (usize, usize)) {
    let x = random(&[rows, 2 * c]);
    measure(bencher, rows * c, || reference::geglu(&x));
}

#[divan::bench(args = [(2, 16, 1280), (1, 256, 256)], sample_count = 5, sample_size = 1)]
fn upsample_fast(bencher: Bencher<'_, '_>, (b, side, c): (usize, usize, usize)) {
    let x = random(&[b, side, side, c]);
    measure(bencher, 4 * b * side * side * c, || upsample_nearest_2x(&x));
}

#[divan::bench(args = [(2, 16, 1280), (1, 256, 256)], sample_count = 3, sample_size = 1)]
fn upsample_reference(bencher: Bencher<'_, '_>, (b, side, c): (usize, usize, usize)) {
    let x = random(&[b, side, side, c]);
    measure(bencher, 4 * b * side * side * c, || reference::upsample_nearest_2x(&x));
}
