//! Guidance intervals, step caching and ControlNets' ranges with the embedded model: what is left out is not run, what
//! is kept is right, and batch-mates do not matter.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};
use darkroom_models::Precision;
use darkroom_models::checkpoint::Checkpoint;
use darkroom_models::controlnet::ControlNet;
use darkroom_models::weights::WeightFile;
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::{
    Control, GuidanceInterval, ImageRequest, Picture, Pipeline, PipelineError, Source, Speed, StepCache,
    StepWork,
};
use proptest::prelude::*;

/// A sample in a mixed batch against the same sample alone, ‖difference‖ / ‖alone‖.
const BATCH_TOLERANCE: f64 = 1e-4;
const SIDE: usize = 64;

struct Model {
    pipeline: Pipeline,
    control: Arc<ControlNet>,
}

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let asset = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets").join(name);
        let checkpoint = Checkpoint::open(&asset("tiny-sdxl.safetensors"), &Device::Cpu).unwrap();
        let pipeline = Pipeline::load(&checkpoint, &Device::Cpu).unwrap();
        let file = Arc::new(WeightFile::open(&asset("tiny-canny.safetensors")).unwrap());
        let config = pipeline.unet_config().unwrap();
        let control = ControlNet::from_file(file, config, &Device::Cpu, Precision::Full).unwrap();
        Model { control: Arc::new(control), pipeline }
    })
}

fn request(seed: u64, steps: usize, sampler: SamplerKind, speed: Speed) -> ImageRequest {
    ImageRequest {
        prompt: "1girl, smile".into(),
        negative_prompt: "bad".into(),
        steps,
        cfg: 5.0,
        sampler,
        scheduler: "karras".parse().unwrap(),
        seed,
        position: BatchPosition::ALONE,
        denoise: 1.0,
        clip_skip: None,
        source: Source::Empty { width: SIDE, height: SIDE },
        loras: None,
        controls: Vec::new(),
        speed,
        shift: None,
    }
}

fn exact() -> Speed {
    Speed::default()
}

fn interval(start: f64, end: f64) -> Speed {
    Speed { guidance_interval: Some(GuidanceInterval { start, end }), step_cache: None }
}

fn cached(cache_interval: usize, cache_branch_id: Option<usize>) -> Speed {
    Speed { guidance_interval: None, step_cache: Some(StepCache { cache_interval, cache_branch_id }) }
}

fn control(start: f64, end: f64) -> Control {
    let line = |i: usize| (i % SIDE) % 23 < 2 || (i / SIDE) % 19 < 2;
    let pixels = (0..SIDE * SIDE).flat_map(|i| if line(i) { [1.0; 3] } else { [0.0; 3] }).collect();
    let picture = Picture::new(SIDE, SIDE, pixels).unwrap();
    let network = model().control.clone();
    let hint = Control::embed(&network, &picture, SIDE, SIDE, &Device::Cpu).unwrap();
    Control { network, hint, strength: 0.8, start, end }
}

/// Finished latents, and what each call of the denoiser did.
fn draw(requests: &[ImageRequest], max_batch: usize) -> (Vec<Tensor>, Vec<StepWork>) {
    let pipeline = &model().pipeline;
    let mut samples = pipeline.prepare(requests).unwrap();
    let mut work = Vec::new();
    pipeline.denoise(&mut samples, max_batch, &mut |report| work.push(report.work)).unwrap();
    (samples.iter().map(|sample| sample.latent().unwrap().clone()).collect(), work)
}

fn alone(request: &ImageRequest) -> (Tensor, Vec<StepWork>) {
    let (mut latents, work) = draw(std::slice::from_ref(request), 1);
    (latents.remove(0), work)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn relative_error(ours: &Tensor, theirs: &Tensor) -> f64 {
    let norm = |x: &Tensor| {
        let x = x.to_dtype(DType::F64).unwrap();
        x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    };
    norm(&(ours - theirs).unwrap()) / norm(theirs)
}

fn whole_rows(work: &[StepWork]) -> Vec<usize> {
    work.iter().map(|step| step.whole_rows).collect()
}

fn shallow_rows(work: &[StepWork]) -> Vec<usize> {
    work.iter().map(|step| step.shallow_rows).collect()
}

#[test]
fn options_that_give_nothing_up_change_no_bit() {
    for sampler in [SamplerKind::Dpmpp2m, SamplerKind::Heun, SamplerKind::EulerAncestral] {
        let (plain, work) = alone(&request(1, 4, sampler, exact()));
        for speed in [interval(0.0, 1.0), cached(1, None), cached(1, Some(0))] {
            let (same, same_work) = alone(&request(1, 4, sampler, speed));
            assert_eq!(bits(&same), bits(&plain), "{sampler}, {speed:?}");
            assert_eq!(same_work, work);
        }
        for speed in [interval(0.0, 0.5), cached(2, None)] {
            let (other, _) = alone(&request(1, 4, sampler, speed));
            assert!(relative_error(&other, &plain) > 1e-4, "{sampler}, {speed:?} does nothing");
        }
    }
}

#[test]
fn outside_the_guidance_interval_a_step_takes_one_row() {
    let rows = |speed| whole_rows(&alone(&request(1, 6, SamplerKind::Euler, speed)).1);
    assert_eq!(rows(exact()), [2; 6]);
    let late = rows(interval(0.0, 0.5));
    assert!(late.starts_with(&[2]) && late.ends_with(&[1]) && late.is_sorted_by(|a, b| a >= b), "{late:?}");
    let early = rows(interval(0.5, 1.0));
    assert!(early.starts_with(&[1]) && early.ends_with(&[2]) && early.is_sorted(), "{early:?}");
    assert_eq!(rows(interval(0.999, 0.999)), [1; 6]);
}

#[test]
fn guidance_that_never_acts_is_a_scale_of_one() {
    let unguided = ImageRequest { cfg: 1.0, ..request(1, 5, SamplerKind::Dpmpp2m, exact()) };
    let (never, _) = alone(&request(1, 5, SamplerKind::Dpmpp2m, interval(0.999, 0.999)));
    assert_eq!(bits(&never), bits(&alone(&unguided).0));
}

#[test]
fn samplers_that_need_the_negative_prompt_refuse_an_interval_and_say_why() {
    let error = model().pipeline.prepare(&[request(1, 3, SamplerKind::EulerCfgPp, interval(0.0, 0.5))]);
    let Err(PipelineError::Request { field, message }) = error else { panic!("accepted") };
    assert_eq!(field, "speed.guidance_interval");
    assert!(message.contains("euler_cfg_pp"), "{message}");
}

#[test]
fn one_evaluation_of_a_cycle_is_whole() {
    let (_, work) = alone(&request(1, 7, SamplerKind::Euler, cached(3, None)));
    assert_eq!(whole_rows(&work), [2, 0, 0, 2, 0, 0, 2]);
    assert_eq!(shallow_rows(&work), [0, 2, 2, 0, 2, 2, 0]);
    assert!(work.iter().all(|step| step.calls == 1), "{work:?}");
}

#[test]
fn a_step_with_two_evaluations_counts_twice() {
    // Heun's last step is one evaluation.
    let (_, work) = alone(&request(1, 3, SamplerKind::Heun, cached(2, None)));
    assert_eq!(whole_rows(&work), [2, 0, 2, 0, 2]);
    let (_, work) = alone(&request(1, 3, SamplerKind::Heun, cached(3, None)));
    assert_eq!(whole_rows(&work), [2, 0, 0, 2, 0]);
}

#[test]
fn a_prompt_that_comes_back_within_a_cycle_runs_whole_for_itself() {
    let speed = Speed {
        guidance_interval: Some(GuidanceInterval { start: 0.3, end: 1.0 }),
        step_cache: Some(StepCache { cache_interval: 4, cache_branch_id: None }),
    };
    let (_, work) = alone(&request(1, 8, SamplerKind::Euler, speed));
    let first = work.iter().position(|step| step.whole_rows + step.shallow_rows == 2).unwrap();
    assert!(first > 0 && first % 4 != 0, "the test needs guidance to begin within a cycle: {work:?}");
    assert_eq!((work[first].whole_rows, work[first].shallow_rows, work[first].calls), (1, 1, 2), "{work:?}");
    assert_eq!((work[first + 1].whole_rows, work[first + 1].shallow_rows) == (0, 2), (first + 1) % 4 != 0);
}

#[test]
fn every_skip_connection_of_the_model_can_be_cut_at_and_no_other() {
    let (plain, _) = alone(&request(1, 4, SamplerKind::Euler, exact()));
    let count = model().pipeline.unet_config().unwrap().skip_count();
    let mut seen: Vec<Tensor> = Vec::new();
    for branch in 0..count {
        let (latent, work) = alone(&request(1, 4, SamplerKind::Euler, cached(2, Some(branch))));
        assert_eq!(shallow_rows(&work), [0, 2, 0, 2]);
        let error = relative_error(&latent, &plain);
        println!("cut at {branch}: {error:.3}");
        assert!(error > 1e-4 && seen.iter().all(|other| bits(other) != bits(&latent)), "{branch}");
        seen.push(latent);
    }
    let outermost = model().pipeline.unet_config().unwrap().outermost_skip();
    let (default, _) = alone(&request(1, 4, SamplerKind::Euler, cached(2, None)));
    assert_eq!(bits(&default), bits(&seen[outermost]));
    let error = model().pipeline.prepare(&[request(1, 4, SamplerKind::Euler, cached(2, Some(count)))]);
    let Err(PipelineError::Request { field, message }) = error else { panic!("accepted") };
    assert_eq!(field, "speed.step_cache.cache_branch_id");
    assert!(message.contains(&format!("0 to {}", count - 1)), "{message}");
}

#[test]
fn what_a_sample_keeps_is_what_it_says_and_is_gone_when_it_is_done() {
    let pipeline = &model().pipeline;
    for (speed, cfg, rows) in [(cached(2, None), 5.0, 2), (cached(2, None), 1.0, 1), (exact(), 5.0, 0)] {
        let request = ImageRequest { cfg, ..request(1, 2, SamplerKind::Euler, speed) };
        let mut sample = pipeline.prepare(&[request]).unwrap().remove(0);
        let both = pipeline.cache_bytes(&speed, SIDE / 8, SIDE / 8);
        assert_eq!(2 * sample.cache_bytes(), rows * both);
        assert!(both <= pipeline.most_cache_bytes(SIDE / 8, SIDE / 8));
        for _ in 0..2 {
            pipeline.step(&mut [&mut sample]).unwrap();
        }
        assert!(sample.latent().is_some());
        assert_eq!(sample.cache_bytes(), 0);
    }
}

#[test]
fn outside_its_range_a_controlnet_is_not_run() {
    let rows = |control: Control, speed| {
        let request = ImageRequest { controls: vec![control], ..request(1, 8, SamplerKind::Euler, speed) };
        let (_, work) = alone(&request);
        work.iter().map(|step| step.control_rows).collect::<Vec<_>>()
    };
    assert_eq!(rows(control(0.0, 1.0), exact()), [2; 8]);
    let first = rows(control(0.0, 0.4), exact());
    assert!(
        first.starts_with(&[2]) && first.ends_with(&[0]) && first.is_sorted_by(|a, b| a >= b),
        "{first:?}"
    );
    let last = rows(control(0.4, 1.0), exact());
    assert!(last.starts_with(&[0]) && last.ends_with(&[2]) && last.is_sorted(), "{last:?}");
    assert_eq!(rows(control(0.999, 0.999), exact()), [0; 8]);
    let silent = Control { strength: 0.0, ..control(0.0, 1.0) };
    assert_eq!(rows(silent, exact()), [0; 8]);
    // Shallow evaluations run its part of them, and none where it does not act.
    assert_eq!(rows(control(0.0, 1.0), cached(3, None)), [2; 8]);
    assert_eq!(rows(control(0.0, 0.4), cached(3, None)), first);
}

#[test]
fn a_controlnet_acts_in_shallow_evaluations() {
    let speed = cached(4, None);
    let with = |controls: Vec<Control>| {
        alone(&ImageRequest { controls, ..request(1, 4, SamplerKind::Euler, speed) }).0
    };
    // It begins after the one whole evaluation, so that only shallow ones have it.
    let begins = (1..100).map(|percent| f64::from(percent) / 100.0).find(|start| {
        let request =
            ImageRequest { controls: vec![control(*start, 1.0)], ..request(1, 4, SamplerKind::Euler, speed) };
        alone(&request).1[0].control_rows == 0
    });
    let late = with(vec![control(begins.unwrap(), 1.0)]);
    assert!(relative_error(&late, &with(Vec::new())) > 1e-3);
}

/// Pictures with every option, several step counts and samplers of one and of two evaluations.
fn mixed_requests() -> Vec<ImageRequest> {
    let both = |start, end, cache_interval| Speed {
        guidance_interval: Some(GuidanceInterval { start, end }),
        step_cache: Some(StepCache { cache_interval, cache_branch_id: None }),
    };
    let steered =
        |request: ImageRequest, start, end| ImageRequest { controls: vec![control(start, end)], ..request };
    vec![
        request(1, 5, SamplerKind::Dpmpp2m, cached(2, None)),
        request(2, 4, SamplerKind::Euler, exact()),
        steered(request(3, 6, SamplerKind::Dpmpp2m, cached(3, None)), 0.0, 0.6),
        request(4, 3, SamplerKind::Heun, cached(2, None)),
        request(5, 5, SamplerKind::EulerAncestral, interval(0.2, 0.7)),
        steered(request(6, 5, SamplerKind::Euler, both(0.3, 1.0, 4)), 0.3, 1.0),
        ImageRequest { cfg: 1.0, ..request(7, 4, SamplerKind::DpmppSde, cached(3, Some(0))) },
        request(8, 6, SamplerKind::Dpm2, both(0.0, 0.5, 2)),
    ]
}

#[test]
fn samples_in_different_phases_share_two_calls_a_step() {
    let speeds = [cached(2, None), cached(3, None), exact(), interval(0.0, 0.5), cached(2, None)];
    let requests: Vec<ImageRequest> = speeds
        .into_iter()
        .enumerate()
        .map(|(i, speed)| request(i as u64, 5, SamplerKind::Euler, speed))
        .collect();
    let (_, work) = draw(&requests, 16);
    assert!(work.iter().all(|step| step.calls <= 2), "{work:?}");
    assert!(work.iter().any(|step| step.whole_rows > 2 && step.shallow_rows > 2), "{work:?}");
}

#[test]
fn pictures_in_any_phase_equal_each_alone_also_where_they_join_and_leave() {
    let requests = mixed_requests();
    let alone: Vec<Tensor> = requests.iter().map(|request| alone(request).0).collect();
    for max_batch in [16, 3] {
        let (together, _) = draw(&requests, max_batch);
        for (index, (batched, alone)) in together.iter().zip(&alone).enumerate() {
            let error = relative_error(batched, alone);
            println!("picture {index}, batches of {max_batch}: {error:.1e}");
            assert!(error <= BATCH_TOLERANCE, "picture {index}, batches of {max_batch}: {error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn any_options_in_any_company_draw_what_they_draw_alone(
        wanted in proptest::collection::vec(
            (1usize..6, 0usize..5, 0.0f64..1.0, 0.0f64..1.0, 2usize..6, 0usize..3), 2..5,
        ),
        max_batch in 1usize..5,
    ) {
        let samplers =
            [SamplerKind::Euler, SamplerKind::Heun, SamplerKind::Dpmpp2m, SamplerKind::DpmppSde];
        let requests: Vec<ImageRequest> = wanted
            .iter()
            .enumerate()
            .map(|(i, (cache, branch, a, b, steps, sampler))| {
                let speed = Speed {
                    guidance_interval: Some(GuidanceInterval { start: a.min(*b), end: a.max(*b) }),
                    step_cache: Some(StepCache { cache_interval: *cache, cache_branch_id: Some(*branch) }),
                };
                request(i as u64, *steps, samplers[(*sampler + i) % samplers.len()], speed)
            })
            .collect();
        let (together, _) = draw(&requests, max_batch);
        for (request, batched) in requests.iter().zip(&together) {
            prop_assert!(relative_error(batched, &alone(request).0) <= BATCH_TOLERANCE);
        }
    }
}
