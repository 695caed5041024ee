//! diffusers folders: `model_index.json`, and a folder a network with `config.json` and safetensors files,
//! which may be sharded and may have a variant's name (`….fp16.safetensors`). What the JSON files say is not
//! trusted: sizes are limited and no name leaves its folder.

use std::collections::BTreeMap;
use std::path::{Component as PathPart, Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use serde_json::{Map, Value};

use super::keys;
use super::prediction::{self, Prediction, PredictionType};
use super::single_file::Collector;
use super::{CheckpointError, CheckpointParts, Component, Layout, ModelKind, Part};
use crate::clip::ClipTextConfig;
use crate::unet::UNetConfig;
use crate::vae::VaeConfig;
use crate::weights::{Stored, WeightFile, Weights};

/// Largest `config.json` and `model_index.json` read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Largest shard index read.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Most shards of one network.
const MAX_SHARDS: usize = 256;

/// The folder of each part.
const PARTS: [(Part, &str); 4] = [
    (Part::UNet, "unet"),
    (Part::Vae, "vae"),
    (Part::ClipL, "text_encoder"),
    (Part::ClipG, "text_encoder_2"),
];

/// The same of Qwen-Image.
const QWEN_IMAGE_PARTS: [(Part, &str); 3] =
    [(Part::Transformer, "transformer"), (Part::Vae, "vae"), (Part::QwenVl, "text_encoder")];

/// The folder of each part that a model of this kind may have.
pub(super) fn parts(kind: ModelKind) -> &'static [(Part, &'static str)] {
    if kind == ModelKind::QwenImage { &QWEN_IMAGE_PARTS } else { &PARTS }
}

/// What `model_index.json` says the folder at `root` is.
pub(super) fn kind(root: &Path) -> Result<ModelKind, CheckpointError> {
    let index = root.join("model_index.json");
    if !index.is_file() {
        return Err(CheckpointError::NoWeights {
            folder: root.display().to_string(),
            hint: "there is no model_index.json; pass a diffusers folder, or a .safetensors file".into(),
        });
    }
    let index = read_json(&index, MAX_CONFIG_BYTES)?;
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or_default();
    Ok(if class.starts_with("StableDiffusionXL") {
        let second_only =
            index.get("text_encoder").is_none_or(|part| *part == serde_json::json!([null, null]));
        if second_only { ModelKind::SdxlRefiner } else { ModelKind::Sdxl }
    } else if class.starts_with("StableDiffusion3") {
        ModelKind::Unknown
    } else if class.starts_with("StableDiffusion") {
        let config = root.join("unet").join("config.json");
        let context = match config.is_file() {
            true => read_json(&config, MAX_CONFIG_BYTES)?.get("cross_attention_dim").and_then(Value::as_u64),
            false => None,
        };
        if context == Some(1024) { ModelKind::Sd2 } else { ModelKind::Sd15 }
    } else if class.starts_with("Flux") {
        ModelKind::Flux
    } else if class.starts_with("QwenImage") {
        ModelKind::QwenImage
    } else {
        ModelKind::Unknown
    })
}

pub(super) fn open(root: &Path, device: &Device) -> Result<CheckpointParts, CheckpointError> {
    let origin = root.display().to_string();
    let kind = kind(root)?;
    if !matches!(kind, ModelKind::Sdxl | ModelKind::Sd15) {
        return Err(CheckpointError::Kind { origin, kind });
    }
    let prediction = scheduler(root)?;
    let mut parts = CheckpointParts {
        kind,
        layout: Layout::DiffusersFolder,
        prediction,
        unet: None,
        vae: None,
        clip_l: None,
        clip_g: None,
        stray: Vec::new(),
        origin,
    };
    for (part, name) in PARTS {
        let dir = root.join(name);
        if !kind.parts().contains(&part) || !dir.is_dir() {
            continue;
        }
        match part {
            Part::UNet => parts.unet = Some(component::<UNetConfig>(&dir, part, device)?),
            Part::Vae => parts.vae = Some(component::<VaeConfig>(&dir, part, device)?),
            Part::ClipL => parts.clip_l = Some(component::<ClipTextConfig>(&dir, part, device)?),
            Part::ClipG => parts.clip_g = Some(component::<ClipTextConfig>(&dir, part, device)?),
            Part::Transformer | Part::QwenVl => {}
        }
    }
    refuse_other_tasks(&parts)?;
    Ok(parts)
}

/// Fails for finetunes whose UNet takes more than a latent (inpainting, instructions, depth).
pub(super) fn refuse_other_tasks(parts: &CheckpointParts) -> Result<(), CheckpointError> {
    let (Some(unet), Some(vae)) = (&parts.unet, &parts.vae) else { return Ok(()) };
    let (takes, latent) = (unet.config.in_channels, vae.config.latent_channels);
    if takes == latent && unet.config.out_channels == latent {
        return Ok(());
    }
    Err(CheckpointError::Unsupported {
        origin: parts.origin.clone(),
        reason: format!(
            "the UNet takes {takes} channels and gives {}, but latents have {latent}: a model for inpainting, \
             editing or depth",
            unet.config.out_channels
        ),
    })
}

/// How the scheduler's config says to read the UNet's output.
pub(super) fn scheduler(root: &Path) -> Result<Prediction, CheckpointError> {
    let config = root.join("scheduler").join("scheduler_config.json");
    if !config.is_file() {
        return Ok(Prediction { kind: PredictionType::Epsilon, zero_terminal_snr: false });
    }
    prediction::of_scheduler(&read_json(&config, MAX_CONFIG_BYTES)?).map_err(|found| {
        CheckpointError::Unsupported {
            origin: config.display().to_string(),
            reason: format!("prediction type {found}; epsilon and v are"),
        }
    })
}

/// What the `config.json` in a network's folder says.
pub(super) fn read_config<C>(dir: &Path, part: Part) -> Result<C, CheckpointError>
where
    C: TryFrom<Map<String, Value>, Error = crate::ConfigError>,
{
    let path = dir.join("config.json");
    C::try_from(read_json(&path, MAX_CONFIG_BYTES)?).map_err(|e| CheckpointError::Config {
        origin: path.display().to_string(),
        part,
        reason: e.to_string(),
    })
}

fn component<C>(dir: &Path, part: Part, device: &Device) -> Result<Component<C>, CheckpointError>
where
    C: TryFrom<Map<String, Value>, Error = crate::ConfigError>,
{
    let config = read_config(dir, part)?;
    let origin = dir.display().to_string();
    let mut tensors = Collector::new(&origin, part);
    for (name, file) in weight_files(dir)? {
        let rows = file.header().tensors.get(&name).and_then(|info| info.shape.first()).copied().unwrap_or(0);
        let mapped = match part {
            Part::UNet => Vec::new(),
            Part::Vae => keys::vae(&name, 0).into_iter().collect(),
            Part::ClipL | Part::ClipG if keys::is_clip_buffer(&name) => continue,
            Part::ClipL | Part::ClipG => keys::clip(&name, rows),
            Part::Transformer | Part::QwenVl => Vec::new(),
        };
        tensors.add(&file, &name, &name, mapped)?;
    }
    let tensors: BTreeMap<String, Stored> = tensors.tensors;
    Ok(Component { config, weights: Weights::new(&origin, tensors, device) })
}

/// Every tensor of the network in `dir`, and the file that holds it.
pub(super) fn weight_files(dir: &Path) -> Result<BTreeMap<String, Arc<WeightFile>>, CheckpointError> {
    let whole = ["diffusion_pytorch_model", "model"];
    // The plain precision first: a variant is a copy of it.
    for variant in ["", ".fp16"] {
        for stem in whole {
            let path = dir.join(format!("{stem}{variant}.safetensors"));
            if path.is_file() {
                return one_file(&path);
            }
            for index in [
                format!("{stem}.safetensors.index{variant}.json"),
                format!("{stem}{variant}.safetensors.index.json"),
            ] {
                let index = dir.join(index);
                if index.is_file() {
                    return shards(dir, &index);
                }
            }
        }
    }
    let mut others = Vec::new();
    let mut pickles = false;
    let io = |source| CheckpointError::Io { file: dir.display().to_string(), source };
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => others.push(path),
            Some("bin" | "pt" | "ckpt") => pickles = true,
            _ => {}
        }
    }
    match others.as_slice() {
        [only] => one_file(only),
        [] => Err(CheckpointError::NoWeights {
            folder: dir.display().to_string(),
            hint: if pickles {
                "it has only pickle files, which are not accepted; convert them to safetensors".into()
            } else {
                "it has no .safetensors file".into()
            },
        }),
        several => Err(CheckpointError::NoWeights {
            folder: dir.display().to_string(),
            hint: format!(
                "it has {} .safetensors files and no index that says which to use; keep one, named \
                 diffusion_pytorch_model.safetensors or model.safetensors",
                several.len()
            ),
        }),
    }
}

fn one_file(path: &Path) -> Result<BTreeMap<String, Arc<WeightFile>>, CheckpointError> {
    let file = Arc::new(WeightFile::open(path)?);
    Ok(file.header().tensors.keys().map(|name| (name.clone(), file.clone())).collect())
}

fn shards(dir: &Path, index: &Path) -> Result<BTreeMap<String, Arc<WeightFile>>, CheckpointError> {
    let file = index.display().to_string();
    let json = read_json(index, MAX_INDEX_BYTES)?;
    let malformed = |reason: &str| CheckpointError::Json { file: file.clone(), reason: reason.to_owned() };
    let map = json
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| malformed("it has no \"weight_map\" from tensors to files"))?;
    let mut opened: BTreeMap<PathBuf, Arc<WeightFile>> = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, shard) in map {
        let shard =
            shard.as_str().ok_or_else(|| malformed("its \"weight_map\" holds more than file names"))?;
        let path = dir.join(plain_name(shard).ok_or_else(|| CheckpointError::UnsafeName {
            file: file.clone(),
            name: shard.chars().take(200).collect(),
        })?);
        if !opened.contains_key(&path) {
            if opened.len() == MAX_SHARDS {
                return Err(malformed("it names more than 256 files"));
            }
            opened.insert(path.clone(), Arc::new(WeightFile::open(&path)?));
        }
        if let Some(opened) = opened.get(&path) {
            tensors.insert(name.clone(), opened.clone());
        }
    }
    for (name, shard) in &tensors {
        if !shard.header().tensors.contains_key(name) {
            return Err(crate::weights::WeightsError::Missing {
                file: shard.name().to_owned(),
                name: name.clone(),
            }
            .into());
        }
    }
    // Tensors that the index does not name are in the files all the same: the network shall see them.
    for shard in opened.values() {
        for name in shard.header().tensors.keys() {
            tensors.entry(name.clone()).or_insert_with(|| shard.clone());
        }
    }
    Ok(tensors)
}

/// `name` if it is one plain `.safetensors` file name, on every system.
fn plain_name(name: &str) -> Option<&str> {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(PathPart::Normal(only)), None) if only == name);
    (plain && name.ends_with(".safetensors") && !name.contains(['/', '\\', ':', '\0'])).then_some(name)
}

/// The JSON object in the file at `path`, of at most `limit` bytes.
pub(super) fn read_json(path: &Path, limit: u64) -> Result<Map<String, Value>, CheckpointError> {
    use std::io::Read;

    let file = path.display().to_string();
    let io = |source| CheckpointError::Io { file: file.clone(), source };
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(CheckpointError::Json { file, reason: "not a file".into() });
    }
    let mut text = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(limit + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() as u64 > limit {
        return Err(CheckpointError::Json { file, reason: format!("it is larger than {limit} bytes") });
    }
    serde_json::from_slice(&text)
        .map_err(|e| CheckpointError::Json { file, reason: format!("not a JSON object: {e}") })
}
