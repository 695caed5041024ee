//! Whole pictures with LoRAs and a ControlNet against ComfyUI's: recorded runs as in `comfyui.rs`, with LoRAs in two
//! families of names, and with a Canny picture through a ControlNet.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and say what they measured"
)]

#[path = "support/comfyui.rs"]
mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};
use darkroom_models::Precision;
use darkroom_models::adapter::Adapters;
use darkroom_models::checkpoint::{Checkpoint, Component};
use darkroom_models::clip::{ClipTextConfig, ClipTextEncoder};
use darkroom_models::controlnet::ControlNet;
use darkroom_models::lora::{Lora, LoraFile, LoraPart, merge};
use darkroom_models::unet::{FreeU, UNet2DConditionModel, UNetInput};
use darkroom_models::weights::WeightFile;
use darkroom_pipelines::noise::{BatchPosition, initial_noise};
use darkroom_pipelines::preprocess::canny::{Canny, CannyMethod};
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::{self, ModelSampling, Prediction, Scheduler};
use darkroom_pipelines::{Control, ImageRequest, LoraSet, Picture, Pipeline, Rounding, Source, StackedLora};
use safetensors::SafeTensors;
use serde::Deserialize;
use support::{
    CHECKPOINT, Case, Golden, LATENT_TOLERANCE, TEXT_TOLERANCE, denoised, draw, folder, relative_error,
    tensors,
};
use tempfile::TempDir;

const LORA_RUNS: [&str; 2] = ["d1_lora", "d3_lora_diffusers"];
const CONTROL_RUN: &str = "e1_controlnet";

/// Decoded pictures before they become 8 bits, ‖ours − theirs‖ / ‖theirs‖.
const PICTURE_TOLERANCE: f64 = 1e-3;
/// Largest difference of a single value of a decoded picture, of 0..1.
const VALUE_TOLERANCE: f64 = 1e-3;
/// The same where ComfyUI's text encoders were rounded and ours were not: half a level.
const ROUNDED_VALUE_TOLERANCE: f64 = 0.5 / 255.0;
/// Prompt embeddings with a LoRA beside the text encoders' weights, against ComfyUI's with it in them: it rounds the
/// sums to the file's `f16`. What those 11 bits cost after three and four layers.
const TEXT_ROUNDING: f64 = 1e-3;
/// Final latents where both round alike.
const UNROUNDED_TOLERANCE: f64 = 5e-5;
/// What a run must differ without its LoRAs or its ControlNet, so that equality says something.
const EFFECT: f64 = 0.1;
/// The pipeline against the same steps by hand: the same sums but for the order of a few.
const SAME_STEPS: f64 = 1e-5;

fn golden() -> &'static Golden {
    static GOLDEN: OnceLock<Golden> = OnceLock::new();
    GOLDEN.get_or_init(|| Golden::open("guided.json", &["recorded.safetensors", "guided.safetensors"]))
}

fn weight_file(name: &str) -> Arc<WeightFile> {
    Arc::new(WeightFile::open(&folder().join(format!("{name}.safetensors"))).unwrap())
}

/// The LoRAs of a run, bound to `pipeline`.
fn lora_set(pipeline: &Pipeline, case: &Case) -> Arc<LoraSet> {
    let stack = case
        .loras
        .iter()
        .map(|wanted| {
            let file = LoraFile::open(weight_file(&wanted.file)).unwrap();
            let lora = pipeline.bind_lora(&file).unwrap();
            assert_eq!(lora.unmatched, Vec::<String>::new());
            StackedLora {
                name: wanted.file.as_str().into(),
                lora: Arc::new(lora),
                strength: wanted.strength,
                text_strength: wanted.text_strength,
            }
        })
        .collect();
    Arc::new(pipeline.lora_set(stack).unwrap())
}

fn with_loras(pipeline: &Pipeline, case: &Case) -> Vec<ImageRequest> {
    let set = lora_set(pipeline, case);
    golden().requests(case).into_iter().map(|r| ImageRequest { loras: Some(set.clone()), ..r }).collect()
}

fn control_net() -> &'static Arc<ControlNet> {
    static NETWORK: OnceLock<Arc<ControlNet>> = OnceLock::new();
    NETWORK.get_or_init(|| {
        let (file, base) = (weight_file("controlnet-tiny"), golden().pipeline.unet_config().unwrap());
        Arc::new(ControlNet::from_file(file, base, &Device::Cpu, Precision::Full).unwrap())
    })
}

/// The edges that steer the ControlNet's run.
fn edges() -> Picture {
    let golden = golden();
    let control = golden.case(CONTROL_RUN).control.as_ref().unwrap();
    let canny = Canny { low: control.low, high: control.high, method: CannyMethod::ComfyUi };
    canny.detect(&golden.input(&control.image).0)
}

fn with_control() -> Vec<ImageRequest> {
    let case = golden().case(CONTROL_RUN);
    let wanted = case.control.as_ref().unwrap();
    let network = control_net().clone();
    let (width, height) = (case.width.unwrap(), case.height.unwrap());
    let hint = Control::embed(&network, &edges(), width, height, &Device::Cpu).unwrap();
    let control = Control { network, hint, strength: wanted.strength, start: wanted.start, end: wanted.end };
    golden()
        .requests(case)
        .into_iter()
        .map(|request| ImageRequest { controls: vec![control.clone()], ..request })
        .collect()
}

/// The checkpoint's file with the UNet's weights widened to `f32`, which hold their sum with a LoRA as ComfyUI's do
/// in these runs.
fn widened() -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        let stored = std::fs::read(folder().join(CHECKPOINT)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&stored).unwrap();
        let tensors: HashMap<String, Tensor> = tensors(CHECKPOINT)
            .into_iter()
            .map(|(name, tensor)| {
                let wide = name.starts_with("model.diffusion_model.");
                let tensor = if wide { tensor.to_dtype(DType::F32).unwrap() } else { tensor };
                (name, tensor)
            })
            .collect();
        let made = tempfile::tempdir().unwrap();
        safetensors::serialize_to_file(&tensors, header.metadata().clone(), &made.path().join(CHECKPOINT))
            .unwrap();
        made
    });
    made.path().join(CHECKPOINT)
}

fn load(checkpoint: &Path) -> Pipeline {
    Pipeline::load(&Checkpoint::open(checkpoint, &Device::Cpu).unwrap(), &Device::Cpu).unwrap()
}

/// A text encoder's weights with a run's LoRAs in them, rounded once to `f16`, the type of the file.
fn merged_text(
    part: &Component<ClipTextConfig>,
    set: &LoraSet,
    of: fn(&Lora) -> &LoraPart,
) -> Component<ClipTextConfig> {
    part.weights.keep();
    ClipTextEncoder::load(&part.config, &part.weights).unwrap();
    let kept = part.weights.kept();
    let stack: Vec<_> = set.stack().iter().map(|lora| (of(&lora.lora), lora.text_strength)).collect();
    let merged = merge(&kept, &stack).unwrap();
    assert!(!merged.is_empty() && merged.values().all(|weight| weight.dtype() == DType::F16));
    Component { config: part.config.clone(), weights: kept.with_replaced(merged) }
}

/// A pipeline whose text encoders are as ComfyUI has them in a run, and the run's requests for it: the LoRAs are in
/// the encoders' weights, not beside them.
fn with_text_as_comfyui_rounds_it(checkpoint: &Path, case: &Case) -> (Pipeline, Vec<ImageRequest>) {
    let bound = lora_set(&golden().pipeline, case);
    let mut checkpoint = Checkpoint::open(checkpoint, &Device::Cpu).unwrap();
    checkpoint.clip_l = merged_text(&checkpoint.clip_l, &bound, |lora| &lora.clip_l);
    checkpoint.clip_g = checkpoint.clip_g.map(|part| merged_text(&part, &bound, |lora| &lora.clip_g));
    let pipeline = Pipeline::load(&checkpoint, &Device::Cpu).unwrap();
    let mut case = case.clone();
    case.loras.iter_mut().for_each(|lora| lora.text_strength = 0.0);
    let requests = with_loras(&pipeline, &case);
    (pipeline, requests)
}

#[test]
fn prompts_read_with_a_lora_are_comfyuis_but_for_its_rounding() {
    let golden = golden();
    for name in LORA_RUNS {
        let case = golden.case(name);
        let request = with_loras(&golden.pipeline, case).remove(0);
        golden.assert_prompts(&golden.pipeline, case, request, TEXT_ROUNDING);
        let (rounded, mut requests) = with_text_as_comfyui_rounds_it(&folder().join(CHECKPOINT), case);
        golden.assert_prompts(&rounded, case, requests.remove(0), TEXT_TOLERANCE);
        let (plain, _) = golden.pipeline.encode(&golden.requests(case)).unwrap().remove(0);
        let effect = relative_error(&plain.context, golden.recorded(&format!("{name}.pos")));
        assert!(effect > EFFECT, "{name}: the LoRA does next to nothing to the text: {effect}");
    }
}

/// How far final latents are from the recorded ones.
fn latent_error(pipeline: &Pipeline, name: &str, requests: &[ImageRequest]) -> f64 {
    let golden = golden();
    let ours = golden.vae_units(&denoised(pipeline, requests));
    relative_error(&ours, golden.recorded(&format!("{name}.latent")))
}

/// How far the latents of a run are with its LoRAs as adapters and merged into the UNet's weights.
fn both_ways(pipeline: &Pipeline, name: &str, requests: &[ImageRequest]) -> [(&'static str, f64); 2] {
    let merged = pipeline.with_merged(requests[0].loras.as_ref().unwrap(), Rounding::ToStored).unwrap();
    [("adapters", latent_error(pipeline, name, requests)), ("merged", latent_error(&merged, name, requests))]
}

#[test]
fn latents_with_loras_as_adapters_and_merged_equal_comfyuis() {
    let golden = golden();
    for name in LORA_RUNS {
        let case = golden.case(name);
        for (stored, pipeline) in [("f16", &golden.pipeline), ("f32", &load(&widened()))] {
            for (way, error) in both_ways(pipeline, name, &with_loras(pipeline, case)) {
                println!("{name:20} {way} to {stored} {error:.1e}");
                assert!(error <= LATENT_TOLERANCE, "{name}, {way} to {stored}: {error}");
            }
        }
        let effect = latent_error(&golden.pipeline, name, &golden.requests(case));
        println!("{name:20} without the LoRAs {effect:.1e}");
        assert!(effect > EFFECT, "{name}: {effect}");
    }
}

#[test]
fn what_latents_with_loras_differ_by_is_rounding_to_the_stored_type() {
    for name in LORA_RUNS {
        let case = golden().case(name);
        let (pipeline, requests) = with_text_as_comfyui_rounds_it(&folder().join(CHECKPOINT), case);
        let (wide, wide_requests) = with_text_as_comfyui_rounds_it(&widened(), case);
        let [adapters, rounded] = both_ways(&pipeline, name, &requests);
        let [wide_adapters, exact] = both_ways(&wide, name, &wide_requests);
        println!(
            "{name:20} text rounded: adapters {:.1e} and {:.1e}, merged into f32 {:.1e}, into f16 {:.1e}",
            adapters.1, wide_adapters.1, exact.1, rounded.1
        );
        for (way, error) in [adapters, wide_adapters, exact] {
            assert!(error <= UNROUNDED_TOLERANCE, "{name}, {way}: {error}");
        }
        // Only these weights are rounded, which ComfyUI's UNet in f32 is not.
        assert!(rounded.1 > UNROUNDED_TOLERANCE && rounded.1 <= LATENT_TOLERANCE, "{name}: {}", rounded.1);
    }
}

#[test]
fn edges_of_the_controlnets_picture_equal_comfyuis_to_the_pixel() {
    let theirs = &tensors("controlnet.safetensors")["hint"];
    let edges = edges();
    assert_eq!(theirs.dims(), [1, edges.height(), edges.width(), 3]);
    let theirs: Vec<u8> = theirs.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(edges.to_rgb8(), theirs);
    assert!(theirs.contains(&0) && theirs.contains(&255));
}

#[test]
fn latents_with_a_controlnet_equal_comfyuis() {
    let golden = golden();
    let theirs = &tensors("controlnet.safetensors")["final"];
    let error = relative_error(&golden.sample(&with_control()), theirs);
    let effect = relative_error(&golden.sample(&golden.requests(golden.case(CONTROL_RUN))), theirs);
    println!("{CONTROL_RUN:20} {error:.1e}, without the ControlNet {effect:.1e}");
    assert!(error <= LATENT_TOLERANCE, "{error}");
    assert!(effect > EFFECT, "{effect}");
}

/// Pictures against the recorded ones: the PNG, all values together and the one that is most off.
fn assert_pictures(name: &str, pictures: &[Picture], value_tolerance: f64) {
    let golden = golden();
    golden.assert_pngs(name, pictures);
    let ours: Vec<f32> = pictures.iter().flat_map(|picture| picture.data().to_vec()).collect();
    let theirs = golden.float_pictures(name);
    assert_eq!(ours.len(), theirs.len());
    let largest = ours.iter().zip(&theirs).map(|(a, b)| f64::from((a - b).abs())).fold(0f64, f64::max);
    let [ours, theirs] = [ours, theirs].map(|values| Tensor::new(values, &Device::Cpu).unwrap());
    let error = relative_error(&ours, &theirs);
    println!("{name:20} {} pictures, {error:.1e}, largest difference {largest:.1e}", pictures.len());
    assert!(error <= PICTURE_TOLERANCE, "{name}: {error}");
    assert!(largest <= value_tolerance, "{name}: {largest}");
}

#[test]
fn decoded_pictures_with_loras_equal_comfyuis() {
    let golden = golden();
    for name in LORA_RUNS {
        let case = golden.case(name);
        let ours = draw(&golden.pipeline, &with_loras(&golden.pipeline, case));
        assert_pictures(name, &ours, ROUNDED_VALUE_TOLERANCE);
        let (rounded, requests) = with_text_as_comfyui_rounds_it(&folder().join(CHECKPOINT), case);
        assert_pictures(name, &draw(&rounded, &requests), VALUE_TOLERANCE);
    }
}

#[test]
fn decoded_pictures_with_a_controlnet_equal_comfyuis() {
    assert_pictures(CONTROL_RUN, &draw(&golden().pipeline, &with_control()), VALUE_TOLERANCE);
}

/// The schedules and shares of them as ComfyUI has them.
#[derive(Deserialize)]
struct RecordedSigmas {
    schedulers: HashMap<Scheduler, HashMap<usize, Vec<f32>>>,
    percent_to_sigma: HashMap<String, f64>,
}

/// Steps of a run, some of them with a ControlNet.
struct ByHand {
    unet: UNet2DConditionModel,
    sampling: ModelSampling,
    request: ImageRequest,
    control: Control,
}

impl ByHand {
    const SIDE: usize = 128;
    const STEPS: usize = 10;

    fn new(scheduler: Scheduler) -> Self {
        let checkpoint = Checkpoint::open(&folder().join(CHECKPOINT), &Device::Cpu).unwrap();
        let part = &checkpoint.unet;
        let network = control_net().clone();
        let hint = Control::embed(&network, &edges(), Self::SIDE, Self::SIDE, &Device::Cpu).unwrap();
        Self {
            unet: UNet2DConditionModel::load(&part.config, &part.weights).unwrap(),
            sampling: ModelSampling::scaled_linear(Prediction::Epsilon),
            request: ImageRequest {
                cfg: 1.0,
                steps: Self::STEPS,
                sampler: SamplerKind::Euler,
                scheduler,
                position: BatchPosition::ALONE,
                source: Source::Empty { width: Self::SIDE, height: Self::SIDE },
                ..golden().requests(golden().case(CONTROL_RUN)).remove(0)
            },
            control: Control { network, hint, strength: 0.8, start: 0.2, end: 0.7 },
        }
    }

    /// Euler's method, one call of the networks a step, the ControlNet at those that `controlled` says.
    fn run(&self, controlled: &[bool]) -> Tensor {
        let request = &self.request;
        let sampling = &self.sampling;
        let (conditioning, _) = golden().pipeline.encode(std::slice::from_ref(request)).unwrap().remove(0);
        let (context, pooled) =
            (conditioning.context.unsqueeze(0).unwrap(), conditioning.pooled.unwrap().unsqueeze(0).unwrap());
        let side = Self::SIDE as f32;
        let size_ids = Tensor::new(&[[side, side, 0.0, 0.0, side, side]], &Device::Cpu).unwrap();
        let sigmas =
            schedule::sigmas(request.scheduler, sampling, Self::STEPS, 1.0, request.sampler).unwrap();
        assert_eq!(sigmas.len(), controlled.len() + 1);

        let shape = [4, Self::SIDE / 8, Self::SIDE / 8];
        let noise = initial_noise(request.seed, request.position, &shape, &Device::Cpu).unwrap();
        let nothing = noise.zeros_like().unwrap();
        let pure = sampling.is_max_denoise(sigmas[0]);
        let mut x = sampling.noise_latent(&nothing, &noise, sigmas[0], pure).unwrap().unsqueeze(0).unwrap();
        for (pair, controlled) in sigmas.windows(2).zip(controlled) {
            let (sigma, next) = (pair[0], pair[1]);
            let timesteps = Tensor::new(&[sampling.timestep(sigma)], &Device::Cpu).unwrap();
            let input = UNetInput {
                latent: &sampling.scale_input(&x, sigma).unwrap(),
                timesteps: &timesteps,
                context: &context,
                context_lengths: None,
                pooled: Some(&pooled),
                size_ids: Some(&size_ids),
                adapters: Adapters::none(),
            };
            let output = self.unet.forward_with(&input, &FreeU::default(), |features| {
                if !controlled {
                    return Ok(());
                }
                let hint = self.control.hint.unsqueeze(0)?;
                let residuals = self.control.network.forward(&input, &hint)?;
                let strength = Tensor::new(&[self.control.strength as f32], &Device::Cpu)?;
                features.add(&residuals.scaled(&strength.reshape((1, 1, 1, 1))?)?)
            });
            // The derivative of x by sigma is the predicted noise itself.
            x = (x + (output.unwrap() * f64::from(next - sigma)).unwrap()).unwrap();
        }
        golden().pipeline.to_vae_units(&x).unwrap()
    }
}

#[test]
fn a_controlnet_acts_at_the_sigmas_between_its_start_and_end_both_included_and_no_others() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sigmas.json");
    let recorded: RecordedSigmas = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let [first, last] = ["0.2", "0.7"].map(|share| recorded.percent_to_sigma[share] as f32);
    // With `sgm_uniform` two sigmas are the very ends of the range.
    for (scheduler, wanted) in [(Scheduler::SgmUniform, 2..8), (Scheduler::Karras, 3..6)] {
        let theirs = &recorded.schedulers[&scheduler][&ByHand::STEPS];
        let acting: Vec<bool> = theirs[..ByHand::STEPS].iter().map(|s| (last..=first).contains(s)).collect();
        let steps =
            |range: std::ops::Range<usize>| (0..ByHand::STEPS).map(|step| range.contains(&step)).collect();
        let expected: Vec<bool> = steps(wanted.clone());
        assert_eq!(acting, expected, "{scheduler}: {theirs:?}");

        let by_hand = ByHand::new(scheduler);
        let request = ImageRequest { controls: vec![by_hand.control.clone()], ..by_hand.request.clone() };
        let ours = golden().sample(&[request]);
        let error = relative_error(&ours, &by_hand.run(&acting));
        println!("{scheduler}: {error:.1e}");
        assert!(error <= SAME_STEPS, "{scheduler}: {error}");
        // One step more or less at either end is another picture.
        for other in [
            wanted.start - 1..wanted.end,
            wanted.start + 1..wanted.end,
            wanted.start..wanted.end - 1,
            wanted.start..wanted.end + 1,
        ] {
            let error = relative_error(&ours, &by_hand.run(&steps(other.clone())));
            println!("{scheduler} with steps {other:?}: {error:.1e}");
            assert!(error > 100.0 * SAME_STEPS, "{scheduler} with steps {other:?}: {error}");
        }
    }
}
