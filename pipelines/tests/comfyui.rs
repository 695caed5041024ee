//! Whole pictures against ComfyUI's: recorded runs of ComfyUI 0.3.64 (CPU, float32) with a tiny SDXL-shaped
//! checkpoint. `scripts/golden/comfyui.py` says what is in the files and makes them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

#[path = "support/comfyui.rs"]
mod support;

use std::str::FromStr;
use std::sync::OnceLock;

use candle_core::Device;
use darkroom_models::checkpoint::Checkpoint;
use darkroom_models::{Precision, bf16_is_accelerated};
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::Scheduler;
use darkroom_pipelines::{ImageRequest, Pipeline};
use support::{CHECKPOINT, Golden, LATENT_TOLERANCE, TEXT_TOLERANCE, draw, folder, relative_error};

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

fn golden() -> &'static Golden {
    static GOLDEN: OnceLock<Golden> = OnceLock::new();
    GOLDEN.get_or_init(|| Golden::open("cases.json", &["recorded.safetensors"]))
}

#[test]
fn prompt_embeddings_equal_comfyuis_for_plain_weighted_long_and_empty_prompts() {
    let golden = golden();
    let mut checked = 0;
    for case in golden.cases.iter().filter(|c| golden.recorded.contains_key(&format!("{}.pos", c.name))) {
        golden.assert_prompts(&golden.pipeline, case, golden.requests(case).remove(0), TEXT_TOLERANCE);
        checked += 2;
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
        let pictures = draw(&golden.pipeline, &golden.requests(golden.case(name)));
        golden.assert_pngs(name, &pictures);
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
    let checkpoint = Checkpoint::open(&folder().join(CHECKPOINT), &Device::Cpu).unwrap();
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
