//! Shapes that do not fit are errors, on every operation; nothing panics.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use candle_core::{DType, Device, Result, Tensor};
use darkroom_kernels::{
    Activation, AttentionMask, Conv2dGeometry, Fp8Weight, Padding, Precision, RotaryPairs, activate, add,
    add_gated, add_layer_norm, add_row_shift, attention, concat_channels, conv2d, geglu, group_norm,
    group_norm_shifted, layer_norm, linear, linear_widened, modulated_layer_norm, rms_norm, rotary, sampling,
    sinusoid, swiglu, to_rgb8, upsample_nearest_2x,
};
use proptest::prelude::*;

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

fn assert_refused(result: Result<Tensor>, operation: &str) {
    let message = result.unwrap_err().to_string();
    assert!(message.contains(operation), "{message}");
}

const SAME: Conv2dGeometry = Conv2dGeometry { stride: 1, padding: Padding::all(1) };

#[test]
fn an_empty_batch_is_refused_by_name() {
    let (w, b) = (zeros(&[8, 4]), zeros(&[4]));
    assert_refused(linear(&zeros(&[0, 4]), &w, None), "linear");
    assert_refused(conv2d(&zeros(&[0, 5, 5, 4]), &zeros(&[8, 3, 3, 4]), None, SAME), "conv2d");
    let q = zeros(&[0, 3, 4]);
    assert_refused(attention(&q, &q, &q, 2, &AttentionMask::None), "attention");
    assert_refused(group_norm(&zeros(&[0, 3, 4]), 2, &b, &b, 1e-5, Activation::Silu), "group_norm");
    assert_refused(layer_norm(&zeros(&[0, 4]), &b, &b, 1e-5), "layer_norm");
    assert_refused(geglu(&zeros(&[0, 4])), "geglu");
    assert_refused(activate(&zeros(&[0, 4]), Activation::Silu), "activate");
    assert_refused(upsample_nearest_2x(&zeros(&[0, 2, 2, 4])), "upsample");
    assert_refused(add(&zeros(&[0, 4]), &zeros(&[0, 4])), "add");
    assert_refused(add_row_shift(&zeros(&[0, 3, 4]), &zeros(&[0, 4])), "add_row_shift");
    assert_refused(concat_channels(&zeros(&[2, 0]), &zeros(&[2, 4])), "concat_channels");
    assert_refused(sinusoid(&zeros(&[0]), 8), "sinusoid");
    assert_refused(to_rgb8(&zeros(&[1, 0, 4, 3])), "to_rgb8");
    assert_refused(rms_norm(&zeros(&[0, 4]), &b, 1e-6, Activation::Silu), "rms_norm");
    let rows = zeros(&[0, 4]);
    assert_refused(modulated_layer_norm(&q, &rows, &rows, 1e-6), "modulated_layer_norm");
    assert_refused(add_gated(&q, &q, &rows), "add_gated");
    let angles = zeros(&[3, 1]);
    assert_refused(rotary(&q, 2, &angles, &angles, RotaryPairs::Halves), "rotary");
    assert_refused(swiglu(&rows, &rows), "swiglu");
    let codes = Tensor::zeros((8, 4), DType::U8, &Device::Cpu).unwrap();
    let weight = Fp8Weight::from_codes(codes, 1.0).unwrap();
    assert_refused(linear_widened(&rows, &weight, None, None, Precision::Full), "linear_widened");
    assert_refused(sampling::guide(&zeros(&[0]), &zeros(&[0]), 2.0), "guide");
    assert_refused(sampling::linear_combination(&[]), "linear_combination");
    assert_refused(sampling::scale_latents(&[], DType::F32), "scale_latents");
    let none = sampling::denoised_latents(&zeros(&[0, 2, 2, 4]), &[]).map(|mut rows| rows.remove(0));
    assert_refused(none, "denoised_latents");
}

#[test]
fn shapes_that_do_not_fit_are_refused_by_name() {
    let (x, b) = (zeros(&[2, 3, 4]), zeros(&[4]));
    assert_refused(linear(&x, &zeros(&[8, 5]), None), "linear");
    assert_refused(linear(&x, &zeros(&[8, 4]), Some(&zeros(&[4]))), "linear");
    assert_refused(group_norm(&x, 3, &b, &b, 1e-5, Activation::Silu), "group_norm");
    assert_refused(group_norm(&x, 0, &b, &b, 1e-5, Activation::Silu), "group_norm");
    assert_refused(group_norm(&x, 2, &zeros(&[5]), &b, 1e-5, Activation::Silu), "group_norm");
    assert_refused(layer_norm(&x, &b, &zeros(&[3]), 1e-5), "layer_norm");
    assert_refused(geglu(&zeros(&[2, 3])), "geglu");
    let shifted = |shift: &[usize]| group_norm_shifted(&x, &zeros(shift), 2, &b, &b, 1e-5, Activation::Silu);
    assert_refused(shifted(&[2, 3]), "group_norm");
    assert_refused(shifted(&[4]), "group_norm");
    assert_refused(add_layer_norm(&x, &zeros(&[2, 3, 5]), &b, &b, 1e-5).map(|both| both.0), "add_layer_norm");
    assert_refused(add(&x, &b), "add");
    assert_refused(add(&x, &x.to_dtype(DType::F16).unwrap()), "add");
    assert_refused(add_row_shift(&x, &zeros(&[3, 4])), "add_row_shift");
    assert_refused(concat_channels(&x, &zeros(&[2, 4, 4])), "concat_channels");
    assert_refused(sinusoid(&zeros(&[2]), 7), "sinusoid");
    assert_refused(sinusoid(&zeros(&[2]), 0), "sinusoid");
    assert_refused(sinusoid(&x, 8), "sinusoid");
    assert_refused(to_rgb8(&x), "to_rgb8");
}

#[test]
fn what_transformers_are_made_of_refuses_shapes_that_do_not_fit_by_name() {
    let (x, b, rows) = (zeros(&[2, 3, 8]), zeros(&[8]), zeros(&[2, 8]));
    assert_refused(rms_norm(&x, &zeros(&[7]), 1e-6, Activation::Identity), "rms_norm");
    assert_refused(rms_norm(&x, &zeros(&[1, 8]), 1e-6, Activation::Identity), "rms_norm");
    assert_refused(modulated_layer_norm(&x, &rows, &b, 1e-6), "modulated_layer_norm");
    assert_refused(modulated_layer_norm(&x, &zeros(&[3, 8]), &rows, 1e-6), "modulated_layer_norm");
    assert_refused(add_gated(&x, &zeros(&[2, 4, 8]), &rows), "add_gated");
    assert_refused(add_gated(&x, &x.to_dtype(DType::F16).unwrap(), &rows), "add_gated");
    assert_refused(add_gated(&x, &x, &zeros(&[2, 3, 8])), "add_gated");
    for (heads, cos, sin) in [
        (2, [3, 1], [3, 1]),
        (2, [2, 2], [2, 2]),
        (2, [3, 2], [3, 1]),
        (3, [3, 1], [3, 1]),
        (8, [3, 1], [3, 1]),
        (0, [3, 2], [3, 2]),
        (usize::MAX, [3, 2], [3, 2]),
    ] {
        for pairs in [RotaryPairs::Adjacent, RotaryPairs::Halves] {
            assert_refused(rotary(&x, heads, &zeros(&cos), &zeros(&sin), pairs), "rotary");
        }
    }
    assert_refused(swiglu(&x, &zeros(&[2, 3, 7])), "swiglu");
    assert_refused(swiglu(&x, &x.to_dtype(DType::F16).unwrap()), "swiglu");
    assert!(Fp8Weight::from_codes(zeros(&[4, 8]), 1.0).is_err());
    assert!(Fp8Weight::from_codes(Tensor::zeros(8, DType::U8, &Device::Cpu).unwrap(), 1.0).is_err());
}

#[test]
fn latents_that_do_not_fit_are_refused_by_name() {
    let (x, y) = (zeros(&[4, 2, 2]), zeros(&[4, 2, 3]));
    assert_refused(sampling::guide(&x, &y, 2.0), "guide");
    assert_refused(sampling::linear_combination(&[(&x, 1.0), (&y, 2.0)]), "linear_combination");
    assert_refused(sampling::scale_latents(&[(&x, 1.0), (&y, 2.0)], DType::F32), "scale_latents");
    assert_refused(sampling::scale_latents(&[(&x, 1.0)], DType::U8), "scale_latents");
    assert_refused(sampling::scale_latents(&[(&zeros(&[4, 4]), 1.0)], DType::F32), "scale_latents");
    let half = x.to_dtype(DType::F16).unwrap();
    assert_refused(sampling::scale_latents(&[(&half, 1.0)], DType::F16), "scale_latents");
    for output in [&[1, 2, 3, 4][..], &[2, 2, 2, 4], &[2, 2, 4]] {
        let denoised = sampling::denoised_latents(&zeros(output), &[(&x, 1.0, 1.0)]);
        assert_refused(denoised.map(|mut rows| rows.remove(0)), "denoised_latents");
    }
}

#[test]
fn a_convolution_that_leaves_nothing_is_refused() {
    let (x, w) = (zeros(&[1, 2, 2, 4]), zeros(&[8, 3, 3, 4]));
    assert_refused(conv2d(&x, &w, None, Conv2dGeometry { padding: Padding::all(0), ..SAME }), "conv2d");
    assert_refused(conv2d(&x, &w, None, Conv2dGeometry { stride: 0, ..SAME }), "conv2d");
    let absurd = Padding { left: usize::MAX, ..Padding::all(1) };
    assert_refused(conv2d(&x, &w, None, Conv2dGeometry { padding: absurd, ..SAME }), "conv2d");
    assert_refused(conv2d(&x, &zeros(&[8, 3, 3, 5]), None, SAME), "conv2d");
    assert_refused(conv2d(&x, &w, Some(&zeros(&[7])), SAME), "conv2d");
}

#[test]
fn attention_refuses_heads_and_lengths_that_do_not_fit() {
    let (q, k) = (zeros(&[2, 3, 4]), zeros(&[2, 5, 4]));
    assert_refused(attention(&q, &k, &k, 3, &AttentionMask::None), "attention");
    assert_refused(attention(&q, &k, &k, 0, &AttentionMask::None), "attention");
    assert_refused(attention(&q, &k, &zeros(&[2, 6, 4]), 2, &AttentionMask::None), "attention");
    for lengths in [vec![1], vec![0, 1], vec![6, 1], vec![1, 1, 1]] {
        assert_refused(attention(&q, &k, &k, 2, &AttentionMask::KeyLengths(lengths)), "attention");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn no_shape_makes_an_operation_panic(
        a in prop::collection::vec(0usize..4, 0..5), b in prop::collection::vec(0usize..4, 0..5),
        c in prop::collection::vec(0usize..4, 0..3), n in 0usize..4,
    ) {
        let (x, w, bias) = (zeros(&a), zeros(&b), zeros(&c));
        let geometry = Conv2dGeometry { stride: n, padding: Padding::all(n) };
        let _ = linear(&x, &w, Some(&bias));
        let _ = conv2d(&x, &w, Some(&bias), geometry);
        let _ = attention(&x, &w, &w, n, &AttentionMask::KeyLengths(c.clone()));
        let _ = group_norm(&x, n, &bias, &bias, 1e-5, Activation::Gelu);
        let _ = layer_norm(&x, &bias, &bias, 1e-5);
        let _ = geglu(&x);
        let _ = activate(&x, Activation::QuickGelu);
        let _ = upsample_nearest_2x(&x);
        let _ = group_norm_shifted(&x, &w, n, &bias, &bias, 1e-5, Activation::Silu);
        let _ = add_layer_norm(&x, &w, &bias, &bias, 1e-5);
        let _ = add(&x, &w);
        let _ = add_row_shift(&x, &w);
        let _ = concat_channels(&x, &w);
        let _ = sinusoid(&x, n);
        let _ = to_rgb8(&x);
        let _ = rms_norm(&x, &bias, 1e-6, Activation::GeluTanh);
        let _ = modulated_layer_norm(&x, &bias, &w, 1e-6);
        let _ = add_gated(&x, &w, &bias);
        let _ = rotary(&x, n, &bias, &bias, RotaryPairs::Adjacent);
        let _ = swiglu(&x, &w);
        if let Ok(weight) = Fp8Weight::from_codes(w.to_dtype(DType::U8).unwrap(), 1.0) {
            let _ = linear_widened(&x, &weight, Some(&bias), None, Precision::Bf16);
        }
        let _ = sampling::guide(&x, &w, 2.0);
        let _ = sampling::linear_combination(&[(&x, 1.0), (&w, 2.0)]);
        let _ = sampling::scale_latents(&[(&x, 1.0), (&w, 2.0)], DType::F16);
        let _ = sampling::denoised_latents(&x, &[(&w, 1.0, 2.0)]);
    }
}
