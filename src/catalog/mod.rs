//! Which models there are: the built-in one, and what lies in the models folder, laid out as ComfyUI's. Only names
//! found by looking are ever opened, so no request can name a path. Headers are read to say what a file is;
//! weights are opened by [`Catalog::open`]. Beside `engine`, above `darkroom-models`.

mod about;
mod auxiliary;
mod embeddings;
mod parts;
pub mod qwen_image;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use candle_core::Device;
use darkroom_models::checkpoint::{
    Checkpoint, CheckpointError, CheckpointParts, ModelKind, QwenImageParts, inspect,
};

pub use about::{About, Width};
pub use auxiliary::{AuxiliaryEntry, AuxiliaryKind};
pub use parts::PartKind;

use crate::embedded;
use crate::expressions::{Vocabulary, VocabularyError};

/// Folders below the models folder that hold whole models.
const FOLDERS: [&str; 3] = ["checkpoints", "diffusers", ""];
/// Levels of folders that are looked through below each.
const DEPTH: usize = 4;
/// Most models that are listed.
const MOST: usize = 10_000;

/// Settings that suit a model where a request leaves them open.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// The model's id.
    pub model: String,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Sampling steps.
    pub steps: usize,
    /// Classifier-free guidance scale.
    pub cfg: f64,
    /// ComfyUI's name of the sampler.
    pub sampler: String,
    /// ComfyUI's name of the scheduler.
    pub scheduler: String,
    /// Negative prompt.
    pub negative_prompt: String,
    /// What sort of model it is: which settings mean something to it.
    pub kind: ModelKind,
}

impl Defaults {
    /// For models trained at `side` × `side`.
    fn of_side(model: &str, kind: ModelKind, side: usize) -> Self {
        Self {
            model: model.to_owned(),
            width: side,
            height: side,
            steps: 20,
            cfg: 7.0,
            sampler: "dpmpp_2m".into(),
            scheduler: "karras".into(),
            negative_prompt: String::new(),
            kind,
        }
    }
}

/// A model that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What requests call it: the file's name without its extension, with its folders (`sdxl/base_1.0`).
    pub id: String,
    /// What it is.
    pub kind: ModelKind,
    /// Bytes of its tensors as stored.
    pub bytes: u64,
    /// What suits it.
    pub defaults: Defaults,
    /// Why it cannot be drawn with, if it cannot.
    pub problem: Option<String>,
    location: Location,
}

#[derive(Debug, Clone, PartialEq)]
enum Location {
    Embedded,
    Path(PathBuf),
    Part { kind: PartKind, paths: Vec<PathBuf> },
    QwenImage(qwen_image::Files),
}

/// A model's opened weights.
#[derive(Debug)]
pub enum Opened {
    /// All that a picture needs.
    Whole(Checkpoint),
    /// Some of it.
    Part(CheckpointParts),
    /// Qwen-Image, or some of it.
    QwenImage(QwenImageParts),
}

impl Entry {
    /// ComfyUI's `ckpt_name`, for metadata.
    pub fn file_name(&self) -> String {
        match &self.location {
            Location::Path(path) if path.is_dir() => self.id.clone(),
            Location::Part { .. } => self.id.clone(),
            _ => format!("{}.safetensors", self.id),
        }
    }

    /// Of Qwen-Image: the names of its text encoder's and its autoencoder's files, for metadata. Of a diffusers folder,
    /// the names of its folders.
    pub fn split_files(&self) -> Option<(String, String)> {
        match &self.location {
            Location::QwenImage(files) => Some((last_name(&files.text_encoder), last_name(&files.vae))),
            _ if self.kind == ModelKind::QwenImage => {
                Some((format!("{}/text_encoder", self.id), format!("{}/vae", self.id)))
            }
            _ => None,
        }
    }

    /// What is wrong with it, for clients: they know its name, and not where the server keeps it.
    pub fn for_clients(&self, problem: &str) -> String {
        match &self.location {
            Location::Embedded => problem.to_owned(),
            Location::Path(path) => without_path(problem, path, &self.file_name()),
            Location::Part { paths, .. } => {
                let hide = |text: String, path: &PathBuf| without_path(&text, path, &last_name(path));
                paths.iter().fold(problem.to_owned(), hide)
            }
            Location::QwenImage(files) => {
                let hide = |text: String, path: &Path| without_path(&text, path, &last_name(path));
                files.all().into_iter().chain(files.tokenizer.as_deref()).fold(problem.to_owned(), hide)
            }
        }
    }
}

/// The name of a file or folder without where it is.
pub(crate) fn last_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// `message` with `name` in place of `path`.
fn without_path(message: &str, path: &Path, name: &str) -> String {
    message.replace(&path.display().to_string(), name)
}

/// The models there are.
#[derive(Debug)]
pub struct Catalog {
    folder: Option<PathBuf>,
    embedded: Entry,
    default: Option<String>,
    /// What was read of each file, while its size and time stay the same.
    known: Mutex<HashMap<PathBuf, (Stamp, Entry)>>,
    /// What parts in files of their own are, while their sizes and times stay the same.
    parts: Mutex<HashMap<PathBuf, (Stamp, KindAndBytes)>>,
    /// Where Qwen-Image's tokenizer is, if it lies not beside its text encoder.
    tokenizer: Option<PathBuf>,
    /// The same of what works beside models, and the widths of models.
    headers: about::Headers,
}

/// What a part's header says that it is, and the bytes of its tensors.
type KindAndBytes = (ModelKind, u64);

#[derive(Debug, Clone, PartialEq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
}

/// Why there is no catalog.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The built-in model's description does not read.
    #[error("the built-in model: {0}")]
    Vocabulary(#[from] VocabularyError),
    /// The models folder is not one.
    #[error("models folder {}: {source}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The default model is not there.
    #[error("the default model '{id}' is not in the models folder; there are: {known}")]
    NoDefault {
        /// What was named.
        id: String,
        /// What there is.
        known: String,
    },
}

impl Catalog {
    /// The built-in model, and those in `folder`. `default` is what requests without a model get.
    pub fn open(folder: Option<&Path>, default: Option<&str>) -> Result<Self, CatalogError> {
        let vocabulary = Vocabulary::embedded()?;
        let [width, height] = vocabulary.sizes.trained;
        let embedded = Entry {
            id: vocabulary.model.clone(),
            kind: ModelKind::Sdxl,
            bytes: embedded::bytes(),
            defaults: Defaults {
                model: vocabulary.model,
                width,
                height,
                steps: vocabulary.sampler.steps,
                cfg: vocabulary.sampler.cfg,
                sampler: vocabulary.sampler.name,
                scheduler: vocabulary.sampler.scheduler,
                negative_prompt: vocabulary.negative_prompt,
                kind: ModelKind::Sdxl,
            },
            problem: None,
            location: Location::Embedded,
        };
        if let Some(folder) = folder {
            std::fs::read_dir(folder)
                .map_err(|source| CatalogError::Folder { folder: folder.to_owned(), source })?;
        }
        let mut catalog = Self {
            folder: folder.map(Path::to_owned),
            embedded,
            default: None,
            known: Mutex::default(),
            parts: Mutex::default(),
            tokenizer: None,
            headers: about::Headers::default(),
        };
        if let Some(id) = default {
            let Some(entry) = catalog.find(id) else {
                let known: Vec<String> = catalog.list().into_iter().map(|entry| entry.id).collect();
                return Err(CatalogError::NoDefault { id: id.to_owned(), known: known.join(", ") });
            };
            catalog.default = Some(entry.id);
        }
        Ok(catalog)
    }

    /// The same with the tokenizer of Qwen-Image's text encoder at `path`: a `tokenizer.json`, or a folder.
    #[must_use]
    pub fn with_tokenizer(self, path: Option<PathBuf>) -> Self {
        Self { tokenizer: path, ..self }
    }

    /// What requests without a model get.
    pub fn default_id(&self) -> &str {
        self.default.as_deref().unwrap_or(&self.embedded.id)
    }

    /// All models, the built-in one first, then by name.
    pub fn list(&self) -> Vec<Entry> {
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        if let Some(folder) = &self.folder {
            for name in FOLDERS {
                // Files that lie in the models folder itself count as well; its folders are ComfyUI's kinds.
                let depth = if name.is_empty() { 0 } else { DEPTH };
                look(&folder.join(name), "", depth, &mut found);
            }
        }
        found.sort();
        found.dedup_by(|a, b| a.0 == b.0);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|path, _| found.iter().any(|(_, there)| there == path));
        let mut entries = vec![self.embedded.clone()];
        for (id, path) in found {
            let stamp = stamp(&path);
            let entry = match known.get(&path) {
                Some((then, entry)) if *then == stamp => entry.clone(),
                _ => {
                    let entry = describe(id, &path);
                    known.insert(path, (stamp, entry.clone()));
                    entry
                }
            };
            entries.push(entry);
        }
        drop(known);
        for composed in self.composed() {
            if !entries.iter().any(|entry| entry.id == composed.id) {
                entries.push(composed);
            }
        }
        entries
    }

    /// The model that requests call `id`; `embedded` is the built-in one, and an extension does not matter.
    pub fn find(&self, id: &str) -> Option<Entry> {
        let plain = id.strip_suffix(".safetensors").unwrap_or(id);
        if plain == self.embedded.id || plain == "embedded" {
            return Some(self.embedded.clone());
        }
        if let Some(part) = self.find_part(id) {
            return Some(part);
        }
        self.list().into_iter().find(|entry| entry.id == plain)
    }

    /// Names near to one that is not there.
    pub fn near(&self, id: &str) -> Vec<String> {
        let mut scored: Vec<(f64, String)> = self
            .list()
            .into_iter()
            .map(|entry| (strsim::jaro_winkler(id, &entry.id), entry.id))
            .filter(|(score, _)| *score > 0.7)
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        scored.into_iter().take(3).map(|(_, id)| id).collect()
    }

    /// Opens a model's weights.
    pub fn open_model(&self, entry: &Entry, device: &Device) -> Result<Opened, CheckpointError> {
        match &entry.location {
            Location::Embedded => embedded::checkpoint(device).map(Opened::Whole),
            Location::Path(path) if entry.kind == ModelKind::QwenImage => {
                qwen_image::open_folder(path, self.tokenizer.as_deref(), device).map(Opened::QwenImage)
            }
            Location::Path(path) => Checkpoint::open(path, device).map(Opened::Whole),
            Location::Part { kind, paths } => parts::open(*kind, paths, self.tokenizer.as_deref(), device),
            Location::QwenImage(files) => qwen_image::open(files, device).map(Opened::QwenImage),
        }
    }
}

/// Models below `folder`, each with its name. Links are followed as people use them to share models between
/// programs; what they lead to is still only what someone put there.
fn look(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<(String, PathBuf)>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if found.len() >= MOST {
            return;
        }
        let path = entry.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with('.') {
            continue;
        }
        if path.join("model_index.json").is_file() {
            found.push((format!("{prefix}{name}"), path));
        } else if path.is_dir() {
            if depth > 0 {
                look(&path, &format!("{prefix}{name}/"), depth - 1, found);
            }
        } else if let Some(stem) = name.strip_suffix(".safetensors") {
            found.push((format!("{prefix}{stem}"), path));
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let index = path.join("model_index.json");
    let metadata = std::fs::metadata(if index.is_file() { &index } else { path }).ok();
    Stamp {
        bytes: metadata.as_ref().map_or(0, std::fs::Metadata::len),
        modified: metadata.and_then(|metadata| metadata.modified().ok()),
    }
}

fn describe(id: String, path: &Path) -> Entry {
    let location = Location::Path(path.to_owned());
    match inspect(path) {
        Ok(found) => {
            let complete = !found.kind.parts().is_empty() && found.missing.is_empty();
            let problem = (!complete).then(|| {
                if found.kind.parts().is_empty() {
                    format!("it is {}, which cannot be drawn with alone", found.kind)
                } else {
                    let missing: Vec<String> = found.missing.iter().map(ToString::to_string).collect();
                    format!("it lacks {}", missing.join(", "))
                }
            });
            let defaults = match found.kind {
                ModelKind::Sd15 => Defaults::of_side(&id, found.kind, 512),
                ModelKind::QwenImage => Defaults::of_qwen_image(&id),
                _ => Defaults::of_side(&id, found.kind, 1024),
            };
            Entry { defaults, id, kind: found.kind, bytes: found.bytes, problem, location }
        }
        Err(error) => {
            tracing::warn!(model = id, %error, "a model cannot be read");
            let entry = Entry {
                defaults: Defaults::of_side(&id, ModelKind::Unknown, 1024),
                id,
                kind: ModelKind::Unknown,
                bytes: std::fs::metadata(path).map_or(0, |metadata| metadata.len()),
                problem: None,
                location,
            };
            Entry { problem: Some(entry.for_clients(&error.to_string())), ..entry }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn models_are_found_where_comfyui_keeps_them_and_told_apart_by_their_headers() {
        let folder = tempfile::TempDir::new().unwrap();
        let checkpoints = folder.path().join("checkpoints/anime");
        fs::create_dir_all(&checkpoints).unwrap();
        fs::create_dir_all(folder.path().join("loras")).unwrap();
        fs::write(checkpoints.join("tiny.safetensors"), embedded::weights()).unwrap();
        fs::write(folder.path().join("direct.safetensors"), embedded::weights()).unwrap();
        fs::write(folder.path().join("checkpoints/broken.safetensors"), b"no").unwrap();
        fs::write(folder.path().join("checkpoints/old.ckpt"), b"pickle").unwrap();
        fs::write(folder.path().join("loras/lora.safetensors"), b"").unwrap();
        let catalog = Catalog::open(Some(folder.path()), Some("anime/tiny.safetensors")).unwrap();
        let ids: Vec<String> = catalog.list().into_iter().map(|entry| entry.id).collect();
        assert_eq!(ids, ["tiny-sdxl", "anime/tiny", "broken", "direct"]);
        assert_eq!(catalog.default_id(), "anime/tiny");
        let tiny = catalog.find("anime/tiny").unwrap();
        assert_eq!((tiny.kind, tiny.problem), (ModelKind::Sdxl, None));
        let problem = catalog.find("broken").unwrap().problem.unwrap();
        assert!(problem.starts_with("broken.safetensors: "), "{problem}");
        assert_eq!(catalog.near("anime/tyni"), ["anime/tiny"]);
    }

    #[test]
    fn clients_are_not_told_where_models_are() {
        let folder = tempfile::TempDir::new().unwrap();
        let secret = folder.path().display().to_string();
        let diffusers = folder.path().join("diffusers/anime");
        fs::create_dir_all(diffusers.join("unet")).unwrap();
        fs::write(diffusers.join("model_index.json"), "{").unwrap();
        fs::create_dir_all(folder.path().join("checkpoints/sdxl")).unwrap();
        fs::write(folder.path().join("checkpoints/sdxl/broken.safetensors"), b"no").unwrap();
        let catalog = Catalog::open(Some(folder.path()), None).unwrap();
        for (id, name) in
            [("sdxl/broken", "sdxl/broken.safetensors: "), ("anime", "anime/model_index.json: ")]
        {
            let entry = catalog.find(id).unwrap();
            let problem = entry.problem.clone().unwrap();
            assert!(problem.contains(name) && !problem.contains(&secret), "{problem}");
            let error = catalog.open_model(&entry, &Device::Cpu).err().unwrap().to_string();
            assert!(error.contains(&secret), "{error}");
            assert!(!entry.for_clients(&error).contains(&secret), "{error}");
        }
    }

    #[test]
    fn nothing_outside_the_folder_has_a_name() {
        let folder = tempfile::TempDir::new().unwrap();
        fs::create_dir(folder.path().join("models")).unwrap();
        fs::write(folder.path().join("secret.safetensors"), embedded::weights()).unwrap();
        let catalog = Catalog::open(Some(&folder.path().join("models")), None).unwrap();
        for name in ["../secret", "../secret.safetensors", "/etc/passwd", "", ".", ".."] {
            assert!(catalog.find(name).is_none(), "{name}");
        }
        assert_eq!(catalog.find("embedded").unwrap().id, catalog.default_id());
    }

    #[test]
    fn a_default_that_is_not_there_is_named_with_what_there_is() {
        let error = Catalog::open(None, Some("sdxl")).unwrap_err().to_string();
        assert!(error.contains("'sdxl'") && error.contains("tiny-sdxl"), "{error}");
    }
}
