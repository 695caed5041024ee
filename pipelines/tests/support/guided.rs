//! The embedded model with its ControlNet and its LoRA, and made-up ones beside them, on any device.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use darkroom_models::ComputeType;
use darkroom_models::checkpoint::Checkpoint;
use darkroom_models::controlnet::ControlNet;
use darkroom_models::lora::{Lora, LoraFile};
use darkroom_models::weights::WeightFile;
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::{Control, ImageRequest, LoraSet, Picture, Pipeline, Source, Speed, StackedLora};

/// Width and height of the pictures.
pub(crate) const SIDE: usize = 64;

/// The embedded model with adapters to choose from.
pub(crate) struct Model {
    pub(crate) pipeline: Pipeline,
    loras: HashMap<&'static str, Arc<Lora>>,
    controls: [Arc<ControlNet>; 2],
}

pub(crate) fn asset(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets").join(name)
}

fn open(path: &Path) -> Arc<WeightFile> {
    Arc::new(WeightFile::open(path).unwrap())
}

impl Model {
    pub(crate) fn load(device: &Device, compute_type: ComputeType) -> Self {
        let checkpoint = Checkpoint::open(&asset("tiny-sdxl.safetensors"), device).unwrap();
        let pipeline = Pipeline::load_at(&checkpoint, device, compute_type).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made.safetensors");
        candle_core::safetensors::save(&made_up_lora(), &made).unwrap();
        let bind = |path: &Path| {
            let lora = pipeline.bind_lora(&LoraFile::open(open(path)).unwrap()).unwrap();
            assert_eq!(lora.unmatched, Vec::<String>::new());
            Arc::new(lora)
        };
        let whole = folder.path().join("whole.safetensors");
        candle_core::safetensors::save(&whole_changes(), &whole).unwrap();
        let loras = HashMap::from([
            ("tinychan", bind(&asset("lora-tinychan.safetensors"))),
            ("made", bind(&made)),
            ("whole", bind(&whole)),
        ]);
        let other = folder.path().join("other.safetensors");
        candle_core::safetensors::save(&other_control_net(), &other).unwrap();
        let control = |path: &Path| {
            let config = pipeline.unet_config().unwrap();
            Arc::new(ControlNet::from_file(open(path), config, device, compute_type).unwrap())
        };
        let controls = [control(&asset("tiny-canny.safetensors")), control(&other)];
        Self { pipeline, loras, controls }
    }

    pub(crate) fn set(&self, stack: &[(&str, f64, f64)]) -> Arc<LoraSet> {
        let stack = stack
            .iter()
            .map(|(name, strength, text_strength)| StackedLora {
                name: (*name).into(),
                lora: self.loras[name].clone(),
                strength: *strength,
                text_strength: *text_strength,
            })
            .collect();
        Arc::new(self.pipeline.lora_set(stack).unwrap())
    }

    fn control(&self, which: usize, seed: usize, strength: f64, start: f64, end: f64) -> Control {
        // Lines at places of the seed's choice.
        let line = |x: usize, y: usize| (x + seed * 7) % 23 < 2 || (y + seed * 5) % 19 < 2;
        let pixel = |i: usize| if line(i % SIDE, i / SIDE) { [1.0; 3] } else { [0.0; 3] };
        let picture = Picture::new(SIDE, SIDE, (0..SIDE * SIDE).flat_map(pixel).collect()).unwrap();
        let network = self.controls[which].clone();
        let hint = Control::embed(&network, &picture, SIDE, SIDE, self.pipeline.device()).unwrap();
        Control { network, hint, strength, start, end }
    }

    pub(crate) fn draw(&self, requests: &[ImageRequest]) -> Vec<Tensor> {
        draw(&self.pipeline, requests)
    }
}

fn random(seed: u64, shape: &[usize], scale: f32) -> Tensor {
    let count = shape.iter().product::<usize>();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f32> = (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A LoRA in kohya's keys on a linear layer, a 3×3 convolution and a text encoder.
fn made_up_lora() -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    let mut add = |layer: &str, down: &[usize], up: &[usize]| {
        let seed = layer.len() as u64;
        tensors.insert(format!("{layer}.lora_down.weight"), random(seed, down, 0.3));
        tensors.insert(format!("{layer}.lora_up.weight"), random(seed + 1, up, 0.3));
        tensors.insert(format!("{layer}.alpha"), Tensor::new(1.5f32, &Device::Cpu).unwrap());
    };
    add("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v", &[3, 128], &[96, 3]);
    add("lora_unet_down_blocks_0_resnets_0_conv1", &[2, 64, 3, 3], &[64, 2, 1, 1]);
    add("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", &[2, 64], &[64, 2]);
    tensors
}

/// Changes of a norm and of a convolution's bias, which no factors stand for.
fn whole_changes() -> HashMap<String, Tensor> {
    let resnet = "lora_unet_down_blocks_0_resnets_0";
    HashMap::from([
        (format!("{resnet}_norm1.w_norm"), random(11, &[64], 0.5)),
        (format!("{resnet}_norm1.b_norm"), random(12, &[64], 0.5)),
        (format!("{resnet}_conv2.diff_b"), random(13, &[64], 0.5)),
    ])
}

/// The embedded ControlNet with other output projections: another network of the same shape.
fn other_control_net() -> HashMap<String, Tensor> {
    let mut tensors = candle_core::safetensors::load(asset("tiny-canny.safetensors"), &Device::Cpu).unwrap();
    for (name, tensor) in &mut tensors {
        if name.starts_with("controlnet_down_blocks") && name.ends_with("weight") {
            *tensor = (&*tensor * -0.7).unwrap();
        }
    }
    tensors
}

pub(crate) fn draw(pipeline: &Pipeline, requests: &[ImageRequest]) -> Vec<Tensor> {
    let mut samples = pipeline.prepare(requests).unwrap();
    pipeline.denoise(&mut samples, 16, &mut |_| ()).unwrap();
    samples.iter().map(|sample| sample.latent().unwrap().clone()).collect()
}

pub(crate) fn request(prompt: &str, seed: u64, steps: usize) -> ImageRequest {
    ImageRequest {
        prompt: prompt.into(),
        negative_prompt: "bad".into(),
        steps,
        cfg: 5.0,
        sampler: "dpmpp_2m".parse().unwrap(),
        scheduler: "karras".parse().unwrap(),
        seed,
        position: BatchPosition::ALONE,
        denoise: 1.0,
        clip_skip: None,
        source: Source::Empty { width: SIDE, height: SIDE },
        loras: None,
        controls: Vec::new(),
        speed: Speed::default(),
        shift: None,
    }
}

pub(crate) fn relative_error(ours: &Tensor, theirs: &Tensor) -> f64 {
    let norm = |x: &Tensor| {
        let x = x.to_dtype(DType::F64).unwrap();
        x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    };
    let ours = ours.to_device(theirs.device()).unwrap();
    norm(&(ours - theirs).unwrap()) / norm(theirs)
}

/// Eight pictures with three sets of LoRAs and none, two ControlNets and none, several step counts and samplers.
pub(crate) fn mixed_requests(model: &Model) -> Vec<ImageRequest> {
    let one = model.set(&[("tinychan", 1.0, 1.0)]);
    let two = model.set(&[("made", 0.8, 0.8)]);
    let both = model.set(&[("tinychan", 0.5, 0.0), ("made", -0.6, 1.2)]);
    let control = |which, seed, strength, start, end| model.control(which, seed, strength, start, end);
    let with = |request: ImageRequest, loras: Option<&Arc<LoraSet>>, controls: Vec<Control>| ImageRequest {
        loras: loras.cloned(),
        controls,
        ..request
    };
    let sampled = |request: ImageRequest, sampler: &str, cfg| ImageRequest {
        sampler: sampler.parse().unwrap(),
        cfg,
        ..request
    };
    vec![
        with(request("1girl, smile", 1, 5), Some(&one), vec![control(0, 1, 0.8, 0.0, 1.0)]),
        with(request("1girl", 2, 3), None, vec![]),
        with(request("1boy, angry", 3, 4), Some(&both), vec![control(1, 2, 0.5, 0.0, 0.6)]),
        sampled(with(request("1girl, sad", 4, 6), Some(&two), vec![]), "euler_ancestral", 7.5),
        with(request("1girl, red hair", 5, 5), Some(&one), vec![]),
        sampled(with(request("scenery", 6, 4), None, vec![control(0, 3, 1.0, 0.3, 1.0)]), "heun", 1.0),
        with(
            request("1girl, wink", 7, 3),
            Some(&two),
            vec![control(0, 4, 0.4, 0.0, 1.0), control(1, 5, 0.7, 0.0, 1.0), control(0, 6, 0.3, 0.0, 1.0)],
        ),
        sampled(with(request("1girl, smile", 8, 5), Some(&both), vec![]), "dpmpp_sde", 1.0),
    ]
}

/// Peak signal-to-noise ratio of two pictures of one size, decibels; infinite for equal ones.
pub(crate) fn psnr(a: &Picture, b: &Picture) -> f64 {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let squares = a.data().iter().zip(b.data()).map(|(a, b)| f64::from(a - b).powi(2));
    -10.0 * (squares.sum::<f64>() / a.data().len() as f64).log10()
}
