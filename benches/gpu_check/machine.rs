//! What the card is, and the rates that everything else is held to: a large matrix product and a large copy.

use candle_core::{DType, Tensor};
use darkroom_kernels::{Precision, linear_at};
use serde_json::{Value, json};

use crate::measure::{Repeat, seconds};
use crate::record::{Record, rounded};
use crate::{Outcome, Plan, random};

pub(crate) fn look(plan: &Plan, record: &mut Record) -> Outcome<()> {
    record.case("card", 0.0, || Ok(card(plan)));
    let repeat = Repeat { warm_up: 3, times: 20, patience: 3.0 };
    let side = if plan.quick { 128 } else { 8192 };
    for (name, dtype) in [("bf16", DType::BF16), ("f16", DType::F16)] {
        if !plan.target.is_cuda() && !plan.quick {
            break;
        }
        let dtype = if plan.target.is_cuda() { dtype } else { DType::F32 };
        record.case(&format!("matmul {name}"), 1.0, || matmul(plan, side, dtype, repeat));
    }
    record.case("copy", 1.0, || copy(plan, repeat));
    Ok(())
}

/// `side³` products, by candle's cuBLAS and by our own linear layer.
fn matmul(plan: &Plan, side: usize, dtype: DType, repeat: Repeat) -> Outcome<Value> {
    let flops = 2.0 * (side as f64).powi(3);
    let make = |name: &str| -> Outcome<Tensor> {
        let x = random::tensor(&[side, side], random::stream(plan.seed, name), 1.0)?;
        Ok(x.to_dtype(dtype)?.to_device(&plan.target.device)?)
    };
    let (a, b) = (make("a")?, make("b")?);
    let transposed = b.t()?;
    let plain = seconds(&plan.target, repeat, |_| {
        a.matmul(&transposed)?;
        Ok(())
    })?;
    let own = seconds(&plan.target, repeat, |_| {
        linear_at(&a, &b, None, Precision::Full)?;
        Ok(())
    })?;
    let best = plain.median().min(own.median());
    Ok(json!({
        "side": side, "tflops": rounded(flops / best / 1e12),
        "cublas_tflops": rounded(flops / plain.median() / 1e12),
        "linear_tflops": rounded(flops / own.median() / 1e12),
        "spread": rounded(plain.most() / plain.least()),
    }))
}

/// From memory to memory, bytes read and written counted.
fn copy(plan: &Plan, repeat: Repeat) -> Outcome<Value> {
    let numbers: usize = if plan.quick { 1 << 20 } else { 1 << 29 };
    let x = Tensor::ones(numbers, DType::F32, &plan.target.device)?;
    let taken = seconds(&plan.target, repeat, |_| {
        x.copy()?;
        Ok(())
    })?;
    let bytes = 2.0 * 4.0 * numbers as f64;
    Ok(json!({"bytes": bytes, "gb_per_second": rounded(bytes / taken.median() / 1e9)}))
}

fn card(plan: &Plan) -> Value {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    #[cfg_attr(not(feature = "cuda"), expect(unused_mut, reason = "more is known of a card"))]
    let mut card = json!({
        "device": plan.target.name,
        "name": "cpu",
        "cpu": field("/proc/cpuinfo", "model name"),
        "cores": cores,
        "memory": field("/proc/meminfo", "MemTotal"),
        "version": env!("CARGO_PKG_VERSION"),
        "cuda_feature": cfg!(feature = "cuda"),
        "optimised": !cfg!(debug_assertions),
    });
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(device) = &plan.target.device {
        let stream = device.cuda_stream();
        let context = stream.context();
        card["name"] = json!(context.name().ok());
        card["compute_capability"] = json!(context.compute_capability().ok());
        card["card_memory_mib"] = json!(context.total_mem().ok().map(|bytes| bytes >> 20));
        card["free_memory_mib"] = json!(context.mem_get_info().ok().map(|(free, _)| free >> 20));
        card["multiprocessors"] = json!(multiprocessors(context));
        let libraries = darkroom_models::device::libraries();
        card["libraries"] = libraries
            .into_iter()
            .map(|library| (library.name.to_owned(), json!(library.version.unwrap_or_else(|why| why))))
            .collect();
        card["loaded"] = json!(loaded());
    }
    card
}

#[cfg(feature = "cuda")]
fn multiprocessors(
    context: &std::sync::Arc<candle_core::cuda_backend::cudarc::driver::CudaContext>,
) -> Option<i32> {
    use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
    context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).ok()
}

/// NVIDIA's libraries in this process: their files' names, which carry versions.
#[cfg(feature = "cuda")]
fn loaded() -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut found: Vec<String> = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .filter_map(|path| std::fs::canonicalize(path).ok()?.file_name()?.to_str().map(str::to_owned))
        .filter(|name| ["libcu", "libnvrtc", "libnv"].iter().any(|start| name.starts_with(start)))
        .collect();
    found.sort();
    found.dedup();
    found
}
