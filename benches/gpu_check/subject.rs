//! The random model, loaded, and what is asked of it.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use darkroom_models::ComputeType;
use darkroom_models::checkpoint::Checkpoint;
use darkroom_models::controlnet::ControlNet;
use darkroom_models::lora::LoraFile;
use darkroom_models::weights::WeightFile;
use darkroom_pipelines::noise::BatchPosition;
use darkroom_pipelines::{Control, ImageRequest, LoraSet, Picture, Pipeline, Source, StackedLora};

use crate::{Outcome, weights};

pub(crate) const CFG: f64 = 7.5;
pub(crate) const NEGATIVE: &str = "blurry, low quality, worst quality, deformed";

/// The random model on a device.
pub(crate) fn load(work: &Path, device: &Device, compute: ComputeType) -> Outcome<Pipeline> {
    Ok(Pipeline::load_at(&Checkpoint::open(&weights::checkpoint(work), device)?, device, compute)?)
}

/// One of its LoRAs as a set of its own.
pub(crate) fn lora(work: &Path, pipeline: &Pipeline, name: &str) -> Outcome<Arc<LoraSet>> {
    let file = LoraFile::open(Arc::new(WeightFile::open(&weights::lora(work, name))?))?;
    let lora = Arc::new(pipeline.bind_lora(&file)?);
    Ok(Arc::new(pipeline.lora_set(vec![stacked(name, &lora)])?))
}

pub(crate) fn stacked(name: &str, lora: &Arc<darkroom_models::lora::Lora>) -> StackedLora {
    StackedLora { name: name.into(), lora: Arc::clone(lora), strength: 1.0, text_strength: 1.0 }
}

pub(crate) fn control_net(work: &Path, pipeline: &Pipeline) -> Outcome<Arc<ControlNet>> {
    let file = Arc::new(WeightFile::open(&weights::control_net(work))?);
    let network =
        ControlNet::from_file(file, pipeline.unet_config()?, pipeline.device(), pipeline.compute_type())?;
    Ok(Arc::new(network))
}

/// A control that acts at every step, on a picture of edges.
pub(crate) fn control(network: &Arc<ControlNet>, size: (usize, usize), device: &Device) -> Outcome<Control> {
    let picture = edges(size, 0).ok_or("a picture of no size")?;
    let hint = Control::embed(network, &picture, size.0, size.1, device)?;
    Ok(Control { network: Arc::clone(network), hint, strength: 0.8, start: 0.0, end: 1.0 })
}

/// White lines on black, others for each `index`.
pub(crate) fn edges((width, height): (usize, usize), index: usize) -> Option<Picture> {
    let period = 48 + 4 * index;
    let value = |i: usize| {
        let (x, y) = (i % width, i / width);
        if (x + y) % period < 2 || (x * x + y * y) % (period * 97) < 97 { 1.0 } else { 0.0 }
    };
    Picture::new(width, height, (0..width * height).flat_map(|i| [value(i); 3]).collect())
}

/// A picture to draw; `size` is width and height.
pub(crate) fn request(size: (usize, usize), steps: usize, index: usize) -> ImageRequest {
    let (width, height) = size;
    ImageRequest {
        prompt: prompt(index),
        negative_prompt: NEGATIVE.into(),
        steps,
        cfg: CFG,
        sampler: darkroom_pipelines::sampler::SamplerKind::Euler,
        scheduler: darkroom_pipelines::schedule::Scheduler::Normal,
        seed: 42 + index as u64,
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

const EXPRESSIONS: [&str; 20] = [
    "neutral",
    "gentle smile",
    "smirk",
    "laughing",
    "sad",
    "crying",
    "angry",
    "surprised",
    "scared",
    "blush",
    "wink",
    "sleepy",
    "pout",
    "shy",
    "proud",
    "bored",
    "confused",
    "excited",
    "disgusted",
    "thinking",
];

pub(crate) fn prompt(index: usize) -> String {
    format!("1girl, light blue hair, twintails, {}", EXPRESSIONS[index % EXPRESSIONS.len()])
}
