//! Qwen-Image as a whole: what diffusers' pipelines draw with the same small networks, in every layout, and what holds
//! for any model (batched equals alone, streamed equals held).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "support/qwen_image.rs"]
mod support;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use candle_core::{Device, Tensor};
use darkroom_models::ComputeType;
use darkroom_models::checkpoint::QwenImageParts;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::Scheduler;
use darkroom_pipelines::{
    FlowShift, ImageRequest, LatentPreview, LoadOptions, MemoryPlan, Picture, Pipeline, PipelineError,
    Placement, Sample, Source, Speed, StepCache,
};
use support::{
    distance, draw, draw_with, files, folder, golden, golden_requests, lightning_set, prompts, request,
};

/// Largest difference to what diffusers drew, as a share of the largest value: four steps of `f32` on either side.
const TOLERANCE: f64 = 1e-4;

static CASES: LazyLock<HashMap<String, Tensor>> =
    LazyLock::new(|| candle_core::safetensors::load(golden("cases.safetensors"), &Device::Cpu).unwrap());

fn case(name: &str) -> Tensor {
    CASES.get(name).unwrap_or_else(|| panic!("no case {name}")).clone()
}

fn load(parts: &QwenImageParts) -> Pipeline {
    Pipeline::load_qwen_image(parts, &Device::Cpu, ComputeType::Full).unwrap()
}

static PIPELINE: LazyLock<Pipeline> = LazyLock::new(|| load(&folder(&Device::Cpu)));

fn assert_near(what: &str, ours: &Tensor, theirs: &Tensor) {
    let distance = distance(ours, theirs);
    assert!(distance <= TOLERANCE, "{what}: {distance:e}");
}

/// `[3, height, width]`, -1 to 1.
fn picture_tensor(picture: &Picture) -> Tensor {
    let size = (picture.height(), picture.width(), 3);
    let pixels = Tensor::from_slice(picture.data(), size, &Device::Cpu).unwrap();
    pixels.permute((2, 0, 1)).unwrap().affine(2.0, -1.0).unwrap().contiguous().unwrap()
}

#[test]
fn pictures_are_those_of_diffusers_with_and_without_guidance() {
    for (index, request) in golden_requests().iter().enumerate() {
        let latent = draw(&PIPELINE, request);
        assert_near(&format!("latent {index}"), &latent, &case(&format!("{index}.latent")));
        let picture = PIPELINE.decode(&[&latent]).unwrap().remove(0);
        assert_near(
            &format!("picture {index}"),
            &picture_tensor(&picture),
            &case(&format!("{index}.picture")),
        );
    }
}

#[test]
fn prompts_are_encoded_as_diffusers_does() {
    let requests = golden_requests();
    for (index, (positive, _)) in PIPELINE.encode(&requests).unwrap().into_iter().enumerate() {
        assert!(positive.pooled.is_none());
        assert_near(&format!("context {index}"), &positive.context, &case(&format!("{index}.context")));
    }
}

#[test]
fn comfyuis_three_files_are_the_same_model() {
    let pipeline = load(&files(&Device::Cpu, false));
    for (index, request) in golden_requests().iter().enumerate() {
        let latent = draw(&pipeline, request);
        assert_near(&format!("latent {index}"), &latent, &case(&format!("{index}.latent")));
    }
}

#[test]
fn weights_of_eight_bits_draw_what_their_widened_numbers_draw() {
    let pipeline = load(&files(&Device::Cpu, true));
    let request = &golden_requests()[0];
    let latent = draw(&pipeline, request);
    assert_near("eight bits", &latent, &case("eight_bits.latent"));
    assert!(distance(&latent, &case("0.latent")) > 1e-3, "nothing was rounded");
    // They are held as they are: about half of what the others take.
    let (eight, sixteen) =
        (pipeline.weight_bytes() as f64, load(&files(&Device::Cpu, false)).weight_bytes() as f64);
    let vae = std::fs::metadata(golden("models/vae/tiny_qwen_image_vae.safetensors")).unwrap().len() as f64;
    assert!((eight - vae) < 0.75 * (sixteen - vae), "{eight} {sixteen} {vae}");
}

#[test]
fn a_picture_is_redrawn_as_diffusers_does() {
    let source = case("source").permute((1, 2, 0)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let picture = Arc::new(Picture::new(64, 64, source).unwrap());
    let encoded = PIPELINE.encode_latent(&picture, None).unwrap();
    assert_near("encoded", &encoded, &case("source.encoded"));
    let (prompts, _) = prompts();
    let request = ImageRequest {
        steps: 10,
        denoise: 0.6,
        source: Source::Image(picture),
        ..request(&prompts[0], (64, 64), 30)
    };
    assert_near("img2img", &draw(&PIPELINE, &request), &case("img2img.latent"));
}

#[test]
fn a_lora_for_few_steps_draws_with_the_fixed_shift_as_diffusers_does() {
    let (prompts, _) = prompts();
    let plain = ImageRequest { shift: None, ..request(&prompts[0], (64, 64), 20) };
    for (what, parts) in [("folder", folder(&Device::Cpu)), ("files", files(&Device::Cpu, false))] {
        let pipeline = load(&parts);
        let set = lightning_set(&pipeline, 0.75);
        let request = ImageRequest { loras: Some(set.clone()), ..plain.clone() };
        let latent = draw(&pipeline, &request);
        assert_near(&format!("{what}, adapter"), &latent, &case("lightning.latent"));
        let picture = pipeline.decode(&[&latent]).unwrap().remove(0);
        assert_near(&format!("{what}, picture"), &picture_tensor(&picture), &case("lightning.picture"));
        assert!(pipeline.can_merge());
        let merged = pipeline.with_merged(&set, darkroom_pipelines::Rounding::None).unwrap();
        assert_near(&format!("{what}, merged"), &draw(&merged, &request), &case("lightning.latent"));
    }
    assert!(distance(&draw(&PIPELINE, &plain), &case("lightning.latent")) > 1e-2, "the LoRA changes nothing");
}

#[test]
fn a_lora_on_weights_of_eight_bits_or_streamed_ones_is_the_one_on_held_ones() {
    let drawn = |pipeline: &Pipeline| {
        assert!(!pipeline.can_merge());
        let set = lightning_set(pipeline, 1.0);
        let request = request("a cat", (64, 64), 3);
        let without = draw(pipeline, &request);
        let with = draw(pipeline, &ImageRequest { loras: Some(set), ..request });
        assert!(distance(&with, &without) > 1e-2, "the LoRA changes nothing");
        with
    };
    let held = drawn(&load(&files(&Device::Cpu, true)));
    let streamed = drawn(&streamed(&files(&Device::Cpu, true)));
    assert_eq!(distance(&streamed, &held), 0.0);
}

/// All blocks read from the files each time.
fn streamed(parts: &QwenImageParts) -> Pipeline {
    let whole = MemoryPlan::of(parts, &Device::Cpu, &LoadOptions::default());
    let stays = whole.vae.bytes
        + [whole.text_encoder, whole.transformer].iter().map(|part| part.bytes - part.blocks).sum::<u64>();
    let options = LoadOptions { compute_type: ComputeType::Full, budget: Some(stays + 4096) };
    let plan = MemoryPlan::of(parts, &Device::Cpu, &options);
    assert_eq!(
        (plan.text_encoder.placement, plan.transformer.placement),
        (Placement::Streamed, Placement::Streamed)
    );
    let pipeline = Pipeline::load_qwen_image(parts, &Device::Cpu, options).unwrap();
    assert_eq!(pipeline.weight_bytes(), stays);
    pipeline
}

#[test]
fn a_model_that_does_not_fit_is_streamed_and_draws_the_same_to_the_bit() {
    let request = &golden_requests()[1];
    assert_eq!(distance(&draw(&streamed(&folder(&Device::Cpu)), request), &draw(&PIPELINE, request)), 0.0);
}

#[test]
fn what_does_not_fit_even_when_streamed_is_refused_with_its_size() {
    let options = LoadOptions { compute_type: ComputeType::Full, budget: Some(1000) };
    match Pipeline::load_qwen_image(&folder(&Device::Cpu), &Device::Cpu, options) {
        Err(PipelineError::TooLarge { budget: 1000, bytes, .. }) => assert!(bytes > 1000),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn the_text_encoder_is_streamed_before_the_transformer() {
    let parts = folder(&Device::Cpu);
    let whole = MemoryPlan::of(&parts, &Device::Cpu, &LoadOptions::default());
    let working = whole.step_bytes.max(whole.decode_bytes);
    assert_eq!(whole.peak_bytes() - whole.resident_bytes(), working);
    let of = |budget: u64| {
        let options = LoadOptions { budget: Some(budget), ..LoadOptions::default() };
        MemoryPlan::of(&parts, &Device::Cpu, &options)
    };
    // First the decoder gets less.
    let tight = of(whole.resident_bytes() + whole.step_bytes);
    assert_eq!(tight.resident_bytes(), whole.resident_bytes());
    assert!(tight.decode_bytes < whole.decode_bytes);
    let plan = of(whole.resident_bytes() + whole.step_bytes - 1);
    assert_eq!(
        (plan.text_encoder.placement, plan.transformer.placement),
        (Placement::Streamed, Placement::Resident)
    );
    assert!(plan.peak_bytes() < whole.peak_bytes());
}

#[test]
fn a_picture_in_company_is_the_picture_alone() {
    let lengths = ["", "a cat", "a photo of the old town in the evening light, with a long text to read"];
    let guided = |i: usize| if i == 1 { 3.0 } else { 1.0 };
    let requests: Vec<ImageRequest> = (0..3)
        .map(|i| ImageRequest {
            cfg: guided(i),
            steps: 3 + i,
            shift: if i == 2 { None } else { Some(FlowShift::Dynamic) },
            sampler: if i == 0 { SamplerKind::DpmppSde } else { SamplerKind::Euler },
            ..request(lengths[i], (64, 64), i as u64)
        })
        .collect();
    let together = draw_with(&PIPELINE, &requests, 8);
    for (request, together) in requests.iter().zip(together) {
        let distance = distance(&together, &draw(&PIPELINE, request));
        // Sums of other lengths, rounded in another order.
        assert!(distance <= 1e-5, "{distance:e}");
    }
}

#[test]
fn every_sampler_walks_a_flow() {
    for sampler in SamplerKind::ALL {
        for scheduler in [Scheduler::Simple, Scheduler::Beta] {
            let request = ImageRequest {
                sampler: *sampler,
                scheduler,
                shift: None,
                steps: 4,
                ..request("a cat", (32, 32), 1)
            };
            let prepared = PIPELINE.prepare(std::slice::from_ref(&request));
            let mut samples: Vec<Sample> = prepared.unwrap_or_else(|e| panic!("{sampler} {scheduler}: {e}"));
            PIPELINE
                .denoise(&mut samples, 1, &mut |_| {})
                .unwrap_or_else(|e| panic!("{sampler} {scheduler}: {e}"));
            let latent = samples[0].latent().unwrap();
            let most = latent.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(most.is_finite() && most < 1e3, "{sampler} {scheduler}: {most}");
        }
    }
}

#[test]
fn a_masked_part_alone_is_repainted() {
    let source = Arc::new(Picture::new(64, 64, vec![0.5; 64 * 64 * 3]).unwrap());
    let mask = Arc::new(
        darkroom_pipelines::Mask::new(
            64,
            64,
            (0..64 * 64).map(|i| if i % 64 < 32 { 1.0 } else { 0.0 }).collect(),
        )
        .unwrap(),
    );
    let mode = darkroom_pipelines::InpaintMode::NoiseMask;
    let inpaint = Source::Inpaint { picture: source.clone(), mask, mode };
    let request = ImageRequest { source: inpaint, shift: None, ..request("a cat", (64, 64), 5) };
    let latent = PIPELINE.to_vae_units(&draw(&PIPELINE, &request)).unwrap();
    let kept = PIPELINE.encode_latent(&source, None).unwrap();
    let half = |x: &Tensor, start: usize| x.narrow(2, start, 4).unwrap();
    assert!(distance(&half(&latent, 4), &half(&kept, 4)) < 1e-5);
    assert!(distance(&half(&latent, 0), &half(&kept, 0)) > 0.1);
}

#[test]
fn what_the_family_cannot_do_is_refused_by_its_field() {
    let refused = |request: ImageRequest| match PIPELINE.prepare(&[request]) {
        Err(PipelineError::Request { field, .. }) => field,
        other => panic!("{:?}", other.err()),
    };
    let plain = || request("a", (64, 64), 1);
    assert_eq!(refused(ImageRequest { clip_skip: Some(2), ..plain() }), "clip_skip");
    let step_cache = Some(StepCache { cache_interval: 3, cache_branch_id: None });
    let cached = Speed { step_cache, ..Speed::default() };
    assert_eq!(refused(ImageRequest { speed: cached, ..plain() }), "speed.step_cache");
    assert_eq!(refused(ImageRequest { shift: Some(FlowShift::Fixed(-1.0)), ..plain() }), "shift");
    assert_eq!(refused(ImageRequest { shift: Some(FlowShift::Fixed(f64::NAN)), ..plain() }), "shift");
}

#[test]
fn parts_that_are_missing_are_named_where_they_are_needed() {
    let QwenImageParts { transformer, .. } = folder(&Device::Cpu);
    let alone = QwenImageParts {
        vae: None,
        text_encoder: None,
        tokenizer: None,
        transformer,
        ..folder(&Device::Cpu)
    };
    let pipeline = load(&alone);
    let error = pipeline.prepare(&[request("a", (64, 64), 1)]).err().unwrap().to_string();
    assert!(error.contains("Qwen2.5-VL"), "{error}");
    let without_tokenizer = load(&QwenImageParts { tokenizer: None, ..folder(&Device::Cpu) });
    let error = without_tokenizer.prepare(&[request("a", (64, 64), 1)]).err().unwrap().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn a_preview_is_fitted_to_its_own_autoencoder() {
    let preview = LatentPreview::fit(&PIPELINE).unwrap();
    let latent = draw(&PIPELINE, &request("a cat", (64, 96), 1));
    let small = preview.render(&latent).unwrap();
    assert_eq!((small.width(), small.height()), (8, 12));
    assert!(preview.render(&latent.narrow(0, 0, 4).unwrap()).is_err());
}
