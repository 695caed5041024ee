//! Convolution on CUDA equals convolution on the CPU. Without a card, and without the emulator, there is nothing to
//! test, and the tests say so.
#![cfg(feature = "cuda")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and says what it skips"
)]

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Tensor};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use darkroom_kernels::cuda::{ConvPath, conv2d_by, cudnn};
use darkroom_kernels::device::{self, DeviceError, DeviceName};
use darkroom_kernels::{
    Activation, Conv2dGeometry, Padding, Precision, activate, conv2d, conv2d_add, conv2d_upsampled_2x,
    reference, upsample_nearest_2x,
};
use proptest::prelude::*;

/// Largest ‖out − reference‖ / ‖reference‖ by the type of activations: what rounding the output alone costs, with a
/// margin of two. Operands are rounded before the reference sees them, and sums are in `f32`.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1e-2,
        DType::F16 => 2e-3,
        _ => 1e-5,
    }
}

/// Other numbers at every call.
fn random(shape: &[usize]) -> Tensor {
    static SEED: AtomicU64 = AtomicU64::new(1);
    support::random(SEED.fetch_add(1, Ordering::Relaxed), shape)
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

/// Everything of a convolution, on the CPU in `f32`, holding only numbers that `dtype` has.
struct Case {
    x: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    residual: Option<Tensor>,
    activation: Activation,
    geometry: Conv2dGeometry,
    upsampled: bool,
}

fn rounded(x: &Tensor, dtype: DType) -> Tensor {
    x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap()
}

impl Case {
    fn new(x: [usize; 4], out: usize, kernel: [usize; 2], geometry: Conv2dGeometry, dtype: DType) -> Self {
        Self {
            x: rounded(&random(&x), dtype),
            weight: rounded(&random(&[out, kernel[0], kernel[1], x[3]]), dtype),
            bias: Some(random(&[out])),
            residual: None,
            activation: Activation::Identity,
            geometry,
            upsampled: false,
        }
    }

    fn expected(&self) -> Tensor {
        let doubled = self.upsampled.then(|| upsample_nearest_2x(&self.x).unwrap());
        let x = doubled.as_ref().unwrap_or(&self.x);
        let mut y = reference::conv2d(x, &self.weight, self.bias.as_ref(), self.geometry).unwrap();
        if let Some(residual) = &self.residual {
            y = (y + residual).unwrap();
        }
        activate(&y, self.activation).unwrap()
    }

    fn with_residual(mut self, dtype: DType) -> Self {
        let like = self.expected();
        self.residual = Some(rounded(&random(like.dims()), dtype));
        self
    }

    fn by(
        &self,
        path: ConvPath,
        device: &Device,
        dtype: DType,
        weights: DType,
    ) -> candle_core::Result<Tensor> {
        let there = |t: &Tensor, dtype| t.to_dtype(dtype).unwrap().to_device(device).unwrap();
        let (x, weight) = (there(&self.x, dtype), there(&self.weight, weights));
        let bias = self.bias.as_ref().map(|bias| there(bias, DType::F32));
        let residual = self.residual.as_ref().map(|residual| there(residual, dtype));
        let (bias, residual) = (bias.as_ref(), residual.as_ref());
        conv2d_by(path, &x, &weight, bias, residual, self.activation, self.geometry, self.upsampled)
    }

    fn check(&self, device: &Device, dtype: DType) {
        let y = self.by(ConvPath::Own, device, dtype, dtype).unwrap();
        assert_eq!(y.dtype(), dtype);
        assert_close(&y, &self.expected(), tolerance(dtype));
    }
}

fn host(y: &Tensor) -> Tensor {
    y.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
}

fn assert_close(y: &Tensor, expected: &Tensor, most: f64) {
    assert_eq!(y.dims(), expected.dims());
    let norm = |t: &Tensor| f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
    let error = norm(&(host(y) - expected).unwrap()) / norm(expected).max(1e-6);
    assert!(error <= most, "relative error {error:e}, allowed {most:e}");
}

fn same(padding: usize) -> Conv2dGeometry {
    Conv2dGeometry { stride: 1, padding: Padding::all(padding) }
}

fn any_type() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 16, ..ProptestConfig::default() })]

    #[test]
    fn the_own_kernel_equals_the_cpu_at_any_shape(
        (batch, height, width) in (1usize..4, 1usize..14, 1usize..14),
        channels in prop_oneof![1usize..10, Just(16), Just(24), Just(40), Just(72)],
        out in prop_oneof![1usize..10, Just(24), Just(33), Just(64), Just(72)],
        kernel in prop_oneof![Just([3, 3]), Just([1, 1]), Just([7, 7]), Just([1, 3]), Just([2, 2])],
        stride in 1usize..3,
        (top, left, bottom, right) in (0usize..4, 0usize..4, 0usize..4, 0usize..4),
        dtype in any_type(),
        upsampled: bool,
        residual: bool,
        bias: bool,
        activation in prop_oneof![Just(Activation::Identity), Just(Activation::Silu), Just(Activation::Gelu)],
    ) {
        let Some(device) = card() else { return Ok(()) };
        let geometry = Conv2dGeometry { stride, padding: Padding { top, left, bottom, right } };
        let times = if upsampled { 2 } else { 1 };
        prop_assume!(times * height + top + bottom >= kernel[0] && times * width + left + right >= kernel[1]);
        let mut case = Case::new([batch, height, width, channels], out, kernel, geometry, dtype);
        case.upsampled = upsampled;
        case.activation = activation;
        case.bias = case.bias.filter(|_| bias);
        let case = if residual { case.with_residual(dtype) } else { case };
        case.check(&device, dtype);
    }
}

#[test]
fn every_tile_of_the_own_kernel_equals_the_cpu() {
    let Some(device) = card() else { return };
    // Large, narrow and small tiles with remainders on both sides, whole and gathered vectors of channels.
    for ([b, h, w, c], out) in [
        ([3, 50, 37, 64], 320),
        ([2, 65, 65, 32], 4),
        ([1, 65, 65, 40], 32),
        ([2, 9, 9, 136], 200),
        ([2, 17, 17, 4], 96),
        ([1, 16, 16, 9], 130),
    ] {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            Case::new([b, h, w, c], out, [3, 3], same(1), dtype).with_residual(dtype).check(&device, dtype);
        }
    }
}

#[test]
fn products_are_formed_in_the_type_of_the_weights_and_stored_in_that_of_x() {
    let Some(device) = card() else { return };
    for (dtype, weights) in [(DType::F32, DType::BF16), (DType::F32, DType::F16), (DType::BF16, DType::F32)] {
        let narrow = if dtype == DType::F32 { weights } else { dtype };
        let case = Case::new([2, 12, 11, 24], 40, [3, 3], same(1), narrow).with_residual(narrow);
        let y = case.by(ConvPath::Own, &device, dtype, weights).unwrap();
        assert_eq!(y.dtype(), dtype);
        assert_close(&y, &case.expected(), tolerance(dtype));
    }
}

#[test]
fn an_image_comes_out_the_same_to_the_bit_in_every_batch() {
    let Some(device) = card() else { return };
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        // The batch of 24 is large enough for another tile than one image gets on a card of 132 processors.
        let case = Case::new([24, 32, 32, 40], 128, [3, 3], same(1), dtype).with_residual(dtype);
        let together = host(&case.by(ConvPath::Own, &device, dtype, dtype).unwrap());
        for i in [0, 7, 23] {
            let one = |t: &Tensor| t.narrow(0, i, 1).unwrap();
            let (weight, bias) = (case.weight.clone(), case.bias.clone());
            let (x, residual) = (one(&case.x), case.residual.as_ref().map(one));
            let alone =
                Case { x, weight, bias, residual, ..case }.by(ConvPath::Own, &device, dtype, dtype).unwrap();
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(bits(&host(&alone)) == bits(&one(&together)), "{dtype:?}, image {i}");
        }
    }
}

#[test]
fn the_public_functions_equal_their_cpu_paths() {
    let Some(device) = card() else { return };
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        let case = Case::new([2, 10, 12, 32], 48, [3, 3], same(1), dtype).with_residual(dtype);
        let there = |t: &Tensor| t.to_dtype(dtype).unwrap().to_device(&device).unwrap();
        let (x, weight, bias) = (&case.x, &case.weight, case.bias.as_ref().unwrap());
        let residual = case.residual.as_ref().unwrap();
        let (x1, w1, r1, b1) = (there(x), there(weight), there(residual), bias.to_device(&device).unwrap());
        let (full, geometry) = (Precision::Full, case.geometry);

        let y = conv2d(&x1, &w1, Some(&b1), geometry).unwrap();
        assert_close(&y, &conv2d(x, weight, Some(bias), geometry).unwrap(), tolerance(dtype));

        let y = conv2d_add(&x1, &w1, Some(&b1), &r1, geometry, full).unwrap();
        assert_close(
            &y,
            &conv2d_add(x, weight, Some(bias), residual, geometry, full).unwrap(),
            tolerance(dtype),
        );

        // A residual for all pixels of a sample.
        let shift = random(&[2, 1, 1, 48]);
        let shift1 = shift.to_device(&device).unwrap();
        for (bias, bias1) in [(Some(bias), Some(&b1)), (None, None)] {
            let y = conv2d_add(&x1, &w1, bias1, &shift1, geometry, full).unwrap();
            assert_close(&y, &conv2d_add(x, weight, bias, &shift, geometry, full).unwrap(), tolerance(dtype));
        }

        let y = conv2d_upsampled_2x(&x1, &w1, Some(&b1), geometry, full).unwrap();
        let expected = conv2d_upsampled_2x(x, weight, Some(bias), geometry, full).unwrap();
        assert_close(&y, &expected, tolerance(dtype));
    }
}

#[test]
fn strided_operands_are_taken() {
    let Some(device) = card() else { return };
    let dtype = DType::BF16;
    let case = Case::new([2, 9, 8, 16], 24, [3, 3], same(1), dtype);
    let there = |t: &Tensor| t.to_dtype(dtype).unwrap().to_device(&device).unwrap();
    // The same numbers with channels far apart.
    let far = |t: &Tensor| there(&t.transpose(1, 3).unwrap().contiguous().unwrap()).transpose(1, 3).unwrap();
    let y = conv2d(&far(&case.x), &far(&case.weight), None, case.geometry).unwrap();
    let expected = reference::conv2d(&case.x, &case.weight, None, case.geometry).unwrap();
    assert_close(&y, &expected, tolerance(dtype));
}

#[test]
fn a_residual_of_another_shape_is_refused() {
    for device in [Some(Device::Cpu), card()].into_iter().flatten() {
        let [x, weight] =
            [random(&[2, 5, 5, 8]), random(&[16, 3, 3, 8])].map(|t| t.to_device(&device).unwrap());
        for wrong in [[2, 5, 5, 8], [1, 5, 5, 16], [1, 1, 1, 16], [2, 5, 1, 16]] {
            let residual = random(&wrong).to_device(&device).unwrap();
            let error = conv2d_add(&x, &weight, None, &residual, same(1), Precision::Full).unwrap_err();
            assert!(error.to_string().contains("residual"), "{error}");
        }
    }
}

#[test]
fn cudnn_equals_the_own_kernel_or_says_why_it_does_not_run() {
    let Some(device) = card() else { return };
    let dtype = DType::BF16;
    let case = Case::new([2, 16, 16, 64], 64, [3, 3], same(1), dtype).with_residual(dtype);
    for path in [ConvPath::Cudnn, ConvPath::CudnnBare] {
        match case.by(path, &device, dtype, dtype) {
            Ok(y) => assert_close(&y, &case.expected(), tolerance(dtype)),
            Err(error) => {
                eprintln!("not tested: {error}, {:?}", cudnn::cudnn_refusals());
                assert!(cudnn::cudnn().is_err() || !cudnn::cudnn_refusals().is_empty(), "{error}");
                // What cuDNN does not run, the own kernel does.
                let y = case.by(ConvPath::Own, &device, dtype, dtype).unwrap();
                assert_close(&y, &case.expected(), tolerance(dtype));
            }
        }
    }
}

#[test]
fn a_captured_convolution_runs_anew_on_what_its_inputs_hold_then() {
    let Some(device) = card() else { return };
    let dtype = DType::BF16;
    let cases = [(); 2].map(|()| Case::new([2, 12, 12, 32], 64, [3, 3], same(1), dtype).with_residual(dtype));
    let there = |t: &Tensor, dtype| t.to_dtype(dtype).unwrap().to_device(&device).unwrap();
    let [weight, bias] = [there(&cases[0].weight, dtype), there(cases[0].bias.as_ref().unwrap(), DType::F32)];
    let residual = there(cases[0].residual.as_ref().unwrap(), dtype);
    let (x, second) = (there(&cases[0].x, dtype), there(&cases[1].x, dtype));
    let convolve =
        || conv2d_add(&x, &weight, Some(&bias), &residual, cases[0].geometry, Precision::Full).unwrap();
    convolve(); // compiles and loads what a capture may not
    let stream = device.as_cuda_device().unwrap().cuda_stream();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let y = convolve();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    for case in [0, 1] {
        if case == 1 {
            x.slice_set(&second, 0, 0).unwrap();
        }
        graph.launch().unwrap();
        stream.synchronize().unwrap();
        let Case { weight, bias, residual, .. } = &cases[0];
        let expected = reference::conv2d(&cases[case].x, weight, bias.as_ref(), cases[0].geometry).unwrap();
        assert_close(&y, &(expected + residual.as_ref().unwrap()).unwrap(), tolerance(dtype));
    }
}
