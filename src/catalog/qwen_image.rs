//! Qwen-Image as ComfyUI keeps it: a transformer in `diffusion_models/`, with the text encoder and the autoencoder that lie
//! in their own folders. Each transformer is a model that requests can name, under its file's name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use darkroom_models::checkpoint::{Checkpoint, CheckpointError, ModelKind, Part, QwenImageParts, inspect};
use darkroom_models::weights::WeightFile;

use super::{AuxiliaryKind, Catalog, DEPTH, Defaults, Entry, Location, Opened, PartKind, look, stamp};

/// Pixels a side that Qwen-Image was trained with, as the gateways ask for them.
pub const SIDE: usize = 1328;
/// Steps and guidance of Qwen-Image without a LoRA for few steps.
pub const STEPS: usize = 30;
/// See [`STEPS`].
pub const CFG: f64 = 4.0;

/// The files of one model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Files {
    pub(super) transformer: PathBuf,
    pub(super) text_encoder: PathBuf,
    pub(super) vae: PathBuf,
    /// Where the tokenizer is, if somebody said so.
    pub(super) tokenizer: Option<PathBuf>,
}

impl Files {
    pub(super) fn all(&self) -> [&Path; 3] {
        [&self.transformer, &self.text_encoder, &self.vae]
    }
}

impl Defaults {
    /// For Qwen-Image as it was trained, without a LoRA for few steps.
    pub(super) fn of_qwen_image(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            width: SIDE,
            height: SIDE,
            steps: STEPS,
            cfg: CFG,
            sampler: "euler".into(),
            scheduler: "simple".into(),
            negative_prompt: String::new(),
            kind: ModelKind::QwenImage,
        }
    }
}

impl Catalog {
    /// The Qwen-Image that requests get which are made for it: the first that can be drawn with.
    pub fn qwen_image(&self) -> Option<Entry> {
        self.list().into_iter().find(|entry| entry.kind == ModelKind::QwenImage && entry.problem.is_none())
    }

    /// A LoRA that lets Qwen-Image draw in `steps` steps without guidance, told by its name: the one for the fewest steps
    /// that are as many.
    pub fn lightning(&self, steps: usize) -> Option<String> {
        let trained = |id: &str| {
            let name = id.to_lowercase();
            let digits = name.split_once("step").map(|(before, _)| before)?;
            let digits = digits.trim_end_matches(['-', '_', ' ']);
            let start = digits.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
            let own: usize = digits.get(start..)?.parse().ok()?;
            (name.contains("lightning") && own >= steps).then_some(own)
        };
        let loras = self.auxiliaries(AuxiliaryKind::Lora).into_iter();
        let fitting = loras.filter_map(|entry| Some((trained(&entry.id)?, entry)));
        let fitting = fitting.filter(|(_, entry)| self.about(entry).family == Some("qwen_image"));
        fitting.min_by_key(|(steps, _)| *steps).map(|(_, entry)| entry.id)
    }

    /// Models made of files in folders of their own, by name.
    pub(super) fn composed(&self) -> Vec<Entry> {
        let transformers = self.of_kind(PartKind::DiffusionModel, ModelKind::QwenImage);
        if transformers.is_empty() {
            return Vec::new();
        }
        let text_encoders = self.of_kind(PartKind::TextEncoders, ModelKind::QwenVl);
        let vaes = self.of_kind(PartKind::Vae, ModelKind::QwenImageVae);
        transformers
            .into_iter()
            .map(|(id, transformer, bytes)| {
                // Of several text encoders the one whose weights are stored as the transformer's are.
                let eight = |id: &str| id.contains("fp8");
                let fitting = text_encoders.iter().find(|(other, ..)| eight(other) == eight(&id));
                let text_encoder = fitting.or(text_encoders.first());
                let problem = match (text_encoder, vaes.first()) {
                    (None, _) => Some("it lacks a Qwen2.5-VL text encoder in text_encoders/"),
                    (_, None) => Some("it lacks Qwen-Image's autoencoder in vae/"),
                    _ => None,
                };
                let path = |found: Option<&(String, PathBuf, u64)>| {
                    found.map_or_else(PathBuf::new, |(_, path, _)| path.clone())
                };
                let size = |found: Option<&(String, PathBuf, u64)>| found.map_or(0, |(.., bytes)| *bytes);
                Entry {
                    kind: ModelKind::QwenImage,
                    bytes: bytes + size(text_encoder) + size(vaes.first()),
                    defaults: Defaults::of_qwen_image(&id),
                    problem: problem.map(str::to_owned),
                    location: Location::QwenImage(Files {
                        transformer,
                        text_encoder: path(text_encoder),
                        vae: path(vaes.first()),
                        tokenizer: self.tokenizer.clone(),
                    }),
                    id,
                }
            })
            .collect()
    }

    /// Files of a folder whose headers say that they are of this kind: name, path and bytes.
    fn of_kind(&self, part: PartKind, kind: ModelKind) -> Vec<(String, PathBuf, u64)> {
        let Some(folder) = &self.folder else { return Vec::new() };
        let mut found = Vec::new();
        for name in part.folders() {
            look(&folder.join(name), "", DEPTH, &mut found);
        }
        found.sort();
        found.dedup_by(|a, b| a.0 == b.0);
        let described = found.into_iter().filter(|(_, path)| path.is_file()).filter_map(|(id, path)| {
            let (own, bytes) = self.part_kind(&path);
            (own == kind).then_some((id, path, bytes))
        });
        described.collect()
    }

    /// What a part's header says that it is, and the bytes of its tensors. Read once, while the file stays the same.
    pub(super) fn part_kind(&self, path: &Path) -> (ModelKind, u64) {
        let stamp = stamp(path);
        let mut known = self.parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match known.get(path) {
            Some((then, found)) if *then == stamp => *found,
            _ => {
                let found = inspect(path).map_or((ModelKind::Unknown, 0), |found| (found.kind, found.bytes));
                if known.len() > super::MOST {
                    known.clear();
                }
                known.insert(path.to_owned(), (stamp, found));
                found
            }
        }
    }
}

/// Opens the model at `path`, of any family: a diffusers folder, a checkpoint, or Qwen-Image's transformer in ComfyUI's
/// folder of models, whose other parts lie in the folders beside it.
///
/// # Errors
/// When it is damaged, cannot be drawn with, or lacks parts.
pub fn open_at(path: &Path, tokenizer: Option<&Path>, device: &Device) -> Result<Opened, CheckpointError> {
    let found = inspect(path)?;
    if found.kind != ModelKind::QwenImage {
        return Checkpoint::open(path, device).map(Opened::Whole);
    }
    if path.is_dir() {
        let parts = open_folder(path, tokenizer, device)?;
        let missing = parts.missing();
        if !missing.is_empty() {
            return Err(CheckpointError::MissingParts { origin: parts.origin, parts: missing });
        }
        return Ok(Opened::QwenImage(parts));
    }
    let beside = path.parent().and_then(Path::parent);
    let catalog = beside.and_then(|root| Catalog::open(Some(root), None).ok());
    let catalog = catalog.map(|catalog| catalog.with_tokenizer(tokenizer.map(Path::to_owned)));
    let files = catalog.iter().flat_map(Catalog::composed).find_map(|entry| match entry.location {
        Location::QwenImage(files) if files.transformer == path && entry.problem.is_none() => Some(files),
        _ => None,
    });
    match files {
        Some(files) => open(&files, device).map(Opened::QwenImage),
        None => Err(CheckpointError::MissingParts {
            origin: path.display().to_string(),
            parts: vec![Part::QwenVl, Part::Vae],
        }),
    }
}

/// Opens a diffusers folder, with the tokenizer that is named in place of its own.
pub(super) fn open_folder(
    path: &Path,
    tokenizer: Option<&Path>,
    device: &Device,
) -> Result<QwenImageParts, CheckpointError> {
    let parts = QwenImageParts::open(path, device)?;
    match tokenizer {
        Some(tokenizer) => parts.with_tokenizer(tokenizer),
        None => Ok(parts),
    }
}

/// Opens the files of a model.
pub(super) fn open(files: &Files, device: &Device) -> Result<QwenImageParts, CheckpointError> {
    let part = |path: &Path| -> Result<QwenImageParts, CheckpointError> {
        QwenImageParts::from_file(&Arc::new(WeightFile::open(path)?), device)
    };
    let text_encoder = open_text_encoder(&files.text_encoder, files.tokenizer.as_deref(), device)?;
    Ok(part(&files.transformer)?.joined(text_encoder).joined(part(&files.vae)?))
}

/// Opens a text encoder's file, and the tokenizer that is named or lies beside it.
pub(super) fn open_text_encoder(
    file: &Path,
    tokenizer: Option<&Path>,
    device: &Device,
) -> Result<QwenImageParts, CheckpointError> {
    let parts = QwenImageParts::from_file(&Arc::new(WeightFile::open(file)?), device)?;
    match tokenizer {
        Some(tokenizer) => parts.with_tokenizer(tokenizer),
        None => parts.with_tokenizer_beside(file),
    }
}
