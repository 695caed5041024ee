//! The small Qwen-Image that diffusers drew with (`scripts/golden`), in its layouts and on any device.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use darkroom_models::checkpoint::QwenImageParts;
use darkroom_models::lora::LoraFile;
use darkroom_models::weights::WeightFile;
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::Scheduler;
use darkroom_pipelines::{FlowShift, ImageRequest, LoraSet, Pipeline, Source, Speed, StackedLora};

pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen_image").join(path)
}

/// Three prompts, and a negative one.
pub(crate) fn prompts() -> (Vec<String>, String) {
    let text = std::fs::read_to_string(golden("prompts.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let list = json["prompts"].as_array().unwrap();
    let list = list.iter().map(|prompt| prompt.as_str().unwrap().to_owned()).collect();
    (list, json["negative"].as_str().unwrap().to_owned())
}

/// diffusers' folder.
pub(crate) fn folder(device: &Device) -> QwenImageParts {
    QwenImageParts::open(&golden("diffusers"), device).unwrap()
}

/// ComfyUI's three files, with networks' weights in 8 bits or in 16.
pub(crate) fn files(device: &Device, eight_bits: bool) -> QwenImageParts {
    let part = |path: &str| {
        let file = golden("models").join(path);
        let parts = QwenImageParts::from_file(&Arc::new(WeightFile::open(&file).unwrap()), device).unwrap();
        parts.with_tokenizer_beside(&file).unwrap()
    };
    let (transformer, text) = match eight_bits {
        true => ("tiny_qwen_image_fp8_e4m3fn_scaled", "tiny_qwen_vl_fp8_scaled"),
        false => ("tiny_qwen_image", "tiny_qwen_vl"),
    };
    part(&format!("diffusion_models/{transformer}.safetensors"))
        .joined(part(&format!("text_encoders/{text}.safetensors")))
        .joined(part("vae/tiny_qwen_image_vae.safetensors"))
}

pub(crate) fn lightning() -> LoraFile {
    let file = golden("models/loras/tiny_qwen_image_lightning_4steps.safetensors");
    LoraFile::open(Arc::new(WeightFile::open(&file).unwrap())).unwrap()
}

/// The LoRA for few steps.
pub(crate) fn lightning_set(pipeline: &Pipeline, strength: f64) -> Arc<LoraSet> {
    let lora = pipeline.bind_lora(&lightning()).unwrap();
    assert_eq!(lora.unmatched, Vec::<String>::new());
    let stacked = StackedLora { name: "lightning".into(), lora: lora.into(), strength, text_strength: 0.0 };
    Arc::new(pipeline.lora_set(vec![stacked]).unwrap())
}

pub(crate) fn request(prompt: &str, (width, height): (usize, usize), seed: u64) -> ImageRequest {
    ImageRequest {
        prompt: prompt.into(),
        negative_prompt: String::new(),
        steps: 4,
        cfg: 1.0,
        sampler: SamplerKind::Euler,
        scheduler: Scheduler::Simple,
        seed,
        position: BatchPosition::ALONE,
        denoise: 1.0,
        clip_skip: None,
        source: Source::Empty { width, height },
        loras: None,
        controls: Vec::new(),
        speed: Speed::default(),
        shift: Some(FlowShift::Dynamic),
    }
}

/// What diffusers was asked for.
pub(crate) fn golden_requests() -> Vec<ImageRequest> {
    let (prompts, negative) = prompts();
    let sizes = [(96, 64), (64, 96), (64, 64)];
    let scales = [1.0, 4.0, 2.5];
    (0..3)
        .map(|i| ImageRequest {
            cfg: scales[i],
            negative_prompt: negative.clone(),
            ..request(&prompts[i], sizes[i], 10 + i as u64)
        })
        .collect()
}

pub(crate) fn draw_with(pipeline: &Pipeline, requests: &[ImageRequest], max_batch: usize) -> Vec<Tensor> {
    let mut samples = pipeline.prepare(requests).unwrap();
    pipeline.denoise(&mut samples, max_batch, &mut |_| {}).unwrap();
    samples.iter().map(|sample| sample.latent().unwrap().clone()).collect()
}

pub(crate) fn draw(pipeline: &Pipeline, request: &ImageRequest) -> Tensor {
    draw_with(pipeline, std::slice::from_ref(request), 1).remove(0)
}

/// The largest difference over the largest value.
pub(crate) fn distance(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    let ours = ours.to_device(theirs.device()).unwrap();
    let most = |x: &Tensor| f64::from(x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap());
    most(&(ours - theirs).unwrap()) / most(theirs)
}
