//! On CUDA, what has kernels of its own equals what the CPU computes in `f32`, whatever the shape, the type of the
//! elements and the place in memory; and a row of a batch is what it is alone, to the bit.
//!
//! Where no device answers these tests say so and check nothing; with `DARKROOM_TEST_CUDA` set they fail.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test that cannot go on fails")]

mod support;

use candle_core::{D, DType, Device, Result, Tensor};
use darkroom_kernels::{
    Activation, activate, add, add_layer_norm, add_row_shift, add_to_rows, concat_channels, geglu,
    group_norm, group_norm_shifted, layer_norm, sampling, sinusoid, to_rgb8, upsample_nearest_2x,
};
use proptest::prelude::*;
use support::random;

/// The device, made once: each would have its own stream.
fn device() -> Option<Device> {
    static DEVICE: std::sync::OnceLock<Option<Device>> = std::sync::OnceLock::new();
    let made = || {
        // A library that is missing makes the bindings panic, not fail.
        let why = match std::panic::catch_unwind(|| Device::new_cuda(0)) {
            Ok(Ok(device)) => return Some(device),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the bindings gave up".to_owned(),
        };
        assert!(std::env::var_os("DARKROOM_TEST_CUDA").is_none(), "DARKROOM_TEST_CUDA is set, but: {why}");
        eprintln!("no CUDA device, nothing is checked: {why}");
        None
    };
    DEVICE.get_or_init(made).clone()
}

/// ‖out − ref‖ / ‖ref‖ allowed: of 16-bit types that of rounding each element once or twice, of `f32` that of sums in
/// another order and of the hardware's exponential.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1e-2,
        DType::F16 => 2e-3,
        _ => 1e-5,
    }
}

fn floats(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_near(dtype: DType, fast: &Result<Tensor>, slow: &Result<Tensor>) {
    let (fast, slow) = (fast.as_ref().unwrap(), slow.as_ref().unwrap());
    assert_eq!(fast.dims(), slow.dims());
    let (fast, slow) = (floats(fast), floats(slow));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut fast.iter().zip(&slow).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = norm(&mut slow.iter().map(|x| f64::from(*x))).max(1e-3);
    assert!(difference <= tolerance(dtype) * size, "relative error {:e}", difference / size);
}

fn assert_same_bits(one: &Tensor, other: &Tensor) {
    assert_eq!(one.dims(), other.dims());
    let bits = |x: &Tensor| floats(x).into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert!(bits(one) == bits(other), "rows differ from what they are alone");
}

/// `x` on the device as `dtype`, and the same numbers, rounded, on the CPU. `shifted`: where it lies begins between two
/// aligned addresses.
fn placed(x: &Tensor, dtype: DType, shifted: bool, device: &Device) -> (Tensor, Tensor) {
    let rounded = x.to_dtype(dtype).unwrap();
    let there = if shifted {
        let flat = rounded.flatten_all().unwrap();
        let before = Tensor::zeros(1, dtype, &Device::Cpu).unwrap();
        let all = Tensor::cat(&[&before, &flat], 0).unwrap().to_device(device).unwrap();
        all.narrow(0, 1, flat.elem_count()).unwrap().reshape(x.shape()).unwrap()
    } else {
        rounded.to_device(device).unwrap()
    };
    (there, rounded.to_dtype(DType::F32).unwrap())
}

fn elements() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)]
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

/// Channels of networks, and any number.
fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..70, Just(64), Just(320), Just(640)]
}

/// Each row of what `operation` makes of a batch is what it makes of that row.
fn assert_rows_alone(batch: &Tensor, operation: impl Fn(&Tensor) -> Tensor) {
    let all = operation(batch);
    for row in 0..batch.dim(0).unwrap() {
        let alone = operation(&batch.narrow(0, row, 1).unwrap());
        assert_same_bits(&all.narrow(0, row, 1).unwrap(), &alone);
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn group_norm_is_the_cpus(
        seed: u64, batch in 1usize..4, h in 1usize..20, w in 1usize..20, groups in prop_oneof![1usize..6, Just(32)],
        width in 1usize..24, offset in -20f64..20.0, shifted: bool, shift: bool, activation in activation(),
        dtype in elements(),
    ) {
        let Some(device) = device() else { return Ok(()) };
        prop_assume!(h * w * width >= 4);
        let c = groups * width;
        let x = random(seed, &[batch, h, w, c]).affine(1.0, if dtype == DType::F32 { offset } else { 0.5 }).unwrap();
        let (there, here) = placed(&x, dtype, shifted, &device);
        let (weight, bias) = (random(seed ^ 1, &[c]), random(seed ^ 2, &[c]));
        let there_w = (weight.to_device(&device).unwrap(), bias.to_device(&device).unwrap());
        let (shift_there, shift_here) = placed(&random(seed ^ 3, &[batch, c]), dtype, shifted, &device);
        let (fast, slow) = if shift {
            (
                group_norm_shifted(&there, &shift_there, groups, &there_w.0, &there_w.1, 1e-3, activation),
                group_norm_shifted(&here, &shift_here, groups, &weight, &bias, 1e-3, activation),
            )
        } else {
            (
                group_norm(&there, groups, &there_w.0, &there_w.1, 1e-3, activation),
                group_norm(&here, groups, &weight, &bias, 1e-3, activation),
            )
        };
        assert_near(dtype, &fast, &slow);
    }

    #[test]
    fn layer_norm_is_the_cpus(
        seed: u64, rows in 1usize..40, width in prop_oneof![1usize..300, Just(640), Just(1280), Just(2047), Just(4096)],
        shifted: bool, dtype in elements(),
    ) {
        let Some(device) = device() else { return Ok(()) };
        prop_assume!(width >= 4);
        let (there, here) = placed(&random(seed, &[rows, width]), dtype, shifted, &device);
        let (more_there, more_here) = placed(&random(seed ^ 3, &[rows, width]), dtype, shifted, &device);
        let (weight, bias) = (random(seed ^ 1, &[width]), random(seed ^ 2, &[width]));
        let (weight_there, bias_there) = (weight.to_device(&device).unwrap(), bias.to_device(&device).unwrap());
        assert_near(
            dtype,
            &layer_norm(&there, &weight_there, &bias_there, 1e-5),
            &layer_norm(&here, &weight, &bias, 1e-5),
        );
        let (sum, normed) = add_layer_norm(&there, &more_there, &weight_there, &bias_there, 1e-5).unwrap();
        let (sum_here, normed_here) = add_layer_norm(&here, &more_here, &weight, &bias, 1e-5).unwrap();
        assert_near(dtype, &Ok(sum), &Ok(sum_here));
        assert_near(dtype, &Ok(normed), &Ok(normed_here));
    }

    #[test]
    fn pointwise_operations_are_the_cpus(
        seed: u64, rows in 1usize..5, positions in 1usize..30, c in channels(), more in channels(), shifted: bool,
        activation in activation(), dtype in elements(),
    ) {
        let Some(device) = device() else { return Ok(()) };
        let place = |seed, shape: &[usize]| {
            placed(&random(seed, shape).affine(3.0, 0.0).unwrap(), dtype, shifted, &device)
        };
        let (x, x_here) = place(seed, &[rows, positions, c]);
        let (y, y_here) = place(seed ^ 1, &[rows, positions, c]);
        let (shift, shift_here) = place(seed ^ 2, &[rows, c]);
        let (other, other_here) = place(seed ^ 3, &[rows, positions, more]);
        let (gates, gates_here) = place(seed ^ 4, &[rows, positions, 2 * c]);
        let (picture, picture_here) = place(seed ^ 5, &[rows, positions, 3, c]);
        assert_near(dtype, &activate(&x, activation), &activate(&x_here, activation));
        assert_near(dtype, &add(&x, &y), &add(&x_here, &y_here));
        assert_near(dtype, &add_row_shift(&x, &shift), &add_row_shift(&x_here, &shift_here));
        assert_near(dtype, &concat_channels(&x, &other), &concat_channels(&x_here, &other_here));
        assert_near(dtype, &geglu(&gates), &geglu(&gates_here));
        assert_near(dtype, &upsample_nearest_2x(&picture), &upsample_nearest_2x(&picture_here));
    }

    #[test]
    fn only_the_named_rows_are_added_to(
        seed: u64, rows in 2usize..6, c in channels(), first in 0usize..6, shifted: bool, dtype in elements(),
    ) {
        let Some(device) = device() else { return Ok(()) };
        let first = first % rows;
        let added = 1 + (seed as usize) % (rows - first);
        let (target, here) = placed(&random(seed, &[rows, 3, c]), dtype, shifted, &device);
        let (source, source_here) = placed(&random(seed ^ 1, &[added, 3, c]), dtype, !shifted, &device);
        add_to_rows(&target, first, &source).unwrap();
        let here = here.copy().unwrap();
        add_to_rows(&here, first, &source_here).unwrap();
        assert_near(dtype, &Ok(target), &Ok(here));
    }

    #[test]
    fn sampling_arithmetic_is_the_cpus(
        seed: u64, n in 1usize..9, c in 1usize..6, h in 1usize..12, w in 1usize..12, scale in 1f64..12.0, terms in 1usize..8,
        shifted: bool, dtype in elements(),
    ) {
        let Some(device) = device() else { return Ok(()) };
        let place = |i: usize, dtype| placed(&random(seed ^ i as u64, &[c, h, w]), dtype, shifted, &device);
        let (cond, cond_here) = place(100, dtype);
        let (uncond, uncond_here) = place(101, dtype);
        assert_near(
            dtype,
            &sampling::guide(&cond, &uncond, scale),
            &sampling::guide(&cond_here, &uncond_here, scale),
        );
        let tensors: Vec<_> = (0..terms).map(|i| place(i, dtype)).collect();
        let factor = |i: usize| 1.0 - 0.3 * i as f64 * scale;
        let there: Vec<_> = tensors.iter().enumerate().map(|(i, (t, _))| (t, factor(i))).collect();
        let here: Vec<_> = tensors.iter().enumerate().map(|(i, (_, t))| (t, factor(i))).collect();
        // Of eight terms in 16 bits three sums are rounded on the way.
        assert_near(dtype, &sampling::linear_combination(&there), &sampling::linear_combination(&here));

        let latents: Vec<_> = (0..n).map(|i| place(i, DType::F32)).collect();
        let there: Vec<_> = latents.iter().enumerate().map(|(i, (t, _))| (t, 0.1 + i as f64)).collect();
        let here: Vec<_> = latents.iter().enumerate().map(|(i, (_, t))| (t, 0.1 + i as f64)).collect();
        assert_near(
            dtype,
            &sampling::scale_latents(&there, dtype),
            &sampling::scale_latents(&here, DType::F32),
        );
        let (output, output_here) = placed(&random(seed ^ 200, &[n, h, w, c]), dtype, shifted, &device);
        let factors = |i: usize| [(1.0, -scale), (0.5, 0.25), (0.0, 1.0), (1.0, 0.0)][i % 4];
        let row = |i: usize, t| (t, factors(i).0, factors(i).1);
        let there: Vec<_> = latents.iter().enumerate().map(|(i, (t, _))| row(i, t)).collect();
        let here: Vec<_> = latents.iter().enumerate().map(|(i, (_, t))| row(i, t)).collect();
        let fast = sampling::denoised_latents(&output, &there).unwrap();
        let slow = sampling::denoised_latents(&output_here, &here).unwrap();
        for (fast, slow) in fast.into_iter().zip(slow) {
            assert_near(DType::F32, &Ok(fast), &Ok(slow));
        }
    }

    #[test]
    fn bytes_are_the_cpus(seed: u64, h in 1usize..20, w in 1usize..20, shifted: bool, dtype in elements()) {
        let Some(device) = device() else { return Ok(()) };
        let (there, here) = placed(&random(seed, &[1, h, w, 3]), dtype, shifted, &device);
        let bytes = |x: &Tensor| to_rgb8(x).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap();
        assert_eq!(bytes(&there), bytes(&here));
    }
}

#[test]
fn what_is_no_number_is_black() {
    let Some(device) = device() else { return };
    let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0, -1.0, 0.999];
    let x = Tensor::from_slice(&values, (1, 1, 2, 3), &device).unwrap();
    assert_eq!(
        to_rgb8(&x).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap(),
        [0, 255, 0, 255, 0, 254]
    );
}

#[test]
fn more_rows_than_one_launch_takes_are_all_scaled_and_split() {
    let Some(device) = device() else { return };
    let n = 150;
    let latents: Vec<_> = (0..n).map(|i| random(i, &[4, 3, 5])).collect();
    let there: Vec<_> = latents.iter().map(|t| t.to_device(&device).unwrap()).collect();
    let with = |latents: &[Tensor]| {
        let scaled: Vec<_> = latents.iter().enumerate().map(|(i, t)| (t, i as f64)).collect();
        let batch = sampling::scale_latents(&scaled, DType::F32).unwrap();
        let rows: Vec<_> = latents.iter().enumerate().map(|(i, t)| (t, 1.0, -(i as f64))).collect();
        let split = sampling::denoised_latents(&batch, &rows).unwrap();
        (batch, Tensor::stack(&split, 0).unwrap())
    };
    let (fast, slow) = (with(&there), with(&latents));
    assert_near(DType::F32, &Ok(fast.0), &Ok(slow.0));
    assert_near(DType::F32, &Ok(fast.1), &Ok(slow.1));
}

/// Offsets, spreads and sizes at which plain sums in `f32` would have lost the variance.
#[test]
fn group_statistics_of_many_positions_keep_their_precision() {
    let Some(device) = device() else { return };
    for (positions, channels, groups, offset) in
        [(1 << 18, 8, 2, 100.0), (1 << 16, 32, 32, -1000.0), (40_001, 12, 3, 50.0)]
    {
        let x = random(9, &[1, positions, channels]).affine(0.5, offset).unwrap();
        let (weight, bias) = (random(1, &[channels]), random(2, &[channels]));
        let there = group_norm(
            &x.to_device(&device).unwrap(),
            groups,
            &weight.to_device(&device).unwrap(),
            &bias.to_device(&device).unwrap(),
            1e-5,
            Activation::Identity,
        );
        // The CPU sums in f64. Differences from the mean are those of f32 numbers as large as the offset.
        let here = group_norm(&x, groups, &weight, &bias, 1e-5, Activation::Identity).unwrap();
        let (there, here) = (floats(&there.unwrap()), floats(&here));
        let worst = there.iter().zip(&here).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        let unit = offset.abs() as f32 * f32::EPSILON * 16.0;
        assert!(worst <= unit, "{positions} x {channels}: {worst:e} beside {unit:e}");
    }
}

#[test]
fn a_row_is_the_same_alone_to_the_bit() {
    let Some(device) = device() else { return };
    for dtype in [DType::F32, DType::BF16] {
        for (batch, positions, c, groups) in
            [(3, 1024, 320, 32), (5, 77, 70, 7), (2, 256, 1280, 32), (2, 9, 2560, 32)]
        {
            let (x, _) = placed(&random(4, &[batch, positions, c]), dtype, false, &device);
            let weight = random(1, &[c]).to_device(&device).unwrap();
            assert_rows_alone(&x, |x| {
                group_norm(x, groups, &weight, &weight, 1e-5, Activation::Silu).unwrap()
            });
            assert_rows_alone(&x, |x| layer_norm(x, &weight, &weight, 1e-5).unwrap());
            assert_rows_alone(&x, |x| activate(x, Activation::Gelu).unwrap());
            assert_rows_alone(&x, |x| add(x, x).unwrap());
        }
    }
}

#[test]
fn channels_of_networks_are_normalised_whatever_their_packs() {
    let Some(device) = device() else { return };
    for c in [320, 960, 1920, 2560, 4096] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (there, here) = placed(&random(c as u64, &[2, 50, c]), dtype, false, &device);
            let (weight, bias) = (random(1, &[c]), random(2, &[c]));
            let there = group_norm(
                &there,
                32,
                &weight.to_device(&device).unwrap(),
                &bias.to_device(&device).unwrap(),
                1e-5,
                Activation::Silu,
            );
            assert_near(dtype, &there, &group_norm(&here, 32, &weight, &bias, 1e-5, Activation::Silu));
        }
    }
}

/// Angles reach 999: a unit in the last place of one is 6e-5 there, and the sine's own error comes on top.
#[test]
fn sinusoids_are_the_cpus() {
    let Some(device) = device() else { return };
    let numbers = Tensor::from_slice(&[0f32, 1.0, 999.0, 0.37, 1024.0, 501.5], 6, &Device::Cpu).unwrap();
    for width in [2, 6, 256, 320] {
        let here = sinusoid(&numbers, width).unwrap();
        let there = sinusoid(&numbers.to_device(&device).unwrap(), width).unwrap();
        assert_eq!(there.dims(), [6, width]);
        for (a, b) in floats(&there).iter().zip(floats(&here)) {
            assert!((a - b).abs() <= 1e-6, "{a} beside {b}");
        }
    }
}

/// One layer's worth of operations on nothing but odd sizes and on views: what is refused on the CPU is refused here.
#[test]
fn what_does_not_fit_is_refused() {
    let Some(device) = device() else { return };
    let x = Tensor::ones((2, 3, 4), DType::BF16, &device).unwrap();
    let b = Tensor::ones(4, DType::F32, &device).unwrap();
    let half = x.narrow(D::Minus1, 0, 2).unwrap();
    assert!(group_norm(&x, 3, &b, &b, 1e-5, Activation::Silu).is_err());
    assert!(group_norm_shifted(&x, &b, 2, &b, &b, 1e-5, Activation::Silu).is_err());
    assert!(add_layer_norm(&x, &half, &b, &b, 1e-5).is_err());
    assert!(add(&x, &half).is_err());
    assert!(add_to_rows(&half, 0, &half).is_err(), "a view with gaps is not changed in place");
    assert!(concat_channels(&x, &Tensor::ones((2, 4, 4), DType::BF16, &device).unwrap()).is_err());
    assert!(sampling::scale_latents(&[(&x, 1.0)], DType::BF16).is_err());
}
