//! On CUDA, what diffusion transformers and language models are made of equals what the CPU computes in `f32`, whatever
//! the shape, the type of the elements and the place in memory; and a row of a batch is what it is alone, to the bit.
//!
//! Where no device answers these tests say so and check nothing; with `DARKROOM_TEST_CUDA` set they fail.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test that cannot go on fails")]

mod support;

use candle_core::{DType, Device, Result, Tensor};
use darkroom_kernels::device::{self, DeviceName};
use darkroom_kernels::{
    Activation, Fp8Scaling, Fp8Weight, Precision, Replays, RotaryPairs, activate, add_gated, linear_widened,
    modulated_layer_norm, rms_norm, rotary, supports_fp8, swiglu,
};
use proptest::prelude::*;
use support::random;

/// The card, opened as the program does.
fn card() -> Option<Device> {
    match device::open(DeviceName::Cuda(0)) {
        Ok((device, _)) => Some(device),
        Err(error) if std::env::var_os("DARKROOM_TEST_CUDA").is_some() => panic!("{error}"),
        Err(error) => {
            eprintln!("not tested: {error}");
            None
        }
    }
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
    assert_eq!((fast.dims(), fast.dtype()), (slow.dims(), dtype));
    let (fast, slow) = (floats(fast), floats(slow));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut fast.iter().zip(&slow).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = norm(&mut slow.iter().map(|x| f64::from(*x))).max(1e-3);
    assert!(difference <= tolerance(dtype) * size, "relative error {:e}", difference / size);
}

/// Where the numbers lie on the card.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// One after another, from an aligned address.
    Dense,
    /// One after another, from between two aligned addresses.
    Shifted,
    /// As the middle one of three parts of each row.
    Part,
    /// Part of each row, beginning anywhere.
    OddPart,
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![Just(Place::Dense), Just(Place::Shifted), Just(Place::Part), Just(Place::OddPart)]
}

/// `x` on the card as `dtype`, and the same numbers, rounded, on the CPU.
fn placed(x: &Tensor, dtype: DType, place: Place, card: &Device) -> (Tensor, Tensor) {
    let rounded = x.to_dtype(dtype).unwrap();
    let last = x.rank() - 1;
    let width = x.dim(last).unwrap();
    let there = match place {
        Place::Dense => rounded.to_device(card).unwrap(),
        Place::Shifted => {
            let flat = rounded.flatten_all().unwrap();
            let before = Tensor::zeros(1, dtype, &Device::Cpu).unwrap();
            let all = Tensor::cat(&[&before, &flat], 0).unwrap().to_device(card).unwrap();
            all.narrow(0, 1, flat.elem_count()).unwrap().reshape(x.shape()).unwrap()
        }
        Place::Part => {
            let all = Tensor::cat(&[&rounded, &rounded, &rounded], last).unwrap().to_device(card).unwrap();
            all.narrow(last, width, width).unwrap()
        }
        Place::OddPart => {
            let one = rounded.narrow(last, 0, 1).unwrap();
            let all = Tensor::cat(&[&one, &rounded], last).unwrap().to_device(card).unwrap();
            all.narrow(last, 1, width).unwrap()
        }
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

/// Widths of networks, and any.
fn width() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..300, Just(64), Just(96), Just(128), Just(384), Just(1280), Just(2047), Just(3072)]
}

fn pairs() -> impl Strategy<Value = RotaryPairs> {
    prop_oneof![Just(RotaryPairs::Adjacent), Just(RotaryPairs::Halves)]
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(config(32))]

    #[test]
    fn rms_norm_is_the_cpus(
        seed: u64, rows in 1usize..12, heads in 1usize..5, width in width(), place in place(), activation in activation(),
        dtype in elements(), stored in elements(),
    ) {
        let Some(card) = card() else { return Ok(()) };
        let (there, here) = placed(&random(seed, &[rows, heads, width]), dtype, place, &card);
        let weight = random(seed ^ 1, &[width]).to_dtype(stored).unwrap();
        assert_near(
            dtype,
            &rms_norm(&there, &weight.to_device(&card).unwrap(), 1e-6, activation),
            &rms_norm(&here, &weight, 1e-6, activation),
        );
    }

    #[test]
    fn a_modulated_layer_norm_is_the_cpus(
        seed: u64, batch in 1usize..4, tokens in 1usize..9, width in width(), at in place(), of_rows in place(),
        dtype in elements(), shifts in elements(), scales in elements(),
    ) {
        let Some(card) = card() else { return Ok(()) };
        prop_assume!(width >= 4);
        let (x, x_here) = placed(&random(seed, &[batch, tokens, width]), dtype, at, &card);
        let (shift, shift_here) = placed(&random(seed ^ 1, &[batch, width]), shifts, of_rows, &card);
        let (scale, scale_here) = placed(&random(seed ^ 2, &[batch, width]), scales, of_rows, &card);
        assert_near(
            dtype,
            &modulated_layer_norm(&x, &shift, &scale, 1e-3),
            &modulated_layer_norm(&x_here, &shift_here, &scale_here, 1e-3),
        );
    }

    #[test]
    fn a_gated_sum_is_the_cpus(
        seed: u64, batch in 1usize..4, tokens in 1usize..9, width in width(), at in place(), of_gate in place(),
        dtype in elements(), gates in elements(),
    ) {
        let Some(card) = card() else { return Ok(()) };
        let (x, x_here) = placed(&random(seed, &[batch, tokens, width]), dtype, at, &card);
        let (y, y_here) = placed(&random(seed ^ 1, &[batch, tokens, width]), dtype, of_gate, &card);
        let (gate, gate_here) = placed(&random(seed ^ 2, &[batch, width]), gates, of_gate, &card);
        assert_near(dtype, &add_gated(&x, &y, &gate), &add_gated(&x_here, &y_here, &gate_here));
    }

    #[test]
    fn rotary_is_the_cpus(
        seed: u64, batch in 1usize..4, tokens in 1usize..20, heads in 1usize..6, half in prop_oneof![1usize..40, Just(64)],
        place in place(), of_angles in place(), pairs in pairs(), dtype in elements(),
    ) {
        let Some(card) = card() else { return Ok(()) };
        let (x, x_here) = placed(&random(seed, &[batch, tokens, heads * 2 * half]), dtype, place, &card);
        let angles = random(seed ^ 1, &[tokens, half]).affine(40.0, 0.0).unwrap();
        let (cos, cos_here) = placed(&angles.cos().unwrap(), DType::F32, of_angles, &card);
        let (sin, sin_here) = placed(&angles.sin().unwrap(), DType::F32, of_angles, &card);
        assert_near(
            dtype,
            &rotary(&x, heads, &cos, &sin, pairs),
            &rotary(&x_here, heads, &cos_here, &sin_here, pairs),
        );
    }

    #[test]
    fn gates_of_feed_forward_layers_are_the_cpus(
        seed: u64, rows in 1usize..20, width in width(), at in place(), of_value in place(), dtype in elements(),
    ) {
        let Some(card) = card() else { return Ok(()) };
        let far = random(seed, &[rows, width]).affine(6.0, 0.0).unwrap();
        let (gate, gate_here) = placed(&far, dtype, at, &card);
        let (value, value_here) = placed(&random(seed ^ 1, &[rows, width]), dtype, of_value, &card);
        assert_near(dtype, &swiglu(&gate, &value), &swiglu(&gate_here, &value_here));
        let of = |x| activate(x, Activation::GeluTanh);
        assert_near(dtype, &of(&gate), &of(&gate_here));
    }

    #[test]
    fn weights_in_8_bits_multiply_as_on_the_cpu(
        seed: u64, rows in 1usize..40, inner in prop_oneof![1usize..200, Just(64), Just(320)],
        out in prop_oneof![1usize..70, Just(64)], scale in 1e-2f32..2.0, by_row: bool, bias: bool, residual: bool,
        at in place(), dtype in elements(),
    ) {
        let Some(card) = card() else { return Ok(()) };
        // A card that has no 8-bit products does not round weights; codes of files it takes.
        let weight = if by_row && supports_fp8(&card).unwrap() {
            // Sides that can be rounded by rows are multiples of 16.
            let (out, inner) = (out.next_multiple_of(16), inner.next_multiple_of(16));
            Fp8Weight::quantize(&random(seed, &[out, inner])).unwrap()
        } else {
            let numbers = random(seed, &[out * inner]).to_vec1::<f32>().unwrap();
            let codes = numbers.into_iter().map(|x| float8::F8E4M3::from_f32(x).to_bits()).collect();
            Fp8Weight::from_codes(Tensor::from_vec(codes, (out, inner), &Device::Cpu).unwrap(), scale).unwrap()
        };
        let weight_there = on(&weight, &card);
        let (out, inner) = weight.values().dims2().unwrap();
        let (x, x_here) = placed(&random(seed ^ 1, &[2, rows, inner]), dtype, at, &card);
        let bias = bias.then(|| placed(&random(seed ^ 2, &[out]), DType::F32, Place::Dense, &card)).unzip();
        let residual = residual.then(|| placed(&random(seed ^ 3, &[2, rows, out]), dtype, at, &card)).unzip();
        assert_near(
            dtype,
            &linear_widened(&x, &weight_there, bias.0.as_ref(), residual.0.as_ref(), Precision::Full),
            &linear_widened(&x_here, &weight, bias.1.as_ref(), residual.1.as_ref(), Precision::Full),
        );
    }
}

/// The same weight on `card`.
fn on(weight: &Fp8Weight, card: &Device) -> Fp8Weight {
    let values = weight.values().to_device(card).unwrap();
    match weight.scaling() {
        Fp8Scaling::Tensor => {
            let scale = weight.scales().to_vec1::<f32>().unwrap()[0];
            Fp8Weight::from_codes(values, scale).unwrap()
        }
        // Rounding what was rounded by rows changes nothing where the largest of a row is a code's; it is.
        Fp8Scaling::Row => Fp8Weight::quantize(&weight.widened().unwrap().to_device(card).unwrap()).unwrap(),
    }
}

/// Every code through the kernel: a product with nothing but ones and zeros picks them out.
#[test]
fn every_code_is_the_number_that_it_is_on_the_cpu() {
    let Some(card) = card() else { return };
    let codes: Vec<u8> = (0..=255).filter(|code| code & 0x7f != 0x7f).collect();
    let width = codes.len();
    let weight = |device: &Device| {
        let codes = Tensor::from_slice(&codes, (width, 1), device).unwrap();
        Fp8Weight::from_codes(codes, 1.0).unwrap()
    };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let one = Tensor::ones((1, 1), DType::F32, &Device::Cpu).unwrap();
        let here = linear_widened(&one, &weight(&Device::Cpu), None, None, Precision::Full).unwrap();
        let one = one.to_dtype(dtype).unwrap().to_device(&card).unwrap();
        let there = linear_widened(&one, &weight(&card), None, None, Precision::Full).unwrap();
        assert_eq!(floats(&there), floats(&here), "{dtype:?} holds all of them");
    }
    let no_number = Tensor::from_slice(&[0x7fu8, 0xff, 0x38], (3, 1), &card).unwrap();
    let no_number = Fp8Weight::from_codes(no_number, 1.0).unwrap();
    let one = Tensor::ones((1, 1), DType::F32, &card).unwrap();
    let y = floats(&linear_widened(&one, &no_number, None, None, Precision::Full).unwrap());
    assert!(y[0].is_nan() && y[1].is_nan() && y[2] == 1.0, "{y:?}");
}

#[test]
fn weights_rounded_by_rows_are_widened_by_their_rows_scales() {
    let Some(card) = card() else { return };
    // Rows of very different sizes: a scale of another row would be seen.
    let sizes = Tensor::from_iter((0..32).map(|i| 2f32.powi(i % 9 - 4)), &Device::Cpu).unwrap();
    let weight = random(1, &[32, 48]).broadcast_mul(&sizes.unsqueeze(1).unwrap()).unwrap();
    if !supports_fp8(&card).unwrap() {
        eprintln!("not tested: this card rounds no weights to 8 bits");
        return;
    }
    let weight = Fp8Weight::quantize(&weight.to_device(&card).unwrap()).unwrap();
    let identity = Tensor::eye(48, DType::F32, &card).unwrap();
    let there = linear_widened(&identity, &weight, None, None, Precision::Full).unwrap();
    assert_eq!(floats(&there), floats(&weight.widened().unwrap().t().unwrap()));
}

/// Widths of the transformer, its heads, the text encoder and the autoencoder, and one beyond what registers hold.
#[test]
fn rows_of_the_networks_are_normalised_whatever_their_width() {
    let Some(card) = card() else { return };
    for width in [16, 96, 128, 192, 384, 1152, 3072, 3584, 5120, 12_288, 12_296] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (x, x_here) = placed(&random(width as u64, &[2, 5, width]), dtype, Place::Dense, &card);
            let weight = random(1, &[width]);
            let (rows, rows_here) = placed(&random(2, &[2, width]), dtype, Place::Part, &card);
            assert_near(
                dtype,
                &rms_norm(&x, &weight.to_device(&card).unwrap(), 1e-6, Activation::Silu),
                &rms_norm(&x_here, &weight, 1e-6, Activation::Silu),
            );
            assert_near(
                dtype,
                &modulated_layer_norm(&x, &rows, &rows, 1e-6),
                &modulated_layer_norm(&x_here, &rows_here, &rows_here, 1e-6),
            );
        }
    }
}

/// A picture must not change with the size of its batch.
#[test]
fn a_row_is_the_same_alone_to_the_bit() {
    let Some(card) = card() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let on = |seed, shape: &[usize]| placed(&random(seed, shape), dtype, Place::Dense, &card).0;
        let (x, y, rows) = (on(1, &[3, 37, 384]), on(2, &[3, 37, 384]), on(3, &[3, 384]));
        let weight = random(4, &[384]).to_device(&card).unwrap();
        let angles = random(5, &[37, 64]).to_device(&card).unwrap();
        let row = |t: &Tensor, i| t.narrow(0, i, 1).unwrap();
        let assert_same = |all: Tensor, i, alone: Tensor| assert_eq!(floats(&row(&all, i)), floats(&alone));
        for i in 0..3 {
            let (x_i, y_i, rows_i) = (row(&x, i), row(&y, i), row(&rows, i));
            let norm = |x: &Tensor| rms_norm(x, &weight, 1e-6, Activation::Silu).unwrap();
            assert_same(norm(&x), i, norm(&x_i));
            let modulated = |x: &Tensor, rows: &Tensor| modulated_layer_norm(x, rows, rows, 1e-6).unwrap();
            assert_same(modulated(&x, &rows), i, modulated(&x_i, &rows_i));
            assert_same(add_gated(&x, &y, &rows).unwrap(), i, add_gated(&x_i, &y_i, &rows_i).unwrap());
            for pairs in [RotaryPairs::Adjacent, RotaryPairs::Halves] {
                let turned = |x: &Tensor| rotary(x, 3, &angles, &angles, pairs).unwrap();
                assert_same(turned(&x), i, turned(&x_i));
            }
            assert_same(swiglu(&x, &y).unwrap(), i, swiglu(&x_i, &y_i).unwrap());
        }
    }
}

#[test]
fn a_recorded_block_reads_codes_angles_and_weights_of_another_stream() {
    let Some(card) = card() else { return };
    let dtype = DType::BF16;
    let on = |seed, shape: &[usize], dtype| placed(&random(seed, shape), dtype, Place::Dense, &card).0;
    let codes: Vec<u8> = (0..64 * 64).map(|i| (i * 37 % 0x40 + i % 2 * 0x80) as u8).collect();
    let codes = Tensor::from_vec(codes, (64, 64), &card).unwrap();
    let weight = Fp8Weight::from_codes(codes, 0.3).unwrap();
    let norm = on(2, &[32], DType::F16);
    let (cos, sin) = (on(3, &[9, 16], DType::F32), on(4, &[9, 16], DType::F32));
    let block = |x: &Tensor, rows: &Tensor| -> Result<Tensor> {
        let part = |i: usize| rows.narrow(1, 64 * i, 64);
        let normed = modulated_layer_norm(x, &part(0)?, &part(1)?, 1e-6)?;
        let y = linear_widened(&normed, &weight, None, None, Precision::Full)?;
        let y =
            rms_norm(&y.reshape((2, 9, 2, 32))?, &norm, 1e-6, Activation::Identity)?.reshape((2, 9, 64))?;
        let y = rotary(&y, 2, &cos, &sin, RotaryPairs::Adjacent)?;
        let y = activate(&swiglu(&y, &normed)?, Activation::GeluTanh)?;
        add_gated(x, &y, &part(2)?)
    };
    let replays = Replays::new(2);
    for seed in 0..5 {
        let (x, rows) = (on(seed + 20, &[2, 9, 64], dtype), on(seed + 40, &[2, 192], dtype));
        let replayed = replays.call(&(), &[&x, &rows], &|inputs| block(&inputs[0], &inputs[1])).unwrap();
        assert_eq!(floats(&replayed), floats(&block(&x, &rows).unwrap()), "call {seed}");
    }
    assert_eq!(replays.recorded(), 1);
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(card) = card() else { return };
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::BF16, &card).unwrap();
    let x = ones(&[2, 3, 8]);
    assert!(rms_norm(&x, &ones(&[7]), 1e-6, Activation::Identity).is_err());
    assert!(modulated_layer_norm(&x, &ones(&[2, 8]), &ones(&[8]), 1e-6).is_err());
    assert!(add_gated(&x, &x, &ones(&[3, 8])).is_err());
    assert!(rotary(&x, 2, &ones(&[3, 1]), &ones(&[3, 1]), RotaryPairs::Halves).is_err());
    assert!(rotary(&x, 8, &ones(&[3, 1]), &ones(&[3, 1]), RotaryPairs::Adjacent).is_err());
    assert!(swiglu(&x, &x.to_dtype(DType::F32).unwrap()).is_err());
    let codes = Tensor::zeros((4, 7), DType::U8, &card).unwrap();
    let weight = Fp8Weight::from_codes(codes, 1.0).unwrap();
    assert!(linear_widened(&x, &weight, None, None, Precision::Full).is_err());
}
