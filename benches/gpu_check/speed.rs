//! How fast pictures are drawn, by size, batch, ControlNet and LoRA: with the pipeline alone, one batch from its prompts
//! to its pixels. What a server adds is in the pack.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use darkroom_models::ComputeType;
use darkroom_models::controlnet::ControlNet;
use darkroom_models::lora::LoraFile;
use darkroom_models::unet::UNetConfig;
use darkroom_models::vae::VaeConfig;
use darkroom_models::weights::WeightFile;
use darkroom_pipelines::{Control, ImageRequest, LoraSet, Pipeline, Rounding, Sample};
use serde_json::{Value, json};

use crate::architecture;
use crate::configs::Configs;
use crate::measure::Spread;
use crate::record::{Record, rounded};
use crate::{Outcome, Plan, random, subject, weights};

/// Steps that are made before the clock counts: the first compile kernels, choose algorithms and record graphs.
const WARM_UP: usize = 3;
/// Steps that are measured where not all are drawn.
const SAMPLED: usize = 6;
/// Operations a second that are taken for granted until a case has shown better: what a case needs is guessed by it.
const GUESSED_RATE: f64 = 150e12;

/// LoRAs of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lora {
    None,
    /// Low-rank products beside the weights.
    Beside,
    /// In the weights.
    Merged,
}

/// What is drawn.
#[derive(Debug, Clone, Copy)]
struct Job {
    size: (usize, usize),
    batch: usize,
    steps: usize,
    /// Whether all steps are made and timed.
    whole: bool,
    control: bool,
    lora: Lora,
}

impl Job {
    fn name(&self) -> String {
        let control = if self.control { ", ControlNet" } else { "" };
        let lora = match self.lora {
            Lora::None => "",
            Lora::Beside => ", LoRA beside",
            Lora::Merged => ", LoRA merged",
        };
        let ((width, height), steps) = (self.size, self.steps);
        format!("{width}x{height}, {steps} steps, batch {}{control}{lora}", self.batch)
    }
}

/// In the order of what must be known: if time runs out, the rest is missing.
fn jobs(quick: bool) -> Vec<Job> {
    let job = |size, batch, steps| Job { size, batch, steps, whole: false, control: false, lora: Lora::None };
    if quick {
        let small = (64, 64);
        return vec![
            Job { whole: true, ..job(small, 1, 4) },
            Job { whole: true, ..job(small, 2, 4) },
            Job { control: true, lora: Lora::Merged, ..job(small, 1, 10) },
            Job { lora: Lora::Beside, ..job((64, 96), 1, 10) },
        ];
    }
    let (half, whole, tall, large) = ((512, 512), (1024, 1024), (1024, 1536), (1536, 1536));
    let both = |job| Job { control: true, lora: Lora::Merged, ..job };
    let mut jobs = vec![
        Job { whole: true, ..job(whole, 1, 20) },
        Job { whole: true, ..job(whole, 1, 30) },
        Job { whole: true, ..job(whole, 8, 20) },
        Job { whole: true, ..job(whole, 4, 20) },
        both(job(large, 1, 30)),
        both(job(large, 4, 30)),
        both(job(whole, 1, 20)),
        both(job(whole, 8, 20)),
        Job { whole: true, ..job(whole, 16, 20) },
        Job { lora: Lora::Beside, ..job(whole, 8, 20) },
        Job { control: true, ..job(whole, 8, 20) },
    ];
    for (size, batches) in [(half, [1, 4, 8, 16].as_slice()), (tall, &[1, 4, 8]), (large, &[1, 4, 8])] {
        jobs.extend(batches.iter().map(|batch| job(size, *batch, 20)));
    }
    jobs.extend([both(job(half, 8, 20)), both(job(tall, 4, 20)), both(job(large, 8, 30))]);
    jobs.extend([job(tall, 16, 20), job(large, 16, 20)]);
    jobs
}

/// Operations of a step of one picture with guidance, and of its decoding.
pub(crate) fn flops(plan: &Plan, (width, height): (usize, usize), control: bool) -> Outcome<(f64, f64)> {
    let configs = weights::configs(plan);
    let unet: UNetConfig = Configs::read(&configs.unet)?;
    let vae: VaeConfig = Configs::read(&configs.vae)?;
    let (h, w) = (height / 8, width / 8);
    let mut row = architecture::flops(&architecture::unet(&unet, h, w, 77));
    if control {
        row += architecture::flops(&architecture::control_net(&unet, h, w, 77));
    }
    Ok((2.0 * row, architecture::flops(&architecture::vae_decoder(&vae, h, w))))
}

/// What is loaded. Beside the model itself each part only once it is asked for: memory that plain pictures take is
/// theirs alone.
struct Loaded<'p> {
    plan: &'p Plan,
    pipeline: Pipeline,
    lora: OnceCell<Arc<LoraSet>>,
    merged: OnceCell<Pipeline>,
    control: OnceCell<Arc<ControlNet>>,
}

/// What is in the cell, made if it is empty.
fn once<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Outcome<T>) -> Outcome<&T> {
    match cell.get() {
        Some(known) => Ok(known),
        None => {
            let made = make()?;
            Ok(cell.get_or_init(|| made))
        }
    }
}

impl Loaded<'_> {
    fn lora(&self) -> Outcome<&Arc<LoraSet>> {
        once(&self.lora, || subject::lora(&self.plan.work, &self.pipeline, weights::LORAS[0]))
    }

    fn merged(&self) -> Outcome<&Pipeline> {
        once(&self.merged, || Ok(self.pipeline.with_merged(self.lora()?, Rounding::ToStored)?))
    }

    fn control(&self) -> Outcome<&Arc<ControlNet>> {
        once(&self.control, || subject::control_net(&self.plan.work, &self.pipeline))
    }
}

pub(crate) fn measure(plan: &Plan, record: &mut Record) -> Outcome<()> {
    let device = &plan.target.device;
    let started = Instant::now();
    let pipeline = subject::load(&plan.work, device, ComputeType::Auto)?;
    plan.target.wait()?;
    record.fact("load_seconds", &json!(rounded(started.elapsed().as_secs_f64())));
    record.fact("weights_mib", &json!(pipeline.weight_bytes() >> 20));
    let loaded =
        Loaded { plan, pipeline, lora: OnceCell::new(), merged: OnceCell::new(), control: OnceCell::new() };

    let mut rate = GUESSED_RATE;
    for job in jobs(plan.quick) {
        let (step, decode) = flops(plan, job.size, job.control)?;
        let steps = WARM_UP + if job.whole { job.steps } else { SAMPLED.min(job.steps) };
        let work = job.batch as f64 * (step * steps as f64 + 2.0 * decode);
        let found = record.case(&job.name(), 1.0 + work / rate, || draw(&loaded, job));
        // What the next ones need is known better now, tiles and all.
        if let Some(tflops) = found.as_ref().and_then(|found| found["tflops"].as_f64())
            && !plan.quick
        {
            rate = (tflops * 1e12 * 0.7).min(4.0 * GUESSED_RATE);
        }
    }
    record.case("LoRA switch", 5.0, || switch(&loaded));
    record.case("readback", 1.0, || readback(plan));
    Ok(())
}

fn requests(loaded: &Loaded<'_>, job: Job) -> Outcome<Vec<ImageRequest>> {
    let control: Option<Control> = match job.control {
        true => Some(subject::control(loaded.control()?, job.size, &loaded.plan.target.device)?),
        false => None,
    };
    let lora = match job.lora {
        Lora::None => None,
        Lora::Beside | Lora::Merged => Some(loaded.lora()?),
    };
    let request = |index| ImageRequest {
        controls: control.iter().cloned().collect(),
        loras: lora.cloned(),
        ..subject::request(job.size, job.steps, index)
    };
    Ok((0..job.batch).map(request).collect())
}

fn step(pipeline: &Pipeline, samples: &mut [Sample]) -> Outcome<()> {
    let mut batch: Vec<&mut Sample> = samples.iter_mut().collect();
    pipeline.step(&mut batch)?;
    Ok(())
}

fn draw(loaded: &Loaded<'_>, job: Job) -> Outcome<Value> {
    let (plan, target) = (loaded.plan, &loaded.plan.target);
    let pipeline = if job.lora == Lora::Merged { loaded.merged()? } else { &loaded.pipeline };
    let requests = requests(loaded, job)?;
    target.forget_peak();

    let mut samples = pipeline.prepare(&requests)?;
    for _ in 0..WARM_UP.min(job.steps) {
        step(pipeline, &mut samples)?;
    }
    // Latents of the right shape do for a first decoding, whatever they show.
    let latents: Vec<Tensor> = samples.iter().map(|sample| sample.preview_latent().clone()).collect();
    pipeline.decode(&latents.iter().collect::<Vec<_>>())?;
    drop((samples, latents));
    target.wait()?;

    let begin = Instant::now();
    let encoded = pipeline.encode(&requests)?;
    target.wait()?;
    let encode = begin.elapsed().as_secs_f64();
    let source = pipeline.encode_source(&requests[0].source)?;
    let mut samples = requests
        .iter()
        .zip(encoded)
        .map(|(request, (positive, negative))| pipeline.start(request, positive, negative, &source))
        .collect::<Result<Vec<_>, _>>()?;
    target.wait()?;
    let prepare = begin.elapsed().as_secs_f64() - encode;

    let steps = if job.whole { job.steps } else { SAMPLED.min(job.steps) };
    let (mut marks, mut asked) = (vec![target.mark()?], Vec::new());
    let denoising = Instant::now();
    for _ in 0..steps {
        let asking = Instant::now();
        step(pipeline, &mut samples)?;
        asked.push(asking.elapsed().as_secs_f64());
        marks.push(target.mark()?);
    }
    target.wait()?;
    let denoise = denoising.elapsed().as_secs_f64();
    let seconds = marks.windows(2).map(|pair| pair[0].seconds_to(&pair[1])).collect::<Outcome<Vec<_>>>()?;
    let seconds = Spread::of(seconds);

    let decoding = Instant::now();
    let latents: Vec<Tensor> = samples.iter().map(|sample| sample.preview_latent().clone()).collect();
    let pictures = pipeline.decode(&latents.iter().collect::<Vec<_>>())?;
    let bytes: usize = pictures.iter().map(|picture| picture.to_rgb8().len()).sum();
    let decode = decoding.elapsed().as_secs_f64();
    let broken = pictures.iter().any(|picture| picture.data().iter().any(|value| !value.is_finite()));

    // Of a part of the steps the rest is taken to be as long as the median.
    let all_steps = if job.whole { denoise } else { seconds.median() * job.steps as f64 };
    let total = encode + prepare + all_steps + decode;
    let ((step, decoded), batch) = (flops(plan, job.size, job.control)?, job.batch as f64);
    // One step alone, with nothing on its way: what the host does for it.
    let host = if steps < job.steps {
        target.wait()?;
        let asking = Instant::now();
        self::step(pipeline, &mut samples)?;
        let alone = asking.elapsed().as_secs_f64();
        target.wait()?;
        alone
    } else {
        asked[asked.len() / 2]
    };
    Ok(json!({
        "width": job.size.0, "height": job.size.1, "batch": job.batch, "steps": job.steps,
        "steps_measured": steps, "extrapolated": !job.whole,
        "control": job.control, "lora": format!("{:?}", job.lora).to_lowercase(),
        "seconds": rounded(total), "images_per_second": rounded(batch / total),
        "denoising_images_per_second": rounded(batch / all_steps),
        "encode_seconds": rounded(encode), "prepare_seconds": rounded(prepare),
        "step_ms": rounded(seconds.median() * 1e3), "least_step_ms": rounded(seconds.least() * 1e3),
        "most_step_ms": rounded(seconds.most() * 1e3), "decode_seconds": rounded(decode),
        "host_ms_a_step": rounded(host.min(Spread::of(asked).median()) * 1e3),
        "tflops": rounded(step * batch / seconds.median() / 1e12),
        "decode_tflops": rounded(decoded * batch / decode / 1e12),
        "peak_mib": target.peak_mib(), "picture_bytes": bytes, "within": !broken,
    }))
}

/// From one LoRA to another, both known to the model: how much longer the first step with the other takes.
fn switch(loaded: &Loaded<'_>) -> Outcome<Value> {
    let (plan, pipeline, target) = (loaded.plan, &loaded.pipeline, &loaded.plan.target);
    let size = if plan.quick { (64, 64) } else { (1024, 1024) };
    let timed = |work: &mut dyn FnMut() -> Outcome<()>| -> Outcome<f64> {
        target.wait()?;
        let started = Instant::now();
        work()?;
        target.wait()?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    let mut bound = None;
    let bind = timed(&mut || {
        let file = WeightFile::open(&weights::lora(&plan.work, weights::LORAS[1]))?;
        bound = Some(Arc::new(pipeline.bind_lora(&LoraFile::open(Arc::new(file))?)?));
        Ok(())
    })?;
    let bound = bound.ok_or("nothing was bound")?;
    let mut other = None;
    let set = timed(&mut || {
        other = Some(Arc::new(pipeline.lora_set(vec![subject::stacked(weights::LORAS[1], &bound)])?));
        Ok(())
    })?;
    let other = other.ok_or("no set came of it")?;

    let start = |lora: &Arc<LoraSet>| {
        pipeline.prepare(&[ImageRequest { loras: Some(Arc::clone(lora)), ..subject::request(size, 20, 0) }])
    };
    let usual = loaded.lora()?;
    let (mut first, mut second) = (start(usual)?, start(&other)?);
    for _ in 0..WARM_UP {
        step(pipeline, &mut first)?;
    }
    let steps = (0..4).map(|_| timed(&mut || step(pipeline, &mut first))).collect::<Outcome<Vec<_>>>()?;
    let usual_ms = Spread::of(steps).median();
    let cold = timed(&mut || step(pipeline, &mut second))?;
    // There and back again: both are warm.
    let mut switched = Vec::new();
    for _ in 0..4 {
        switched.push(timed(&mut || step(pipeline, &mut first))? - usual_ms);
        switched.push(timed(&mut || step(pipeline, &mut second))? - usual_ms);
    }
    let mut merged = Vec::new();
    for lora in [&other, usual, &other] {
        merged.push(timed(&mut || {
            pipeline.with_merged(lora, Rounding::ToStored)?;
            Ok(())
        })?);
    }
    Ok(json!({
        "bind_ms": rounded(bind), "set_ms": rounded(set), "step_ms": rounded(usual_ms),
        "cold_switch_ms": rounded((cold - usual_ms).max(0.0) + set),
        "switch_ms": rounded(Spread::of(switched).median().max(0.0)),
        "merge_ms": rounded(Spread::of(merged).median()),
    }))
}

/// A batch of pictures from the device's memory to the host's.
fn readback(plan: &Plan) -> Outcome<Value> {
    let side = if plan.quick { 64 } else { 1024 };
    let x = random::tensor(&[4, 3, side, side], random::stream(plan.seed, "readback"), 1.0)?;
    let x = x.to_device(&plan.target.device)?;
    let mut seconds = Vec::new();
    for _ in 0..10 {
        plan.target.wait()?;
        let started = Instant::now();
        x.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    let median = Spread::of(seconds).median();
    Ok(json!({
        "pictures": 4, "side": side, "ms": rounded(median * 1e3),
        "gb_per_second": rounded(x.elem_count() as f64 * 4.0 / median / 1e9),
    }))
}
