//! Attention on a GPU, or on the emulator, is attention on the CPU in `f32`, whatever the heads, the mask, the types
//! and the layout; and no row depends on the others of its batch.
#![cfg(feature = "cuda")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and one that does not run says so"
)]

mod support;

use candle_core::{DType, Device, Tensor};
use darkroom_kernels::cuda::cudnn::cudnn;
use darkroom_kernels::cuda::{AttentionPath, attention_by};
use darkroom_kernels::device::{self, DeviceError, DeviceName};
use darkroom_kernels::{AttentionMask, attention};
use proptest::prelude::*;
use support::random;

/// ‖got − CPU‖ / ‖CPU‖. Operands are rounded before both; what is left is the rounding of weights and results, and in
/// `f32` the order of sums and the card's power of two.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1e-2,
        DType::F16 => 2e-3,
        _ => 1e-5,
    }
}

/// The first card; `None`, with a word of it, where there is none and no emulator. One that does not work is an error.
fn card() -> Option<Device> {
    match device::open(DeviceName::Cuda(0)) {
        Ok((device, _)) => Some(device),
        Err(why @ DeviceError::NoCard(_)) => {
            eprintln!("not tested: {why}");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

/// Numbers as a network has them, exactly in `dtype`, in `f32` on the CPU.
fn numbers(seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    random(seed, shape).to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap()
}

fn on(card: &Device, x: &Tensor, dtype: DType) -> Tensor {
    x.to_dtype(dtype).unwrap().to_device(card).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let (mut error, mut size) = (0f64, 0f64);
    for (a, b) in values(got).into_iter().zip(values(want)) {
        error += (f64::from(a) - f64::from(b)).powi(2);
        size += f64::from(b).powi(2);
    }
    (error / size).sqrt()
}

fn assert_same_bits(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    for (i, (a, b)) in values(got).into_iter().zip(values(want)).enumerate() {
        assert_eq!(a.to_bits(), b.to_bits(), "{what}, element {i}: {a} against {b}");
    }
}

fn own(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: &AttentionMask) -> Tensor {
    attention_by(AttentionPath::Own, q, k, v, heads, mask).unwrap()
}

#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    d: usize,
    mask: AttentionMask,
    dtype: DType,
}

impl Case {
    fn of(queries: usize, keys: usize, heads: usize, d: usize) -> Self {
        Self { batch: 1, queries, keys, heads, d, mask: AttentionMask::None, dtype: DType::BF16 }
    }

    /// q, k and v in `f32` on the CPU.
    fn inputs(&self, seed: u64) -> [Tensor; 3] {
        let inner = self.heads * self.d;
        [(0, self.queries), (1, self.keys), (2, self.keys)]
            .map(|(i, tokens)| numbers(seed * 3 + i, &[self.batch, tokens, inner], self.dtype))
    }

    fn check(&self, card: &Device, seed: u64) {
        let inputs = self.inputs(seed);
        let [q, k, v] = &inputs;
        let want = attention(q, k, v, self.heads, &self.mask).unwrap();
        let [q, k, v] = inputs.each_ref().map(|x| on(card, x, self.dtype));
        let got = own(&q, &k, &v, self.heads, &self.mask);
        assert_eq!(got.dtype(), self.dtype);
        let error = distance(&got, &want);
        // NaN is not within the tolerance.
        assert!(error <= tolerance(self.dtype), "{self:?}: {error:e}");
    }
}

#[test]
fn every_size_of_heads_is_attended_like_on_the_cpu() {
    let Some(card) = card() else { return };
    for (seed, d) in [1, 8, 20, 40, 64, 80, 96, 128, 160, 168].into_iter().enumerate() {
        Case::of(70, 85, 2, d).check(&card, seed as u64);
    }
    for d in [256, 512] {
        Case::of(37, 101, 1, d).check(&card, d as u64);
    }
}

#[test]
fn many_queries_are_taken_by_larger_blocks_and_give_the_same_bits() {
    let Some(card) = card() else { return };
    for d in [40, 160] {
        let case = Case::of(530, 66, 1, d);
        case.check(&card, 7);
        let [q, k, v] = case.inputs(7).map(|x| on(&card, &x, case.dtype));
        let many = own(&q, &k, &v, 1, &AttentionMask::None);
        let few = own(&q.narrow(1, 0, 100).unwrap(), &k, &v, 1, &AttentionMask::None);
        assert_same_bits(&few, &many.narrow(1, 0, 100).unwrap().contiguous().unwrap(), "larger blocks");
    }
}

#[test]
fn every_type_is_attended_like_on_the_cpu() {
    let Some(card) = card() else { return };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for d in [40, 64, 512] {
            let mut case = Case::of(19, 77, 1, d);
            case.dtype = dtype;
            case.check(&card, d as u64);
        }
    }
}

#[test]
fn a_text_encoder_is_attended_like_on_the_cpu() {
    let Some(card) = card() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let mut case = Case::of(77, 77, 3, 64);
        (case.mask, case.dtype, case.batch) = (AttentionMask::Causal, dtype, 2);
        case.check(&card, 5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn attention_is_that_of_the_cpu_at_any_shape(
        (batch, queries, keys) in (1usize..3, 1usize..200, 1usize..300),
        heads in 1usize..4,
        d in prop_oneof![Just(40usize), Just(64), Just(80), Just(13)],
        dtype in prop_oneof![Just(DType::BF16), Just(DType::F16), Just(DType::F32)],
        (mask, shares) in (0..3, prop::collection::vec(0.0f64..1.0, 2)),
        seed in any::<u32>(),
    ) {
        let Some(card) = card() else { return Ok(()) };
        let length = |share: &f64| 1 + (share * keys as f64) as usize;
        let mask = match mask {
            0 => AttentionMask::None,
            1 => AttentionMask::Causal,
            _ => AttentionMask::KeyLengths(shares.iter().take(batch).map(|s| length(s).min(keys)).collect()),
        };
        Case { batch, queries, keys, heads, d, mask, dtype }.check(&card, u64::from(seed));
    }
}

#[test]
fn parts_of_a_fused_projection_are_read_where_they_lie() {
    let Some(card) = card() else { return };
    for (d, dtype) in
        [(64, DType::BF16), (40, DType::F16), (20, DType::BF16), (64, DType::F32), (256, DType::BF16)]
    {
        let (heads, tokens) = (2, 70);
        let inner = heads * d;
        let fused = on(&card, &numbers(9, &[2, tokens, 3 * inner], dtype), dtype);
        let part = |i: usize| fused.narrow(2, i * inner, inner).unwrap();
        let dense = |i: usize| part(i).contiguous().unwrap();
        let got = own(&part(0), &part(1), &part(2), heads, &AttentionMask::Causal);
        let want = own(&dense(0), &dense(1), &dense(2), heads, &AttentionMask::Causal);
        assert_same_bits(&got, &want, &format!("{d} {dtype:?}"));
    }
}

#[test]
fn any_layout_is_attended_like_a_dense_one() {
    let Some(card) = card() else { return };
    // Tokens and channels exchanged; rows that begin between two aligned addresses; one row for all of a batch.
    let x = on(&card, &numbers(1, &[2, 24, 33], DType::BF16), DType::BF16);
    let exchanged = x.transpose(1, 2).unwrap();
    let wide = on(&card, &numbers(2, &[2, 33, 25], DType::BF16), DType::BF16);
    let odd = wide.narrow(2, 1, 24).unwrap();
    let shared = wide.narrow(0, 0, 1).unwrap().narrow(2, 0, 24).unwrap().broadcast_as((2, 33, 24)).unwrap();
    let dense = |x: &Tensor| x.force_contiguous().unwrap();
    let got = own(&exchanged, &odd, &shared, 3, &AttentionMask::None);
    let want = own(&dense(&exchanged), &dense(&odd), &dense(&shared), 3, &AttentionMask::None);
    assert_same_bits(&got, &want, "layouts");
}

#[test]
fn a_row_of_a_batch_is_what_it_is_alone() {
    let Some(card) = card() else { return };
    for (d, dtype) in [(64, DType::BF16), (40, DType::F16), (64, DType::F32), (256, DType::BF16)] {
        let mut case = Case::of(90, 150, 2, d);
        (case.batch, case.dtype) = (3, dtype);
        let lengths = [77, 150, 64];
        let [q, k, v] = case.inputs(3).map(|x| on(&card, &x, dtype));
        let all = own(&q, &k, &v, 2, &AttentionMask::KeyLengths(lengths.to_vec()));
        for (row, length) in lengths.into_iter().enumerate() {
            let only = |x: &Tensor| x.narrow(0, row, 1).unwrap();
            let (k, v) = (only(&k).narrow(1, 0, length).unwrap(), only(&v).narrow(1, 0, length).unwrap());
            let alone = own(&only(&q), &k, &v, 2, &AttentionMask::None);
            assert_same_bits(&alone, &only(&all).contiguous().unwrap(), &format!("row {row}, {d} {dtype:?}"));
        }
    }
}

#[test]
fn what_lies_beyond_the_length_is_never_seen() {
    let Some(card) = card() else { return };
    for (d, dtype) in [(64, DType::BF16), (13, DType::F32), (256, DType::F16)] {
        let mut case = Case::of(20, 140, 1, d);
        (case.batch, case.dtype) = (2, dtype);
        let lengths = [3, 100];
        let [q, k, v] = case.inputs(4);
        let poisoned = |x: &Tensor| {
            let mut rows = x.to_vec3::<f32>().unwrap();
            for (row, &length) in rows.iter_mut().zip(&lengths) {
                row[length..].iter_mut().flatten().for_each(|x| *x = f32::NAN);
            }
            Tensor::new(rows, &Device::Cpu).unwrap()
        };
        let mask = AttentionMask::KeyLengths(lengths.to_vec());
        let want = attention(&q, &k, &v, 1, &mask).unwrap();
        let [q, k, v] = [&q, &poisoned(&k), &poisoned(&v)].map(|x| on(&card, x, dtype));
        let error = distance(&own(&q, &k, &v, 1, &mask), &want);
        assert!(error <= tolerance(dtype), "{d} {dtype:?}: {error:e}");
    }
}

#[test]
fn more_rows_than_a_launch_has_lengths_for_keep_their_own() {
    let Some(card) = card() else { return };
    let mut case = Case::of(3, 20, 1, 8);
    case.batch = 130;
    case.mask = AttentionMask::KeyLengths((0..130).map(|row| 1 + row % 20).collect());
    case.check(&card, 6);
}

#[test]
fn large_scores_do_not_overflow() {
    let Some(card) = card() else { return };
    for (d, dtype) in [(64, DType::BF16), (40, DType::F16), (64, DType::F32), (256, DType::BF16)] {
        let mut case = Case::of(20, 130, 1, d);
        case.dtype = dtype;
        // Scores of about 1e4: one key has nearly all of a query's weight.
        let [q, k, v] = case.inputs(8);
        let large = |x: &Tensor| (x * 64.0).unwrap().to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
        let (q, k) = (large(&q), large(&k));
        let want = attention(&q, &k, &v, 1, &AttentionMask::None).unwrap();
        let [q, k, v] = [&q, &k, &v].map(|x| on(&card, x, dtype));
        let error = distance(&own(&q, &k, &v, 1, &AttentionMask::None), &want);
        // A score of 1e4 has 1e-3 of rounding in `f32`, and so have weights.
        let tolerance = tolerance(dtype).max(2e-3);
        assert!(error <= tolerance, "{d} {dtype:?}: {error:e}");
    }
}

#[test]
fn a_captured_attention_runs_anew_on_what_its_inputs_hold_then() {
    use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
    let Some(card) = card() else { return };
    let Device::Cuda(cuda) = &card else { panic!("no card") };
    let mut case = Case::of(40, 77, 2, 64);
    case.batch = 2;
    case.mask = AttentionMask::KeyLengths(vec![77, 30]);
    let [q, k, v] = case.inputs(1).map(|x| on(&card, &x, case.dtype));
    // Kernels are loaded before, as for every capture.
    let before = own(&q, &k, &v, 2, &case.mask);
    let result = before.zeros_like().unwrap();
    result.slice_set(&before, 0, 0).unwrap();
    let stream = cuda.cuda_stream();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    result.slice_set(&own(&q, &k, &v, 2, &case.mask), 0, 0).unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    let inputs = case.inputs(2);
    for (to, from) in [&q, &k, &v].into_iter().zip(&inputs) {
        to.slice_set(&on(&card, from, case.dtype), 0, 0).unwrap();
    }
    graph.launch().unwrap();
    assert_same_bits(&result, &own(&q, &k, &v, 2, &case.mask), "replayed");
    let [q, k, v] = &inputs;
    assert!(distance(&result, &attention(q, k, v, 2, &case.mask).unwrap()) <= tolerance(case.dtype));
    assert!(distance(&before, &result) > 0.1, "new inputs, new results");
}

#[test]
fn without_cudnn_its_way_is_an_error_and_the_usual_way_is_not() {
    let Some(card) = card() else { return };
    if cudnn().is_ok() {
        return;
    }
    let x = on(&card, &numbers(1, &[1, 3, 64], DType::BF16), DType::BF16);
    let error = attention_by(AttentionPath::Cudnn, &x, &x, &x, 1, &AttentionMask::None).unwrap_err();
    assert!(error.to_string().contains("cuDNN does not take"), "{error}");
    let usual = attention(&x, &x, &x, 1, &AttentionMask::None).unwrap();
    assert_same_bits(&usual, &own(&x, &x, &x, 1, &AttentionMask::None), "the usual way");
}

#[test]
fn where_there_is_cudnn_its_attention_is_that_of_the_cpu() {
    let Some(card) = card() else { return };
    if cudnn().is_err() {
        return;
    }
    for (keys, mask) in [(200, AttentionMask::None), (77, AttentionMask::KeyLengths(vec![77, 30]))] {
        let mut case = Case::of(200, keys, 2, 64);
        (case.batch, case.mask) = (2, mask);
        let inputs = case.inputs(11);
        let want = attention(&inputs[0], &inputs[1], &inputs[2], 2, &case.mask).unwrap();
        let [q, k, v] = inputs.map(|x| on(&card, &x, case.dtype));
        match attention_by(AttentionPath::Cudnn, &q, &k, &v, 2, &case.mask) {
            Ok(got) => assert!(distance(&got, &want) <= tolerance(case.dtype), "{case:?}"),
            // A library or a card without an engine for it: then the usual way is another.
            Err(why) => eprintln!("not tested: {why}"),
        }
    }
}

#[test]
fn what_no_kernel_takes_is_refused_by_name() {
    let Some(card) = card() else { return };
    let x = on(&card, &numbers(1, &[1, 3, 520], DType::BF16), DType::BF16);
    let error = attention_by(AttentionPath::Own, &x, &x, &x, 1, &AttentionMask::None).unwrap_err();
    assert!(error.to_string().contains("520 channels"), "{error}");
    let x = numbers(1, &[1, 3, 8], DType::F32);
    let error = attention_by(AttentionPath::Own, &x, &x, &x, 1, &AttentionMask::None).unwrap_err();
    assert!(error.to_string().contains("Cpu"), "{error}");
}
