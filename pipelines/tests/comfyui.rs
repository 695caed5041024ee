//! Whole pictures against ComfyUI's: recorded runs of ComfyUI 0.3.64 (CPU, float32) with a tiny SDXL-shaped
//! checkpoint. `scripts/golden/comfyui.py` says what is in the files and makes them.

// A test's own set-up may fail the test.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};
use darkroom_models::checkpoint::Checkpoint;
use darkroom_models::{Precision, bf16_is_accelerated};
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::Scheduler;
use darkroom_pipelines::{ImageRequest, InpaintMode, Mask, Picture, Pipeline, Sample, Source};
use serde::Deserialize;

/// Final latents, ‖ours − theirs‖ / ‖theirs‖. ComfyUI against itself with another thread count is 3.5e-6 off
/// after six steps; samplers that divide by small sigma differences amplify that.
const LATENT_TOLERANCE: f64 = 1e-3;
/// Prompt embeddings; ComfyUI against itself is 3e-7 off.
const TEXT_TOLERANCE: f64 = 1e-4;
/// Latents from the VAE's encoder, which is badly conditioned with random weights.
const ENCODER_TOLERANCE: f64 = 5e-4;
/// A sample in a mixed batch against the same sample alone.
const BATCH_TOLERANCE: f64 = 1e-4;

/// ComfyUI chooses this sampler's step sizes by the error of the whole batch; here a picture never depends on
/// its batch-mates, so its batches differ by design (1e-2 on the recorded one, which has two pictures).
const BATCH_ADAPTIVE: &str = "dpm_adaptive";

/// A latent of bf16 products against full precision: operands keep 8 significant bits, and guidance at 7.5
/// amplifies what that costs over six steps.
const BF16_TOLERANCE: f64 = 5e-2;

#[derive(Deserialize, Clone)]
struct Case {
    name: String,
    seed: u64,
    steps: usize,
    cfg: f64,
    sampler: String,
    scheduler: String,
    denoise: f64,
    prompt: String,
    negative: String,
    clip_skip: Option<usize>,
    width: Option<usize>,
    height: Option<usize>,
    batch: Option<usize>,
    first: Option<usize>,
    length: Option<usize>,
    image: Option<String>,
    fill_grow: Option<usize>,
    noise_mask: Option<bool>,
}

struct Golden {
    cases: Vec<Case>,
    recorded: HashMap<String, Tensor>,
    pipeline: Pipeline,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/comfyui")
}

fn golden() -> &'static Golden {
    static GOLDEN: OnceLock<Golden> = OnceLock::new();
    GOLDEN.get_or_init(|| {
        let cases = std::fs::read_to_string(folder().join("cases.json")).unwrap();
        let recorded = candle_core::safetensors::load(folder().join("recorded.safetensors"), &Device::Cpu);
        let checkpoint = Checkpoint::open(&folder().join("sdxl-tiny.safetensors"), &Device::Cpu).unwrap();
        Golden {
            cases: serde_json::from_str(&cases).unwrap(),
            recorded: recorded.unwrap(),
            pipeline: Pipeline::load(&checkpoint, &Device::Cpu).unwrap(),
        }
    })
}

impl Golden {
    fn case(&self, name: &str) -> &Case {
        self.cases.iter().find(|case| case.name == name).unwrap()
    }

    fn recorded(&self, name: &str) -> &Tensor {
        self.recorded.get(name).unwrap_or_else(|| panic!("{name} is not recorded"))
    }

    /// ComfyUI's `LoadImage`: the picture, and `1 - alpha` as the mask.
    fn input(&self, name: &str) -> (Picture, Mask) {
        let rgba = self.recorded(&format!("input.{name}"));
        let (height, width, _) = rgba.dims3().unwrap();
        let values: Vec<u8> = rgba.flatten_all().unwrap().to_vec1().unwrap();
        let unit = |v: &u8| f32::from(*v) / 255.0;
        let rgb = values.chunks(4).flat_map(|p| p[..3].iter().map(unit)).collect();
        let mask = values.chunks(4).map(|p| 1.0 - unit(&p[3])).collect();
        (Picture::new(width, height, rgb).unwrap(), Mask::new(width, height, mask).unwrap())
    }

    fn source(&self, case: &Case) -> Source {
        let Some(image) = &case.image else {
            return Source::Empty { width: case.width.unwrap(), height: case.height.unwrap() };
        };
        let (picture, mask) = self.input(image);
        let (picture, mask) = (Arc::new(picture), Arc::new(mask));
        match (case.fill_grow, case.noise_mask) {
            (Some(grow), _) => Source::Inpaint { picture, mask, mode: InpaintMode::Fill { grow } },
            (None, Some(true)) => Source::Inpaint { picture, mask, mode: InpaintMode::NoiseMask },
            _ => Source::Image(picture),
        }
    }

    /// One request a picture of the case's batch.
    fn requests(&self, case: &Case) -> Vec<ImageRequest> {
        let size = case.batch.unwrap_or(1);
        let first = case.first.unwrap_or(0);
        (first..first + case.length.unwrap_or(size))
            .map(|index| ImageRequest {
                prompt: case.prompt.clone(),
                negative_prompt: case.negative.clone(),
                steps: case.steps,
                cfg: case.cfg,
                sampler: SamplerKind::from_str(&case.sampler).unwrap(),
                scheduler: Scheduler::from_str(&case.scheduler).unwrap(),
                seed: case.seed,
                position: BatchPosition { index, size },
                denoise: case.denoise,
                clip_skip: case.clip_skip,
                source: self.source(case),
                loras: None,
                controls: Vec::new(),
            })
            .collect()
    }

    /// Final latents in VAE units, `[batch, 4, h, w]`.
    fn sample(&self, requests: &[ImageRequest]) -> Tensor {
        let mut samples = self.pipeline.prepare(requests).unwrap();
        self.pipeline.denoise(&mut samples, 16, &mut |_| ()).unwrap();
        self.vae_units(&samples)
    }

    fn vae_units(&self, samples: &[Sample]) -> Tensor {
        let latents: Vec<_> = samples.iter().map(|s| s.latent().unwrap()).collect();
        self.pipeline.to_vae_units(&Tensor::stack(&latents, 0).unwrap()).unwrap()
    }
}

fn norm(x: &Tensor) -> f64 {
    let sum = x.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap();
    sum.to_scalar::<f64>().unwrap().sqrt()
}

fn relative_error(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    norm(&(ours - theirs).unwrap()) / norm(theirs)
}

#[test]
fn prompt_embeddings_equal_comfyuis_for_plain_weighted_long_and_empty_prompts() {
    let golden = golden();
    let mut checked = 0;
    for case in golden.cases.iter().filter(|c| golden.recorded.contains_key(&format!("{}.pos", c.name))) {
        let mut request = golden.requests(case).remove(0);
        request.cfg = 7.5; // at 1 the negative prompt would be skipped
        let (positive, negative) = golden.pipeline.encode(&[request]).unwrap().remove(0);
        for (side, conditioning) in [("pos", positive), ("neg", negative.unwrap())] {
            let context = golden.recorded(&format!("{}.{side}", case.name));
            let pooled = golden.recorded(&format!("{}.{side}_pooled", case.name));
            let context_error = relative_error(&conditioning.context, context);
            let pooled_error = relative_error(&conditioning.pooled.unwrap(), pooled);
            println!("{:24} {side} context {context_error:.1e} pooled {pooled_error:.1e}", case.name);
            assert!(context_error <= TEXT_TOLERANCE, "{} {side}: {context_error}", case.name);
            assert!(pooled_error <= TEXT_TOLERANCE, "{} {side}: {pooled_error}", case.name);
            checked += 1;
        }
    }
    assert!(checked >= 16, "only {checked} prompts were recorded");
}

#[test]
fn final_latents_equal_comfyuis_for_every_recorded_workflow_sampler_and_scheduler() {
    let golden = golden();
    let mut failed = Vec::new();
    let mut checked = 0;
    for case in &golden.cases {
        // A sampler that Darkroom does not have yet is refused by name; those it lists must all be right.
        let Ok(_) = SamplerKind::from_str(&case.sampler) else { continue };
        if case.sampler == BATCH_ADAPTIVE {
            continue;
        }
        let ours = golden.sample(&golden.requests(case));
        let error = relative_error(&ours, golden.recorded(&format!("{}.latent", case.name)));
        println!("{:32} {error:.1e}", case.name);
        if error.is_nan() || error > LATENT_TOLERANCE {
            failed.push((case.name.clone(), error));
        }
        checked += 1;
    }
    assert!(failed.is_empty(), "{failed:?}");
    assert!(checked >= 55, "only {checked} workflows were checked");
}

#[test]
fn every_sampler_of_the_plan_has_a_recorded_run() {
    let golden = golden();
    let wanted = "euler euler_ancestral heun dpm_2 dpm_2_ancestral lms dpmpp_2s_ancestral dpmpp_sde dpmpp_2m \
                  dpmpp_2m_sde dpmpp_3m_sde ddpm lcm ddim uni_pc uni_pc_bh2 euler_cfg_pp \
                  euler_ancestral_cfg_pp dpmpp_2m_cfg_pp";
    for name in wanted.split_whitespace() {
        SamplerKind::from_str(name).unwrap();
        assert!(golden.cases.iter().any(|case| case.sampler == name), "{name} was never recorded");
    }
}

#[test]
fn decoded_pictures_equal_comfyuis_pngs() {
    let golden = golden();
    for name in
        ["a1_txt2img", "a2_long_weighted", "a6_cfg1", "c1_img2img", "c2_inpaint_encode", "c3_noise_mask"]
    {
        let mut samples = golden.pipeline.prepare(&golden.requests(golden.case(name))).unwrap();
        golden.pipeline.denoise(&mut samples, 4, &mut |_| ()).unwrap();
        let latents: Vec<_> = samples.iter().map(|s| s.latent().unwrap()).collect();
        let ours: Vec<u8> =
            golden.pipeline.decode(&latents).unwrap().iter().flat_map(Picture::to_rgb8).collect();
        let theirs: Vec<u8> =
            golden.recorded(&format!("{name}.pictures")).flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(ours.len(), theirs.len());
        let far = ours.iter().zip(&theirs).filter(|(a, b)| a.abs_diff(**b) > 2).count();
        let share = far as f64 / ours.len() as f64;
        println!("{name:20} {far} of {} values more than 2 levels off", ours.len());
        assert!(share <= 1e-3, "{name}: {share}");
    }
}

#[test]
fn a_picture_encodes_to_comfyuis_latent() {
    let golden = golden();
    for name in ["c1_img2img", "c2_inpaint_encode", "c3_noise_mask"] {
        let mut request = golden.requests(golden.case(name)).remove(0);
        request.denoise = 0.0; // nothing is sampled: the source comes back as it was encoded
        let ours = golden.sample(&[request]);
        let error = relative_error(&ours, golden.recorded(&format!("{name}.encoded")));
        println!("{name:20} {error:.1e}");
        assert!(error <= ENCODER_TOLERANCE, "{name}: {error}");
    }
}

/// Eight samples that share nothing but the latent shape.
fn mixed_requests(golden: &Golden) -> Vec<ImageRequest> {
    let base = golden.requests(golden.case("euler--normal")).remove(0);
    let long = golden.case("a2_long_weighted").prompt.clone();
    let mix = [
        ("a red cube", SamplerKind::Euler, Scheduler::Normal, 6, 7.5),
        (long.as_str(), SamplerKind::EulerAncestral, Scheduler::Karras, 9, 4.0),
        ("", SamplerKind::Dpmpp2m, Scheduler::Karras, 4, 1.0),
        ("(blue:1.4) sky", SamplerKind::DpmppSde, Scheduler::SgmUniform, 5, 6.0),
        ("a cat", SamplerKind::Heun, Scheduler::Exponential, 3, 2.0),
        ("a cat", SamplerKind::UniPc, Scheduler::Simple, 7, 9.0),
        ("a photo", SamplerKind::Dpmpp2mSde, Scheduler::Beta, 8, 5.0),
        ("a photo", SamplerKind::Lcm, Scheduler::DdimUniform, 2, 1.0),
    ];
    mix.iter()
        .zip(100..)
        .map(|((prompt, sampler, scheduler, steps, cfg), seed)| ImageRequest {
            prompt: (*prompt).to_owned(),
            sampler: *sampler,
            scheduler: *scheduler,
            steps: *steps,
            cfg: *cfg,
            seed,
            position: BatchPosition::ALONE,
            ..base.clone()
        })
        .collect()
}

#[test]
fn a_mixed_batch_of_eight_equals_the_eight_alone() {
    let golden = golden();
    let requests = mixed_requests(golden);
    let together = golden.sample(&requests);
    for (i, request) in requests.iter().enumerate() {
        let alone = golden.sample(std::slice::from_ref(request)).get(0).unwrap();
        let error = relative_error(&together.get(i).unwrap(), &alone);
        println!("{i} {:20} {error:.1e}", request.sampler.to_string());
        assert!(error <= BATCH_TOLERANCE, "sample {i} ({}): {error}", request.sampler);
    }
}

#[test]
fn samples_that_wait_for_a_place_come_out_the_same() {
    let golden = golden();
    let requests = mixed_requests(golden);
    let together = golden.sample(&requests);
    let mut samples = golden.pipeline.prepare(&requests).unwrap();
    let mut largest = 0;
    golden.pipeline.denoise(&mut samples, 3, &mut |step| largest = largest.max(step.advanced.len())).unwrap();
    assert_eq!(largest, 3);
    let error = relative_error(&golden.vae_units(&samples), &together);
    assert!(error <= BATCH_TOLERANCE, "{error}");
}

#[test]
fn bf16_stays_close_to_full_precision_and_batches_alike() {
    let golden = golden();
    let checkpoint = Checkpoint::open(&folder().join("sdxl-tiny.safetensors"), &Device::Cpu).unwrap();
    let reduced = Pipeline::load_at(&checkpoint, &Device::Cpu, Precision::Bf16).unwrap();
    let draw = |pipeline: &Pipeline, requests: &[ImageRequest]| {
        let mut samples = pipeline.prepare(requests).unwrap();
        pipeline.denoise(&mut samples, 16, &mut |_| ()).unwrap();
        golden.vae_units(&samples)
    };
    let requests = golden.requests(golden.case("euler--normal"));
    let together = draw(&reduced, &requests);
    let error = relative_error(&together, &draw(&golden.pipeline, &requests));
    println!("bf16 against full {error:.1e}");
    // On a CPU that does not accelerate bf16 both are the same computation.
    assert_eq!(error == 0.0, !bf16_is_accelerated());
    assert!(error <= BF16_TOLERANCE, "{error}");
    // Enough samples that small matrices grow past any size at which a kernel could change its ways.
    let many = [mixed_requests(golden), mixed_requests(golden)].concat();
    let together = draw(&reduced, &many);
    for (i, request) in many.iter().take(4).enumerate() {
        let alone = draw(&reduced, std::slice::from_ref(request)).get(0).unwrap();
        let error = relative_error(&together.get(i).unwrap(), &alone);
        assert!(error <= BATCH_TOLERANCE, "sample {i}: {error}");
    }
}
