//! Matrix products on a GPU equal those of the CPU in `f32`, whatever their shapes and types are.
//!
//! Where there is no card the tests end early and say so; `DARKROOM_TEST_CUDA=1` makes that a failure.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stderr, reason = "what was not tested is said")]

mod support;

use candle_core::{DType, Device, Tensor};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use darkroom_kernels::device::{self, DeviceName};
use darkroom_kernels::{
    Fp8Scaling, Fp8Weight, LowRank, Precision, Replays, add_linear_to_rows, add_low_rank_to_rows, linear,
    linear_add, linear_at, linear_fp8, quantize_fp8, supports_fp8,
};
use proptest::prelude::*;
use support::random;

/// ‖out − ref‖ / ‖ref‖ where the result has this type. Both sides have the same, rounded, inputs.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1e-2,
        DType::F16 => 2e-3,
        // Sums of up to a thousand terms in another order.
        _ => 1e-5,
    }
}

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

/// Fresh numbers of `dtype`, about 1 in size.
fn numbers(seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    random(seed, shape).to_dtype(dtype).unwrap()
}

fn widened(x: &Tensor) -> Tensor {
    x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
}

fn distance(out: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!(out.dims(), reference.dims());
    let all = |x: &Tensor| widened(x).flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (out, reference) = (all(out), all(reference));
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut out.iter().zip(&reference).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    error / norm(&mut reference.iter().map(|x| f64::from(*x))).max(1e-9)
}

fn assert_close(out: &Tensor, reference: &Tensor, dtype: DType) {
    let error = distance(out, reference);
    assert!(error <= tolerance(dtype), "{dtype:?} {:?}: {error:e}", out.shape());
}

fn floats() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)]
}

/// Sizes with and without remainders in packs of 8.
fn size(most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![1..=most, (1..=most / 8).prop_map(|n| 8 * n), Just(1)]
}

/// Part of a wider tensor, beginning inside it.
fn view(x: &Tensor) -> Tensor {
    let width = x.dims().len() - 1;
    let wide = Tensor::cat(&[x, x, x], width).unwrap();
    wide.narrow(width, x.dim(width).unwrap(), x.dim(width).unwrap()).unwrap()
}

#[test]
fn the_shapes_of_sdxl_equal_the_cpu() {
    let Some(card) = card() else { return };
    for (m, k, n) in [(1, 320, 1280), (2, 2816, 1280), (77, 2048, 640), (96, 640, 640), (33, 1280, 320)] {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let (x, weight) = (numbers(1, &[m, k], dtype), numbers(2, &[n, k], dtype));
            let (bias, residual) = (numbers(3, &[n], DType::F32), numbers(4, &[m, n], dtype));
            let on = |x: &Tensor| x.to_device(&card).unwrap();
            let out =
                linear_add(&on(&x), &on(&weight), Some(&on(&bias)), Some(&on(&residual)), Precision::Full);
            let reference = linear(&widened(&x), &widened(&weight), Some(&bias)).unwrap();
            assert_close(&out.unwrap(), &(reference + widened(&residual)).unwrap(), dtype);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn linear_equals_the_cpu(
        seed: u64, rows in size(90), inner in size(300), out in size(140), batched: bool, bias: bool,
        bias_type in floats(), residual: bool, views: bool, dtype in floats(), stored in floats(),
    ) {
        let Some(card) = card() else { return Ok(()) };
        let lead: &[usize] = if batched { &[2, rows] } else { &[rows] };
        let shape = |last| [lead, &[last]].concat();
        let x = numbers(seed, &shape(inner), dtype);
        let weight = numbers(seed ^ 1, &[out, inner], stored);
        let bias = bias.then(|| numbers(seed ^ 2, &[out], bias_type));
        let residual = residual.then(|| numbers(seed ^ 3, &shape(out), dtype));
        let on = |x: &Tensor| {
            let x = x.to_device(&card).unwrap();
            if views && x.rank() > 1 { view(&x) } else { x }
        };
        let got = linear_add(
            &on(&x),
            &on(&weight),
            bias.as_ref().map(on).as_ref(),
            residual.as_ref().map(on).as_ref(),
            Precision::Full,
        ).unwrap();
        prop_assert_eq!(got.dtype(), dtype);
        let expected = linear_add(
            &widened(&x),
            &widened(&weight),
            bias.as_ref().map(widened).as_ref(),
            residual.as_ref().map(widened).as_ref(),
            Precision::Full,
        ).unwrap();
        // Where the types differ, x is rounded to the weight's, but if it is in f32.
        let rounded = if stored == DType::F32 || dtype != DType::F16 { dtype } else { stored };
        assert_close(&got, &expected, rounded);
    }

    #[test]
    fn a_product_joins_the_rows_that_are_named_and_no_others(
        seed: u64, rows in 1usize..6, tokens in size(20), inner in size(60), out in size(70),
        dtype in floats(), stored in floats(),
    ) {
        let Some(card) = card() else { return Ok(()) };
        let first = seed as usize % rows;
        let added = 1 + (seed >> 8) as usize % (rows - first);
        let target = numbers(seed, &[rows, tokens, out], dtype);
        let x = numbers(seed ^ 1, &[added, tokens, inner], dtype);
        let weight = numbers(seed ^ 2, &[out, inner], stored);
        let expected = widened(&target).copy().unwrap();
        add_linear_to_rows(&expected, first, &widened(&x), &widened(&weight), Precision::Full).unwrap();
        let on = target.to_device(&card).unwrap();
        let (x, weight) = (x.to_device(&card).unwrap(), weight.to_device(&card).unwrap());
        add_linear_to_rows(&on, first, &x, &weight, Precision::Full).unwrap();
        let rounded = if stored == DType::F32 || dtype != DType::F16 { dtype } else { stored };
        assert_close(&on, &expected, rounded);
        let kept = |x: &Tensor| {
            let parts = [x.narrow(0, 0, first), x.narrow(0, first + added, rows - first - added)];
            parts.map(|part| widened(&part.unwrap()).flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        prop_assert_eq!(kept(&on), kept(&widened(&target)));
    }

    #[test]
    fn low_rank_changes_equal_the_cpu(
        seed: u64, tokens in size(70), depth in size(300), out in size(200),
        ranks in prop::collection::vec(prop_oneof![1usize..20, Just(64), Just(128), Just(130)], 1..4),
        scale in -2f32..2.0, typed: bool, dtype in floats(),
    ) {
        let Some(card) = card() else { return Ok(()) };
        let rows = 2 * ranks.len() + 1;
        let target = numbers(seed, &[rows, tokens, out], dtype);
        let x = numbers(seed ^ 1, &[rows, tokens, depth], dtype);
        let stored = if typed { dtype } else { DType::F32 };
        let factors: Vec<(Tensor, Tensor)> = ranks.iter().enumerate().map(|(i, rank)| {
            // As small as those of LoRAs: the change is about as large as the rest.
            let down = (random(seed ^ (i as u64 + 5), &[*rank, depth]) / (depth as f64).sqrt()).unwrap();
            let up = (random(seed ^ (i as u64 + 9), &[out, *rank]) / (*rank as f64).sqrt()).unwrap();
            (down.to_dtype(dtype).unwrap().to_dtype(stored).unwrap(),
             up.to_dtype(dtype).unwrap().to_dtype(stored).unwrap())
        }).collect();
        let run = |target: &Tensor, x: &Tensor, to: &dyn Fn(&Tensor) -> Tensor| {
            let factors: Vec<_> = factors.iter().map(|(down, up)| (to(down), to(up))).collect();
            let groups: Vec<_> = factors.iter().enumerate().map(|(i, (down, up))| LowRank {
                rows: if i == 0 { 0..1 } else { 2 * i..2 * i + 2 }, down, up, scale,
            }).collect();
            add_low_rank_to_rows(target, x, &groups, Precision::Full).unwrap();
        };
        let expected = widened(&target).copy().unwrap();
        run(&expected, &widened(&x), &|factor| widened(factor));
        let got = target.to_device(&card).unwrap();
        run(&got, &x.to_device(&card).unwrap(), &|factor| factor.to_device(&card).unwrap());
        assert_close(&got, &expected, dtype);
        // The second row has no change.
        let row = |x: &Tensor| widened(&x.get(1).unwrap()).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        prop_assert_eq!(row(&got), row(&target));
    }
}

#[test]
fn a_row_in_a_batch_is_the_row_alone() {
    let Some(card) = card() else { return };
    for dtype in [DType::BF16, DType::F16] {
        let x = numbers(5, &[8, 24, 640], dtype).to_device(&card).unwrap();
        let weight = numbers(6, &[96, 640], dtype).to_device(&card).unwrap();
        let all = linear_at(&x, &weight, None, Precision::Full).unwrap();
        for row in 0..8 {
            let alone = linear_at(&x.narrow(0, row, 1).unwrap(), &weight, None, Precision::Full).unwrap();
            assert_close(&all.narrow(0, row, 1).unwrap(), &alone, dtype);
        }
    }
}

#[test]
fn a_recorded_layer_reads_weights_of_another_stream_and_converts_them_each_time() {
    let Some(card) = card() else { return };
    let dtype = DType::BF16;
    let on = |x: Tensor| x.to_device(&card).unwrap();
    let weight = on(numbers(3, &[48, 64], dtype));
    let bias = on(numbers(4, &[48], DType::F32));
    let (down, up) = (on(numbers(5, &[8, 64], DType::F32)), on(numbers(6, &[48, 8], dtype)));
    let step = |x: &Tensor| -> darkroom_kernels::Result<Tensor> {
        let y = linear_add(x, &weight, Some(&bias), None, Precision::Full)?;
        let groups = [LowRank { rows: 1..3, down: &down, up: &up, scale: 0.5 }];
        add_low_rank_to_rows(&y, x, &groups, Precision::Full)?;
        Ok(y)
    };
    let replays = Replays::new(2);
    for seed in 0..5 {
        let x = on(numbers(seed + 20, &[4, 16, 64], dtype));
        let replayed = replays.call(&(), &[&x], &|inputs| step(&inputs[0])).unwrap();
        assert_eq!(
            distance(&replayed, &step(&x).unwrap()),
            0.0,
            "call {seed}: the same kernels on the same numbers"
        );
    }
    assert_eq!(replays.recorded(), 1);
}

#[test]
fn overlapping_ranges_are_all_added() {
    let Some(card) = card() else { return };
    let (target, x) = (numbers(1, &[3, 10, 64], DType::BF16), numbers(2, &[3, 10, 32], DType::BF16));
    let factor = |seed, shape: &[usize]| (random(seed, shape) * 0.3).unwrap().to_dtype(DType::BF16).unwrap();
    let (down, up) = (factor(3, &[8, 32]), factor(4, &[64, 8]));
    let run = |target: &Tensor, x: &Tensor, down: &Tensor, up: &Tensor| {
        let groups = [0..2, 1..3].map(|rows| LowRank { rows, down, up, scale: 1.0 });
        add_low_rank_to_rows(target, x, &groups, Precision::Full).unwrap();
    };
    let expected = widened(&target).copy().unwrap();
    run(&expected, &widened(&x), &widened(&down), &widened(&up));
    let on = |x: &Tensor| x.to_device(&card).unwrap();
    let got = on(&target);
    run(&got, &on(&x), &on(&down), &on(&up));
    assert_close(&got, &expected, DType::BF16);
}

#[test]
fn a_captured_graph_computes_with_new_inputs() {
    let Some(card) = card() else { return };
    let Device::Cuda(cuda) = &card else { panic!("a card is a card") };
    let dtype = DType::BF16;
    let on = |seed, shape: &[usize]| numbers(seed, shape, dtype).to_device(&card).unwrap();
    let (x, residual) = (on(1, &[4, 16, 64]), on(2, &[4, 16, 48]));
    let (weight, bias) = (on(3, &[48, 64]), on(4, &[48]));
    let (down, up) = (on(5, &[8, 64]), on(6, &[48, 8]));
    let step = || {
        let y = linear_add(&x, &weight, Some(&bias), Some(&residual), Precision::Full).unwrap();
        let groups = [LowRank { rows: 1..3, down: &down, up: &up, scale: 0.5 }];
        add_low_rank_to_rows(&y, &x, &groups, Precision::Full).unwrap();
        y
    };
    step();
    let stream = cuda.cuda_stream();
    stream.synchronize().unwrap();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let y = step();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    for seed in [11, 12] {
        x.slice_set(&on(seed, &[4, 16, 64]), 0, 0).unwrap();
        graph.launch().unwrap();
        let replayed = widened(&y);
        let direct = widened(&step());
        assert_eq!(distance(&replayed, &direct), 0.0, "the same kernels on the same numbers");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

    #[test]
    fn codes_and_scales_equal_the_cpus_to_the_bit(
        seed: u64, rows in size(70), width in (1usize..60).prop_map(|n| 16 * n), size in -20i32..12, dtype in floats(),
    ) {
        let Some(card) = card() else { return Ok(()) };
        let x = (random(seed, &[rows, width]) * 2f64.powi(size)).unwrap().to_dtype(dtype).unwrap();
        for scaling in [Fp8Scaling::Row, Fp8Scaling::Tensor] {
            let (codes, scales) = quantize_fp8(&x.to_device(&card).unwrap(), scaling).unwrap();
            let (expected, expected_scales) = quantize_fp8(&x, scaling).unwrap();
            let bytes = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<u8>().unwrap();
            prop_assert_eq!(bytes(&codes), bytes(&expected));
            prop_assert_eq!(scales.to_vec1::<f32>().unwrap(), expected_scales.to_vec1::<f32>().unwrap());
        }
    }

    #[test]
    fn products_in_8_bits_equal_the_cpus(
        seed: u64, rows in size(90), inner in (1usize..40).prop_map(|n| 16 * n), out in (1usize..12).prop_map(|n| 16 * n),
        bias: bool, residual: bool, dtype in floats(),
    ) {
        let Some(card) = card() else { return Ok(()) };
        if !supports_fp8(&card).unwrap() {
            eprintln!("not tested: the card has no 8-bit products");
            return Ok(());
        }
        let (x, weight) = (numbers(seed, &[2, rows, inner], dtype), numbers(seed ^ 1, &[out, inner], DType::F16));
        let bias = bias.then(|| numbers(seed ^ 2, &[out], DType::F32));
        let residual = residual.then(|| numbers(seed ^ 3, &[2, rows, out], dtype));
        let run = |device: &Device| {
            let on = |x: &Tensor| x.to_device(device).unwrap();
            let weight = Fp8Weight::quantize(&on(&weight)).unwrap();
            (linear_fp8(&on(&x), &weight, bias.as_ref().map(on).as_ref(), residual.as_ref().map(on).as_ref()).unwrap(),
             weight.scaling())
        };
        let ((got, scaling), (expected, _)) = (run(&card), run(&Device::Cpu));
        if scaling == Fp8Scaling::Row {
            // Tensor cores keep sums of 8-bit products to about 14 bits.
            let allowed = tolerance(dtype).max(2e-3);
            prop_assert!(distance(&got, &expected) <= allowed, "{:e}", distance(&got, &expected));
        }
        let exact = linear_add(
            &widened(&x), &widened(&weight), bias.as_ref(), residual.as_ref().map(widened).as_ref(), Precision::Full,
        ).unwrap();
        // Two factors of 3 % each, less what is added exactly.
        prop_assert!(distance(&got, &exact) <= 0.06, "{:e}", distance(&got, &exact));
    }
}
