//! Whole pictures: the same as on the CPU in `f32`, numbers at every size, and the same whether drawn alone or with
//! others.

use candle_core::Device;
use darkroom::embedded;
use darkroom_models::ComputeType;
use darkroom_pipelines::{ImageRequest, Picture, Pipeline};
use serde_json::{Value, json};

use crate::likeness::psnr;
use crate::record::{Record, rounded};
use crate::{Outcome, Plan, subject};

/// Decibels that a picture must have against the CPU's.
const LEAST_PSNR: f64 = 40.0;
/// And against the same drawn with others: other kernels may be chosen for other batches.
const LEAST_PSNR_ALONE: f64 = 45.0;

pub(crate) fn check(plan: &Plan, record: &mut Record) -> Outcome<()> {
    let device = &plan.target.device;
    let side = if plan.quick { 64 } else { 128 };
    let built_in = |index: usize| ImageRequest {
        prompt: format!("1girl, blonde hair, smile, {}", subject::prompt(index)),
        ..subject::request((side, side), if plan.quick { 3 } else { 20 }, index)
    };
    let types: &[ComputeType] = match plan.target.is_cuda() {
        true => &[ComputeType::Auto, ComputeType::Bf16, ComputeType::F16],
        false => &[ComputeType::Auto],
    };
    for compute in types {
        record.case(&format!("built-in model, {compute:?}"), 4.0, || {
            let load = |device: &Device, compute| -> Outcome<Pipeline> {
                Ok(Pipeline::load_at(&embedded::checkpoint(device)?, device, compute)?)
            };
            let requests: Vec<_> = (0..if plan.quick { 1 } else { 6 }).map(built_in).collect();
            let expected = draw(&load(&Device::Cpu, ComputeType::Full)?, &requests, 1)?;
            against(&draw(&load(device, *compute)?, &requests, requests.len())?, &expected, LEAST_PSNR)
        });
    }

    let pipeline = subject::load(&plan.work, device, ComputeType::Auto)?;
    let sizes: &[usize] = if plan.quick { &[64, 96] } else { &[256, 512, 768, 1024, 1536, 2048] };
    for side in sizes {
        // The sampler walks on from what a step gave: two steps show what one began.
        record.case(&format!("numbers at {side} pixels"), (*side as f64 / 1024.0).powi(2), || {
            let picture = draw(&pipeline, &[subject::request((*side, *side), 2, 0)], 1)?;
            Ok(json!({"not_numbers": broken(&picture), "within": broken(&picture) == 0}))
        });
    }

    let side = if plan.quick { 64 } else { 512 };
    let steps = if plan.quick { 2 } else { 4 };
    let requests: Vec<_> = (0..4).map(|index| subject::request((side, side), steps, index)).collect();
    record.case("batched as alone", 4.0, || {
        let alone = draw(&pipeline, &requests, 1)?;
        against(&draw(&pipeline, &requests, 4)?, &alone, LEAST_PSNR_ALONE)
    });
    record.case("drawn twice", 2.0, || {
        let first = draw(&pipeline, &requests[..2], 2)?;
        against(&draw(&pipeline, &requests[..2], 2)?, &first, LEAST_PSNR_ALONE)
    });
    record.case(&format!("random model, {side} pixels a side"), 25.0, || {
        let cpu = subject::load(&plan.work, &Device::Cpu, ComputeType::Full)?;
        against(&draw(&pipeline, &requests[..1], 1)?, &draw(&cpu, &requests[..1], 1)?, LEAST_PSNR)
    });
    Ok(())
}

/// Draws all, `batch` at a time.
fn draw(pipeline: &Pipeline, requests: &[ImageRequest], batch: usize) -> Outcome<Vec<Picture>> {
    let mut samples = pipeline.prepare(requests)?;
    pipeline.denoise(&mut samples, batch, &mut |_| {})?;
    let latents: Vec<_> = samples.iter().filter_map(|sample| sample.latent()).collect();
    Ok(pipeline.decode(&latents)?)
}

fn broken(pictures: &[Picture]) -> usize {
    pictures.iter().map(|picture| picture.data().iter().filter(|value| !value.is_finite()).count()).sum()
}

/// The worst of the pictures. Where they are the same there is no ratio: 200 dB stands for it.
fn against(actual: &[Picture], expected: &[Picture], least: f64) -> Outcome<Value> {
    if actual.len() != expected.len() || actual.is_empty() {
        return Err(format!("{} pictures came, not {}", actual.len(), expected.len()).into());
    }
    let pairs = actual.iter().zip(expected);
    let all: Vec<f64> = pairs.map(|(a, b)| psnr(&a.to_rgb8(), &b.to_rgb8()).min(200.0)).collect();
    let worst = all.iter().copied().fold(f64::INFINITY, f64::min);
    let broken = broken(actual);
    Ok(json!({
        "psnr": rounded(worst), "least_psnr": least, "within": worst >= least && broken == 0,
        "not_numbers": broken, "pictures": actual.len(),
    }))
}
