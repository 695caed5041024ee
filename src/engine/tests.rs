//! The engine with the built-in model: real threads, real pictures, no storage and no HTTP.

mod qwen_image;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use darkroom_pipelines::{GuidanceInterval, Limits, Picture, Pipeline, Source, Speed, StepCache};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::metrics::{ByPass, ByWay};
use crate::task::{
    Background, BlobId, ControlSpec, DetailPlaces, DetailSpec, ImageFormat, ImageSpec, LoraSpec, Owner,
    Preprocess, Priority, SourceSpec, TaskErrorKind, TaskKind,
};

/// Largest difference of 8-bit values between a picture drawn in a batch and the same drawn alone.
const TOLERANCE: u8 = 1;

/// Opens the picture called "slow".
static SLOW: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

struct NoSources;

impl Sources for NoSources {
    fn open(&self, spec: &ImageSpec) -> Result<Source, TaskError> {
        Ok(Source::Empty { width: spec.width, height: spec.height })
    }

    /// Lines, and squares of the picture's own: something with edges.
    fn picture(&self, image: &BlobId, what: &str) -> Result<Picture, TaskError> {
        if *image == BlobId::of(b"gone") {
            let message = format!("the {what} is gone");
            return Err(TaskError { kind: TaskErrorKind::Internal, message });
        }
        if *image == BlobId::of(b"slow") {
            let (lock, opened) = &SLOW;
            let gate = lock.lock().unwrap();
            drop(opened.wait_timeout_while(gate, Duration::from_secs(60), |open| !*open).unwrap());
        }
        let shift = image.as_str().bytes().map(usize::from).sum::<usize>() % 17;
        let pixel = |i: usize| if (i % 96 + shift) % 24 < 12 { [1.0; 3] } else { [0.0; 3] };
        Ok(Picture::new(96, 96, (0..96 * 96).flat_map(pixel).collect()).unwrap())
    }
}

fn options() -> EngineOptions {
    EngineOptions {
        devices: vec![DeviceName::Cpu],
        compute_type: darkroom_models::ComputeType::Full,
        limits: Limits::default(),
        memory_budget: 4 << 30,
        vram_limit: 0,
        max_batch: 8,
        pinned: Vec::new(),
        prompt_cache_bytes: 1 << 20,
        preview_every: Some(Duration::ZERO),
        age_after: Duration::from_secs(30),
        max_unwritten: 64,
    }
}

fn spec(prompt: &str, side: usize, steps: usize, seed: u64) -> ImageSpec {
    ImageSpec {
        model: "tiny-sdxl".into(),
        prompt: prompt.into(),
        negative_prompt: "blurry".into(),
        width: side,
        height: side,
        steps,
        cfg: 5.0,
        sampler: "euler".into(),
        scheduler: "normal".into(),
        seed,
        denoise: 1.0,
        clip_skip: None,
        source: SourceSpec::Empty,
        loras: Vec::new(),
        controls: Vec::new(),
        speed: darkroom_pipelines::Speed::default(),
        shift: None,
        detail: None,
        background: Background::Keep,
        format: ImageFormat::Png,
        metadata: false,
        label: None,
        bank: None,
    }
}

fn job(spec: ImageSpec, priority: Priority) -> Job {
    Job {
        id: JobId { task: TaskId::new(TaskKind::Images), index: 0 },
        content: Content::Picture(Arc::new(spec)),
        owner: Owner::Anyone,
        priority,
        viewers: Viewers::default(),
    }
}

fn start(options: EngineOptions) -> (Engine, UnboundedReceiver<EngineEvent>, Arc<Metrics>) {
    start_with(options, None)
}

fn start_with(
    options: EngineOptions,
    models: Option<&Path>,
) -> (Engine, UnboundedReceiver<EngineEvent>, Arc<Metrics>) {
    let catalog = Arc::new(Catalog::open(models, None).unwrap());
    let metrics = Arc::new(Metrics::default());
    let (engine, events) =
        Engine::start(options, catalog, Arc::clone(&metrics), Arc::new(NoSources)).unwrap();
    (engine, events, metrics)
}

async fn next(events: &mut UnboundedReceiver<EngineEvent>) -> EngineEvent {
    tokio::time::timeout(Duration::from_secs(120), events.recv()).await.unwrap().unwrap()
}

/// Waits for so many pictures; by task.
async fn drawn(events: &mut UnboundedReceiver<EngineEvent>, count: usize) -> HashMap<TaskId, Vec<u8>> {
    let mut pictures = HashMap::new();
    while pictures.len() < count {
        match next(events).await {
            EngineEvent::Drawn(drawn) => drop(pictures.insert(drawn.job.id.task.clone(), drawn.rgb)),
            EngineEvent::Failed { error, .. } => panic!("{error:?}"),
            _ => {}
        }
    }
    pictures
}

#[tokio::test]
async fn pictures_that_share_step_batches_are_those_drawn_alone() {
    let mut sdxl = spec("1boy, red shirt", 64, 4, 9);
    sdxl.sampler = "heun".into();
    sdxl.cfg = 1.0;
    let mut ancestral = spec("1girl, smile", 64, 5, 10);
    ancestral.sampler = "euler_ancestral".into();
    let specs = [
        spec("1girl, blonde hair", 64, 3, 7),
        spec("1girl, blonde hair, (smile:1.3)", 64, 6, 8),
        sdxl,
        ancestral,
        spec("1girl", 96, 2, 11),
    ];
    let jobs: Vec<Job> = specs.into_iter().map(|spec| job(spec, Priority::Standard)).collect();
    let (engine, mut events, metrics) = start(options());
    engine.submit(jobs.clone());
    let together = drawn(&mut events, jobs.len()).await;
    let batches = metrics.step_batches.load(Ordering::Relaxed);
    let samples = metrics.stepped_samples.load(Ordering::Relaxed);
    assert!(samples > batches * 3 / 2, "{samples} samples in {batches} batches: they did not share steps");
    for job in jobs {
        engine.submit([job.clone()]);
        let alone = drawn(&mut events, 1).await;
        let (together, alone) = (&together[&job.id.task], &alone[&job.id.task]);
        let worst = together.iter().zip(alone).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= TOLERANCE, "{worst} levels apart: {:?}", job.content);
    }
}

fn cached(cache_interval: usize, spec: ImageSpec) -> ImageSpec {
    let step_cache = Some(StepCache { cache_interval, cache_branch_id: None });
    ImageSpec { speed: Speed { step_cache, ..spec.speed }, ..spec }
}

fn guided_within(start: f64, end: f64, spec: ImageSpec) -> ImageSpec {
    let guidance_interval = Some(GuidanceInterval { start, end });
    ImageSpec { speed: Speed { guidance_interval, ..spec.speed }, ..spec }
}

#[tokio::test]
async fn pictures_that_give_up_exactness_share_step_batches_and_leave_the_others_as_they_are() {
    let specs = [
        spec("1girl, blonde hair", 64, 7, 7),
        cached(2, spec("1girl, smile", 64, 8, 8)),
        guided_within(0.0, 0.5, spec("1boy", 64, 6, 9)),
        guided_within(0.3, 1.0, cached(3, spec("1girl, red hair", 64, 7, 10))),
    ];
    let jobs: Vec<Job> = specs.into_iter().map(|spec| job(spec, Priority::Standard)).collect();
    let (engine, mut events, metrics) = start(options());
    engine.submit(jobs.clone());
    let together = drawn(&mut events, jobs.len()).await;
    let batches = metrics.step_batches.load(Ordering::Relaxed);
    let samples = metrics.stepped_samples.load(Ordering::Relaxed);
    assert!(samples > batches * 3 / 2, "{samples} samples in {batches} batches: they did not share steps");
    let rows = |pass| metrics.step_rows.get_or_create(&ByPass { pass }).get();
    let (whole, shallow) = (rows("whole"), rows("shallow"));
    assert!(
        shallow > 8 && whole > 20 && whole + shallow < 2 * (7 + 8 + 6 + 7),
        "{whole} whole, {shallow} shallow"
    );
    for job in &jobs {
        engine.submit([job.clone()]);
        let alone = drawn(&mut events, 1).await;
        let (together, alone) = (&together[&job.id.task], &alone[&job.id.task]);
        let worst = together.iter().zip(alone).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= TOLERANCE, "{worst} levels apart: {:?}", job.content);
    }
}

/// Bytes of the built-in model's weights, of one picture's step at 64 pixels, and of what it keeps between steps.
fn costs() -> (u64, u64, u64) {
    let checkpoint = crate::embedded::checkpoint(&candle_core::Device::Cpu).unwrap();
    let pipeline = Pipeline::load(&checkpoint, &candle_core::Device::Cpu).unwrap();
    (pipeline.weight_bytes(), pipeline.step_bytes(2, 8, 8) as u64, pipeline.most_cache_bytes(8, 8) as u64)
}

#[tokio::test]
async fn a_picture_that_would_keep_more_than_there_is_room_for_waits_however_urgent_it_is() {
    let (weights, step, kept) = costs();
    for keeps in [false, true] {
        let options = EngineOptions { memory_budget: weights + step + kept + kept / 2, ..options() };
        let (engine, mut events, _) = start(options);
        let make = |seed, steps, priority| {
            let plain = spec("1girl", 64, steps, seed);
            job(if keeps { cached(3, plain) } else { plain }, priority)
        };
        let (first, urgent) = (make(1, 60, Priority::Standard), make(2, 2, Priority::Urgent));
        engine.submit([first.clone()]);
        while !matches!(next(&mut events).await, EngineEvent::Stepped { .. }) {}
        engine.submit([urgent.clone()]);
        let (mut done, mut started_at) = (0, None);
        while started_at.is_none() {
            match next(&mut events).await {
                EngineEvent::Stepped { samples } => done = samples[0].1,
                EngineEvent::Started { job, .. } if job == urgent.id => started_at = Some(done),
                EngineEvent::Failed { error, .. } => panic!("{error:?}"),
                _ => {}
            }
        }
        let waited = started_at == Some(60);
        assert_eq!(waited, keeps, "it started after {started_at:?} of 60 steps; keeps: {keeps}");
    }
}

#[tokio::test]
async fn what_pictures_keep_between_their_steps_takes_room_from_the_batch() {
    let (weights, step, kept) = costs();
    assert!(kept > 0 && 3 * kept < step, "{kept} kept, {step} a step");
    // Room for four steps at once, and no more.
    let options = || EngineOptions { memory_budget: weights + 4 * step, ..options() };
    for (keeps, most) in [(false, 4), (true, 3)] {
        let (engine, mut events, _) = start(options());
        let jobs = (0..8).map(|seed| {
            let plain = spec("1girl", 64, 6, seed);
            job(if keeps { cached(3, plain) } else { plain }, Priority::Standard)
        });
        engine.submit(jobs.collect::<Vec<_>>());
        let (mut done, mut largest) = (0, 0);
        while done < 8 {
            match next(&mut events).await {
                EngineEvent::Stepped { samples } => largest = largest.max(samples.len()),
                EngineEvent::Drawn(_) => done += 1,
                EngineEvent::Failed { error, .. } => panic!("{error:?}"),
                _ => {}
            }
        }
        assert_eq!(largest, most, "keeps: {keeps}");
    }
}

#[tokio::test]
async fn an_urgent_picture_starts_within_one_step_of_a_full_device() {
    let (engine, mut events, _) = start(EngineOptions { max_batch: 2, ..options() });
    let crowd: Vec<Job> = (0..20).map(|i| job(spec("1girl", 64, 60, i), Priority::Standard)).collect();
    engine.submit(crowd.clone());
    while !matches!(next(&mut events).await, EngineEvent::Stepped { .. }) {}
    let urgent = job(spec("1boy", 64, 2, 1), Priority::Urgent);
    engine.submit([urgent.clone()]);
    let mut steps_before = 0;
    loop {
        match next(&mut events).await {
            EngineEvent::Started { job, .. } if job == urgent.id => break,
            EngineEvent::Stepped { .. } => steps_before += 1,
            _ => {}
        }
    }
    // One step may have been on its way, one more event in the channel.
    assert!(steps_before <= 2, "{steps_before} steps went by");
    for job in crowd {
        engine.cancel(&job.id.task);
    }
}

#[tokio::test]
async fn a_cancelled_picture_makes_no_further_step_than_the_one_on_its_way() {
    let (engine, mut events, _) = start(options());
    let endless = job(spec("1girl", 64, 1000, 1), Priority::Standard);
    engine.submit([endless.clone()]);
    while !matches!(next(&mut events).await, EngineEvent::Stepped { .. }) {}
    engine.cancel(&endless.id.task);
    let after = job(spec("1girl", 64, 2, 1), Priority::Standard);
    engine.submit([after.clone()]);
    let (mut steps, mut started) = (0, false);
    loop {
        match next(&mut events).await {
            EngineEvent::Started { .. } => started = true,
            EngineEvent::Stepped { samples } => {
                let endless_there = samples.iter().any(|(id, ..)| *id == endless.id);
                assert!(!(started && endless_there), "it still steps");
                steps += usize::from(endless_there);
            }
            EngineEvent::Drawn(drawn) => {
                assert_eq!(drawn.job.id, after.id);
                break;
            }
            EngineEvent::Failed { error, .. } => panic!("{error:?}"),
            EngineEvent::Preview { .. } => {}
        }
    }
    assert!(steps <= 2, "{steps}");
    assert_eq!(engine.outlooks().len(), 0);
}

#[tokio::test]
async fn previews_are_made_only_while_someone_looks() {
    let (engine, mut events, _) = start(options());
    let unseen = job(spec("1girl", 64, 4, 1), Priority::Standard);
    engine.submit([unseen]);
    loop {
        match next(&mut events).await {
            EngineEvent::Preview { .. } => panic!("nobody looks"),
            EngineEvent::Drawn(_) => break,
            _ => {}
        }
    }
    let seen = job(spec("1girl", 64, 4, 1), Priority::Standard);
    let _viewing = seen.viewers.join();
    engine.submit([seen]);
    let mut previews = 0;
    loop {
        match next(&mut events).await {
            EngineEvent::Preview { width, height, rgb, .. } => {
                assert_eq!((width, height, rgb.len()), (8, 8, 8 * 8 * 3));
                previews += 1;
            }
            EngineEvent::Drawn(_) => break,
            _ => {}
        }
    }
    assert!(previews >= 2, "{previews}");
}

#[tokio::test]
async fn what_does_not_fit_the_memory_budget_is_refused_and_the_rest_goes_on() {
    let weights = Catalog::open(None, None).unwrap().find("embedded").unwrap().bytes;
    let (engine, mut events, _) = start(EngineOptions { memory_budget: weights + (64 << 20), ..options() });
    let (large, small) = (spec("1girl", 2048, 1, 1), spec("1girl", 64, 2, 1));
    engine.submit([job(large, Priority::Standard), job(small, Priority::Standard)]);
    let (mut failed, mut drawn) = (None, false);
    while failed.is_none() || !drawn {
        match next(&mut events).await {
            EngineEvent::Failed { error, .. } => failed = Some(error),
            EngineEvent::Drawn(_) => drawn = true,
            _ => {}
        }
    }
    let error = failed.unwrap();
    assert_eq!(error.kind, TaskErrorKind::OutOfMemory);
    assert!(error.message.contains("2048") && error.message.contains("budget"), "{}", error.message);
    drop(engine);
    // Less than the weights: nothing can be drawn at all.
    let (engine, mut events, _) = start(EngineOptions { memory_budget: weights / 2, ..options() });
    engine.submit([job(spec("1girl", 64, 2, 1), Priority::Standard)]);
    match next(&mut events).await {
        EngineEvent::Failed { error, .. } => assert_eq!(error.kind, TaskErrorKind::ModelUnavailable),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_spoiled_picture_fails_alone() {
    let (engine, mut events, _) = start(options());
    let mut hot = spec("1girl", 64, 3, 1);
    hot.sampler = "no such sampler".into();
    engine.submit([job(hot, Priority::Standard), job(spec("1girl", 64, 3, 2), Priority::Standard)]);
    let (mut failed, mut drawn) = (0, 0);
    while failed + drawn < 2 {
        match next(&mut events).await {
            EngineEvent::Failed { error, .. } => {
                assert_eq!(error.kind, TaskErrorKind::InvalidRequest);
                assert!(error.message.contains("sampler"), "{}", error.message);
                failed += 1;
            }
            EngineEvent::Drawn(_) => drawn += 1,
            _ => {}
        }
    }
    assert_eq!((failed, drawn), (1, 1));
}

#[tokio::test]
async fn two_devices_serve_one_queue() {
    let (engine, mut events, metrics) =
        start(EngineOptions { devices: vec![DeviceName::Cpu; 2], max_batch: 1, ..options() });
    let jobs: Vec<Job> = (0..6).map(|i| job(spec("1girl", 64, 3, i), Priority::Standard)).collect();
    engine.submit(jobs);
    assert_eq!(drawn(&mut events, 6).await.len(), 6);
    let loads = metrics.text();
    assert!(loads.contains("darkroom_model_loads_total{model=\"tiny-sdxl\"} 2"), "{loads}");
}

#[tokio::test]
async fn a_model_is_put_out_for_another_when_both_do_not_fit_and_is_loaded_once_for_all_who_wait() {
    let folder = tempfile::TempDir::new().unwrap();
    std::fs::write(folder.path().join("twin.safetensors"), crate::embedded::weights()).unwrap();
    let catalog = Arc::new(Catalog::open(Some(folder.path()), None).unwrap());
    // Room for one as it is held, whose token tables are not as sparse as in the file, and not for two files.
    let ((held, ..), file) = (costs(), catalog.find("twin").unwrap().bytes);
    let metrics = Arc::new(Metrics::default());
    let budget = held + file / 4;
    assert!(2 * file > budget, "{held} {file}");
    let options = EngineOptions { memory_budget: budget, ..options() };
    let (engine, mut events) =
        Engine::start(options, catalog, Arc::clone(&metrics), Arc::new(NoSources)).unwrap();
    let twin = |seed| ImageSpec { model: "twin".into(), ..spec("1girl", 64, 3, seed) };
    let jobs = [spec("1girl", 64, 3, 1), twin(2), spec("1girl", 64, 3, 3), twin(4)];
    engine.submit(jobs.map(|spec| job(spec, Priority::Standard)));
    assert_eq!(drawn(&mut events, 4).await.len(), 4);
    assert!(metrics.evictions.get() >= 1);
    let text = metrics.text();
    assert!(text.contains("darkroom_model_loads_total{model=\"twin\"} 1"), "{text}");
    let resident: Vec<_> = engine.residency().into_iter().collect();
    assert_eq!(resident.len(), 1, "{resident:?}");
    let (model, _) = &resident[0];
    engine.unload(model).await.unwrap();
    assert!(engine.residency().is_empty());
    engine.load("tiny-sdxl").await.unwrap();
    assert!(matches!(engine.residency()["tiny-sdxl"], Residency::Resident { .. }));
}

fn lora(id: &str, strength: f64) -> LoraSpec {
    LoraSpec { lora: id.into(), strength, text_strength: strength }
}

fn control(picture: &[u8], strength: f64) -> ControlSpec {
    ControlSpec {
        control: "tiny-canny".into(),
        image: BlobId::of(picture),
        preprocess: Preprocess::OpencvCanny { low: 100.0, high: 200.0 },
        strength,
        start: 0.0,
        end: 1.0,
    }
}

#[tokio::test]
async fn pictures_with_loras_and_controls_of_their_own_share_step_batches_and_are_those_drawn_alone() {
    let guided = |seed, loras: &[LoraSpec], controls: &[ControlSpec]| ImageSpec {
        loras: loras.to_vec(),
        controls: controls.to_vec(),
        ..spec("1girl, smile", 64, 12, seed)
    };
    let specs = [
        guided(1, &[lora("tinychan", 1.0)], &[control(b"a", 0.8)]),
        guided(2, &[], &[control(b"b", 0.5), control(b"a", 0.4)]),
        guided(3, &[lora("tinyvio", 0.9)], &[]),
        guided(4, &[lora("tinychan", 0.5), lora("tinyvio", 0.5)], &[]),
        guided(5, &[], &[]),
    ];
    let jobs: Vec<Job> = specs.into_iter().map(|spec| job(spec, Priority::Standard)).collect();
    let (engine, mut events, metrics) = start(options());
    engine.submit(jobs.clone());
    let together = drawn(&mut events, jobs.len()).await;
    let batches = metrics.step_batches.load(Ordering::Relaxed);
    let samples = metrics.stepped_samples.load(Ordering::Relaxed);
    assert!(samples > 2 * batches, "{samples} samples in {batches} batches");
    for job in &jobs {
        engine.submit([job.clone()]);
        let alone = drawn(&mut events, 1).await;
        let (batched, alone) = (&together[&job.id.task], &alone[&job.id.task]);
        let furthest = batched.iter().zip(alone).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(furthest <= TOLERANCE, "{furthest}: {:?}", job.content);
    }
    engine.stop();
}

#[tokio::test]
async fn a_pack_of_one_lora_is_drawn_with_merged_weights_after_a_while() {
    let (engine, mut events, metrics) = start(options());
    let jobs: Vec<Job> = (0..4)
        .map(|seed| {
            let loras = vec![lora("tinychan", 1.0)];
            job(ImageSpec { loras, ..spec("1girl", 64, 30, seed) }, Priority::Standard)
        })
        .collect();
    let alone: Vec<Job> = jobs[..1].to_vec();
    engine.submit(jobs.clone());
    let together = drawn(&mut events, 4).await;
    let steps = |way| metrics.lora_steps.get_or_create(&ByWay { way }).get();
    assert!(steps("merged") > 0, "{} steps with adapters", steps("adapters"));
    // Beside a picture without it, the same LoRA is an adapter again.
    let before = steps("adapters");
    engine.submit([alone[0].clone(), job(spec("1girl", 64, 30, 9), Priority::Standard)]);
    let mixed = drawn(&mut events, 2).await;
    assert!(steps("adapters") > before);
    let (a, b) = (&together[&jobs[0].id.task], &mixed[&alone[0].id.task]);
    let furthest = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(furthest <= TOLERANCE, "{furthest}");
    engine.submit(alone.clone());
    let again = drawn(&mut events, 1).await;
    let (a, b) = (&together[&jobs[0].id.task], &again[&alone[0].id.task]);
    let furthest = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(furthest <= TOLERANCE, "{furthest}");
    engine.stop();
}

#[tokio::test]
async fn what_a_picture_needs_and_is_not_there_fails_it_and_nothing_else() {
    let (engine, mut events, _) = start(options());
    let good = job(spec("1girl", 64, 4, 1), Priority::Standard);
    let unknown = ImageSpec { loras: vec![lora("nobody", 1.0)], ..spec("1girl", 64, 4, 2) };
    let gone = ImageSpec { controls: vec![control(b"gone", 1.0)], ..spec("1girl", 64, 4, 3) };
    let (unknown, gone) = (job(unknown, Priority::Standard), job(gone, Priority::Standard));
    engine.submit([unknown.clone(), gone.clone(), good.clone()]);
    let (mut failed, mut finished) = (HashMap::new(), Vec::new());
    while failed.len() + finished.len() < 3 {
        match next(&mut events).await {
            EngineEvent::Failed { job, error } => drop(failed.insert(job.task, error.message)),
            EngineEvent::Drawn(drawn) => finished.push(drawn.job.id.task.clone()),
            _ => {}
        }
    }
    assert_eq!(finished, [good.id.task]);
    assert!(failed[&unknown.id.task].contains("'nobody'"), "{failed:?}");
    assert!(failed[&gone.id.task].contains("is gone"), "{failed:?}");
    engine.stop();
}

/// A picture with all that the engine says of it.
async fn drawn_one(events: &mut UnboundedReceiver<EngineEvent>) -> Drawn {
    loop {
        match next(events).await {
            EngineEvent::Drawn(drawn) => return drawn,
            EngineEvent::Failed { error, .. } => panic!("{error:?}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn the_detail_pass_redraws_the_places_it_is_given_and_nothing_else() {
    let (engine, mut events, _) = start(options());
    let side = 128;
    let plain = spec("1girl, smile", side, 4, 3);
    let detail = |boxes: &[[f64; 4]]| DetailSpec {
        places: DetailPlaces::Boxes { boxes: boxes.to_vec() },
        denoise: 0.6,
        size: Some(128),
        crop_factor: 1.5,
        feather: 4,
    };
    engine.submit([job(plain.clone(), Priority::Standard)]);
    let before = drawn_one(&mut events).await;
    let spec =
        ImageSpec { detail: Some(detail(&[[0.1, 0.1, 0.4, 0.4], [0.5, 0.55, 0.75, 0.9]])), ..plain.clone() };
    engine.submit([job(spec, Priority::Standard)]);
    let after = drawn_one(&mut events).await;
    assert_eq!((after.width, after.height, &after.warnings[..]), (side, side, &[][..]));
    let changed = |x: usize, y: usize| {
        let at = 3 * (y * side + x);
        before.rgb[at..at + 3].iter().zip(&after.rgb[at..at + 3]).any(|(a, b)| a != b)
    };
    let share = |x: std::ops::Range<usize>, y: std::ops::Range<usize>| {
        let count = (x.len() * y.len()) as f64;
        y.flat_map(|y| x.clone().map(move |x| (x, y))).filter(|(x, y)| changed(*x, *y)).count() as f64 / count
    };
    assert!(share(20..44, 20..44) > 0.5 && share(70..90, 78..108) > 0.5);
    assert_eq!(share(104..128, 0..56), 0.0);
    assert_eq!(share(0..40, 70..128), 0.0);
    assert!(after.usage.steps > before.usage.steps, "{:?} {:?}", before.usage, after.usage);

    // A place that is too small to show leaves the picture as it was, and says so.
    let dot = ImageSpec { detail: Some(detail(&[[0.5, 0.5, 0.51, 0.51]])), ..plain };
    engine.submit([job(dot, Priority::Standard)]);
    let same = drawn_one(&mut events).await;
    assert_eq!(same.rgb, before.rgb);
    assert!(same.warnings[0].contains("no face"), "{:?}", same.warnings);
    engine.stop();
}

#[tokio::test]
async fn a_background_that_is_flat_becomes_transparent_and_one_that_is_not_stays_with_a_warning() {
    let (engine, mut events, _) = start(options());
    let key = |prompt: &str| ImageSpec { background: Background::Key, steps: 12, ..spec(prompt, 128, 12, 5) };
    engine.submit([job(key("1girl, blonde hair, simple background, green background"), Priority::Standard)]);
    let sticker = drawn_one(&mut events).await;
    let alpha = sticker.alpha.expect("a flat background");
    let clear = alpha.iter().filter(|alpha| **alpha == 0).count() as f64 / alpha.len() as f64;
    assert!((0.1..0.9).contains(&clear) && alpha[0] == 0, "{clear}");
    engine.submit([job(key("no humans, scenery, forest"), Priority::Standard)]);
    let scene = drawn_one(&mut events).await;
    assert!(scene.alpha.is_none() && scene.warnings[0].contains("background stays"), "{:?}", scene.warnings);
    engine.stop();
}

#[tokio::test]
async fn pictures_are_drawn_while_another_waits_for_its_loras_and_controls() {
    let (engine, mut events, _) = start(options());
    let waiting = ImageSpec {
        loras: vec![lora("tinyvio", 0.7)],
        controls: vec![control(b"slow", 0.5)],
        ..spec("1girl", 64, 3, 1)
    };
    // As many as a device has at hand, and a few more.
    let waiting: Vec<Job> = (0..18).map(|_| job(waiting.clone(), Priority::Standard)).collect();
    engine.submit(waiting.clone());
    for seed in 2..5 {
        let other = job(spec("1girl", 64, 3, seed), Priority::Standard);
        engine.submit([other.clone()]);
        let drawn = drawn(&mut events, 1).await;
        assert!(drawn.contains_key(&other.id.task), "the one that waits is not there yet");
    }
    *SLOW.0.lock().unwrap() = true;
    SLOW.1.notify_all();
    let drawn = drawn(&mut events, waiting.len()).await;
    assert!(waiting.iter().all(|job| drawn.contains_key(&job.id.task)));
    engine.stop();
}

/// Small networks with random weights: they find and cut out something, by the rules.
#[tokio::test]
async fn detectors_and_removers_of_the_models_folder_are_loaded_once_and_do_their_part() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/golden");
    let models = tempfile::tempdir().unwrap();
    for (folder, file) in [("ultralytics/bbox", "yolo"), ("RMBG", "matting")] {
        let folder = models.path().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let file = format!("{file}.safetensors");
        std::fs::copy(golden.join(&file), folder.join(&file)).unwrap();
    }
    let (engine, mut events, _) = start_with(options(), Some(models.path()));
    let places = DetailPlaces::Detected { detector: "yolo".into(), confidence: 0.001 };
    let detail = DetailSpec { places, denoise: 0.5, size: Some(96), crop_factor: 1.5, feather: 2 };
    let plain = spec("1girl", 96, 3, 3);
    let wanted = ImageSpec {
        detail: Some(detail.clone()),
        background: Background::Remove { remover: "matting".into() },
        ..plain.clone()
    };
    engine.submit([job(plain, Priority::Standard)]);
    let plain = drawn_one(&mut events).await;
    for _ in 0..2 {
        engine.submit([job(wanted.clone(), Priority::Standard)]);
        let drawn = drawn_one(&mut events).await;
        let alpha = drawn.alpha.expect("the remover's");
        assert!(alpha.contains(&0) && alpha.contains(&255));
        assert!(drawn.usage.steps > plain.usage.steps, "{:?}: {:?}", drawn.usage, drawn.warnings);
        assert_ne!(drawn.rgb, plain.rgb);
    }
    let missing = DetailPlaces::Detected { detector: "gone".into(), confidence: 0.5 };
    let missing = ImageSpec { detail: Some(DetailSpec { places: missing, ..detail }), ..wanted };
    engine.submit([job(missing, Priority::Standard)]);
    let error = loop {
        if let EngineEvent::Failed { error, .. } = next(&mut events).await {
            break error;
        }
    };
    assert!(error.message.contains("'gone'"), "{error:?}");
    engine.stop();
}

/// A sample of the built-in model, started outside of the engine.
fn sample(pipeline: &Pipeline, seed: u64, steps: usize) -> darkroom_pipelines::Sample {
    let request = darkroom_pipelines::ImageRequest {
        prompt: "1girl, blonde hair".into(),
        negative_prompt: "blurry".into(),
        steps,
        cfg: 5.0,
        sampler: "euler".parse().unwrap(),
        scheduler: "normal".parse().unwrap(),
        seed,
        position: darkroom_pipelines::noise::BatchPosition::ALONE,
        denoise: 1.0,
        clip_skip: None,
        source: Source::Empty { width: 64, height: 64 },
        loras: None,
        controls: Vec::new(),
        speed: Speed::default(),
        shift: None,
    };
    pipeline.prepare(&[request]).unwrap().remove(0)
}

#[tokio::test]
async fn latents_of_workflows_share_step_batches_with_pictures_and_are_those_denoised_alone() {
    let (engine, mut events, metrics) = start(options());
    let engine = Arc::new(engine);
    let stop = CancellationToken::new();
    let (borrower, token) = (Arc::clone(&engine), stop.clone());
    let borrowed = tokio::task::spawn_blocking(move || borrower.borrow_model("tiny-sdxl", &token));
    let pipeline = borrowed.await.unwrap().unwrap();
    let run = |seeds: Vec<u64>| {
        let (engine, pipeline, stop) = (Arc::clone(&engine), Arc::clone(&pipeline), stop.clone());
        tokio::task::spawn_blocking(move || {
            let samples = seeds.iter().map(|seed| sample(&pipeline, *seed, 12)).collect();
            let mut told = Vec::new();
            let done =
                engine.denoise("tiny-sdxl", &pipeline, samples, &stop, true, &mut |event| told.push(event));
            (done.unwrap(), told)
        })
    };
    engine.submit([job(spec("1boy", 64, 12, 3), Priority::Standard)]);
    let (first, second) = (run(vec![1, 2]), run(vec![3]));
    let ((first, told), (second, _)) = (first.await.unwrap(), second.await.unwrap());
    drawn(&mut events, 1).await;
    let batches = metrics.step_batches.load(Ordering::Relaxed);
    let samples = metrics.stepped_samples.load(Ordering::Relaxed);
    assert!(samples > 2 * batches, "{samples} samples in {batches} batches: they did not share steps");
    let steps: Vec<usize> = told
        .iter()
        .filter_map(
            |event| if let DenoiseEvent::Step { done, total: 12 } = event { Some(*done) } else { None },
        )
        .collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
    assert!(told.iter().any(|event| matches!(event, DenoiseEvent::Preview { sample: 1, .. })));
    for (seed, together) in [(1, &first[0]), (2, &first[1]), (3, &second[0])] {
        let (alone, _) = run(vec![seed]).await.unwrap();
        let difference = (&together.latent - &alone[0].latent).unwrap().abs().unwrap();
        let worst = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 1e-3, "seed {seed}: {worst}");
        assert!(alone[0].denoised.is_some());
    }
}

#[tokio::test]
async fn an_interrupted_latent_leaves_the_others_and_a_missing_model_is_named() {
    let (engine, _events, _) = start(options());
    let engine = Arc::new(engine);
    let never = CancellationToken::new();
    let (borrower, token) = (Arc::clone(&engine), never.clone());
    let borrow = move |model: &'static str| {
        let (engine, stop) = (Arc::clone(&borrower), token.clone());
        tokio::task::spawn_blocking(move || engine.borrow_model(model, &stop))
    };
    let Err(BorrowError::Unavailable(message)) = borrow("nobody").await.unwrap() else {
        panic!("it was lent")
    };
    assert!(message.contains("'nobody'"), "{message}");
    let pipeline = borrow("tiny-sdxl").await.unwrap().unwrap();
    let run = |seed: u64, steps: usize, stop: &CancellationToken| {
        let (engine, pipeline, stop) = (Arc::clone(&engine), Arc::clone(&pipeline), stop.clone());
        tokio::task::spawn_blocking(move || {
            let samples = vec![sample(&pipeline, seed, steps)];
            engine.denoise("tiny-sdxl", &pipeline, samples, &stop, false, &mut |_| {})
        })
    };
    let stop = CancellationToken::new();
    let (endless, other) = (run(1, 1000, &stop), run(2, 8, &never));
    other.await.unwrap().unwrap();
    stop.cancel();
    assert_eq!(endless.await.unwrap().unwrap_err(), DenoiseError::Interrupted);
    run(3, 2, &never).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_borrowed_model_stays_until_it_is_given_back() {
    let (engine, _events, _) = start(options());
    let engine = Arc::new(engine);
    let borrower = Arc::clone(&engine);
    let borrow =
        tokio::task::spawn_blocking(move || borrower.borrow_model("tiny-sdxl", &CancellationToken::new()));
    let pipeline = borrow.await.unwrap().unwrap();
    let refused = engine.unload("tiny-sdxl").await;
    assert_eq!(refused, Err(ModelError::InUse { model: "tiny-sdxl".into() }));
    drop(pipeline);
    engine.unload("tiny-sdxl").await.unwrap();
}
