//! Checkpoints in one file with ldm/sgm names.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Device;

use super::detect::{self, Tensors};
use super::keys::{self, Mapped};
use super::kind::{self, SD15_CLIP, SDXL_CLIP_G, SDXL_CLIP_L, UNET, VAE};
use super::{CheckpointError, CheckpointParts, Component, Layout, ModelKind, Part, prediction};
use crate::weights::{Header, Stored, Transform, WeightFile, Weights};

/// What training leaves beside the networks' tensors: averages, schedules, markers.
const IGNORED: &[&str] = &[
    "model_ema.",
    "model_ema_",
    "alphas_cumprod",
    "betas",
    "denoiser.",
    "embedding_manager.",
    "log_one_minus_alphas_cumprod",
    "logvar",
    "lvlb_weights",
    "posterior_",
    "safety_checker.",
    "scale_factor",
    "sqrt_",
];

/// Whether the stored `name` belongs to no network by right.
pub(super) fn is_ignored(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    IGNORED.iter().any(|prefix| name.starts_with(prefix))
        || matches!(last, "v_pred" | "ztsnr")
        || (name.starts_with("cond") && keys::is_clip_buffer(name))
}

/// The part that the stored `name` belongs to, and its name within it.
pub(super) fn part_of(name: &str) -> Option<(Part, &str)> {
    [
        (UNET, Part::UNet),
        (VAE, Part::Vae),
        (SDXL_CLIP_L, Part::ClipL),
        (SD15_CLIP, Part::ClipL),
        (SDXL_CLIP_G, Part::ClipG),
    ]
    .into_iter()
    .find_map(|(prefix, part)| Some((part, name.strip_prefix(prefix)?)))
}

pub(super) fn open(file: &Arc<WeightFile>, device: &Device) -> Result<CheckpointParts, CheckpointError> {
    let header = file.header();
    let origin = file.name().to_owned();
    let (kind, layout) = kind::classify(header);
    if !matches!(kind, ModelKind::Sdxl | ModelKind::Sd15) {
        return Err(CheckpointError::Kind { origin, kind });
    }
    if layout != Layout::Ldm {
        return Err(CheckpointError::Unsupported {
            origin,
            reason:
                "a UNet alone with diffusers names; pass the whole diffusers folder, or a single file with \
                     ldm names"
                    .into(),
        });
    }
    open_with(file, device, (kind, layout), &part_of)
}

/// Which part a stored tensor belongs to, and its name within it.
pub(super) type PartOf<'a> = &'a dyn Fn(&str) -> Option<(Part, &str)>;

/// Opens the parts that `part_of` finds.
pub(super) fn open_with(
    file: &Arc<WeightFile>,
    device: &Device,
    (kind, layout): (ModelKind, Layout),
    part_of: PartOf<'_>,
) -> Result<CheckpointParts, CheckpointError> {
    let header = file.header();
    let origin = file.name().to_owned();
    let prediction = prediction::of_file(header).map_err(|found| CheckpointError::Unsupported {
        origin: origin.clone(),
        reason: format!("prediction type {found}; epsilon and v are"),
    })?;
    let unet = gather(file, Part::UNet, part_of)?;
    let vae = gather(file, Part::Vae, part_of)?;
    let clip_l = gather(file, Part::ClipL, part_of)?;
    let clip_g = gather(file, Part::ClipG, part_of)?;
    let component = Build { origin: &origin, header, device, part_of };
    let clip_g = component.of(clip_g, Part::ClipG, |t| detect::clip(t, header, "text_encoder_2_config"))?;
    let clip_l = component.of(clip_l, Part::ClipL, |t| detect::clip(t, header, "text_encoder_config"))?;
    let pooled = clip_g.as_ref().and_then(|clip| clip.config.projection_dim);
    let unet = component.of(unet, Part::UNet, |t| detect::unet(t, header, kind, pooled))?;
    let vae = component.of(vae, Part::Vae, |t| detect::vae(t, header, kind))?;
    let stray = component.stray();
    let parts = CheckpointParts { kind, layout, prediction, unet, vae, clip_l, clip_g, stray, origin };
    super::folder::refuse_other_tasks(&parts)?;
    Ok(parts)
}

struct Build<'a> {
    origin: &'a str,
    header: &'a Header,
    device: &'a Device,
    part_of: PartOf<'a>,
}

impl Build<'_> {
    fn of<C>(
        &self,
        tensors: BTreeMap<String, Stored>,
        part: Part,
        config: impl FnOnce(&Tensors<'_>) -> Result<C, CheckpointError>,
    ) -> Result<Option<Component<C>>, CheckpointError> {
        if tensors.is_empty() {
            return Ok(None);
        }
        let config = config(&Tensors { origin: self.origin, part, tensors: &tensors })?;
        Ok(Some(Component { config, weights: Weights::new(self.origin, tensors, self.device) }))
    }

    fn stray(&self) -> Vec<String> {
        let stray: Vec<String> = self
            .header
            .tensors
            .keys()
            .filter(|name| (self.part_of)(name).is_none() && !is_ignored(name))
            .cloned()
            .collect();
        if let Some(first) = stray.first() {
            tracing::warn!(file = self.origin, count = stray.len(), first, "tensors of no known part");
        }
        stray
    }
}

/// All tensors of `part` under canonical names.
fn gather(
    file: &Arc<WeightFile>,
    part: Part,
    part_of: PartOf<'_>,
) -> Result<BTreeMap<String, Stored>, CheckpointError> {
    let own = || {
        let names = file.header().tensors.keys();
        names.filter(|name| !is_ignored(name)).filter_map(|name| {
            part_of(name).filter(|(owner, _)| *owner == part).map(|(_, inner)| (name, inner))
        })
    };
    let layers = keys::layers_per_block(own().map(|(_, inner)| inner)).unwrap_or(1);
    let levels = keys::vae_levels(own().map(|(_, inner)| inner));
    let mut tensors = Collector::new(file.name(), part);
    for (name, inner) in own() {
        let rows = file.header().tensors.get(name).and_then(|info| info.shape.first()).copied().unwrap_or(0);
        let mapped: Vec<Mapped> = match part {
            Part::UNet => keys::unet(inner, layers).into_iter().collect(),
            Part::Vae => {
                // A discriminator that training left behind.
                if inner.starts_with("loss.") || inner.starts_with("model_ema.") {
                    continue;
                }
                keys::vae(inner, levels).into_iter().collect()
            }
            Part::ClipL | Part::ClipG => {
                // SDXL reads no pooled output of CLIP-L.
                if part == Part::ClipL && inner.starts_with("text_projection") {
                    continue;
                }
                keys::clip(inner, rows)
            }
            Part::Transformer | Part::QwenVl => Vec::new(),
        };
        tensors.add(file, name, inner, mapped)?;
    }
    Ok(tensors.tensors)
}

/// Gathers a part's tensors and notices two that mean the same.
pub(super) struct Collector<'a> {
    origin: &'a str,
    part: Part,
    pub(super) tensors: BTreeMap<String, Stored>,
}

impl<'a> Collector<'a> {
    pub(super) fn new(origin: &'a str, part: Part) -> Self {
        Self { origin, part, tensors: BTreeMap::new() }
    }

    /// Adds the tensor stored as `name`; under `inner`, its name within the part, where `mapped` is empty.
    pub(super) fn add(
        &mut self,
        file: &Arc<WeightFile>,
        name: &str,
        inner: &str,
        mut mapped: Vec<Mapped>,
    ) -> Result<(), CheckpointError> {
        if mapped.is_empty() {
            mapped.push((inner.to_owned(), Transform::None));
        }
        for (canonical, transform) in mapped {
            let stored = Stored { file: file.clone(), name: name.to_owned(), transform };
            if let Some(other) = self.tensors.insert(canonical.clone(), stored) {
                return Err(CheckpointError::Ambiguous {
                    origin: self.origin.to_owned(),
                    part: self.part,
                    name: canonical,
                    first: other.name,
                    second: name.to_owned(),
                });
            }
        }
        Ok(())
    }
}
