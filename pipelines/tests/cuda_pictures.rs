//! Pictures drawn on a CUDA card, held against the CPU's: with the feature `cuda` only, and a card or the emulator
//! (`scripts/cuda/test`).

#![cfg(feature = "cuda")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails"
)]

#[path = "support/card.rs"]
mod card;
#[path = "support/guided.rs"]
mod guided;

use std::sync::Arc;

use candle_core::Device;
use card::card;
use darkroom_models::checkpoint::Checkpoint;
use darkroom_models::lora::LoraFile;
use darkroom_models::weights::WeightFile;
use darkroom_models::{ComputeType, Precision};
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::Scheduler;
use darkroom_pipelines::{ImageRequest, LoadOptions, Picture, Pipeline, Sample, Source, StackedLora};
use guided::{asset, psnr};

/// A 16-bit picture is at least so close to the CPU's `f32` one, decibels.
const CLOSE: f64 = 40.0;
/// The same with 8-bit products.
const NEAR: f64 = 22.0;
/// The same in `f32`.
const VERY_CLOSE: f64 = 70.0;

fn pipeline(device: &Device, compute_type: ComputeType) -> Pipeline {
    let file = asset("tiny-sdxl.safetensors");
    Pipeline::load_at(&Checkpoint::open(&file, device).unwrap(), device, compute_type).unwrap()
}

fn request(seed: u64, width: usize, height: usize) -> ImageRequest {
    ImageRequest {
        prompt: "1girl, blonde hair, blue eyes, smile".into(),
        negative_prompt: "black hair".into(),
        steps: 4,
        cfg: 4.0,
        sampler: SamplerKind::Euler,
        scheduler: Scheduler::Normal,
        seed,
        position: BatchPosition::ALONE,
        denoise: 1.0,
        clip_skip: None,
        source: Source::Empty { width, height },
        loras: None,
        controls: Vec::new(),
        speed: darkroom_pipelines::Speed::default(),
        shift: None,
    }
}

fn draw(pipeline: &Pipeline, requests: &[ImageRequest], max_batch: usize) -> Vec<Picture> {
    let mut samples = pipeline.prepare(requests).unwrap();
    pipeline.denoise(&mut samples, max_batch, &mut |_| ()).unwrap();
    let latents: Vec<_> = samples.iter().filter_map(Sample::latent).collect();
    pipeline.decode(&latents).unwrap()
}

#[test]
fn pictures_equal_the_cpus_in_every_type() {
    let requests = [request(1, 64, 64), request(2, 64, 64)];
    let expected = draw(&pipeline(&Device::Cpu, ComputeType::Full), &requests, 2);
    for (compute_type, close) in [
        (ComputeType::Full, VERY_CLOSE),
        (ComputeType::F16, CLOSE),
        (ComputeType::Bf16, CLOSE),
        (ComputeType::Auto, CLOSE),
        (ComputeType::Fp8, NEAR),
    ] {
        let drawn = draw(&pipeline(card(), compute_type), &requests, 2);
        for (drawn, expected) in drawn.iter().zip(&expected) {
            let psnr = psnr(drawn, expected);
            println!("{compute_type:?}: {psnr:.1} dB");
            assert!(psnr >= close, "{compute_type:?}: {psnr:.1} dB");
        }
    }
}

#[test]
fn text_encoders_stay_with_the_host_where_the_card_has_no_room() {
    let file = asset("tiny-sdxl.safetensors");
    let load = |budget| {
        let options = LoadOptions { compute_type: ComputeType::Full, budget };
        Pipeline::load_at(&Checkpoint::open(&file, card()).unwrap(), card(), options).unwrap()
    };
    let (roomy, tight) = (load(Some(2 << 30)), load(Some(1 << 30)));
    assert!(tight.weight_bytes() < roomy.weight_bytes());
    let lora = asset("lora-tinychan.safetensors");
    let drawn = [&roomy, &tight].map(|pipeline| {
        let file = LoraFile::open(Arc::new(WeightFile::open(&lora).unwrap())).unwrap();
        let lora = Arc::new(pipeline.bind_lora(&file).unwrap());
        let stacked = StackedLora { name: "tinychan".into(), lora, strength: 1.0, text_strength: 1.0 };
        let loras = Some(Arc::new(pipeline.lora_set(vec![stacked]).unwrap()));
        draw(pipeline, &[ImageRequest { loras, ..request(7, 64, 64) }], 1).remove(0)
    });
    let psnr = psnr(&drawn[1], &drawn[0]);
    assert!(psnr >= VERY_CLOSE, "{psnr:.1} dB");
}

#[test]
fn a_picture_does_not_depend_on_its_batch_mates() {
    let pipeline = pipeline(card(), ComputeType::Bf16);
    let mut requests = vec![request(1, 64, 64), request(2, 64, 64), request(3, 64, 64)];
    requests[1].steps = 3;
    requests[2].sampler = SamplerKind::Dpmpp2m;
    requests[2].prompt = "1boy, angry".into();
    let together = draw(&pipeline, &requests, 3);
    for (request, together) in requests.iter().zip(&together) {
        let alone = draw(&pipeline, std::slice::from_ref(request), 1);
        let psnr = psnr(&alone[0], together);
        println!("{psnr:.1} dB");
        assert!(psnr >= CLOSE, "{psnr:.1} dB");
    }
}

#[test]
fn odd_sizes_and_pictures_that_begin_from_others_are_drawn() {
    let (cpu, gpu) = (pipeline(&Device::Cpu, Precision::Full.into()), pipeline(card(), ComputeType::Full));
    let start = draw(&cpu, &[request(5, 72, 56)], 1).remove(0);
    let again = ImageRequest { denoise: 0.5, source: Source::Image(Arc::new(start)), ..request(6, 72, 56) };
    let (expected, drawn) = (draw(&cpu, std::slice::from_ref(&again), 1), draw(&gpu, &[again], 1));
    let psnr = psnr(&expected[0], &drawn[0]);
    assert!(psnr >= VERY_CLOSE, "{psnr:.1} dB");
}
