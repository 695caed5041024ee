//! Qwen-Image in the layouts that people keep it in: a diffusers folder, and ComfyUI's three files (`diffusion_models/`,
//! `text_encoders/`, `vae/`), plain or with weights of eight bits. Any part may be missing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use serde_json::{Map, Value};

use super::detect::{self, Tensors};
use super::folder::{read_config, weight_files};
use super::keys::{self, QwenVlKey};
use super::kind::UNET;
use super::single_file::Collector;
use super::{CheckpointError, Component, Layout, ModelKind, Part, folder, kind};
use crate::qwen_image::QwenImageConfig;
use crate::qwen_vl::QwenVlTextConfig;
use crate::tokenizer::QwenTokenizer;
use crate::vae_qwen::QwenVaeConfig;
use crate::weights::{Header, Stored, Transform, WeightFile, Weights, is_scale};

/// Names of a whole checkpoint's VAE.
const VAE: &str = "vae.";
/// What the tokenizer may be called beside a text encoder's file.
const TOKENIZERS: [&str; 2] = ["tokenizer.json", "vocab.json"];

/// An opened Qwen-Image, of which parts may be missing.
#[derive(Debug, Clone)]
pub struct QwenImageParts {
    /// The folder, or the files.
    pub origin: String,
    /// How it is laid out.
    pub layout: Layout,
    /// The denoising network.
    pub transformer: Option<Component<QwenImageConfig>>,
    /// The autoencoder.
    pub vae: Option<Component<QwenVaeConfig>>,
    /// The language model that reads prompts.
    pub text_encoder: Option<Component<QwenVlTextConfig>>,
    /// Its tokenizer, where one was found.
    pub tokenizer: Option<Arc<QwenTokenizer>>,
}

/// A network's tensors by the name that they are stored under.
type Named = BTreeMap<String, Arc<WeightFile>>;

impl QwenImageParts {
    /// Opens a diffusers folder.
    ///
    /// # Errors
    /// When it is unreadable or damaged, another kind of model, or made in a way that the networks cannot honour.
    pub fn open(root: &Path, device: &Device) -> Result<Self, CheckpointError> {
        let origin = root.display().to_string();
        let kind = folder::kind(root)?;
        if kind != ModelKind::QwenImage {
            return Err(CheckpointError::Kind { origin, kind });
        }
        let tokenizer = Some(root.join("tokenizer")).filter(|dir| dir.is_dir());
        let tokenizer = tokenizer.map(|dir| QwenTokenizer::from_folder(&dir)).transpose()?;
        Ok(Self {
            transformer: folder_part(root, Part::Transformer, transformer_tensors, device)?,
            vae: folder_part(root, Part::Vae, vae_tensors, device)?,
            text_encoder: folder_part(root, Part::QwenVl, text_tensors, device)?,
            tokenizer: tokenizer.map(Arc::new),
            layout: Layout::DiffusersFolder,
            origin,
        })
    }

    /// What a file's header says that it is.
    pub fn kind_of(file: &WeightFile) -> ModelKind {
        kind::classify(file.header()).0
    }

    /// Opens a file with one of the parts.
    ///
    /// # Errors
    /// When it holds none of them, or one that is damaged or of another shape than it should have.
    pub fn from_file(file: &Arc<WeightFile>, device: &Device) -> Result<Self, CheckpointError> {
        let (header, origin) = (file.header(), file.name().to_owned());
        let named: Named = header.tensors.keys().map(|name| (name.clone(), file.clone())).collect();
        let (kind, layout) = kind::classify(header);
        let mut parts = Self {
            origin: origin.clone(),
            layout,
            transformer: None,
            vae: None,
            text_encoder: None,
            tokenizer: None,
        };
        let found = |part, tensors| Found { origin: &origin, header, part, tensors, device };
        match kind {
            ModelKind::QwenImage => {
                let found = found(Part::Transformer, transformer_tensors(&origin, &named)?);
                parts.transformer = Some(found.component(detect::qwen_image)?);
            }
            ModelKind::QwenImageVae => {
                let found = found(Part::Vae, vae_tensors(&origin, &named)?);
                parts.vae = Some(found.component(detect::vae_qwen)?);
            }
            ModelKind::QwenVl => {
                let found = found(Part::QwenVl, text_tensors(&origin, &named)?);
                parts.text_encoder = Some(found.component(detect::qwen_vl)?);
            }
            kind => return Err(CheckpointError::Kind { origin, kind }),
        }
        Ok(parts)
    }

    /// The same with the parts that `other` has and this one lacks.
    #[must_use]
    pub fn joined(self, other: Self) -> Self {
        Self {
            origin: format!("{} and {}", self.origin, other.origin),
            layout: self.layout,
            transformer: self.transformer.or(other.transformer),
            vae: self.vae.or(other.vae),
            text_encoder: self.text_encoder.or(other.text_encoder),
            tokenizer: self.tokenizer.or(other.tokenizer),
        }
    }

    /// The same with the tokenizer at `path`: a `tokenizer.json`, or a folder that has one, or `vocab.json` and
    /// `merges.txt`.
    ///
    /// # Errors
    /// When that is none.
    pub fn with_tokenizer(self, path: &Path) -> Result<Self, CheckpointError> {
        let tokenizer = match path.is_dir() {
            true => QwenTokenizer::from_folder(path)?,
            false => QwenTokenizer::from_file(path)?,
        };
        Ok(Self { tokenizer: Some(Arc::new(tokenizer)), ..self })
    }

    /// The same with the tokenizer that lies beside a text encoder's file, under that file's name with `.tokenizer.json`
    /// in place of its extension, or as `tokenizer.json`, or as `vocab.json` and `merges.txt`; where there is none it
    /// stays as it is.
    ///
    /// # Errors
    /// When there is one that is damaged.
    pub fn with_tokenizer_beside(self, file: &Path) -> Result<Self, CheckpointError> {
        let own = file.with_extension("tokenizer.json");
        if own.is_file() {
            return self.with_tokenizer(&own);
        }
        match file.parent() {
            Some(folder) if TOKENIZERS.iter().any(|name| folder.join(name).is_file()) => {
                self.with_tokenizer(folder)
            }
            _ => Ok(self),
        }
    }

    /// The parts that a picture needs and this lacks. Of the tokenizer the pipeline speaks itself.
    pub fn missing(&self) -> Vec<Part> {
        let has = |part: &Part| match part {
            Part::Transformer => self.transformer.is_some(),
            Part::Vae => self.vae.is_some(),
            Part::QwenVl => self.text_encoder.is_some(),
            _ => true,
        };
        ModelKind::QwenImage.parts().iter().copied().filter(|part| !has(part)).collect()
    }
}

/// A part's tensors, whose shape is not known yet.
struct Found<'a> {
    origin: &'a str,
    header: &'a Header,
    part: Part,
    tensors: BTreeMap<String, Stored>,
    device: &'a Device,
}

impl Found<'_> {
    fn component<C>(
        self,
        detect: impl FnOnce(&Tensors<'_>, &Header) -> Result<C, CheckpointError>,
    ) -> Result<Component<C>, CheckpointError> {
        let Self { origin, header, part, tensors, device } = self;
        let config = detect(&Tensors { origin, part, tensors: &tensors }, header)?;
        Ok(Component { config, weights: Weights::new(origin, tensors, device) })
    }
}

/// A part in its own folder of a diffusers folder, if that is there; `gather` gives its tensors their canonical names.
fn folder_part<C>(
    root: &Path,
    part: Part,
    gather: impl FnOnce(&str, &Named) -> Result<BTreeMap<String, Stored>, CheckpointError>,
    device: &Device,
) -> Result<Option<Component<C>>, CheckpointError>
where
    C: TryFrom<Map<String, Value>, Error = crate::ConfigError>,
{
    let name = folder::parts(ModelKind::QwenImage).iter().find(|(own, _)| *own == part).map(|(_, name)| name);
    let Some(dir) = name.map(|name| root.join(name)).filter(|dir| dir.is_dir()) else { return Ok(None) };
    let origin = dir.display().to_string();
    let config = read_config(&dir, part)?;
    let tensors = gather(&origin, &weight_files(&dir)?)?;
    Ok(Some(Component { config, weights: Weights::new(&origin, tensors, device) }))
}

/// The transformer's tensors: both layouts have diffusers' names, whole checkpoints with a prefix.
fn transformer_tensors(origin: &str, named: &Named) -> Result<BTreeMap<String, Stored>, CheckpointError> {
    let mut tensors = Collector::new(origin, Part::Transformer);
    for (name, file) in named.iter().filter(|(name, _)| !is_scale(name)) {
        let inner = name.strip_prefix(UNET).unwrap_or(name);
        // ComfyUI's files carry a marker of the variant.
        if inner.starts_with("__") {
            continue;
        }
        tensors.add(file, name, inner, Vec::new())?;
    }
    Ok(tensors.tensors)
}

fn vae_tensors(origin: &str, named: &Named) -> Result<BTreeMap<String, Stored>, CheckpointError> {
    let inner = |name: &'_ str| name.strip_prefix(VAE).unwrap_or(name).to_owned();
    let names: Vec<String> = named.keys().map(|name| inner(name)).collect();
    let wan = names.iter().any(|name| name.starts_with("encoder.downsamples."));
    let res_blocks = keys::vae_qwen_res_blocks(names.iter().map(String::as_str));
    let mut tensors = Collector::new(origin, Part::Vae);
    for (name, file) in named.iter().filter(|(name, _)| !is_scale(name)) {
        let own = inner(name);
        let mapped = if wan { keys::vae_qwen(&own, res_blocks) } else { None };
        tensors.add(file, name, &own, mapped.into_iter().collect())?;
    }
    Ok(tensors.tensors)
}

/// The language model's tensors. The tower that sees pictures and the head that predicts tokens are left out.
fn text_tensors(origin: &str, named: &Named) -> Result<BTreeMap<String, Stored>, CheckpointError> {
    let mut tensors = Collector::new(origin, Part::QwenVl);
    for (name, file) in named.iter().filter(|(name, _)| !is_scale(name)) {
        let canonical = match keys::qwen_vl(name) {
            QwenVlKey::Text(canonical) => canonical,
            QwenVlKey::Visual | QwenVlKey::Ignored => continue,
            // Left over when the network has taken its own, and named then.
            QwenVlKey::Unknown => name.clone(),
        };
        tensors.add(file, name, name, vec![(canonical, Transform::None)])?;
    }
    Ok(tensors.tensors)
}
