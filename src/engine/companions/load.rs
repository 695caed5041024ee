//! How each of them is loaded. What is made here runs on the thread that loads.

use std::fmt::Display;
use std::sync::Arc;

use candle_core::Device;
use darkroom_models::controlnet::ControlNet;
use darkroom_models::depth::DepthEstimator;
use darkroom_models::face_detector::FaceDetector;
use darkroom_models::lora::{Lora, LoraFile};
use darkroom_models::matting::BackgroundRemover;
use darkroom_models::upscaler::Upscaler;
use darkroom_models::weights::WeightFile;
use darkroom_pipelines::preprocess::canny::{Canny, CannyMethod};
use darkroom_pipelines::preprocess::depth;
use darkroom_pipelines::{Control, LoraSet, Picture, Pipeline, Rounding, StackedLora};

use super::{Load, Value};
use crate::catalog::{AuxiliaryEntry, AuxiliaryKind, Catalog};
use crate::engine::sources::Sources;
use crate::picture::cover;
use crate::task::{ControlSpec, LoraSpec, Preprocess, TaskError, TaskErrorKind};

/// Whether a picture is drawn with merged weights depends on who else is there; it must not show.
pub(in crate::engine) const ROUNDING: Rounding = Rounding::None;

#[expect(clippy::needless_pass_by_value, reason = "errors are mapped by it")]
fn invalid(message: impl ToString) -> TaskError {
    TaskError { kind: TaskErrorKind::InvalidRequest, message: message.to_string() }
}

/// A file that cannot be used; the log says where it is.
fn unusable(entry: &AuxiliaryEntry, error: &dyn Display) -> TaskError {
    tracing::warn!(id = entry.id, %error, "a {} cannot be used", entry.kind.name());
    invalid(entry.for_clients(&error.to_string()))
}

/// Its file, opened.
fn opened(entry: &AuxiliaryEntry) -> Result<Arc<WeightFile>, TaskError> {
    entry.open().map_err(|error| unusable(entry, &error))
}

fn entry(catalog: &Catalog, kind: AuxiliaryKind, id: &str) -> Result<AuxiliaryEntry, TaskError> {
    catalog.find_auxiliary(kind, id).ok_or_else(|| TaskError {
        kind: TaskErrorKind::ModelUnavailable,
        message: format!("the {} '{id}' is no longer there", kind.name()),
    })
}

/// A LoRA, bound to a model.
pub(super) fn lora(catalog: &Arc<Catalog>, pipeline: &Arc<Pipeline>, id: &str) -> Load {
    let (catalog, pipeline, id) = (Arc::clone(catalog), Arc::clone(pipeline), id.to_owned());
    Box::new(move || {
        let entry = entry(&catalog, AuxiliaryKind::Lora, &id)?;
        let file = opened(&entry)?;
        let file = LoraFile::open(file).map_err(|error| unusable(&entry, &error))?;
        let lora = pipeline.bind_lora(&file).map_err(|error| unusable(&entry, &error))?;
        if let Some(first) = lora.unmatched.first() {
            let count = lora.unmatched.len();
            tracing::warn!(lora = id, count, first, "keys of a LoRA fit nothing in the model");
        }
        let bytes = file.bytes();
        Ok((Value::Lora(Arc::new(lora)), bytes))
    })
}

/// A stack of bound LoRAs, whose files have these revisions.
pub(super) fn lora_set(
    pipeline: &Arc<Pipeline>,
    specs: &[LoraSpec],
    revisions: &[u64],
    loras: Vec<Arc<Lora>>,
) -> Load {
    let stack: Vec<StackedLora> = specs
        .iter()
        .zip(revisions)
        .zip(loras)
        .map(|((spec, revision), lora)| StackedLora {
            name: format!("{}#{revision:x}", spec.lora).into(),
            lora,
            strength: spec.strength,
            text_strength: spec.text_strength,
        })
        .collect();
    let pipeline = Arc::clone(pipeline);
    Box::new(move || {
        let set: LoraSet = pipeline.lora_set(stack).map_err(invalid)?;
        let bytes = set.bytes();
        Ok((Value::LoraSet(Arc::new(set)), bytes))
    })
}

/// A model with a stack in its weights.
pub(super) fn merged(pipeline: &Arc<Pipeline>, set: &Arc<LoraSet>) -> Load {
    let (pipeline, set) = (Arc::clone(pipeline), Arc::clone(set));
    Box::new(move || {
        let merged = pipeline.with_merged(&set, ROUNDING).map_err(invalid)?;
        Ok((Value::Merged(Arc::new(merged)), pipeline.merged_bytes(&set, ROUNDING)))
    })
}

/// A ControlNet.
pub(super) fn control_net(catalog: &Arc<Catalog>, pipeline: &Arc<Pipeline>, id: &str) -> Load {
    let (catalog, pipeline, id) = (Arc::clone(catalog), Arc::clone(pipeline), id.to_owned());
    Box::new(move || {
        let entry = entry(&catalog, AuxiliaryKind::ControlNet, &id)?;
        let file = opened(&entry)?;
        let config = pipeline.unet_config().map_err(invalid)?;
        let network = ControlNet::from_file(file, config, pipeline.device(), pipeline.compute_type());
        let network = network.map_err(|error| unusable(&entry, &error))?;
        let bytes = network.weight_bytes();
        Ok((Value::ControlNet(Arc::new(network)), bytes))
    })
}

/// A network that finds faces. It runs where pictures are decoded to: on the CPU.
pub(super) fn detector(catalog: &Arc<Catalog>, id: &str) -> Load {
    let (catalog, id) = (Arc::clone(catalog), id.to_owned());
    Box::new(move || {
        let entry = entry(&catalog, AuxiliaryKind::Detector, &id)?;
        let detector = FaceDetector::from_file(opened(&entry)?, &Device::Cpu)
            .map_err(|error| unusable(&entry, &error))?;
        Ok((Value::Detector(Arc::new(detector)), entry.bytes))
    })
}

/// A network that takes backgrounds out; on the CPU as well.
pub(super) fn remover(catalog: &Arc<Catalog>, id: &str) -> Load {
    let (catalog, id) = (Arc::clone(catalog), id.to_owned());
    Box::new(move || {
        let entry = entry(&catalog, AuxiliaryKind::Matting, &id)?;
        let remover = BackgroundRemover::from_file(&opened(&entry)?, &Device::Cpu);
        let remover = remover.map_err(|error| unusable(&entry, &error))?;
        Ok((Value::Remover(Arc::new(remover)), entry.bytes))
    })
}

/// A network that enlarges pictures; on the CPU as well.
pub(super) fn upscaler(catalog: &Arc<Catalog>, id: &str) -> Load {
    let (catalog, id) = (Arc::clone(catalog), id.to_owned());
    Box::new(move || {
        let entry = entry(&catalog, AuxiliaryKind::Upscaler, &id)?;
        let upscaler = Upscaler::from_file(&opened(&entry)?, &Device::Cpu);
        let upscaler = upscaler.map_err(|error| unusable(&entry, &error))?;
        Ok((Value::Upscaler(Arc::new(upscaler)), entry.bytes))
    })
}

/// The first depth network there is.
pub(super) fn depth(catalog: &Arc<Catalog>) -> Load {
    let catalog = Arc::clone(catalog);
    Box::new(move || {
        let Some(entry) = catalog.auxiliaries(AuxiliaryKind::Depth).into_iter().next() else {
            return Err(invalid(
                "there is no depth network: put Depth Anything V2's safetensors into depthanything/ of the models \
                 folder, or give a depth picture",
            ));
        };
        let estimator = DepthEstimator::from_file(&opened(&entry)?, &Device::Cpu);
        let estimator = estimator.map_err(|error| unusable(&entry, &error))?;
        Ok((Value::Depth(Arc::new(estimator)), entry.bytes))
    })
}

/// A picture as a ControlNet sees it.
pub(super) fn hint(
    sources: Arc<dyn Sources>,
    pipeline: &Arc<Pipeline>,
    network: Arc<ControlNet>,
    depth: Option<Arc<DepthEstimator>>,
    spec: &ControlSpec,
    (width, height): (usize, usize),
) -> Load {
    let (device, spec) = (pipeline.device().clone(), spec.clone());
    Box::new(move || {
        let picture = sources.picture(&spec.image, "control image")?;
        let picture = control_picture(&picture, &spec.preprocess, depth.as_deref(), width, height)?;
        let hint = Control::embed(&network, &picture, width, height, &device).map_err(invalid)?;
        let bytes = (hint.elem_count() * hint.dtype().size_in_bytes()) as u64;
        Ok((Value::Hint(hint), bytes))
    })
}

/// What a ControlNet is shown: a picture to be preprocessed is brought to the size of the result first, so that edges
/// are found at the size at which they steer. One that is a control picture already is left as it is; embedding
/// scales it as ComfyUI does.
fn control_picture(
    picture: &Picture,
    preprocess: &Preprocess,
    depth: Option<&DepthEstimator>,
    width: usize,
    height: usize,
) -> Result<Picture, TaskError> {
    let scaled = || {
        cover(picture, width, height)
            .ok_or_else(|| invalid("the control image cannot be scaled to the size asked for"))
    };
    let (low, high, method) = match *preprocess {
        Preprocess::None => return Ok(picture.clone()),
        Preprocess::Canny { low, high } => (low, high, CannyMethod::ComfyUi),
        Preprocess::OpencvCanny { low, high } => (low, high, CannyMethod::OpenCv { l2_gradient: false }),
        Preprocess::Depth => {
            let estimator = depth.ok_or_else(|| invalid("there is no depth network"))?;
            return depth::estimate(estimator, &scaled()?).map_err(invalid);
        }
    };
    Ok(Canny { low, high, method }.detect(&scaled()?))
}
