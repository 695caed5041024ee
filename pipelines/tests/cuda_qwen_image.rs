//! Qwen-Image on a CUDA card, held against the CPU's: with the feature `cuda` only, and a card or the emulator
//! (`scripts/cuda/test`).

#![cfg(feature = "cuda")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; it says what it saw"
)]

#[path = "support/card.rs"]
mod card;
#[path = "support/guided.rs"]
mod guided;
#[path = "support/qwen_image.rs"]
mod qwen_image;

use std::sync::{Arc, LazyLock};

use candle_core::{Device, Tensor};
use card::card;
use darkroom_models::checkpoint::QwenImageParts;
use darkroom_models::vae::Tiling;
use darkroom_models::{ComputeType, Computed};
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::{
    FlowShift, ImageRequest, InpaintMode, LoadOptions, Mask, MemoryPlan, Picture, Pipeline, Placement,
    Rounding, Source,
};
use guided::psnr;
use qwen_image::{
    distance, draw, draw_with, files, folder, golden_requests, lightning_set, prompts, request,
};

/// Latents in `f32` against the CPU's: largest difference over largest value; 1e-6 was seen.
const TOLERANCE: f64 = 1e-4;
/// The same of pictures, decibels; 130 was seen.
const VERY_CLOSE: f64 = 100.0;
/// A picture in 16 bits is at least so close to the CPU's `f32` one, decibels; 45 was seen with guidance, 49 without.
const CLOSE: f64 = 40.0;
/// The same with weights or products of 8 bits; 35 was seen with guidance, 37 with a LoRA.
const NEAR: f64 = 30.0;
/// Pictures of two seeds are no closer.
const APART: f64 = 25.0;

static CPU: LazyLock<Pipeline> = LazyLock::new(|| load(&folder(&Device::Cpu), ComputeType::Full));
static CARD: LazyLock<Pipeline> = LazyLock::new(|| load(&folder(card()), ComputeType::Full));

fn load(parts: &QwenImageParts, compute_type: ComputeType) -> Pipeline {
    let device = parts.transformer.as_ref().unwrap().weights.device();
    Pipeline::load_qwen_image(parts, device, compute_type).unwrap()
}

/// A part is read from its file each time.
fn streamed(parts: &QwenImageParts, compute_type: ComputeType) -> Pipeline {
    let whole = MemoryPlan::of(parts, card(), &compute_type.into());
    let stays = whole.vae.bytes
        + [whole.text_encoder, whole.transformer].iter().map(|part| part.bytes - part.blocks).sum::<u64>();
    let options = LoadOptions { compute_type, budget: Some(stays + 4096) };
    let plan = MemoryPlan::of(parts, card(), &options);
    assert_eq!(
        (plan.text_encoder.placement, plan.transformer.placement),
        (Placement::Streamed, Placement::Streamed)
    );
    let pipeline = Pipeline::load_qwen_image(parts, card(), options).unwrap();
    assert_eq!(pipeline.weight_bytes(), stays);
    pipeline
}

fn picture(pipeline: &Pipeline, latent: &Tensor) -> Picture {
    pipeline.decode(&[latent]).unwrap().remove(0)
}

/// Without guidance, which makes much of what is rounded; in eight steps.
fn calm(seed: u64) -> ImageRequest {
    ImageRequest { steps: 8, ..request(&prompts().0[0], (64, 64), seed) }
}

fn assert_near(what: &str, ours: &Tensor, theirs: &Tensor) {
    let distance = distance(ours, theirs);
    println!("{what}: {distance:.1e}");
    assert!(distance <= TOLERANCE, "{what}: {distance:e}");
}

fn assert_close(what: &str, ours: &Picture, theirs: &Picture, least: f64) {
    let psnr = psnr(ours, theirs);
    println!("{what}: {psnr:.1} dB");
    assert!(psnr >= least, "{what}: {psnr:.1} dB");
}

#[test]
fn pictures_in_full_precision_are_the_cpus_with_and_without_guidance() {
    for (index, request) in golden_requests().iter().enumerate() {
        let (ours, theirs) = (draw(&CARD, request), draw(&CPU, request));
        assert_near(&format!("latent {index}"), &ours, &theirs);
        let (ours, theirs) = (picture(&CARD, &ours), picture(&CPU, &theirs));
        assert_close(&format!("picture {index}"), &ours, &theirs, VERY_CLOSE);
    }
}

#[test]
fn pictures_in_sixteen_bits_are_close_to_the_cpus() {
    let seeds = [1, 2].map(|seed| picture(&CPU, &draw(&CPU, &calm(seed))));
    let apart = psnr(&seeds[0], &seeds[1]);
    println!("two seeds: {apart:.1} dB");
    assert!(apart < APART, "{apart:.1} dB");
    for compute_type in [ComputeType::Auto, ComputeType::Bf16, ComputeType::F16] {
        let pipeline = load(&folder(card()), compute_type);
        // Beyond the range of f16.
        assert_eq!(pipeline.computed(), Computed::Bf16);
        for (index, request) in golden_requests().iter().chain([&calm(1)]).enumerate() {
            let (ours, theirs) = (draw(&pipeline, request), draw(&CPU, request));
            let what = format!("{compute_type:?} {index}, latent {:.1e}", distance(&ours, &theirs));
            assert_close(&what, &picture(&pipeline, &ours), &picture(&CPU, &theirs), CLOSE);
        }
    }
}

#[test]
fn weights_of_eight_bits_are_widened_exactly() {
    let cpu = load(&files(&Device::Cpu, true), ComputeType::Full);
    let request = &golden_requests()[1];
    let expected = draw(&cpu, request);
    let full = load(&files(card(), true), ComputeType::Full);
    assert_near("eight bits", &draw(&full, request), &expected);
    // Held as they are.
    let plain = load(&files(card(), false), ComputeType::Full);
    assert!(full.weight_bytes() < plain.weight_bytes());

    let rounded = load(&files(card(), true), ComputeType::Auto);
    assert_eq!(rounded.computed(), Computed::Bf16);
    let ours = picture(&rounded, &draw(&rounded, request));
    assert_close("eight bits in bf16", &ours, &picture(&cpu, &expected), CLOSE);
}

#[test]
fn products_of_eight_bits_are_near_the_exact_ones_and_the_cpus_imitation() {
    for (what, eight_bits) in [("codes of the file", true), ("rounded here", false)] {
        let exact = load(&files(&Device::Cpu, eight_bits), ComputeType::Full);
        let imitated = load(&files(&Device::Cpu, eight_bits), ComputeType::Fp8);
        let pipeline = load(&files(card(), eight_bits), ComputeType::Fp8);
        assert_eq!(pipeline.computed(), Computed::Fp8);
        for request in [&calm(1), &golden_requests()[2]] {
            let ours = picture(&pipeline, &draw(&pipeline, request));
            let theirs = [&imitated, &exact].map(|cpu| picture(cpu, &draw(cpu, request)));
            assert_close(&format!("{what}, imitated"), &ours, &theirs[0], NEAR);
            assert_close(&format!("{what}, exact"), &ours, &theirs[1], NEAR);
            assert!(psnr(&ours, &theirs[1]) < 60.0, "nothing was rounded");
        }
    }
}

#[test]
fn a_lora_is_the_cpus_beside_the_weights_and_in_them() {
    let plain = calm(20);
    let expected = draw(&CPU, &ImageRequest { loras: Some(lightning_set(&CPU, 0.75)), ..plain.clone() });
    let set = lightning_set(&CARD, 0.75);
    let with = ImageRequest { loras: Some(set.clone()), ..plain.clone() };
    assert_near("adapter", &draw(&CARD, &with), &expected);
    let merged = CARD.with_merged(&set, Rounding::None).unwrap();
    assert_near("merged", &draw(&merged, &with), &expected);
    // In company with one that has none.
    let together = draw_with(&CARD, &[plain.clone(), with], 2);
    assert_near("beside none", &together[1], &expected);
    assert_near("none", &together[0], &draw(&CPU, &plain));
    assert!(distance(&together[0], &together[1]) > 1e-2, "the LoRA changes nothing");

    let expected = picture(&CPU, &expected);
    for (eight_bits, compute_type, least) in [
        (false, ComputeType::Bf16, CLOSE),
        (true, ComputeType::Auto, NEAR),
        (false, ComputeType::Fp8, NEAR),
        (true, ComputeType::Fp8, NEAR),
    ] {
        let pipeline = load(&files(card(), eight_bits), compute_type);
        let loras = Some(lightning_set(&pipeline, 0.75));
        let ours = picture(&pipeline, &draw(&pipeline, &ImageRequest { loras, ..plain.clone() }));
        assert_close(&format!("{compute_type:?}, 8 bits: {eight_bits}"), &ours, &expected, least);
    }
}

#[test]
fn a_picture_in_company_is_the_picture_alone() {
    let lengths = ["", "a cat", "a photo of the old town in the evening light, with a long text to read"];
    let requests: Vec<ImageRequest> = (0..3)
        .map(|i| ImageRequest {
            cfg: if i == 1 { 3.0 } else { 1.0 },
            negative_prompt: "a long list of what is not wanted, of another length".into(),
            steps: 3 + i,
            shift: if i == 2 { None } else { Some(FlowShift::Dynamic) },
            sampler: if i == 0 { SamplerKind::DpmppSde } else { SamplerKind::Euler },
            ..request(lengths[i], (64, 64), i as u64)
        })
        .collect();
    let together = draw_with(&CARD, &requests, 8);
    for (index, (request, together)) in requests.iter().zip(&together).enumerate() {
        assert_near(&format!("{index} against alone"), together, &draw(&CARD, request));
        assert_near(&format!("{index} against the CPU's"), together, &draw(&CPU, request));
    }
    let pipeline = load(&folder(card()), ComputeType::Bf16);
    let together = draw_with(&pipeline, &requests, 8);
    for (index, (request, together)) in requests.iter().zip(&together).enumerate() {
        let alone = picture(&pipeline, &draw(&pipeline, request));
        assert_close(&format!("{index} in bf16"), &picture(&pipeline, together), &alone, CLOSE);
    }
}

#[test]
fn streamed_blocks_draw_what_held_ones_draw_to_the_bit() {
    let request = &golden_requests()[1];
    let folder = || folder(card());
    let files = |eight_bits| files(card(), eight_bits);
    type Open<'a> = &'a dyn Fn() -> QwenImageParts;
    for (what, parts, compute_type) in [
        ("full", &folder as Open<'_>, ComputeType::Full),
        ("bf16", &folder, ComputeType::Bf16),
        ("eight bits, widened", &|| files(true), ComputeType::Auto),
        ("eight bits, multiplied", &|| files(true), ComputeType::Fp8),
        ("rounded to eight bits", &|| files(false), ComputeType::Fp8),
    ] {
        let held = draw(&load(&parts(), compute_type), request);
        let streamed = draw(&streamed(&parts(), compute_type), request);
        assert_eq!(distance(&streamed, &held), 0.0, "{what}");
    }
}

#[test]
fn long_prompts_are_encoded_as_on_the_cpu() {
    let words = ["a", "cat", "on", "the", "old", "roof", "of", "a", "house", "in", "town"];
    let long = words.iter().cycle().take(300).copied().collect::<Vec<_>>().join(" ");
    let requests = [request(&long, (64, 64), 1), request("a cat", (64, 64), 1)];
    for (what, eight_bits) in [("16 bits", false), ("8 bits", true)] {
        let [ours, theirs] = [card(), &Device::Cpu].map(|device| {
            let pipeline = load(&files(device, eight_bits), ComputeType::Auto);
            let encoded = pipeline.encode(&requests).unwrap();
            encoded.into_iter().map(|(positive, _)| positive.context).collect::<Vec<_>>()
        });
        assert!(theirs[0].dim(0).unwrap() > 300);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!(ours.device().is_cuda());
            assert_near(&format!("{what}, {} tokens", theirs.dim(0).unwrap()), ours, theirs);
        }
    }
    assert_near("latent", &draw(&CARD, &requests[0]), &draw(&CPU, &requests[0]));
}

#[test]
fn tiles_and_pictures_that_begin_from_others_are_the_cpus() {
    let start = draw(&CPU, &ImageRequest { steps: 2, ..request("a cat", (104, 72), 4) });
    let start = Arc::new(picture(&CPU, &start));
    let tiling = Some(Tiling::Tiles { tile: 6, overlap: 2 });
    for tiling in [None, tiling] {
        let encoded = [&*CARD, &*CPU].map(|pipeline| pipeline.encode_latent(&start, tiling).unwrap());
        assert_near(&format!("encoded, {tiling:?}"), &encoded[0], &encoded[1]);
        let decoded = [&*CARD, &*CPU].map(|pipeline| {
            let latent = encoded[1].to_device(pipeline.device()).unwrap();
            pipeline.decode_latent(&latent, tiling).unwrap()
        });
        assert_close(&format!("decoded, {tiling:?}"), &decoded[0], &decoded[1], VERY_CLOSE);
    }
    // Sides of odd numbers of cells.
    let source = Source::Image(start.clone());
    let again = ImageRequest { denoise: 0.6, steps: 6, source, ..request("a cat", (104, 72), 5) };
    let expected = draw(&CPU, &again);
    assert_near("redrawn", &draw(&CARD, &again), &expected);
    let pipeline = load(&folder(card()), ComputeType::Auto);
    let ours = picture(&pipeline, &draw(&pipeline, &again));
    assert_close("redrawn in bf16", &ours, &picture(&CPU, &expected), CLOSE);
}

#[test]
fn a_masked_part_is_repainted_as_on_the_cpu() {
    let value = |i: usize| (i % 97) as f32 / 96.0;
    let picture = Arc::new(Picture::new(64, 64, (0..64 * 64 * 3).map(value).collect()).unwrap());
    let left = |i: usize| if i % 64 < 32 { 1.0 } else { 0.0 };
    let mask = Arc::new(Mask::new(64, 64, (0..64 * 64).map(left).collect()).unwrap());
    let source = Source::Inpaint { picture, mask, mode: InpaintMode::NoiseMask };
    let request = ImageRequest { source, shift: None, cfg: 2.0, ..request("a cat", (64, 64), 5) };
    assert_near("repainted", &draw(&CARD, &request), &draw(&CPU, &request));
}
