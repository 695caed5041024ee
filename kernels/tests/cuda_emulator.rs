//! The emulated GPU (`kernels/emulator`) does what candle and this crate ask of a card, and finds what a kernel does
//! wrong. `scripts/cuda/test` runs this; where the card is a real one or there is none, nothing is tested here.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::process::Command;

use candle_core::cuda_backend::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaModule, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc;
use candle_core::{D, DType, Device, Tensor};
use darkroom_kernels::device::{DeviceName, cards, memory, open};
use darkroom_kernels::{Activation, activate};
use support::random;

/// The emulated card. `None` where there is another or none, unless `DARKROOM_EMULATED_GPU` says that it must be there.
fn card() -> Option<Device> {
    let emulated = cards().is_ok_and(|cards| cards[0].name == "Emulated GPU");
    if !emulated {
        assert!(
            std::env::var_os("DARKROOM_EMULATED_GPU").is_none(),
            "the emulated GPU was not loaded: {:?}",
            cards()
        );
        return None;
    }
    Some(open(DeviceName::Cuda(0)).unwrap().0)
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// ‖got − want‖ / ‖want‖
fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    assert_eq!(got.dtype(), want.dtype());
    let (mut error, mut size) = (0f64, 0f64);
    for (a, b) in numbers(got).into_iter().zip(numbers(want)) {
        error += (f64::from(a) - f64::from(b)).powi(2);
        size += f64::from(b).powi(2);
    }
    (error / size).sqrt()
}

/// What one rounding of the result, or of one step between, may cost.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-5,
        DType::F16 => 2e-3,
        _ => 1e-2,
    }
}

/// `f` of random inputs of these shapes gives on the card what it gives on the CPU.
fn assert_as_on_cpu(
    card: &Device,
    name: &str,
    shapes: &[&[usize]],
    f: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let on_cpu: Vec<Tensor> = shapes
            .iter()
            .zip(1..)
            .map(|(shape, seed)| random(seed, shape).to_dtype(dtype).unwrap())
            .collect();
        let on_card: Vec<Tensor> = on_cpu.iter().map(|x| x.to_device(card).unwrap()).collect();
        let got = f(&on_card).unwrap().to_device(&Device::Cpu).unwrap();
        // The CPU has no products in 16 bits that sum in 32.
        let wide: Vec<Tensor> = on_cpu.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
        let want = f(&wide).unwrap();
        let distance = distance(&got.to_dtype(want.dtype()).unwrap(), &want);
        assert!(distance <= tolerance(dtype), "{name} {dtype:?}: {distance}");
    }
}

#[test]
fn tensors_come_back_as_they_went() {
    let Some(card) = card() else { return };
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::U8, DType::U32, DType::I64] {
        let x = (random(1, &[3, 5, 7]).abs().unwrap() * 100.0).unwrap().to_dtype(dtype).unwrap();
        let back = x.to_device(&card).unwrap().to_device(&Device::Cpu).unwrap();
        assert_eq!(numbers(&back), numbers(&x), "{dtype:?}");
    }
}

#[test]
fn candles_operations_give_what_they_give_on_the_cpu() {
    let Some(card) = card() else { return };
    let check = |name, shapes: &[&[usize]], f: fn(&[Tensor]) -> candle_core::Result<Tensor>| {
        assert_as_on_cpu(&card, name, shapes, f);
    };
    check("matmul", &[&[2, 7, 33], &[2, 33, 17]], |x| x[0].matmul(&x[1]));
    check("matmul with a transposed matrix", &[&[5, 33], &[17, 33]], |x| x[0].matmul(&x[1].t()?));
    check("add", &[&[3, 5], &[3, 5]], |x| &x[0] + &x[1]);
    check("broadcast", &[&[3, 4, 5], &[4, 1]], |x| x[0].broadcast_mul(&x[1]));
    check("concatenation", &[&[3, 4, 5], &[3, 2, 5]], |x| Tensor::cat(&[&x[0], &x[1]], 1));
    check("a part", &[&[3, 8, 5]], |x| x[0].narrow(1, 2, 4)?.contiguous());
    check("permutation", &[&[3, 4, 5]], |x| x[0].permute((2, 0, 1))?.contiguous());
    check("affine", &[&[3, 4]], |x| x[0].affine(0.3, -2.0));
    check("silu of a transposed tensor", &[&[6, 9]], |x| x[0].t()?.silu());
    check("gelu", &[&[6, 9]], |x| x[0].gelu_erf());
    check("powers", &[&[6, 9]], |x| x[0].abs()?.powf(0.7));
    check("maximum", &[&[6, 9]], |x| x[0].max_keepdim(D::Minus1));
    check("sum", &[&[6, 100, 3]], |x| x[0].sum_keepdim(1));
    check("mean", &[&[6, 9]], |x| x[0].mean_keepdim(D::Minus1));
    check("selection", &[&[6, 9]], |x| x[0].index_select(&Tensor::new(&[4u32, 0, 4], x[0].device())?, 0));
    check("choice", &[&[6, 9], &[6, 9]], |x| x[0].gt(&x[1])?.where_cond(&x[0], &x[1]));
    check("nearest upsampling", &[&[2, 3, 4, 5]], |x| x[0].upsample_nearest2d(8, 10));
    check("convolution", &[&[2, 3, 9, 8], &[4, 3, 3, 3]], |x| x[0].conv2d(&x[1], 1, 2, 1, 1));
    check("average", &[&[2, 3, 8, 8]], |x| x[0].avg_pool2d(2));
    check("casts", &[&[7, 9]], |x| x[0].to_dtype(DType::BF16)?.to_dtype(DType::F16)?.to_dtype(DType::F32));
}

#[test]
fn activations_are_those_of_the_cpu() {
    let Some(card) = card() else { return };
    for activation in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
        // 77 elements: whole accesses and a rest.
        let name = format!("{activation:?}");
        assert_as_on_cpu(&card, &name, &[&[7, 11]], |x| activate(&x[0], activation));
    }
}

#[test]
fn memory_that_is_not_there_is_an_error_and_then_it_works_again() {
    let Some(card) = card() else { return };
    let (_, total) = memory(&card).unwrap();
    let half = Tensor::zeros(1 << 20, DType::F32, &card).unwrap();
    let error = Tensor::zeros(usize::try_from(total).unwrap(), DType::F32, &card).unwrap_err().to_string();
    assert!(error.contains("OUT_OF_MEMORY") || error.contains("out of memory"), "{error}");
    assert_eq!(half.sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
}

#[test]
fn memory_that_nothing_wrote_is_not_a_number() {
    let Some(card) = card() else { return };
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        // SAFETY: that it is not set is what is tested.
        let x = unsafe { Tensor::empty(100, dtype, &card) }.unwrap();
        assert!(numbers(&x).iter().all(|x| x.is_nan()), "{dtype:?}");
    }
}

#[test]
fn a_graph_replays_what_was_captured_with_new_inputs() {
    let Some(card) = card() else { return };
    let stream = card.as_cuda_device().unwrap().cuda_stream();
    let input = random(1, &[4, 6]).to_device(&card).unwrap();
    let weight = random(2, &[5, 6]).to_device(&card).unwrap();
    let step = || activate(&input.matmul(&weight.t()?)?, Activation::Silu);
    step().unwrap(); // compiles and loads what a capture may not
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let output = step().unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    for seed in 3..6 {
        input.slice_set(&random(seed, &[4, 6]).to_device(&card).unwrap(), 0, 0).unwrap();
        let want = step().unwrap();
        graph.launch().unwrap();
        assert_eq!(numbers(&output), numbers(&want));
    }
}

#[test]
fn a_copy_to_the_host_ends_a_capture() {
    let Some(card) = card() else { return };
    let stream = card.as_cuda_device().unwrap().cuda_stream();
    let x = random(1, &[4]).to_device(&card).unwrap();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    let error = x.to_vec1::<f32>().unwrap_err().to_string();
    assert!(error.contains("CAPTURE_UNSUPPORTED"), "{error}");
    let ended = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    assert!(ended.is_err_and(|e| e.to_string().contains("CAPTURE_INVALIDATED")));
    assert_eq!(x.to_vec1::<f32>().unwrap(), numbers(&random(1, &[4])));
}

/// A module of `source`, which may use all of `prelude.cuh`.
fn compiled(source: &str) -> std::sync::Arc<CudaModule> {
    let text = format!("{}\n#line 1 \"test.cu\"\n{source}", include_str!("../cuda/prelude.cuh"));
    let object = nvrtc::compile_ptx(text).unwrap_or_else(|error| panic!("{error:?}"));
    CudaContext::new(0).unwrap().load_module(object).unwrap()
}

/// Runs `kernel` of `source` with 64 threads on 64 floats.
fn run(source: &str, kernel: &str) -> Vec<f32> {
    let module = compiled(source);
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    let mut x = stream.clone_htod(&[1f32; 64]).unwrap();
    let function = module.load_function(kernel).unwrap();
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 1024 };
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut x);
    // SAFETY: what a kernel does wrong ends the process with a message: that is what is tested.
    unsafe { launch.launch(config) }.unwrap();
    stream.synchronize().unwrap();
    stream.clone_dtoh(&x).unwrap()
}

/// What a process says that runs such a kernel.
fn said_by(source: &str) -> String {
    let this = std::env::current_exe().unwrap();
    let child = Command::new(this)
        .args(["--exact", "runs_what_the_environment_says", "--nocapture", "--test-threads=1"])
        .env("FAULTY_KERNEL", source)
        .output()
        .unwrap();
    assert!(!child.status.success(), "nothing was found wrong with {source}");
    String::from_utf8_lossy(&child.stderr).into_owned()
}

/// The child's part of the tests below; on its own it does nothing.
#[test]
fn runs_what_the_environment_says() {
    if let Ok(source) = std::env::var("FAULTY_KERNEL") {
        run(&source, "faulty");
    }
}

#[test]
fn a_write_behind_the_end_is_found() {
    let Some(_) = card() else { return };
    let said = said_by("KERNEL(64) faulty(float *x) { x[threadIdx.x + 1] = 2; }");
    assert!(said.contains("memory overrun") && said.contains("256 bytes"), "{said}");
}

#[test]
fn a_write_behind_shared_memory_is_found() {
    let Some(_) = card() else { return };
    let said = said_by("KERNEL(64) faulty(float *x) { SHARED(s); ((float *)s)[256] = x[0]; }");
    assert!(said.contains("faulty") && said.contains("1024 bytes of shared memory"), "{said}");
}

#[test]
fn a_barrier_that_some_threads_never_reach_is_found() {
    let Some(_) = card() else { return };
    let said =
        said_by("KERNEL(64) faulty(float *x) { if (threadIdx.x < 7) return; __syncthreads(); x[0] = 1; }");
    assert!(said.contains("barrier not reached by all threads"), "{said}");
}

#[test]
fn an_access_between_two_aligned_addresses_is_found() {
    let Some(_) = card() else { return };
    let said =
        said_by("KERNEL(64) faulty(float *x) { *(Pack<float, 4> *)(x + 1) = *(Pack<float, 4> *)(x + 9); }");
    assert!(said.contains("test.cu:1") && said.contains("not aligned"), "{said}");
}

#[test]
fn a_source_that_does_not_compile_says_why() {
    let Some(_) = card() else { return };
    let error = nvrtc::compile_ptx("void f() { nonsense }").unwrap_err();
    assert!(format!("{error:?}").contains("nonsense"));
}

#[test]
fn lanes_exchange_and_threads_meet() {
    let Some(_) = card() else { return };
    let source = "KERNEL(64) sums(float *x) {
        SHARED(scratch);
        float mine = x[threadIdx.x] * threadIdx.x;
        x[threadIdx.x] = block_sum(mine, (float *)scratch) + __shfl_down_sync(0xffffffffu, mine, 1);
    }";
    let want: Vec<f32> = (0..64).map(|i| 2016.0 + (if i % 32 == 31 { i } else { i + 1 }) as f32).collect();
    assert_eq!(run(source, "sums"), want);
}

#[test]
fn what_is_copied_asynchronously_is_not_there_before_the_wait() {
    let Some(_) = card() else { return };
    let kernel = |wait: &str| {
        format!(
            "KERNEL(64) copies(float *x) {{
                SHARED(s);
                if (threadIdx.x < 16) copy_16_async(s + threadIdx.x * 16, x + threadIdx.x * 4, threadIdx.x < 8);
                copies_end_group();
                {wait}
                __syncthreads();
                x[threadIdx.x] = ((float *)s)[threadIdx.x];
            }}"
        )
    };
    assert!(run(&kernel(""), "copies").iter().all(|x| x.is_nan()));
    let want: Vec<f32> = (0..64).map(|i| if i < 32 { 1.0 } else { 0.0 }).collect();
    assert_eq!(run(&kernel("copies_wait<0>();"), "copies"), want);
}

#[test]
fn a_warps_tiles_are_multiplied_as_their_layout_says() {
    let Some(_) = card() else { return };
    // a: 16x16, its element [r][c] = r + c / 16; b: 16x8, all ones: c[r][*] = 16 r + 7.5. Exact in f16.
    let source = "KERNEL(32) tiles(float *x) {
        SHARED(s);
        f16 *a = (f16 *)s;
        int lane = threadIdx.x;
        if (lane < 32) {
            for (int i = lane; i < 256; i += 32) set(a[i], i / 16 + (i % 16) / 16.0f);
            __syncwarp();
            u32 tiles[4];
            load_tiles(tiles, a + (lane % 16) * 16 + (lane / 16) * 8);
            float c[4] = {0, 0, 0, 0};
            u32 one = pair<f16>(1, 1);
            multiply_add(c, tiles, one, one, f16{});
            if (lane % 4 == 0) x[lane / 4] = c[0], x[lane / 4 + 8] = c[2];
        }
    }";
    let module = compiled(source);
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    let mut x = stream.clone_htod(&[0f32; 16]).unwrap();
    let function = module.load_function("tiles").unwrap();
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 512 };
    let mut launch = stream.launch_builder(&function);
    launch.arg(&mut x);
    // SAFETY: 16 floats are written.
    unsafe { launch.launch(config) }.unwrap();
    let want: Vec<f32> = (0..16).map(|r| 16.0 * r as f32 + 7.5).collect();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), want);
}
