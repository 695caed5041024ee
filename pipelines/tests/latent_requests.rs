//! Runs as workflows ask for them, with the embedded model: the same as plain requests where they ask for the same,
//! and in mixed step batches the same as alone, whatever areas, ranges and guidance their companions have.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};
use darkroom_models::Precision;
use darkroom_models::checkpoint::{Checkpoint, PredictionType};
use darkroom_models::controlnet::ControlNet;
use darkroom_models::weights::WeightFile;
use darkroom_pipelines::noise::{BatchPosition, initial_noise};
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::{self, ModelSampling, Prediction, Scheduler};
use darkroom_pipelines::{
    Area, Condition, ConditionMask, Conditioning, Control, ImageRequest, LatentNoise, LatentRequest, Mask,
    Picture, Pipeline, PipelineError, Source, Speed, StepCache,
};
use proptest::prelude::*;

/// A sample in a mixed batch against the same sample alone, ‖difference‖ / ‖alone‖.
const BATCH_TOLERANCE: f64 = 1e-4;
/// Rows and columns of a latent.
const CELLS: usize = 8;

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

fn plain(prompt: &str, sampler: SamplerKind) -> ImageRequest {
    ImageRequest {
        prompt: prompt.into(),
        negative_prompt: "bad".into(),
        steps: 4,
        cfg: 5.0,
        sampler,
        scheduler: Scheduler::Karras,
        seed: 7,
        position: BatchPosition { index: 1, size: 2 },
        denoise: 1.0,
        clip_skip: None,
        source: Source::Empty { width: 8 * CELLS, height: 8 * CELLS },
        loras: None,
        controls: Vec::new(),
        speed: Speed::default(),
        shift: None,
    }
}

fn text(prompt: &str) -> Conditioning {
    model().pipeline.encode(&[plain(prompt, SamplerKind::Euler)]).unwrap().remove(0).0
}

fn condition(prompt: &str) -> Condition {
    Condition::new(text(prompt))
}

fn sigmas(sampler: SamplerKind, steps: usize) -> Vec<f32> {
    schedule::sigmas(Scheduler::Karras, model().pipeline.sampling(), steps, 1.0, sampler).unwrap()
}

fn request(prompt: &str, sampler: SamplerKind) -> LatentRequest {
    LatentRequest {
        latent: Tensor::zeros((4, CELLS, CELLS), DType::F32, &Device::Cpu).unwrap(),
        position: BatchPosition { index: 1, size: 2 },
        noise: Some(LatentNoise { seed: 7, batch_index: None }),
        noise_mask: None,
        differential: None,
        noise_sigmas: None,
        sampler,
        step_seed: 7,
        sigmas: sigmas(sampler, 4),
        positive: vec![condition(prompt)],
        negative: Some(vec![condition("bad")]),
        cfg: 5.0,
        rescale_cfg: None,
        loras: None,
        sampling: None,
        cfg_norms: Vec::new(),
        free_u: Vec::new(),
        speed: Speed::default(),
    }
}

fn draw(requests: &[LatentRequest]) -> Vec<Tensor> {
    let pipeline = &model().pipeline;
    let mut samples: Vec<_> =
        requests.iter().map(|request| pipeline.start_latent(request).unwrap()).collect();
    pipeline.denoise(&mut samples, 16, &mut |_| ()).unwrap();
    samples.iter().map(|sample| sample.latent().unwrap().clone()).collect()
}

fn draw_one(request: &LatentRequest) -> Tensor {
    draw(std::slice::from_ref(request)).remove(0)
}

fn draw_plain(request: ImageRequest) -> Tensor {
    let pipeline = &model().pipeline;
    let mut samples = pipeline.prepare(&[request]).unwrap();
    pipeline.denoise(&mut samples, 16, &mut |_| ()).unwrap();
    samples[0].latent().unwrap().clone()
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

#[test]
fn a_latent_request_for_what_a_plain_one_asks_has_the_same_bits() {
    for (sampler, cfg) in
        [(SamplerKind::EulerAncestral, 5.0), (SamplerKind::Dpmpp2m, 1.0), (SamplerKind::DpmppSde, 3.0)]
    {
        let theirs = draw_plain(ImageRequest { cfg, ..plain("1girl, smile", sampler) });
        let ours = draw_one(&LatentRequest { cfg, ..request("1girl, smile", sampler) });
        assert_eq!(bits(&ours), bits(&theirs), "{sampler}");
    }
}

#[test]
fn without_sigmas_the_latent_comes_back_and_one_alone_adds_its_noise() {
    let latent = initial_noise(3, BatchPosition::ALONE, &[4, CELLS, CELLS], &Device::Cpu).unwrap();
    let with = |sigmas: Vec<f32>, noise| {
        let request =
            LatentRequest { latent: latent.clone(), sigmas, noise, ..request("1girl", SamplerKind::Euler) };
        model().pipeline.to_vae_units(&draw_one(&request)).unwrap()
    };
    let noise = Some(LatentNoise { seed: 7, batch_index: None });
    for same in [with(vec![], noise), with(vec![0.0], noise), with(vec![3.0], None)] {
        assert!(relative_error(&same, &latent) < 1e-6);
    }
    let drawn =
        initial_noise(7, BatchPosition { index: 1, size: 2 }, &[4, CELLS, CELLS], &Device::Cpu).unwrap();
    let noised = (&latent + model().pipeline.to_vae_units(&(drawn * 3.0).unwrap()).unwrap()).unwrap();
    assert!(relative_error(&with(vec![3.0], noise), &noised) < 1e-6);
}

#[test]
fn a_run_cut_in_two_ends_as_the_whole_does() {
    let whole = request("1girl, smile", SamplerKind::Dpmpp2m);
    let whole = LatentRequest { sigmas: sigmas(SamplerKind::Euler, 6), sampler: SamplerKind::Euler, ..whole };
    let first = LatentRequest { sigmas: whole.sigmas[..4].to_vec(), ..whole.clone() };
    let leftover = model().pipeline.to_vae_units(&draw_one(&first)).unwrap();
    let second =
        LatentRequest { latent: leftover, noise: None, sigmas: whole.sigmas[3..].to_vec(), ..whole.clone() };
    assert!(relative_error(&draw_one(&second), &draw_one(&whole)) < 1e-5);
}

#[test]
fn what_a_mask_keeps_ends_as_it_was() {
    let latent = initial_noise(3, BatchPosition::ALONE, &[4, CELLS, CELLS], &Device::Cpu).unwrap();
    let left = |i: usize| if i % CELLS < CELLS / 2 { 0.0 } else { 1.0 };
    let mask = Mask::new(CELLS, CELLS, (0..CELLS * CELLS).map(left).collect()).unwrap();
    for (sampler, noise) in
        [(SamplerKind::Euler, Some(LatentNoise { seed: 7, batch_index: Some(5) })), (SamplerKind::Ddim, None)]
    {
        let request = LatentRequest {
            latent: latent.clone(),
            noise,
            noise_mask: Some(Arc::new(mask.clone())),
            ..request("1girl", sampler)
        };
        let drawn = model().pipeline.to_vae_units(&draw_one(&request)).unwrap();
        let half = |tensor: &Tensor, from| tensor.narrow(2, from, CELLS / 2).unwrap();
        assert!(relative_error(&half(&drawn, 0), &half(&latent, 0)) < 1e-5, "{sampler}");
        assert!(relative_error(&half(&drawn, CELLS / 2), &half(&latent, CELLS / 2)) > 0.1, "{sampler}");
    }
}

fn control(rows: usize, columns: usize) -> Control {
    let line = |i: usize| if i % 13 < 2 { [1.0; 3] } else { [0.0; 3] };
    let picture = Picture::new(64, 64, (0..64 * 64).flat_map(line).collect()).unwrap();
    let network = model().control.clone();
    let hint = Control::embed(&network, &picture, 8 * columns, 8 * rows, &Device::Cpu).unwrap();
    Control { network, hint, strength: 0.8, start: 0.0, end: 1.0 }
}

/// Thirteen latents whose conditions, guidance and models' meanings differ.
fn mixed_requests() -> Vec<LatentRequest> {
    let euler = SamplerKind::Euler;
    let base = || request("1girl, smile", euler);
    let area = |prompt: &str, height, width, y, x| {
        let mut condition = condition(prompt);
        condition.area = Some(Area::Cells { height, width, y, x });
        condition
    };
    let mut soft = condition("red hair");
    let ramp = (0..9).map(|i| i as f32 / 8.0).collect();
    let mask = Arc::new(Mask::new(3, 3, ramp).unwrap());
    soft.mask = Some(ConditionMask { mask, strength: 0.8, bounds: false });
    let mut early = condition("blue hair, 1girl");
    early.sigmas = Some(2.0..=f32::MAX);
    let mut late = area("scenery", 4, 8, 4, 0);
    late.sigmas = Some(0.0..=2.0);
    late.strength = 1.5;
    let mut controlled = area("1boy", 8, 4, 0, 4);
    let (rows, columns) = controlled.size(CELLS, CELLS).unwrap();
    controlled.controls = vec![control(rows, columns)];
    let long = condition(&"a very long prompt of many words, ".repeat(20));
    let sampling = |model: ModelSampling| {
        let sigmas = schedule::sigmas(Scheduler::Normal, &model, 3, 1.0, euler).unwrap();
        LatentRequest { sampling: Some(Arc::new(model)), sigmas, ..base() }
    };
    vec![
        LatentRequest { positive: vec![condition("1girl"), area("red hair", 4, 4, 2, 3)], ..base() },
        base(),
        LatentRequest { positive: vec![condition("1girl"), soft, long], ..base() },
        LatentRequest { positive: vec![early, late], ..request("", SamplerKind::Heun) },
        LatentRequest { positive: vec![condition("1girl"), controlled], ..base() },
        LatentRequest { rescale_cfg: Some(0.7), cfg: 9.0, ..base() },
        LatentRequest { free_u: vec![[1.3, 1.4, 0.9, 0.2]], ..request("1girl", SamplerKind::Dpmpp2m) },
        sampling(ModelSampling::zero_terminal_snr(Prediction::V)),
        sampling(ModelSampling::scaled_linear(Prediction::Lcm)),
        sampling(ModelSampling::flow(3.0, 1000.0)),
        LatentRequest { cfg_norms: vec![0.9], ..base() },
        LatentRequest { free_u: vec![[1.3, 1.4, 0.9, 0.2]; 2], ..request("1girl", SamplerKind::Dpmpp2m) },
        LatentRequest {
            negative: None,
            positive: vec![area("scenery", 6, 6, 2, 2), condition("1girl")],
            ..request("", SamplerKind::EulerCfgPp)
        },
    ]
}

#[test]
fn areas_masks_ranges_and_free_u_share_batches_with_step_caching_as_well() {
    let requests: Vec<LatentRequest> = mixed_requests()
        .into_iter()
        .enumerate()
        .map(|(index, request)| {
            let step_cache =
                Some(StepCache { cache_interval: 2 + index % 2, cache_branch_id: Some(index % 5) });
            LatentRequest { speed: Speed { guidance_interval: None, step_cache }, ..request }
        })
        .collect();
    let together = draw(&requests);
    for (index, (request, batched)) in requests.iter().zip(&together).enumerate() {
        let error = relative_error(batched, &draw_one(request));
        println!("run {index}: {error:.1e}");
        assert!(error <= BATCH_TOLERANCE, "run {index}: {error}");
        assert!(relative_error(batched, &alone()[index]) > 1e-5, "run {index}: the cache does nothing");
    }
}

fn alone() -> &'static [Tensor] {
    static ALONE: OnceLock<Vec<Tensor>> = OnceLock::new();
    ALONE.get_or_init(|| mixed_requests().iter().map(draw_one).collect())
}

#[test]
fn thirteen_runs_with_areas_masks_ranges_and_models_of_their_own_in_one_batch_equal_each_alone() {
    let together = draw(&mixed_requests());
    for (index, (batched, alone)) in together.iter().zip(alone()).enumerate() {
        let error = relative_error(batched, alone);
        println!("run {index}: {error:.1e}");
        assert!(error <= BATCH_TOLERANCE, "run {index}: {error}");
    }
    for (i, one) in alone().iter().enumerate() {
        for other in &alone()[i + 1..] {
            assert!(relative_error(one, other) > 1e-3, "run {i} is another's twin");
        }
    }
}

#[test]
fn a_flow_that_pauses_ends_where_one_that_goes_through_does() {
    let flow = Arc::new(ModelSampling::flow(3.0, 1.0));
    let sampling = Some(Arc::clone(&flow));
    let sigmas = schedule::sigmas(Scheduler::Simple, &flow, 4, 1.0, SamplerKind::Euler).unwrap();
    // Unguided: guidance multiplies what the pause rounds.
    let base =
        LatentRequest { sampling, sigmas: sigmas.clone(), cfg: 1.0, ..request("1girl", SamplerKind::Euler) };
    let through = draw_one(&base);
    let first = LatentRequest { sigmas: sigmas[..3].to_vec(), ..base.clone() };
    let paused = model().pipeline.to_vae_units(&draw_one(&first)).unwrap();
    let second = LatentRequest { latent: paused, noise: None, sigmas: sigmas[2..].to_vec(), ..base };
    let error = relative_error(&draw_one(&second), &through);
    assert!(error <= 1e-5, "{error:e}");
}

#[test]
fn what_a_mask_keeps_of_a_flow_is_the_source() {
    let flow = Arc::new(ModelSampling::flow(1.5, 1000.0));
    let sigmas = schedule::sigmas(Scheduler::Normal, &flow, 3, 1.0, SamplerKind::Euler).unwrap();
    let source = initial_noise(3, BatchPosition::ALONE, &[4, CELLS, CELLS], &Device::Cpu).unwrap();
    let nothing = Arc::new(Mask::new(1, 1, vec![0.0]).unwrap());
    let kept = draw_one(&LatentRequest {
        latent: source.clone(),
        noise_mask: Some(nothing),
        sampling: Some(flow),
        sigmas,
        ..request("1girl", SamplerKind::Euler)
    });
    let error = relative_error(&model().pipeline.to_vae_units(&kept).unwrap(), &source);
    assert!(error <= 1e-5, "{error:e}");
}

#[test]
fn a_model_of_zero_terminal_snr_is_drawn_with_at_its_own_noise_levels() {
    let asset = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-sdxl.safetensors");
    let mut checkpoint = Checkpoint::open(&asset, &Device::Cpu).unwrap();
    (checkpoint.prediction.kind, checkpoint.prediction.zero_terminal_snr) = (PredictionType::V, true);
    let own = Pipeline::load(&checkpoint, &Device::Cpu).unwrap();
    let told = ModelSampling::zero_terminal_snr(Prediction::V);
    assert_eq!(own.sampling().table(), told.table());
    let sigmas = schedule::sigmas(Scheduler::Simple, &told, 3, 1.0, SamplerKind::Euler).unwrap();
    assert!(sigmas[0] > 4000.0);
    let base = LatentRequest { sigmas, ..request("1girl", SamplerKind::Euler) };
    let mut samples = [own.start_latent(&base).unwrap()];
    own.denoise(&mut samples, 16, &mut |_| ()).unwrap();
    let by_node = draw_one(&LatentRequest { sampling: Some(Arc::new(told)), ..base });
    assert_eq!(relative_error(samples[0].latent().unwrap(), &by_node), 0.0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_of_runs_equals_each_alone(
        picked in proptest::sample::subsequence((0..10usize).collect::<Vec<_>>(), 2..5)
    ) {
        let all = mixed_requests();
        let requests: Vec<LatentRequest> = picked.iter().map(|index| all[*index].clone()).collect();
        for (index, batched) in picked.iter().zip(draw(&requests)) {
            prop_assert!(relative_error(&batched, &alone()[*index]) <= BATCH_TOLERANCE, "run {index}");
        }
    }
}

#[test]
fn two_halves_with_the_same_prompt_are_the_whole() {
    let half = |x, strength| {
        let mut condition = condition("1girl, smile");
        let inside = move |i: usize| if (i % CELLS < CELLS / 2) == (x == 0) { 1.0 } else { 0.0 };
        let mask = Mask::new(CELLS, CELLS, (0..CELLS * CELLS).map(inside).collect()).unwrap();
        condition.mask = Some(ConditionMask { mask: Arc::new(mask), strength, bounds: false });
        condition
    };
    let whole = request("1girl, smile", SamplerKind::Euler);
    let halves = LatentRequest { positive: vec![half(0, 1.0), half(4, 0.3)], ..whole.clone() };
    assert!(relative_error(&draw_one(&halves), &draw_one(&whole)) < 1e-4);
}

fn refused(change: impl FnOnce(&mut LatentRequest)) -> String {
    let mut request = request("1girl", SamplerKind::Euler);
    change(&mut request);
    match model().pipeline.start_latent(&request) {
        Err(
            error @ (PipelineError::Request { .. } | PipelineError::Sampler(_) | PipelineError::Noise(_)),
        ) => error.to_string(),
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("expected a refusal"),
    }
}

#[test]
fn what_cannot_be_sampled_is_refused_by_name() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for (named, error) in [
        ("latent", refused(|r| r.latent = zeros(&[16, 8, 8]))),
        ("latent", refused(|r| r.latent = zeros(&[1, 4, 8, 8]))),
        ("latent", refused(|r| r.latent = zeros(&[4, 1, 1025]))),
        ("position", refused(|r| r.position = BatchPosition { index: 2, size: 2 })),
        ("cfg", refused(|r| r.cfg = f64::NAN)),
        ("rescale_cfg", refused(|r| r.rescale_cfg = Some(f64::INFINITY))),
        ("free_u", refused(|r| r.free_u = vec![[1.0, 1.0, f64::NAN, 1.0]])),
        ("sigmas", refused(|r| r.sigmas = vec![1.0; 20_000])),
        ("sigma number 1", refused(|r| r.sigmas = vec![1.0, f32::NAN])),
        ("sigma number 2", refused(|r| (r.sampler, r.sigmas) = (SamplerKind::UniPc, vec![2.0, 1.0, 3.0]))),
        ("context", refused(|r| r.positive[0].text.context = zeros(&[77, 64]))),
        ("pooled", refused(|r| r.positive[0].text.pooled = None)),
        ("strength", refused(|r| r.positive[0].strength = f64::NAN)),
        ("picture", refused(|r| r.positive[0].controls = vec![control(4, 4)])),
        ("noise", refused(|r| r.noise = Some(LatentNoise { seed: 1, batch_index: Some(usize::MAX) }))),
    ] {
        assert!(error.contains(named), "{named}: {error}");
    }
}
