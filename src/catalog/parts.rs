//! Parts of models in files of their own, as ComfyUI's split loaders name them: a UNet in `diffusion_models/`, text
//! encoders in `text_encoders/`, a VAE in `vae/`. The engine keeps them as it keeps models, under ids of this form:
//! `vae:sdxl_vae.safetensors`, `text_encoders:clip_l.safetensors + clip_g.safetensors`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use darkroom_models::checkpoint::{CheckpointError, CheckpointParts, ModelKind, QwenImageParts};
use darkroom_models::weights::WeightFile;

use super::{Catalog, DEPTH, Defaults, Entry, Location, Opened, look, qwen_image};

/// Between the names of two files.
const AND: &str = " + ";

/// What sort of part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartKind {
    /// A denoising network.
    DiffusionModel,
    /// Text encoders: one file, or two.
    TextEncoders,
    /// A VAE.
    Vae,
}

impl PartKind {
    const ALL: [Self; 3] = [Self::DiffusionModel, Self::TextEncoders, Self::Vae];

    /// ComfyUI's name of the folder.
    fn name(self) -> &'static str {
        match self {
            Self::DiffusionModel => "diffusion_models",
            Self::TextEncoders => "text_encoders",
            Self::Vae => "vae",
        }
    }

    /// Folders below the models folder, old names included.
    pub(super) fn folders(self) -> &'static [&'static str] {
        match self {
            Self::DiffusionModel => &["unet", "diffusion_models"],
            Self::TextEncoders => &["text_encoders", "clip"],
            Self::Vae => &["vae"],
        }
    }

    /// The id of the part in these files, by their names in the folder.
    pub fn id(self, files: &[&str]) -> String {
        format!("{}:{}", self.name(), files.join(AND))
    }
}

impl Catalog {
    /// The part of this id; `None` where a file of it is not there.
    pub(super) fn find_part(&self, id: &str) -> Option<Entry> {
        let (kind, files) = PartKind::ALL.into_iter().find_map(|kind| {
            let files = id.strip_prefix(kind.name())?.strip_prefix(':')?;
            Some((kind, files))
        })?;
        let paths = files.split(AND).map(|file| self.part_file(kind, file)).collect::<Option<Vec<_>>>()?;
        let bytes =
            paths.iter().map(|path| std::fs::metadata(path).map_or(0, |metadata| metadata.len())).sum();
        // Of Stable Diffusion's parts headers alone do not say to which model they belong.
        let own = match paths.as_slice() {
            [only] => self.part_kind(only).0,
            _ => ModelKind::Unknown,
        };
        let kind_of_model = if own == ModelKind::QwenImage { own } else { ModelKind::Unknown };
        Some(Entry {
            id: id.to_owned(),
            kind: kind_of_model,
            bytes,
            defaults: Defaults::of_side(id, kind_of_model, 1024),
            problem: None,
            location: Location::Part { kind, paths },
        })
    }

    /// A file that one of the kind's folders lists under this name.
    fn part_file(&self, kind: PartKind, name: &str) -> Option<PathBuf> {
        let plain = name.strip_suffix(".safetensors")?;
        let mut found = Vec::new();
        for folder in kind.folders() {
            look(&self.folder.as_ref()?.join(folder), "", DEPTH, &mut found);
        }
        found.into_iter().find(|(id, path)| id == plain && path.is_file()).map(|(_, path)| path)
    }
}

/// Opens a part's files.
pub(super) fn open(
    kind: PartKind,
    paths: &[PathBuf],
    tokenizer: Option<&Path>,
    device: &Device,
) -> Result<Opened, CheckpointError> {
    let open = |path: &PathBuf| -> Result<Arc<WeightFile>, CheckpointError> {
        Ok(Arc::new(WeightFile::open(Path::new(path))?))
    };
    let files = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    if let ([file], [path]) = (&files[..], paths) {
        let wanted = match kind {
            PartKind::DiffusionModel => ModelKind::QwenImage,
            PartKind::TextEncoders => ModelKind::QwenVl,
            PartKind::Vae => ModelKind::QwenImageVae,
        };
        if QwenImageParts::kind_of(file) == wanted {
            return match kind {
                PartKind::TextEncoders => qwen_image::open_text_encoder(path, tokenizer, device),
                _ => QwenImageParts::from_file(file, device),
            }
            .map(Opened::QwenImage);
        }
    }
    match (kind, &files[..]) {
        (PartKind::DiffusionModel, [file]) => CheckpointParts::unet_alone(file, device),
        (PartKind::Vae, [file]) => CheckpointParts::vae_alone(file, device),
        _ => CheckpointParts::text_encoders(&files, device),
    }
    .map(Opened::Part)
}
