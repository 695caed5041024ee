//! What diffusion transformers and language models are made of equals its plain candle reference on random shapes, views
//! and weights.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use candle_core::{DType, Device, Tensor};
use darkroom_kernels::{
    Activation, Fp8Weight, Precision, RotaryPairs, add_gated, linear_widened, modulated_layer_norm,
    reference, rms_norm, rotary, swiglu,
};
use proptest::prelude::*;
use support::random;

/// Largest difference allowed, as a part of the largest reference value: both sides round in `f32`, in different orders.
const TOLERANCE: f64 = 1e-5;

/// The same numbers, as the left part of wider rows that lie in another order.
fn strided(x: &Tensor) -> Tensor {
    let last = x.rank() - 1;
    let wide = Tensor::cat(&[x, &x.affine(3.0, 1.0).unwrap()], last).unwrap();
    let turned = wide.transpose(0, last).unwrap().contiguous().unwrap().transpose(0, last).unwrap();
    turned.narrow(last, 0, x.dim(last).unwrap()).unwrap()
}

/// The same numbers, as one of three parts of each row, as a fused projection leaves them.
fn part_of_wider_rows(x: &Tensor) -> Tensor {
    let last = x.rank() - 1;
    let all = Tensor::cat(&[&x.affine(3.0, 1.0).unwrap(), x, &x.affine(-2.0, 1.0).unwrap()], last).unwrap();
    all.narrow(last, x.dim(last).unwrap(), x.dim(last).unwrap()).unwrap()
}

fn laid(x: Tensor, layout: usize) -> Tensor {
    match layout {
        0 => x,
        1 => part_of_wider_rows(&x),
        _ => strided(&x),
    }
}

fn assert_close(fast: &Tensor, slow: &Tensor) {
    assert_eq!(fast.dims(), slow.dims());
    assert_eq!(fast.dtype(), DType::F32);
    let fast: Vec<f32> = fast.flatten_all().unwrap().to_vec1().unwrap();
    let slow: Vec<f32> = slow.flatten_all().unwrap().to_vec1().unwrap();
    let scale = slow.iter().fold(1e-3f64, |m, x| m.max(f64::from(x.abs())));
    for (i, (a, b)) in fast.iter().zip(&slow).enumerate() {
        let error = (f64::from(*a) - f64::from(*b)).abs() / scale;
        assert!(error <= TOLERANCE, "element {i}: {a} against {b}, relative error {error:e}");
    }
}

fn stored() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)]
}

fn size(most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1..=most, Just(most), Just(16), Just(64), Just(1)]
}

fn activation() -> impl Strategy<Value = Activation> {
    prop_oneof![
        Just(Activation::Identity),
        Just(Activation::Silu),
        Just(Activation::Gelu),
        Just(Activation::QuickGelu),
        Just(Activation::GeluTanh)
    ]
}

fn pairs() -> impl Strategy<Value = RotaryPairs> {
    prop_oneof![Just(RotaryPairs::Adjacent), Just(RotaryPairs::Halves)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn rms_norm_equals_its_reference(
        seed: u64, outer in 1usize..4, rows in size(80), width in size(700), offset in -9f64..9.0, layout in 0usize..3,
        activation in activation(), dtype in stored(),
    ) {
        let x = laid(random(seed, &[outer, rows, width]).affine(1.0, offset).unwrap(), layout);
        let weight = random(seed ^ 1, &[width]).to_dtype(dtype).unwrap();
        assert_close(
            &rms_norm(&x, &weight, 1e-6, activation).unwrap(),
            &reference::rms_norm(&x, &weight, 1e-6, activation).unwrap(),
        );
    }

    #[test]
    fn a_modulated_layer_norm_equals_its_reference(
        seed: u64, batch in 1usize..4, tokens in size(80), width in size(700), layout in 0usize..3, dtype in stored(),
    ) {
        let x = laid(random(seed, &[batch, tokens, width]), layout);
        let row = |seed| laid(random(seed, &[batch, width]), layout).to_dtype(dtype).unwrap();
        let (shift, scale) = (row(seed ^ 1), row(seed ^ 2));
        // Of a few elements the variance may be all rounding error.
        prop_assume!(width >= 4);
        assert_close(
            &modulated_layer_norm(&x, &shift, &scale, 1e-3).unwrap(),
            &reference::modulated_layer_norm(&x, &shift, &scale, 1e-3).unwrap(),
        );
    }

    #[test]
    fn a_gated_sum_equals_its_reference(
        seed: u64, batch in 1usize..4, tokens in size(80), width in size(700), layout in 0usize..3, dtype in stored(),
    ) {
        let x = laid(random(seed, &[batch, tokens, width]), layout);
        let y = laid(random(seed ^ 1, &[batch, tokens, width]), 2 - layout);
        let gate = laid(random(seed ^ 2, &[batch, width]), layout).to_dtype(dtype).unwrap();
        assert_close(&add_gated(&x, &y, &gate).unwrap(), &reference::add_gated(&x, &y, &gate).unwrap());
    }

    #[test]
    fn rotary_equals_its_reference(
        seed: u64, batch in 1usize..4, tokens in size(80), heads in 1usize..6, half in size(40), layout in 0usize..3,
        pairs in pairs(),
    ) {
        let x = laid(random(seed, &[batch, tokens, heads * 2 * half]), layout);
        let angles = random(seed ^ 1, &[tokens, half]).affine(40.0, 0.0).unwrap();
        let (cos, sin) = (laid(angles.cos().unwrap(), layout), laid(angles.sin().unwrap(), layout));
        assert_close(
            &rotary(&x, heads, &cos, &sin, pairs).unwrap(),
            &reference::rotary(&x, heads, &cos, &sin, pairs).unwrap(),
        );
    }

    #[test]
    fn swiglu_equals_its_reference(
        seed: u64, rows in size(90), width in size(700), layout in 0usize..3,
    ) {
        let gate = laid(random(seed, &[rows, width]).affine(9.0, 0.0).unwrap(), layout);
        let value = laid(random(seed ^ 1, &[rows, width]), 2 - layout);
        assert_close(&swiglu(&gate, &value).unwrap(), &reference::swiglu(&gate, &value).unwrap());
    }

    #[test]
    fn weights_in_8_bits_multiply_as_the_numbers_they_stand_for(
        seed: u64, rows in size(90), inner in size(700), out in size(140), layout in 0usize..3, scale in 1e-3f32..2.0,
        bias: bool, residual: bool, dtype in stored(),
    ) {
        let x = laid(random(seed, &[2, rows, inner]), layout);
        let (codes, wide) = codes(seed ^ 1, out, inner);
        let weight = Fp8Weight::from_codes(codes, scale).unwrap();
        let bias = bias.then(|| random(seed ^ 2, &[out]).to_dtype(dtype).unwrap());
        let residual = residual.then(|| laid(random(seed ^ 3, &[2, rows, out]), layout));
        let wide = (wide * f64::from(scale)).unwrap();
        let mut slow = reference::linear(&x, &wide, bias.as_ref()).unwrap();
        if let Some(residual) = &residual {
            slow = (slow + residual).unwrap();
        }
        let fast = linear_widened(&x, &weight, bias.as_ref(), residual.as_ref(), Precision::Full).unwrap();
        assert_close(&fast, &slow);
    }
}

/// Codes of numbers up to 2, and those numbers as candle's own 8-bit type has them.
fn codes(seed: u64, out: usize, inner: usize) -> (Tensor, Tensor) {
    let numbers = random(seed, &[out * inner]).to_vec1::<f32>().unwrap();
    let numbers: Vec<_> = numbers.into_iter().map(float8::F8E4M3::from_f32).collect();
    let codes = numbers.iter().map(float8::F8E4M3::to_bits).collect::<Vec<u8>>();
    let wide = numbers.iter().map(float8::F8E4M3::to_f32).collect::<Vec<f32>>();
    let shape = (out, inner);
    (
        Tensor::from_vec(codes, shape, &Device::Cpu).unwrap(),
        Tensor::from_vec(wide, shape, &Device::Cpu).unwrap(),
    )
}

/// A picture must not change with the size of its batch.
#[test]
fn a_row_is_the_same_alone_to_the_bit() {
    let (x, y) = (random(1, &[3, 77, 192]), random(2, &[3, 77, 192]));
    let (rows, weight) = (random(3, &[3, 192]), random(4, &[192]));
    let angles = random(5, &[77, 12]);
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let row = |t: &Tensor, i| t.narrow(0, i, 1).unwrap();
    let assert_same = |all: Tensor, i, alone: Tensor| {
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bits(&row(&all, i)), bits(&alone));
    };
    for i in 0..3 {
        let (x_i, y_i, rows_i) = (row(&x, i), row(&y, i), row(&rows, i));
        let norm = |x: &Tensor| rms_norm(x, &weight, 1e-6, Activation::Silu).unwrap();
        assert_same(norm(&x), i, norm(&x_i));
        let modulated = |x: &Tensor, rows: &Tensor| modulated_layer_norm(x, rows, rows, 1e-6).unwrap();
        assert_same(modulated(&x, &rows), i, modulated(&x_i, &rows_i));
        assert_same(add_gated(&x, &y, &rows).unwrap(), i, add_gated(&x_i, &y_i, &rows_i).unwrap());
        let turned = |x: &Tensor| rotary(x, 8, &cos, &sin, RotaryPairs::Adjacent).unwrap();
        assert_same(turned(&x), i, turned(&x_i));
        assert_same(swiglu(&x, &y).unwrap(), i, swiglu(&x_i, &y_i).unwrap());
    }
}

#[test]
fn a_quarter_turn_exchanges_the_numbers_of_each_pair() {
    let x = Tensor::arange(1f32, 9.0, &Device::Cpu).unwrap().reshape((1, 1, 8)).unwrap();
    let (cos, sin) =
        (Tensor::zeros((1, 2), DType::F32, &Device::Cpu), Tensor::ones((1, 2), DType::F32, &Device::Cpu));
    let (cos, sin) = (cos.unwrap(), sin.unwrap());
    let turned =
        |pairs| rotary(&x, 2, &cos, &sin, pairs).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(turned(RotaryPairs::Adjacent), [-2.0, 1.0, -4.0, 3.0, -6.0, 5.0, -8.0, 7.0]);
    assert_eq!(turned(RotaryPairs::Halves), [-3.0, -4.0, 1.0, 2.0, -7.0, -8.0, 5.0, 6.0]);
}
