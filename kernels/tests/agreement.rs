//! The public functions equal their plain candle references on random shapes, weights and masks.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use candle_core::{DType, Result, Tensor};
use darkroom_kernels::{
    Activation, AttentionMask, Conv2dGeometry, Padding, activate, attention, conv2d, geglu, group_norm,
    layer_norm, linear, reference, upsample_nearest_2x,
};
use proptest::prelude::*;
use support::random;

/// Largest difference allowed, as a part of the largest reference value: both sides round in `f32`, in
/// different orders, over sums of up to a few thousand terms.
const TOLERANCE: f64 = 1e-5;

/// The same for 3×3 convolutions of stride 1 with enough channels for Winograd's F(4×4, 3×3), whose transforms
/// cancel larger numbers: 8·10⁻⁶ was seen.
const WINOGRAD_TOLERANCE: f64 = 3e-5;

/// The same numbers, laid out so that no dimension is contiguous.
fn strided(x: &Tensor) -> Tensor {
    let last = x.rank() - 1;
    let wide = Tensor::cat(&[x, &x.affine(3.0, 1.0).unwrap()], last).unwrap();
    let turned = wide.transpose(0, last).unwrap().contiguous().unwrap().transpose(0, last).unwrap();
    turned.narrow(last, 0, x.dim(last).unwrap()).unwrap()
}

fn maybe_strided(x: Tensor, stride: bool) -> Tensor {
    if stride && x.rank() > 1 { strided(&x) } else { x }
}

fn assert_close(fast: &Result<Tensor>, slow: &Result<Tensor>) {
    assert_within(TOLERANCE, fast, slow);
}

fn assert_within(tolerance: f64, fast: &Result<Tensor>, slow: &Result<Tensor>) {
    let (fast, slow) = (fast.as_ref().unwrap(), slow.as_ref().unwrap());
    assert_eq!(fast.dims(), slow.dims());
    let fast: Vec<f32> = fast.flatten_all().unwrap().to_vec1().unwrap();
    let slow: Vec<f32> = slow.flatten_all().unwrap().to_vec1().unwrap();
    let scale = slow.iter().fold(1e-3f64, |m, x| m.max(f64::from(x.abs())));
    for (i, (a, b)) in fast.iter().zip(&slow).enumerate() {
        let error = (f64::from(*a) - f64::from(*b)).abs() / scale;
        assert!(error <= tolerance, "element {i}: {a} against {b}, relative error {error:e}");
    }
}

fn stored() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)]
}

fn size(most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1..=most, Just(most), Just(16), Just(32)]
}

#[test]
fn wide_3x3_convolutions_equal_their_reference() {
    for (side, channels, out) in [(16, 1280, 320), (17, 640, 64), (33, 320, 96), (6, 960, 64)] {
        let x = random(side as u64, &[2, side, side, channels]);
        let weight = random(7, &[out, 3, 3, channels]).to_dtype(DType::F16).unwrap();
        let bias = random(8, &[out]);
        let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(1) };
        assert_within(
            WINOGRAD_TOLERANCE,
            &conv2d(&x, &weight, Some(&bias), geometry),
            &reference::conv2d(&x, &weight, Some(&bias), geometry),
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn linear_equals_its_reference(
        seed: u64, rows in size(90), inner in size(700), out in size(140), batched: bool,
        bias: bool, stride: bool, dtype in stored(),
    ) {
        let shape: &[usize] = if batched { &[2, rows, inner] } else { &[rows, inner] };
        let x = maybe_strided(random(seed, shape), stride);
        let weight = maybe_strided(random(seed ^ 1, &[out, inner]), stride).to_dtype(dtype).unwrap();
        let bias = bias.then(|| random(seed ^ 2, &[out]).to_dtype(dtype).unwrap());
        assert_close(
            &linear(&x, &weight, bias.as_ref()),
            &reference::linear(&x, &weight, bias.as_ref()),
        );
    }

    #[test]
    fn conv2d_equals_its_reference(
        seed: u64, batch in 1usize..3, h in 1usize..20, w in 1usize..20, channels in size(70),
        out in size(70), kernel in prop_oneof![Just((1, 1)), Just((3, 3)), Just((2, 5))],
        step in 1usize..3, pads in [0usize..3, 0usize..3, 0usize..3, 0usize..3],
        bias: bool, stride: bool, dtype in stored(),
    ) {
        let padding = Padding { top: pads[0], left: pads[1], bottom: pads[2], right: pads[3] };
        prop_assume!(kernel.0 <= h + pads[0] + pads[2] && kernel.1 <= w + pads[1] + pads[3]);
        let geometry = Conv2dGeometry { stride: step, padding };
        let x = maybe_strided(random(seed, &[batch, h, w, channels]), stride);
        let weight = maybe_strided(random(seed ^ 1, &[out, kernel.0, kernel.1, channels]), stride);
        let weight = weight.to_dtype(dtype).unwrap();
        let bias = bias.then(|| random(seed ^ 2, &[out]).to_dtype(dtype).unwrap());
        let winograd = kernel == (3, 3) && step == 1 && channels.min(out) >= 32;
        assert_within(
            if winograd { WINOGRAD_TOLERANCE } else { TOLERANCE },
            &conv2d(&x, &weight, bias.as_ref(), geometry),
            &reference::conv2d(&x, &weight, bias.as_ref(), geometry),
        );
    }

    #[test]
    fn attention_equals_its_reference(
        seed: u64, batch in 1usize..3, queries in size(150), keys in size(300), heads in 1usize..4,
        d in size(80), masking in 0usize..3, stride: bool,
    ) {
        let mask = match masking {
            0 => AttentionMask::None,
            1 => AttentionMask::Causal,
            _ => AttentionMask::KeyLengths((0..batch).map(|b| 1 + (seed as usize ^ (b * 7)) % keys).collect()),
        };
        let q = maybe_strided(random(seed, &[batch, queries, heads * d]), stride);
        let k = maybe_strided(random(seed ^ 1, &[batch, keys, heads * d]), stride);
        let v = maybe_strided(random(seed ^ 2, &[batch, keys, heads * d]), stride);
        assert_close(
            &attention(&q, &k, &v, heads, &mask),
            &reference::attention(&q, &k, &v, heads, &mask),
        );
    }

    #[test]
    fn group_norm_equals_its_reference(
        seed: u64, batch in 1usize..3, h in 1usize..24, w in 1usize..24,
        groups in 1usize..6, width in 1usize..24, offset in -20f64..20.0, stride: bool,
        silu: bool, dtype in stored(),
    ) {
        let channels = groups * width;
        let x = random(seed, &[batch, h, w, channels]).affine(1.0, offset).unwrap();
        let x = maybe_strided(x, stride);
        let weight = random(seed ^ 1, &[channels]).to_dtype(dtype).unwrap();
        let bias = random(seed ^ 2, &[channels]).to_dtype(dtype).unwrap();
        let activation = if silu { Activation::Silu } else { Activation::Identity };
        // A group of one element is all rounding error around a huge 1/√eps: no oracle there.
        prop_assume!(h * w * width >= 4);
        assert_close(
            &group_norm(&x, groups, &weight, &bias, 1e-3, activation),
            &reference::group_norm(&x, groups, &weight, &bias, 1e-3, activation),
        );
    }

    #[test]
    fn layer_norm_equals_its_reference(
        seed: u64, rows in size(60), width in size(700), stride: bool, dtype in stored(),
    ) {
        let x = maybe_strided(random(seed, &[rows, width]), stride);
        let weight = random(seed ^ 1, &[width]).to_dtype(dtype).unwrap();
        let bias = random(seed ^ 2, &[width]).to_dtype(dtype).unwrap();
        assert_close(
            &layer_norm(&x, &weight, &bias, 1e-5),
            &reference::layer_norm(&x, &weight, &bias, 1e-5),
        );
    }

    #[test]
    fn pointwise_operations_equal_their_references(seed: u64, rows in size(30), width in size(90), stride: bool) {
        let x = maybe_strided(random(seed, &[rows, 2 * width]).affine(4.0, 0.0).unwrap(), stride);
        assert_close(&geglu(&x), &reference::geglu(&x));
        for activation in [Activation::Identity, Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
            assert_close(&activate(&x, activation), &reference::activate(&x, activation));
        }
    }

    #[test]
    fn upsampling_equals_its_reference(
        seed: u64, batch in 1usize..3, h in 1usize..9, w in 1usize..9, c in size(40), stride: bool,
    ) {
        let x = maybe_strided(random(seed, &[batch, h, w, c]), stride);
        assert_close(&upsample_nearest_2x(&x), &reference::upsample_nearest_2x(&x));
    }
}
