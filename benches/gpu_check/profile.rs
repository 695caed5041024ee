//! What a step's time goes into. `operations`: every matrix product, convolution and attention that a UNet has, each
//! shape once by itself, times how often it comes. `Step` is one step alone, for a profiler to look at from outside.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use darkroom_kernels::AttentionMask;
use darkroom_models::ComputeType;
use darkroom_models::unet::UNetConfig;
use darkroom_pipelines::Sample;
use serde_json::json;

use crate::architecture::{self, Layer};
use crate::configs::Configs;
use crate::measure::{Repeat, seconds};
use crate::operations::{self, Case, Role};
use crate::record::{Record, rounded};
use crate::{Outcome, Plan, random, subject, weights};

/// A batch of how many rows: one picture with guidance.
const ROWS: usize = 2;

pub(crate) fn measure(plan: &Plan, record: &mut Record) -> Outcome<()> {
    let config: UNetConfig = Configs::read(&weights::configs(plan).unet)?;
    let cells = if plan.quick { 8 } else { 128 };
    let mut shapes: BTreeMap<String, (Case, usize)> = BTreeMap::new();
    for layer in architecture::unet(&config, cells, cells, 77) {
        let Some(case) = case_of(&layer) else { continue };
        shapes.entry(case.name.clone()).or_insert_with(|| (case, 0)).1 += 1;
    }
    let mut rows: Vec<_> = shapes.into_values().collect();
    rows.sort_by(|(a, times), (b, more)| (b.flops * *more as f64).total_cmp(&(a.flops * *times as f64)));
    let dtype = if plan.target.is_cuda() { DType::F16 } else { DType::F32 };
    let repeat = match plan.quick {
        true => Repeat { warm_up: 0, times: 1, patience: 0.0 },
        false => Repeat { warm_up: 3, times: 10, patience: 0.2 },
    };
    for (case, times) in rows {
        record.case(&case.name, 0.5, || {
            let draw = |(index, input): (usize, &operations::Input)| -> Outcome<Tensor> {
                let stream = random::stream(plan.seed, &format!("{} {index}", case.name));
                let dtype = if input.role == Role::Computed { dtype } else { DType::F32 };
                let x = random::tensor(&input.shape, stream, input.deviation)?;
                Ok(x.to_dtype(dtype)?.to_device(&plan.target.device)?)
            };
            let inputs = case.inputs.iter().enumerate().map(draw).collect::<Outcome<Vec<_>>>()?;
            let taken = seconds(&plan.target, repeat, |_| {
                (case.run)(&inputs)?;
                Ok(())
            })?;
            let once = taken.median();
            Ok(json!({
                "operation": case.operation, "times": times, "microseconds": rounded(once * 1e6),
                "ms_a_step": rounded(once * 1e3 * times as f64), "tflops": rounded(case.flops / once / 1e12),
            }))
        });
    }
    Ok(())
}

fn case_of(layer: &Layer) -> Option<Case> {
    match *layer {
        Layer::Conv { out, inner, kernel, stride, height, width, .. } => {
            Some(operations::convolution([ROWS, height * stride, width * stride, inner], out, kernel, stride))
        }
        Layer::Linear { out, inner, bias, rows, .. } => {
            Some(operations::linear(&[ROWS, rows, inner], out, bias))
        }
        Layer::Attention { queries, keys, heads, width } => {
            Some(operations::attend(ROWS, queries, keys, heads, width / heads.max(1), AttentionMask::None))
        }
        Layer::Norm { .. } | Layer::Table { .. } => None,
    }
}

/// One step of one picture, after a few that warm up.
pub(crate) fn one_step(plan: &Plan) -> Outcome<()> {
    let size = if plan.quick { (64, 64) } else { (1024, 1024) };
    let pipeline = subject::load(&plan.work, &plan.target.device, ComputeType::Auto)?;
    let mut samples = pipeline.prepare(&[subject::request(size, 20, 0)])?;
    let mut step = || -> Outcome<()> {
        let mut batch: Vec<&mut Sample> = samples.iter_mut().collect();
        pipeline.step(&mut batch)?;
        plan.target.wait()
    };
    // The first compile kernels, choose algorithms and record graphs.
    for _ in 0..4 {
        step()?;
    }
    // Profilers that are told so look from here to there alone.
    #[cfg(feature = "cuda")]
    candle_core::cuda_backend::cudarc::driver::profiler_start()?;
    step()?;
    #[cfg(feature = "cuda")]
    candle_core::cuda_backend::cudarc::driver::profiler_stop()?;
    Ok(())
}
