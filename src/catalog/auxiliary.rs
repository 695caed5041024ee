//! What works beside a model: LoRAs, ControlNets, upscalers, and the networks that find faces, depth and backgrounds. They lie
//! in the models folder where ComfyUI and its common extensions keep them; some are built in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use darkroom_models::weights::{WeightFile, WeightsError};
use sha2::{Digest, Sha256};

use super::{Catalog, DEPTH, look, without_path};
use crate::embedded;

/// What sort of network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AuxiliaryKind {
    /// Low-rank changes to a model's weights.
    Lora,
    /// A network that steers a model by a picture.
    ControlNet,
    /// A network that estimates depth.
    Depth,
    /// A network that finds faces or hands.
    Detector,
    /// A network that cuts the subject out of its background.
    Matting,
    /// A network that enlarges pictures.
    Upscaler,
}

impl AuxiliaryKind {
    /// What people call one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "LoRA",
            Self::ControlNet => "ControlNet",
            Self::Depth => "depth network",
            Self::Detector => "detector",
            Self::Matting => "background remover",
            Self::Upscaler => "upscale model",
        }
    }

    /// Folders below the models folder that hold such files.
    pub fn folders(self) -> &'static [&'static str] {
        match self {
            Self::Lora => &["loras"],
            Self::ControlNet => &["controlnet"],
            Self::Depth => &["depthanything", "depth"],
            Self::Detector => &["ultralytics/bbox", "ultralytics"],
            Self::Matting => &["RMBG", "background_removal"],
            Self::Upscaler => &["upscale_models"],
        }
    }
}

/// A file of one of these kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuxiliaryEntry {
    /// What requests call it: the file's name without its extension, with its folders.
    pub id: String,
    /// What sort.
    pub kind: AuxiliaryKind,
    /// Bytes of the file.
    pub bytes: u64,
    /// When the file changed last, where the system knows.
    pub(super) modified: Option<SystemTime>,
    location: Location,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Location {
    Embedded(&'static [u8]),
    Path(PathBuf),
}

impl AuxiliaryEntry {
    /// Whether it is compiled in.
    pub fn is_built_in(&self) -> bool {
        matches!(self.location, Location::Embedded(_))
    }

    /// The file's name, for metadata.
    pub fn file_name(&self) -> String {
        format!("{}.safetensors", self.id)
    }

    /// What is wrong with it, for clients: they know its name, and not where the server keeps it.
    pub fn for_clients(&self, problem: &str) -> String {
        match &self.location {
            Location::Embedded(_) => problem.to_owned(),
            Location::Path(path) => without_path(problem, path, &self.file_name()),
        }
    }

    /// Tells this file, as it was when it was found, from one that is put in its place.
    pub fn revision(&self) -> u64 {
        match self.location {
            Location::Embedded(_) => 0,
            Location::Path(_) => revision(self.bytes, self.modified),
        }
    }

    /// The same as it is now; `None` if it is gone. Asks the disk.
    pub fn revision_now(&self) -> Option<u64> {
        let Location::Path(path) = &self.location else { return Some(0) };
        let metadata = std::fs::metadata(path).ok()?;
        Some(revision(metadata.len(), metadata.modified().ok()))
    }

    /// Opens it; reads the header only.
    pub fn open(&self) -> Result<Arc<WeightFile>, WeightsError> {
        let file = match &self.location {
            Location::Embedded(bytes) => WeightFile::from_static(&self.file_name(), bytes),
            Location::Path(path) => WeightFile::open(path),
        };
        file.map(Arc::new)
    }
}

fn revision(bytes: u64, modified: Option<SystemTime>) -> u64 {
    let since = modified.and_then(|modified| modified.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let mut digest = Sha256::new();
    digest.update(bytes.to_le_bytes());
    digest.update(since.as_nanos().to_le_bytes());
    digest.finalize().iter().take(8).fold(0, |revision, byte| (revision << 8) | u64::from(*byte))
}

impl Catalog {
    /// All of a kind, built-in ones first, then by name.
    pub fn auxiliaries(&self, kind: AuxiliaryKind) -> Vec<AuxiliaryEntry> {
        let mut entries: Vec<AuxiliaryEntry> = embedded::auxiliaries(kind)
            .iter()
            .map(|(id, bytes)| AuxiliaryEntry {
                id: (*id).to_owned(),
                kind,
                bytes: bytes.len() as u64,
                modified: None,
                location: Location::Embedded(bytes),
            })
            .collect();
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        if let Some(folder) = &self.folder {
            for name in kind.folders() {
                look(&folder.join(name), "", DEPTH, &mut found);
            }
        }
        found.sort();
        found.dedup_by(|a, b| a.0 == b.0);
        for (id, path) in found {
            if !path.is_file() || entries.iter().any(|entry| entry.id == id) {
                continue;
            }
            let metadata = std::fs::metadata(&path).ok();
            let bytes = metadata.as_ref().map_or(0, std::fs::Metadata::len);
            let modified = metadata.and_then(|metadata| metadata.modified().ok());
            entries.push(AuxiliaryEntry { id, kind, bytes, modified, location: Location::Path(path) });
        }
        entries
    }

    /// The one that requests call `id`; an extension does not matter.
    pub fn find_auxiliary(&self, kind: AuxiliaryKind, id: &str) -> Option<AuxiliaryEntry> {
        let plain = id.strip_suffix(".safetensors").unwrap_or(id);
        self.auxiliaries(kind).into_iter().find(|entry| entry.id == plain)
    }
}
