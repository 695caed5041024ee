//! `Precision::Bf16` is the reference of operands rounded to `bf16`, close to the plain reference, and `Full`
//! where nothing is gained.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use candle_core::{DType, Tensor};
use darkroom_kernels::{
    Conv2dGeometry, Padding, Precision, bf16_is_accelerated, conv2d, conv2d_at, linear, linear_at, reference,
};
use proptest::prelude::*;
use support::random;

/// ‖got − reference of rounded operands‖ / ‖reference‖: both sum the same `f32` products in different orders.
const ROUNDED_TOLERANCE: f64 = 1e-5;

/// ‖got − plain reference‖ / ‖reference‖: two factors, each off by at most 2⁻⁸ of itself.
const PLAIN_TOLERANCE: f64 = 1e-2;

/// The same numbers with the first and last dimensions exchanged in memory.
fn strided(x: &Tensor) -> Tensor {
    let last = x.rank() - 1;
    x.transpose(0, last).unwrap().contiguous().unwrap().transpose(0, last).unwrap()
}

fn rounded(x: &Tensor) -> Tensor {
    x.to_dtype(DType::F32).unwrap().to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let (mut error, mut size) = (0f64, 0f64);
    for (a, b) in numbers(got).into_iter().zip(numbers(want)) {
        error += (f64::from(a) - f64::from(b)).powi(2);
        size += f64::from(b).powi(2);
    }
    (error / size).sqrt()
}

fn assert_bits(got: &Tensor, want: &Tensor) {
    assert_eq!(got.dims(), want.dims());
    for (i, (a, b)) in numbers(got).into_iter().zip(numbers(want)).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "element {i}: {a} against {b}");
    }
}

/// `got` is what `Bf16` promises on this machine.
fn assert_reduced(got: &Tensor, full: &Tensor, of_rounded: &Tensor, plain: &Tensor) {
    let error = distance(got, plain);
    assert!(error <= PLAIN_TOLERANCE, "{error:e} from the plain reference");
    if bf16_is_accelerated() {
        let error = distance(got, of_rounded);
        assert!(error <= ROUNDED_TOLERANCE, "{error:e} from the reference of rounded operands");
    } else {
        assert_bits(got, full);
    }
}

fn stored() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)]
}

/// Large enough to be worth reduced precision.
fn size(least: usize, most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![least..=most, Just(least), Just(64), Just(96)]
}

/// A picture must not change with the size of its batch, so the number of rows must not choose the path.
#[test]
fn a_row_alone_equals_the_row_among_many() {
    let (x, weight) = (random(1, &[48, 640]), random(2, &[320, 640]));
    let many = linear_at(&x, &weight, None, Precision::Bf16).unwrap();
    for row in [0, 17, 47] {
        let alone = linear_at(&x.narrow(0, row, 1).unwrap(), &weight, None, Precision::Bf16).unwrap();
        let error = distance(&alone, &many.narrow(0, row, 1).unwrap());
        assert!(error <= ROUNDED_TOLERANCE, "row {row}: {error:e}");
    }
}

#[test]
fn a_convolution_of_few_channels_is_computed_in_full() {
    let (x, weight) = (random(1, &[1, 24, 24, 4]), random(2, &[64, 3, 3, 4]));
    let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(1) };
    let got = conv2d_at(&x, &weight, None, geometry, Precision::Bf16).unwrap();
    assert_bits(&got, &conv2d(&x, &weight, None, geometry).unwrap());
}

#[test]
fn the_layers_of_the_networks_stay_within_the_tolerances() {
    for (rows, inner, out) in [(512, 1280, 1280), (154, 2048, 640), (257, 5120, 160)] {
        let (x, bias) = (random(1, &[rows, inner]), random(3, &[out]));
        let weight = random(2, &[out, inner]).to_dtype(DType::F16).unwrap();
        assert_reduced(
            &linear_at(&x, &weight, Some(&bias), Precision::Bf16).unwrap(),
            &linear(&x, &weight, Some(&bias)).unwrap(),
            &reference::linear(&rounded(&x), &rounded(&weight), Some(&bias)).unwrap(),
            &reference::linear(&x, &weight, Some(&bias)).unwrap(),
        );
    }
    for (side, channels, out) in [(16, 1280, 64), (64, 320, 4), (33, 320, 96)] {
        let (x, bias) = (random(4, &[2, side, side, channels]), random(6, &[out]));
        let weight = random(5, &[out, 3, 3, channels]).to_dtype(DType::F16).unwrap();
        let geometry = Conv2dGeometry { stride: 1, padding: Padding::all(1) };
        assert_reduced(
            &conv2d_at(&x, &weight, Some(&bias), geometry, Precision::Bf16).unwrap(),
            &conv2d(&x, &weight, Some(&bias), geometry).unwrap(),
            &reference::conv2d(&rounded(&x), &rounded(&weight), Some(&bias), geometry).unwrap(),
            &reference::conv2d(&x, &weight, Some(&bias), geometry).unwrap(),
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn linear_is_the_reference_of_rounded_operands(
        seed: u64, rows in size(33, 150), inner in size(33, 900), out in size(33, 140), batched: bool,
        bias: bool, stride: bool, dtype in stored(),
    ) {
        let shape: &[usize] = if batched { &[2, rows, inner] } else { &[rows, inner] };
        let x = random(seed, shape);
        let x = if stride { strided(&x) } else { x };
        let weight = random(seed ^ 1, &[out, inner]).to_dtype(dtype).unwrap();
        let weight = if stride { strided(&weight) } else { weight };
        let bias = bias.then(|| random(seed ^ 2, &[out]).to_dtype(dtype).unwrap());
        let bias = bias.as_ref();
        assert_bits(
            &linear_at(&x, &weight, bias, Precision::Full).unwrap(),
            &linear(&x, &weight, bias).unwrap(),
        );
        assert_reduced(
            &linear_at(&x, &weight, bias, Precision::Bf16).unwrap(),
            &linear(&x, &weight, bias).unwrap(),
            &reference::linear(&rounded(&x), &rounded(&weight), bias).unwrap(),
            &reference::linear(&x, &weight, bias).unwrap(),
        );
    }

    #[test]
    fn conv2d_is_the_reference_of_rounded_operands(
        seed: u64, batch in 1usize..3, h in 11usize..20, w in 11usize..20, channels in size(33, 70),
        out in size(33, 70), kernel in prop_oneof![Just((1, 1)), Just((3, 3)), Just((2, 5))],
        step in 1usize..3, pads in [0usize..3, 0usize..3, 0usize..3, 0usize..3],
        bias: bool, stride: bool, dtype in stored(),
    ) {
        let padding = Padding { top: pads[0], left: pads[1], bottom: pads[2], right: pads[3] };
        let geometry = Conv2dGeometry { stride: step, padding };
        let x = random(seed, &[batch, h, w, channels]);
        let x = if stride { strided(&x) } else { x };
        let weight = random(seed ^ 1, &[out, kernel.0, kernel.1, channels]).to_dtype(dtype).unwrap();
        let bias = bias.then(|| random(seed ^ 2, &[out]).to_dtype(dtype).unwrap());
        let bias = bias.as_ref();
        assert_bits(
            &conv2d_at(&x, &weight, bias, geometry, Precision::Full).unwrap(),
            &conv2d(&x, &weight, bias, geometry).unwrap(),
        );
        assert_reduced(
            &conv2d_at(&x, &weight, bias, geometry, Precision::Bf16).unwrap(),
            &conv2d(&x, &weight, bias, geometry).unwrap(),
            &reference::conv2d(&rounded(&x), &rounded(&weight), bias, geometry).unwrap(),
            &reference::conv2d(&x, &weight, bias, geometry).unwrap(),
        );
    }
}
