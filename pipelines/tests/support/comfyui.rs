//! What the tests against recorded runs of ComfyUI share: reading the files that `scripts/golden/comfyui.py` makes,
//! drawing the same pictures, and comparing.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_models::checkpoint::Checkpoint;
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::sampler::SamplerKind;
use darkroom_pipelines::schedule::Scheduler;
use darkroom_pipelines::{ImageRequest, InpaintMode, Mask, Picture, Pipeline, Sample, Source, Speed};
use serde::Deserialize;

/// Final latents, ‖ours − theirs‖ / ‖theirs‖. ComfyUI against itself with another thread count is 3.5e-6 off
/// after six steps; samplers that divide by small sigma differences amplify that.
pub(crate) const LATENT_TOLERANCE: f64 = 1e-3;
/// Prompt embeddings; ComfyUI against itself is 3e-7 off.
pub(crate) const TEXT_TOLERANCE: f64 = 1e-4;
/// Share of a PNG's values that may be more than 2 levels off.
pub(crate) const PNG_SHARE: f64 = 1e-3;

/// The model of all recorded workflows.
pub(crate) const CHECKPOINT: &str = "sdxl-tiny.safetensors";

/// A recorded workflow as a request.
#[derive(Deserialize, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) seed: u64,
    pub(crate) steps: usize,
    pub(crate) cfg: f64,
    pub(crate) sampler: String,
    pub(crate) scheduler: String,
    pub(crate) denoise: f64,
    pub(crate) prompt: String,
    pub(crate) negative: String,
    pub(crate) clip_skip: Option<usize>,
    pub(crate) width: Option<usize>,
    pub(crate) height: Option<usize>,
    pub(crate) batch: Option<usize>,
    pub(crate) first: Option<usize>,
    pub(crate) length: Option<usize>,
    pub(crate) image: Option<String>,
    pub(crate) fill_grow: Option<usize>,
    pub(crate) noise_mask: Option<bool>,
    #[serde(default)]
    pub(crate) loras: Vec<CaseLora>,
    pub(crate) control: Option<CaseControl>,
}

/// A LoRA of a recorded workflow.
#[derive(Deserialize, Clone)]
pub(crate) struct CaseLora {
    pub(crate) file: String,
    pub(crate) strength: f64,
    pub(crate) text_strength: f64,
}

/// The ControlNet of a recorded workflow, and the Canny node before it.
#[derive(Deserialize, Clone)]
pub(crate) struct CaseControl {
    pub(crate) image: String,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) strength: f64,
    pub(crate) start: f64,
    pub(crate) end: f64,
}

/// Recorded workflows, what came out of them, and their checkpoint.
pub(crate) struct Golden {
    pub(crate) cases: Vec<Case>,
    pub(crate) recorded: HashMap<String, Tensor>,
    pub(crate) pipeline: Pipeline,
}

pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/comfyui")
}

pub(crate) fn tensors(file: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder().join(file), &Device::Cpu).unwrap()
}

impl Golden {
    pub(crate) fn open(cases: &str, recorded: &[&str]) -> Self {
        let cases = std::fs::read_to_string(folder().join(cases)).unwrap();
        let checkpoint = Checkpoint::open(&folder().join(CHECKPOINT), &Device::Cpu).unwrap();
        Self {
            cases: serde_json::from_str(&cases).unwrap(),
            recorded: recorded.iter().flat_map(|file| tensors(file)).collect(),
            pipeline: Pipeline::load(&checkpoint, &Device::Cpu).unwrap(),
        }
    }

    pub(crate) fn case(&self, name: &str) -> &Case {
        self.cases.iter().find(|case| case.name == name).unwrap()
    }

    pub(crate) fn recorded(&self, name: &str) -> &Tensor {
        self.recorded.get(name).unwrap_or_else(|| panic!("{name} is not recorded"))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.recorded(name).flatten_all().unwrap().to_vec1().unwrap()
    }

    /// ComfyUI's `LoadImage`: the picture, and `1 - alpha` as the mask.
    pub(crate) fn input(&self, name: &str) -> (Picture, Mask) {
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

    /// One request a picture of the case's batch, without its LoRAs and ControlNet.
    pub(crate) fn requests(&self, case: &Case) -> Vec<ImageRequest> {
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
                speed: Speed::default(),
                shift: None,
            })
            .collect()
    }

    /// Final latents in VAE units, `[batch, 4, h, w]`.
    pub(crate) fn sample(&self, requests: &[ImageRequest]) -> Tensor {
        self.vae_units(&denoised(&self.pipeline, requests))
    }

    pub(crate) fn vae_units(&self, samples: &[Sample]) -> Tensor {
        let latents: Vec<_> = samples.iter().map(|s| s.latent().unwrap()).collect();
        self.pipeline.to_vae_units(&Tensor::stack(&latents, 0).unwrap()).unwrap()
    }

    /// Both prompts of a case's request against what was recorded.
    pub(crate) fn assert_prompts(
        &self,
        pipeline: &Pipeline,
        case: &Case,
        mut request: ImageRequest,
        tolerance: f64,
    ) {
        request.cfg = 7.5; // at 1 the negative prompt would be skipped
        let (positive, negative) = pipeline.encode(&[request]).unwrap().remove(0);
        for (side, conditioning) in [("pos", positive), ("neg", negative.unwrap())] {
            let context = self.recorded(&format!("{}.{side}", case.name));
            let pooled = self.recorded(&format!("{}.{side}_pooled", case.name));
            let context_error = relative_error(&conditioning.context, context);
            let pooled_error = relative_error(&conditioning.pooled.unwrap(), pooled);
            println!("{:24} {side} context {context_error:.1e} pooled {pooled_error:.1e}", case.name);
            assert!(context_error <= tolerance, "{} {side}: {context_error}", case.name);
            assert!(pooled_error <= tolerance, "{} {side}: {pooled_error}", case.name);
        }
    }

    /// Pictures against the recorded PNGs.
    pub(crate) fn assert_pngs(&self, name: &str, pictures: &[Picture]) {
        let ours: Vec<u8> = pictures.iter().flat_map(Picture::to_rgb8).collect();
        let theirs = self.bytes(&format!("{name}.pictures"));
        assert_eq!(ours.len(), theirs.len());
        let far = ours.iter().zip(&theirs).filter(|(a, b)| a.abs_diff(**b) > 2).count();
        let share = far as f64 / ours.len() as f64;
        println!("{name:20} {far} of {} values more than 2 levels off", ours.len());
        assert!(share <= PNG_SHARE, "{name}: {share}");
    }

    /// The recorded pictures before they became 8 bits, to 1/512 of a level.
    pub(crate) fn float_pictures(&self, name: &str) -> Vec<f32> {
        let (whole, part) =
            (self.bytes(&format!("{name}.pictures")), self.bytes(&format!("{name}.fractions")));
        assert_eq!(whole.len(), part.len());
        let value = |(whole, part): (&u8, &u8)| f32::from(*whole) + (f32::from(*part) + 0.5) / 256.0;
        whole.iter().zip(&part).map(|pair| (value(pair) / 255.0).min(1.0)).collect()
    }
}

/// The requests' samples, run to the end together.
pub(crate) fn denoised(pipeline: &Pipeline, requests: &[ImageRequest]) -> Vec<Sample> {
    let mut samples = pipeline.prepare(requests).unwrap();
    pipeline.denoise(&mut samples, 16, &mut |_| ()).unwrap();
    samples
}

/// The requests' pictures.
pub(crate) fn draw(pipeline: &Pipeline, requests: &[ImageRequest]) -> Vec<Picture> {
    let samples = denoised(pipeline, requests);
    let latents: Vec<_> = samples.iter().map(|s| s.latent().unwrap()).collect();
    pipeline.decode(&latents).unwrap()
}

fn norm(x: &Tensor) -> f64 {
    let sum = x.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap();
    sum.to_scalar::<f64>().unwrap().sqrt()
}

/// ‖ours − theirs‖ / ‖theirs‖.
pub(crate) fn relative_error(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    norm(&(ours - theirs).unwrap()) / norm(theirs)
}
